"""One occlusion experiment end to end: occlude an image piece by piece, keep every score.

The `Measurement` holds all that needed the network: the scores of every class at every position.
Everything else (maps, panels, pictures) is derived from it, so that other classes and scores need
no network (`cnnviz render`).
Method: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.
Shapes: P positions, K classes, H W rows and columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.data.outlines import Place
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.boxes import Boxes, BoxReading
from cnnviz.core.models.heads import Head, Kind, resolve_targets
from cnnviz.core.models.labels import class_index
from cnnviz.core.models.layers import find_layer
from cnnviz.core.models.load import Model
from cnnviz.core.output.summary import ClassRecord, top_records
from cnnviz.occlusion.engines.choose import Engine, Verifier, make_engine
from cnnviz.occlusion.maps import class_scores, make_panels
from cnnviz.occlusion.masks import Grid, check_fill, fill_picture, mask_grid, masks_and_stride
from cnnviz.occlusion.measurement import Activation, Gradient, Measurement
from cnnviz.occlusion.options import (
    FOLDER,
    Border,
    MapKind,
    OcclusionSpec,
    PanelSpec,
    Preset,
    Score,
    Upsample,
)
from cnnviz.occlusion.results import OcclusionResult, Sufficiency
from cnnviz.occlusion.sufficient import check_shares, sufficiency

DEFAULT_SCORES = {
    Kind.SOFTMAX: Score.LOG_ODDS,
    Kind.SIGMOID: Score.LOGIT,  # which is its log-odds
    Kind.NONE: Score.PROBABILITY,  # the value itself
}
Tracer = Callable[[WorkingImage, Sequence[int]], Gradient | None]
"""A gradient method: its maps of some classes of an image; None where it has none."""


class Occluder:
    """An experiment set up once for a model and run on any number of images.

    Attributes:
        grids: where the masks go, one grid per mask.
        score: the score that is compared.
        engine: what runs the occluded images.
        note: a line about the engine that the user should see, or None.
    """

    def __init__(self, model: Model, spec: OcclusionSpec, trace: Tracer | None = None) -> None:
        """Checks the spec and prepares the engine."""
        size = model.input_size
        masks, stride = masks_and_stride(size, spec.masks, spec.stride, spec.preset)
        self._model, self._spec, self._trace = model, spec, trace
        self.score = _shown(spec, model.head)[0]
        self.grids = tuple(mask_grid(size, mask, stride, spec.border) for mask in masks)
        check_fill(spec.fill)
        _check_head(model.head, spec)
        if spec.sufficient:
            check_shares(model.head, "--sufficient")
        boxes = isinstance(model.target, Boxes)
        _check_boxes(boxes, spec, model.name)
        if not boxes:
            resolve_targets(spec.targets, torch.zeros(model.classes), model.labels, model.head)
        if spec.label not in (None, FOLDER):
            class_index(spec.label, model.labels)
        if spec.layer is not None:
            find_layer(model.module, spec.layer, model.name)
        self._place = Place(model, spec.at, spec.inside)
        self._boxes_P4 = torch.cat([grid.boxes_P4 for grid in self.grids])
        self.engine: Engine = make_engine(
            model,
            spec.engine,
            layer=spec.layer,
            batch_size=spec.batch_size,
            boxes_P4=self._boxes_P4,
            cuda_graphs=spec.cuda_graphs,
        )
        self._verifier = (
            Verifier(model, self.engine, self._boxes_P4, seed=spec.seed) if spec.verify else None
        )
        self.note = self.engine.note or (self._verifier.note if self._verifier else None)

    @property
    def positions(self) -> int:
        """How many occluded images one run takes, all masks together."""
        return len(self._boxes_P4)

    def run(
        self,
        image: WorkingImage,
        *,
        label: str | None = None,
        progress: Callable[[int], None] = lambda _steps: None,
    ) -> OcclusionResult:
        """Runs the experiment on one image.

        Args:
            image: of the model's input size.
            label: this image's true class, in place of the spec's.
            progress: called with the number of occluded images just done.
        """
        model, spec = self._model, self._spec
        fill = fill_picture(spec.fill, image.pixels, model.preprocess, spec.seed)
        pair = [model.preprocess.normalise(p).to(model.device) for p in (image.pixels, fill)]
        reading = model.settle(pair[0][None], self._place.mask(image))
        if reading is not None:
            labels = reading.labels or model.labels
            reading.targets(spec.requested, labels, model.head, image.path)  # before the work
        scores = self.engine.run(pair[0], pair[1], self._boxes_P4, progress)
        logits_PK = self._logits(scores.logits_PK, image)
        base_logits_K = self._logits(scores.base_logits_K, image)
        activation = None
        if spec.layer is not None and scores.activation_P is not None:
            assert scores.activation_channel is not None  # noqa: S101 (they come together)
            assert scores.base_activation is not None  # noqa: S101
            activation = Activation.of(
                spec.layer,
                scores.activation_channel,
                scores.base_activation,
                scores.activation_P.cpu().float(),
            )
        measured = Measurement(
            image,
            (reading and reading.labels) or model.labels,
            base_logits_K,
            logits_PK,
            self.grids,
            activation,
            model.head,
            reading,
            self._place.text,
            *_shown(spec, model.head),
        )
        if self._trace is not None:
            targets, _true_class = _targets(measured, spec, label)
            measured = replace(measured, gradient=self._trace(image, targets))
        result = look(measured, spec, label=label, engine=self.engine.name)
        verified = None
        if self._verifier is not None:
            verified = scores.given_up or self._verifier.difference(pair[0], pair[1], scores)
            verified = _finite(verified)
        return replace(
            result,
            fill=spec.fill,
            incremental_given_up=None if scores.given_up is None else _finite(scores.given_up),
            verified_largest_difference=verified,
            sufficient=self._sufficiencies(result, progress) if spec.sufficient else None,
        )

    def again(self, image: WorkingImage, grids: Sequence[Grid], fill: str) -> tuple[Tensor, ...]:
        """Computes logits (P, K) of the last image, on other grids or with another fill."""
        model = self._model
        replacement = fill_picture(fill, image.pixels, model.preprocess, self._spec.seed)
        normalise, boxes_P4 = model.preprocess.normalise, torch.cat([g.boxes_P4 for g in grids])
        original, other = (normalise(p).to(model.device) for p in (image.pixels, replacement))
        scores = self.engine.run(original, other, boxes_P4)
        logits_PK = self._logits(scores.logits_PK, image)
        return torch.split(logits_PK, [len(grid.boxes_P4) for grid in grids])

    def _logits(self, scores: Tensor, image: WorkingImage) -> Tensor:
        return self._model.finite(self._model.head.logits(scores.cpu()), image.path)

    def _sufficiencies(
        self, result: OcclusionResult, progress: Callable[[int], None]
    ) -> tuple[Sufficiency, ...]:
        """Of each class, by its first mask's map."""
        return tuple(
            sufficiency(self._model, result.measured, panel, self._spec, self.engine, progress)
            for panel in result.targets
            if panel.grid is self.grids[0]
        )


