"""How a network behaves on images: tried out when it is loaded, and checked in every later call.

Every analysis assumes that the answer to an image depends on that image alone and is the same each
time. Batch statistics at evaluation, a maximum over the batch or minibatch deviation violate the
first, dropout that stays on violates the second. Random images show it: alone, again, together.
Networks that mix a batch only if its images cause it (an early exit, a capacity of experts) are
found on the images of the run: some of them are repeated alone (`check_batch`, and the engines).

A user's code may also answer an image with another type or number of classes, an exception, or the
end of the program. Each of these is an error of one line, for the image or batch that it happens
to. The analyses themselves find numbers that are not finite, since they know the image.

Shapes: N images, C channels, H W rows and columns, K classes or values.
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
from cnnviz.core.device import beyond_rounding, is_out_of_memory, rounding
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, located

_REPEATED = 1e-5  # of the largest |score|: two passes over one image are the same


@dataclass(frozen=True)
class Behaviour:
    """How a network answers."""

    mixes_batch: bool = False
    """The answer to an image depends on the others in its batch."""
    noise: float = 0.0
    """The largest difference of two passes over one image, in the unit of its scores."""
    scale: float = 0.0
    """The largest |score| seen."""

    def notes(self, name: str) -> list[str]:
        """What the user should know."""
        notes = []
        if self.mixes_batch:
            notes.append(
                f"{name} mixes the images of a batch (batch statistics, a maximum over the "
                "batch?): each image is run alone"
            )
        if self.noise:
            notes.append(
                f"{name} is stochastic: two passes over one image differ by up to {self.noise:.2g} "
                f"where scores reach {self.scale:.2g} (dropout or sampling at evaluation?); "
                "smaller differences in the results are noise, and --repeat N averages N passes"
            )
        return notes


def examine(
    scores: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Behaviour]:
    """Run two random images alone, again and together; return the answers (2, K) and the behaviour.

    `scores` turns normalised images (N, C, H, W) into the network's outputs (N, K).
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
            return alone, Behaviour(noise=noise, scale=scale)
        try:
            together = scores(torch.cat([first, second]))
        except USER_CODE_ERRORS as error:
            # It takes one image at a time and no other number; memory is another matter.
            return alone, Behaviour(not is_out_of_memory(error), scale=scale)
        mixes = together.shape != alone.shape
        if not mixes and float((together - alone).abs().max()) > rounding(dtype) * scale:
            mixes = _depends_on_partner(scores, (first, second), alone, together, dtype)
    return alone, Behaviour(mixes, scale=scale)


def _depends_on_partner(
    scores: Callable[[Tensor], Tensor],
    images: tuple[Tensor, Tensor],
    alone: Tensor,
    together: Tensor,
    dtype: torch.dtype,
) -> bool:
    """Whether two images change each other's answers; rounding, if amplified, does that as well.

    A batch of the same size with another partner is rounded alike. A network without an effect of
    the partner may still divide by the size of the batch.
    """
    first, second = images
    other = torch.randn(first.shape, generator=torch.Generator().manual_seed(2))
    swapped = torch.cat(
        [scores(torch.cat([first, other]))[:1], scores(torch.cat([other, second]))[1:]]
    )
    if float((swapped - together).abs().max()) > rounding(dtype) * float(together.abs().max()):
        return True
    pairs = zip(images, alone, together, strict=True)
    return any(
        beyond_rounding(expected, got, lambda x: scores(x)[0], image.to(dtype)) > 0
        for image, expected, got in pairs
    )


CHECKED = 8
"""Images of a data set that are run as a batch, the last of them alone as well."""


