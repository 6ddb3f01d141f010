"""What the gradient of a class's logit says about one picture: its linear approximation there.

    gradient            |d logit / d pixel|, the largest of the colours
                        (Simonyan et al. 2013, "Deep Inside Convolutional Networks")
    gradient-x-input    gradient times normalised pixel, summed over colours: signed
                        (Shrikumar et al. 2016, "Not Just a Black Box")
    grad-cam            a layer's maps, weighted by their mean gradients, summed and rectified
                        (Selvaraju et al. 2017, "Grad-CAM")

Shapes: C channels, H W rows and columns of the image, h w of a layer's maps, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import Place
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.heads import Head, Reading, resolve_targets
from cnnviz.core.models.layers import (
    Form,
    Layout,
    Layouts,
    conv_layers,
    find_layer,
    named_layers,
    not_run,
    replace_outputs,
    trial_outputs,
)
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import frozen, gradients
from cnnviz.gradients.choices import LAST_CONV, Method, SaliencySpec

_Asked = Callable[[Tensor], tuple[int, ...]]
"""From logits (K,) to the classes that are asked about."""


@dataclass(frozen=True, eq=False)
class ClassMap:
    """One class's map.

    Attributes:
        target: class index.
        probability: of the class; of a regression the value.
        raw: (3, H, W) signed gradient or gradient x input; (h, w) signed Grad-CAM.
        map_HW: what is shown. Not negative for `gradient` and `grad-cam`.
    """

    target: int
    probability: float
    raw: Tensor
    map_HW: Tensor


@dataclass(frozen=True, eq=False)
class SaliencyResult:
    """The maps of one picture.

    Attributes:
        image: the working image.
        labels: class names.
        logits_K: float32, on the CPU.
        method: how the maps were made.
        layer: the layer of Grad-CAM; None for the other methods.
        maps: one for each target, in the order asked for.
        head: what the logits mean.
        reading: of a dense output, the pixels that were read.
        place: of a dense output, what the user pointed at; empty for each class's own pixels.
    """

    image: WorkingImage
    labels: tuple[str, ...]
    logits_K: Tensor
    method: Method
    layer: str | None
    maps: tuple[ClassMap, ...]
    head: Head
    reading: Reading | None = None
    place: str = ""

    @property
    def ranking_K(self) -> Tensor:  # noqa: N802 (a shape)
        """More for a class that the image shows more of: by score, or by pixels."""
        return self.logits_K if self.reading is None else self.reading.ranking(self.labels)


def saliency(
    model: Model,
    image: WorkingImage,
    spec: SaliencySpec | None = None,
    *,
    classes: Sequence[int] = (),
) -> SaliencyResult:
    """Traces the logits of some classes back to one picture.

    Args:
        model: borrowed; no gradient is left in it.
        image: of the model's input size.
        spec: how, for which classes; None for the defaults.
        classes: indices, in place of the spec's targets.

    Raises:
        UsageError: no such class or layer, or the layer puts out no maps.
        CnnvizError: the network has no convolution for Grad-CAM, or its scores or gradients are not
            finite.
    """
    spec = spec or SaliencySpec()
    method, targets, layer = spec.method, spec.targets, spec.layer
    pixels = model.preprocess.normalise(image.pixels)[None].to(model.device)
    place = Place(model, spec.at, spec.inside)
    reading = model.settle(pixels, place.mask(image))

    def asked(logits_K: Tensor) -> tuple[int, ...]:
        if classes:
            return tuple(classes)
        if reading is not None:
            return reading.targets(targets, model.labels, model.head, image.path)
        return resolve_targets(targets, logits_K.detach().cpu(), model.labels, model.head)

    if method is not Method.GRAD_CAM:
        logits_K, slopes = _input_gradients(model, pixels, asked)
        used = None
    else:
        used = default_layer(model) if layer == LAST_CONV else layer
        logits_K, slopes = _class_activations(model, pixels, asked, used)
    readings_K = model.head.readings(logits_K)
    maps = []
    for target, found in slopes.items():
        raw = found.float().cpu()
        if not (raw.isfinite().all() and logits_K.isfinite().all()):
            raise CnnvizError(
                f"{model.name} gives scores or gradients that are not finite on '{image.path}' in "
                f"{model.precision.value}; use --precision fp32, or check the weights"
            )
        raw = raw * pixels[0].cpu() if method is Method.GRADIENT_X_INPUT else raw
        shown_HW = _shown(raw, method, image.pixels.shape[1:])
        maps.append(ClassMap(target, float(readings_K[target]), raw, shown_HW))
    return SaliencyResult(
        image,
        model.labels,
        logits_K,
        method,
        used,
        tuple(maps),
        model.head,
        reading,
        place.text,
    )


def default_layer(model: Model) -> str:
    """The layer that Grad-CAM takes where none is named.

    The last convolution to run whose output has more than one position. Transformers have one at
    their very beginning, if at all: where more than one block of theirs comes behind it, the last
    normalisation of tokens whose places the classes still hang on (behind the last attention a
    class token alone does).

    Raises:
        CnnvizError: there is none.
    """
    layers = named_layers(model.module)
    norms = _with_places(model, [n for n, x in layers.items() if isinstance(x, nn.LayerNorm)])
    convolutions = _with_places(model, conv_layers(model.module))
    order = list(trial_outputs(model, [*convolutions, *norms]))
    last = max((order.index(name) for name in convolutions), default=-1)
    behind = order[last + 1 :]
    for name in reversed(behind if len(behind) > 1 else []):
        if _matters(model, name, norms[name]):
            return name
    if last < 0:
        raise CnnvizError(
            f"{model.name} has no convolution with a map for Grad-CAM; name a layer with --layer, "
            f"or use --method gradient, which works on any model"
        )
    return order[last]


def _with_places(model: Model, names: Sequence[str]) -> dict[str, Layout]:
    """The layers among these that put out maps of more than one position."""
    found = Layouts(model).of(names, refuse=False)
    return {name: layout for name, layout in found.items() if math.prod(layout.shape[1:]) > 1}


def _matters(model: Model, layer: str, layout: Layout) -> bool:
    """Whether any class's logit changes with what the layer puts out at the places of a map."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(model.blank().shape, generator=generator)
    with frozen(model.module):
        with _kept(model.module, layer) as outputs:
            logits_K = model.logits(noise.to(model.device).requires_grad_())[0]
        (gradient,) = gradients(logits_K.max(), outputs[-1:], model.name)
    return gradient is not None and bool(layout.maps(gradient).any())


