"""Does the verdict of `--trust` tell good maps from bad ones, and hits from misses?

    python benchmarks/trust.py ASSETS TRUTH [--limit N] [--page FILE]

On the pictures with boxes of TRUTH (`imagenet_val_boxes/`), SqueezeNet 1.1. Good maps: occlusion's,
Grad-CAM's, their agreement. Bad ones, known to be: random hills; occlusion's own map with its tiles
shuffled; of another class; of the network with its last layers random; without the half of its
evidence that is strongest; without the half that lies to the left. Thresholds were chosen on every
second picture, so the other half is given by itself.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from cnnviz.core import load_model
from cnnviz.core.data.images import read_image
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.occlusion.maps import judge as compare
from cnnviz.occlusion.maps import pixel_map, position_values
from cnnviz.occlusion.options import MapKind
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.trust import Scorecard, Verdict
from cnnviz.trust.judge import Judge
from cnnviz.trust.options import TrustSpec
from cnnviz.trust.removal import random_maps

GOOD = ("occlusion", "Grad-CAM", "agreement")
TILES = 7
START, END = "<!-- written by benchmarks/trust.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Row:
    """One map: its trust (0 to 1), its verdict, and whether its peak is on the object."""

    trust: float
    verdict: int
    hit: bool


def _shuffled(map_HW: Tensor, seed: int) -> Tensor:
    """Its tiles in another order."""
    rows, columns = (side // TILES for side in map_HW.shape)
    tiles = map_HW.unfold(0, rows, rows).unfold(1, columns, columns).flatten(0, 1)
    order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(seed))
    lines = [torch.cat(list(tiles[order][i : i + TILES]), 1) for i in range(0, len(tiles), TILES)]
    return torch.cat(lines, 0)


def _without_strongest(map_HW: Tensor) -> Tensor:
    """The positive evidence's stronger half set to zero."""
    positive = map_HW.clamp(min=0).flatten()
    order = positive.argsort(descending=True)
    gone = order[positive[order].cumsum(0) < 0.5 * positive.sum()]
    rest = map_HW.flatten().clone()
    rest[gone] = 0
    return rest.view(map_HW.shape)


def _without_left(map_HW: Tensor) -> Tensor:
    """The half of the positive evidence that lies to the left set to zero."""
    columns = map_HW.clamp(min=0).sum(0).cumsum(0)
    middle = int((columns < 0.5 * columns[-1]).sum())
    return torch.cat([torch.zeros_like(map_HW[:, :middle]), map_HW[:, middle:]], 1)


def cards(
    judge: Judge, result: OcclusionResult, number: int
) -> Iterator[tuple[str, Tensor, Scorecard]]:
    """Every map of one picture, by name, with its scorecard; of the first target."""
    measured, panel = result.measured, result.panels[0]
    target, map_HW = panel.target, panel.map_HW
    answers, gradient = judge.ask(result), measured.gradient
    assert gradient is not None  # noqa: S101 (the network has one)
    for name, kind in (("occlusion", MapKind.OCCLUSION), ("agreement", MapKind.AGREEMENT)):
        shown = replace(result, method=kind)
        (card, *_) = judge.of_occlusion(shown)
        yield name, shown.maps[0], card
    yield (
        "Grad-CAM",
        gradient.maps[target],
        judge.of_map(answers, gradient.maps[target], target, None),
    )
    size = (map_HW.shape[0], map_HW.shape[1])

    def drawn(base_K: Tensor, logits_PK: Tensor, grid: object, of: int) -> Tensor:
        values_P = position_values(base_K, logits_PK, of, result.compared)
        return pixel_map(values_P, grid, size, result.upsample)  # type: ignore[arg-type]

    generator = torch.Generator().manual_seed(number)
    other = int(torch.randint(0, len(measured.labels) - 1, (), generator=generator))
    other += other >= target
    assert answers.randomised is not None  # noqa: S101 (the network has layers)
    base_K, large_PK = answers.randomised
    grid = next(
        g for name, (g, _logits) in answers.variants.items() if len(g.boxes_P4) == len(large_PK)
    )
    bad = {
        "random": random_maps(size, 1000 + number, 1)[0],
        "shuffled": _shuffled(map_HW, number),
        "of another class": drawn(
            measured.base_logits_K, measured.logits_PK, measured.grids[0], other
        ),
        "of random last layers": drawn(base_K, large_PK, grid, target),
        "without its strongest half": _without_strongest(map_HW),
        "without its left half": _without_left(map_HW),
    }
    for name, bad_HW in bad.items():
        yield name, bad_HW, judge.of_map(answers, bad_HW, target, gradient)


