"""What a network does that a plain function of one picture would not: found out by trying.

Every analysis takes it that the answer to a picture depends on that picture alone, and is the same
each time. Batch statistics at evaluation, a maximum over the batch or minibatch deviation break the
first, dropout that nobody switches off breaks the second. Two random pictures tell: alone, again,
and together.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from cnnviz.core.choices import LUMINANCE
from cnnviz.core.device import is_out_of_memory, rounding
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, located

_REPEATED = 1e-5  # of the largest |score|: the same pass again


@dataclass(frozen=True)
class Habits:
    """How a network answers.

    Attributes:
        mixes_batch: the answer to a picture depends on the others in its batch.
        noise: the largest difference of two passes over one picture, in its scores' unit; 0 where
            they are alike.
        scale: the largest |score| seen.
    """

    mixes_batch: bool = False
    noise: float = 0.0
    scale: float = 0.0

    def notes(self, name: str) -> list[str]:
        """What the user should know, a line each."""
        found = []
        if self.mixes_batch:
            found.append(
                f"{name} mixes the pictures of a batch (batch statistics, a maximum over the "
                "batch?): each is run alone, as if it were the only one"
            )
        if self.noise:
            found.append(
                f"{name} answers differently each time: two passes over one picture differ by up "
                f"to {self.noise:.2g} where scores reach {self.scale:.2g} (dropout or sampling at "
                "evaluation?); smaller differences in the results are noise, and --repeat N "
                "averages N passes"
            )
        return found


def examine(
    scores: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Habits]:
    """Runs two random pictures alone, again, and together.

    Args:
        scores: normalised images (N, C, H, W) to what the network puts out, (N, K).
        shape: C, H, W.
        dtype: the number format that the network computes in.

    Returns:
        What it put out for the two, each alone (2, K), and what was found out.
    """
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(1, *shape, generator=generator)
    second = 3 * torch.randn(1, *shape, generator=generator) + 1
    with torch.inference_mode():
        alone = torch.cat([scores(first), scores(second)])
        again = scores(first)
        scale = float(alone.abs().max())
        noise = float((again - alone[:1]).abs().max())
        if noise > _REPEATED * scale:
            return alone, Habits(noise=noise, scale=scale)
        try:
            together = scores(torch.cat([first, second]))
        except USER_CODE_ERRORS as error:
            # It takes one picture at a time and no other number; memory is another matter.
            return alone, Habits(not is_out_of_memory(error), scale=scale)
    if together.shape != alone.shape:
        return alone, Habits(mixes_batch=True, scale=scale)
    difference = float((together - alone).abs().max())
    return alone, Habits(difference > rounding(dtype) * scale, scale=scale)


def far_away(
    scores: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """What the network puts out (2, K) for noise far beyond any picture's contrast.

    None where it does not bear that: it raises, or the numbers overflow.
    """
    generator = torch.Generator().manual_seed(1)
    contrast = 1e2 if dtype is torch.float16 else 1e4
    noise = contrast * torch.randn(1, *shape, generator=generator)
    try:
        with torch.inference_mode():
            found = torch.cat([scores(noise), scores(-noise)])
    except USER_CODE_ERRORS:
        return None
    return found if bool(found.isfinite().all()) else None


class GreyInput(nn.Module):
    """Feeds a network of one input channel with the luminance of RGB (ITU-R BT.601 weights)."""

    luminance: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # No layer: `first` and `all` are of the user's network.
        weight = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
        self.register_buffer("luminance", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to what the network makes of (N, 1, H, W)."""
        out: Tensor = self.network(functional.conv2d(x, self.luminance))
        return out


