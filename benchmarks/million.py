"""A scan of a million pictures that exist in memory alone: memory, pace, state file, and merge.

    python benchmarks/million.py --images 1000000 --shares 64

A source that makes each picture from its number, a small network, all filters of its two layers.
The scan runs in one piece, with a line for each tenth, and then in shares, whose state files are
joined and compared with the one of the whole. At last as many states of 3,944 filters (those of
SqueezeNet) are joined.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import resident
from torch import nn

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.shards import Block, Shard
from cnnviz.core.data.tables import Example, ImageSource
from cnnviz.core.models.load import Model
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.output.journal import Journal, join
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import Saving, make_plan, scan
from cnnviz.filters.patches.state import LayerState, merge, to_arrays

SIDE = 8
BATCH = 256
MANY = 3944


def synthetic(count: int) -> ImageData:
    """Pictures of noise, made when they are opened."""

    def made(example: Example, _preprocess: Preprocess) -> Image.Image:
        noise = np.random.default_rng(example.row).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return Image.fromarray(noise)

    examples = tuple(Example(f"{row:07d}", None, row) for row in range(count))
    source = ImageSource(examples, None, made, lambda _example: "-")
    return ImageData(examples, None, ("synthetic",), f"noise {count}", count, source)


def network() -> Model:
    """Two convolutions."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
    preprocess = Preprocess(None, (SIDE, SIDE), (0.5,) * 3, (0.25,) * 3)
    labels = tuple(map(str, range(32)))
    size, device = (SIDE, SIDE), torch.device("cpu")
    return Model(module.eval(), "small", preprocess, labels, size, "0" * 64, device, Precision.FP32)


def scanned(model: Model, data: ImageData, path: Path, told: int | None = None) -> float:
    """Scans; the seconds it took. A line for each tenth of `told` images."""
    plan = make_plan(model, MaxPatchesSpec())
    began, last, done = time.perf_counter(), time.perf_counter(), 0

    def progress(images: int) -> None:
        nonlocal done, last
        before, done = done, done + images
        if told and before * 10 // told < done * 10 // told:
            now = time.perf_counter()
            pace, size = (now - last) / told * 1e7, path.stat().st_size if path.exists() else 0
            print(f"{done:9,d} images {resident():7.1f} MiB {pace:5.0f} us each, state {size:,} B")
            last = now

    saving = Saving(path, 20)
    scan(model, data, plan, batch_size=BATCH, saving=saving, progress=progress)
    return time.perf_counter() - began


def joined(paths: list[Path], path: Path) -> float:
    """Joins journals; returns the seconds it took."""
    began = time.perf_counter()
    join(paths, path, merge)
    return time.perf_counter() - began


def many_filters(folder: Path, shares: int) -> list[Path]:
    """States of shares with random scores."""
    paths = []
    for number in range(shares):
        layer = LayerState.empty(MANY, 9, "cpu")
        layer.best.keys.random_(generator=torch.Generator().manual_seed(number))
        identity = {"layers or filters": {"all": list(range(MANY))}}
        path = folder / f"many-{number}.npz"
        journal = Journal(path, identity, Block(number, number + 1, shares))
        journal.save(number + 1, {}, to_arrays([layer]))
        paths.append(path)
    return paths


def main() -> None:
    """Prints what it finds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shares", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = network()
    before = resident()
    data = synthetic(options.images)
    print(f"{len(data):,} names take {resident() - before:.0f} MiB")
    with tempfile.TemporaryDirectory() as place:
        whole, all_of_them = Path(place, "whole.npz"), Path(place, "all.npz")
        scanned(model, data, whole, options.images)
        parts = [Path(place, f"{number}.npz") for number in range(options.shares)]
        took = 0.0
        for number, path in enumerate(parts):
            took += scanned(model, data.share(Shard(number, options.shares)), path)
        seconds = joined(parts, all_of_them)
        same = whole.read_bytes() == all_of_them.read_bytes()
        equal = "byte-equal to" if same else "DIFFERENT from"
        print(
            f"{options.shares} shares: {took:.0f} s, joined in {seconds:.2f} s, {equal} the whole"
        )
        seconds = joined(many_filters(Path(place), options.shares), all_of_them)
        print(f"{options.shares} shares of {MANY} filters: joined in {seconds:.2f} s")


if __name__ == "__main__":
    main()
