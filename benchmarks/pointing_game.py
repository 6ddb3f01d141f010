"""The pointing game on outlined photographs: does the map's peak fall on the object?

    python benchmarks/pointing_game.py ASSETS [--mask 45] [--stride 22]

ASSETS holds `weights/squeezenet1_1.pth` and `photos/coco/*.jpg`, each with a `.txt` of outlines: a
line is `class x1 y1 x2 y2 …`, corners as fractions of width and height. A photograph counts for an
animal where SqueezeNet's five best classes hold one of that animal's classes; the best of these is
the target. Beside the hit rate stand the animal's share of the image (what a blind guess would hit)
and the share of positive evidence on it.
"""

import argparse
from pathlib import Path

from PIL import Image

from cnnviz.core import load_model
from cnnviz.core.data.images import read_image
from cnnviz.core.data.outlines import Outline, outline_mask
from cnnviz.core.errors import CnnvizError
from cnnviz.occlusion import OcclusionSpec
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.maps import judge

# COCO's class numbers to the ImageNet classes that are that animal.
ANIMALS = {
    15: ("cat", range(281, 286)),
    16: ("dog", range(151, 269)),
    20: ("elephant", (101, 385, 386)),
    21: ("bear", range(294, 298)),
    22: ("zebra", (340,)),
}


def outlines(path: Path, size: tuple[int, int]) -> dict[int, Outline]:
    """For each animal in a `.txt`, its outlines in pixels of an image of (width, height)."""
    found: dict[int, list[tuple[tuple[float, float], ...]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        number, *fractions = line.split()
        values = [float(value) for value in fractions]
        corners = zip(values[::2], values[1::2], strict=True)
        scaled = tuple((x * size[0], y * size[1]) for x, y in corners)
        if int(number) in ANIMALS:
            found.setdefault(int(number), []).append(scaled)
    return {number: Outline(tuple(polygons)) for number, polygons in found.items()}


def main() -> None:
    """Prints a line per photograph and animal, then the rate."""
    parser = argparse.ArgumentParser(description="pointing game on outlined photographs")
    parser.add_argument("assets", type=Path)
    parser.add_argument("--mask", type=int, default=45)
    parser.add_argument("--stride", type=int, default=22)
    options = parser.parse_args()
    weights = options.assets / "weights" / "squeezenet1_1.pth"
    model = load_model("squeezenet1_1", checkpoint=weights)
    spec = OcclusionSpec(((options.mask, options.mask),), options.stride, targets=("top5",))
    occluder = Occluder(model, spec)
    verdicts = []
    for path in sorted((options.assets / "photos" / "coco").glob("*.jpg")):
        with Image.open(path) as picture:
            expected = outlines(path.with_suffix(".txt"), picture.size)
        image = read_image(path, model.preprocess)
        result = occluder.run(image)
        for number, expectation in expected.items():
            name, classes = ANIMALS[number]
            panel = next((p for p in result.panels if p.target in classes), None)
            if panel is None:
                print(f"{path.stem}  {name:9} not among the five best classes: left out")
                continue
            try:
                verdict = judge(panel.map_HW, outline_mask(expectation, image))
            except CnnvizError as error:
                print(f"{path.stem}  {name:9} {error}: left out")
                continue
            verdicts.append(verdict)
            inside, hit = verdict.inside, "hit " if verdict.pointing_game_hit else "miss"
            print(
                f"{path.stem}  {name:9} {hit}  evidence inside {inside:.2f}  "
                f"object's share {verdict.object_share:.2f}  "
                f"({model.labels[panel.target]}, p = {panel.reading:.2f})"
            )
    hits = sum(bool(verdict.pointing_game_hit) for verdict in verdicts)
    chance = sum(verdict.object_share for verdict in verdicts) / max(len(verdicts), 1)
    print(f"\nhits: {hits} of {len(verdicts)} (a blind guess: {chance:.2f} of them), "
          f"mask {options.mask}, stride {options.stride}, fill mean, probability")  # fmt: skip


if __name__ == "__main__":
    main()
