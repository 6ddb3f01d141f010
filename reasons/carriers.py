"""Which filters carry what a region says: activation patching, layer by layer.

Two passes differ by one region: the original image and the occluded one. A filter whose original
activations are put into the occluded pass brings back a share of the drop (`restored`); one whose
occluded activations are put into the original pass takes a share of it (`taken`). Where either of
two filters would do, each restores all and takes nothing; where both are needed, each takes all and
restores nothing. Filters are ranked by the mean of the two shares.

Putting another pass's activations into a layer is an ablation that fills channels with them, so
suffix replay (`filters/ablation/replay.py`) runs all filters of a layer: the part before the layer
once, the part after it for many filters together.
Method: Vig et al. 2020, "Investigating Gender Bias in Language Models Using Causal Mediation
Analysis"; both directions: Heimersheim and Nanda 2024, "How to use and interpret activation
patching".
Shapes: H W rows and columns of the image, h w of a layer's maps, V patched passes, G at a time, K
classes.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.device import rounding
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.program import Program
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.layers import (
    Layout,
    Layouts,
    conv_layers,
    count_runs,
    find_layer,
    named_layers,
    not_run,
    trial_outputs,
    watch_outputs,
)
from cnnviz.core.models.load import Model
from cnnviz.filters.ablation.replay import ablation_passes, default_memory
from cnnviz.filters.channels import Channels
from cnnviz.occlusion.experiment import DEFAULT_SCORES
from cnnviz.occlusion.maps import target_scores
from cnnviz.occlusion.masks import fill_picture
from cnnviz.reasons.results import Carrier, Carriers, LayerCarriers

SHOWN = 10
"""Filters of a layer in `summary.json`."""
MOST = 4
"""How many layers are studied by default."""


class NoEffect(CnnvizError):  # noqa: N818 (a reason, not an error of the program)
    """Occluding a region changes the score no more than rounding does."""


def carriers(
    model: Model,
    image: WorkingImage,
    region_HW: Tensor,
    target: int,
    layouts: Mapping[str, Layout],
    *,
    fill: str = "mean",
    group: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _passes: None,
) -> Carriers:
    """Finds the filters that carry a region's effect on one class, or output.

    Args:
        model: not modified.
        image: of the model's input size.
        region_HW: bool.
        target: index of the class.
        layouts: of `patched_layers`.
        fill: what replaces the region.
        group: neighbouring filters that are put together.
        seed: of the fill, if it is noise.
        progress: called with the number of patched passes just done.

    Raises:
        NoEffect: occluding the region changes the score no more than rounding does.
    """
    fill_CHW = fill_picture(fill, image.pixels, model.preprocess, seed)
    covered_CHW = torch.where(region_HW, fill_CHW, image.pixels)
    passes = [_Pass(model, pixels, layouts) for pixels in (image.pixels, covered_CHW)]
    before, after = (float(one.scores(one.logits_1K, target)[0]) for one in passes)
    drop, scale = before - after, float(passes[0].logits_1K.abs().max())
    if not abs(drop) > rounding(model.precision.dtype) * scale:
        raise NoEffect(
            f"occluding the region with {fill} changes the score by {drop:.2g} only, so no filter "
            "carries anything; name another region with --region, or another --fill"
        )
    patches = ablations(layouts, group)
    restored_V = (passes[1].patched(patches, passes[0], target, progress) - after) / drop
    taken_V = (before - passes[0].patched(patches, passes[1], target, progress)) / drop
    rows = list(zip(patches, restored_V.tolist(), taken_V.tolist(), strict=True))
    return Carriers(
        region=float(region_HW.double().mean()),
        fill=fill,
        score=DEFAULT_SCORES[model.head.kind].value,
        before=before,
        after=after,
        engine=passes[0].engine,
        reason=passes[0].reason,
        layers=tuple(
            _layer(
                name, passes[0].maps(name) - passes[1].maps(name), [r for r in rows if name in r[0]]
            )
            for name in layouts
        ),
        region_HW=region_HW,
    )


class _Pass:
    """One of the two passes: its logits and the outputs of the layers that are patched."""

    engine = ""
    reason: str | None = None

    def __init__(self, model: Model, pixels_CHW: Tensor, layouts: Mapping[str, Layout]) -> None:
        self._model, self._layouts = model, layouts
        self._pixels_1CHW = model.preprocess.normalise(pixels_CHW)[None].to(model.device)
        with torch.inference_mode(), watch_outputs(model.module, list(layouts)) as outputs:
            self.logits_1K = model.logits(self._pixels_1CHW)
        self.outputs = dict(outputs)

    def maps(self, layer: str) -> Tensor:
        """The layer's output as maps (C, h, w)."""
        return self._layouts[layer].maps(self.outputs[layer])[0].float().cpu()

    def scores(self, logits_NK: Tensor, target: int) -> Tensor:
        """The class's score in each row, (N,) float64."""
        head = self._model.head
        return target_scores(logits_NK.cpu(), target, DEFAULT_SCORES[head.kind], head)

    def patched(
        self,
        ablations: Sequence[Channels],
        other: "_Pass",
        target: int,
        progress: Callable[[int], None] = lambda _passes: None,
    ) -> Tensor:
        """(V,) the score with each of these sets of channels from the other pass."""
        passes = ablation_passes(
            self._model,
            ablations,
            other.outputs,
            first=self._pixels_1CHW,
            memory=default_memory(self._model.device),
            images=1,
            axes={name: layout.axis for name, layout in self._layouts.items()},
        )
        values_V = torch.zeros(len(ablations), dtype=torch.float64)

        def consume(_images: slice, part: slice, logits_1GK: Tensor) -> None:
            values_V[part] = self.scores(logits_1GK[0], target)
            progress(logits_1GK.shape[1])

        passes.run(self._pixels_1CHW, consume)
        self.engine, self.reason = passes.engine, passes.reason
        return values_V


