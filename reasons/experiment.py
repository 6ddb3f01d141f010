"""The reasons for the classes of an image: regions, parts, pairs of cells, and filters."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.errors import UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.masks import inside_boxes
from cnnviz.occlusion.options import OcclusionSpec
from cnnviz.occlusion.results import OcclusionResult, Panel
from cnnviz.occlusion.sufficient import Search, check_shares
from cnnviz.reasons.carriers import NoEffect, ablations, carriers, patched_layers
from cnnviz.reasons.interactions import Interacting
from cnnviz.reasons.options import Question, ReasonsSpec
from cnnviz.reasons.regions import find_regions
from cnnviz.reasons.results import Carriers, ClassReasons, Interactions, ReasonsResult
from cnnviz.reasons.segments import Parts, check_segments, parts_of
from cnnviz.reasons.shapley import shapley_of

_log = logging.getLogger("cnnviz")


class Reasoner:
    """A study set up once for a model and run on any number of images."""

    def __init__(self, model: Model, spec: ReasonsSpec) -> None:
        """Checks the spec and prepares the occlusion."""
        check_shares(model.head, "reasons")
        check_segments(spec.segments)
        rows, columns = model.input_size
        if spec.region is not None and (spec.region[2] > rows or spec.region[3] > columns):
            raise UsageError(
                f"--region {','.join(map(str, spec.region))} is outside the working image of "
                f"{rows}x{columns} pixels"
            )
        self._model, self._fast, self._spec = model, fast(model), spec
        self._layouts = {}
        if Question.FILTERS not in spec.skip:
            self._layouts = patched_layers(model, spec.layers)
        self._occlusion = OcclusionSpec(
            targets=spec.targets,
            fill=spec.fill,
            at=spec.at,
            inside=spec.inside,
            batch_size=spec.batch_size,
            seed=spec.seed,
        )
        self.occluder = Occluder(model, self._occlusion)
        self._pairs: Interacting | None = None
        if Question.PAIRS not in spec.skip:
            self._pairs = Interacting(
                model, grid=spec.grid, fill=spec.fill, batch_size=spec.batch_size, seed=spec.seed
            )
        patched = 2 * len(ablations(self._layouts, spec.group)) * len(spec.targets)
        pairs = self._pairs.positions if self._pairs else 0
        self.steps = self.occluder.positions + pairs + patched  # of the others nobody knows

    def run(
        self, image: WorkingImage, progress: Callable[[int], None] = lambda _steps: None
    ) -> ReasonsResult:
        """Studies one image; progress is called with the number of passes just done."""
        spec = self._spec
        parts = parts_of(image, spec.segments, spec.parts) if spec.segments else None
        result = self.occluder.run(image, progress=progress)
        panels = result.targets
        pairs: Sequence[Interactions | None] = [None] * len(panels)
        if self._pairs is not None:
            pairs = self._pairs.run(image, [panel.index for panel in panels], progress)
        targets = tuple(
            replace(self._target(result, panel, parts, progress), interactions=interactions)
            for panel, interactions in zip(panels, pairs, strict=True)
        )
        return ReasonsResult(
            image=image.path,
            prediction=result.prediction,
            top5=result.top5,
            fill=spec.fill,
            targets=targets,
            occlusion=result,
        )

    def _target(
        self,
        result: OcclusionResult,
        panel: Panel,
        parts: Parts | None,
        progress: Callable[[int], None],
    ) -> ClassReasons:
        measured, spec = result.measured, self._spec
        carried = self._carriers(result, panel, progress) if self._layouts else None
        search = Search(
            *(self._fast, measured, panel, self._occlusion, spec.cell, spec.hold),
            engine=self.occluder.engine,
            progress=progress,
        )
        fields = class_fields(measured, panel.index, panel.reading)
        found = find_regions(search, fields, spec.most)
        if parts is not None:

            def game(kept_NP: Tensor) -> Tensor:
                return search.log_odds(len(kept_NP), lambda part: kept_NP[part][:, parts.labels_HW])

            shapley = shapley_of(game, parts, spec.permutations, spec.seed)
            found = replace(found, shapley=shapley)
        return replace(found, carriers=carried)

    def _carriers(
        self, result: OcclusionResult, panel: Panel, progress: Callable[[int], None]
    ) -> Carriers | None:
        """The filters that carry a region; None, with a note, where it has no effect."""
        image, spec = result.measured.image, self._spec
        box_14 = torch.tensor([spec.region or panel.max_drop_box])
        try:
            found = carriers(
                self._model,
                image,
                inside_boxes(box_14, result.measured.size)[0],
                panel.index,
                self._layouts,
                fill=spec.fill,
                group=spec.group,
                seed=spec.seed,
                progress=progress,
            )
        except NoEffect as reason:
            _log.warning("note: %s, %s: %s", image.path, panel.class_, reason)
            return None
        if found.reason:
            _log.warning(
                "note: each filter took two passes of the whole network, since %s; --group and "
                "--layer need fewer, and --skip filters none",
                found.reason,
            )
        return found


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
