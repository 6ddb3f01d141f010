"""Shares that cnnviz did not write: refused in one line, or merged as one run would have been."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
        for command in LINES:
            for share in ("0/2", "1/2"):
                line = [command, *LINES[command], "--quiet", "--shard", share]
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


def _files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "summary.json"}


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
            assert _content(Path("all")) == _content(root / f"all-{command}")
            assert _files(Path("all")) == _files(root / f"all-{command}")
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
POSSIBLE = [("tsne", "features", "negative"), ("tsne", "features", "huge")]
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


@pytest.mark.parametrize(("command", "name", "wrong"), CASES)
def test_arrays(command, name, wrong, shares, refused_or_right):
    first, last = shares(command)
    path = first / ARRAYS[command]
    with np.load(path) as file:
        arrays = dict(file)
    changed = WRONG[wrong](arrays.pop(name))
    if changed is not None:
        arrays[name] = changed
    np.savez(path, allow_pickle=True, **arrays)
    print(refused_or_right(command))
