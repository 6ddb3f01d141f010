"""`cnnviz saliency`: traces predictions back, and compares the maps with occlusion."""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cnnviz.cli.commands.images import SaliencyCommand
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.choices import decimals, pixels_text
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import Place
from cnnviz.core.errors import UsageError
from cnnviz.core.maps import rank_correlation
from cnnviz.core.models.heads import resolve_targets
from cnnviz.core.models.layers import find_layer, note_repeats
from cnnviz.core.models.load import Model
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.overlays import photograph
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.gradients.experiment import default_layer
from cnnviz.gradients.experiment import saliency as trace_back
from cnnviz.gradients.figures import class_line, draw, draw_comparison
from cnnviz.gradients.options import LAST_CONV, OF_METHODS, SaliencySpec
from cnnviz.gradients.results import Comparison, SaliencyResult
from cnnviz.gradients.rules import RULED, SAMPLED, captum, try_rule
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.options import OcclusionSpec, Score
from cnnviz.trust.figures import Shown
from cnnviz.trust.figures import draw as draw_cards
from cnnviz.trust.judge import Judge
from cnnviz.trust.results import check_verdicts

_log = logging.getLogger("cnnviz")
INPUT, ARRAYS, COMPARISON = "input.png", "saliency.npz", "comparison.png"


def saliency(given: SaliencyCommand) -> None:
    """Runs `cnnviz saliency`."""
    run = ImageRun("saliency", given.output)
    _check(given)
    paths = run.images(given.images, given.shard)
    loaded = run.load(given.model)
    _check_model(loaded, given.spec)
    study = _Study(given, loaded)
    run.note_common(inside=given.spec.inside)
    depends = {
        "options": given.spec,
        "look": given.look,
        "--compare": given.compare,
        "--mask": given.mask,
        "--stride": given.stride,
        "--trust": study.judge is not None,
    }
    run.go(study, loaded, paths, depends, seed=given.model.seed, resume=given.resume)


def _check(given: SaliencyCommand) -> None:
    if given.compare is None and (given.mask is not None or given.stride is not None):
        raise UsageError("--mask and --stride need --compare occlusion, which places masks")
    spec, default = given.spec, SaliencySpec()
    for field, methods in OF_METHODS.items():
        if spec.method not in methods and getattr(spec, field) != getattr(default, field):
            raise UsageError(
                f"--{field} needs --method {' or '.join(methods)}; {spec.method} has none"
            )
    if spec.method in SAMPLED:
        captum(spec.method)


def _check_model(model: Model, spec: SaliencySpec) -> None:
    """Checks the method, the layer, the classes and the place before any image."""
    if spec.method.of_layer:
        layer = default_layer(model) if spec.layer == LAST_CONV else spec.layer
        find_layer(model.module, layer, model.name)
        note_repeats(model, [layer])
    if spec.method in RULED and (note := try_rule(model, spec.method)):
        _log.warning("note: %s", note)
    resolve_targets(spec.targets, torch.zeros(model.classes), model.labels, model.head)
    Place(model, spec.at, spec.inside)


