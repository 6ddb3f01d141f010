"""Shares that cnnviz did not write: refused in one line, or merged as one run would have been."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import slow_but
from PIL import Image

from cnnviz.cli.main import run

Array = np.ndarray[Any, Any]
BATCH = ["--batch-size", "1"]
LINES = {
    "occlude": ["data", "--mask", "16", "--stride", "16", "--pictures", "none"],
    "saliency": ["data"],
    "audit": ["listed.csv", "--mask", "16", "--stride", "16", "--labels", "names.txt"],
    "max-patches": ["data", "--layer", "stem.conv", "--top", "2", "--per-image", "2"],
    "tsne": ["data", "--method", "pca", *BATCH],
    "ablate": ["listed.csv", "--filters", "stem.conv:3", "--sweep", "stem.conv", *BATCH],
}
ARRAYS = {"max-patches": "scan-state.npz", "tsne": "features.npz", "ablate": "tally.npz"}


@pytest.fixture(scope="module")
def root(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """The data, two shares of each command, and what they are merged to."""
    return built_once("foreign-shares", _build)


def _build(root: Path) -> None:
    """Four images of two classes, and a file that is not an image."""
    random = np.random.default_rng(0)
    for name in ("a/0", "a/1", "b/2", "b/3"):
        path = root / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    (root / "data" / "a" / "1b.png").write_bytes(b"not an image")
    rows = [f"data/{name}.png,{label}" for name, label in NAMED.items()]
    (root / "listed.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    (root / "names.txt").write_text("\n".join(["cat", "dog", *"cdefghij"]) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for command, given in LINES.items():
            for share in ("0/2", "1/2"):
                line = [command, *given, "--quiet", "--shard", share]
                assert run([*line, "--out", f"parts-{command}"]) in (0, 1)
            assert run(["merge", f"parts-{command}", "--out", f"all-{command}", "--quiet"]) == 1


NAMED = {"a/0": "cat", "a/1": "cat", "a/1b": "cat", "b/2": "dog", "b/3": "dog"}


@pytest.fixture
def shares(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[Path]]:
    """Copies the shares of a command to the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "listed.csv", "names.txt"):
        (tmp_path / name).symlink_to(root / name)

    def copied(command: str) -> list[Path]:
        shutil.copytree(root / f"parts-{command}", "parts")
        return sorted(Path("parts").iterdir())

    return copied


def _results(folder: Path) -> Any:
    """The results, in an order and with folders that do not depend on what was done again."""
    results = _content(folder)["results"]
    if isinstance(results, list):
        results = [{k: v for k, v in entry.items() if k != "folder"} for entry in results]
        results.sort(key=lambda entry: str(entry["image"]))
    return results


def _content(folder: Path) -> Any:
    content = json.loads((folder / "summary.json").read_text())
    if content["command"] == "tsne":
        del content["results"]["features_reused"], content["results"]["seconds"]
    return {k: v for k, v in content.items() if k not in ("argv", "elapsed_seconds")}


