"""One occlusion experiment end to end: cover an image piece by piece, keep every score.

The `Measurement` holds all that needed the network: the scores of every class at every position.
Everything else (maps, panels, pictures) is derived from it, so that it can be looked at again for
other classes and scores without the network (`cnnviz render`).
Method: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.
Shapes: P positions, K classes, H W rows and columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.data.outlines import Place
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.heads import Head, Reading, resolve_targets
from cnnviz.core.models.labels import class_index
from cnnviz.core.models.layers import find_layer
from cnnviz.core.models.load import Model
from cnnviz.occlusion.agreement import Agreement, Gradient, agreements
from cnnviz.occlusion.choices import (
    FOLDER,
    MapKind,
    OcclusionSpec,
    PanelSpec,
    Score,
    Upsample,
)
from cnnviz.occlusion.engines.choose import Engine, Verifier, make_engine
from cnnviz.occlusion.fills import check_fill, fill_picture
from cnnviz.occlusion.masks import Grid, mask_grid, masks_and_stride
from cnnviz.occlusion.panels import Panel, make_panels
from cnnviz.occlusion.sufficient import Sufficiency, check_classes, sufficiency


@dataclass(frozen=True, eq=False)
class Activation:
    """A layer's map that is strongest on the untouched image, watched while masks move.

    Attributes:
        layer: the layer's name.
        channel: which of its maps.
        base: the map's sum on the untouched image.
        sums_P: its sum at each position, float32.
    """

    layer: str
    channel: int
    base: float
    sums_P: Tensor


@dataclass(frozen=True, eq=False)
class Measurement:
    """All that needed the network, on the CPU.

    Attributes:
        image: the working image.
        labels: class names, one per class.
        base_logits_K: float32 logits of the untouched image.
        logits_PK: float32 logits at each position, grid after grid.
        grids: one per mask, in the order of the positions.
        activation: with a layer watched, what its strongest map did.
        head: what the numbers mean.
        reading: of a dense output, the pixels that were read.
        place: of a dense output, what the user pointed at; empty for each class's own pixels.
        score: what is compared unless something else is asked for.
        upsample: how pixels get their values, likewise.
        gradient: what a gradient method says of the classes, where one was asked.
    """

    image: WorkingImage
    labels: tuple[str, ...]
    base_logits_K: Tensor
    logits_PK: Tensor
    grids: tuple[Grid, ...]
    activation: Activation | None = None
    head: Head = field(default_factory=Head)
    reading: Reading | None = None
    place: str = ""
    score: Score = Score.PROBABILITY
    upsample: Upsample = Upsample.COVERAGE
    gradient: Gradient | None = None

    @property
    def ranking_K(self) -> Tensor:  # noqa: N802 (a shape)
        """More for a class that the untouched image shows more of: by score, or by pixels."""
        if self.reading is None:
            return self.base_logits_K
        return self.reading.ranking(self.labels)


@dataclass(frozen=True, eq=False)
class OcclusionResult:
    """A measurement and what it says about the classes asked for.

    Attributes:
        measured: the raw scores.
        score: what the panels compare.
        upsample: how their pixels get their values.
        panels: one per target and mask, targets outermost.
        agreements: of each panel's map with the gradient's; None where there is none.
        method: which of the two is drawn and judged.
        label: index of the true class, if known.
        engine: the engine that ran: `full` or `incremental`.
        verified: whether the other engine repeated a sample of positions.
        largest_difference: if so, the largest |logit difference| between them; None where only
            one of them can run this network.
        given_up: the |difference| to the full engine for which the incremental one was given up;
            None if it was not.
        sufficiencies: of each target, by its first mask's map; empty if not asked for.
    """

    measured: Measurement
    score: Score
    upsample: Upsample
    panels: tuple[Panel, ...]
    agreements: tuple[Agreement | None, ...]
    method: MapKind
    label: int | None
    engine: str
    verified: bool = False
    largest_difference: float | None = None
    given_up: float | None = None
    sufficiencies: tuple[Sufficiency, ...] = ()

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """(H, W) of each panel: what is drawn and judged."""
        if self.method is MapKind.OCCLUSION:
            return tuple(panel.map_HW for panel in self.panels)
        return tuple(found.map_HW for found in self.agreements if found is not None)


Tracer = Callable[[WorkingImage, Sequence[int]], Gradient | None]
"""What a gradient method says of some classes of a picture; None where it says nothing."""


class Occluder:
    """An experiment set up once for a model and run on any number of images.

    Attributes:
        grids: where the masks go, one grid per mask.
        score: what is compared.
        note: a line about the engine that the user should see, or None.
    """

    def __init__(self, model: Model, spec: OcclusionSpec, trace: Tracer | None = None) -> None:
        """Checks the spec and prepares the engine.

        Args:
            model: borrowed.
            spec: what to do.
            trace: a gradient method whose agreement is asked for.

        Raises:
            UsageError: something in the spec does not exist or does not fit the model.
        """
        size = model.input_size
        masks, stride = masks_and_stride(size, spec.masks, spec.stride)
        self._model, self._spec, self._trace = model, spec, trace
        self.score = _shown(spec, model.head)[0]
        self.grids = tuple(mask_grid(size, mask, stride, spec.border) for mask in masks)
        check_fill(spec.fill)
        _check_head(model.head, spec)
        if spec.sufficient:
            check_classes(model)
        resolve_targets(spec.targets, torch.zeros(model.classes), model.labels, model.head)
        if spec.label not in (None, FOLDER):
            class_index(spec.label, model.labels)
        if spec.layer is not None:
            find_layer(model.module, spec.layer, model.name)
        self._place = Place(model, spec.at, spec.inside)
        self._boxes_P4 = torch.cat([grid.boxes_P4 for grid in self.grids])
        self._engine: Engine = make_engine(
            model,
            spec.engine,
            layer=spec.layer,
            batch_size=spec.batch_size,
            boxes_P4=self._boxes_P4,
        )
        self._verifier = (
            Verifier(model, self._engine, self._boxes_P4, seed=spec.seed) if spec.verify else None
        )
        self.note = self._engine.note or (self._verifier.note if self._verifier else None)

    @property
    def positions(self) -> int:
        """How many covered images one run takes, all masks together."""
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
            progress: called with the number of positions just done.

        Raises:
            CnnvizError: the network's scores are not finite, or one image does not fit the memory.
            UsageError: no such label.
        """
        model, spec = self._model, self._spec
        fill = fill_picture(spec.fill, image.pixels, model.preprocess, spec.seed)
        pair = [model.preprocess.normalise(p).to(model.device) for p in (image.pixels, fill)]
        reading = model.settle(pair[0][None], self._place.mask(image))
        if reading is not None:
            reading.targets(spec.targets, model.labels, model.head, image.path)  # before the work
        scores = self._engine.run(pair[0], pair[1], self._boxes_P4, progress)
        as_logits = model.head.logits
        logits_PK = as_logits(scores.logits_PK.cpu())
        base_logits_K = as_logits(scores.base_logits_K.cpu())
        for logits in (logits_PK, base_logits_K):
            self._check_finite(logits, image)
        activation = None
        if spec.layer is not None and scores.activation_P is not None:
            assert scores.activation_channel is not None  # noqa: S101 (they come together)
            assert scores.base_activation is not None  # noqa: S101
            sums_P = scores.activation_P.cpu().float()
            activation = Activation(
                spec.layer, scores.activation_channel, scores.base_activation, sums_P
            )
        measured = Measurement(
            image,
            model.labels,
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
        result = look(measured, spec, label=label, engine=self._engine.name)
        result = replace(
            result, given_up=scores.given_up, sufficiencies=self._sufficiencies(result)
        )
        if self._verifier is None:
            return result
        difference = scores.given_up or self._verifier.difference(pair[0], pair[1], scores)
        return replace(result, verified=True, largest_difference=difference)

    def again(self, image: WorkingImage, grids: Sequence[Grid], fill: str) -> tuple[Tensor, ...]:
        """Logits (P, K) of the image that was run last, on other grids or with another fill.

        Raises:
            CnnvizError: a score is not finite, or one image does not fit the memory.
        """
        model = self._model
        replacement = fill_picture(fill, image.pixels, model.preprocess, self._spec.seed)
        normalise, boxes_P4 = model.preprocess.normalise, torch.cat([g.boxes_P4 for g in grids])
        original, other = (normalise(p).to(model.device) for p in (image.pixels, replacement))
        scores = self._engine.run(original, other, boxes_P4)
        logits_PK = model.head.logits(scores.logits_PK.cpu())
        self._check_finite(logits_PK, image)
        return torch.split(logits_PK, [len(grid.boxes_P4) for grid in grids])

    def _check_finite(self, logits: Tensor, image: WorkingImage) -> None:
        if not logits.isfinite().all():
            raise CnnvizError(
                f"{self._model.name} gives scores that are not finite on '{image.path}' in "
                f"{self._model.precision.value}; use --precision fp32, or check the weights"
            )

    def _sufficiencies(self, result: OcclusionResult) -> tuple[Sufficiency, ...]:
        spec, measured = self._spec, result.measured
        if not spec.sufficient:
            return ()
        return tuple(
            sufficiency(
                self._model,
                measured.image,
                panel,
                measured.base_logits_K,
                fill=spec.fill,
                seed=spec.seed,
                batch_size=spec.batch_size,
            )
            for panel in result.panels
            if panel.grid is self.grids[0]
        )


def _shown(spec: OcclusionSpec, head: Head) -> tuple[Score, Upsample]:
    """What is compared and how pixels get their values, where the user does not say it.

    With masks or a stride of the user's: what the literature has.
    """
    if spec.masks or spec.stride is not None:
        score, upsample = Score.PROBABILITY, Upsample.COVERAGE
    else:
        score, upsample = (Score.LOSS if head.has_classes else Score.PROBABILITY), Upsample.DENSITY
    return spec.score or score, spec.upsample or upsample


def _check_head(head: Head, spec: PanelSpec) -> None:
    if head.has_classes:
        return
    if spec.score is Score.LOSS:
        raise UsageError("--score loss needs classes; a regression (--head none) has values alone")
    if spec.label is not None:
        raise UsageError("--label names a class; a regression (--head none) has none")


def look(
    measured: Measurement, spec: PanelSpec, *, label: str | None = None, engine: str = "full"
) -> OcclusionResult:
    """Derives the panels that a spec asks for from a measurement; needs no network.

    Raises:
        UsageError: a target or the label is none of the classes.
        CnnvizError: an agreement is asked for of a class that no gradient was traced for.
    """
    _check_head(measured.head, spec)
    targets, true_class = _targets(measured, spec, label)
    if measured.reading is not None:
        measured.reading.check(targets, measured.labels, measured.image.path)
    score, upsample = spec.score or measured.score, spec.upsample or measured.upsample
    panels = make_panels(
        measured.base_logits_K,
        measured.logits_PK,
        measured.grids,
        (int(measured.image.pixels.shape[1]), int(measured.image.pixels.shape[2])),
        targets,
        score,
        upsample,
        measured.head,
    )
    found = agreements(panels, measured.gradient)
    if spec.method is MapKind.AGREEMENT and None in found:
        missing = measured.labels[panels[found.index(None)].target]
        raise CnnvizError(
            f"no gradient of '{missing}' was traced on '{measured.image.path}', so nothing can "
            "agree; use --method occlusion"
        )
    return OcclusionResult(
        measured, score, upsample, panels, found, spec.method, true_class, engine
    )


def _targets(
    measured: Measurement, spec: PanelSpec, label: str | None
) -> tuple[tuple[int, ...], int | None]:
    """The classes asked about, and the true one, which is asked about too."""
    true_text = label if label is not None else spec.label
    if true_text == FOLDER:
        true_text = measured.image.label or Path(measured.image.path).resolve().parent.name
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
    """Covers an image piece by piece and measures which pieces carry the prediction.

    Args:
        model: from `cnnviz.core.load_model`.
        image: a file, or a working image of the model's input size.
        spec: what to do; None for the defaults.
        trace: a gradient method whose agreement is asked for.
        progress: called with the number of positions just done.

    Returns:
        The scores of every class at every position, and a panel per target and mask whose `map_HW`
        is positive where covering hurts.

    Raises:
        UsageError: something in the spec does not exist or does not fit the model.
        CnnvizError: the file cannot be read, or the network's scores are not finite.
    """
    working = image if isinstance(image, WorkingImage) else read_image(image, model.preprocess)
    return Occluder(model, spec or OcclusionSpec(), trace).run(working, progress=progress)