def ablations(layouts: Mapping[str, Layout], group: int) -> list[Channels]:
    """Returns for each layer its groups of filters, and last all of them."""
    found: list[Channels] = []
    for name, layout in layouts.items():
        count = layout.shape[0]
        found += [
            {name: tuple(range(first, min(first + group, count)))}
            for first in range(0, count, group)
        ]
        found.append({name: tuple(range(count))})
    return found


def _layer(
    name: str, changes_Chw: Tensor, rows: Sequence[tuple[Channels, float, float]]
) -> LayerCarriers:
    *groups, (_all, restored, taken) = rows
    every = sorted(
        (
            Carrier(
                layer=name,
                filter=channels[name][0],
                last=channels[name][-1],
                restored=alone,
                taken=without,
            )
            for channels, alone, without in groups
        ),
        key=lambda carrier: -abs(carrier.share),
    )
    return LayerCarriers(
        layer=name,
        of_filters=len(changes_Chw),
        restored=restored,
        taken=taken,
        restored_sum=sum(carrier.restored for carrier in every),
        taken_sum=sum(carrier.taken for carrier in every),
        filters=tuple(every[:SHOWN]),
        every=tuple(every),
        changes_Nhw=torch.stack([changes_Chw[c.filter : c.last + 1].sum(0) for c in every[:SHOWN]]),
    )


def patched_layers(model: Model, requested: Sequence[str] = ()) -> dict[str, Layout]:
    """The layers to patch and their layouts, in the order in which they run.

    Raises:
        UsageError: a layer does not exist, has no channels, does not run, or runs more than once.
    """
    for name in requested:
        find_layer(model.module, name, model.name)
    layouts = Layouts(model).of(requested) if requested else _bottlenecks(model)
    for name, times in count_runs(model, list(layouts)).items():
        if times > 1:
            raise UsageError(
                f"layer '{name}' of {model.name} runs {times} times in a forward pass; name a "
                "layer that runs once (cnnviz layers lists all)"
            )
    if missing := [name for name in requested if name not in layouts]:
        raise not_run(missing[0])
    return {name: layouts[name] for name in trial_outputs(model, list(layouts))}


def _bottlenecks(model: Model) -> dict[str, Layout]:
    """The last layer of each of the last `MOST` sizes of maps that all of the image goes through.

    All filters of such a layer together restore all of the drop. Maps of a single unit have the
    channels of the maps before them, and maps of the classes' scores carry their own class: they
    are left out. Of a network that cannot be traced, the last convolution.
    """
    try:
        traced = trace(model.module)
    except Untraceable:
        return Layouts(model).of(conv_layers(model.module)[-1:])
    program = Program(traced)
    path = [node for node in program.nodes if node in program.on_image]
    last = {read: at for at, node in enumerate(path) for read in node.all_input_nodes}
    names: dict[str, str] = {}  # by node; the shortest
    for name, node_name in traced.meta["layers"].items():
        if len(name) < len(names.get(node_name, name + " ")):
            names[node_name] = name
    through, pending = [], 0
    for at, node in enumerate(path):
        if pending <= at and node.name in names:
            through.append(names[node.name])
        pending = max(pending, last.get(node, at))
    parts, runs = named_layers(model.module), count_runs(model, through)
    once = [
        name
        for name in through
        if runs[name] == 1 and not isinstance(parts[name], nn.Dropout | nn.Identity)
    ]
    found: dict[tuple[int, int], str] = {}
    layouts = Layouts(model).of(once, refuse=False)
    for name, layout in layouts.items():
        filters, *size = layout.shape
        if max(size) > 1 and filters != model.classes:
            found[size[0], size[1]] = name
    return {name: layouts[name] for name in list(found.values())[-MOST:]}
