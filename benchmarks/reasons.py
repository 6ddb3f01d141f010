"""How good are the reasons of `cnnviz reasons`? Outlined photographs, exact search.

    python benchmarks/reasons.py objects ASSETS TRUTH [--count N] [--hold H] [--cell C] [--keep F]
    python benchmarks/reasons.py gap ASSETS TRUTH [--count N] [--cell C]

ASSETS holds `weights/squeezenet1_1.pth` and `cifar10/`, TRUTH `imagenet_val_boxes/`. The pictures
are the first N of the list whose class the network predicts; those in F are not done again.

- **objects**: share of pictures with more than one reason, the smallest region's size, how often
  reasons lie on the object (share of the region inside its boxes), passes. Every region is checked:
  no single cell of it can go.
- **gap**: the smallest region by greedy search against the smallest of all subsets, SqueezeNet 1.1
  on photographs (3 x 3 cells, or those of C) or, with C = 8, the bundled network on CIFAR-10
  images (4 x 4 cells). Subsets are
  tried in the order of their size, up to one below the greedy one: a network's answer is not
  monotone, so that no subset can be left out because of another one.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from PIL import Image

from cnnviz.core import load_model, read_image
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.sufficient import Need, Search
from cnnviz.reasons import ReasonsSpec, reasons
from cnnviz.reasons.options import Question
from cnnviz.reasons.results import Reason

BATCH, MOST_TRIED, CIFAR = 256, 250_000, 8


def pictures(truth: Path, count: int) -> Iterator[Path]:
    """The first pictures of the list; those with a false prediction are left out later."""
    yield from islice(sorted(truth.glob("imagenet_val_boxes/*.jpg")), 2 * count)


def squeezenet(assets: Path) -> Model:
    """A published network."""
    return load_model("squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth")


def minimal(search: Search, reason: Reason, need: Need) -> bool:
    """Whether no single cell can go."""
    cells_L = torch.zeros(search.cells, dtype=torch.bool)
    cells_L[list(reason.cells)] = True
    without_NL = cells_L.repeat(len(reason.cells), 1)
    without_NL[torch.arange(len(reason.cells)), list(reason.cells)] = False
    return not bool(search.met(without_NL, need)[0].any())


def objects(
    assets: Path, truth: Path, count: int, hold: float, cell: int | None, keep: Path | None
) -> None:
    """Prints where the reasons lie."""
    model, rows = squeezenet(assets), list[dict[str, object]]()
    if keep and keep.exists():
        rows = [json.loads(line) for line in keep.read_text().splitlines()]
    done, quick = {row["image"] for row in rows}, fast(model)
    outlines = read_outlines(str(truth / "imagenet_val_boxes" / "truth.json"))
    for path in pictures(truth, count):
        if path.name in done or len(rows) >= count:
            continue
        image = read_image(path, model.preprocess)
        predicted = int(model.logits(model.preprocess.normalise(image.pixels)[None]).argmax())
        if str(predicted) != str(outlines.label_of(str(path))):
            continue
        object_HW = outline_mask(outlines.for_image(str(path)), image)
        start = time.process_time()
        result = reasons(model, image, ReasonsSpec(hold=hold, cell=cell, skip=tuple(Question))).on(
            object_HW
        )
        seconds, (target,) = time.process_time() - start, result.targets
        measured, panel = result.occlusion.measured, result.occlusion.targets[0]
        search = Search(quick, measured, panel, OcclusionSpec(), cell, hold)
        checked = [minimal(search, reason, Need.HOLD) for reason in target.reasons]
        if target.needed is not None:
            checked.append(minimal(search, target.needed, Need.BOTH))
        rows.append(
            {
                "image": path.name,
                "p": target.reading,
                "object": float(object_HW.double().mean()),
                "reasons": [
                    [r.share, r.alone, r.without, r.lost, r.inside] for r in target.reasons
                ],
                "needed": target.needed and [target.needed.share, target.needed.inside],
                "minimal": all(checked),
                "passes": target.passes,
                "seconds": seconds,
            }
        )
        if keep:
            keep.write_text("\n".join(map(json.dumps, rows)) + "\n")
        print(json.dumps(rows[-1]), flush=True)
    summarise(rows)


def summarise(rows: list[dict[str, object]]) -> None:
    """Prints the numbers of docs/reasons.md."""
    found = [row["reasons"] for row in rows]
    inside = [reason[4] for each in found for reason in each]  # type: ignore[attr-defined]
    first = [each[0] for each in found if each]  # type: ignore[index]
    print(f"{len(rows)} pictures, object {mean(float(str(r['object'])) for r in rows):.3f}")
    print("more than one reason:", sum(len(each) > 1 for each in found))  # type: ignore[arg-type]
    print("first loses the class:", sum(reason[3] for reason in first))
    print("smallest: median", median(min(r[0] for r in each) for each in found if each))  # type: ignore[attr-defined]
    print("inside: mean", mean(inside), "over half", mean(share > 0.5 for share in inside))
    print("all minimal:", all(row["minimal"] for row in rows))
    print("passes: median", median(int(str(row["passes"])) for row in rows))
    print("seconds: median", median(float(str(row["seconds"])) for row in rows))


def exact(search: Search, need: Need, below: int) -> int | None:
    """The size of the smallest set of fewer than `below` cells that meets a need, if any does.

    Raises ValueError where there are too many.
    """
    for size in range(below):
        sets = torch.combinations(torch.arange(search.cells), size) if size else torch.zeros(1, 0)
        if len(sets) > MOST_TRIED:
            raise ValueError(f"{len(sets)} sets of {size}")
        cells_NL = torch.zeros(len(sets), search.cells, dtype=torch.bool)
        cells_NL.scatter_(1, sets.long(), True)
        for part_NL in torch.split(cells_NL, BATCH):
            if bool(search.met(part_NL, need)[0].any()):
                return size
    return None


def gap_of(model: Model, paths: list[Path], need: Need, cell: int, count: int) -> None:
    """Prints how far greedy regions are from the smallest."""
    more, sizes, skipped = list[int](), list[int](), 0
    for path in paths:
        result = occlude(model, path, OcclusionSpec())
        search = Search(
            fast(model), result.measured, result.panels[0], OcclusionSpec(batch_size=64), cell
        )
        region = search.smallest(need)
        if region is None or region.cells == 0:
            continue
        try:
            best = exact(search, need, region.cells)
        except ValueError:
            skipped += 1
            continue
        sizes.append(region.cells)
        more.append(0 if best is None else region.cells - best)
        print(path.name, need.name, region.cells, more[-1], flush=True)
        if len(sizes) == count:
            break
    print(
        f"{model.name}, {search.shape} cells, {need.name}: {len(more)} pictures ({skipped} too "
        f"many sets), greedy {mean(sizes):.2f} cells, {mean(more):.2f} more than the smallest; "
        f"smallest in {sum(not m for m in more)}, one more in {sum(m == 1 for m in more)}, "
        f"at most {max(more)} more",
        flush=True,
    )


def cifar(assets: Path, folder: Path, count: int) -> list[Path]:
    """Test images of CIFAR-10 as files."""
    with np.load(next(assets.glob("cifar10/*.npz"))) as arrays:
        images = arrays["x_test"][:count]
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("objects", "gap"))
    parser.add_argument("assets", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--hold", type=float, default=0.9)
    parser.add_argument("--cell", type=int)
    parser.add_argument("--keep", type=Path)
    torch.set_num_threads(1)
    given = parser.parse_args()
    if given.what == "objects":
        objects(*(given.assets, given.truth, given.count, given.hold, given.cell, given.keep))
    else:
        with tempfile.TemporaryDirectory() as folder:
            photos, model = list(pictures(given.truth, given.count)), squeezenet(given.assets)
            if given.cell == CIFAR:
                photos = cifar(given.assets, Path(folder), 2 * given.count)
                model = load_model()
            for need in (Need.HOLD, Need.BOTH):
                gap_of(model, photos, need, given.cell or 75, given.count)


if __name__ == "__main__":
    main()