def _input_gradients(
    model: Model, pixels_13HW: Tensor, asked: _Asked
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits (K,) and, for each target's index, the gradient (3, H, W) of its logit."""
    leaf = pixels_13HW.detach().requires_grad_(True)
    found = {}
    with frozen(model.module):
        # A copy, since the network's first layer may work in place.
        logits_K = model.logits(leaf.clone())[0]
        own_K = model.head.own_logits(logits_K)
        for target in asked(logits_K):
            (gradient,) = gradients(own_K[target], [leaf], model.name)
            if gradient is None:
                raise CnnvizError(
                    f"the gradient of {model.name} does not reach the image; "
                    "cnnviz occlude needs none"
                )
            found[target] = gradient[0]
    return logits_K.detach().cpu(), found


def _class_activations(
    model: Model, pixels_13HW: Tensor, asked: _Asked, layer: str
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits (K,) and, for each target's index, the signed Grad-CAM (h, w) at the layer."""
    find_layer(model.module, layer, model.name)
    layout = Layouts(model).of([layer]).get(layer)
    if layout is None:
        raise not_run(layer)
    if layout.form is Form.VECTOR:
        raise UsageError(
            f"layer '{layer}' of {model.name} puts out a vector, not channels of maps; name a "
            "convolution or a block of them with --layer"
        )
    leaf = pixels_13HW.detach().requires_grad_(True)
    found = {}
    with frozen(model.module):
        with _kept(model.module, layer) as outputs:
            logits_K = model.logits(leaf.clone())[0]
        own_K = model.head.own_logits(logits_K)
        for target in asked(logits_K):
            (gradient,) = gradients(own_K[target], outputs[-1:], model.name)
            if gradient is None:
                raise UsageError(f"layer '{layer}' of {model.name} has no influence on the classes")
            weights_C = layout.maps(gradient)[0].float().mean(dim=(1, 2))
            maps_CHW = layout.maps(outputs[-1])[0].detach().float()
            found[target] = torch.einsum("c,chw->hw", weights_C, maps_CHW)
    return logits_K.detach().cpu(), found


@contextmanager
def _kept(module: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Collects a layer's outputs as they are before a later layer may change them in place."""
    outputs: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()

    with replace_outputs(module, {layer: keep}):
        yield outputs


def _shown(raw: Tensor, method: Method, size: Sequence[int]) -> Tensor:
    """(H, W) the map to show."""
    if method is Method.GRADIENT:
        return raw.abs().amax(0)
    if method is Method.GRADIENT_X_INPUT:
        return raw.sum(0)
    rectified = raw.clamp_min(0)[None, None]
    shown: Tensor = functional.interpolate(rectified, tuple(size), mode="bilinear")[0, 0]
    return shown
