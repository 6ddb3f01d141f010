"""Writes the table of torchvision's networks into receptive-fields.md, between two comments.

    python docs/write_receptive_fields.py            rewrites the table
    python docs/write_receptive_fields.py --check    exits with 1 where it differs

For each family the largest finite receptive field of a map, as `cnnviz layers` reports it, on
images of the size that the published weights take. Weights play no part.
"""

import argparse
import sys
from pathlib import Path

import torchvision
from torch import nn

from cnnviz.core.graph.receptive_field import ReceptiveField, node_fields
from cnnviz.core.graph.trace import describe, trace
from cnnviz.core.models.layers import named_layers

BEGIN = "<!-- table: written by docs/write_receptive_fields.py -->"
END = "<!-- end of table -->"
PAGE = Path(__file__).parent / "receptive-fields.md"
SIZES = {"inception_v3": 299}
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")
NETWORKS = (
    "alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "squeezenet1_0", "squeezenet1_1", "googlenet",
    "inception_v3", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "densenet121", "densenet161",
    "densenet169", "densenet201", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "mnasnet0_5", "mnasnet1_0", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "regnet_x_400mf",
    "regnet_x_8gf", "regnet_y_400mf", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny",
    "convnext_base",
)  # fmt: skip
HEAD = (
    "| network | last convolution of finite size | size | jump | start | last map of finite size "
    "| size | jump |\n|---|---|---|---|---|---|---|---|"
)


def fields_of(name: str) -> tuple[nn.Module, dict[str, ReceptiveField]]:
    """A network and the receptive fields of its layers, in order of execution."""
    extra = {"aux_logits": False, "init_weights": False} if name in WITHOUT_AUXILIARY else {}
    module = torchvision.models.get_model(name, weights=None, **extra).eval()
    side = SIZES.get(name, 224)
    graph = describe(trace(module), (side, side))
    by_node = node_fields(graph)
    order = {node: index for index, node in enumerate(graph.info)}
    named = sorted(graph.layers.items(), key=lambda item: order[item[1]])
    return module, {layer: by_node[node] for layer, node in named if node in by_node}


def line_of(name: str) -> str:
    """One row of the table."""
    module, fields = fields_of(name)
    layers = named_layers(module)
    maps = [(n, f) for n, f in fields.items() if not f.is_global and f.units != (1, 1)]
    last, widest = maps[-1]
    conv, field = next((n, f) for n, f in reversed(maps) if isinstance(layers[n], nn.Conv2d))
    cells = (name, f"`{conv}`", *numbers(field), f"`{last}`", *numbers(widest)[:2])
    return "| " + " | ".join(cells) + " |"


def numbers(field: ReceptiveField) -> tuple[str, str, str]:
    """Size, jump and start; both axes where they differ."""
    pairs = (field.size, field.jump, field.start)
    return tuple(  # type: ignore[return-value]
        f"{a:g}" if a == b else f"{a:g}, {b:g}" for a, b in pairs
    )


def main() -> int:
    """Rewrites or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description="the table of receptive-fields.md")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    table = "\n".join([HEAD, *map(line_of, NETWORKS)])
    wanted = f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
    if page == wanted:
        return 0
    if check:
        print(f"{PAGE.name}: run docs/write_receptive_fields.py", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
