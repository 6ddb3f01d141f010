"""Images at URLs are listed, labelled and decoded like local files of the same names."""

import io
import json
import sys
import tarfile
import threading

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.core import remote
from cnnviz.core.data.datasets import batches, open_data, open_images
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.preprocess import Preprocess

WORKING = Preprocess(None, (8, 8))
NAMES = ("cat/b.png", "cat/a.png", "dog/10.png", "dog/2.png", ".hidden/x.png", "readme.md")


def picture(number):
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def tar_of(names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, name in enumerate(names):
            content = picture(number) if name.endswith(".png") else name[:1].encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class Places:
    """The same files in a local folder and at a URL."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        self.system = fsspec.filesystem(remote.scheme_of(url))

    def write(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.system.pipe_file(f"{self.url}/{name}", content)


@pytest.fixture
def places(tmp_path):
    system = fsspec.filesystem("memory")
    yield Places(tmp_path, "memory://bucket/data")
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def same(places, names, opened=open_data):
    """Opens names in both places; asserts that only the names of the images differ."""
    local = opened([str(places.folder / name) for name in names])
    far = opened([f"{places.url}/{name}".rstrip("/") for name in names])
    moved = [e.path.replace(str(places.folder), places.url) for e in local.examples]
    assert [example.path for example in far.examples] == moved
    assert [e.label for e in far.examples] == [e.label for e in local.examples]
    assert (far.classes, far.folders) == (local.classes, local.folders)
    for index in range(len(local)):
        ours, theirs = (data.working(index, WORKING) for data in (local, far))
        assert (ours.pixels == theirs.pixels).all()
        assert theirs.reopen is not None
    return far


def test_a_folder_of_classes(places):
    for number, name in enumerate(NAMES):
        places.write(name, picture(number))
    far = same(places, [""])
    assert far.examples[0].path == "memory://bucket/data/cat/a.png"
    assert (len(far), far.classes) == (4, ("cat", "dog"))
    same(places, [""], open_images)
    same(places, ["cat", "dog"])
    same(places, ["dog/10.png", "cat/a.png"])
    same(places, ["dog/10.png", "cat"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "path,label\ncat/a.png,x\n./dog/2.png,y\ndog\\10.png,\n"),
        ("list.txt", "cat/a.png 1\ndog/2.png 0\n"),
        ("list.jsonl", '{"file": "cat/a.png", "label": "x"}\n'),
        ("list.json", json.dumps([{"path": "cat/b.png", "label": ["x", "y"]}])),
    ],
)
def test_a_manifest_names_files_below_its_folder(places, monkeypatch, name, text):
    for number, image in enumerate(NAMES):
        places.write(image, picture(number))
    places.write(name, text.encode())
    same(places, [name])
    monkeypatch.setattr("cnnviz.core.data.urls.FEW", 0)  # the folder is listed
    same(places, [name])


def test_tars(places):
    for shard in range(3):
        places.write(f"shards/{shard:02}.tar", tar_of(["1.png", "1.cls", "2.png", "2.cls"]))
    same(places, ["shards/{00..02}.tar"])
    same(places, ["shards"])
    far = same(places, ["shards/01.tar"])
    assert far.classes == ("1", "2")


def test_arrays_are_read_as_channels(places):
    stream = io.BytesIO()
    np.save(stream, np.zeros((8, 8, 4), np.uint8))
    places.write("bands/one.npy", stream.getvalue())
    data = open_data([f"{places.url}/bands"])
    assert data.working(0, WORKING.with_channels(4)).pixels.shape == (4, 8, 8)


def test_the_fingerprint_changes_with_a_file(places):
    places.write("a.png", picture(0))
    places.write("b.png", picture(1))
    before = open_data([places.url]).fingerprint
    assert open_data([places.url]).fingerprint == before
    places.write("b.png", picture(1))
    assert open_data([places.url]).fingerprint != before


def test_what_is_missing_or_damaged_is_one_images_error(places):
    places.write("list.csv", b"path,label\ngone.png,x\nbad.png,y\n")
    places.write("bad.png", b"not an image")
    data = open_data([f"{places.url}/list.csv"])
    for index, reason in enumerate(("no file", "not an image")):
        with pytest.raises(
            CnnvizError, match=f"memory://bucket/data/.*{reason}|{reason}.*memory://bucket/data/"
        ):
            data.working(index, WORKING)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret.png", "a/../../secret.png", "/bucket/secret.png", "..\\secret.png"),
        *("memory://bucket/secret.png", "s3://other/x.png", "file:///etc/passwd", "%2e%2e/x.png"),
        *("memory://bucket/data/../secret.png", "memory://bucket/data2/x.png", "a.png\0"),
    ],
)
def test_a_manifest_at_a_url_names_nothing_elsewhere(places, monkeypatch, name):
    places.write("list.jsonl", json.dumps({"path": name}).encode())
    opened = []
    monkeypatch.setattr("cnnviz.core.data.urls.described", opened.append)
    monkeypatch.setattr("cnnviz.core.data.urls.files_at", opened.append)
    with pytest.raises(UsageError, match=r"is not below memory://bucket/data/"):
        open_data([f"{places.url}/list.jsonl"])
    assert opened == []


@pytest.mark.parametrize("url", ["s3://b/x.png", "https://h/x.png", "file:///x", "a::memory://x"])
def test_a_local_manifest_names_no_url(tmp_path, url):
    (tmp_path / "list.csv").write_text(f"path,label\n{url},x\n")
    with pytest.raises(UsageError, match="a local file cannot name URLs"):
        open_data([str(tmp_path / "list.csv")])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("simplecache::s3://b/x.png", "chains protocols"),
        ("zip://x.png::s3://b/y.zip", "chains protocols|another protocol"),
        ("reference://x", "another protocol"),
        ("file:///etc/passwd", "another protocol"),
        ("github://a:b@c/x", "password|another protocol"),
        ("http://host/x.png", "another protocol"),
        ("local://x", "another protocol"),
        ("S3://b/x.png", "another protocol"),
        ("https://user:secret@host/x.png", "password"),
        ("https://host/x.png?X-Amz-Signature=secret", "password"),
        ("s3://key:secret@bucket/x.png", "password"),
        ("s3://", "empty or odd name"),
        ("s3:///x", "empty or odd name"),
        ("s3://b/../x", "empty or odd name"),
        ("https://host/%2e%2e/x", "empty or odd name"),
        ("memory://a/\nb", "empty or odd name"),
        ("https://host/folder", "files, not folders"),
        ("memory://nothing/here", "no file or folder"),
        ("memory://nothing/here.tar", "no file or folder"),
        ("memory://nothing/here.csv", "no file or folder"),
    ],
)
def test_other_urls_are_refused(monkeypatch, url, reason):
    real = remote.described
    monkeypatch.setattr(
        "cnnviz.core.data.urls.described", lambda u: None if "host" in u else real(u)
    )
    with pytest.raises(UsageError, match=reason) as caught:
        open_data([url])
    assert "secret" not in str(caught.value)


def test_urls_and_local_files_are_not_mixed(places):
    places.write("a.png", picture(0))
    with pytest.raises(UsageError, match="cannot be combined"):
        open_data([str(places.folder / "a.png"), f"{places.url}/a.png"])


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://b/x.png", "s3fs", "s3"),
        ("gs://b/x.png", "gcsfs", "gs"),
        ("hf://a/b/x.png", "huggingface_hub", "transformers"),
        ("https://host/x.png", "aiohttp", "http"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, url, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    remedy = rf"needs the package {package}: pip install '.\[{extra}\]"
    with pytest.raises(UsageError, match=remedy):
        open_data([url])


def test_a_read_that_is_interrupted_is_repeated(places, monkeypatch):
    places.write("a.png", picture(0))
    data, real = open_data([f"{places.url}/a.png"]), type(places.system).cat_file
    failures = [OSError("reset"), TimeoutError(), b"half"]

    def flaky(self, *args, **options):
        failure = failures.pop() if failures else real(self, *args, **options)
        if isinstance(failure, Exception):
            raise failure
        return failure

    monkeypatch.setattr(remote, "PAUSE", 0)
    monkeypatch.setattr(type(places.system), "cat_file", flaky)
    assert data.open(0).size == (10, 12)
    failures += [OSError("reset")] * 4
    with pytest.raises(CnnvizError, match=r"data/a.png' cannot be read: reset \(4 attempts\)"):
        data.open(0)
    failures[:] = [FileNotFoundError("a")]
    with pytest.raises(CnnvizError, match=r"no file or folder 'memory://bucket/data/a.png'"):
        data.open(0)


def test_many_images_are_read_at_a_time(places, monkeypatch):
    for number in range(40):
        places.write(f"{number:02}.png", picture(number))
    real, barrier = type(places.system).cat_file, threading.Barrier(8)

    def waiting(self, *args, **options):
        barrier.wait(timeout=20)
        return real(self, *args, **options)

    monkeypatch.setattr(type(places.system), "cat_file", waiting)
    data = open_data([places.url])
    found = list(batches(data, WORKING, 20, on_error=lambda *_: None))
    assert torch.cat([batch.indices for batch in found]).tolist() == list(range(40))


def test_a_strangers_json_names_no_url_to_read(places, monkeypatch):
    """Outlines, labels and run folders are local files, whose texts are no addresses."""
    from cnnviz.core.data.images import read_rgb
    from cnnviz.core.output.run_data import RunData

    monkeypatch.setattr(remote, "system_of", pytest.fail)
    with pytest.raises(CnnvizError, match="no file"):
        read_rgb("memory://b/x.png")
    for source in ("memory://b", "hf-dataset:memory://b", "cifar10:memory://b", "s3://b/list.csv"):
        assert RunData([source], [places.folder.parent.parent]).closed
