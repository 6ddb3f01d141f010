"""The features of images: the input of the classifier head, or the output of any layer.

The head is located in the traced graph: going back from the output through operations without
weights (activation, pooling, reshaping), it is the first one that mixes channels. Its input is the
penultimate features, regardless of the layers' names. If that fails, the head is the linear layer
whose output is the network's output. A map is averaged over its positions, or flattened.

Shapes: N images, C channels, H W rows and columns, T tokens, D features, K classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.fold import is_noop
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.layers import (
    Form,
    Layouts,
    check_open,
    find_layer,
    named_layers,
    not_run,
    watch_outputs,
)
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import fast
from cnnviz.embeddings.options import PENULTIMATE, Pool

MIXING_LAYERS = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
MIXING_FUNCTIONS = frozenset(
    [
        "linear",
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "matmul",
        "mm",
        "addmm",
        "bmm",
        "einsum",
        "cdist",
    ]
)

Run = Callable[[Tensor], tuple[object, Tensor]]
"""From images to the output of the layer, and the logits."""


def _name(target: Any) -> str:
    """`linear` for F.linear, torch.ops.aten.linear.default and the like."""
    packet = getattr(target, "overloadpacket", target)
    return target if isinstance(target, str) else getattr(packet, "__name__", str(target))


def _mixes_channels(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), MIXING_LAYERS)
    return node.op in ("call_function", "call_method") and _name(node.target) in MIXING_FUNCTIONS


def _reaches_image(node: fx.Node) -> bool:
    """Whether a node depends on the image, rather than on parameters only."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current.op == "placeholder":
            return True
        waiting += [before for before in current.all_input_nodes if before not in seen]
        seen.update(current.all_input_nodes)
    return False


def head_input(traced: fx.GraphModule) -> fx.Node:
    """The node whose value is the input of the classifier head.

    The head is what the paths back from the output meet first: one operation with weights, or
    several of the same input.
    """
    met: set[fx.Node] = set()
    seen: set[fx.Node] = set()
    waiting = list(traced.graph.find_nodes(op="output"))
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node in seen or not _reaches_image(node):
                continue
            seen.add(node)
            ends = node.op == "placeholder" or _mixes_channels(traced, node)
            (met.add if ends else waiting.append)(node)
    inputs = [n for head in met for n in head.all_input_nodes if _reaches_image(n)]
    before = list({_without_noops(traced, node) for node in inputs})
    if len(inputs) != len(met) or len(before) != 1:
        raise UsageError(
            "the classifier head was not found (no single layer with weights comes before the "
            "output); name the layer whose features you want with --layer"
        )
    return inputs[0] if len(met) == 1 else before[0]


def _without_noops(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node that a chain of dropouts and identities, which change nothing, starts from."""
    while is_noop(traced, node):
        node = node.all_input_nodes[0]
    return node


def _with_value_of(traced: fx.GraphModule, node: fx.Node) -> fx.GraphModule:
    """The network, returning the value of a node and its output."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(traced.graph, copies)
    graph.output((copies[node], result))
    return fx.GraphModule(traced, graph)


def _run_penultimate(model: Model) -> tuple[Run, str]:
    if not model.classes:  # the classifier is missing, so its input is the output
        return lambda images: (rows := model.logits(images), rows), f"{PENULTIMATE} (output)"
    try:
        node = head_input(trace(model.module))
        quick = fast(model)
        traced = trace(quick.module)
        both = _with_value_of(traced, head_input(traced))
    except (Untraceable, UsageError) as error:
        check_open(model.module, model.name)
        if (head := last_linear(model)) is not None:
            return _run_input(fast(model, [head]), head), f"{PENULTIMATE} (before {head})"
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"the penultimate layer of {model.name} was not found: {error}; "
            "name the layer whose features you want with --layer"
        ) from error

    def run(images_N3HW: Tensor) -> tuple[object, Tensor]:
        pinned = images_N3HW.is_pinned()
        images = images_N3HW.to(model.device, model.precision.dtype, non_blocking=pinned)
        inner, logits = both(images.contiguous(memory_format=quick.layout))
        return inner, logits.float()

    where = str(node.target) if node.op == "call_module" else node.name
    return run, f"{PENULTIMATE} ({where})"


def last_linear(model: Model) -> str | None:
    """Find the linear layer whose output is the network's; for networks that cannot be traced."""
    layers = named_layers(model.module)
    linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
    noise = torch.randn(model.blank().shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), watch_outputs(model.module, linear) as outputs:
        rows = model.outputs(noise)
    return next((name for name, x in outputs.items() if torch.equal(x.float(), rows)), None)


def _run_input(model: Model, name: str) -> Run:
    layer = named_layers(model.module)[name]

    def run(images_N3HW: Tensor) -> tuple[object, Tensor]:
        inputs: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _layer, given: inputs.append(given[0]))
        try:
            logits = model.logits(images_N3HW)
        finally:
            hook.remove()
        return inputs[-1], logits

    return run


def _run_layer(model: Model, name: str) -> Run:
    find_layer(model.module, name, model.name)

    layout = Layouts(model).of([name], refuse=False).get(name)
    last = layout is not None and layout.form is Form.LAST
    quick = fast(model, [name])

    def run(images_N3HW: Tensor) -> tuple[object, Tensor]:
        with watch_outputs(quick.module, [name]) as outputs:
            logits = quick.logits(images_N3HW)
        output = outputs.get(name)
        return output.movedim(3, 1) if last and output is not None else output, logits

    return run


class FeatureExtractor:
    """Computes a feature vector of each image, and the logits.

    Attributes:
        layer: a description of the layer.
        pool: how a map becomes a vector.
    """

    def __init__(self, model: Model, layer: str = PENULTIMATE, pool: Pool = Pool.MEAN) -> None:
        """Finds the layer."""
        self.pool = pool
        if layer == PENULTIMATE:
            self._run, self.layer = _run_penultimate(model)
        else:
            self._run, self.layer = _run_layer(model, layer), layer

    @torch.inference_mode()
    def __call__(self, images_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images to float32 features (N, D) and logits (N, K), on the model's device."""
        output, logits = self._run(images_N3HW)
        return self._pooled(output, len(images_N3HW)), logits

    def _pooled(self, output: object, count: int) -> Tensor:
        if output is None:
            raise not_run(self.layer)
        if not isinstance(output, Tensor) or output.shape[:1] != (count,) or not output.numel():
            what = (
                f"of shape {tuple(output.shape)}"
                if isinstance(output, Tensor)
                else f"a {type(output).__name__}"
            )
            raise CnnvizError(
                f"layer '{self.layer}' gives no features: its output is {what} for {count} images; "
                "name another --layer"
            )
        values = output.float()
        if values.ndim > 2 and self.pool == Pool.MEAN:
            # Tokens are (N, T, D), maps (N, C, H, W).
            values = values.mean(1) if values.ndim == 3 else values.flatten(2).mean(2)
        return values.reshape(count, -1)
