"""Networks with several inputs: one is the image, the others stay fixed.

Shapes: N images.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import USER_CODE_ERRORS, UsageError
from cnnviz.core.models.preprocess import Preprocess

_SIDES = {nn.Conv1d: "length", nn.Conv2d: "H, W", nn.Conv3d: "D, H, W"}

Reader = Callable[[Preprocess], Tensor]
"""Reads an input for one image, without the axis of the batch; images are prepared so."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """An input that is the same for every image; one step of a traced network."""

    value: Tensor
    """For one image, without the axis of the batch."""

    def __deepcopy__(self, _memo: object) -> "Fixed":
        return self

    def repeated(self, images: Any) -> Any:
        """(N, …) for N images, on their device, and in their type unless of whole numbers."""
        if isinstance(images, fx.Proxy):
            return images.tracer.create_proxy("call_function", self.repeated, (images,), {})
        kind = images.dtype if self.value.is_floating_point() else None
        return self.value.to(images.device, kind).expand(len(images), *self.value.shape)


def parameters(module: nn.Module) -> dict[str, bool]:
    """The inputs of a network's `forward`, and whether each is required; none if unknown."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    try:
        found = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return {}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default is p.empty for p in found if p.kind not in variable}


def with_inputs(
    module: nn.Module,
    name: str,
    given: Sequence[tuple[str, Reader]],
    covered: str | None,
    preprocess: Preprocess,
) -> nn.Module:
    """Let a network take one image, with its other inputs fixed; layers keep their names.

    Args:
        module: its class is replaced if there are other inputs.
        name: its name, for messages.
        given: the other inputs' names and readers.
        covered: the input that is the image; None for the first one without a file.
        preprocess: of images among the files.

    Raises:
        UsageError: an input is missing, unknown or given twice.
        CnnvizError: a file cannot be read.
    """
    known = parameters(module)
    files = dict(given)
    unknown = [key for key in (*files, *filter(None, [covered])) if key not in known]
    if unknown:
        raise UsageError(f"{name} has no input '{unknown[0]}'; {_described(module, known)}")
    if len(files) < len(given) or covered in files:
        twice = covered if covered in files else next(k for k, r in given if files[k] is not r)
        raise UsageError(f"the input '{twice}' of {name} is given twice (--input, --cover)")
    free = [key for key, required in known.items() if required and key not in files]
    image = covered or next(iter(free or [key for key in known if key not in files]), None)
    missing = [key for key in free if key != image]
    if missing:
        raise UsageError(
            f"{name} takes {len([*filter(None, known.values())])} inputs "
            f"({_described(module, known)}); "
            f"--input {missing[0]}=FILE gives '{missing[0]}' (image, .npy, .json or .csv), and "
            f"--cover says which one is the image ('{image}' if it is not given)"
        )
    if not known or (not files and image == next(iter(known))):
        return module
    if image is None:
        raise UsageError(f"--input gives all inputs of {name}; leave out the one that is the image")
    return _fixed(module, image, {k: Fixed(read(preprocess)) for k, read in files.items()})


def _described(module: nn.Module, known: Mapping[str, bool]) -> str:
    shapes = _shapes(module)
    named = (
        f"{key}{shapes.get(key, '')}{'' if required else ' (optional)'}"
        for key, required in known.items()
    )
    return f"its forward takes {', '.join(named) or 'nothing that is known'}"


def _shapes(module: nn.Module) -> dict[str, str]:
    """The shapes of inputs that go to a layer directly, by that layer."""
    try:
        graph = fx.Tracer().trace(module)
    except USER_CODE_ERRORS:
        return {}
    shapes = {}
    for node in graph.find_nodes(op="placeholder"):
        for user in node.users:
            if user.op != "call_module" or user.args[:1] != (node,):
                continue
            layer: Any = module.get_submodule(str(user.target))
            if isinstance(layer, nn.Linear):
                shapes[node.name] = f" (N, {layer.in_features})"
            elif isinstance(layer, nn.Embedding):
                shapes[node.name] = f" (whole numbers below {layer.num_embeddings})"
            elif sides := _SIDES.get(type(layer)):
                shapes[node.name] = f" (N, {layer.in_channels}, {sides})"
    return shapes


def _fixed(module: nn.Module, image: str, others: Mapping[str, Fixed]) -> nn.Module:
    kind: Any = type(module)

    def forward(self: nn.Module, x: Tensor) -> Any:
        fixed = {name: value.repeated(x) for name, value in others.items()}
        return kind.forward(self, **{image: x}, **fixed)

    shapes = ((name, tuple(fixed.value.shape)) for name, fixed in others.items())
    text = ", ".join(f"'{name}' of shape {shape}" for name, shape in shapes)
    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "others": text})
    return module
