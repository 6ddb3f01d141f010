"""Blocks of a pass: their order, and where a run stops, do not change the result."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnviz.core.device import exact, plus
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.output.blocks import Blocks, Pass, block_size, delete, pack, unpack


class Listed:
    """As many images, and nothing of them."""

    def __init__(self, count: int) -> None:
        self.count, self.fingerprint = count, f"{count} images"

    def __len__(self) -> int:
        return self.count

    def within(self, part: range) -> "Listed":
        self.part = part
        return self

    def refused(self, reason: str) -> "Listed":
        self.reason = reason
        return self


def joined(parts: Sequence[Path], folder: Path) -> None:
    (folder / "text").write_text("".join((part / "text").read_text() for part in parts))


def step(count: int, *, batch: int = 1, tree: bool = True, name: str = "x") -> Pass:
    data: Any = Listed(count)
    return Pass(
        name, data, batch, {"a": (1,)}, lambda *_: None, lambda _: None, joined if tree else None
    )


def content(block: range, tmp_path: Path) -> bytes:
    folder = tmp_path / "made"
    folder.mkdir(exist_ok=True)
    (folder / "text").write_text("".join(f"{image} " for image in block))
    return pack(folder)


def whole(count: int) -> str:
    return "".join(f"{image} " for image in range(count))


@pytest.mark.parametrize("images", [1, 7, 24, 1_000, 1_281_167])
@pytest.mark.parametrize("batch", [1, 13, 256])
def test_blocks_are_whole_batches_and_not_too_many(images: int, batch: int) -> None:
    size = block_size(images, batch)
    assert size % batch == 0
    assert math.ceil(images / size) <= 512
    if images >= 32 * batch:
        assert math.ceil(images / size) >= 16


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("tree", [True, False])
def test_blocks_come_in_any_order(seed: int, tree: bool, tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, step(101, tree=tree), resume=False)
    order = blocks.missing(2)
    random.Random(seed).shuffle(order)  # noqa: S311
    for block in order:
        blocks.add(block, content(block, tmp_path))
    folders = blocks.joined()
    assert len(folders) == (1 if tree else 51)
    assert "".join((folder / "text").read_text() for folder in folders) == whole(101)


def test_a_tree_keeps_few_folders(tmp_path: Path) -> None:
    blocks, most = Blocks(tmp_path, step(512), resume=False), 0
    for block in blocks.missing(1):
        blocks.add(block, content(block, tmp_path))
        most = max(most, len(blocks.finished))
    assert most <= 21
    assert len(blocks.finished) == 1


@pytest.mark.parametrize("tree", [True, False])
def test_blocks_that_were_given_up_leave_the_others_as_they_are(tree: bool, tmp_path: Path) -> None:
    def failed(data: Any, folder: Path) -> None:
        (folder / "text").write_text(f"{data.part} {data.reason} ")

    its = replace(step(100, tree=tree), compute=failed)
    blocks = Blocks(tmp_path, its, resume=False)
    missing = blocks.missing(2)
    for block in missing[:10] + missing[11:49]:
        blocks.add(block, content(block, tmp_path))
    before = list(blocks.finished)
    folders = blocks.joined_without({missing[49]: "late", missing[10]: "full"})
    assert len(folders) == (1 if tree else 50)
    expected = whole(98).replace("20 21 ", "range(20, 22) full ") + "range(98, 100) late "
    assert "".join((folder / "text").read_text() for folder in folders) == expected
    again = Blocks(tmp_path, its, resume=True)
    assert again.finished == before
    assert again.missing(2) == [missing[10], missing[49]]
    assert not blocks.partial.exists()


def test_a_run_goes_on_with_blocks_of_another_size(tmp_path: Path) -> None:
    first = Blocks(tmp_path, step(100), resume=False)
    for block in first.missing(10)[1:8:2]:
        first.add(block, content(block, tmp_path))
    folder = tmp_path / "blocks" / "x"
    (folder / ".30-40.0123abcd").mkdir()  # a block that was being written
    (folder / "12-14").mkdir()  # a part of one that was joined
    again = Blocks(tmp_path, step(100), resume=True)
    assert again.finished == [range(10, 20), range(30, 40), range(50, 60), range(70, 80)]
    missing = again.missing(7)
    assert max(map(len, missing)) == 7
    for block in missing:
        again.add(block, content(block, tmp_path))
    assert (again.joined()[0] / "text").read_text() == whole(100)
    delete(tmp_path)
    assert not (tmp_path / "blocks").exists()


def test_blocks_of_another_run_are_refused_or_deleted(tmp_path: Path) -> None:
    Blocks(tmp_path, step(100), resume=False).add(range(10), content(range(10), tmp_path))
    with pytest.raises(UsageError, match="belongs to a run with other data"):
        Blocks(tmp_path, step(99), resume=True)
    with pytest.raises(UsageError, match="belongs to a run with other batch"):
        Blocks(tmp_path, step(100, batch=2), resume=True)
    (tmp_path / "blocks" / "x" / "identity.json").write_text("{")
    with pytest.raises(CnnvizError, match="is damaged; start again with --overwrite"):
        Blocks(tmp_path, step(100), resume=True)
    assert Blocks(tmp_path, step(100), resume=False).finished == []


def test_nothing_else_is_deleted(tmp_path: Path) -> None:
    Blocks(tmp_path, step(100), resume=False).add(range(10), content(range(10), tmp_path))
    kept = tmp_path / "blocks" / "x" / "mine.txt"
    kept.write_text("")
    other = tmp_path / "blocks" / "photos" / "0-10"
    other.mkdir(parents=True)
    delete(tmp_path)
    assert kept.exists()
    assert other.exists()
    assert not (tmp_path / "blocks" / "x" / "0-10").exists()


def test_a_packed_folder_leads_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(CnnvizError, match="cannot write"):
        unpack(pack(folder), tmp_path / "out")


def test_sums_do_not_depend_on_the_order() -> None:
    generator = random.Random(0)  # noqa: S311
    values = [generator.uniform(-1, 1) * 10.0 ** generator.randint(-6, 6) for _ in range(1_000)]
    expected = torch.tensor(math.fsum(values)).float()
    for _ in range(5):
        generator.shuffle(values)
        parts = [exact(torch.tensor(value, dtype=torch.float64)) for value in values]
        while len(parts) > 1:  # a tree with branches of any length
            place = generator.randrange(len(parts) - 1)
            parts[place : place + 2] = [plus(parts[place], parts[place + 1])]
        assert parts[0].sum().float() == expected
