"""Networks of which only a part can be traced: that part, and the rest as one step of the graph.

Detectors make lists of boxes whose lengths depend on the image, which no graph holds. Most of their
arithmetic is in a backbone with its neck, which takes the image, or the image with a border, and
returns maps. That part is traced. The rest is the network itself, in which the backbone returns the
maps that are given to it.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from cnnviz.core.errors import USER_CODE_ERRORS
from cnnviz.core.graph.trace import Untraceable, trace

_FROZEN = "FrozenBatchNorm2d"
_Border = tuple[int, int, int, int]


def trace_part(network: nn.Module, image_1CHW: Tensor) -> fx.GraphModule:
    """Trace the backbone of a network, with the rest as one step; the network is not modified.

    Raises:
        Untraceable: no part that reads the image can be traced; without a message.
    """
    try:
        found = list(_backbones(network, image_1CHW))
    except USER_CODE_ERRORS as error:
        raise Untraceable from error
    for backbone, border, output in found:
        try:
            return trace(_Split(network, backbone, border, output).eval())
        except USER_CODE_ERRORS:  # a part of that one may be traced
            continue
    raise Untraceable


def _backbones(network: nn.Module, image_1CHW: Tensor) -> Iterator[tuple[nn.Module, _Border, Any]]:
    """Modules of several convolutions from the image to maps, outermost first.

    With the border that is added to the image before it (as of `pad`), and with its output.
    """
    calls: dict[nn.Module, list[tuple[tuple[Any, ...], Any]]] = {}

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        calls.setdefault(module, []).append((given, output))

    def convolutions(module: nn.Module) -> int:
        return sum(isinstance(part, nn.Conv2d) for part in module.modules())

    compiled = torch.jit.ScriptModule  # takes no hooks
    parts = [m for m in network.modules() if m is not network and not isinstance(m, compiled)]
    handles = [part.register_forward_hook(note) for part in parts]
    try:
        with torch.no_grad():
            network(image_1CHW)
    finally:
        for handle in handles:
            handle.remove()
    rows, columns = image_1CHW.shape[2:]
    for part in parts:
        if len(calls.get(part, ())) != 1 or convolutions(part) < 2:
            continue
        ((given, output),) = calls[part]
        maps = tree_leaves(output)
        if not given or not all(isinstance(m, Tensor) and m.dim() == 4 for m in (given[0], *maps)):
            continue
        if torch.equal(given[0][..., :rows, :columns], image_1CHW):
            border = (0, given[0].shape[3] - columns, 0, given[0].shape[2] - rows)
            yield part, border, output


class _Split(nn.Module):
    """A backbone, and the rest of its network."""

    def __init__(self, network: nn.Module, backbone: nn.Module, border: _Border, output: Any):
        super().__init__()
        self._border, form = border, tree_flatten(output)[1]
        self.backbone, self.rest = _thawed(backbone), _Rest(network, backbone, form)

    def forward(self, images: Tensor) -> Any:
        """The network's output."""
        padded = functional.pad(images, self._border) if any(self._border) else images
        return self.rest(images, *tree_leaves(self.backbone(padded)))


class _Rest(nn.Module):
    """A network whose backbone's maps are given."""

    one_step = True

    def __init__(self, network: nn.Module, backbone: nn.Module, form: Any) -> None:
        super().__init__()
        self._given, self._form = _Given(), form
        self.network = copy.deepcopy(network, {id(backbone): self._given})

    def forward(self, images: Tensor, *maps: Tensor) -> Any:
        """The network's output."""
        self._given.answer = tree_unflatten(list(maps), self._form)
        return self.network(images)


class _Given(nn.Module):
    """Returns what it is given beforehand."""

    answer: Any = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """What a backbone returns."""
        answer, self.answer = self.answer, None
        return answer


def _thawed(module: nn.Module) -> nn.Module:
    """A copy with batch norms in place of frozen ones, which then can be folded."""
    thawed = copy.deepcopy(module)
    for parent in list(thawed.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer).__name__.endswith(_FROZEN):
                state: Any = layer.state_dict()
                norm = nn.BatchNorm2d(len(state["weight"]), eps=getattr(layer, "eps", 1e-5))
                norm.load_state_dict(state, strict=False)
                parent.add_module(name, norm.eval().to(state["weight"]))
    return thawed
