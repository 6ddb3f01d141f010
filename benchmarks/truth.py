"""Do maps point at the object? Maps of every method, on one network, on the same pictures.

    python benchmarks/truth.py ASSETS TRUTH [--slow N] [--keep FOLDER] [--page FILE]

ASSETS holds `weights/squeezenet1_1.pth` and `photos/imagenet/`, TRUTH `imagenet_val_boxes/` with
`truth.json` (boxes and the class of each picture). `--keep` stores what needed the network, so that
a second run only evaluates. Two tests:

- **pointing**: where is the object of the photograph in the map of its true class?
- **grid pointing** (Bohle et al. 2021, "Convolutional Dynamic Alignment Networks"): four pictures
  that the network recognises (p > 0.9) make one of twice the side; a map of each one's class should
  lie in its quarter, which is known by construction. Chance is 0.25.

Measures: *hit*, the peak is on the object; *5 % inside*, the share of the strongest 5 % of the
pixels that is (equal values share it); *AUC*, how well the map ranks the object's pixels above the
others; *energy*, the share of the positive part that is on the object. Contrast changes energy
alone: the rows "to the power" are the same maps with the size of every value raised to a power.

Each map is held against Grad-CAM on the same pictures: means of paired differences, with 95 %
intervals from 10,000 resamplings of the pictures. With `--page`, all tables of docs/truth.md are
written: those of verdicts by `trust.py`, which keeps its measurements in `FOLDER/verdicts`.

How the agreement map is chosen (written down before the candidates were computed):

- Candidates: the geometric mean, the mean or the minimum of the positive parts of the occlusion map
  (64/16, density; log-odds, logit or loss) and of Grad-CAM (of the logit or of the log-odds), each
  divided by its maximum or by the 99 % quantile of its pixels. All are reported.
- A candidate is out if it hits fewer than 0.97 of the mosaics' quarters, or if its hits, the
  strongest 5 % inside or the AUC on photographs are significantly below those of Grad-CAM.
- The others are ranked by the sum of their hits, strongest 5 % inside and AUC on photographs. Of
  those whose sum is not significantly below the best one's (paired, 95 %), the simplest is taken:
  one of the default score, then of the Grad-CAM of the logit, then normalised by the maximum, then
  the combination in the order geometric mean, minimum, mean (the first is what was used before).
- A gain is claimed for the chosen one only in a measure whose interval excludes zero. The same
  pictures have served to choose before: such a claim waits for other pictures.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.maps import agreement
from cnnviz.core.models.heads import Head
from cnnviz.core.models.load import Model
from cnnviz.gradients.experiment import saliency
from cnnviz.gradients.options import LAST_CONV, Method, SaliencySpec
from cnnviz.occlusion import OcclusionSpec
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.maps import class_scores, judge, pixel_map
from cnnviz.occlusion.masks import mask_grid
from cnnviz.occlusion.options import Border, Score, Upsample

Maps = dict[str, Tensor]
Maker = Callable[[WorkingImage, list[int]], Iterator[Maps]]
"""What needs the network, for each of the classes: maps, or (one-dimensional) scores."""
Found = dict[str, list[tuple[float, ...]]]
"""The measures of every map, picture after picture."""
SIDE = 224
ALL = tuple(itertools.product(Score, (Upsample.DENSITY, Upsample.COVERAGE)))
FEW = ((Score.LOG_ODDS, Upsample.DENSITY), (Score.PROBABILITY, Upsample.COVERAGE))
SIZES = {(64, 16): ALL, (45, 22): FEW}
"""(mask, stride) on a side of 224 pixels, and which maps; on a larger picture they grow with it.

