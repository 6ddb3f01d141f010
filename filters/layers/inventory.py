"""What a network consists of: every layer with its type, shape, cost and receptive field.

The layers are those that run on an image, in the order in which they do. A row stands for a module
that has parameters of its own or holds no other module that runs, so that parameters and MACs of
all rows add up to the network's. Shapes and MACs are counted while the network runs once on a blank
image (torch's own operation counter; a MAC is one multiplication with its addition, in
convolutions, linear layers and matrix products, without biases).
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.receptive_field import ReceptiveField, receptive_fields
from cnnviz.core.graph.trace import Untraceable
from cnnviz.core.models.layers import check_open, named_layers
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import frozen


@dataclass(frozen=True, eq=False)
class LayerRow:
    """One layer.

    Attributes:
        name: dotted name; empty for parameters that the network itself owns.
        kind: its class.
        output_shape: without the batch axis; of the last run, where it runs more than once. None
            where it puts out something other than a tensor.
        parameters: its own, and those of modules in it that are never run by themselves.
        macs: of all its runs, without those of modules in it that have rows of their own.
        calls: how many times it runs in one pass.
        field: what its units see (of the last run); None where the network cannot be traced.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...] | None
    parameters: int
    macs: int
    calls: int
    field: ReceptiveField | None


@dataclass(frozen=True, eq=False)
class Inventory:
    """All layers of a network.

    Attributes:
        rows: in order of execution (of their last run).
        image_size: rows and columns of the image.
        parameters: of the whole network, those that do not run included.
        unused: of those, the parameters of modules that do not run on an image (training heads).
        macs: of one pass over one image.
        untraceable: why there are no receptive fields, if there are none.
    """

    rows: tuple[LayerRow, ...]
    image_size: tuple[int, int]
    parameters: int
    unused: int
    macs: int
    untraceable: str | None


@dataclass
class _Seen:
    """What one module did during the pass."""

    turn: int
    calls: int
    shape: tuple[int, ...] | None


def take_inventory(model: Model, image_size: tuple[int, int] | None = None) -> Inventory:
    """Runs the network once on a blank image and writes down what is in it.

    Args:
        model: borrowed.
        image_size: rows and columns; the model's input size if not given.

    Raises:
        UsageError: the network does not run at this size, or is an archive.
    """
    size = image_size or model.input_size
    check_open(model.module, model.name)
    seen, macs = _watch(model, size)
    fields, untraceable = _fields(model, size)
    modules = named_layers(model.module)
    rows = []
    for name in sorted(seen, key=lambda name: seen[name].turn):
        inside = [n for n in seen if n != name and n.startswith(f"{name}." if name else "")]
        parameters = _count(modules[name] if name else model.module, name, inside)
        # Containers that do nothing but call others are told by their contents.
        if inside and not parameters:
            continue
        nearest = [n for n in inside if not any(n.startswith(f"{m}.") for m in inside)]
        rows.append(
            LayerRow(
                name=name,
                kind=type(modules[name] if name else model.module).__name__,
                output_shape=seen[name].shape,
                parameters=parameters,
                macs=macs.get(name, 0) - sum(macs.get(n, 0) for n in nearest),
                calls=seen[name].calls,
                field=fields.get(name),
            )
        )
    total = sum(parameter.numel() for parameter in model.module.parameters())
    used = sum(row.parameters for row in rows)
    return Inventory(tuple(rows), size, total, total - used, macs.get("", 0), untraceable)


def _count(module: nn.Module, name: str, inside: list[str]) -> int:
    """Parameters in a module that belong to none of the modules inside that run."""
    within = tuple(n[len(name) + 1 if name else 0 :] + "." for n in inside)
    return sum(
        parameter.numel()
        for path, parameter in module.named_parameters()
        if not path.startswith(within)
    )


def _watch(model: Model, size: tuple[int, int]) -> tuple[dict[str, _Seen], dict[str, int]]:
    """What ran, in which turn and with which output; MACs by module, those inside included."""
    seen: dict[str, _Seen] = {}
    turn = 0

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            nonlocal turn
            turn += 1
            shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else None
            calls = seen[name].calls + 1 if name in seen else 1
            seen[name] = _Seen(turn, calls, shape)

        return hook

    fused = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
    try:
        # The fused attention kernels hide their products from the counter.
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as stack:
            for name, layer in {"": model.module, **named_layers(model.module)}.items():
                stack.callback(layer.register_forward_hook(note(name)).remove)
            stack.enter_context(frozen(model.module))  # or the counter stumbles over parameters
            stack.enter_context(torch.no_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(counter)
            model.outputs(model.blank(size))
    except (CnnvizError, RuntimeError, ValueError, AssertionError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UsageError(
            f"{model.name} does not run on images of {size[0]}x{size[1]} ({reason}); "
            f"give --image-size another size"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return seen, _macs(counter, type(model.module).__name__)


def _macs(counter: FlopCounterMode, root: str) -> dict[str, int]:
    """MACs of each module, by dotted name; the whole network's under the empty name."""
    found: dict[str, int] = {}
    for path, operations in counter.get_flop_counts().items():
        total = sum(operations.values()) // 2
        if path == "Global":
            found[""] = total
        elif path.startswith(f"{root}."):
            found[path[len(root) + 1 :]] = total
    return found


def _fields(model: Model, size: tuple[int, int]) -> tuple[dict[str, ReceptiveField], str | None]:
    try:
        return receptive_fields(model.module, size, channels=model.preprocess.channels), None
    except Untraceable as error:
        return {}, str(error)
