"""The ablation experiment: switch filters off and measure what breaks.

`ablate` runs the original network, the chosen filters off together, each filter of a layer off
alone, and filters off one after the other, all on the same labelled images, in as few passes over
them as possible. The network is never modified. For ablations of networks see Morcos et al. 2018,
"On the importance of single directions for generalization", and Zhou et al. 2018, "Revisiting the
importance of individual units in CNNs via ablation".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.labels import LabelledImages, Progress, check_labels
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.behaviour import CHECKED, check_batch
from cnnviz.core.models.layers import named_layers
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.core.output.journal import Arrays, Journal
from cnnviz.filters.ablation.measures import Answers, Measured, measure_of
from cnnviz.filters.ablation.options import AblationSpec, Mode
from cnnviz.filters.ablation.replay import IMAGES, REHEARSED, Fills, ablation_passes, default_memory
from cnnviz.filters.ablation.results import AblationResult, Engine, FilterSet, make_result
from cnnviz.filters.ablation.sweep import (
    Curve,
    FilterEffect,
    cumulative_ablations,
    curves,
    effects,
    removal_orders,
)
from cnnviz.filters.ablation.tally import AXES, INDICES, Counts, Tally, check
from cnnviz.filters.channels import (
    Channels,
    ChannelStrength,
    LayerChannels,
    Pick,
    Selection,
    channel_strengths,
    expand,
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
                "channel means over all images; leave it out, or run in one piece (--shard 0/1)"
            )

    def journal(self, path: Path, *, resume: bool) -> Journal:
        """The journal of this experiment's counts."""
        model, data, plan = self.model, self.data, self.plan
        identity = {
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
        return Journal(path, identity, data.block, resume=resume)

    def run(
        self, progress: Progress = lambda _images: None, journal: Journal | None = None
    ) -> AblationResult:
        """Runs the experiment.

        Args:
            progress: called with the number of images just done, in each pass.
            journal: where to save the counts of `--filters` and `--sweep`, if anywhere.
        """
        plan, spec, model = self.plan, self.spec, self.model
        quick = fast(model, [*plan.channels, *plan.swept])
        stream = LabelledImages(self.data, quick, self.classes, progress)
        strengths = _strengths(stream, plan, spec)
        fills: Fills = {}
        if spec.mode is Mode.MEAN:
            fills = {layer: strength.mean for layer, strength in strengths.items()}
        together: list[Channels] = [{}, plan.channels] if plan.filters else [{}]
        alone: list[Channels] = [{layer: (channel,)} for layer, channel in plan.swept_filters]
        outcome, indices, engine = _measure(
            stream, [*together, *alone], fills, plan.axes, len(together), spec, journal
        )
        sweep = effects(outcome, plan.swept_filters, len(together), model.labels)
        cumulative: list[Curve] = []
        if spec.cumulative:
            for layer in plan.swept:
                of_layer = [effect for effect in sweep if effect.layer == layer]
                cumulative += _cumulative(
                    stream, plan, layer, of_layer, strengths[layer], fills, spec
                )
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
    stream: LabelledImages, plan: Plan, spec: AblationSpec
) -> dict[str, ChannelStrength]:
    """Channel means where they are needed: for mode `mean`, or the order by activation."""
    layers: dict[str, None] = {}
    if spec.mode is Mode.MEAN:
        layers |= dict.fromkeys([*plan.channels, *plan.swept])
    if spec.cumulative:
        layers |= dict.fromkeys(plan.swept)
    if not layers:
        return {}
    stream.first(1)
    images = stream.images(stream.model.batch_size(spec.batch_size) or IMAGES)
    return channel_strengths(stream.model, images, {layer: plan.axes[layer] for layer in layers})


def _measure(
    stream: LabelledImages,
    ablations: Sequence[Channels],
    fills: Fills,
    axes: Mapping[str, int],
    recorded: int,
    spec: AblationSpec,
    journal: Journal | None = None,
) -> tuple[Counts | Measured, NDArray[np.int64], Engine]:
    """Runs every ablation on every image and counts or measures the answers.

    Returns them, the indices (M,) of the images that counted, and what ran.
    """
    model = stream.model
    passes = ablation_passes(
        model,
        ablations,
        fills,
        first=stream.first(REHEARSED),
        memory=(spec.memory or 0) * _MEBIBYTE or default_memory(model.device),
        images=model.batch_size(spec.batch_size),
        axes=axes,
    )
    measure = measure_of(model.head)
    tally: Tally | Answers
    if measure is None:
        tally = Tally(len(ablations), model.classes, recorded, model.device, model.head)
    else:
        tally = Answers(len(ablations), len(stream.data), model.classes, measure, recorded > 1)
    part, indices = stream.data.part, [torch.zeros(0, dtype=torch.int64)]
    done = part.start

    def arrays() -> Arrays:
        return {INDICES: torch.cat(indices).numpy(), **tally.arrays()}

    def save(journal: Journal) -> None:
        errors = {place: text for place, text in stream.errors.items() if place < done}
        counts = arrays()
        _check_finite(model, counts)
        journal.save(done, errors, counts)

    if journal and (stored := journal.load(arrays(), AXES, check)):
        indices.append(torch.from_numpy(stored.arrays[INDICES]))
        stream.errors |= stored.errors
        tally.restore(stored.arrays)
        stream.progress(stored.done - part.start)
        done = stored.done
    if passes.images > 1:
        check_batch(model.outputs, stream.first(CHECKED), model.name)
    with torch.inference_mode():
        for places, images, truth in stream.all(passes.images, done):
            tally.start(truth)
            passes.run(images, tally.add)
            indices.append(places)
            done = int(places[-1]) + 1
            if journal and journal.due:
                save(journal)
    done = part.stop
    if journal:
        save(journal)
    else:
        _check_finite(model, arrays())
    return tally.finish(), torch.cat(indices).numpy(), Engine(passes.engine, passes.reason)


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


def _cumulative(
    stream: LabelledImages,
    plan: Plan,
    layer: str,
    sweep: Sequence[FilterEffect],
    strength: ChannelStrength,
    fills: Fills,
    spec: AblationSpec,
) -> tuple[Curve, ...]:
    channels = len(sweep)
    module = named_layers(stream.model.module)[layer]
    norms = None
    if isinstance(module, nn.Conv2d):
        norms = module.weight.detach().float().flatten(1).norm(dim=1).cpu().numpy()
    orders = removal_orders(channels, sweep, norms, strength.magnitude.cpu().numpy(), spec.seed)
    ablations = cumulative_ablations(layer, channels, orders)
    outcome, _indices, _engine = _measure(stream, ablations, fills, plan.axes, 1, spec)
    return curves(layer, channels, orders, outcome.mean_V)
