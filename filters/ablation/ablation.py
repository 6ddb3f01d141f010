"""Switch filters off and measure what breaks.

`ablate` runs the experiment of DESIGN's `ablate` command end to end: the untouched network, the
chosen filters off together, each filter of a layer off alone, and filters off one after the other,
all on the same labelled images, in as few passes over them as possible. The network is never
edited. Leaving parts out to see what they do is as old as physiology; for networks see Morcos et
al. 2018, "On the importance of single directions for generalization", and Zhou et al. 2018,
"Revisiting the importance of individual units in CNNs via ablation".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.labelled_images import LabelledImages, Progress, check_labels
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.layers import named_layers
from cnnviz.core.models.variants import fast
from cnnviz.core.output.journal import Arrays, Journal
from cnnviz.filters.ablation.choices import AblationSpec, Mode
from cnnviz.filters.ablation.measures import Answers, Measured, measure_of
from cnnviz.filters.ablation.passes import IMAGES, Fills
from cnnviz.filters.ablation.replay import REHEARSED, ablation_passes, default_memory
from cnnviz.filters.ablation.sweep import (
    Curve,
    FilterEffect,
    cumulative_ablations,
    curves,
    effects,
    measured_effects,
    removal_orders,
)
from cnnviz.filters.ablation.tally import AXES, INDICES, Counts, Tally
from cnnviz.filters.channels.shapes import ChannelStrength, LayerChannels, channel_strengths
from cnnviz.filters.channels.spec import Channels, Pick, Selection, expand, resolve

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

ALL = "all"
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Plan:
    """What was asked, in channels that exist.

    Attributes:
        channels: switched off together; empty for none.
        swept: layer to its number of channels.
        counts: the same, for the layers of `channels`.
    """

    channels: Channels
    swept: Mapping[str, int]
    counts: Mapping[str, int]

    @property
    def swept_filters(self) -> list[tuple[str, int]]:
        """Every filter of the sweep, in order."""
        return [(layer, f) for layer, count in self.swept.items() for f in range(count)]

    @property
    def silenced(self) -> tuple[str, ...]:
        """Layers all of whose filters are switched off together."""
        return tuple(name for name, off in self.channels.items() if len(off) == self.counts[name])


@dataclass(frozen=True, eq=False)
class AblationResult:
    """What came out.

    Attributes:
        plan: which filters.
        mode: what stood in for them.
        counts: of right and wrong answers: the untouched network (ablation 0), the filters off
            together (ablation 1, where asked), and the sweep; None where answers are measured.
        measured: the same, where no single class is right.
        indices: (M,) places in the data of the images that counted.
        sweep: the effect of each swept filter, in order of the network.
        curves: of the cumulative removal.
        engine: `replay` or `full`.
        reason: why not `replay`, where it is not.
        errors: (image, message) of the images that did not count.
    """

    plan: Plan
    mode: Mode
    counts: Counts | None
    measured: Measured | None
    indices: "np.ndarray"
    sweep: tuple[FilterEffect, ...]
    curves: tuple[Curve, ...]
    engine: str
    reason: str | None
    errors: tuple[tuple[str, str], ...]


def make_plan(model: "Model", spec: AblationSpec) -> Plan:
    """Looks up every filter that is asked for.

    Raises:
        UsageError: nothing is asked for, or something that is not there.
    """
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
        wanted = () if text == ALL else tuple(part.strip() for part in text.split("+"))
        selection = Selection(text, wanted, Pick.ALL)
        swept |= layers.counts(expand(selection, names, convolutions))
    if not swept and not channels:
        raise UsageError(f"{model.name} has no convolution; name layers whose output has channels")
    return Plan(channels, swept, layers.counts(list(channels)))


@dataclass(frozen=True)
class _Run:
    """All ablations on all images."""

    counts: Counts | None
    measured: Measured | None
    indices: "np.ndarray"
    engine: str
    reason: str | None

    @property
    def levels_V(self) -> "np.ndarray":  # noqa: N802 (a shape)
        """Accuracy, or what else is measured."""
        if self.measured is not None:
            return self.measured.mean_V
        assert self.counts is not None  # noqa: S101 (one of the two)
        levels: np.ndarray = self.counts.correct.sum(axis=1) / self.counts.images.sum()
        return levels


class Ablation:
    """One experiment, checked and ready to run.

    Args:
        model: the network.
        data: labelled images.
        spec: what to do.

    Raises:
        UsageError: the specification or the labels do not fit the model.
    """

    def __init__(self, model: "Model", data: ImageData, spec: AblationSpec) -> None:
        if model.region is not None:
            raise UsageError(f"ablate judges answers, and {model.unjudged}")
        self.model, self.data, self.spec = model, data, spec
        self.classes = check_labels(data, model)
        self.plan = make_plan(model, spec)

    @property
    def passes(self) -> int:
        """How often the experiment goes through the data."""
        averages = self.spec.mode is Mode.MEAN or self.spec.cumulative
        return 1 + averages + self.spec.cumulative * len(self.plan.swept)

    def refuse_shares(self) -> None:
        """Refuses what needs all images before the first of them is judged.

        Raises:
            UsageError: channel means over the data, or orders of removal that hang on them.
        """
        asked = ["--mode mean"] * (self.spec.mode is Mode.MEAN)
        asked += ["--cumulative"] * self.spec.cumulative
        if asked:
            raise UsageError(
                f"{' and '.join(asked)} cannot be shared out: each share would need channel means "
                "over all images; leave it out, or run it in one piece (--shard 0/1)"
            )

    def journal(self, path: Path, *, resume: bool) -> Journal:
        """The journal of this experiment's counts."""
        model, data, plan = self.model, self.data, self.plan
        identity = {
            "weights": model.weights_sha256,
            "model": model.name,
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
        """Runs it.

        Args:
            progress: called with the number of images just gone through, in each pass.
            journal: where to save the counts of `--filters` and `--sweep`, if anywhere.

        Raises:
            CnnvizError: no image can be read, or the network's answers are not numbers.
        """
        plan, spec = self.plan, self.spec
        quick = fast(self.model, [*self.plan.channels, *self.plan.swept])
        stream = LabelledImages(self.data, quick, self.classes, progress)
        strengths = _strengths(stream, plan, spec)
        fills = _fills(strengths, spec.mode)
        together: list[Channels] = [{}, plan.channels] if plan.channels else [{}]
        alone: list[Channels] = [{layer: (channel,)} for layer, channel in plan.swept_filters]
        ran = _measure(stream, [*together, *alone], fills, len(together), spec, journal)
        sweep = _effects(ran, plan.swept_filters, len(together))
        found: list[Curve] = []
        if spec.cumulative:
            for layer in plan.swept:
                own = [effect for effect in sweep if effect.layer == layer]
                found += _cumulative(stream, layer, own, strengths[layer], fills, spec)
        messages = sorted(stream.errors.items())
        return AblationResult(
            plan=plan,
            mode=spec.mode,
            counts=ran.counts,
            measured=ran.measured,
            indices=ran.indices,
            sweep=sweep,
            curves=tuple(found),
            engine=ran.engine,
            reason=ran.reason,
            errors=tuple((self.data.examples[place].path, text) for place, text in messages),
        )


def ablate(
    model: "Model", data: ImageData, spec: AblationSpec, progress: Progress = lambda _images: None
) -> AblationResult:
    """Runs the whole experiment; see the module's text, and `Ablation` for what is raised."""
    return Ablation(model, data, spec).run(progress)


def _strengths(
    stream: LabelledImages, plan: Plan, spec: AblationSpec
) -> dict[str, ChannelStrength]:
    """Channel means where something needs them: mode `mean`, or the order by activation."""
    wanted: dict[str, None] = {}
    if spec.mode is Mode.MEAN:
        wanted |= dict.fromkeys([*plan.channels, *plan.swept])
    if spec.cumulative:
        wanted |= dict.fromkeys(plan.swept)
    if not wanted:
        return {}
    stream.first(1)
    images = stream.images(stream.model.batch_size(spec.batch_size) or IMAGES)
    return channel_strengths(stream.model, images, list(wanted))


def _fills(strengths: Mapping[str, ChannelStrength], mode: Mode) -> Fills:
    if mode is Mode.ZERO:
        return {}
    return {layer: strength.mean for layer, strength in strengths.items()}


def _measure(
    stream: LabelledImages,
    ablations: Sequence[Channels],
    fills: Fills,
    recorded: int,
    spec: AblationSpec,
    journal: Journal | None = None,
) -> _Run:
    """Every ablation on every image, counted or measured."""
    model = stream.model
    memory = (spec.memory or 0) * _MEBIBYTE or default_memory(model.device)
    first = stream.first(REHEARSED)
    passes = ablation_passes(
        model,
        ablations,
        fills,
        first=first,
        memory=memory,
        images=model.batch_size(spec.batch_size),
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
        journal.save(done, errors, arrays())

    if journal and (stored := journal.load(arrays(), AXES)):
        indices.append(torch.from_numpy(stored.arrays[INDICES]))
        stream.errors |= stored.errors
        tally.restore(stored.arrays)
        stream.progress(stored.done - part.start)
        done = stored.done
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
    places_M = torch.cat(indices).numpy()
    found = tally.finish()
    if isinstance(found, Counts):
        _check_finite(model, found)
        return _Run(found, None, places_M, passes.engine, passes.reason)
    if found is None:
        raise _not_finite(model, "untouched, or with filters switched off")
    return _Run(None, found, places_M, passes.engine, passes.reason)


def _check_finite(model: "Model", counts: Counts) -> None:
    wrong = np.flatnonzero(~np.isfinite(counts.probability).all(axis=1))
    if wrong.size:
        raise _not_finite(model, "untouched" if wrong[0] == 0 else "with filters switched off")


def _not_finite(model: "Model", when: str) -> CnnvizError:
    return CnnvizError(
        f"{model.name} gives answers that are not numbers ({when}) in {model.precision.value}; "
        "use --precision fp32, or check the weights"
    )


def _effects(ran: _Run, filters: Sequence[tuple[str, int]], first: int) -> tuple[FilterEffect, ...]:
    if ran.measured is not None:
        return measured_effects(ran.measured, filters, first)
    assert ran.counts is not None  # noqa: S101 (one of the two)
    return effects(ran.counts, filters, first)


def _cumulative(
    stream: LabelledImages,
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
    ran = _measure(stream, ablations, fills, 1, spec)
    return curves(layer, channels, orders, ran.levels_V)
