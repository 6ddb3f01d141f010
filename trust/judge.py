"""Judges the maps of an image: runs the checks that a scorecard combines.

A map is compared with occlusion and Grad-CAM of the same class (`GradCam`), with occlusion by masks
of other sizes and another fill, with maps of other classes, and with the network whose last layers
are random. Most of these runs serve every class of an image (`Answers`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from cnnviz.core.choices import pair_of
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.errors import CnnvizError
from cnnviz.core.maps import rank_correlation
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import last_layers, rerandomised
from cnnviz.core.output.summary import Scorecard
from cnnviz.gradients.experiment import default_layer, saliency
from cnnviz.gradients.options import Method, SaliencySpec
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.maps import pixel_map, position_values
from cnnviz.occlusion.masks import Grid, fill_picture, inside_boxes, mask_grid
from cnnviz.occlusion.measurement import Gradient
from cnnviz.occlusion.options import Border, MapKind, OcclusionSpec
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.trust.options import TrustSpec
from cnnviz.trust.removal import Order, Remover, gain
from cnnviz.trust.scorecard import Evidence, scorecard

SMALLER, LARGER = 5 / 7, 1.5  # masks of the variants, of the first mask's sides
OTHER_CLASSES, OTHER_GRADIENTS = 10, 3
OTHER_FILL = {"blur": "mean"}  # for anything else, the blur
MakeMaps = Callable[[WorkingImage, Sequence[int]], Mapping[int, Tensor]]
"""A method: maps (H, W) of some classes of an image, by class index."""


class GradCam:
    """Grad-CAM of the classes that occlusion explains, where the network allows it.

    Where it does not, a note says so once, unless the agreement is what is drawn.
    """

    def __init__(self, model: Model, spec: OcclusionSpec, note: Callable[[str], None]) -> None:
        """Looks for a layer; raises CnnvizError if the agreement is drawn, and there is none."""
        self._model, self._spec, self._note = model, spec, note
        self._works = True
        try:
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
    """Scores of one image that serve every class: of the result of occlusion, and more.

    `variants` are grids and logits (P, K) of other sizes and fills; `tiles_LK` and `large_PK` the
    logits with each tile or large mask, `covered_K` with all of the image occluded. `randomised`
    are the logits (K,) of the image and (P, K) with each large mask of the network whose last
    layers are random; None if it has no layers.
    """

    result: OcclusionResult
    remover: Remover
    random_logits: list[dict[Order, Tensor]]
    variants: dict[str, tuple[Grid, Tensor]]
    tiles_LK: Tensor
    large_PK: Tensor
    covered_K: Tensor
    randomised: tuple[Tensor, Tensor] | None


class Judge:
    """Judges maps of one image after the other."""

    def __init__(self, model: Model, spec: OcclusionSpec, occluder: Occluder) -> None:
        """Lays the grids of the occlusion that maps are compared with.

        The occluder is of that spec; run it on an image before the image is judged.
        """
        self._model, self._spec, self.occluder = model, spec, occluder
        size, first = model.input_size, occluder.grids[0]
        small, large = (_scaled(first.mask, times, size) for times in (SMALLER, LARGER))
        self._tiles = mask_grid(size, small, min(small), Border.COVER)
        self._large = mask_grid(size, large, max(1, min(large) // 2), Border.COVER)
        sparse = max(2 * max(pair_of(first.stride)), 3 * min(first.mask) // 4)
        self._sparse = mask_grid(size, first.mask, sparse, Border.COVER)
        self._all = mask_grid(size, size, max(size), Border.COVER)
        self._fill = OTHER_FILL.get(spec.fill, "blur")
        self._layers = last_layers(model)

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
        """Judges each panel of the occluder's last result."""
        answers = self.ask(result)
        return [self._of_panel(answers, number) for number in range(len(result.targets))]

    def of_maps(
        self,
        result: OcclusionResult,
        maps: Mapping[int, Tensor],
        make: MakeMaps | None = None,
        method: str = "",
    ) -> list[Scorecard]:
        """Judges a map of each class.

        Args:
            result: the occluder's last result.
            maps: (H, W) by class index.
            make: the gradient method that made them; None for maps from a file.
            method: its name.
        """
        answers, gradient = self.ask(result), result.measured.gradient
        if method == Method.GRAD_CAM:
            gradient = None  # it would agree with itself
        return [
            self.of_map(answers, map_HW, target, gradient, make) for target, map_HW in maps.items()
        ]

    def of_map(
        self,
        answers: Answers,
        map_HW: Tensor,
        target: int,
        gradient: Gradient | None,
        make: MakeMaps | None = None,
    ) -> Scorecard:
        """Compares a map with occlusion and the gradient; see `of_maps`."""
        randomised = other_classes = None
        if make is not None:
            image = answers.result.measured.image
            others = make(image, self._other_classes(target, OTHER_GRADIENTS))
            other_classes = (map_HW, list(others.values())) if others else None
            if self._layers:
                with rerandomised(self._model, self._layers, self._spec.seed):
                    randomised = map_HW, make(image, [target])[target]
        panel = next(p for p in answers.result.targets if p.index == target)
        return self._card(
            answers,
            map_HW,
            target,
            {"occlusion": panel.map_HW, **_maps_of(gradient, target)},
            randomised=randomised,
            other_classes=other_classes,
        )

    def ask(self, result: OcclusionResult) -> Answers:
        """Runs what serves every class of an image."""
        spec, occluder, image = self._spec, self.occluder, result.measured.image
        base_K = result.measured.base_logits_K
        remover = Remover(self._model, image, base_K, batch_size=spec.batch_size)
        grids = (self._tiles, self._large, self._all)
        tiles_LK, large_PK, covered_1K = occluder.again(image, grids, spec.fill)
        (sparse_PK,) = occluder.again(image, (self._sparse,), self._fill)
        return Answers(
            result=result,
            remover=remover,
            random_logits=remover.random_logits(spec.seed),
            variants={
                f"{self._fill} fill": (self._sparse, sparse_PK),
                f"mask {self._tiles.name}": (self._tiles, tiles_LK),
                f"mask {self._large.name}": (self._large, large_PK),
            },
            tiles_LK=tiles_LK,
            large_PK=large_PK,
            covered_K=covered_1K[0],
            randomised=self._randomised(image),
        )

    def _randomised(self, image: WorkingImage) -> tuple[Tensor, Tensor] | None:
        """Logits (K,) and (P, K) of the large masks with the last layers random."""
        if not self._layers:
            return None
        model, spec = self._model, self._spec
        fill_CHW = fill_picture(spec.fill, image.pixels, model.preprocess, spec.seed)
        nowhere = torch.zeros(1, 4, dtype=torch.int64)
        boxes = torch.cat([nowhere, self._large.boxes_P4])
        with rerandomised(model, self._layers, spec.seed):
            logits = replaced_logits(
                model,
                image,
                fill_CHW,
                len(boxes),
                lambda part: ~inside_boxes(boxes[part], model.input_size),
                batch_size=spec.batch_size,
            )
        return logits[0], logits[1:]

    def _of_panel(self, answers: Answers, number: int) -> Scorecard:
        """Judges a panel's map: occlusion's, or its agreement with the gradient.

        The checks of the method are those of occlusion, also where its agreement is drawn.
        """
        result, measured = answers.result, answers.result.measured
        panel = result.targets[number]
        target = panel.index

        def values(
            logits_PK: Tensor, class_index: int = target, base_K: Tensor | None = None
        ) -> Tensor:
            base_K = measured.base_logits_K if base_K is None else base_K
            return position_values(base_K, logits_PK, class_index, result.compared, measured.head)

        tiles_L = values(answers.tiles_LK)
        whole = float(values(answers.covered_K[None])[0])
        first_PK = measured.logits_PK[: len(self.occluder.grids[0].boxes_P4)]
        randomised = None
        if answers.randomised is not None:
            base_K, logits_PK = answers.randomised
            randomised = values(answers.large_PK), values(logits_PK, base_K=base_K)
        others = [values(first_PK, other) for other in self._other_classes(target)]
        return self._card(
            answers,
            result.maps[number],
            target,
            _maps_of(measured.gradient, target),
            compared_HW=panel.map_HW,
            variants={
                name: pixel_map(values(logits_PK), grid, measured.size, result.upsample)
                for name, (grid, logits_PK) in answers.variants.items()
            },
            randomised=randomised,
            other_classes=(values(first_PK), others),
            completeness=float(tiles_L.sum()) / whole if whole else None,
        )

    def _card(
        self,
        answers: Answers,
        map_HW: Tensor,
        target: int,
        others: Mapping[str, Tensor],
        *,
        compared_HW: Tensor | None = None,
        variants: Mapping[str, Tensor] | None = None,
        **checks: Any,
    ) -> Scorecard:
        remover, compared_HW = answers.remover, map_HW if compared_HW is None else compared_HW
        evidence = Evidence(
            others=others,
            agreement={name: rank_correlation(compared_HW, m) for name, m in others.items()},
            other_gains={name: gain(remover.curves(m, target)) for name, m in others.items()},
            variants=variants or {},
            **checks,
        )
        random_gains = remover.random_gains(answers.random_logits, target)
        return scorecard(map_HW, remover.curves(map_HW, target), random_gains, evidence)

    def _other_classes(self, target: int, count: int = OTHER_CLASSES) -> list[int]:
        """Some random classes without that one."""
        generator = torch.Generator().manual_seed(self._spec.seed)
        shuffled = torch.randperm(self._model.classes, generator=generator).tolist()
        return [index for index in shuffled if index != target][:count]


def _maps_of(gradient: Gradient | None, target: int) -> dict[str, Tensor]:
    """The class's map by the gradient method, by its name."""
    if gradient is None or target not in gradient.maps:
        return {}
    return {gradient.name: gradient.maps[target]}


def _scaled(mask: tuple[int, int], times: float, size: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (
        min(limit, max(1, round(times * side))) for side, limit in zip(mask, size, strict=True)
    )
    return rows, columns
