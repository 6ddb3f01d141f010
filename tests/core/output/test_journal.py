"""Journals: joined in any tree they are the same, and foreign or damaged files are refused."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cnnviz.core.data.shards import Block
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import UNFINISHED
from cnnviz.core.output import journal
from cnnviz.core.output.journal import Arrays, Journal, join
from cnnviz.core.output.lines import LINES, Lines, join_lines
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.embeddings import features
from cnnviz.filters.ablation import tally
from cnnviz.filters.patches import state
from cnnviz.filters.patches.top_k import TopK

BLOCKS = ((0, 3), (3, 4), (4, 9), (9, 12), (12, 20))
IDENTITY = {"weights": "0" * 64, "--top": 3, "layers": ("a", "b")}


def _tally(images: range) -> Arrays:
    random = np.random.default_rng(images.start)
    count = len(images)
    return {
        "indices": np.arange(images.start, images.stop),
        "correct": random.integers(0, 9, (4, 3)),
        "probability": random.integers(0, 1 << 32, (4, 3)) / 2.0**32,
        "lost": random.integers(0, 9, 4),
        "gained": random.integers(0, 9, 4),
        "labels": random.integers(0, 3, count),
        "answers": random.random((2, count, 4)),
    }


def _scan(images: range) -> Arrays:
    layer = state.LayerState.empty(4, 3, "cpu")
    generator = torch.Generator().manual_seed(images.start)
    scores = torch.randint(-50, 50, (len(images), 4), generator=generator).float()
    stats = layer.stats.with_scores(scores, scores)
    keys = torch.randint(-(2**40), 2**40, (4, 7), generator=generator)
    best = layer.best.merged(TopK(keys, torch.arange(28).view(4, 7)))
    return state.to_arrays([state.LayerState(best, stats), layer])


def _features(images: range) -> Arrays:
    count = len(images)
    return {
        "features": np.arange(5 * count, dtype=np.float32).reshape(count, 5) + images.start,
        "images": np.array([f"{number}.png" for number in images]),
        "labels": np.zeros(count, np.int64),
        "classes": np.array(["a"]),
        "predicted": np.arange(count),
        "indices": np.arange(images.start, images.stop),
        "key": np.array("key"),
        "errors": np.array([(f"{images.start}.png", "why")]),
        "part": np.array([images.start, images.stop, 20]),
    }


def _write(folder: Path, make: Callable[[range], Arrays]) -> list[Path]:
    paths = []
    for start, stop in BLOCKS:
        paths.append(folder / f"{start}.npz")
        saved = Journal(paths[-1], IDENTITY, Block(start, stop, 20))
        saved.save(stop, {start: f"image {start}"}, make(range(start, stop)))
    return paths


@pytest.mark.parametrize("make", [_tally, _scan, _features])
def test_blocks_join_in_any_tree(tmp_path: Path, make: Callable[[range], Arrays]) -> None:
    def merge(parts: Sequence[Arrays]) -> Arrays:
        if make is _features:
            return features.merge(parts, tmp_path)
        return tally.merge(parts) if make is _tally else state.merge(parts)

    paths = _write(tmp_path, make)
    names = [tmp_path / f"{name}.npz" for name in ("left", "right", "most", "tree", "chain")]
    left, right, most, tree, chain = names
    join(paths[:2], left, merge, whole=False)
    join(paths[3:], right, merge, whole=False)
    join([paths[2], right], most, merge, whole=False)
    join([left, most], tree, merge)
    join(paths, chain, merge)
    assert tree.read_bytes() == chain.read_bytes()
    whole = Journal(chain, IDENTITY, Block(0, 20, 20), resume=True)
    progress = whole.load({})
    assert progress is not None
    assert progress.done == 20
    assert progress.errors == {start: f"image {start}" for start, _ in BLOCKS}


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths, to = _write(tmp_path, _tally), tmp_path / "joined.npz"
    with pytest.raises(UsageError, match="end at image 12 of 20; some are missing"):
        join(paths[:-1], to, tally.merge)
    with pytest.raises(UsageError, match="complete share from image 3 on"):
        join([paths[0], *paths[2:]], to, tally.merge)
    with pytest.raises(UsageError, match="complete share from image 0 on"):
        join(paths[1:], to, tally.merge)
    Journal(paths[1], IDENTITY, Block(3, 4, 20)).save(3, {}, _tally(range(3, 4)))
    with pytest.raises(UsageError, match="has images 3 to 3 of a share that ends at 4"):
        join(paths, to, tally.merge)
    Journal(paths[1], {**IDENTITY, "--top": 4}, Block(3, 4, 20)).save(4, {}, _tally(range(3, 4)))
    with pytest.raises(UsageError, match="with other --top"):
        join(paths, to, tally.merge)
    Journal(paths[1], IDENTITY, Block(3, 4, 20)).save(4, {}, {"correct": np.zeros((9, 9))})
    with pytest.raises(CnnvizError, match="is damaged"):
        join(paths, to, tally.merge)
    assert not to.exists()


def _with_header(path: Path, **changes: Any) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(bytes(arrays.pop("journal"))) | changes
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, journal=text, **arrays)


@pytest.mark.parametrize(
    "changes",
    [
        {"done": 99},
        {"done": "x"},
        {"done": float("inf")},
        {"block": [0, 3]},
        {"block": [3, 0, 20]},
        {"block": [0, 30, 20]},
        {"errors": [[7, "outside"]]},
        {"errors": {"0": 1}},
        {"errors": 7},
        {"identity": 7},
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "tally.npz"
    Journal(path, IDENTITY, Block(0, 3, 20)).save(3, {}, _tally(range(3)))
    _with_header(path, **changes)
    with pytest.raises(CnnvizError, match=r"'.*tally\.npz' is damaged; start again"):
        Journal(path, IDENTITY, Block(0, 3, 20), resume=True).load({})


@pytest.mark.parametrize(
    "changes",
    [
        {"correct": np.zeros((4, 3), np.int32)},
        {"correct": np.zeros((3, 4), np.int64)},
        {"labels": np.zeros(2, np.int64)},
        {"indices": np.zeros((), np.int64)},
        {"labels": np.array([{}], object)},
    ],
)
def test_arrays_of_other_shapes_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path, like = tmp_path / "tally.npz", _tally(range(0))
    Journal(path, IDENTITY, Block(0, 3, 20)).save(3, {}, _tally(range(3)))
    again = Journal(path, IDENTITY, Block(0, 3, 20), resume=True)
    assert again.load(like, tally.AXES) is not None
    with np.load(path) as file:
        arrays = dict(file) | changes
    np.savez(path, **arrays)
    with pytest.raises(CnnvizError, match="is damaged"):
        again.load(like, tally.AXES)


def test_large_arrays_are_mapped_and_objects_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, arrays = tmp_path / "tally.npz", _tally(range(3))
    Journal(path, IDENTITY, Block(0, 3, 20)).save(3, {}, arrays)
    monkeypatch.setattr(journal, "IN_MEMORY", 150)
    again = Journal(path, IDENTITY, Block(0, 3, 20), resume=True)
    progress = again.load({})
    assert progress is not None
    assert isinstance(progress.arrays["answers"], np.memmap)
    for name, array in arrays.items():
        np.testing.assert_array_equal(progress.arrays[name], array)
    with np.load(path) as file:
        stored = dict(file)
    stored["answers"] = np.asfortranarray(np.ones((20, 20)))
    np.savez(path, **stored)
    with pytest.raises(CnnvizError, match="is damaged"):
        again.load({})
    stored["answers"] = np.zeros(100, np.int64)
    np.savez(path, **stored)
    content = path.read_bytes()
    assert content.count(b"'<i8', 'fortran_order': False, 'shape': (100,)") == 1
    path.write_bytes(
        content.replace(
            b"'<i8', 'fortran_order': False, 'shape': (100,)",
            b"'|O8', 'fortran_order': False, 'shape': (100,)",
        )
    )
    with pytest.raises(CnnvizError, match="is damaged"):
        again.load({})


def test_another_share_and_another_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tally.npz"
    Journal(path, IDENTITY, Block(0, 3, 20)).save(3, {}, _tally(range(3)))
    with pytest.raises(UsageError, match="a run with other --shard"):
        Journal(path, IDENTITY, Block(0, 4, 20), resume=True).load({})
    assert Journal(path, IDENTITY, Block(0, 4, 20)).load({}) is None
    _with_header(path, version=1)
    with pytest.raises(CnnvizError, match="another version of cnnviz; start again with --overw"):
        Journal(path, IDENTITY, Block(0, 3, 20), resume=True).load({})
    np.savez(path, header=np.zeros(3, np.uint8))
    with pytest.raises(CnnvizError, match="another version of cnnviz; start again with --overw"):
        Journal(path, IDENTITY, Block(0, 3, 20), resume=True).load({})


def test_lines_of_another_version_or_run_are_refused(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "out")
    (tmp_path / "a.png").touch()
    lines = Lines(folder, {"a": (1, 2)}, resume=False)
    lines.add({"image": str(tmp_path / "a.png")}, [])
    again = Lines(folder, {"a": (1, 2)}, resume=True)
    assert list(again) == [{"image": str(tmp_path / "a.png")}]
    with pytest.raises(UsageError, match="a run with other a;"):
        Lines(folder, {"a": 1}, resume=True)
    Lines(folder, {"a": 1, "images": "x"}, resume=False)
    with pytest.raises(UsageError, match="a run with other images"):
        Lines(folder, {"a": 1}, images="y", resume=True)
    Lines(folder, {"a": 1}, images="x", resume=True)
    unfinished = tmp_path / "out" / UNFINISHED
    for text in ('{"a": 1}', '{"version": 1, "identity": {"a": 1}}'):
        unfinished.write_text(text)
        with pytest.raises(CnnvizError, match="another version of cnnviz"):
            Lines(folder, {"a": 1}, resume=True)
    for text in ("", "[" * 100_000, "[]", '{"version": 3}', '{"version": 3, "identity": 1}'):
        unfinished.write_text(text)
        with pytest.raises(CnnvizError, match="is damaged; start again"):
            Lines(folder, {"a": 1}, resume=True)
    assert (tmp_path / "out" / LINES).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs pipes")
def test_a_pipe_or_a_link_in_place_of_lines_is_refused(tmp_path: Path) -> None:
    share, other = tmp_path / "share", tmp_path / "other"
    share.mkdir()
    other.mkdir()
    os.mkfifo(share / LINES)
    with pytest.raises(CnnvizError, match="pipe"):
        join_lines([share], RunFolder.open(tmp_path / "one"), {})
    with pytest.raises(CnnvizError, match="pipe"):
        Lines(RunFolder(share), {}, resume=True)
    (other / LINES).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_text('{"image": "x.png", "files": []}\n')
    with pytest.raises(CnnvizError, match="is a link out of its folder"):
        join_lines([other], RunFolder.open(tmp_path / "two"), {})
