"""Does the verdict of `--trust` tell good maps from bad ones, and hits from misses?

    python benchmarks/trust.py ASSETS TRUTH --keep FOLDER [--half chosen|held-out] [--limit N]
        [--fit] [--page FILE]

SqueezeNet 1.1 on the pictures with boxes of TRUTH (`imagenet_val_boxes/`); on CIFAR-10's test
images the bundled network and the ResNets 20 and 56 (bad maps alone: objects fill the images).
Good maps: occlusion's, Grad-CAM's, their agreement. Bad ones, known to be: smooth random hills;
occlusion's map with its 4 x 4 tiles shuffled, mirrored, of another class, or of the network with
its last layers random; a blob in the centre; edges. Bad maps are those of every third photograph.
Every second picture is *chosen*, and `--fit` prints the weights of `trust/scorecard.py` from
these, without ResNet-56; the others are *held out*. `--keep` has what is not measured again,
`--limit` is the number of pictures of each network and half.

The fit: y is 1 for good maps that hit the object (on CIFAR for good maps), 0 for bad maps and for
good ones that miss. Hits and bad maps weigh 1 each in sum, misses 1/4; those of each CIFAR network
0.4 and 0.4. Scores are those of ten-fold cross-validation, pictures kept together.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.maps import agreement
from cnnviz.core.models.load import Model
from cnnviz.occlusion.maps import judge as compare
from cnnviz.occlusion.maps import pixel_map, position_values
from cnnviz.occlusion.masks import fill_picture, inside_boxes
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.trust import Verdict
from cnnviz.trust.judge import Judge
from cnnviz.trust.options import TrustSpec
from cnnviz.trust.removal import random_maps
from cnnviz.trust.scorecard import WEIGHTS, components

GOOD = ("occlusion", "Grad-CAM", "agreement")
PHOTOGRAPHS = "SqueezeNet 1.1"
RESNETS = {"ResNet-20": "resnet20-12fca82f.th", "ResNet-56": "resnet56-4bfd9763.th"}
NORM = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
FACTORY = Path(__file__).parent.parent / "tests" / "core" / "models" / "cifar_resnet.py"
SMALL = 25  # images of CIFAR for each network and half
TILES = 4
NETWORKS = (PHOTOGRAPHS, "bundled", *RESNETS)
FITTED = (PHOTOGRAPHS, "bundled", "ResNet-20")
HALVES = {"chosen": 0, "held-out": 1}
START, END = "<!-- written by benchmarks/trust.py -->", "<!-- end -->"
Row = dict[str, Any]


def _shuffled(map_HW: Tensor, seed: int) -> Tensor:
    rows, columns = (side // TILES for side in map_HW.shape)
    tiles = map_HW.unfold(0, rows, rows).unfold(1, columns, columns).flatten(0, 1)
    order = torch.randperm(len(tiles), generator=torch.Generator().manual_seed(seed))
    lines = [torch.cat(list(tiles[order][i : i + TILES]), 1) for i in range(0, len(tiles), TILES)]
    return torch.cat(lines, 0)


def _edges(pixels_CHW: Tensor) -> Tensor:
    padded = functional.pad(pixels_CHW.mean(0)[None, None], (1, 1, 1, 1), mode="reflect")
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    parts = [functional.conv2d(padded, kernel[None, None]) for kernel in (sobel, sobel.T)]
    return torch.hypot(*parts)[0, 0]


@contextmanager
def _random_last_layers(model: Model) -> Iterator[None]:
    """Gives the weights of the last three layers noise of their mean and deviation in the `with`.

    Adebayo et al. 2018, "Sanity Checks for Saliency Maps".
    """
    generator = torch.Generator().manual_seed(0)
    layers = [m for m in model.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)][-3:]
    originals = [layer.weight.data for layer in layers]
    for layer, original in zip(layers, originals, strict=True):
        noise = torch.randn(original.shape, generator=generator)
        layer.weight.data = noise * original.std(correction=0) + original.mean()
    try:
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.weight.data = original


def bad_maps(model: Model, result: OcclusionResult, number: int) -> dict[str, Tensor]:
    """Maps of the first target that are known to be bad."""
    measured, panel = result.measured, result.panels[0]
    size, grid, target, map_HW = measured.size, panel.grid, panel.target, panel.map_HW
    generator = torch.Generator().manual_seed(number)
    other = int(torch.randint(0, len(measured.labels) - 1, (), generator=generator))
    other += other >= target
    boxes = torch.cat([torch.zeros(1, 4, dtype=torch.int64), grid.boxes_P4])
    fill = fill_picture("mean", measured.image.pixels, model.preprocess)

    def drawn(base_K: Tensor, logits_PK: Tensor, of: int) -> Tensor:
        values_P = position_values(base_K, logits_PK, of, result.compared)
        return pixel_map(values_P, grid, size, result.upsample)

    with _random_last_layers(model):
        random_PK = replaced_logits(
            model, measured.image, fill, len(boxes), lambda n: ~inside_boxes(boxes[n], size)
        )
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return {
        "random": random_maps(size, 1000 + number, 1)[0],
        "shuffled": _shuffled(map_HW, number),
        "of another class": drawn(measured.base_logits_K, measured.logits_PK, other),
        "of random last layers": drawn(random_PK[0], random_PK[1:], target),
        "mirrored": map_HW.flip(1),
        "centre": torch.exp(-2 * (y[:, None] ** 2 + x[None, :] ** 2)),
        "edges": _edges(measured.image.pixels),
    }


def rows(
    model: Model,
    judge: Judge,
    image: WorkingImage,
    label: str | None,
    number: int,
    object_HW: Tensor | None,
) -> list[Row]:
    """The numbers of every map of one picture."""
    result = judge.occluder.run(image, label=label)
    kept = [p for p in result.targets if label is None or p.index == int(label)]
    result = replace(result, targets=tuple(kept))
    gradient, panel = result.measured.gradient, result.panels[0]
    answers = judge.ask(result)
    assert gradient is not None  # noqa: S101 (the networks have one)
    cam = gradient.maps[panel.target]
    maps = dict(zip(GOOD, (panel.map_HW, cam, agreement(panel.map_HW, cam)), strict=True))
    if object_HW is None or number // 2 % 3 == 0:
        maps |= bad_maps(model, result, number)
    cards = {name: judge.of_map(answers, m, panel.target) for name, m in maps.items()}
    hits = {
        n: object_HW is None or compare(m, object_HW).pointing_game_hit for n, m in maps.items()
    }
    return [
        components(card)
        | {"kind": name, "hit": bool(hits[name]), "verdict": card.verdict, "trust": card.trust}
        for name, card in cards.items()
    ]


def pictures(
    assets: Path, boxes: Path, network: str, half: int, limit: int
) -> Iterator[tuple[str, Model, Judge, WorkingImage, str | None, int, Tensor | None]]:
    """Name, network, image, class, number and object of the pictures of one half."""
    if network == PHOTOGRAPHS:
        model = load_model("squeezenet1_1", checkpoint=assets / "weights" / "squeezenet1_1.pth")
        outlines = read_outlines(str(boxes / "truth.json"))
        entries = json.loads((boxes / "truth.json").read_text(encoding="utf-8"))
        judge = Judge.of(model, TrustSpec())
        for number, name in list(enumerate(sorted(entries)))[half::2][:limit]:
            image = read_image(boxes / name, model.preprocess)
            object_HW = outline_mask(outlines.for_image(str(boxes / name)), image)
            yield name, model, judge, image, str(entries[name]["label"]), number, object_HW
        return
    model = load_model()
    if network in RESNETS:
        checkpoint, make = assets / "weights" / RESNETS[network], network.lower().replace("-", "")
        model = load_model(f"{FACTORY}:{make}", checkpoint=checkpoint, size=32, **NORM)  # type: ignore[arg-type]
    judge = Judge.of(model, TrustSpec())
    images = np.load(assets / "cifar10" / "cifar10_lossless_4000train_1000test.npz")["x_test"]
    for number in range(half, 2 * min(SMALL, limit), 2):
        pixels = torch.from_numpy(images[number]).permute(2, 0, 1).float() / 255
        image = WorkingImage(str(number), pixels, (0, 0, 32, 32), (32, 32))
        yield str(number), model, judge, image, None, number, None


def measure(assets: Path, boxes: Path, keep: Path, halves: list[int], limit: int) -> list[Row]:
    """Every map of every picture; what the folder has is not measured again."""
    found: list[Row] = []
    for network in NETWORKS:
        for half in halves:
            for name, *picture in pictures(assets, boxes, network, half, limit):
                path = keep / f"{network} {name}.json"
                if not path.exists():
                    path.write_text(json.dumps(rows(*picture)), encoding="utf-8")
                extra = {"network": network, "picture": name, "half": half}
                found += [row | extra for row in json.loads(path.read_text(encoding="utf-8"))]
    return found


def _area(good: Sequence[float], bad: Sequence[float]) -> float:
    """The area under the curve; NaN if there are none of one kind, as with few pictures."""
    if not len(good) or not len(bad):
        return float("nan")
    return float(roc_auc_score([1] * len(good) + [0] * len(bad), [*good, *bad]))


def fit(found: list[Row]) -> None:
    """Prints the weights, and how well they do in cross-validation."""
    found = [row for row in found if row["network"] in FITTED]
    x = np.array([[row[name] for name in WEIGHTS] for row in found])
    x, deviations = x / x.std(0), x.std(0)
    good, hit = np.array([(r["kind"] in GOOD, r["hit"]) for r in found]).T
    networks, weights = np.array([row["network"] for row in found]), np.zeros(len(found))
    for network in FITTED:
        own, share = networks == network, 1.0 if network == PHOTOGRAPHS else 0.4
        for part, weight in ((good & hit, 1.0), (good & ~hit, 0.25), (~good, 1.0)):
            weights[own & part] = weight * share / max((own & part).sum(), 1)
    y, weights = good & hit, weights * len(found) / weights.sum()
    groups = [f"{row['network']} {row['picture']}" for row in found]
    scores, model = np.zeros(len(found)), LogisticRegression(max_iter=3000)
    folds = GroupKFold(min(10, len(set(groups))), shuffle=True, random_state=0)
    for train, test in folds.split(x, y, groups):
        model.fit(x[train], y[train], sample_weight=weights[train])
        scores[test] = model.predict_proba(x[test])[:, 1]
    maps = (networks == PHOTOGRAPHS) & good
    print(f"hits against misses {_area(scores[maps & hit], scores[maps & ~hit]):.3f}")
    for network in FITTED:
        own = networks == network
        print(f"{network}: good against bad {_area(scores[own & good], scores[own & ~good]):.3f}")
    model.fit(x, y, sample_weight=weights)
    weights_by_name = dict(
        zip(WEIGHTS, (model.coef_[0] / deviations).round(2).tolist(), strict=True)
    )
    print(weights_by_name, f"offset {float(model.intercept_[0]):.2f}")


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = (header, ["---"] * len(header), *lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in rows)


def _areas(rows: list[Row]) -> list[str]:
    """By number, by word, and by number for each kind of bad map."""
    order = list(Verdict)
    good, bad = ([r for r in rows if (r["kind"] in GOOD) is wanted] for wanted in (True, False))
    words = [[float(order.index(Verdict(r["verdict"]))) for r in part] for part in (good, bad)]
    numbers = [r["trust"] for r in good]
    kinds = dict.fromkeys(r["kind"] for r in bad)
    each = [_area(numbers, [r["trust"] for r in bad if r["kind"] == kind]) for kind in kinds]
    total = _area(numbers, [r["trust"] for r in bad])
    return [f"{area:.3f}" for area in (total, _area(*words), *each)]


def report(found: list[Row]) -> str:
    """Tables, as Markdown."""
    areas, verdicts, believed = [], [], []
    for (half, index), network in itertools.product(HALVES.items(), NETWORKS):
        rows = [r for r in found if r["half"] == index and r["network"] == network]
        if not rows:
            continue
        areas.append([network, half, *_areas(rows)])
        for kind in (dict.fromkeys(r["kind"] for r in rows)) if network == PHOTOGRAPHS else ():
            own = [r["verdict"] for r in rows if r["kind"] == kind]
            shares = [f"{100 * own.count(verdict) / len(own):.0f} %" for verdict in Verdict]
            verdicts.append([kind, half, str(len(own)), *shares])
        for kinds in ([(kind,) for kind in GOOD] + [GOOD]) if network == PHOTOGRAPHS else ():
            own = [r for r in rows if r["kind"] in kinds]
            hits, misses = ([r for r in own if r["hit"] is wanted] for wanted in (True, False))
            counts = [
                f"{sum(r['verdict'] == Verdict.BELIEVE for r in some)} of {len(some)}"
                for some in (hits, misses)
            ]
            area = _area([r["trust"] for r in hits], [r["trust"] for r in misses])
            believed.append([", ".join(kinds), half, *counts, f"{area:.3f}"])
    bad = [kind for kind in dict.fromkeys(r["kind"] for r in found) if kind not in GOOD]
    parts = [
        "Area under the curve, good maps against bad ones (each kind by the number):",
        _table(["network", "pictures", "number", "word", *bad], areas),
        "Verdicts on the photographs:",
        _table(["map", "pictures", "maps", *Verdict], verdicts),
        "Believed, where the peak hits the object and where it misses:",
        _table(["map", "pictures", "of hits", "of misses", "area of the number"], believed),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Prints the tables, and puts them into a page."""
    parser = argparse.ArgumentParser(description="does the verdict tell good maps from bad ones?")
    parser.add_argument("assets", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder for what was measured")
    parser.add_argument("--half", choices=[*HALVES], help="measure this half only")
    parser.add_argument(
        "--limit", type=int, default=10**6, help="pictures of each network and half"
    )
    parser.add_argument("--fit", action="store_true", help="print weights from the chosen half")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    halves = [HALVES[options.half]] if options.half else [*HALVES.values()]
    boxes = options.truth / "imagenet_val_boxes"
    found = measure(options.assets, boxes, options.keep, halves, options.limit)
    if options.fit:
        fit([row for row in found if row["half"] == 0])
    tables = report(found)
    print(f"\n{tables}")
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        head, _, rest = page.partition(START)
        _old, _, tail = rest.partition(END)
        options.page.write_text(f"{head}{START}\n{tables}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
