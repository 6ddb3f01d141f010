"""Commands whose images, weights and results are at URLs."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from parts import slow_but

from cnnviz.cli.main import COMMANDS, parse, run
from cnnviz.cli.repeat import _code, _sources
from cnnviz.core.errors import UsageError
from cnnviz.core.models.load import load_model

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


@pytest.mark.slow
def test_results_at_a_url_are_those_of_a_local_folder(store, capsys):
    assert study() == 0
    printed = capsys.readouterr().out
    Path("images").mkdir()
    for name in PICTURES:
        Path("images", name).write_bytes(store.cat_file(f"memory://bucket/images/{name}"))
    assert study(out="local") == 0
    local = sorted(
        p.relative_to("local").as_posix() for p in Path("local").rglob("*") if p.is_file()
    )
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_data_sets_results_at_a_url(store):
    line = ["max-patches", "memory://bucket/images", "--layer", "stem.conv", "--filters", "0"]
    assert run([*line, "--top", "1", "--out", OUT, "--report"]) == 0
    assert {"summary.json", "report.html"} <= set(names(store))
    assert run([*line, "--top", "1", "--out", OUT, "--shard", "0/2", "--overwrite"]) == 0
    assert "shard-0-of-2/summary.json" in names(store)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_at_a_url(store, kind, capsys):
    from safetensors.torch import save

    weights = {k: v.clone() for k, v in load_model().module.state_dict().items()}
    stream = io.BytesIO()
    torch.save(weights, stream)
    content = stream.getvalue() if kind == "pth" else save(weights)
    store.pipe_file(f"memory://bucket/net.{kind}", content)
    for options in (
        {"name": f"memory://bucket/net.{kind}"},
        {"checkpoint": f"memory://bucket/net.{kind}"},
    ):
        assert load_model(**options).weights_sha256 == load_model().weights_sha256
    assert list(Path("copies").iterdir()) == []
    store.pipe_file(f"memory://bucket/net.{kind}", content[:-9])
    assert run(["layers", "--checkpoint", f"memory://bucket/net.{kind}"]) == 1
    assert f"'memory://bucket/net.{kind}'" in capsys.readouterr().err


@pytest.mark.slow
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


def texts_of(command):
    """The arguments and options of a command whose value is a text or a path."""
    for name, parameter in COMMANDS[command].__signature__.parameters.items():
        if "Path" in str(parameter.annotation) or "str" in str(parameter.annotation):
            made = parameter.annotation.__metadata__[0]
            named = [made.default, *(made.param_decls or ())]
            flags = [text for text in named if isinstance(text, str) and text[:2] == "--"]
            is_argument = type(made).__name__ == "ArgumentInfo"
            yield name, "" if is_argument else (flags or [f"--{name.replace('_', '-')}"])[0]


@pytest.mark.parametrize("command", slow_but(COMMANDS, "report", "layers"))
def test_no_option_makes_a_path_of_a_url(command):
    """A URL arrives whole, or it is refused in one line that quotes it whole."""
    url, others = "memory://bucket/a.csv", {"inputs": "x=", "compare": "resnet18="}
    arguments = [name for name, flag in texts_of(command) if not flag]
    for name, flag in texts_of(command):
        text = others.get(name, "") + url
        line = [command, flag, text, *("x" for _ in arguments)] if flag else [command, text]
        try:
            kept = repr(parse(line))
        except UsageError as error:
            kept = str(error)
            assert "\n" not in kept
        assert url in kept or "--out" in flag, kept
        assert "memory:/b" not in kept, flag


@pytest.mark.parametrize(
    "line",
    [
        *(["report", "memory://a/b"], ["diff", "x", "memory://a/b"], ["render", "memory://a/b"]),
        *(
            ["merge", "memory://a/b"],
            ["rerun", "memory://a/b"],
            ["report", "x", "--out", "s3://a/b"],
        ),
        *(["report", "x", "--data", "memory://a/b"], ["diff", "x", "y", "--data", "s3://a/b"]),
        *(["occlude", "x", option, "s3://a/b"] for option in ("--labels", "--like", "--junit")),
        *(["occlude", "x", option, "s3://a/b"] for option in ("--expect", "--inside", "--output")),
        ["occlude", "x", "--input", "x=s3://a/b"],
        ["trust", "x", "--map", "s3://a/b"],
        ["filters", "--compare", "resnet18=s3://a/b.pth"],
    ],
)
def test_other_options_refuse_urls(line):
    with pytest.raises(UsageError, match=r"//a/b.*: it takes a local file; URLs are for images"):
        parse(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["layers", "--model", "s3://a/net.py:make"], "of URLs it takes those of .*pth"),
        (["layers", "--model", "s3://a/x.pth", "--checkpoint", "s3://a/y.pth"], "give one of them"),
        (["layers", "--checkpoint", "file:///x.pth"], "another protocol"),
        (["layers", "--checkpoint", "memory://a/x.pth"], "no file or folder 'memory://a/x.pth'"),
        (["layers", "--out", "https://host/x"], "nothing can be written there"),
        (["layers", "--out", "hf://a/b"], "nothing can be written there"),
        (["layers", "--out", "simplecache::s3://a/b"], "chains protocols"),
        (["layers", "--out", "s3://a/../b"], "empty or odd name"),
        (["occlude", "github://a/b"], "another protocol"),
    ],
)
def test_urls_that_are_refused(line, message, capsys):
    assert run(line) in (1, 2)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_a_summary_of_a_stranger_makes_nothing_be_read(store, capsys, monkeypatch):
    assert study(out="local") == 0
    read = []
    monkeypatch.setattr("cnnviz.core.remote.system_of", read.append)
    assert run(["rerun", "local"]) == 2
    assert "use --allow-urls" in capsys.readouterr().err
    assert run(["report", "local", "--data", "/"]) == 0
    assert read == []


@pytest.mark.slow
def test_a_run_on_urls_is_repeated_on_request(store):
    assert study(out=OUT) == 0
    store.get(OUT, "local", recursive=True)
    assert run(["rerun", "local", "--allow-urls", "--out", "memory://bucket/again"]) == 0
    again = json.loads(store.cat_file("memory://bucket/again/summary.json"))
    assert again["argv"][1:3] == ["--out", "memory://bucket/again"]


def test_every_url_of_a_stored_command_is_seen():
    """Whatever made its record: `merge` reads one from a summary, which no parser has seen."""
    url = "memory://bucket/x.pth"
    named = parse(["layers", url, "--model", url, "--checkpoint", url])
    compared = replace(parse(["filters"]), compare=(f"{url}",))
    assert [text for text in _sources(named) if "://" in text] == [url] * 3
    assert url in list(_sources(compared))
    assert [*_code(named), *_code(compared)] == []  # weights, which --allow-urls is about
    assert list(_code(parse(["layers", "--model", "net.py:make"]))) == ["net.py:make"]