45/22 with probability and coverage is `--preset classic`.
"""
REFERENCE, PARTNER, OTHER = "Grad-CAM", "Grad-CAM", "Grad-CAM of the log-odds"
TITLES = {
    Method.GRAD_CAM: REFERENCE,
    Method.GRAD_CAM_PP: "Grad-CAM++",
    Method.LAYERCAM: "LayerCAM",
    Method.SCORE_CAM: "Score-CAM",
    Method.SMOOTHGRAD: "SmoothGrad",
}
BLOCK = "features.12"
"""The last block of SqueezeNet. At its last convolution each class has one map, and all CAMs of it
but Score-CAM are the same."""
Traced = tuple[Method, str]
GRADIENTS: tuple[Traced, ...] = (
    (Method.GRADIENT, LAST_CONV),
    (Method.GRADIENT_X_INPUT, LAST_CONV),
    (Method.GRAD_CAM, LAST_CONV),
)
METHODS: dict[str, tuple[Traced, ...]] = {
    "gradients": GRADIENTS,
    "methods": (
        (Method.GUIDED_BACKPROP, LAST_CONV),
        (Method.DECONVOLUTION, LAST_CONV),
        *((method, BLOCK) for method in (Method.GRAD_CAM, Method.GRAD_CAM_PP, Method.LAYERCAM)),
    ),
    "integrated": ((Method.INTEGRATED_GRADIENTS, LAST_CONV),),
    "smoothgrad": ((Method.SMOOTHGRAD, LAST_CONV),),
    "score-cam": ((Method.SCORE_CAM, BLOCK),),
}
SLOW = ("integrated", "smoothgrad", "score-cam")
DEFAULT_SCORE = Score.LOG_ODDS
DEFAULT = f"occlusion 64/16 {DEFAULT_SCORE} density"
AGREEMENT = f"agreement of {DEFAULT.removeprefix('occlusion ')} and {PARTNER}"
MEASURES = ("hit", "5 % inside", "AUC", "energy")
TOP = 0.05
POWERS = (0.5, 2.0)
HOW = {"geometric mean": 0, "minimum": 1, "mean": 2}
NORMS = {"maximum": 1.0, "99 % quantile": 0.99}
COMBINED = (Score.LOG_ODDS, Score.LOGIT, Score.LOSS)
LEAST_GRID = 0.97
RESAMPLED = 10_000
SURE = 0.9
END = "<!-- end -->"


class Occlusions:
    """Occlusion's scores at every position of one mask and stride."""

    def __init__(self, model: Model, mask: int, stride: int) -> None:
        larger = min(model.input_size) // SIDE
        spec = OcclusionSpec(masks=((mask * larger,) * 2,), stride=stride * larger)
        self.name, self.occluder = f"{mask}/{stride}", Occluder(model, spec)

    def __call__(self, image: WorkingImage, targets: list[int]) -> Iterator[Maps]:
        """Scores of the original, then of each position, under `SCORE MASK/STRIDE`."""
        run = self.occluder.run(image).measured
        both_PK = torch.cat([run.base_logits_K[None], run.logits_PK])
        scores = {score: class_scores(both_PK, score) for score in Score}
        scores[Score.LOSS] *= -1  # a rise of it is a drop of log p
        for target in targets:
            yield {f"{score} {self.name}": s_PK[:, target] for score, s_PK in scores.items()}


class Gradients:
    """Maps of some methods of `saliency`, each at a layer."""

    def __init__(self, model: Model, traced: Sequence[Traced]) -> None:
        self.model, self.traced = model, traced
        self.odds = replace(model, head=Head(probabilities_given=True))  # its logits are log-odds

    def __call__(self, image: WorkingImage, targets: list[int]) -> Iterator[Maps]:
        """The maps for each of the targets; with Grad-CAM, that of the log-odds, too."""
        maps = {}
        for method, layer in self.traced:
            spec = SaliencySpec(method, layer)
            maps[_name(method, layer)] = _traced(self.model, image, spec, targets)
        if REFERENCE in maps:
            maps[OTHER] = _traced(self.odds, image, SaliencySpec(Method.GRAD_CAM), targets)
        for target in targets:
            yield {name: of_targets[target] for name, of_targets in maps.items()}


def _name(method: Method, layer: str) -> str:
    return TITLES.get(method, method.value) + ("" if layer == LAST_CONV else f" at {layer}")


def _traced(
    model: Model, image: WorkingImage, spec: SaliencySpec, targets: list[int]
) -> dict[int, Tensor]:
    """The map of each target; together, since Score-CAM's passes serve all of them."""
    result = saliency(model, image, spec, classes=targets)
    return {entry.index: entry.map_HW for entry in result.maps}


