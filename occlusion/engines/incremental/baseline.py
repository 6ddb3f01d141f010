"""The untouched image's way through the network: what masked windows are cut from.

Shapes: C channels, K classes, H W rows and columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from cnnviz.occlusion.engines.incremental.steps import Kind, Step
from cnnviz.occlusion.engines.incremental.windows import CachedMap
from cnnviz.occlusion.engines.network import channel_sums


@dataclass(frozen=True, eq=False)
class Baseline:
    """The untouched image's way through the network.

    Attributes:
        maps: what windows are cut from.
        means: values of global averages.
        logits_1K: float32.
        sums_1C: the layer's channel sums, with a layer.
    """

    maps: dict[fx.Node, CachedMap]
    means: dict[fx.Node, Tensor]
    logits_1K: Tensor
    sums_1C: Tensor | None


def run_baseline(
    steps: list[Step], output: fx.Node, layer: fx.Node | None, image_13HW: Tensor
) -> Baseline:
    """Runs every step on the whole image and keeps the maps that masks will need."""
    env: dict[fx.Node, Any] = {}
    maps: dict[fx.Node, CachedMap] = {}
    means: dict[fx.Node, Tensor] = {}
    sums = None
    for step in steps:
        node, place = step.node, step.place
        env[node] = image_13HW if step.kind is Kind.SOURCE else run_step(step, env)
        if step.keep and place.axes is not None:
            maps[node] = CachedMap(env[node], place.axes)
        if step.kind is Kind.MEAN:
            means[node] = env[node].clone()
        if node is layer:
            sums = channel_sums(env[node], place.axes)
        for dead in step.done:
            del env[dead]
    return Baseline(maps, means, env[output].float(), sums)


def run_step(step: Step, values: Mapping[fx.Node, Any]) -> Any:
    """The step's own operation on these values of its inputs."""
    node = step.node
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    return step.call(*args, **kwargs)
