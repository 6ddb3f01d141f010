"""Draws how far a mask reaches in each stage of ResNet-18: `python docs/draw_reach.py`."""

import io
from pathlib import Path

import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnnviz.core.graph.reach import Spans, reach
from cnnviz.core.graph.trace import Graph, describe, trace

SIZE = 224
MASK = 15
STAGES = {
    "image": None, "conv1": "conv1", "maxpool": "maxpool", "layer1.0": "layer1.0",
    "layer1.1": "layer1.1", "layer2.0": "layer2.0", "layer2.1": "layer2.1", "layer3.0": "layer3.0",
    "layer3.1": "layer3.1", "layer4.0": "layer4.0", "layer4.1": "layer4.1",
}  # fmt: skip
PLACES = {"a mask in the middle": (100, 110), "a mask in the corner": (0, 0)}
OUT = Path(__file__).parent / "img" / "occlusion-reach.png"


def main() -> None:
    """Writes the picture."""
    torch.manual_seed(0)
    graph = describe(trace(torchvision.models.resnet18(weights=None).eval()), (SIZE, SIZE))
    figure = Figure((11, 2.9), layout="constrained")
    axes = figure.subplots(len(PLACES), len(STAGES))
    for row, (name, place) in enumerate(PLACES.items()):
        spans = spans_of(graph, place)
        for column, (stage, layer) in enumerate(STAGES.items()):
            node = graph.source if layer is None else graph.layers[layer]
            draw(axes[row, column], [s[node] for s in spans])
            if row == 0:
                axes[row, column].set_title(stage, fontsize=8)
        axes[row, 0].set_ylabel(name.replace(" in ", "\nin "), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight", metadata={"Software": None})
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_bytes(buffer.getvalue())


def spans_of(graph: Graph, place: tuple[int, int]) -> list[dict[torch.fx.Node, Spans]]:
    """What the mask reaches, rows and columns."""
    return [
        reach(graph, axis, np.array([place[axis]]), np.array([place[axis] + MASK - 1]))
        for axis in (0, 1)
    ]


def draw(axes, spans: list[Spans]) -> None:  # type: ignore[no-untyped-def]
    """One map, its changed part filled, its size and share below."""
    extent = spans[0].extent
    top, left = (int(s.first_I[0]) for s in spans)
    height, width = (int(s.sizes[0]) for s in spans)
    axes.add_patch(Rectangle((0, 0), extent, extent, facecolor="#e8eef4", edgecolor="#5a6b7b"))
    axes.add_patch(Rectangle((left, top), width, height, facecolor="#c8442b"))
    axes.set_xlim(-0.02 * extent, 1.02 * extent)
    axes.set_ylim(1.02 * extent, -0.02 * extent)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    share = 100 * height * width / extent**2
    axes.set_xlabel(f"{height}×{width} of {extent}\n{share:.0f} %" if share >= 1
                    else f"{height}×{width} of {extent}\n{share:.1f} %", fontsize=7)  # fmt: skip


if __name__ == "__main__":
    main()
