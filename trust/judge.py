"""Judges the maps of an image: runs the checks that a scorecard combines.

A map is compared with four others of the same class: occlusion by masks of other sizes and another
fill, what windows show on their own, Grad-CAM and gradient x input. Which ones these are depends on
the network alone, not on the run's masks, fill or score: the same map gets the same verdict however
it was made. Most of the runs serve every class of an image (`Answers`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from cnnviz.core.choices import pair_of
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.errors import CnnvizError
from cnnviz.core.lazy import torchvision
from cnnviz.core.maps import positive_part
from cnnviz.core.models.boxes import Boxes, BoxReading
from cnnviz.core.models.heads import Kind
from cnnviz.core.models.load import Model
from cnnviz.core.models.targets import RegionReading
from cnnviz.core.models.variants import fast
from cnnviz.core.output.judged import Scorecard
from cnnviz.gradients.experiment import default_layer, saliency
from cnnviz.gradients.options import Method, SaliencySpec
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.maps import pixel_map, position_values
from cnnviz.occlusion.masks import Grid, fill_picture, inside_boxes, mask_grid, masks_and_stride
from cnnviz.occlusion.measurement import Gradient, Measurement
from cnnviz.occlusion.options import Border, MapKind, OcclusionSpec, Score, Upsample
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.trust.options import TrustSpec
from cnnviz.trust.removal import Order, Remover
from cnnviz.trust.scorecard import Evidence, certain, scorecard

SMALLER, LARGER = 5 / 7, 1.5  # masks of the witness, of the default mask's sides
OTHER_CLASSES = 10
SMOOTHED = 14  # gradient x input is blurred by a deviation of this part of the shorter side


class GradCam:
    """Grad-CAM of the classes that occlusion explains, where the network allows it.

    Where it does not, a note says so once, unless the agreement is what is drawn.
    """

    def __init__(self, model: Model, spec: OcclusionSpec, note: Callable[[str], None]) -> None:
        """Looks for a layer; raises CnnvizError if the agreement is drawn, and there is none."""
        self._model, self._spec, self._note = model, spec, note
        self._works = True
        try:
            if isinstance(model.target, Boxes):
                raise CnnvizError("Grad-CAM is not computed for boxes")
            default_layer(model)
        except CnnvizError as error:
            self._give_up(error)

    def _give_up(self, error: CnnvizError) -> None:
        if self._spec.method is MapKind.AGREEMENT:
            raise error
        self._works = False
        self._note(f"no agreement.png: {error}")

    def __call__(self, image: WorkingImage, targets: Sequence[int]) -> Gradient | None:
        """Its maps, with their name; None where the network has none."""
        if not self._works:
            return None
        at, inside = self._spec.at, self._spec.inside
        spec = SaliencySpec(method=Method.GRAD_CAM, at=at, inside=inside)
        try:
            result = saliency(self._model, image, spec, classes=targets)
        except CnnvizError as error:
            self._give_up(error)
            return None
        maps = {entry.index: entry.map_HW for entry in result.targets}
        name = f"Grad-CAM at {result.layer}"
        if not any(bool(map_HW.any()) for map_HW in maps.values()):
            self._note(f"{name} is zero everywhere on '{image.path}'; agreement.png shows nothing")
        return Gradient(name, maps)


@dataclass(frozen=True, eq=False)
class Answers:
    """Scores of one image that serve every class.

    `variants` are grids and logits (P, K) of occlusion with other sizes and another fill; `kept`
    the grid of windows and the logits with all but each window replaced; `covered_K` those of the
    replaced image.
    """

    measured: Measurement
    remover: Remover
    random_logits: list[list[tuple[str, Order, Tensor]]]
    variants: tuple[tuple[Grid, Tensor], ...]
    kept: tuple[Grid, Tensor]
    covered_K: Tensor
    gradients: tuple[Gradient, ...]

    def _drops(self, logits_PK: Tensor, target: int, base_K: Tensor | None = None) -> Tensor:
        base_K = self.measured.base_logits_K if base_K is None else base_K
        head = self.measured.head
        score = Score.LOG_ODDS if head.has_classes else Score.PROBABILITY
        return position_values(base_K, logits_PK, target, score, head)

    def occluded(self, target: int) -> list[Tensor]:
        """(H, W) by each of the variants: what occlusion reports for a class."""
        return [
            pixel_map(self._drops(logits_PK, target), grid, self.measured.size, Upsample.DENSITY)
            for grid, logits_PK in self.variants
        ]

    def own(self, target: int) -> Tensor:
        """The mean of their positive parts (H, W)."""
        return torch.stack([positive_part(map_HW) for map_HW in self.occluded(target)]).mean(0)

    def witnesses(self, target: int) -> dict[str, Tensor]:
        """Maps (H, W) of a class by methods of their own, by name."""
        grid, logits_PK = self.kept
        gained_P = -self._drops(logits_PK, target, self.covered_K)
        found = {
            "occlusion": self.own(target),
            "windows alone": pixel_map(gained_P, grid, self.measured.size, Upsample.DENSITY),
        }
        return found | {g.name: g.maps[target] for g in self.gradients if target in g.maps}

    def effect(self, target: int) -> tuple[float, float | None]:
        """The largest drop of the score, and the largest share of the probability."""
        head = self.measured.head
        logits_PK = torch.cat([logits_PK for _grid, logits_PK in self.variants])
        largest = max(float(self._drops(logits_PK, target).max()), 0.0)
        if not head.has_classes:
            return largest, None
        before = float(head.readings(self.measured.base_logits_K)[target])
        after = float(head.readings(logits_PK)[:, target].min())
        return largest, max(1 - after / before, 0.0) if before > 0 else 0.0

    def standing(self, target: int) -> tuple[float | None, bool]:
        """The class's probability, and whether it is predicted."""
        head, base_K = self.measured.head, self.measured.base_logits_K
        if not head.has_classes:
            return None, True
        probability = float(head.readings(base_K)[target])
        if isinstance(self.measured.reading, RegionReading):
            return probability, bool(self.measured.reading.shares_K[target] > 0)
        if head.kind is Kind.SIGMOID:
            return probability, bool(head.holds(base_K)[target])
        return probability, int(base_K.argmax()) == target