@torch.inference_mode()
def check_batch(outputs: Callable[[Tensor], object], images_NCHW: Tensor, name: str) -> None:
    """Raise CnnvizError if the others of its batch change an image's answer.

    `outputs` runs normalised images through the network `name`.
    """
    images = images_NCHW[:CHECKED]
    if len(images) == 1:
        return

    def alone(image: Tensor) -> Tensor:
        answer = outputs(image)
        return answer[0] if isinstance(answer, Tensor) else torch.zeros(0)

    try:
        together, expected = outputs(images), alone(images[-1:])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return check_batch(outputs, images[: len(images) // 2], name)
    got = together[-1] if isinstance(together, Tensor) else expected
    if got.shape != expected.shape or beyond_rounding(expected, got, alone, images[-1:]):
        raise CnnvizError(
            f"{name} mixes the images of a batch: one of them gets another answer when it is run "
            "alone; --batch-size 1 runs each alone"
        )


def far_away(
    scores: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """The answers (6, K) to noise of extreme contrast, and to coarse noise of several contrasts.

    Layer norm removes contrast, but not a pattern. None if the network raises or overflows.
    """
    generator = torch.Generator().manual_seed(1)
    contrast = 1e2 if dtype is torch.float16 else 1e4
    fine = contrast * torch.randn(1, *shape, generator=generator)
    coarse = torch.randn(2, shape[0], 3, 3, generator=generator)
    coarse = functional.interpolate(coarse, shape[1:], mode="bilinear")
    images = (fine, -fine, coarse[:1], -coarse[:1], 3 * coarse[1:], -contrast * coarse[1:])
    try:
        with torch.inference_mode():
            answers = torch.cat([scores(image) for image in images])
    except USER_CODE_ERRORS:
        return None
    return answers if bool(answers.isfinite().all()) else None


class GreyInput(nn.Module):
    """Feeds a network of one input channel with the luminance of RGB (ITU-R BT.601 weights)."""

    luminance: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Not a layer: `first` and `all` refer to the user's network.
        weight = torch.tensor(LUMINANCE).view(1, 3, 1, 1)
        self.register_buffer("luminance", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on (N, 1, H, W), made from (N, 3, H, W)."""
        out: Tensor = self.network(functional.conv2d(x, self.luminance))
        return out


def probe(
    module: nn.Module,
    name: str,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[nn.Module, object, int]:
    """Run a network on a blank image, with other numbers of channels if it refuses the given one.

    Returns the network (in `GreyInput` if it takes one channel), its output, and its channels.
    """

    def run(count: int) -> object:
        with torch.no_grad():  # not inference mode: tensors that lazy layers make are changed later
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


def with_lazy_layers(module: nn.Module, name: str, size: tuple[int, int]) -> nn.Module:
    """Let lazy layers (`nn.LazyLinear`) take their shapes from a blank image."""
    if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        probe(module.eval(), name, 3, size, torch.float32, torch.device("cpu"))
    return module


def _other_channels(module: nn.Module, error: BaseException, refused: int) -> list[int]:
    """Numbers of channels that the network may take instead, the most likely first."""
    expected = re.search(r"to have (\d+) channels, but got", str(error))
    first = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 1)
    counts = (int(expected[1]) if expected else 1, first, 1)
    return [count for count in dict.fromkeys(counts) if count != refused]


def _essence(error: BaseException) -> str:
    """The informative line of an error; TorchScript puts it last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (lines[-1] if "TorchScript" in lines[0] else lines[0]).strip()[:200]


def _remedy(error: BaseException) -> str:
    if re.search(r"conv3d|5D|5-D|5-dim", str(error)):
        return "; an image has no depth or time, and this network takes an input of 5 dimensions"
    return "; --size gives another size"


def run_checked(
    call: Callable[[], object], images: int, shape: tuple[int, ...] | None, name: str
) -> Any:
    """Run a network on N `images`; raise CnnvizError if it fails or returns another type or shape.

    `shape` is that of the answer to one image; None accepts anything.
    """
    try:
        rows = call()
    except CnnvizError:
        raise
    except USER_CODE_ERRORS as error:
        if is_out_of_memory(error) or _is_ours(error):
            raise
        raise CnnvizError(f"{name} fails on an image: {located(error)}") from error
    if shape is None or isinstance(rows, fx.Proxy):
        return rows
    if not isinstance(rows, Tensor):
        what = type(rows).__name__
    elif rows.is_floating_point() and rows.shape == (images, *shape):
        return rows
    else:
        what = f"{str(rows.dtype).removeprefix('torch.')} {tuple(rows.shape)}"
    raise CnnvizError(
        f"{name} returns {what} for {images} of the images; expected, from its answer to a blank "
        f"image: floating-point numbers {(images, *shape)}"
    )


def guarded(module: nn.Module, name: str, classes: int) -> nn.Module:
    """Let every call of a network be checked (`run_checked`); `classes` 0 accepts any output.

    Its class is replaced, so that layers keep their names, and graphs do not see it.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module  # its class cannot be replaced; its types are checked when it is compiled

    def call(self: nn.Module, images: Any, *others: Any, **options: Any) -> object:
        shape = (classes,) if classes and isinstance(images, Tensor) else None
        run = partial(kind.__call__, self, images, *others, **options)
        return run_checked(run, len(images) if shape else 0, shape, name)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    return module


def _is_ours(error: BaseException) -> bool:
    """Whether an analysis that watches the network raised it: a bug, which should show."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.startswith("cnnviz.") and not module.startswith(f"{__package__}.")
