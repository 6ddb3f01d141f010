"""Do maps point at the object? Ours and the peers', on one network, on the same pictures.

    python benchmarks/truth.py ASSETS TRUTH [--limit N] [--peers] [--slow N] [--page FILE]

ASSETS holds `weights/squeezenet1_1.pth` and `photos/imagenet/`, TRUTH `imagenet_val_boxes/` with
`truth.json` (boxes and the class of each picture). Two tests:

- **pointing**: is the peak of the true class's map on the object (hit), and which share of the
  map's positive part is (energy)?
- **grid pointing** (Bohle et al. 2021, "Convolutional Dynamic Alignment Networks"): four pictures
  that the network recognises (p > 0.9) make one of twice the side; a map of each one's class should
  lie in its quarter, which is known by construction. Chance is 0.25.

Each map is held against Grad-CAM on the same pictures: means of paired differences, with 95 %
intervals from 10,000 resamplings of the pictures.

How the agreement map is chosen (written down before the candidates were computed):

- Candidates: the geometric mean, the mean or the minimum of the positive parts of the occlusion map
  (64/16, density; log-odds, logit or loss) and of Grad-CAM (of the logit or of the log-odds), each
  divided by its maximum or by the 99 % quantile of its pixels. All are reported.
- A candidate is out if it hits fewer than 0.97 of the mosaics' quarters, or if its hits, the
  strongest 5 % inside or the AUC on photographs are significantly below those of Grad-CAM.
- The others are ranked by the sum of their hits, strongest 5 % inside and AUC on photographs. Of
  those whose sum is not significantly below the best one's (paired, 95 %), the simplest is taken: one
  of the default score, then of the Grad-CAM of the logit, then normalised by the maximum, then the
  combination in the order geometric mean, minimum, mean (the first is what was used before).
- A gain is claimed for the chosen one only in a measure whose interval excludes zero. The same
  pictures have served to choose before: such a claim waits for other pictures.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.models.layers import find_layer
from cnnviz.core.models.load import Model
from cnnviz.gradients.experiment import default_layer, saliency
from cnnviz.gradients.options import Method, SaliencySpec
from cnnviz.occlusion import OcclusionSpec
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.maps import judge, pixel_map, position_values
from cnnviz.occlusion.options import Score, Upsample

Maps = dict[str, Tensor]
Maker = Callable[[WorkingImage, list[int]], Iterator[Maps]]
SIDE = 224
REFERENCE = "Grad-CAM"
CLASSIC = (15, 10)
SIZES = (CLASSIC, (45, 22), (63, 16), (90, 22))
"""(mask, stride) on a side of 224 pixels; on a larger picture they grow with it."""
RESAMPLED = 10_000
SURE = 0.9
RISE_MASKS = 1000
START, END = "<!-- written by benchmarks/truth.py -->", "<!-- end -->"


def _maps_of(mask: int, stride: int, score: Score, upsample: Upsample) -> str:
    return f"occlusion {mask}/{stride} {score} {upsample}"


class Ours:
    """Our maps of one class of one picture, by name."""

    def __init__(self, model: Model) -> None:
        self.model = model
        larger = min(model.input_size) // SIDE
        self.occluders = {
            (mask, stride): Occluder(
                model,
                OcclusionSpec(masks=((mask * larger,) * 2,), stride=stride * larger),
            )
            for mask, stride in SIZES
        }

    def __call__(self, image: WorkingImage, targets: list[int]) -> Iterator[Maps]:
        """The maps for each of the targets."""
        size = (int(image.pixels.shape[1]), int(image.pixels.shape[2]))
        runs = {key: occluder.run(image).measured for key, occluder in self.occluders.items()}
        for target in targets:
            maps: Maps = {}
            for mask, stride in SIZES:
                run = runs[mask, stride]
                for score in Score:
                    values_P = position_values(run.base_logits_K, run.logits_PK, target, score)
                    for upsample in (Upsample.COVERAGE, Upsample.DENSITY):
                        name = _maps_of(mask, stride, score, upsample)
                        maps[name] = pixel_map(values_P, run.grids[0], size, upsample)
            for method in Method:
                spec = SaliencySpec(method=method, targets=(str(target),))
                name = REFERENCE if method is Method.GRAD_CAM else method.value
                maps[name] = saliency(self.model, image, spec).maps[0].map_HW.cpu()
            for mask, stride in SIZES[1:]:
                best = maps[_maps_of(mask, stride, Score.LOSS, Upsample.DENSITY)]
                both = (_positive(best) * _positive(maps[REFERENCE])).sqrt()
                maps[f"agreement of {mask}/{stride} loss density and {REFERENCE}"] = both
            maps["centre of the picture"] = _centre(size)
            yield maps


class Peers:
    """Captum's and pytorch-grad-cam's maps."""

    def __init__(self, model: Model) -> None:
        from captum.attr import IntegratedGradients, Occlusion
        from pytorch_grad_cam import GradCAM, HiResCAM, LayerCAM

        self.model = model
        self.gradients, self.occlusion = (
            kind(model.module) for kind in (IntegratedGradients, Occlusion)
        )
        layer = find_layer(model.module, default_layer(model), model.name)
        self.cams = {
            f"pytorch-grad-cam {kind.__name__}": kind(model=model.module, target_layers=[layer])
            for kind in (GradCAM, LayerCAM, HiResCAM)
        }

    def __call__(self, image: WorkingImage, targets: list[int]) -> Iterator[Maps]:
        """The maps for each of the targets."""
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        pixels = self.model.preprocess.normalise(image.pixels)[None]
        larger = min(self.model.input_size) // SIDE
        for target in targets:
            integrated = self.gradients.attribute(
                pixels, target=target, n_steps=50, internal_batch_size=10
            )
            covered = self.occlusion.attribute(
                pixels,
                sliding_window_shapes=(3, 45 * larger, 45 * larger),
                strides=(3, 22 * larger, 22 * larger),
                target=target,
                perturbations_per_eval=8,
            )
            found = {
                "Captum IntegratedGradients": integrated[0].sum(0).detach().float(),
                "Captum Occlusion 45/22, logit": covered[0].sum(0).detach().float(),
            }
            for name, cam in self.cams.items():
                map_HW = cam(input_tensor=pixels, targets=[ClassifierOutputTarget(target)])[0]
                found[name] = torch.from_numpy(map_HW).float()
            yield found


class SlowPeers:
    """What takes hundreds of passes a map: Score-CAM, and RISE as its paper has it."""

    def __init__(self, model: Model) -> None:
        from pytorch_grad_cam import ScoreCAM

        self.model = model
        self.cam = ScoreCAM(model=model.module, target_layers=[model.module.features[-1]])
        self.cam.batch_size = 16

    def __call__(self, image: WorkingImage, targets: list[int]) -> Iterator[Maps]:
        """The maps for each of the targets."""
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        pixels = self.model.preprocess.normalise(image.pixels)[None]
        random = torch.Generator().manual_seed(0)
        height, width = pixels.shape[-2:]
        sums_KHW = torch.zeros(len(targets), height, width)
        for _ in range(RISE_MASKS // 20):
            masks = torch.stack([self._mask(height, width, random) for _ in range(20)])
            with torch.no_grad():
                scores_NK = self.model.logits(pixels * masks[:, None]).softmax(1)[:, targets]
            sums_KHW += torch.einsum("nk,nhw->khw", scores_NK, masks)
        for number, target in enumerate(targets):
            score_cam = self.cam(input_tensor=pixels, targets=[ClassifierOutputTarget(target)])[0]
            yield {
                "pytorch-grad-cam ScoreCAM (features)": torch.from_numpy(score_cam).float(),
                f"RISE, {RISE_MASKS} masks": sums_KHW[number] / (RISE_MASKS / 2),
            }

    def _mask(self, height: int, width: int, random: torch.Generator) -> Tensor:
        """(H, W): 7x7 cells, kept by a coin, enlarged smoothly and shifted by part of a cell."""
        cells, (y, x) = 7, (-(-height // 7), -(-width // 7))
        kept = (torch.rand(1, 1, cells + 1, cells + 1, generator=random) < 0.5).float()
        size = ((cells + 1) * y, (cells + 1) * x)
        large = functional.interpolate(kept, size, mode="bilinear")[0, 0]
        top, left = (int(torch.randint(0, n, (), generator=random)) for n in (y, x))
        return large[top : top + height, left : left + width]


def _positive(map_HW: Tensor) -> Tensor:
    """Its positive part, 1 at its largest."""
    positive = map_HW.double().clamp(min=0)
    return positive / positive.max().clamp(min=1e-12)


def _centre(size: tuple[int, int]) -> Tensor:
    """A hill in the middle: what knowing nothing but where photographers aim gives."""
    y, x = (torch.linspace(-1, 1, side) for side in size)
    return torch.exp(-2 * (y[:, None] ** 2 + x[None, :] ** 2))


Found = dict[str, list[tuple[float, float]]]


def _note(found: Found, maps: Maps, object_HW: Tensor) -> None:
    for name, map_HW in maps.items():
        verdict = judge(map_HW, object_HW)
        hit, inside = float(bool(verdict.pointing_game_hit)), verdict.inside or 0.0
        found.setdefault(name, []).append((hit, 0.0 if math.isnan(inside) else inside))


def pointing(model: Model, makers: list[tuple[Maker, int]], place: Path, limit: int) -> Found:
    """(hit, energy) of every map on each picture with boxes; of each maker's, on its first few."""
    outlines = read_outlines(str(place / "truth.json"))
    entries = json.loads((place / "truth.json").read_text(encoding="utf-8"))
    labels = {name: entry["label"] for name, entry in entries.items()}
    found: Found = {}
    for number, name in enumerate(sorted(labels)[:limit], start=1):
        image = read_image(place / name, model.preprocess)
        object_HW = outline_mask(outlines.for_image(str(place / name)), image)
        for make, most in makers:
            for maps in make(image, [int(labels[name])]) if number <= most else ():
                _note(found, maps, object_HW)
        if number % 20 == 0:
            print(f"pointing: {number} pictures", flush=True)
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
    makers: list[tuple[Maker, int]], pictures: Iterator[tuple[int, Tensor]], limit: int
) -> Found:
    """(hit, energy) of every map of each quarter of 2x2 mosaics."""
    found: Found = {}
    for number in range(limit):
        four = list(itertools.islice(pictures, 4))
        if len(four) < 4:
            break
        targets = [target for target, _pixels in four]
        rows = [torch.cat([four[i][1], four[i + 1][1]], 2) for i in (0, 2)]
        mosaic = torch.cat(rows, 1)
        image = WorkingImage("mosaic", mosaic, (0, 0, 2 * SIDE, 2 * SIDE), (2 * SIDE, 2 * SIDE))
        for make, most in makers:
            for quarter, maps in enumerate(make(image, targets) if number < most else ()):
                inside = torch.zeros(2 * SIDE, 2 * SIDE, dtype=torch.bool)
                top, left = SIDE * (quarter // 2), SIDE * (quarter % 2)
                inside[top : top + SIDE, left : left + SIDE] = True
                _note(found, maps, inside)
        print(f"grid pointing: mosaic {number + 1}", flush=True)
    return found


def _interval(values_N: np.ndarray) -> str:
    """Mean and 95 % interval over resampled pictures."""
    random = np.random.default_rng(0)
    picked = random.integers(0, len(values_N), (RESAMPLED, len(values_N)))
    low, high = np.percentile(values_N[picked].mean(1), [2.5, 97.5])
    return f"{values_N.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def table(found: Found) -> str:
    """A row for each map, as Markdown."""
    reference_N2 = np.array(found[REFERENCE])
    lines = [
        f"| map | maps | hit | energy | hit − {REFERENCE} | energy − {REFERENCE} |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in found.items():
        values_N2 = np.array(pairs)
        hit, energy = values_N2.mean(0)
        difference_N2 = values_N2 - reference_N2[: len(values_N2)]
        against = ["", ""] if name == REFERENCE else [_interval(d) for d in difference_N2.T]
        row = [name, str(len(pairs)), f"{hit:.3f}", f"{energy:.3f}", *against]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    """Prints both tables, and puts them into a page."""
    parser = argparse.ArgumentParser(description="do maps point at the object?")
    parser.add_argument("assets", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--limit", type=int, default=10**6, help="pictures, and mosaics")
    parser.add_argument("--peers", action="store_true", help="Captum's and pytorch-grad-cam's too")
    parser.add_argument("--slow", type=int, default=0, help="pictures for Score-CAM and RISE")
    parser.add_argument("--grid-alone", action="store_true", help="grid pointing only")
    parser.add_argument("--page", type=Path, help="a page whose tables are replaced")
    options = parser.parse_args()
    weights = options.assets / "weights" / "squeezenet1_1.pth"
    boxes = options.truth / "imagenet_val_boxes"
    kinds: list[tuple[Callable[[Model], Maker], int]] = [(Ours, options.limit)]
    if options.peers:
        kinds.append((Peers, options.limit))
    if options.slow:
        kinds.append((SlowPeers, options.slow))
    tables = []
    model = load_model("squeezenet1_1", checkpoint=weights)
    if not options.grid_alone:
        found = pointing(model, [(kind(model), most) for kind, most in kinds], boxes, options.limit)
        tables.append(f"Pointing\n\n{table(found)}")
        print(f"\n{tables[0]}\n", flush=True)
    large = load_model("squeezenet1_1", checkpoint=weights, size=2 * SIDE)
    pictures = recognised(model, [options.assets / "photos" / "imagenet", boxes])
    makers = [(kind(large), -(-most // 4)) for kind, most in kinds]
    found = grid_pointing(makers, pictures, options.limit)
    tables.append(f"Grid pointing\n\n{table(found)}")
    print(f"\n{tables[-1]}")
    if options.page:
        page = options.page.read_text(encoding="utf-8")
        head, _, rest = page.partition(START)
        _old, _, tail = rest.partition(END)
        body = "\n\n".join(f"### {text}" for text in tables)
        options.page.write_text(f"{head}{START}\n{body}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
