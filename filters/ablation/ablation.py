"""The ablation experiment: switch filters off and measure what breaks.

`ablate` runs the original network, the chosen filters off together, each filter of a layer off
alone, and filters off one after the other, all on the same labelled images, in as few passes over
them as possible. The network is never modified. For ablations of networks see Morcos et al. 2018,
"On the importance of single directions for generalization", and Zhou et al. 2018, "Revisiting the
importance of individual units in CNNs via ablation".
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.labels import LabelledImages, Progress, check_labels
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.behaviour import CHECKED, FirstBatch
from cnnviz.core.models.layers import named_layers
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.blocks import JOURNAL, Elsewhere, alone, of_journals
from cnnviz.core.output.journal import Arrays, Journal
from cnnviz.filters.ablation.measures import Answers, Measured, measure_of
from cnnviz.filters.ablation.options import AblationSpec, Mode
from cnnviz.filters.ablation.replay import IMAGES, REHEARSED, Fills, ablation_passes, default_memory
from cnnviz.filters.ablation.results import AblationResult, Engine, FilterSet, make_result
from cnnviz.filters.ablation.sweep import (
    Curve,
    FilterEffect,
    Orders,
    cumulative_ablations,
    curves,
    effects,
    removal_orders,
)
from cnnviz.filters.ablation.tally import AXES, INDICES, Counts, Tally, check, merge
from cnnviz.filters.channels import (
    Channels,
    ChannelStrength,
    ChannelSums,
    LayerChannels,
    Pick,
    Selection,
    channel_sums,
    expand,
    merge_sums,
    resolve,
)

ALL = "all"
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Plan:
    """The requested ablations, in channels that exist."""

    filters: tuple[FilterSet, ...]  # switched off together; empty for none
    swept: Mapping[str, int]  # layer to its number of channels
    axes: Mapping[str, int]  # layer to the axis of channels in its output

    @property
    def channels(self) -> Channels:
        """The channels of `filters` by layer."""
        return {off.layer: off.channels for off in self.filters}

    @property
    def swept_filters(self) -> list[tuple[str, int]]:
        """Every filter of the sweep, in order."""
        return [(layer, f) for layer, count in self.swept.items() for f in range(count)]


def make_plan(model: Model, spec: AblationSpec) -> Plan:
    """Looks up every requested filter."""
    if not spec.filters and not spec.sweep:
        raise UsageError("nothing to ablate; give --filters LAYER:3,7-12, or --sweep LAYER")
    if spec.cumulative and not spec.sweep:
        raise UsageError("--cumulative needs --sweep LAYER, whose filters it removes")
    layers = LayerChannels(model)
    names = list(named_layers(model.module))
    convolutions = layers.convolutions()
    channels = resolve(
        " ".join(spec.filters).split(), names, convolutions, layers.counts, spec.seed
    )
    swept: dict[str, int] = {}
    for text in " ".join(spec.sweep).split():
        parts = () if text == ALL else tuple(part.strip() for part in text.split("+"))
        selection = Selection(text, parts, Pick.ALL)
        swept |= layers.counts(expand(selection, names, convolutions))
    if not swept and not channels:
        raise UsageError(f"{model.name} has no convolution; name layers whose output has channels")
    counts = layers.counts(list(channels))
    axes = {name: layers.layout(name).axis for name in [*channels, *swept]}
    filters = (FilterSet(name, tuple(off), counts[name]) for name, off in channels.items())
    return Plan(tuple(filters), swept, axes)


class Ablation:
    """One experiment, checked and ready to run."""

    def __init__(self, model: Model, data: ImageData, spec: AblationSpec) -> None:
        if model.target is not None:
            raise UsageError(f"ablate judges answers, and {model.unjudged}")
        self.model, self.data, self.spec = model, data, spec
        self.classes = check_labels(data, model)
        self.plan = make_plan(model, spec)

    @property
    def passes(self) -> int:
        """Number of passes over the data."""
        averages = self.spec.mode is Mode.MEAN or self.spec.cumulative
        return 1 + averages + self.spec.cumulative * len(self.plan.swept)

    def refuse_shares(self) -> None:
        """Raises a UsageError if all images are needed before the first one is evaluated."""
        options = ["--mode mean"] * (self.spec.mode is Mode.MEAN)
        options += ["--cumulative"] * self.spec.cumulative
        if options:
            raise UsageError(
                f"{' and '.join(options)} cannot run in shards, since every shard would need "
                "channel means over all images; leave it out, use --cluster ray, or run in one "
                "piece (--shard 0/1)"
            )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the results depend on, as JSON data."""
        model, data, plan = self.model, self.data, self.plan
        return {
            "weights": model.weights_sha256,
            "model": model.name,
            "outputs": model.choices,
            "preprocessing": repr(model.preprocess),
            "precision": model.precision.value,
            "data": data.fingerprint,
            "--filters": {layer: list(off) for layer, off in plan.channels.items()},
            "--sweep": dict(plan.swept),
            "--mode": self.spec.mode.value,
        }

    def journal(self, path: Path, *, resume: bool) -> Journal:
        """The journal of this experiment's counts."""
        return Journal(path, self.identity, self.data.block, resume=resume)

    def run(
        self,
        progress: Progress = lambda _images: None,
        journal: Journal | None = None,
        spread: Elsewhere = alone,
    ) -> AblationResult:
        """Runs the experiment.

        Args:
            progress: called with the number of images just done, in each pass.
            journal: where to save the counts of `--filters` and `--sweep`, if anywhere.
            spread: computes blocks of the images in other processes.
        """
        plan, spec, model = self.plan, self.spec, self.model
        quick = fast(model, [*plan.channels, *plan.swept])
        stream = LabelledImages(self.data, quick, self.classes, progress)
        strengths = _strengths(stream, plan, spec, self.identity, spread)
        fills: Fills = {}
        if spec.mode is Mode.MEAN:
            fills = {layer: strength.mean for layer, strength in strengths.items()}
        together: list[Channels] = [{}, plan.channels] if plan.filters else [{}]
        alone_each: list[Channels] = [{layer: (channel,)} for layer, channel in plan.swept_filters]
        measured = _Measurement(
            stream, [*together, *alone_each], fills, plan.axes, len(together), spec
        )
        outcome, indices = measured.go("tally", self.identity, spread, journal)
        engine = Engine(measured.passes.engine, measured.passes.reason)
        sweep = effects(outcome, plan.swept_filters, len(together), model.labels)
        cumulative: list[Curve] = []
        if spec.cumulative:
            for layer in plan.swept:
                of_layer = [effect for effect in sweep if effect.layer == layer]
                ablations, orders = _removals(model, layer, of_layer, strengths[layer], spec)
                one = _Measurement(stream, ablations, fills, plan.axes, 1, spec)
                removed, _indices = one.go(f"remove-{len(cumulative)}", self.identity, spread)
                cumulative += curves(layer, len(of_layer), orders, removed.mean_V)
        messages = sorted(stream.errors.items())
        return make_result(
            model,
            self.data,
            spec.mode,
            filters=plan.filters,
            engine=engine,
            outcome=outcome,
            indices=indices,
            effects=sweep,
            cumulative=tuple(cumulative),
            errors=tuple((self.data.examples[place].path, text) for place, text in messages),
        )