def _finite(difference: float | None) -> float:
    """NaN, which summaries have as null, where there is no finite difference."""
    return math.nan if difference is None or math.isinf(difference) else difference


def _shown(spec: OcclusionSpec, head: Head) -> tuple[Score, Upsample]:
    """The score to compare and the way to pixels, where the spec names none by the preset."""
    if spec.preset is Preset.CLASSIC:
        score, upsample = Score.PROBABILITY, Upsample.COVERAGE
    else:
        score, upsample = DEFAULT_SCORES[head.kind], Upsample.DENSITY
    if spec.border is Border.CENTER and spec.stride in (1, (1, 1)):
        upsample = Upsample.NEAREST  # a mask per pixel: the position's own value
    return spec.score or score, spec.upsample or upsample


def _check_boxes(boxes: bool, spec: PanelSpec, name: str) -> None:
    """Raises UsageError unless boxes are requested of a detector, and only there."""
    if boxes and not spec.boxes:
        raise UsageError(
            f"{name} returns boxes: --box N, CLASS, CLASS@N or all says which to explain "
            "(cnnviz detect draws and numbers them)"
        )
    if boxes and spec.targets != PanelSpec().targets:
        raise UsageError(f"--target names a class; {name} returns boxes, which --box names")
    if spec.boxes and not boxes:
        raise UsageError(f"--box is for detectors; {name} returns no boxes: use --target")