class Source:
    """Makes the maps of pictures; what needed the network is kept in a folder, if there is one."""

    def __init__(self, makers: Mapping[str, Maker], keep: Path | None) -> None:
        self.makers, self.keep = makers, keep

    def __call__(
        self, name: str, image: WorkingImage, targets: list[int], slow: bool = False
    ) -> Iterator[Maps]:
        """All maps of each class; those of slow methods only if it is asked for."""
        size = (int(image.pixels.shape[1]), int(image.pixels.shape[2]))
        parts = [
            self._raw(f"{kind}_{name}", make, image, targets)
            for kind, make in self.makers.items()
            if slow or kind not in SLOW
        ]
        for raw_of_makers in zip(*parts, strict=True):
            raw = {key: values for part in raw_of_makers for key, values in part.items()}
            yield _maps(raw, size)

    def _raw(self, name: str, make: Maker, image: WorkingImage, targets: list[int]) -> list[Maps]:
        path = None if self.keep is None else self.keep / f"{name}.npz"
        if path is not None and path.exists():
            with np.load(path) as file:
                found: list[Maps] = [{} for _ in targets]
                for key in file:
                    number, _, map_name = key.partition(" ")
                    found[int(number)][map_name] = torch.from_numpy(file[key])
            return found
        found = [
            {key.replace("/", "|"): m for key, m in raw.items()} for raw in make(image, targets)
        ]
        if path is not None:
            arrays = {f"{n} {k}": v.numpy() for n, raw in enumerate(found) for k, v in raw.items()}
            np.savez(path, **arrays)  # names of archives have no /
        return found


def _maps(raw: Maps, size: tuple[int, int]) -> Maps:
    """The maps of one class of one picture, by name."""
    maps: Maps = {}
    for (mask, stride), kinds in SIZES.items():
        larger = min(size) // SIDE
        grid = mask_grid(size, (mask * larger,) * 2, stride * larger, Border.COVER)
        for score, upsample in kinds:
            scores = raw[f"{score} {mask}|{stride}"]
            name = f"occlusion {mask}/{stride} {score} {upsample}"
            maps[name] = pixel_map(scores[0] - scores[1:], grid, size, upsample)
    maps |= {name: values for name, values in raw.items() if values.ndim == 2}
    maps["centre of the picture"] = _centre(size)
    maps[AGREEMENT] = agreement(maps[DEFAULT], maps[PARTNER])
    for name, power in itertools.product((REFERENCE, DEFAULT, AGREEMENT), POWERS):
        values = maps[name].double()
        maps[f"{name}, to the power {power:g}"] = values.sign() * values.abs() ** power
    for score, partner in itertools.product(COMBINED, (PARTNER, OTHER)):
        pair = (maps[f"occlusion 64/16 {score} density"], maps[partner])
        for norm, quantile in NORMS.items():
            both = torch.stack([_normalised(map_HW, quantile) for map_HW in pair])
            for how in HOW:
                maps[_candidate(how, score, partner, norm)] = _combined(both, how)
    return maps


def _candidate(how: str, score: Score, partner: str, norm: str) -> str:
    return f"{how} of {score} and {partner}, by the {norm}"


def _normalised(map_HW: Tensor, quantile: float) -> Tensor:
    """Its positive part, 1 at that quantile of its pixels."""
    positive = map_HW.double().clamp(min=0)
    limit = float(np.quantile(positive.numpy(), quantile))
    return positive / (limit if limit > 0 else max(float(positive.max()), 1e-12))


def _combined(both_2HW: Tensor, how: str) -> Tensor:
    if how == "minimum":
        return both_2HW.amin(0)
    return both_2HW.mean(0) if how == "mean" else both_2HW.prod(0).sqrt()


def _centre(size: tuple[int, int]) -> Tensor:
    """A hill in the middle: what knowing nothing but where photographers aim gives."""
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-2 * (y[:, None] ** 2 + x[None, :] ** 2))


def measures(map_HW: Tensor, object_HW: Tensor) -> tuple[float, ...]:
    """Computes `MEASURES`; a map without positive values misses and has no energy."""
    judged, inside = judge(map_HW, object_HW), object_HW.numpy().ravel()
    values = map_HW.double().numpy().ravel()
    count = round(TOP * values.size)
    limit = np.partition(values, -count)[-count]
    above, equal = values > limit, values == limit
    strongest = inside[above].sum() + (count - above.sum()) * inside[equal].mean()
    on, off = int(inside.sum()), int((~inside).sum())
    auc = (rankdata(values)[inside].sum() - on * (on + 1) / 2) / (on * off)
    hit, energy = judged.pointing_game_hit, judged.inside or 0.0
    return (
        float(bool(hit)),
        float(strongest / count),
        float(auc),
        energy if hit is not None else 0.0,
    )


def _note(found: Found, maps: Maps, object_HW: Tensor) -> None:
    for name, map_HW in maps.items():
        found.setdefault(name, []).append(measures(map_HW, object_HW))