def ablate(
    model: Model, data: ImageData, spec: AblationSpec, progress: Progress = lambda _images: None
) -> AblationResult:
    """Runs the whole experiment; raises the errors of `Ablation` and `Ablation.run`."""
    return Ablation(model, data, spec).run(progress)


def _strengths(
    stream: LabelledImages,
    plan: Plan,
    spec: AblationSpec,
    identity: Mapping[str, Any],
    spread: Elsewhere,
) -> dict[str, ChannelStrength]:
    """Channel means where they are needed: for mode `mean`, or the order by activation."""
    layers: dict[str, int] = {}
    if spec.mode is Mode.MEAN:
        layers |= {off.layer: off.of for off in plan.filters}
    if spec.mode is Mode.MEAN or spec.cumulative:
        layers |= plan.swept
    if not layers:
        return {}
    stream.first(1)
    model, axes = stream.model, {layer: plan.axes[layer] for layer in layers}
    size = model.batch_size(spec.batch_size) or IMAGES

    def block(part: ImageData, journal: Journal) -> None:
        here = replace(stream, data=part, progress=lambda _images: None, errors={})
        sums = channel_sums(model, here.images(size), axes, layers)
        journal.save(part.part.stop, here.errors, sums.arrays())

    of = {**identity, "means of": layers}
    step = of_journals("means", stream.data, size, of, block, stream.progress, merge_sums)
    if (folders := spread(step)) is None:
        return channel_sums(model, stream.images(size), axes, layers).strengths()
    sums = ChannelSums(axes, layers, model.device)
    stored = Journal(folders[0] / JOURNAL, of, stream.data.block, resume=True).load(sums.arrays())
    assert stored is not None  # noqa: S101
    sums.restore(stored.arrays)
    return sums.strengths()


