"""Does diff name the class that was given a shortcut, and hardly any between two clean trainings?

    python benchmarks/diff_planted.py FOLDER [--marks NAME…]

FOLDER is what `benchmarks/planted.py` made. On the test images of each marked network, which hold
the mark, that network and all clean ones are audited; then clean ones are compared with the marked
one, and with each other. Printed: the accuracies, the certainty of the marked class and of the next
one, and how often a comparison of two clean networks names a class. At the end the share of
comparisons that name the marked class where one in twenty of two clean networks names any.
"""

import argparse
import json
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
import planted
import train_bundled as recipe

from cnnviz.cli.main import run
from cnnviz.diff.options import NAMED

MASK = ["--mask", "8", "--stride", "4"]


def audited(folder: Path, name: str, data: Path, out: Path) -> Path:
    """The run of one network on these images."""
    labels = out / "labels.txt"
    labels.write_text("\n".join(recipe.CLASSES))
    mean, std = (",".join(map(str, values)) for values in (recipe.MEAN, recipe.STD))
    line = ["audit", str(data), "--model", f"{planted.__file__}:network", "--quiet", *MASK]
    line += ["--checkpoint", str(folder / f"{name}.safetensors"), "--labels", str(labels)]
    line += ["--size", "32", "--mean", mean, "--std", std, "--no-pictures"]
    place = out / f"{name}-on-{data.name}"
    if run([*line, "--out", str(place)]):
        raise SystemExit(f"the audit of {name} failed")
    return place


def compared(a: Path, b: Path, out: Path) -> dict[str, float]:
    """Certainty of each class."""
    place = out / f"{a.name}-{b.name}"
    if run(["diff", str(a), str(b), "--no-pictures", "--quiet", "--out", str(place)]):
        raise SystemExit(f"{a} and {b} could not be compared")
    results = json.loads((place / "summary.json").read_text(encoding="utf-8"))["results"]
    said = results["predictions"]
    print(f"  {a.name} {said['accuracy_a']:.3f}, {b.name} {said['accuracy_b']:.3f}: "
          f"{results['changed']}", flush=True)  # fmt: skip
    return {entry["class"]: entry["certainty"] or 0.0 for entry in results["classes"]}


def main() -> None:
    """Compares all and prints what came out."""
    parser = argparse.ArgumentParser(description="compare networks with and without shortcuts")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--marks", nargs="*", help="names of marked networks")
    options = parser.parse_args()
    names = sorted(path.stem for path in options.folder.glob("*.safetensors"))
    clean = [name for name in names if name.startswith("clean-")]
    marks = options.marks or [name for name in names if name not in clean]
    plants = {plant.name: plant for plant in planted.PLANTS}
    quiet, found = [], []
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        for mark in marks:
            kind, seed = mark.rsplit("-", 1)
            marked = recipe.CLASSES[planted.planted_class(plants[kind], int(seed))]
            data = options.folder / mark
            runs = [audited(options.folder, name, data, out) for name in clean]
            other = audited(options.folder, mark, data, out)
            own = [compared(a, b, out) for a, b in combinations(runs, 2)]
            quiet += [max(certainty.values()) for certainty in own]
            named = [compared(a, other, out) for a in runs]
            found += [(c[marked], max(v for k, v in c.items() if k != marked)) for c in named]
            told = ", ".join(f"{c[marked]:.3f}" for c in named)
            next_one = max(top for _, top in found[-len(runs) :])
            alarms = sum(max(c.values()) > NAMED for c in own)
            print(f"{mark:14} {marked:11} {told} (others at most {next_one:.3f}); "
                  f"clean pairs that name a class: {alarms} of {len(own)}", flush=True)  # fmt: skip
    level = float(np.quantile(quiet, 0.95)) if quiet else 1.0
    print(f"clean pairs above {NAMED}: {np.mean(np.array(quiet) > NAMED):.3f} of {len(quiet)}; "
          f"nineteen in twenty are below {level:.3f}")  # fmt: skip
    for limit in (NAMED, max(level, NAMED)):
        hits = np.mean([own > limit for own, _ in found])
        print(f"marked class named above {limit:.3f}: {hits:.3f} of {len(found)}")


if __name__ == "__main__":
    main()
