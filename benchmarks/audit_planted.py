"""Does the audit name planted shortcuts, and only those?

    python benchmarks/audit_planted.py FOLDER [--only NAME…] [--images FOLDER] [--stride 4]

FOLDER is what `benchmarks/planted.py` made. Every network is audited on its own test images, by the
command line. Of all pairs of network and class, one in which the class had a mark is a positive;
the score of a pair is the class's suspicion. Printed: the table, the area under the curve, the
shares of marks that are named and of unmarked classes with an alarm (above 0.95) with 95 %
intervals; and what two other ways give (`audit_baselines.py`). With --images all networks are
audited on those, which hold no mark.
"""

import argparse
import json
import tempfile
from pathlib import Path

import audit_baselines as baselines
import planted
import train_bundled as recipe
from sklearn.metrics import roc_auc_score

from cnnviz.audit.options import ALARM
from cnnviz.cli.main import run
from cnnviz.core.statistics import wilson

Found = dict[str, tuple[float, float, float, str | None]]


def audited(folder: Path, name: str, images: Path, out: Path, more: list[str]) -> Found:
    """Each class's suspicion, how often patches and residual carried over, the decisive test."""
    labels = out / "labels.txt"
    labels.write_text("\n".join(recipe.CLASSES))
    mean, std = (",".join(map(str, values)) for values in (recipe.MEAN, recipe.STD))
    line = ["audit", str(images), "--model", f"{planted.__file__}:network", "--quiet"]
    line += ["--checkpoint", str(folder / f"{name}.safetensors"), "--labels", str(labels)]
    line += ["--size", "32", "--mean", mean, "--std", std, "--no-pictures", *more]
    if run([*line, "--out", str(out / name)]):
        raise SystemExit(f"the audit of {name} failed")
    results = json.loads((out / name / "summary.json").read_text(encoding="utf-8"))["results"]
    found: Found = dict.fromkeys(recipe.CLASSES, (0.0, 0.0, 0.0, None))
    for entry in results["classes"]:
        carried = max((group["carried"] or 0.0 for group in entry["groups"]), default=0.0)
        if entry["class"] in found:  # and not those of few images, together
            added = [one for one in entry["residual"].values() if isinstance(one, dict)]
            became = max((one["became"] for one in added), default=0.0)
            suspicion = entry["suspicion"] or 0.0
            found[entry["class"]] = suspicion, carried, became, entry["decisive"]
    return found


def main() -> None:
    """Audits all networks and prints what came out."""
    parser = argparse.ArgumentParser(description="audit networks with planted shortcuts")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", help="names of networks")
    parser.add_argument("--images", type=Path, help="instead of each network's own")
    parser.add_argument("--stride", help="of the occlusion; 4 takes a quarter of the time")
    options = parser.parse_args()
    names = sorted(path.stem for path in options.folder.glob("*.safetensors"))
    plants = {plant.name: plant for plant in planted.PLANTS}
    more = ["--stride", options.stride] if options.stride else []
    truths, scores, alarms = [], [], {}
    others: dict[str, list[float]] = {"image statistics": [], "clusters of gradient maps": []}
    with tempfile.TemporaryDirectory() as out:
        for name in options.only or names:
            kind, seed = name.rsplit("-", 1)
            marked = recipe.CLASSES[planted.planted_class(plants[kind], int(seed))]
            images = options.images or options.folder / name
            found = audited(options.folder, name, images, Path(out), more)
            pixels, labels = baselines.read(images)
            others["image statistics"] += baselines.by_statistics(pixels, labels).values()
            clusters = baselines.by_clusters(options.folder, name, pixels)
            others["clusters of gradient maps"] += clusters.values()
            clean = plants[kind].add is None
            for label, (suspicion, *_) in found.items():
                truths.append(not clean and label == marked)
                scores.append(suspicion)
            raised = [label for label, (suspicion, *_) in found.items() if suspicion > ALARM]
            if clean:
                alarms[name] = raised
                top = max(suspicion for suspicion, *_ in found.values())
                print(f"{name:14} alarms: {raised} (at most {top:.3f})", flush=True)
            else:
                suspicion, carried, became, test = found[marked]
                top = max(value for label, (value, *_) in found.items() if label != marked)
                told = f"suspicion {suspicion:.3f} by {test} (others at most {top:.3f})"
                told += f", carried {carried:.2f}, residual {became:.2f}"
                print(f"{name:14} {marked:11} {told}; alarms: {raised}", flush=True)
    if any(truths):
        area = roc_auc_score(truths, scores)
        print(f"area under the curve {area:.3f} over {len(truths)} pairs, {sum(truths)} marked")
        for way, values in others.items():
            print(f"  by {way} {roc_auc_score(truths, values):.3f}")
    for what, marked in (("marks named", True), ("unmarked classes with an alarm", False)):
        above = [s > ALARM for s, truth in zip(scores, truths, strict=True) if truth == marked]
        if above:
            low, high = wilson(sum(above), len(above))
            print(f"{what}: {sum(above)} of {len(above)} ({low:.0%} to {high:.0%})")
    quiet = sum(not raised for raised in alarms.values())
    print(f"no alarm in {quiet} of {len(alarms)} networks without a mark")


if __name__ == "__main__":
    main()