class _Measurement:
    """Runs ablations on every image, and counts or measures the answers.

    Args:
        stream: the images.
        ablations: V of them; the first is the original network.
        fills: the values of ablated channels.
        axes: each layer's axis of channels.
        recorded: every answer of so many ablations is kept.
        spec: the options.

    Attributes:
        passes: what runs them.
    """

    def __init__(
        self,
        stream: LabelledImages,
        ablations: Sequence[Channels],
        fills: Fills,
        axes: Mapping[str, int],
        recorded: int,
        spec: AblationSpec,
    ) -> None:
        self._stream, self._ablations, self._recorded = stream, ablations, recorded
        self._fills, model = fills, stream.model
        self.passes = ablation_passes(
            model,
            ablations,
            fills,
            first=stream.first(REHEARSED),
            memory=(spec.memory or 0) * _MEBIBYTE or default_memory(model.device),
            images=model.batch_size(spec.batch_size),
            axes=axes,
        )
        self._looked = FirstBatch(model.outputs, model.name)

    def go(
        self,
        name: str,
        identity: Mapping[str, Any],
        spread: Elsewhere,
        journal: Journal | None = None,
    ) -> tuple[Counts | Measured, NDArray[np.int64]]:
        """Goes through all images; returns the outcome and the indices of those that counted.

        Args:
            name: of the pass.
            identity: of the experiment.
            spread: computes blocks of the images in other processes.
            journal: where to save the counts, if anywhere.
        """
        stream = self._stream

        def block(part: ImageData, journal: Journal) -> None:
            here = replace(stream, data=part, progress=lambda _images: None, errors={})
            answers = _Answered(here, self._new_tally(), stream.model)
            self._all(answers)
            answers.save(journal)

        answers = _Answered(stream, self._new_tally(), stream.model)
        of = {**identity, "ablations": self._digest()}
        size, data = self.passes.images, stream.data
        step = of_journals(name, data, size, of, block, stream.progress, merge, check)
        if (folders := spread(step)) is not None:
            answers.load(Journal(folders[0] / JOURNAL, of, data.block, resume=True))
        else:
            if journal and answers.load(journal):
                stream.progress(answers.done - data.part.start)
            self._all(answers, journal)
        if journal:
            answers.save(journal)
        else:
            _check_finite(stream.model, answers.arrays())
        return answers.tally.finish(), answers.indices

    def _new_tally(self) -> Tally | Answers:
        model, count, recorded = self._stream.model, len(self._ablations), self._recorded
        measure = measure_of(model.head)
        if measure is None:
            return Tally(count, model.classes, recorded, model.device, model.head)
        return Answers(count, len(self._stream.data), model.classes, measure, recorded > 1)

    def _all(self, answers: "_Answered", journal: Journal | None = None) -> None:
        """Goes through the images that are still to do."""
        with torch.inference_mode():
            for places, images, truth in answers.stream.all(self.passes.images, answers.done):
                if self.passes.images > 1:
                    self._looked.check(images[:CHECKED])
                answers.tally.start(truth)
                self.passes.run(images, answers.tally.add)
                answers.add(places)
                if journal and journal.due:
                    answers.save(journal)
        answers.done = answers.stream.data.part.stop

    def _digest(self) -> str:
        """A hash of the ablations and the values that replace channels."""
        digest = hashlib.sha256(repr([list(one.items()) for one in self._ablations]).encode())
        for layer, values in self._fills.items():
            digest.update(layer.encode() + values.float().cpu().numpy().tobytes())
        return digest.hexdigest()