def _check_head(head: Head, spec: PanelSpec) -> None:
    if head.has_classes:
        return
    if spec.score in (Score.LOSS, Score.LOG_ODDS):
        raise UsageError(f"--score {spec.score} needs classes; {head.described}")
    if spec.label is not None:
        raise UsageError(f"--label names a class; {head.described}")


def look(
    measured: Measurement, spec: PanelSpec, *, label: str | None = None, engine: str = "full"
) -> OcclusionResult:
    """Derives the panels that a spec describes from a measurement; needs no network.

    Args:
        measured: from an earlier run, or from `load`.
        spec: the classes, the score and the map.
        label: the image's true class, in place of the spec's.
        engine: the engine that ran; "none" for an earlier run.

    Raises:
        UsageError: a target or the label is not a class.
        CnnvizError: the method is agreement, and a class has no gradient.
    """
    head, reading = measured.head, measured.reading
    _check_head(head, spec)
    _check_boxes(isinstance(reading, BoxReading), spec, "the network of this run")
    targets, true_class = _targets(measured, spec, label)
    if reading is not None:
        reading.check(targets, measured.labels, measured.image.path)
    score, upsample = spec.score or measured.score, spec.upsample or measured.upsample
    panels = make_panels(measured, targets, score, upsample)
    if spec.method is MapKind.AGREEMENT:
        for panel in panels:
            if panel.agreement is None:
                raise CnnvizError(
                    f"no gradient of '{panel.class_}' was traced on '{measured.image.path}', so "
                    "there is no agreement; use --method occlusion"
                )
    readings_K = class_scores(measured.base_logits_K, Score.PROBABILITY, head)
    top = top_records(measured, readings_K) if head.has_classes else None
    labelled = None
    if true_class is not None:
        labelled = ClassRecord.of(measured, true_class, float(readings_K[true_class]))
    return OcclusionResult(
        image=measured.image.path,
        prediction=top[0] if top else None,
        top5=top,
        read=(measured.place or reading.where or None) if reading else None,
        score=score if head.has_classes else "value",
        upsample=upsample,
        method=spec.method,
        engine=engine,
        targets=panels,
        label=labelled,
        correct=None if true_class is None else _is_correct(measured, true_class),
        activation=measured.activation,
        measured=measured,
        compared=score,
    )


def _is_correct(measured: Measurement, label: int) -> bool:
    """Whether the label is the predicted class; of independent classes, whether it holds."""
    if measured.head.kind is Kind.SIGMOID:
        return bool(measured.head.holds(measured.base_logits_K)[label])
    return int(measured.base_logits_K.argmax()) == label


def _targets(
    measured: Measurement, spec: PanelSpec, label: str | None
) -> tuple[tuple[int, ...], int | None]:
    """The classes to explain, and the true one, which is explained too."""
    true_text = label if label is not None else spec.label
    if true_text == FOLDER:
        true_text = measured.image.label or Path(measured.image.path).resolve().parent.name
    if isinstance(measured.reading, BoxReading):
        path = measured.image.path
        return measured.reading.targets(spec.boxes, (), measured.head, path), None
    targets = resolve_targets(spec.targets, measured.ranking_K, measured.labels, measured.head)
    if true_text is None:
        return targets, None
    true_class = class_index(true_text, measured.labels)
    predicted = int(measured.ranking_K.argmax())
    return tuple(dict.fromkeys((*targets, true_class, predicted))), true_class


def occlude(
    model: Model,
    image: WorkingImage | str | Path,
    spec: OcclusionSpec | None = None,
    *,
    trace: Tracer | None = None,
    progress: Callable[[int], None] = lambda _steps: None,
) -> OcclusionResult:
    """Occludes an image piece by piece and measures which pieces the prediction depends on.

    Args:
        model: from `cnnviz.core.load_model`.
        image: a file, or a working image of the model's input size.
        spec: what to do; None for the defaults.
        trace: a gradient method to compare the maps with.
        progress: called with the number of positions just done.

    Returns:
        The scores of every class at every position, and a panel per class and mask whose `map_HW`
        is positive where occluding hurts.

    Raises:
        UsageError: something in the spec does not exist or does not fit the model.
        CnnvizError: the file cannot be read, or the network's scores are not finite.
    """
    working = image if isinstance(image, WorkingImage) else read_image(image, model.preprocess)
    return Occluder(model, spec or OcclusionSpec(), trace).run(working, progress=progress)
