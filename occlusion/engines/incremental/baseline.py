"""The unchanged image's way through the network: what masked windows are cut from.

Shapes: C channels, K classes, H W rows and columns.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from cnnviz.core.graph.program import run_operations
from cnnviz.occlusion.engines.incremental.steps import Kind, Step
from cnnviz.occlusion.engines.incremental.windows import CachedMap
from cnnviz.occlusion.engines.network import channel_sums


@dataclass(frozen=True, eq=False)
class Baseline:
    """The unchanged image's way through the network.

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
    """Runs every step on the whole image and caches the maps that masks will need."""
    by_node = {step.node: step for step in steps}
    maps: dict[fx.Node, CachedMap] = {}
    means: dict[fx.Node, Tensor] = {}
    sums: dict[fx.Node, Tensor] = {}

    def keep(node: fx.Node, value: Any) -> None:
        step = by_node[node]
        if step.cached and step.info.axes is not None:
            maps[node] = CachedMap(value, step.info.axes)
        if step.kind is Kind.MEAN:
            means[node] = value.clone()
        if node is layer:
            sums[node] = channel_sums(value, step.info.axes)

    logits: Tensor = run_operations(steps, image_13HW, keep)[output]
    return Baseline(maps, means, logits.float(), sums.get(layer) if layer is not None else None)