def pointing(model: Model, source: Source, place: Path, limit: int, slow: int = 0) -> Found:
    """The measures of every map on each picture with boxes; `slow`: pictures of slow methods."""
    outlines = read_outlines(str(place / "truth.json"))
    entries = json.loads((place / "truth.json").read_text(encoding="utf-8"))
    labels = {name: entry["label"] for name, entry in entries.items()}
    found: Found = {}
    for number, name in enumerate(sorted(labels)[:limit]):
        image = read_image(place / name, model.preprocess)
        object_HW = outline_mask(outlines.for_image(str(place / name)), image)
        for maps in source(Path(name).stem, image, [int(labels[name])], number < slow):
            _note(found, maps, object_HW)
        if (number + 1) % 20 == 0:
            print(f"pointing: {number + 1} pictures", flush=True)
    return found


def recognised(model: Model, folders: list[Path]) -> Iterator[tuple[int, Tensor]]:
    """Class and pixels of the pictures that the network is sure of; one for each class."""
    seen = set()
    for path in sorted(path for folder in folders for path in folder.glob("*.[jJ][pP]*")):
        image = read_image(path, model.preprocess)
        with torch.no_grad():
            chances_K = model.logits(model.preprocess.normalise(image.pixels)[None]).softmax(1)[0]
        best = int(chances_K.argmax())
        if float(chances_K[best]) > SURE and best not in seen:
            seen.add(best)
            yield best, image.pixels


