"""The scorecards of `--trust`: what is asked of a picture beside the map, and by whom."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cnnviz.cli.tracer import Tracer
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.replaced import replaced_logits
from cnnviz.core.errors import CheckFailed
from cnnviz.core.maps import rank_correlation
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import last_layers, rerandomised
from cnnviz.gradients.choices import Method as GradientMethod
from cnnviz.occlusion.agreement import Gradient
from cnnviz.occlusion.choices import Border, OcclusionSpec
from cnnviz.occlusion.experiment import Occluder, OcclusionResult
from cnnviz.occlusion.fills import fill_picture
from cnnviz.occlusion.maps import pixel_map, position_values
from cnnviz.occlusion.masks import Grid, inside_boxes, mask_grid
from cnnviz.trust.choices import Least, Verdict, is_below
from cnnviz.trust.removal import Order, Remover, gain
from cnnviz.trust.scorecard import Scorecard, Witnesses, scorecard, verdict_line

if TYPE_CHECKING:
    from cnnviz.gradients.choices import SaliencySpec
    from cnnviz.trust.choices import TrustSpec

SMALLER, LARGER = 5 / 7, 1.5  # masks of the variants, of the first mask's sides
OTHER_CLASSES, OTHER_GRADIENTS = 10, 3
OTHER_FILL = {"blur": "mean"}  # for anything else, the blur
Method = Callable[[WorkingImage, Sequence[int]], Mapping[int, Tensor]]
"""A method's maps (H, W) of some classes of a picture, by class index."""


@dataclass(frozen=True, eq=False)
class Asked:
    """One picture's answers, for whatever class.

    Attributes:
        image: the picture.
        result: of occlusion.
        remover: what removal is run with.
        random_logits: of the removal of maps that know nothing.
        variants: other sizes and fills: their grids and logits (P, K).
        tiles_LK: logits with each tile of the picture covered.
        large_PK: with each of the large masks.
        covered_K: with all of it covered.
        forgotten: logits (K,) of the picture and (P, K) with each of the large masks, with the
            network's last layers random; None where it has no layers.
    """

    image: WorkingImage
    result: OcclusionResult
    remover: Remover
    random_logits: list[dict[Order, Tensor]]
    variants: dict[str, tuple[Grid, Tensor]]
    tiles_LK: Tensor
    large_PK: Tensor
    covered_K: Tensor
    forgotten: tuple[Tensor, Tensor] | None