def _essence(error: BaseException) -> str:
    """The line of an error that says it; TorchScript puts it last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if "TorchScript" in lines[0] else lines[0]).strip()[:200]


def _remedy(error: BaseException) -> str:
    """What helps: another size does not where the network wants other dimensions."""
    if re.search(r"conv3d|5D|5-D|5-dim", str(error)):
        return "; a picture has no depth or time, and this network wants an input of 5 dimensions"
    return "; --size gives another size"


def _other_channels(module: nn.Module, error: BaseException, tried: int) -> list[int]:
    """Numbers of channels that the network may want instead, the likeliest first."""
    said = re.search(r"to have (\d+) channels, but got", str(error))
    first = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 1)
    found = (int(said[1]) if said else 1, first, 1)
    return [count for count in dict.fromkeys(found) if count != tried]


def probe(
    module: nn.Module,
    name: str,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[nn.Module, object, int]:
    """Tries a network on a blank image; it comes back wrapped if it takes one channel.

    Args:
        module: the network.
        name: of it, for messages.
        channels: of the image, first tried.
        size: rows and columns of the image.
        dtype: of the image.
        device: of the image.

    Returns:
        The network, what it puts out, and the number of channels it takes (3 for grey: it is fed
        with the luminance of RGB).

    Raises:
        CnnvizError: it cannot run on an image of this size.
    """

    def run(count: int) -> object:
        with torch.no_grad():  # not inference mode: what lazy layers make here is written to later
            return module(torch.zeros(1, count, *size, dtype=dtype, device=device))

    try:
        return module, run(channels), channels
    except USER_CODE_ERRORS as error:
        for count in _other_channels(module, error, channels):
            try:
                output = run(count)
            except USER_CODE_ERRORS:
                continue
            if count > 1:
                return module, output, count
            return GreyInput(module).to(device, dtype).train(module.training), output, 3
        kind = str(dtype).removeprefix("torch.")
        raise CnnvizError(
            f"{name} cannot run on an image of {channels}x{size[0]}x{size[1]} in {kind} on "
            f"{device}: {_essence(error)}{_remedy(error)}"
        ) from error


def settled(module: nn.Module, name: str, size: tuple[int, int]) -> nn.Module:
    """The network; lazy layers in it (`nn.LazyLinear`) have taken their shapes from a blank image.

    Raises:
        CnnvizError: as `probe`.
    """
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        probe(module.eval(), name, 3, size, torch.float32, torch.device("cpu"))
    return module


def answer(
    call: Callable[[], object], images: int, shape: tuple[int, ...] | None, name: str
) -> Any:
    """What a call of a network gives; its failures are said in a line.

    Args:
        call: runs it.
        images: N, in that call.
        shape: of the answer to one picture; None where what it puts out is of no interest.
        name: of the network, for messages.

    Raises:
        CnnvizError: it raised something, or put out something else.
    """
    try:
        rows = call()
    except CnnvizError:
        raise
    except USER_CODE_ERRORS as error:
        if is_out_of_memory(error) or _is_ours(error):
            raise
        raise CnnvizError(f"{name} fails on a picture: {located(error)}") from error
    if shape is None or isinstance(rows, fx.Proxy):
        return rows
    if not isinstance(rows, Tensor):
        what = type(rows).__name__
    elif rows.is_floating_point() and rows.shape == (images, *shape):
        return rows
    else:
        what = f"{str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape)}"
    raise CnnvizError(
        f"{name} puts out {what} for {images} of the pictures; by its answer to a blank one it was "
        f"to be floating-point numbers {(images, *shape)}"
    )


def guarded(module: nn.Module, name: str, classes: int) -> nn.Module:
    """The same network, whose calls fail with a line and give rows (N, K) or fail.

    Its class is replaced, so that layers keep their names, and graphs do not see it.

    Args:
        module: images (N, C, H, W) to rows of numbers.
        name: of it, for messages.
        classes: K; 0 where what it puts out is of no interest.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module  # its class cannot be replaced; its types are checked when it is compiled

    def call(self: nn.Module, images: Any, *others: Any, **options: Any) -> object:
        shape = (classes,) if classes and isinstance(images, Tensor) else None
        run = partial(kind.__call__, self, images, *others, **options)
        return answer(run, len(images) if shape else 0, shape, name)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return module


def _is_ours(error: BaseException) -> bool:
    """Whether it was raised by an analysis that watches the network: a bug, which should show."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.startswith("cnnviz.") and not module.startswith(f"{__package__}.")