def measure(assets: Path, boxes: Path, limit: int) -> dict[str, list[Row]]:
    """Every map of every picture."""
    model = load_model("squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth")
    outlines = read_outlines(str(boxes / "truth.json"))
    entries = json.loads((boxes / "truth.json").read_text(encoding="utf-8"))
    found: dict[str, list[Row]] = {}
    judges: dict[str, Judge] = {}
    for number, name in enumerate(sorted(entries)[:limit]):
        label = str(entries[name]["label"])
        if label not in judges:
            judges = {label: Judge.of(model, TrustSpec(targets=(label,)))}
        image = read_image(boxes / name, model.preprocess)
        object_HW = outline_mask(outlines.for_image(str(boxes / name)), image)
        result = judges[label].occluder.run(image)
        for kind, map_HW, card in cards(judges[label], result, number):
            row = Row(
                card.trust or 0.0,
                list(Verdict).index(Verdict(card.verdict)),
                bool(compare(map_HW, object_HW).pointing_game_hit),
            )
            found.setdefault(kind, []).append(row)
        if number % 20 == 19:
            print(f"{number + 1} pictures", flush=True)
    return found


def _area(good: list[float], bad: list[float]) -> float:
    return float(roc_auc_score([1] * len(good) + [0] * len(bad), [*good, *bad]))


def report(found: dict[str, list[Row]]) -> str:
    """Tables, as Markdown."""
    bad = [kind for kind in found if kind not in GOOD]
    lines = [
        "| map | no better than chance | fragile | believe | trust, median |",
        "|---|---|---|---|---|",
    ]
    for kind, rows in found.items():
        shares = np.bincount([row.verdict for row in rows], minlength=3) / len(rows)
        middle = np.median([row.trust for row in rows])
        lines.append(
            f"| {kind} | {' | '.join(f'{100 * s:.0f} %' for s in shares)} | {middle:.2f} |"
        )
    lines += ["", "Area under the curve, good against bad (all six kinds):", ""]
    lines += ["| pictures | of the number | of the word |", "|---|---|---|"]
    for name, part in (("chosen on", slice(0, None, 2)), ("held out", slice(1, None, 2))):
        areas = [
            _area(
                [value(row) for kind in GOOD for row in found[kind][part]],
                [value(row) for kind in bad for row in found[kind][part]],
            )
            for value in (lambda row: row.trust, lambda row: float(row.verdict))
        ]
        lines.append(f"| {name} | {areas[0]:.3f} | {areas[1]:.3f} |")
    lines += ["", "Area by kind of bad map (all pictures, of the number): "]
    good = [row.trust for kind in GOOD for row in found[kind]]
    by_kind = (f"{kind} {_area(good, [row.trust for row in found[kind]]):.3f}" for kind in bad)
    lines[-1] += ", ".join(by_kind) + "."
    lines += ["", "Maps that are believed, where the peak hits the object and where it misses:", ""]
    lines += [
        "| map | pictures | believed of hits | believed of misses | area |",
        "|---|---|---|---|---|",
    ]
    for kind in GOOD:
        for name, part in (("chosen on", slice(0, None, 2)), ("held out", slice(1, None, 2))):
            rows = found[kind][part]
            hits, misses = ([r for r in rows if r.hit is wanted] for wanted in (True, False))
            shares = [
                f"{sum(r.verdict == 2 for r in some)} of {len(some)}" for some in (hits, misses)
            ]
            area = _area([r.trust for r in hits], [r.trust for r in misses])
            lines.append(f"| {kind} | {name} | {' | '.join(shares)} | {area:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables, and puts them into a page."""
    parser = argparse.ArgumentParser(description="does the verdict tell good maps from bad ones?")
    parser.add_argument("assets", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--limit", type=int, default=10**6, help="pictures")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced")
    options = parser.parse_args()
    tables = report(measure(options.assets, options.truth / "imagenet_val_boxes", options.limit))
    print(f"\n{tables}")
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        head, _, rest = page.partition(START)
        _old, _, tail = rest.partition(END)
        options.page.write_text(f"{head}{START}\n{tables}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