class Scorecards:
    """Judges maps of one picture after the other."""

    def __init__(self, model: Model, spec: OcclusionSpec, occluder: Occluder) -> None:
        """Lays the grids.

        Args:
            model: borrowed.
            spec: of the occlusion that maps are held against.
            occluder: of that spec; it has been run on a picture before that is judged.
        """
        self._model, self._spec, self._occluder = model, spec, occluder
        size, first = model.input_size, occluder.grids[0]
        small, large = (_scaled(first.mask, times, size) for times in (SMALLER, LARGER))
        self._tiles = mask_grid(size, small, min(small), Border.COVER)
        self._large = mask_grid(size, large, max(1, min(large) // 2), Border.COVER)
        sparse = max(2 * first.stride, 3 * min(first.mask) // 4)
        self._sparse = mask_grid(size, first.mask, sparse, Border.COVER)
        self._all = mask_grid(size, size, max(size), Border.COVER)
        self._fill = OTHER_FILL.get(spec.fill, "blur")
        self._layers = last_layers(model)

    def of_result(self, result: OcclusionResult) -> list[Scorecard]:
        """A scorecard for each panel of what the occluder has just said of a picture."""
        asked, gradient = self.ask(result), result.measured.gradient
        return [self._of_occlusion(asked, number, gradient) for number in range(len(result.maps))]

    def ask(self, result: OcclusionResult) -> Asked:
        """Runs what serves every class of a picture.

        Raises:
            CnnvizError: a score is not finite.
        """
        spec, occluder, image = self._spec, self._occluder, result.measured.image
        base_K = result.measured.base_logits_K
        remover = Remover(self._model, image, base_K, batch_size=spec.batch_size)
        grids = (self._tiles, self._large, self._all)
        tiles_LK, large_PK, covered_1K = occluder.again(image, grids, spec.fill)
        (sparse_PK,) = occluder.again(image, (self._sparse,), self._fill)
        return Asked(
            image=image,
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
            forgotten=self._forgotten(image),
        )

    def _forgotten(self, image: WorkingImage) -> tuple[Tensor, Tensor] | None:
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

    def _of_occlusion(self, asked: Asked, number: int, gradient: Gradient | None) -> Scorecard:
        """Of a panel's map: occlusion's, or its agreement with the gradient.

        What is asked about the method is asked of occlusion, also where its agreement is shown.
        """
        result, measured = asked.result, asked.result.measured
        panel, target = result.panels[number], result.panels[number].target
        size = (panel.map_HW.shape[0], panel.map_HW.shape[1])

        def values(logits_PK: Tensor, of: int = target, base_K: Tensor | None = None) -> Tensor:
            base = measured.base_logits_K if base_K is None else base_K
            return position_values(base, logits_PK, of, result.score, measured.head)

        tiles_L = values(asked.tiles_LK)
        whole = float(values(asked.covered_K[None])[0])
        own_PK = measured.logits_PK[: len(self._occluder.grids[0].boxes_P4)]
        forgotten = None
        if asked.forgotten is not None:
            base_K, logits_PK = asked.forgotten
            forgotten = values(asked.large_PK), values(logits_PK, base_K=base_K)
        others = [values(own_PK, other) for other in self._other_classes(target)]
        return self._made(
            asked,
            result.maps[number],
            target,
            self._others(target, gradient),
            compared_HW=panel.map_HW,
            variants={
                name: pixel_map(values(logits_PK), grid, size, result.upsample)
                for name, (grid, logits_PK) in asked.variants.items()
            },
            randomised=forgotten,
            other_classes=(values(own_PK), others),
            completeness=float(tiles_L.sum()) / whole if whole else None,
        )

    def of_method(
        self, asked: Asked, map_HW: Tensor, target: int, make: Method, gradient: Gradient | None
    ) -> Scorecard:
        """Of a map that a gradient method makes, held against occlusion and another gradient."""
        others = list(make(asked.image, self._other_classes(target, OTHER_GRADIENTS)).values())
        forgotten = None
        if self._layers:
            with rerandomised(self._model, self._layers, self._spec.seed):
                forgotten = map_HW, make(asked.image, [target])[target]
        held_against = self._others(target, _occluded(asked, target), gradient)
        return self._made(
            asked,
            map_HW,
            target,
            held_against,
            randomised=forgotten,
            other_classes=(map_HW, others) if others else None,
        )

    def of_map(
        self, asked: Asked, map_HW: Tensor, target: int, gradient: Gradient | None
    ) -> Scorecard:
        """Of anybody's map, held against occlusion and the gradient."""
        held_against = self._others(target, _occluded(asked, target), gradient)
        return self._made(asked, map_HW, target, held_against)

    def _others(self, target: int, *methods: Gradient | None) -> dict[str, Tensor]:
        """The class's maps by other methods."""
        return {m.name: m.maps[target] for m in methods if m is not None and target in m.maps}

    def _made(
        self,
        asked: Asked,
        map_HW: Tensor,
        target: int,
        others: Mapping[str, Tensor],
        *,
        compared_HW: Tensor | None = None,
        variants: Mapping[str, Tensor] | None = None,
        **witnessed: Any,
    ) -> Scorecard:
        remover = asked.remover
        own_HW = map_HW if compared_HW is None else compared_HW
        witnesses = Witnesses(
            others=others,
            agreement={name: rank_correlation(own_HW, other) for name, other in others.items()},
            other_gains={
                name: gain(remover.curves(other, target)) for name, other in others.items()
            },
            variants=variants or {},
            **witnessed,
        )
        random_gains = remover.random_gains(asked.random_logits, target)
        return scorecard(map_HW, remover.curves(map_HW, target), random_gains, witnesses)

    def _other_classes(self, target: int, count: int = OTHER_CLASSES) -> list[int]:
        """Some classes by chance, without that one."""
        generator = torch.Generator().manual_seed(self._spec.seed)
        shuffled = torch.randperm(self._model.classes, generator=generator).tolist()
        return [index for index in shuffled if index != target][:count]


class Bench:
    """Judges maps that are not of occlusion: it runs what they are held against first."""

    def __init__(
        self,
        model: Model,
        spec: "SaliencySpec | TrustSpec",
        *,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        """Sets the occlusion and the gradient up.

        Args:
            model: borrowed.
            spec: for the classes, and the place of a dense output.
            seed: of all that is random.
            batch_size: pictures at a time; None for automatic.
        """
        own = OcclusionSpec(
            targets=spec.targets,
            at=spec.at,
            inside=spec.inside,
            seed=seed,
            batch_size=batch_size,
        )
        self.occluder = Occluder(model, own, Tracer(model, own, lambda _note: None))
        self.cards = Scorecards(model, own, self.occluder)

    def judge(
        self,
        result: OcclusionResult,
        maps: Mapping[int, Tensor],
        make: Method | None = None,
        method: str = "",
    ) -> list[Scorecard]:
        """A scorecard for each class's map.

        Args:
            result: what `occluder` has just said of the picture.
            maps: (H, W) by class index.
            make: the gradient method that made them; None for anybody's maps.
            method: its name.
        """
        asked, gradient = self.cards.ask(result), result.measured.gradient
        if method == GradientMethod.GRAD_CAM:
            gradient = None  # it would agree with itself
        if make is None:
            return [self.cards.of_map(asked, m, target, gradient) for target, m in maps.items()]
        return [
            self.cards.of_method(asked, map_HW, target, make, gradient)
            for target, map_HW in maps.items()
        ]

    def judge_occlusion(self, result: OcclusionResult) -> list[Scorecard]:
        """A scorecard for each panel."""
        return self.cards.of_result(result)


def _occluded(asked: Asked, target: int) -> Gradient:
    """Occlusion's map of the class, as another method's."""
    panel = next(p for p in asked.result.panels if p.target == target)
    return Gradient("occlusion", {target: panel.map_HW})


def check(entries: Iterable[Mapping[str, Any]], least: Least | None) -> None:
    """Ends the run with status 3 where an image's verdict is worse than is asked for.

    Args:
        entries: of the summary, one an image.
        least: what is asked for; None for nothing.

    Raises:
        CheckFailed: it is.
    """
    if least is None:
        return
    cards = [(entry["image"], asked_first(entry)["trust"]) for entry in entries]
    low = [(path, card) for path, card in cards if is_below(Verdict(card["verdict"]), least)]
    if low:
        said = {path: verdict_line(card["verdict"], card["reasons"]) for path, card in low}
        path = low[0][0]
        raise CheckFailed(
            f"the maps of {len(low)} of {len(cards)} images are worse than --min-trust {least}; "
            f"the first is '{path}': {said[path]}",
            said,
        )


def asked_first(entry: Mapping[str, Any]) -> Any:
    """The target that checks look at: of the true class if there is one, else the first."""
    targets = entry["targets"]
    asked = entry["label"]["index"] if "label" in entry else targets[0]["index"]
    return next(target for target in targets if target["index"] == asked)


def _scaled(mask: tuple[int, int], times: float, size: tuple[int, int]) -> tuple[int, int]:
    rows, columns = (
        min(most, max(1, round(times * side))) for side, most in zip(mask, size, strict=True)
    )
    return rows, columns
