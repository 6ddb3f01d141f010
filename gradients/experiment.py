"""What the gradient of a class's logit says about one picture: its linear approximation there.

    gradient            |d logit / d pixel|, the largest of the colours
                        (Simonyan et al. 2013, "Deep Inside Convolutional Networks")
    gradient-x-input    gradient times normalised pixel, summed over colours: signed
                        (Shrikumar et al. 2016, "Not Just a Black Box")
    grad-cam            a layer's maps, weighted by their mean gradients, summed and rectified
                        (Selvaraju et al. 2017, "Grad-CAM")

Shapes: C channels, H W rows and columns of the image, h w of a layer's maps, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import Place
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.dense import Reading
from cnnviz.core.models.gradients import frozen, gradients
from cnnviz.core.models.heads import Head
from cnnviz.core.models.labels import resolve_targets
from cnnviz.core.models.layers import (
    conv_layers,
    find_layer,
    not_run,
    replace_outputs,
    trial_outputs,
)
from cnnviz.core.models.load import Model
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


def saliency(model: Model, image: WorkingImage, spec: SaliencySpec | None = None) -> SaliencyResult:
    """Traces the logits of some classes back to one picture.

    Args:
        model: borrowed; no gradient is left in it.
        image: of the model's input size.
        spec: how, for which classes; None for the defaults.

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
        if reading is not None:
            return reading.targets(targets, model.labels, model.head, image.path)
        return resolve_targets(targets, logits_K.detach().cpu(), model.labels, model.head)

    if method is not Method.GRAD_CAM:
        logits_K, slopes = _input_gradients(model, pixels, asked)
        used = None
    else:
        used = find_last_conv(model) if layer == LAST_CONV else layer
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


def find_last_conv(model: Model) -> str:
    """The last convolution to run whose output has more than one position.

    Raises:
        CnnvizError: there is none.
    """
    outputs = trial_outputs(model, conv_layers(model.module))
    order = [name for name, maps in outputs.items() if maps.dim() == 4 and maps[0, 0].numel() > 1]
    if not order:
        raise CnnvizError(
            f"{model.name} has no convolution with a map for Grad-CAM; name a layer with --layer, "
            f"or use --method gradient, which works on any model"
        )
    return order[-1]


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
    leaf = pixels_13HW.detach().requires_grad_(True)
    found = {}
    with frozen(model.module):
        with _kept(model.module, layer) as outputs:
            logits_K = model.logits(leaf.clone())[0]
        activation = _map_of(outputs, layer, model.name)
        own_K = model.head.own_logits(logits_K)
        for target in asked(logits_K):
            (gradient,) = gradients(own_K[target], [activation], model.name)
            if gradient is None:
                raise UsageError(f"layer '{layer}' of {model.name} has no influence on the classes")
            weights_C = gradient[0].float().mean(dim=(1, 2))
            found[target] = torch.einsum("c,chw->hw", weights_C, activation[0].detach().float())
    return logits_K.detach().cpu(), found


def _map_of(outputs: Sequence[Tensor], layer: str, name: str) -> Tensor:
    """The layer's last output, if it is a map.

    Raises:
        UsageError: it did not run, or put out something else.
    """
    if not outputs:
        raise not_run(layer)
    if outputs[-1].dim() != 4:
        shape = "x".join(map(str, outputs[-1].shape[1:]))
        raise UsageError(
            f"layer '{layer}' of {name} puts out {shape}, not channels of maps; name a "
            f"convolution or a block of them with --layer"
        )
    return outputs[-1]


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
