"""Commands whose images, weights and results are at URLs."""

import io
import json
from pathlib import Path

import fsspec
import pytest
import torch

from cnnviz.cli.main import COMMANDS, parse, run
from cnnviz.core.models.load import load_model
from cnnviz.core.output import mirrors

ROOT = Path(__file__).parent.parent.parent
PICTURES = ("airplane.png", "ship.png")
OUT = "memory://bucket/out"


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The file system of memory://, with two pictures in memory://bucket/images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "copies"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "copies").mkdir()
    system = fsspec.filesystem("memory")
    for name in PICTURES:
        system.pipe_file(
            f"memory://bucket/images/{name}", (ROOT / "sample_images" / name).read_bytes()
        )
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def names(store, folder=OUT):
    return sorted(name.partition("/out/")[2] for name in store.find(folder))


def study(*more, out=OUT):
    line = ["activations", "memory://bucket/images", "--layer", "stem.conv", "--top", "1"]
    return run([*line, "--out", out, *more])


def test_results_at_a_url_are_those_of_a_local_folder(store, capsys):
    assert study() == 0
    printed = capsys.readouterr().out
    Path("images").mkdir()
    for name in PICTURES:
        Path("images", name).write_bytes(store.cat_file(f"memory://bucket/images/{name}"))
    assert study(out="local") == 0
    local = sorted(p.relative_to("local").as_posix() for p in Path("local").rglob("*") if p.is_file())
    assert names(store) == local
    for name in local:
        if name != "summary.json":
            assert store.cat_file(f"{OUT}/{name}") == Path("local", name).read_bytes()
    summary = json.loads(store.cat_file(f"{OUT}/summary.json"))
    assert summary["argv"][-1] == OUT
    assert [r["image"] for r in summary["results"]] == [
        f"memory://bucket/images/{name}" for name in PICTURES
    ]
    assert f"{OUT}/summary.json" in printed
    assert list(Path("copies").iterdir()) == []


def test_summaries_are_uploaded_last_and_deleted_first(store, monkeypatch):
    done = []
    for name in ("put_file", "rm_file"):
        real = getattr(type(store), name)
        monkeypatch.setattr(
            type(store),
            name,
            lambda self, *args, real=real, kind=name, **kw: (
                done.append((kind, args[-1].rpartition("/")[2])),
                real(self, *args, **kw),
            )[1],
        )
    assert study() == 0
    assert done[-1] == ("put_file", "summary.json")
    done.clear()
    assert study() == 2  # it is not empty
    assert [kind for kind in done if kind[1] != ".cnnviz"] == []
    assert study("--overwrite") == 0
    done = [one for one in done if one[1] != ".cnnviz"]
    assert done[0] == ("rm_file", "summary.json")
    assert done[-1] == ("put_file", "summary.json")


def test_files_of_a_replaced_run_are_deleted_and_others_are_kept(store):
    store.pipe_file(f"{OUT}/mine.txt", b"mine")
    assert study() == 2
    assert study("--overwrite") == 0
    store.pipe_file("memory://bucket/images/zebra.png", store.cat_file("memory://bucket/images/ship.png"))
    store.rm_file("memory://bucket/images/ship.png")
    assert study("--overwrite") == 0
    assert store.cat_file(f"{OUT}/mine.txt") == b"mine"
    folders = {name.partition("/")[0] for name in names(store) if "/" in name}
    assert folders == {"airplane", "zebra"}


def test_an_interrupted_run_is_kept_without_a_summary_and_resumes(store, monkeypatch):
    from cnnviz.cli.activations import _Study

    one = _Study.one

    def interrupted(self, image, path, advance):
        if path.endswith("ship.png"):
            raise KeyboardInterrupt
        return one(self, image, path, advance)

    monkeypatch.setattr(_Study, "one", interrupted)
    assert study() == 130
    assert "summary.json" not in names(store)
    assert {"images.jsonl", "unfinished.json"} <= set(names(store))
    before = {n: store.info(f"{OUT}/{n}")["created"] for n in names(store) if "airplane" in n}
    monkeypatch.setattr(_Study, "one", one)
    assert study() == 2
    assert study("--resume") == 0
    assert before == {n: store.info(f"{OUT}/{n}")["created"] for n in before}
    assert "unfinished.json" not in names(store)
    assert len(json.loads(store.cat_file(f"{OUT}/summary.json"))["results"]) == 2
    assert study("--resume") == 2  # it is finished


def test_results_that_cannot_be_uploaded_are_kept(store, monkeypatch, capsys):
    def full(self, *_args, **_more):
        raise OSError("the bucket is full")

    monkeypatch.setattr("cnnviz.core.remote.PAUSE", 0)
    monkeypatch.setattr(type(store), "put_file", full)
    assert study() == 1
    said = capsys.readouterr().err
    assert "cannot be written: the bucket is full (4 attempts)" in said
    kept = Path(said.partition("kept in ")[2].splitlines()[0])
    assert (kept / "summary.json").exists()
    assert "summary.json" not in names(store)


