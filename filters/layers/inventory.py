"""The inventory of a network: every layer with its type, shape, cost and receptive field.

The layers are those that run on an image, in the order of execution. A row is a module that has
parameters itself or contains no other module that runs. A parameter counts once, in the first
module that has it and runs; the parameters of all rows and those that no operation reads add up to
the network's, as do the MACs of all rows. Shapes and MACs are counted while the network runs once
on a blank image (by torch's operation counter; a MAC is one multiplication with its addition, in
convolutions, linear layers and matrix products, without biases).
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.layers import check_open, named_layers
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import frozen
from cnnviz.filters.channels import known_fields
from cnnviz.filters.layers.results import FieldRecord, Inventory, LayerRow

Seen = dict[str, tuple[int, tuple[int, ...] | None]]
"""Number of runs and last output shape of each module, in the order of the last runs."""


def take_inventory(model: Model, image_size: tuple[int, int] | None = None) -> Inventory:
    """Runs the network once on a blank image and lists its layers.

    Args:
        model: the network, which is not modified.
        image_size: rows and columns; the model's input size if None.

    Raises:
        UsageError: the network does not run at this size, or is an archive.
    """
    size = image_size or model.input_size
    check_open(model.module, model.name)
    seen, macs, unread = _watch(model, size)
    fields, untraceable = known_fields(model, size)
    modules = named_layers(model.module)
    rows, counted = [], {id(parameter) for parameter in unread}
    for name, (calls, shape) in seen.items():
        inside = [n for n in seen if n != name and n.startswith(f"{name}." if name else "")]
        parameters = _count(modules[name] if name else model.module, name, inside, counted)
        # A container without parameters is described by its contents.
        if inside and not parameters:
            continue
        nearest = [n for n in inside if not any(n.startswith(f"{m}.") for m in inside)]
        rows.append(
            LayerRow(
                name=name,
                type_=type(modules[name] if name else model.module).__name__,
                output_shape=shape,
                parameters=parameters,
                macs=macs.get(name, 0) - sum(macs.get(n, 0) for n in nearest),
                calls=calls,
                receptive_field=FieldRecord.of(fields[name]) if name in fields else None,
            )
        )
    return Inventory(
        image_size=size,
        parameters=sum(parameter.numel() for parameter in model.module.parameters()),
        parameters_unused=sum(parameter.numel() for parameter in unread),
        macs=macs.get("", 0),
        untraceable=untraceable,
        layers=tuple(rows),
    )


def _count(module: nn.Module, name: str, inside: list[str], counted: set[int]) -> int:
    """Parameters of a module, and of those inside that do not run, that are not `counted` yet."""
    within = tuple(n[len(name) + 1 if name else 0 :] + "." for n in inside)
    new = {
        id(parameter): parameter.numel()
        for path, parameter in module.named_parameters()
        if not path.startswith(within) and id(parameter) not in counted
    }
    counted.update(new)
    return sum(new.values())


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        self.read.update(id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter))
        return func(*args, **(kwargs or {}))


def _watch(model: Model, size: tuple[int, int]) -> tuple[Seen, dict[str, int], list[nn.Parameter]]:
    """The modules that ran; MACs by module, including modules inside; parameters not read."""
    seen: Seen = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else None
            seen[name] = seen.pop(name, (0, None))[0] + 1, shape

        return hook

    fused = torch.backends.mha.get_fastpath_enabled()
    counter, reads = FlopCounterMode(display=False), _Reads()
    try:
        # The fused attention kernels hide their products from the counter.
        torch.backends.mha.set_fastpath_enabled(False)
        with ExitStack() as stack:
            for name, layer in {"": model.module, **named_layers(model.module)}.items():
                stack.callback(layer.register_forward_hook(note(name)).remove)
            stack.enter_context(frozen(model.module))  # the counter fails on parameters
            stack.enter_context(torch.no_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(counter)
            stack.enter_context(reads)
            model.outputs(model.blank(size))
    except (CnnvizError, RuntimeError, ValueError, AssertionError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise UsageError(
            f"{model.name} does not run on images of {size[0]}x{size[1]} ({reason}); "
            f"give --image-size another size"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    unread = [p for p in model.module.parameters() if id(p) not in reads.read]
    return seen, _macs(counter, type(model.module).__name__), unread


def _macs(counter: FlopCounterMode, root: str) -> dict[str, int]:
    """MACs of each module, by dotted name; the whole network's under the empty name."""
    counts: dict[str, int] = {}
    for path, operations in counter.get_flop_counts().items():
        total = sum(operations.values()) // 2
        if path == "Global":
            counts[""] = total
        elif path.startswith(f"{root}."):
            counts[path[len(root) + 1 :]] = total
    return counts
