"""The reasons for the classes of an image: regions first, then what is asked about them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.options import OcclusionSpec
from cnnviz.occlusion.results import OcclusionResult, Panel
from cnnviz.occlusion.sufficient import Search, check_shares
from cnnviz.reasons.options import ReasonsSpec
from cnnviz.reasons.regions import find_regions
from cnnviz.reasons.results import ClassReasons, ReasonsResult
from cnnviz.reasons.segments import Parts, check_segments, parts_of
from cnnviz.reasons.shapley import shapley_of


class Reasoner:
    """A study set up once for a model and run on any number of images."""

    def __init__(self, model: Model, spec: ReasonsSpec) -> None:
        """Checks the spec and prepares the occlusion."""
        check_shares(model.head, "reasons")
        check_segments(spec.segments)
        self._fast, self._spec = fast(model), spec
        self._occlusion = OcclusionSpec(
            targets=spec.targets,
            fill=spec.fill,
            at=spec.at,
            inside=spec.inside,
            batch_size=spec.batch_size,
            seed=spec.seed,
        )
        self.occluder = Occluder(model, self._occlusion)

    def run(
        self, image: WorkingImage, progress: Callable[[int], None] = lambda _steps: None
    ) -> ReasonsResult:
        """Studies one image."""
        spec = self._spec
        parts = parts_of(image, spec.segments, spec.parts) if spec.segments else None
        result = self.occluder.run(image, progress=progress)
        return ReasonsResult(
            image=image.path,
            prediction=result.prediction,
            top5=result.top5,
            fill=spec.fill,
            targets=tuple(self._target(result, panel, parts) for panel in result.targets),
            occlusion=result,
        )

    def _target(self, result: OcclusionResult, panel: Panel, parts: Parts | None) -> ClassReasons:
        measured, spec = result.measured, self._spec
        search = Search(self._fast, measured, panel, self._occlusion, spec.cell, spec.hold)
        fields = class_fields(measured, panel.index, panel.reading)
        found = find_regions(search, fields, spec.most)
        if parts is None:
            return found

        def game(kept_NP: Tensor) -> Tensor:
            return search.log_odds(len(kept_NP), lambda part: kept_NP[part][:, parts.labels_HW])

        shapley = shapley_of(game, parts, spec.permutations, spec.seed)
        return replace(found, shapley=shapley)


def reasons(
    model: Model, image: WorkingImage | str | Path, spec: ReasonsSpec | None = None
) -> ReasonsResult:
    """Finds the reasons that a network has for the classes of an image.

    Args:
        model: from `cnnviz.core.load_model`.
        image: a file, or a working image of the model's input size.
        spec: what to do; None for the defaults.

    Raises:
        UsageError: something in the spec does not exist or does not fit the model.
        CnnvizError: the file cannot be read, or the network's scores are not finite.
    """
    working = image if isinstance(image, WorkingImage) else read_image(image, model.preprocess)
    return Reasoner(model, spec or ReasonsSpec()).run(working)
