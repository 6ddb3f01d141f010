"""The same network in another form: an optimised copy, or frozen for gradients.

The optimised copy has batch norms folded into convolutions and channels-last maps. A layer that a
command watches or changes keeps its name and its output; everything else may be folded. The copy is
compared with the original on a random image, at the output and at every kept layer; a network that
cannot be traced, or whose copy gives other numbers, runs unfolded, channels-last if it can.

Gradients are those of `Tensor.backward`, which works for every network, also with re-entrant
checkpointing, which `autograd.grad` refuses.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnviz.core.device import rounding
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, one_line
from cnnviz.core.graph.fold import fold, rescaling
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.behaviour import guarded
from cnnviz.core.models.layers import conv_layers, named_layers, watch_outputs
from cnnviz.core.models.load import Model

_RECTIFIERS = (
    torch.ops.aten.threshold_backward.default,
    torch.ops.aten.hardtanh_backward.default,
)
_ACTIVATIONS = {
    "elu_backward": "ELU",
    "gelu_backward": "GELU",
    "hardswish_backward": "Hardswish",
    "hardtanh_backward": "Hardtanh",
    "leaky_relu_backward": "LeakyReLU",
    "mish_backward": "Mish",
    "_prelu_kernel_backward": "PReLU",
    "silu_backward": "SiLU",
    "softplus_backward": "Softplus",
}
"""Other activations, by the operation of their gradient."""


def fast(model: Model, keep: Collection[str] = (), *, rescaled: bool = False) -> Model:
    """Return an optimised copy; the original is not modified.

    With `rescaled`, the channels of kept convolutions may be multiplied by a number and shifted, as
    `rescaling` tells.

    Returns:
        A model whose module has the layers of `keep` under their names, or `model` itself if it
        cannot be optimised.
    """
    if model.target is not None or not conv_layers(model.module):
        return model
    image = random_image(tuple(model.blank().shape[1:]), model.device, model.precision.dtype)
    names = list(keep)
    try:
        with torch.inference_mode(False), torch.no_grad():
            free = names if rescaled else ()
            module: nn.Module = fold(trace(model.module, names), names, free)
        check_same(model.module, module, image, names)
        module = guarded(module, model.name, classes=0)
    except USER_CODE_ERRORS:
        module, layout = laid_out(model.module, image)
        if layout is not torch.channels_last:
            return model
    return replace(model, module=module, layout=torch.channels_last)


CPU_BATCH = 8
CPU_MAP = 28 * 2**20
"""glibc requests blocks of 32 MiB and more from the kernel each time, which clears their pages."""


def fitting_batch(largest: int, dtype: torch.dtype) -> int:
    """How many images the CPU should run at a time, given the units of the largest layer's maps.

    Small batches keep a layer's maps in the caches.
    """
    return max(1, min(CPU_BATCH, CPU_MAP // (max(largest, 1) * dtype.itemsize)))


def cached_batch(model: Model) -> int | None:
    """`fitting_batch` of a network, which is run once; None on other devices than the CPU."""
    if model.device.type != "cpu":
        return None
    sizes = [1]

    def note(_layer: nn.Module, _inputs: object, output: object) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 0)

    with ExitStack() as hooks, torch.inference_mode():
        for layer in named_layers(model.module).values():
            hooks.callback(layer.register_forward_hook(note).remove)
        model.outputs(model.blank())
    return fitting_batch(max(sizes), model.precision.dtype)


def random_image(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Normal noise (1, C, H, W), the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, *shape, generator=generator).to(device, dtype)


def check_same(
    module: nn.Module, other: nn.Module, image_1CHW: Tensor, layers: Sequence[str] = ()
) -> None:
    """Raise Untraceable if a copy gives other numbers: tracing freezes decisions on values."""
    if missing := [name for name in layers if name not in named_layers(other)]:
        raise Untraceable(f"layer '{missing[0]}' is not a step of its traced graph")
    # One after the other: the two may share layers, and then each would see the other's pass.
    expected, expected_layers = _outputs(module, image_1CHW, layers)
    got, got_layers = _outputs(other, image_1CHW, layers)
    _check_close(expected, got, "its traced graph")
    for name, output in expected_layers.items():
        what, found = f"layer '{name}' of its traced graph", got_layers.get(name, torch.zeros(0))
        if changed := rescaling(named_layers(other)[name]):
            scale, shift = (values[:, None, None] for values in changed)
            found = (found - shift) / scale
        _check_close(output, found, what)


def _outputs(
    module: nn.Module, image_1CHW: Tensor, layers: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.inference_mode():
        if not layers:
            return module(image_1CHW), {}
        with watch_outputs(module, layers) as outputs:
            return module(image_1CHW), outputs


def _check_close(expected: Tensor, got: Tensor, what: str) -> None:
    if expected.shape != got.shape:
        raise Untraceable(f"{what} gives outputs of another shape")
    if not torch.equal(expected.isfinite(), got.isfinite()):
        raise Untraceable(f"{what} gives numbers that are not finite elsewhere")
    difference = float((expected.float() - got.float()).abs().max())
    if difference > rounding(expected.dtype) * float(expected.float().abs().max()):
        raise Untraceable(f"{what} gives other numbers")


def laid_out(
    module: nn.Module,
    image_1CHW: Tensor,
    change: Callable[[nn.Module], None] = lambda _copy: None,
) -> tuple[nn.Module, torch.memory_format]:
    """Return a channels-last copy, or the module itself if it does not support that."""
    channels_last = torch.channels_last
    try:
        with torch.no_grad():  # otherwise a copy of TorchScript keeps its history
            plain = copy.deepcopy(module).to(memory_format=channels_last)
        change(plain)
        check_same(module, plain, image_1CHW.contiguous(memory_format=channels_last))
    except (Untraceable, *USER_CODE_ERRORS):
        return module, torch.contiguous_format
    return plain, channels_last


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Let no parameter collect a gradient inside the `with`."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def gradients(score: Tensor, tensors: Sequence[Tensor], name: str) -> list[Tensor | None]:
    """The gradient of one number with respect to some tensors; None where it does not reach.

    Call it inside the `with frozen(module)` of the forward pass; the graph is kept.
    """
    if not score.requires_grad:
        raise CnnvizError(
            f"{name} cuts its gradient (torch.no_grad, .detach() or numpy in its forward), so "
            "there is none to show; cnnviz occlude needs none"
        )
    tracked = [tensor for tensor in tensors if tensor.requires_grad]
    for tensor in tracked:
        tensor.retain_grad()
        tensor.grad = None
    try:
        score.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise CnnvizError(
            f"the backward pass of {name} fails: {one_line(error)}; cnnviz occlude needs none"
        ) from error
    result = [tensor.grad for tensor in tensors]
    for tensor in tracked:
        tensor.grad = None
    return result


class ReluRule(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces the gradient of every ReLU and ReLU6 in the backward passes inside the `with`.

    Guided back-propagation passes the positive part of the gradient (Springenberg et al. 2014),
    deconvolution the positive part of what arrives, also where the ReLU was off (Zeiler and Fergus
    2014). It is the operation of the backward pass that is replaced, so functions, modules that run
    more than once and in-place ReLUs are included, and nothing is left on the network.

    Attributes:
        count: ReLUs that the passes went through.
        others: activations whose gradient stayed as it is.
    """

    def __init__(self, deconvolve: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._deconvolve = deconvolve
        self.count = 0
        self.others: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation of the backward pass."""
        result = func(*args, **(kwargs or {}))
        if func in _RECTIFIERS and args[2] == 0:
            self.count += 1
            return (args[0] if self._deconvolve else result).clamp_min(0)
        name = getattr(func, "overloadpacket", func).__name__
        if name in _ACTIVATIONS:
            self.others.add(_ACTIVATIONS[name])
        return result