def grid_pointing(
    source: Source, pictures: Iterator[tuple[int, Tensor]], limit: int, slow: int = 0
) -> Found:
    """The measures of every map of each quarter of 2x2 mosaics; `slow`: mosaics of slow methods."""
    found: Found = {}
    for number in range(limit):
        four = list(itertools.islice(pictures, 4))
        if len(four) < 4:
            break
        targets = [target for target, _pixels in four]
        rows = [torch.cat([four[i][1], four[i + 1][1]], 2) for i in (0, 2)]
        mosaic = torch.cat(rows, 1)
        image = WorkingImage("mosaic", mosaic, (0, 0, 2 * SIDE, 2 * SIDE), (2 * SIDE, 2 * SIDE))
        for quarter, maps in enumerate(source(f"mosaic{number}", image, targets, number < slow)):
            inside = torch.zeros(2 * SIDE, 2 * SIDE, dtype=torch.bool)
            top, left = SIDE * (quarter // 2), SIDE * (quarter % 2)
            inside[top : top + SIDE, left : left + SIDE] = True
            _note(found, maps, inside)
        print(f"grid pointing: mosaic {number + 1}", flush=True)
    return found


def _bounds(values_N: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over resampled pictures."""
    random = np.random.default_rng(0)
    picked = random.integers(0, len(values_N), (RESAMPLED, len(values_N)))
    low, high = np.percentile(values_N[picked].mean(1), [2.5, 97.5])
    return float(low), float(high)


def _row(found: Found, name: str) -> list[str]:
    """Name, number of maps, measures, and the differences of the first three to the reference."""
    values_N4 = np.array(found[name])
    difference_N4 = values_N4 - np.array(found[REFERENCE])[: len(values_N4)]
    against = [""] * 3
    if name != REFERENCE:
        against = [
            f"{d.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            for d in difference_N4.T[:3]
            for low, high in [_bounds(d)]
        ]
    return [name, str(len(values_N4)), *(f"{m:.3f}" for m in values_N4.mean(0)), *against]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rule = ["---"] * len(rows[0])
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def table(found: Found, names: Sequence[str]) -> str:
    """A row for each of the maps, as Markdown."""
    header = ["map", "maps", *MEASURES, *(f"{m} − {REFERENCE}" for m in MEASURES[:3])]
    return _table([header, *(_row(found, name) for name in names)])


def candidates_in_order() -> list[tuple[str, tuple[int, ...]]]:
    """The candidates of the agreement map, and how far each is from the simplest one."""
    candidates = []
    for how, score, partner, norm in itertools.product(HOW, COMBINED, (PARTNER, OTHER), NORMS):
        far = (score is not DEFAULT_SCORE, partner != PARTNER, norm != "maximum", HOW[how])
        candidates.append((_candidate(how, score, partner, norm), tuple(map(int, far))))
    return candidates


def choice(photographs: Found, mosaics: Found) -> tuple[str, str]:
    """The table of the candidates, and a sentence that names the one the rule takes."""
    header = ["candidate", "maps", *MEASURES, *(f"{m} − {REFERENCE}" for m in MEASURES[:3])]
    rows, sums, reference_N4 = [], {}, np.array(photographs[REFERENCE])
    for name, far in candidates_in_order():
        values_N4, grid = np.array(photographs[name]), np.array(mosaics[name])[:, 0].mean()
        worse = any(_bounds(d)[1] < 0 for d in (values_N4 - reference_N4).T[:3])
        sum_N = values_N4[:, :3].sum(1)
        if grid >= LEAST_GRID and not worse:
            sums[name] = (sum_N, far)
        state = f"{grid:.3f}", f"{sum_N.mean():.3f}", "yes" if name in sums else "out"
        rows.append([*_row(photographs, name), *state])
    if not sums:
        return _table([[*header, "mosaics: hit", "sum", "kept"], *rows]), "No candidate is kept."
    best = max(sums, key=lambda name: float(sums[name][0].mean()))
    close = [name for name in sums if _bounds(sums[name][0] - sums[best][0])[1] >= 0]
    chosen = min(close, key=lambda name: sums[name][1])
    said = (
        f"Kept: {len(sums)} of {len(rows)}. Largest sum: {best}. Not significantly below it: "
        f"{len(close)}. The rule takes: **{chosen}**."
    )
    return _table([[*header, "mosaics: hit", "sum", "kept"], *rows]), said


def tables(assets: Path, boxes: Path, options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """The tables of maps and those of the methods of `saliency`, by their name in the page."""
    model, large = (_model(assets, side) for side in (SIDE, 2 * SIDE))

    def source(model: Model, methods: Mapping[str, Sequence[Traced]]) -> Source:
        occlusions = {f"{mask}-{step}": Occlusions(model, mask, step) for mask, step in SIZES}
        gradients = {name: Gradients(model, traced) for name, traced in methods.items()}
        return Source(occlusions | gradients, options.keep)

    pictures = recognised(model, [assets / "photos" / "imagenet", boxes])
    mosaics = grid_pointing(source(large, METHODS), pictures, options.limit, options.slow // 4)
    photographs = pointing(model, source(model, METHODS), boxes, options.limit, options.slow)
    candidates, chosen = choice(photographs, mosaics)
    traced = [_name(*one) for some in METHODS.values() for one in some]
    of_methods = [name for name in photographs if name in (*traced, OTHER)]
    left_out = {*dict(candidates_in_order()), *traced} - {_name(*one) for one in GRADIENTS}
    of_maps = [name for name in mosaics if name not in left_out]
    yield (
        "maps",
        f"### Pointing\n\n{table(photographs, of_maps)}\n\n"
        f"### Grid pointing\n\n{table(mosaics, of_maps)}\n\n"
        f"### Candidates of the agreement map\n\n{chosen}\n\n{candidates}",
    )
    yield (
        "methods",
        f"### Methods of saliency\n\n{table(photographs, of_methods)}\n\n"
        f"### Methods of saliency on mosaics\n\n{table(mosaics, of_methods)}",
    )


def _model(assets: Path, side: int) -> Model:
    weights = assets / "weights" / "squeezenet1_1.pth"
    return load_model("squeezenet1_1", checkpoint=weights, size=side)


def main() -> None:
    """Prints the tables, and puts them into a page."""
    parser = argparse.ArgumentParser(description="do maps point at the object?")
    parser.add_argument("assets", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--limit", type=int, default=10**6, help="pictures, and mosaics")
    parser.add_argument(
        "--slow",
        type=int,
        default=0,
        help=f"photographs for {', '.join(SLOW)}, and 4 x the mosaics",
    )
    parser.add_argument("--keep", type=Path, help="folder for what needed the network")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    for name, body in tables(options.assets, options.truth / "imagenet_val_boxes", options):
        print(f"\n{body}", flush=True)
        if options.page:
            page = options.page.read_text(encoding="utf-8")
            head, start, rest = page.partition(f"<!-- {name}: written by benchmarks/truth.py -->")
            tail = rest.partition(END)[2]
            options.page.write_text(f"{head}{start}\n{body}\n{END}{tail}", encoding="utf-8")
    if options.page:
        with tempfile.TemporaryDirectory() as folder:
            kept = options.keep / "verdicts" if options.keep else folder
            line = [sys.executable, Path(__file__).with_name("trust.py"), options.assets]
            line += [options.truth, "--keep", kept, "--page", options.page, "--half", "held-out"]
            line += ["--limit", str(options.limit)]
            subprocess.run(line, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