@pytest.fixture
def refused_or_right(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Merges the shares; returns the line that refuses them, or "" if the result is right."""

    def merged(command: str) -> str:
        capsys.readouterr()
        status = run(["merge", "parts", "--out", "all", "--quiet"])
        said = capsys.readouterr().err.splitlines()
        if Path("all/summary.json").exists():
            assert status == 1
            assert said == ["cnnviz: 'data/a/1b.png' is not an image that can be read"]
            assert _results(Path("all")) == _results(root / f"all-{command}")
            return ""
        assert status in (1, 2)
        assert len(said) == 1, said
        assert said[0].startswith("cnnviz: ")
        return said[0]

    return merged


def _filled(value: float) -> Callable[[Array], Array]:
    return lambda array: np.full_like(array, value) if array.dtype.kind in "iuf" else array


WRONG: dict[str, Callable[[Array], Array | None]] = {
    "gone": lambda array: None,
    "text": lambda array: array.astype("U8").astype("S8").astype("U8"),
    "objects": lambda array: np.full(array.shape, {"a": 1}, object),
    "flat": lambda array: array.reshape(-1, 1) if array.ndim < 2 else array.reshape(-1),
    "empty": lambda array: array.reshape(-1)[:0] if array.ndim == 0 else array[:0],
    "shorter": lambda array: array[:-1],
    "longer": lambda array: np.concatenate([array, array]),
    "narrower": lambda array: array[..., :-1],
    "another type": lambda array: array.astype("i8" if array.dtype.kind == "f" else "f8"),
    "complex": lambda array: array.astype("c16"),
    "negative": _filled(-1),
    "huge": _filled(10**9),
    "largest": lambda array: (
        _filled(np.finfo(array.dtype).max)(array)
        if array.dtype.kind == "f"
        else _filled(np.iinfo(array.dtype).max)(array)
    ),
    "NaN": _filled(np.nan),
    "infinite": _filled(np.inf),
}
NAMES = {
    "max-patches": [
        f"0.{name}"
        for name in ("keys", "units", "count", "active", "sum", "lowest", "highest", "histogram")
    ],
    "tsne": [
        "features",
        "images",
        "labels",
        "classes",
        "predicted",
        "indices",
        "key",
        "errors",
        "part",
    ],
    "ablate": ["indices", "correct", "probability", "lost", "gained", "labels", "answers"],
}
NOT_NUMBERS = ("images", "classes", "key", "errors")
OF_ALL = ("gone", "objects", "flat", "empty")
SCALARS = ("gone", "text", "objects", "flat", "empty", "complex", "negative", "huge", "largest")
FLOATS = ("features", "0.sum", "0.lowest", "0.highest", "probability", "answers")
POSSIBLE = [("tsne", "features", kind) for kind in ("negative", "huge")]
"""What a run may compute: nobody can tell that these are not the numbers of the run."""


def _kinds(name: str) -> Iterable[str]:
    if name in NOT_NUMBERS:
        return OF_ALL
    if name == "0.count":
        return SCALARS
    return [kind for kind in WRONG if name in FLOATS or kind not in ("NaN", "infinite")]


CASES = [
    (command, name, kind)
    for command in ARRAYS
    for name in NAMES[command]
    for kind in _kinds(name)
    if (command, name, kind) not in POSSIBLE
]


QUICK = [
    ("max-patches", "0.keys", "largest"), ("max-patches", "0.units", "huge"),
    ("max-patches", "0.histogram", "negative"), ("tsne", "features", "empty"),
    ("tsne", "features", "NaN"), ("tsne", "features", "largest"),
    ("tsne", "indices", "negative"), ("tsne", "predicted", "huge"),
    ("ablate", "indices", "empty"), ("ablate", "labels", "huge"), ("ablate", "answers", "NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "name", "wrong"), slow_but(CASES, *QUICK))
def test_arrays_that_no_run_computes(
    command: str,
    name: str,
    wrong: str,
    shares: Callable[[str], list[Path]],
    refused_or_right: Callable[[str], str],
) -> None:
    path = shares(command)[0] / ARRAYS[command]
    with np.load(path) as file:
        arrays: dict[str, Any] = dict(file)
    arrays[name] = WRONG[wrong](arrays[name])
    present = {key: array for key, array in arrays.items() if array is not None}
    np.savez(path, allow_pickle=True, **present)
    refused_or_right(command)


JUNK: dict[str, object] = {
    "null": None,
    "text": "x",
    "list": [],
    "object": {},
    "number": 3,
    "NaN": float("nan"),
    "1e999": float("inf"),
    "negative": -1,
    "long": 10**30,
    "deep": "deep",
    "gone": "gone",
}
KEYS = {
    "saliency": ("image", "method", "prediction", "top5", "targets", "folder", "files"),
    "audit": ("image", "place", "label", "box", "grid", "map", "features", "label_box", "files"),
}
AS_COMPUTED = {("saliency", "method", "text"), ("audit", "features", "text")}
LINE_CASES = [
    (command, key, kind)
    for command, keys in KEYS.items()
    for key in (*keys, "")
    for kind in JUNK
    if (command, key, kind) not in AS_COMPUTED and (key or kind != "gone")
]
QUICK_LINES = [
    ("saliency", "", "null"), ("saliency", "", "deep"), ("saliency", "prediction", "gone"),
    ("saliency", "targets", "null"), ("saliency", "files", "list"), ("saliency", "image", "text"),
    ("audit", "map", "text"), ("audit", "label", "long"), ("audit", "place", "NaN"),
]  # fmt: skip


def _json(value: object) -> str:
    text = json.dumps(value).replace("Infinity", "1e999")
    return text.replace('"deep"', "[" * 20_000 + "]" * 20_000)


def _changed(line: str, key: str, kind: str) -> str:
    if not key:
        return _json(JUNK[kind])
    entry = json.loads(line) | {key: JUNK[kind]}
    return _json({k: v for k, v in entry.items() if v != "gone"})


@pytest.mark.parametrize(("command", "key", "kind"), slow_but(LINE_CASES, *QUICK_LINES))
def test_lines_that_no_run_writes(
    command: str,
    key: str,
    kind: str,
    shares: Callable[[str], list[Path]],
    refused_or_right: Callable[[str], str],
) -> None:
    path = shares(command)[0] / "images.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([_changed(first, key, kind), *rest]) + "\n")
    refused_or_right(command)


@pytest.mark.parametrize("kind", ["twice", "in both shares", "left out", "none"])
def test_each_image_once(
    kind: str, shares: Callable[[str], list[Path]], refused_or_right: Callable[[str], str]
) -> None:
    one, other = (share / "images.jsonl" for share in shares("saliency"))
    lines = one.read_text().splitlines(keepends=True)
    changed = {"twice": [lines[0], *lines], "left out": lines[1:], "none": []}
    if kind in changed:
        one.write_text("".join(changed[kind]))
    else:
        other.write_text(other.read_text() + lines[0])
    assert refused_or_right("saliency")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(40 * 2**30)


REPLACED: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "pipe": _pipe,
    "folder": lambda path: path.mkdir(),
    "40 GB": _sparse,
    "link out": lambda path: path.symlink_to("/etc/passwd"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(10**6)),
}
JOURNALS = {"saliency": "images.jsonl", **ARRAYS}
FILE_CASES = [
    (command, name, kind)
    for command, journal in JOURNALS.items()
    for name in (journal, "summary.json")
    for kind in REPLACED
] + [("saliency", "0/saliency.npz", kind) for kind in REPLACED if kind not in ("empty", "zeros")]
QUICK_FILES = [
    (c, n, k) for c, n, k in FILE_CASES if c == "saliency" and k in ("pipe", "40 GB", "loop")
]


@pytest.mark.parametrize(("command", "name", "kind"), slow_but(FILE_CASES, *QUICK_FILES))
def test_anything_in_the_place_of_a_file(
    command: str,
    name: str,
    kind: str,
    shares: Callable[[str], list[Path]],
    refused_or_right: Callable[[str], str],
) -> None:
    path = shares(command)[0] / name
    path.unlink()
    REPLACED[kind](path)
    assert refused_or_right(command)


SUMMARY_KEYS = [
    *((key,) for key in ("schema", "command", "version", "argv", "model", "device", "precision")),
    *((key,) for key in ("seed", "elapsed_seconds", "results", "files", "errors", "shard")),
    *(("model", key) for key in ("name", "weights_sha256", "classes", "input_size", "head")),
    *(("shard", key) for key in ("number", "count", "of", "request")),
    *(("shard", "request", key) for key in ("images", "spec", "look", "model", "output")),
    *(("shard", "request", "model", key) for key in ("model", "size", "seed", "checkpoint")),
]
SUMMARY_CASES = [(keys, kind) for keys in SUMMARY_KEYS for kind in JUNK]


@pytest.mark.parametrize(
    ("keys", "kind"),
    slow_but(SUMMARY_CASES, (("model",), "gone"), (("precision",), "gone"), (("model",), "text")),
)
def test_summaries_that_no_run_writes(
    keys: tuple[str, ...],
    kind: str,
    shares: Callable[[str], list[Path]],
    refused_or_right: Callable[[str], str],
) -> None:
    path = shares("saliency")[0] / "summary.json"
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    if kind == "gone":
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = JUNK[kind]
    path.write_text(_json(content))
    refused_or_right("saliency")


@pytest.mark.parametrize(
    ("command", "name", "wrong"),
    slow_but(
        [
            (command, *case)
            for command, *case in CASES
            if command == "ablate" or (command == "tsne" and case[1] in ("NaN", "largest"))
        ],
        ("ablate", "labels", "huge"), ("ablate", "probability", "NaN"), ("tsne", "features", "NaN"),
    ),
)  # fmt: skip
def test_arrays_of_an_interrupted_run(
    command: str,
    name: str,
    wrong: str,
    root: Path,
    shares: Callable[[str], list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares(command)
    shutil.copytree(root / f"all-{command}", "all")
    Path("all/summary.json").unlink()
    with np.load(Path("all") / ARRAYS[command]) as file:
        arrays: dict[str, Any] = dict(file)
    arrays[name] = WRONG[wrong](arrays[name])
    present = {key: array for key, array in arrays.items() if array is not None}
    np.savez(Path("all") / ARRAYS[command], allow_pickle=True, **present)
    capsys.readouterr()
    status = run([command, *LINES[command], "--out", "all", "--quiet", "--resume"])
    said = capsys.readouterr().err.splitlines()
    assert status == 1
    assert len(said) == 1, said
    if Path("all/summary.json").exists():
        assert _content(Path("all")) == _content(root / f"all-{command}")
    else:
        path = Path("all") / ARRAYS[command]
        assert said == [f"cnnviz: '{path}' is damaged; start again with --overwrite"]


@pytest.mark.parametrize(("command", "key", "kind"), slow_but(LINE_CASES, *QUICK_LINES[:4]))
def test_lines_of_an_interrupted_run(
    command: str,
    key: str,
    kind: str,
    root: Path,
    shares: Callable[[str], list[Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares(command)
    shutil.copytree(root / f"all-{command}", "all")
    Path("all/summary.json").unlink()
    path = Path("all/images.jsonl")
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([_changed(first, key, kind), *rest, rest[0]]) + "\n")
    capsys.readouterr()
    assert run([command, *LINES[command], "--out", "all", "--quiet", "--resume"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said == ["cnnviz: 'data/a/1b.png' is not an image that can be read"]
    assert _results(Path("all")) == _results(root / f"all-{command}")
