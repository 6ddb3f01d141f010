"""The inventory of a network: every layer with its type, shape, cost and receptive field.

The layers are those that run on an image, in the order of execution. A row is a module that has
parameters itself or contains no other module that runs, so parameters and MACs of all rows add up
to the network's. Shapes and MACs are counted while the network runs once on a blank image (by
torch's operation counter; a MAC is one multiplication with its addition, in convolutions, linear
layers and matrix products, without biases).
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
    seen, macs = _watch(model, size)
    fields, untraceable = known_fields(model, size)
    modules = named_layers(model.module)
    rows = []
    for name, (calls, shape) in seen.items():
        inside = [n for n in seen if n != name and n.startswith(f"{name}." if name else "")]
        parameters = _count(modules[name] if name else model.module, name, inside)
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
    total = sum(parameter.numel() for parameter in model.module.parameters())
    used = sum(row.parameters for row in rows)
    return Inventory(
        image_size=size,
        parameters=total,
        parameters_unused=total - used,
        macs=macs.get("", 0),
        untraceable=untraceable,
        layers=tuple(rows),
    )


def _count(module: nn.Module, name: str, inside: list[str]) -> int:
    """Parameters of a module that belong to none of the modules inside that run."""
    within = tuple(n[len(name) + 1 if name else 0 :] + "." for n in inside)
    return sum(
        parameter.numel()
        for path, parameter in module.named_parameters()
        if not path.startswith(within)
    )


def _watch(model: Model, size: tuple[int, int]) -> tuple[Seen, dict[str, int]]:
    """The modules that ran; MACs by module, including those of modules inside."""
    seen: Seen = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shape = tuple(output.shape[1:]) if isinstance(output, Tensor) else None
            seen[name] = seen.pop(name, (0, None))[0] + 1, shape

        return hook

    fused = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False)
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
    counts: dict[str, int] = {}
    for path, operations in counter.get_flop_counts().items():
        total = sum(operations.values()) // 2
        if path == "Global":
            counts[""] = total
        elif path.startswith(f"{root}."):
            counts[path[len(root) + 1 :]] = total
    return counts
