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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from cnnviz.core.choices import LUMINANCE
from cnnviz.core.device import beyond_rounding, is_out_of_memory, rounding
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, located
from cnnviz.core.models.remedies import essence, remedy

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
def check_batch(
    outputs: Callable[[Tensor], object], images_NCHW: Tensor, name: str, answers: object = None
) -> None:
    """Raise CnnvizError if the others of its batch change an image's answer.

    `outputs` runs normalised images through the network `name`, and `answers` are those to these
    images, if they are known.
    """
    images = images_NCHW if answers is not None else images_NCHW[:CHECKED]
    if len(images) == 1:
        return

    def alone(image: Tensor) -> Tensor:
        answer = outputs(image)
        return answer[0] if isinstance(answer, Tensor) else torch.zeros(0)

    try:
        together = outputs(images) if answers is None else answers
        expected = alone(images[-1:])
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        check_batch(outputs, images[: len(images) // 2], name)
        return
    got = together[-1] if isinstance(together, Tensor) else expected
    if got.shape != expected.shape or beyond_rounding(expected, got, alone, images[-1:]):
        raise CnnvizError(
            f"{name} mixes the images of a batch: one of them gets another answer when it is run "
            "alone; --batch-size 1 runs each alone"
        )


class FirstBatch:
    """Checks that images do not change each other's answers, on the first batch of a run."""

    def __init__(self, outputs: Callable[[Tensor], object], name: str) -> None:
        self._outputs, self._name, self.done = outputs, name, False

    def check(self, images_NCHW: Tensor, answers: object = None) -> None:
        """Raises a CnnvizError if they do; `answers` as in `check_batch`."""
        if not self.done:
            check_batch(self._outputs, images_NCHW, self._name, answers)
        self.done = True


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


class Wrapper(nn.Module):
    """An archive's network with something of ours before or after it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class GreyInput(Wrapper):
    """Feeds an archive of one input channel with the luminance of RGB."""

    luminance: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Run the network on (N, 1, H, W), made from (N, 3, H, W)."""
        out: Tensor = self.network(functional.conv2d(x, self.luminance))
        return out


def _fed_with_grey(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Let a network of one input channel take RGB, as its luminance (ITU-R BT.601 weights).

    Its class is replaced, so that layers keep their names; an archive is wrapped.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
        grey: nn.Module = GreyInput(module).train(module.training)
    else:

        def forward(self: Any, x: Tensor) -> Any:
            return kind.forward(self, functional.conv2d(x, self.luminance))

        grey = module
        grey.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    weight = torch.tensor(LUMINANCE, device=device, dtype=dtype).view(1, 3, 1, 1)
    grey.register_buffer("luminance", weight, persistent=False)  # not a layer, nor a weight
    return grey


def compiled_parts(module: nn.Module) -> list[str]:
    """Names of the parts of a network in Python that are TorchScript, without those in them."""
    if isinstance(module, torch.jit.ScriptModule):
        return []
    names = [n for n, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    return [n for n in names if not any(n != m and n.startswith(f"{m}.") for m in names)]


@dataclass(frozen=True)
class FirstRun:
    """A network on its device that has run on a blank image."""

    module: nn.Module
    """If it takes one channel, it is fed with the luminance of RGB."""
    output: object
    channels: int
    """Of the images that it takes now."""
    notes: tuple[str, ...] = ()


def run_first(
    module: nn.Module,
    name: str,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> FirstRun:
    """Move a network to its device and number format, and run it (`probe`).

    Code can fix a number format (`x.half()`), so in single precision a network of other formats is
    first run as it was made. Complex weights stay complex.
    """
    parts = [] if isinstance(module, Wrapper) else compiled_parts(module)
    notes = [f"{name}: {part} is TorchScript, whose layers cannot be reached" for part in parts]
    tensors = (*module.parameters(), *module.buffers())
    formats = {t.dtype for t in tensors if t.is_floating_point() and t.dtype is not dtype}
    if formats and dtype is torch.float32:
        try:
            ran = probe(module.to(device), name, channels, size, dtype, device)
        except CnnvizError:
            pass
        else:
            kept = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in formats))
            note = f"{name} runs with weights of {kept}, as its code converts images itself"
            return replace(ran, notes=(*notes, note))
    ran = probe(_converted(module, device, dtype), name, channels, size, dtype, device)
    return replace(ran, notes=tuple(notes))


def _converted(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module on its device, its real numbers in a format, its complex ones in that of fp32."""
    if not any(t.is_complex() for t in (*module.parameters(), *module.buffers())):
        return module.to(device, dtype)

    def convert(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, torch.complex64)
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    module._apply(convert)  # type: ignore[no-untyped-call]
    return module


def _on_image(module: nn.Module, image_1CHW: Tensor) -> object:
    """The network's output; a RuntimeError if a 3-D convolution gets the batch as its channels."""

    def refuse(_layer: nn.Module, given: tuple[Any, ...]) -> None:
        if given[0].ndim == 4:
            raise RuntimeError("conv3d takes 5D input")

    with ExitStack() as hooks, torch.no_grad():  # no_grad: lazy layers' tensors are changed later
        for layer in module.modules():
            if isinstance(layer, nn.Conv3d):
                hooks.callback(layer.register_forward_pre_hook(refuse).remove)
        return module(image_1CHW)


def probe(
    module: nn.Module,
    name: str,
    channels: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> FirstRun:
    """Run a network on a blank image; if it refuses that, with other numbers of channels."""

    def run(count: int) -> object:
        return _on_image(module, torch.zeros(1, count, *size, dtype=dtype, device=device))

    try:
        return FirstRun(module, run(channels), channels)
    except USER_CODE_ERRORS as error:
        for count in _other_channels(module, error, channels):
            try:
                output = run(count)
            except USER_CODE_ERRORS:
                continue
            if count > 1:
                return FirstRun(module, output, count)
            return FirstRun(_fed_with_grey(module, device, dtype), output, 3)
        kind = str(dtype).removeprefix("torch.")
        raise CnnvizError(
            f"{name} cannot run on an image of {channels}x{size[0]}x{size[1]} in {kind} on "
            f"{device}: {essence(error)}{remedy(error, kind, getattr(module, 'others', ''))}"
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

    Its class is replaced, so that layers keep their names, and graphs do not see it. Of a network
    that is guarded already, the last number counts.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return module  # its class cannot be replaced; its types are checked when it is compiled

    def call(self: Any, images: Any, *others: Any, **options: Any) -> object:
        count = self.guarded_classes
        shape = (count,) if count and isinstance(images, Tensor) else None
        run = partial(kind.__call__, self, images, *others, **options)
        return run_checked(run, len(images) if shape else 0, shape, name)

    module.__class__ = type(kind.__name__, (kind,), {"__call__": call, "guarded_classes": classes})
    return module


def _is_ours(error: BaseException) -> bool:
    """Whether an analysis that watches the network raised it: a bug, which should show."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return module.startswith("cnnviz.") and not module.startswith(f"{__package__}.")
