"""Paints the sample images, and writes down what each of them shows and where.

    python sample_images/render.py [--out FOLDER] [NAME ...]

Each scene is painted by a function of its own from a fixed seed; `truth.json` gives for each file
the CIFAR-10 class, the box (x0, y0, x1, y1, in the file's pixels) and the outlines of its subject.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import animals
import vehicles
from outlines import box, outlines
from painting import Canvas

WIDTH, HEIGHT = 384, 288
SCENES: dict[str, tuple[Callable[[Canvas], None], int]] = {
    "airplane": (vehicles.airplane, 3),
    "automobile": (vehicles.automobile, 5),
    "bird": (animals.bird, 7),
    "deer": (animals.deer, 11),
    "frog": (animals.frog, 13),
    "horse": (animals.horse, 17),
    "ship": (vehicles.ship, 19),
    "truck": (vehicles.truck, 23),
}


def render(label: str, folder: Path) -> dict[str, object]:
    """Paints one scene to `folder/<label>.png` and returns what `truth.json` says about it."""
    scene, seed = SCENES[label]
    canvas = Canvas(WIDTH, HEIGHT, seed)
    scene(canvas)
    canvas.image().save(folder / f"{label}.png", optimize=True)
    mask = canvas.subject_mask()
    return {"label": label, "boxes": [box(mask)], "polygons": outlines(mask)}


def main() -> None:
    """Paints the scenes that are named, or all of them."""
    parser = argparse.ArgumentParser(description="Paint the sample images.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    options = parser.parse_args()
    if unknown := set(options.names) - set(SCENES):
        parser.error(f"no scene {', '.join(sorted(unknown))}; there are {', '.join(SCENES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "truth.json"
    truth = json.loads(path.read_text()) if path.exists() else {}
    for label in options.names or SCENES:
        truth[f"{label}.png"] = render(label, options.out)
        print(options.out / f"{label}.png")
    lines = [f"  {json.dumps(name)}: {json.dumps(truth[name])}" for name in sorted(truth)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
