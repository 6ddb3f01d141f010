"""Servers of https that fail, or are hostile: bounded in time and memory, one line that names them.

The server is on this machine, with a certificate of its own, which fsspec's configuration accepts.
"""

import datetime
import gc
import gzip
import io
import ipaddress
import ssl
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from PIL import Image

from cnnviz.core import remote
from cnnviz.core.data.datasets import open_data
from cnnviz.core.errors import CnnvizError

pytestmark = pytest.mark.needs("aiohttp", "cryptography")
ROOT = Path(__file__).parent.parent.parent
CONTENT = (ROOT / "sample_images" / "ship.png").read_bytes()
HANGING = threading.Event()


def certificate(folder):
    """A key and a certificate for 127.0.0.1, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), True
        )
        .sign(key, hashes.SHA256())
    )
    text = made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / "server.pem"
    path.write_bytes(text)
    return path


class Server(BaseHTTPRequestHandler):
    """Fails in the way that the first folder of the path names."""

    protocol_version = "HTTP/1.1"
    counts: ClassVar[dict[str, int]] = {}

    def log_message(self, *_arguments):
        pass

    def do_HEAD(self):
        kind = self.path.split("/")[1]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind == "hang":
            HANGING.wait(20)
        status = int(kind) if kind.isdecimal() else 200
        self.send_response(status)
        if kind == "nolength":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            length = 10**13 if kind == "huge" else len(CONTENT) * (2 if kind == "short" else 1)
            self.send_header("Content-Length", str(length if status == 200 else 0))
        self.send_header("ETag", '"1"')
        self.end_headers()

    def do_GET(self):
        kind = self.path.split("/")[1]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if kind in ("hang", "nolength") or kind.isdecimal():
            self.do_HEAD()
            return
        if kind == "moved":
            self.send_response(302)
            self.send_header("Location", "/good/ship.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, stop = (int(n) for n in self.headers["Range"].removeprefix("bytes=").split("-"))
        body = CONTENT if kind == "whole" else CONTENT[start : stop + 1]
        length = len(body)
        if kind == "cut" or (kind == "flaky" and self.counts[kind] % 4):
            body = body[: len(body) // 2]
        self.send_response(200 if kind == "whole" else 206)
        if kind == "bomb":
            self.send_header("Content-Encoding", "gzip")
            body = gzip.compress(bytes(2**26))
            length = len(body)
        self.send_header("Content-Length", str(10**12 if kind == "endless" else length))
        self.end_headers()
        self.wfile.write(body)
        try:
            while kind == "endless" and not HANGING.is_set():
                self.wfile.write(bytes(2**20))
            while kind == "drip" and not HANGING.is_set():
                time.sleep(0.05)
                self.wfile.write(b".")
        except OSError:
            pass
        self.close_connection = kind in ("cut", "flaky")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path_factory.mktemp("https")))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = False  # they are waited for, so that no socket is left open
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = fsspec.config.conf.get("https")
    fsspec.config.conf["https"] = {"ssl": False}
    remote.file_system.cache_clear()
    yield f"https://127.0.0.1:{server.server_port}"
    HANGING.set()
    fsspec.config.conf.pop("https")
    if before is not None:
        fsspec.config.conf["https"] = before
    server.shutdown()
    server.server_close()
    remote.file_system.cache_clear()
    fsspec.get_filesystem_class("https").clear_instance_cache()
    with warnings.catch_warnings(action="ignore"):  # of connections that were cut
        gc.collect()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "LONGEST", 1.5)


@pytest.mark.parametrize("kind", ["good", "flaky", "moved", "whole", "endless", "drip"])
def test_images_are_read(address, kind):
    """An endless answer is read up to the size that the server said."""
    data = open_data([f"{address}/{kind}/ship.png"])
    assert data.open(0).size == Image.open(io.BytesIO(CONTENT)).size


def test_files_are_read_in_parts(address, monkeypatch):
    monkeypatch.setattr(remote, "PART", 20_000)
    file = remote.file_at(f"{address}/good/ship.png")
    assert file.read() == CONTENT
    assert file.open().read(250) == CONTENT[:250]
    assert file.stamp == f'{len(CONTENT)} "1"'


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", r"cannot be read: .*\(4 attempts\)"),
        ("short", r"bytes came \(4 attempts\)"),
        ("500", r"500.*\(4 attempts\)"),
        ("403", "403"),
        ("404", "no file or folder"),
        ("hang", "cannot be read: "),
        ("nolength", "does not say its size"),
        ("huge", "at most 1,073,741,824 are read"),
        ("bomb", "is not an image"),
    ],
)
def test_servers_that_fail_are_one_line(address, kind, reason):
    started, url = time.monotonic(), f"{address}/{kind}/ship.png"
    with pytest.raises(CnnvizError, match=reason) as caught:
        open_data([url]).open(0)
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_a_server_without_ranges_serves_no_parts(address, monkeypatch):
    monkeypatch.setattr(remote, "PART", 100)
    with pytest.raises(CnnvizError, match="does not serve parts of a file; download it first"):
        remote.file_at(f"{address}/whole/x.tar").read()


def test_a_server_that_is_not_there_is_one_line():
    with pytest.raises(
        CnnvizError, match=r"'https://127.0.0.1:9/x.png' cannot be read: .*attempts"
    ):
        open_data(["https://127.0.0.1:9/x.png"])
