"""Layers by name: finding them, reading what they put out, changing what they put out.

A layer is a submodule under its dotted name (`layer1.0.conv1`). Hooks are borrowed:
`watch_outputs` and `replace_outputs` take them off again in `finally`, whatever happens in between.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from cnnviz.core.errors import UsageError, nearest

if TYPE_CHECKING:
    from cnnviz.core.models.load import Model

_log = logging.getLogger("cnnviz")


def named_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Every submodule but the root, by dotted name, in order of definition."""
    return {name: layer for name, layer in module.named_modules() if name}


def conv_layers(module: nn.Module) -> list[str]:
    """Names of the two-dimensional convolutions, in order of definition."""
    return [name for name, layer in named_layers(module).items() if isinstance(layer, nn.Conv2d)]


def find_layer(module: nn.Module, name: str, model_name: str) -> nn.Module:
    """The layer of that name.

    Raises:
        UsageError: there is none (the message offers the nearest names), or it cannot be reached.
    """
    check_open(module, model_name)
    layers = named_layers(module)
    if name in layers:
        return layers[name]
    if not layers:
        raise UsageError(
            f"no layer '{name}' in {model_name}, which shows no layers (a black box, or one layer "
            "alone); those of a network in Python are seen: --model FILE.py:FACTORY"
        )
    near = ", ".join(nearest(name, layers))
    raise UsageError(
        f"no layer '{name}' in {model_name}; the nearest are {near} "
        f"(cnnviz layers --model {model_name} lists all)"
    )


def check_open(module: nn.Module, model_name: str) -> None:
    """Sees to it that layers can be reached: archives hold one graph, whatever it once was made of.

    Raises:
        UsageError: the module is a TorchScript or torch.export archive.
    """
    kinds = [type(layer) for layer in module.modules()]
    scripted = any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds)
    exported = any(issubclass(kind, fx.GraphModule) for kind in kinds)
    if scripted or (exported and not conv_layers(module)):
        raise UsageError(
            f"{model_name} is an archive, whose layers cannot be reached; load its weights into "
            f"the network's code: --model NAME --checkpoint {model_name}"
        )


def _as_tensor(name: str, output: object) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise UsageError(
        f"layer '{name}' puts out {type(output).__name__}, not a tensor; name a layer inside it"
    )


@contextmanager
def watch_outputs(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collects what the named layers put out, each forward pass replacing the one before.

    A layer that runs more than once in a pass leaves its last output.

    Yields:
        A dict that the forward passes inside the `with` fill: layer name to output.

    Raises:
        KeyError: a name that `find_layer` would refuse.
        UsageError: the module is an archive; or a layer, on a forward pass, puts out something
            other than a tensor.
    """
    outputs: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[Tensor], Tensor]:
        def keep(output: Tensor) -> Tensor:
            # A copy, since the next layer may work in place (a ReLU behind a convolution).
            outputs.pop(name, None)  # so that the last to run comes last
            outputs[name] = output.clone()
            return output

        return keep

    with replace_outputs(module, {name: keeper(name) for name in names}):
        yield outputs


def trial_outputs(model: "Model", names: Sequence[str]) -> dict[str, Tensor]:
    """What the named layers put out for one blank image, in the order in which they last ran.

    Layers that do not run are not among them.

    Raises:
        UsageError: a layer puts out something other than a tensor.
    """
    with watch_outputs(model.module, names) as outputs:
        _run_blank(model)
    return outputs


def _run_blank(model: "Model") -> None:
    with torch.inference_mode():
        model.outputs(model.blank())


def note_repeats(model: "Model", names: Sequence[str]) -> None:
    """A line for each of these layers that runs more than once in a pass: its last run counts."""
    runs: Counter[str] = Counter()

    def counter(name: str) -> Callable[[Tensor], Tensor]:
        def count(output: Tensor) -> Tensor:
            runs[name] += 1
            return output

        return count

    with replace_outputs(model.module, {name: counter(name) for name in names}):
        _run_blank(model)
    for name, count in runs.items():
        if count > 1:
            _log.warning(
                "note: layer %r runs %d times in a forward pass; its last run is looked at",
                name,
                count,
            )


def not_run(name: str) -> UsageError:
    """What to raise where a layer is asked for that no forward pass comes by."""
    return UsageError(f"layer '{name}' does not run in a forward pass; name another one")


@contextmanager
def replace_outputs(
    module: nn.Module, changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Puts each named layer's output through a function for as long as the `with` lasts.

    Raises:
        KeyError: a name that `find_layer` would refuse.
        UsageError: the module is an archive; or a layer, on a forward pass, puts out something
            other than a tensor.
    """
    check_open(module, "FILE")
    layers = named_layers(module)

    def changer(
        name: str, change: Callable[[Tensor], Tensor]
    ) -> Callable[[nn.Module, object, object], Tensor]:
        return lambda _layer, _inputs, output: change(_as_tensor(name, output))

    with ExitStack() as stack:
        for name, change in changes.items():
            stack.callback(layers[name].register_forward_hook(changer(name, change)).remove)
        yield