def test_nothing_is_computed_where_nothing_can_be_written(store, monkeypatch, capsys):
    def refuse(self, *_args, **_more):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(store), "pipe_file", refuse)
    assert study() == 1
    assert "may not be written: Access Denied" in capsys.readouterr().err


def test_an_image_is_not_replaced_by_results(store, capsys):
    store.mv("memory://bucket/images/ship.png", "memory://bucket/out/ship/layer.stem.conv.png")
    url = "memory://bucket/out/ship/layer.stem.conv.png"
    line = ["activations", url, "--layer", "stem.conv", "--out", OUT, "--overwrite"]
    assert run([*line]) in (0, 1)
    assert url.endswith(".png")


def test_a_data_sets_results_at_a_url(store):
    line = ["max-patches", "memory://bucket/images", "--layer", "stem.conv", "--filters", "0"]
    assert run([*line, "--top", "1", "--out", OUT, "--report"]) == 0
    assert {"summary.json", "report.html"} <= set(names(store))
    assert run([*line, "--top", "1", "--out", OUT, "--shard", "0/2", "--overwrite"]) == 0
    assert "shard-0-of-2/summary.json" in names(store)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_at_a_url(store, kind, capsys):
    from safetensors.torch import save

    weights = {k: v.clone() for k, v in load_model().module.state_dict().items()}
    stream = io.BytesIO()
    torch.save(weights, stream)
    content = stream.getvalue() if kind == "pth" else save(weights)
    store.pipe_file(f"memory://bucket/net.{kind}", content)
    for options in ({"name": f"memory://bucket/net.{kind}"}, {"checkpoint": f"memory://bucket/net.{kind}"}):
        assert load_model(**options).weights_sha256 == load_model().weights_sha256
    assert list(Path("copies").iterdir()) == []
    store.pipe_file(f"memory://bucket/net.{kind}", content[:-9])
    assert run(["layers", "--checkpoint", f"memory://bucket/net.{kind}"]) == 1
    assert f"'memory://bucket/net.{kind}'" in capsys.readouterr().err


def test_a_checkpoint_in_several_files_at_a_url(store, capsys):
    weights = load_model().module.state_dict()
    keys = sorted(weights)
    files = {f"w-0000{n + 1}-of-00002.pth": keys[n::2] for n in range(2)}
    for file, part in files.items():
        stream = io.BytesIO()
        torch.save({key: weights[key] for key in part}, stream)
        store.pipe_file(f"memory://bucket/{file}", stream.getvalue())
    index = {"weight_map": {key: file for file, part in files.items() for key in part}}
    store.pipe_file("memory://bucket/w.index.json", json.dumps(index).encode())
    for name in ("w.index.json", *files):
        found = load_model(checkpoint=f"memory://bucket/{name}")
        assert found.weights_sha256 == load_model().weights_sha256
    index["weight_map"]["stem.conv.weight"] = "../../secret.pth"
    store.pipe_file("memory://bucket/w.index.json", json.dumps(index).encode())
    assert run(["layers", "--checkpoint", "memory://bucket/w.index.json"]) == 1
    assert "which is not a file in its folder" in capsys.readouterr().err


def test_a_checkpoint_that_would_run_code_is_refused_at_a_url_too(store, capsys, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    stream = io.BytesIO()
    torch.save({"w": Evil()}, stream)
    store.pipe_file("memory://bucket/evil.pth", stream.getvalue())
    assert run(["layers", "--checkpoint", "memory://bucket/evil.pth"]) == 1
    assert "refused to read 'memory://bucket/evil.pth'" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def options_of(command):
    """Every argument and option of a command that takes a text."""
    for name, parameter in COMMANDS[command].__signature__.parameters.items():
        kind = str(parameter.annotation)
        if "Path" in kind or "str" in kind:
            made = parameter.annotation.__metadata__[0]
            flag = next(iter(getattr(made, "param_decls", None) or ()), None)
            yield name, flag or "--" + name.replace("_", "-"), type(made).__name__


CASES = [(command, *option) for command in COMMANDS for option in options_of(command)]
TAKEN = {"model", "checkpoint", "out", "texts", "title"}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_no_option_makes_a_path_of_a_url(command, monkeypatch):
    """A URL arrives whole, or it is refused in one sentence that quotes it whole."""
    arguments = [n for c, n, _, kind in CASES if c == command and kind == "ArgumentInfo"]
    for c, name, flag, kind in CASES:
        if c != command:
            continue
        url = "memory://bucket//a.csv"
        text = {"inputs": f"x={url}", "compare": f"resnet18={url}"}.get(name, url)
        places = ["one", "two"][: len(arguments)] or []
        line = [command, *(["x.png"] * len(arguments)), flag, text]
        if kind == "ArgumentInfo":
            line = [command, text, *["x.png"] * (len(arguments) - 1)]
        try:
            record = parse(line)
        except Exception as error:  # noqa: BLE001
            assert type(error).__name__ == "UsageError", (flag, error)
            assert "//" in str(error) or "invalid" in str(error).lower(), (flag, error)
            assert "memory:/b" not in str(error)
            continue
        assert "memory:/b" not in repr(record), flag
        del places
