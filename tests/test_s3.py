"""Every kind of data, weights and results on an S3 server on this machine (moto's).

One server for all tests. Its keys can be anything, as those of strangers.
"""

import gc
import io
import json
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core import remote
from cnnviz.core.data.datasets import open_data, open_images
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.load import load_model
from cnnviz.core.models.preprocess import Preprocess

pytestmark = pytest.mark.needs("s3fs", "moto", "datasets")
ROOT = Path(__file__).parent.parent
WORKING = Preprocess(None, (8, 8))


@pytest.fixture(scope="session")
def server():
    """The address of the server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """A bucket of its own for a test, and fsspec's file system."""
    import fsspec

    monkeypatch.chdir(tmp_path)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("cnnviz.core.remote.PAUSE", 0.01)
    remote.file_system.cache_clear()
    system = fsspec.filesystem("s3", use_listings_cache=False)
    system.mkdir("bucket")
    yield system
    system.rm("bucket", recursive=True)


def picture(number):
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (12, 10, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_folders_manifests_and_tars(bucket):
    names = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number, name in enumerate(names):
            bucket.pipe_file(f"bucket/images/{name}", picture(number))
            for part, content in ((f"{number}.png", picture(number)), (f"{number}.cls", b"7")):
                entry = tarfile.TarInfo(part)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    bucket.pipe_file("bucket/tars/00.tar", stream.getvalue())
    rows = "".join(f"{name},{name[:3]}\n" for name in names)
    bucket.pipe_file("bucket/images/list.csv", f"path,label\n{rows}".encode())
    folder = open_data(["s3://bucket/images"])
    listed = open_data(["s3://bucket/images/list.csv"])
    shards = open_data(["s3://bucket/tars/{00..00}.tar"])
    single = open_images([f"s3://bucket/images/{name}" for name in names])
    assert [e.path for e in folder.examples] == [f"s3://bucket/images/{name}" for name in names]
    assert folder.fingerprint == listed.fingerprint  # size and ETag of each, and its label
    assert (folder.classes, shards.classes, single.classes) == (("cat", "dog"), ("7",), None)
    for data in (folder, listed, shards, single):
        for index in range(6):
            expected = np.asarray(Image.open(io.BytesIO(picture(index))).convert("RGB"))
            assert (np.asarray(data.open(index)) == expected).all()
        assert 0 < data.changed(0) < 2e9
    bucket.pipe_file("bucket/images/cat/0.png", picture(9))
    assert open_data(["s3://bucket/images"]).fingerprint != folder.fingerprint


def test_a_data_set_of_arrow_files(bucket, tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
    rows = {"image": [{"bytes": picture(n)} for n in range(4)], "label": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    bucket.put(str(tmp_path / "set"), "bucket/set", recursive=True)
    local, far = (open_data([f"hf-dataset:{place}"]) for place in ("set", "s3://bucket/set"))
    assert [e.label for e in far.examples] == [e.label for e in local.examples]
    assert far.examples[0].path.startswith("s3://bucket/set/")
    assert (np.asarray(far.open(3)) == np.asarray(local.open(3))).all()


def test_hostile_keys_are_only_names(bucket, tmp_path):
    keys = ["../up.png", "/etc/abs.png", "a/../../b.png", "-rf.png", "a//c.png"]
    for number, key in enumerate(keys):
        bucket.pipe_file(f"bucket/odd/{key}", picture(number))
    before = set(tmp_path.parent.rglob("*"))
    line = ["activations", "s3://bucket/odd", "--layer", "stem.conv", "--top", "1"]
    assert run([*line, "--out", "out"]) == 0
    results = json.loads(Path("out", "summary.json").read_text())["results"]
    seen = sorted(f"s3://bucket/odd/{key}" for key in keys if ".." not in key)  # which is hidden
    assert sorted(result["image"] for result in results) == seen
    made = set(tmp_path.parent.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "out") for path in made)
    assert all(Path("out", r["folder"]).resolve().parent == tmp_path / "out" for r in results)
    assert run([*line, "--out", "s3://bucket/odd", "--overwrite"]) == 1  # they would be copied


def test_a_checkpoint_and_results(bucket, capsys):
    stream = io.BytesIO()
    torch.save(load_model().module.state_dict(), stream)
    bucket.pipe_file("bucket/net.pth", stream.getvalue())
    bucket.put(str(ROOT / "sample_images"), "bucket/images", recursive=True)
    line = ["max-patches", "s3://bucket/images", "--checkpoint", "s3://bucket/net.pth"]
    line += ["--layer", "stem.conv", "--filters", "0,1", "--top", "2"]
    assert run([*line, "--out", "s3://bucket/out/"]) == 0
    assert "s3://bucket/out/summary.json" in capsys.readouterr().out
    assert run([*line, "--out", "local"]) == 0
    far = json.loads(bucket.cat_file("bucket/out/summary.json"))
    near = json.loads(Path("local", "summary.json").read_text())
    assert (far["results"], far["model"]) == (near["results"], near["model"])
    found = bucket.find("bucket/out")
    assert sorted(name.removeprefix("bucket/out/") for name in found) == sorted(
        path.relative_to("local").as_posix() for path in Path("local").rglob("*") if path.is_file()
    )
    assert run([*line, "--out", "s3://bucket/out"]) == 2
    assert "s3://bucket/out is not empty; use --overwrite" in capsys.readouterr().err
    assert run([*line, "--out", "s3://elsewhere/out"]) == 1
    assert "'s3://elsewhere/out' cannot be written" in capsys.readouterr().err


def test_interrupted_reads_are_repeated_and_then_given_up(bucket, monkeypatch):
    bucket.pipe_file("bucket/a.png", picture(0))
    data = open_images(["s3://bucket/a.png"])
    system = remote.system_of("s3://bucket")
    real, failures = system.cat_file, [OSError("reset"), TimeoutError(), b"half"]

    def flaky(path, **options):
        failure = failures.pop() if failures else real(path, **options)
        if isinstance(failure, Exception):
            raise failure
        return failure

    monkeypatch.setattr(system, "cat_file", flaky)
    assert data.open(0).size == (10, 12)
    assert failures == []
    failures += [OSError("reset")] * 4
    with pytest.raises(CnnvizError, match=r"'s3://bucket/a.png' cannot be read: reset \(4 attem"):
        data.open(0)
    assert data.open(0).size == (10, 12)


def test_what_may_not_be_read(bucket, monkeypatch):
    for name in ("s3://nobucket/x", "s3://bucket/nothing", "s3://bucket/x.pth"):
        with pytest.raises(CnnvizError, match=f"'{name}'"):
            open_data([name])