class _Answered:
    """The answers on the images so far.

    Attributes:
        stream: the images.
        tally: their counts, or the answers themselves.
        done: index of the first image that is still to do.
    """

    def __init__(self, stream: LabelledImages, tally: Tally | Answers, model: Model) -> None:
        self.stream, self.tally, self._model = stream, tally, model
        self.done = stream.data.part.start
        self._indices = [torch.zeros(0, dtype=torch.int64)]

    @property
    def indices(self) -> NDArray[np.int64]:
        """The images that counted, (M,)."""
        return torch.cat(self._indices).numpy()

    def add(self, places: Tensor) -> None:
        """Notes the indices of a batch whose answers the tally has."""
        self._indices.append(places)
        self.done = int(places[-1]) + 1

    def arrays(self) -> Arrays:
        """All of it, for a journal."""
        return {INDICES: self.indices, **self.tally.arrays()}

    def save(self, journal: Journal) -> None:
        """Saves the answers; a CnnvizError if some are not numbers."""
        errors = {place: text for place, text in self.stream.errors.items() if place < self.done}
        arrays = self.arrays()
        _check_finite(self._model, arrays)
        journal.save(self.done, errors, arrays)

    def load(self, journal: Journal) -> bool:
        """Resumes from a journal; whether it has anything."""
        stored = journal.load(self.arrays(), AXES, check)
        if stored is None:
            return False
        self._indices.append(torch.from_numpy(stored.arrays[INDICES]))
        self.stream.errors |= stored.errors
        self.tally.restore(stored.arrays)
        self.done = stored.done
        return True


def _check_finite(model: Model, arrays: Arrays) -> None:
    """Raises a CnnvizError if answers are not numbers; such counts are never saved."""
    answers_V = arrays["probability" if "probability" in arrays else "answers"]
    wrong = np.flatnonzero([not np.isfinite(answers).all() for answers in answers_V])
    if wrong.size:
        when = "original network" if wrong[0] == 0 else "with filters switched off"
        raise CnnvizError(
            f"{model.name} gives answers that are not numbers ({when}) in {model.precision.value}; "
            "use --precision fp32, or check the weights"
        )


def _removals(
    model: Model,
    layer: str,
    sweep: Sequence[FilterEffect],
    strength: ChannelStrength,
    spec: AblationSpec,
) -> tuple[list[Channels], Orders]:
    """The ablations that remove a layer's filters one by one, and the orders of removal."""
    norms = None
    module = named_layers(model.module)[layer]
    if isinstance(module, nn.Conv2d):
        norms = module.weight.detach().float().flatten(1).norm(dim=1).cpu().numpy()
    magnitude = strength.magnitude.cpu().numpy()
    orders = removal_orders(len(sweep), sweep, norms, magnitude, spec.seed)
    return cumulative_ablations(layer, len(sweep), orders), orders