class _Study(ImageStudy[SaliencyResult, SaliencyResult]):
    """Traces an image's prediction back, and compares the maps with occlusion on request."""

    kind = SaliencyResult
    work, title = "computing gradients", "Saliency"

    def __init__(self, given: SaliencyCommand, model: Model) -> None:
        self._given, self._model, self._spec = given, model, given.spec
        self._other = self.judge = None
        if given.compare:
            spec = OcclusionSpec(
                masks=(given.mask,) if given.mask else (),
                stride=given.stride,
                targets=given.spec.targets,
                at=given.spec.at,
                inside=given.spec.inside,
                score=Score.LOGIT,  # whose gradient the map shows
                batch_size=given.model.batch_size,
                seed=given.model.seed,
            )
            self._other = Occluder(model, spec)
            self.steps += self._other.positions
            self.show = COMPARISON
        if given.trust or given.min_trust:
            model_options = given.model
            self.judge = Judge.of(
                model, given.spec, seed=model_options.seed, batch_size=model_options.batch_size
            )
        p = "p" if model.head.has_classes else "value"
        self.columns = ("image", "class", p, "method", "peak (y, x)", "rank correlation")
        if self.judge:
            self.columns = (*self.columns, "verdict")
        self.arrays, self.photo, self.look = ARRAYS, INPUT, given.look
        self.unit = given.spec.method.unit
        if given.min_trust is not None:
            self.checks = [partial(check_verdicts, minimum=given.min_trust)]

    def one(
        self,
        image: WorkingImage,
        path: str,  # noqa: ARG002
        advance: Advance,
    ) -> SaliencyResult:
        result = trace_back(self._model, image, self._spec)
        if self._other is not None:
            result = self._compared(result, self._other, advance)
        if self.judge is None:
            return result

        maps = {entry.index: entry.map_HW for entry in result.targets}
        occluded = self.judge.occluder.run(image)
        cards = self.judge.of_maps(occluded, maps)
        pairs = zip(result.targets, cards, strict=True)
        return replace(result, targets=tuple(replace(entry, trust=card) for entry, card in pairs))

    def _compared(
        self, result: SaliencyResult, other: Occluder, advance: Advance
    ) -> SaliencyResult:
        start = time.perf_counter()
        trace_back(self._model, result.working, self._spec)  # again: the first run also warms up
        middle = time.perf_counter()
        occluded = other.run(result.working, progress=advance)
        seconds = round(middle - start, 4), round(time.perf_counter() - middle, 4)
        grid = occluded.targets[0].grid
        targets = [
            replace(
                entry,
                comparison=Comparison(
                    with_=f"occlusion, mask {grid.name}, stride {pixels_text(grid.stride)}",
                    rank_correlation=rank_correlation(entry.map_HW, panel.map_HW),
                    seconds=seconds[0],
                    other_seconds=seconds[1],
                    other_unit="drop of the logit when occluded",
                    other_HW=panel.map_HW,
                ),
            )
            for entry, panel in zip(result.targets, occluded.targets, strict=True)
        ]
        return replace(result, targets=tuple(targets))

    def entry(self, result: SaliencyResult) -> SaliencyResult:
        return result

    def files(self, result: SaliencyResult, folder: RunFolder) -> None:
        look = self._given.look
        shown = [
            Shown(class_line(result, entry), entry.map_HW, entry.trust)
            for entry in result.targets
            if entry.trust is not None
        ]
        figures = draw(result, look, [judged.verdict for judged in shown])
        if shown:
            beneath, has_classes = photograph(result.working), result.head.has_classes
            figures |= draw_cards(shown, look, result.unit, beneath, has_classes)
        if self._other is not None:
            figures[COMPARISON] = draw_comparison(result, look)
        folder.write_image(INPUT, image_pixels(result.working))
        for name, figure in figures.items():
            folder.write_figure(name, figure)
        folder.write_npz(
            ARRAYS,
            logits=result.logits_K.numpy(),
            targets=np.array([entry.index for entry in result.targets]),
            raw=np.stack([entry.raw.numpy() for entry in result.targets]),
            maps=np.stack([entry.map_HW.numpy() for entry in result.targets]),
        )

    def line(self, entry: SaliencyResult) -> str:
        first = entry.targets[0]
        return f"{Path(entry.image).name}\n{first.class_}\n{self._model.head.text(first.reading)}"

    def rows(self, entry: SaliencyResult) -> Iterator[tuple[object, ...]]:
        for target in entry.targets:
            compared = target.comparison.rank_correlation if target.comparison else None
            yield (
                Path(entry.image).name,
                target.class_,
                f"{target.value:.4g}"
                if target.probability is None
                else decimals(target.probability),
                entry.method + (f" at {entry.layer}" if entry.layer else ""),
                "{}, {}".format(*target.peak) if target.peak else "-",
                "-" if compared is None else f"{compared:.2f}",
                *((target.trust.verdict,) if target.trust else ()),
            )
