"""What `cnnviz reasons` costs: regions and pairs incrementally and in full, filters by replay.

    python benchmarks/reasons_cells.py --threads 2 [--image PHOTO] [--weights FOLDER]

Prints passes and seconds of processor time per image; pairs with one fill, of which the command has
three, the best of `--rounds` alternating runs. Weights are FOLDER's NAME.pth, or random.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cnnviz.core import load_model, read_image
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.summary import class_fields
from cnnviz.filters.ablation.replay import WholePasses
from cnnviz.occlusion import OcclusionSpec, occlude
from cnnviz.occlusion.options import EngineChoice
from cnnviz.occlusion.sufficient import Search
from cnnviz.reasons import carriers as room
from cnnviz.reasons import interactions
from cnnviz.reasons.regions import find_regions

CLASS = 3


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def picture(model: Model) -> WorkingImage:
    """A seeded random image."""
    pixels = torch.rand(3, *model.input_size, generator=torch.Generator().manual_seed(0))
    rows, columns = model.input_size
    return WorkingImage(
        "random.png", pixels, (0.0, 0.0, float(rows), float(columns)), (rows, columns)
    )


def regions(model: Model, image: WorkingImage) -> None:
    """Prints the cost of the regions with both engines; sets of cells take whole passes in both."""
    for choice in (EngineChoice.INCREMENTAL, EngineChoice.FULL):
        spec = OcclusionSpec(engine=choice)
        result = occlude(model, image, spec)
        panel = result.targets[0]
        fields = class_fields(result.measured, panel.index, panel.reading)
        search = Search(fast(model), result.measured, panel, spec)
        taken = seconds(lambda search=search, fields=fields: find_regions(search, fields, 4))  # type: ignore[misc]
        print(
            f"  regions, p = {panel.reading:.3f}: {search.passes} passes, "
            f"{choice.value} {taken:.1f} s",
            flush=True,
        )


def pairs(model: Model, image: WorkingImage, grid: int, rounds: int) -> None:
    """Prints the cost of the interactions with both engines, alternating."""
    interactions.FILLS = ("mean",)
    studies = {
        choice: interactions.Interacting(model, grid=grid, engine=choice)
        for choice in (EngineChoice.INCREMENTAL, EngineChoice.FULL)
    }
    times: dict[EngineChoice, list[float]] = {choice: [] for choice in studies}
    for _round in range(rounds):
        for choice, study in studies.items():
            times[choice].append(seconds(lambda study=study: study.run(image, [CLASS])))  # type: ignore[misc]
    fast, full = (min(found) for found in times.values())
    print(
        f"  pairs of {grid}x{grid} cells: {studies[EngineChoice.FULL].positions} occluded images; "
        f"incremental {fast:.1f} s, full {full:.1f} s ({full / fast:.1f} times)",
        flush=True,
    )


def filters(model: Model, image: WorkingImage) -> None:
    """Prints the cost of the carriers, by replay and (from a few of them) by whole passes."""
    region = torch.zeros(model.input_size, dtype=torch.bool)
    region[60:120, 60:120] = True
    layouts = room.patched_layers(model)
    occluded = torch.where(region, torch.zeros(()), image.pixels)
    one, other = (room._Pass(model, pixels, layouts) for pixels in (image.pixels, occluded))
    ablations = room.ablations(layouts, 1)
    replay = 2 * seconds(lambda: one.patched(ablations, other, CLASS))
    some = [{layer: (0,)} for layer in layouts for _ in range(4)]
    pixels = model.preprocess.normalise(image.pixels)[None]
    whole = seconds(lambda: WholePasses(model, some, {}).run(pixels, lambda *_: None)) / len(some)
    passes = 2 * len(ablations)
    print(
        f"  filters, layers {', '.join(layouts)}: {passes} "
        f"patched passes; replay {replay:.1f} s, whole passes {passes * whole:.1f} s "
        f"({passes * whole / replay:.1f} times)",
        flush=True,
    )


def main() -> None:
    """Measures each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["squeezenet1_1", "resnet18"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--grid", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--weights", type=Path, default=Path())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.models:
        file = given.weights / f"{name}.pth"
        known = {"checkpoint": file} if file.exists() else {"weights": "none"}
        model = load_model(name, **known)
        image = read_image(given.image, model.preprocess) if given.image else picture(model)
        print(f"{name}, {', '.join(known)}, {image.pixels.shape[1:]}, {given.threads} threads")
        regions(model, image)
        filters(model, image)
        pairs(model, image, given.grid, given.rounds)


if __name__ == "__main__":
    main()