class Judge:
    """Judges maps of one image after the other."""

    def __init__(self, model: Model, spec: OcclusionSpec, occluder: Occluder) -> None:
        """Lays the grids of the witnesses.

        The occluder is of that spec; run it on an image before the image is judged.
        """
        self._model, self._spec, self.occluder = model, spec, occluder
        self._fast = fast(model)
        size = model.input_size
        (mask,), stride = masks_and_stride(size, (), None)
        small, large = (_scaled(mask, times, size) for times in (SMALLER, LARGER))
        sparse = max(2 * max(pair_of(stride)), 3 * min(mask) // 4)
        self._grids = [
            mask_grid(size, small, min(small), Border.COVER),
            mask_grid(size, large, max(1, min(large) // 2), Border.COVER),
            mask_grid(size, mask, sparse, Border.COVER),
        ]
        self._windows = mask_grid(size, large, max(1, min(mask) // 2), Border.COVER)

    @classmethod
    def of(
        cls,
        model: Model,
        spec: SaliencySpec | TrustSpec,
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> Self:
        """Sets up the occlusion and the gradient that maps are compared with.

        The spec is read for the classes, and for the place of a dense output.
        """
        at, inside = spec.at, spec.inside
        occlusion = OcclusionSpec(
            targets=spec.targets, at=at, inside=inside, seed=seed, batch_size=batch_size
        )
        grad_cam = GradCam(model, occlusion, lambda _note: None)
        return cls(model, occlusion, Occluder(model, occlusion, grad_cam))

    def of_occlusion(self, result: OcclusionResult) -> list[Scorecard]:
        """Judges each panel's map: occlusion's, or its agreement with the gradient."""
        answers = self.ask(result)
        cards = []
        for panel, map_HW in zip(result.targets, result.maps, strict=True):
            variants = [map_HW, *answers.occluded(panel.index)]
            cards.append(self.of_map(answers, map_HW, panel.index, certain(variants)))
        return cards

    def of_maps(self, result: OcclusionResult, maps: Mapping[int, Tensor]) -> list[Scorecard]:
        """Judges a map (H, W) of each class, by class index; see `of_occlusion`."""
        answers = self.ask(result)
        return [self.of_map(answers, map_HW, target) for target, map_HW in maps.items()]

    def of_map(
        self, answers: Answers, map_HW: Tensor, target: int, certain_HW: Tensor | None = None
    ) -> Scorecard:
        """Judges a map of a class."""
        remover = answers.remover
        effect, effect_share = answers.effect(target)
        probability, predicted = answers.standing(target)
        evidence = Evidence(
            witnesses=answers.witnesses(target),
            own=answers.own(target),
            other_classes=[
                answers.own(other) for other in self._other_classes(answers.measured, target)
            ],
            effect=effect,
            effect_share=effect_share,
            probability=probability,
            predicted=predicted,
            certain_HW=certain_HW,
        )
        random_gains = remover.random_gains(answers.random_logits, target)
        curves = remover.curves(map_HW, target)
        lead = remover.lead(map_HW, curves, target)
        return scorecard(map_HW, curves, lead, random_gains, evidence)

    def ask(self, result: OcclusionResult) -> Answers:
        """Runs what serves every class of an image."""
        spec, occluder, image = self._spec, self.occluder, result.measured.image
        base_K, size = result.measured.base_logits_K, self._model.input_size
        small, large, middle = self._grids
        whole = mask_grid(size, size, max(size), Border.COVER)
        small_PK, large_PK, covered_1K = occluder.again(image, (small, large, whole), "mean")
        (middle_PK,) = occluder.again(image, (middle,), "blur")
        mean = fill_picture("mean", image.pixels, self._model.preprocess)
        boxes_P4 = self._windows.boxes_P4
        kept_PK = replaced_logits(
            self._fast,
            image,
            mean,
            len(boxes_P4),
            lambda part: inside_boxes(boxes_P4[part], size),
            batch_size=spec.batch_size,
        )
        remover = Remover(self._fast, image, base_K, batch_size=spec.batch_size)
        targets = list(dict.fromkeys(panel.index for panel in result.targets))
        return Answers(
            measured=result.measured,
            remover=remover,
            random_logits=remover.random_logits(spec.seed),
            variants=((small, small_PK), (large, large_PK), (middle, middle_PK)),
            kept=(self._windows, kept_PK),
            covered_K=covered_1K[0],
            gradients=self._gradients(result.measured, targets),
        )

    def _gradients(self, measured: Measurement, targets: Sequence[int]) -> tuple[Gradient, ...]:
        """Grad-CAM and gradient x input of the classes, where the network allows them."""
        found = [] if measured.gradient is None else [measured.gradient]
        method = Method.GRADIENT_X_INPUT
        spec = SaliencySpec(method=method, at=self._spec.at, inside=self._spec.inside)
        try:
            traced = saliency(self._model, measured.image, spec, classes=targets)
        except CnnvizError:
            return tuple(found)
        maps = {entry.index: _smooth(entry.map_HW) for entry in traced.targets}
        return (*found, Gradient("gradient x input, blurred", maps))

    def _other_classes(self, measured: Measurement, target: int) -> list[int]:
        """Some random classes, or boxes, without that one."""
        boxes = measured.reading
        classes = len(boxes) if isinstance(boxes, BoxReading) else self._model.classes
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(classes, generator=generator).tolist()
        return [index for index in shuffled if index != target][:OTHER_CLASSES]


def _smooth(map_HW: Tensor) -> Tensor:
    """The map blurred, as far as it is large enough to blur."""
    shorter = min(map_HW.shape)
    sigma = max(1, shorter // SMOOTHED)
    reach = min(3 * sigma // 2, shorter - 1)
    if reach == 0:
        return map_HW
    transforms = torchvision("transforms.v2.functional")
    blurred: Tensor = transforms.gaussian_blur(
        map_HW[None], [2 * reach + 1] * 2, [float(sigma)] * 2
    )
    return blurred[0]


def _scaled(mask: tuple[int, int], times: float, size: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (
        min(limit, max(1, round(times * side))) for side, limit in zip(mask, size, strict=True)
    )
    return rows, columns
