"""Traces a class's logit back to one image: to its pixels, or to the maps of a layer.

    gradient              |d logit / d pixel|, the largest of the colours
                          (Simonyan et al. 2013, "Deep Inside Convolutional Networks")
    gradient-x-input      gradient times normalised pixel, summed over colours: signed
                          (Shrikumar et al. 2016, "Not Just a Black Box")
    smoothgrad            as gradient, of the mean gradient over noisy images
                          (Smilkov et al. 2017, "SmoothGrad")
    integrated-gradients  gradients along the line from a baseline, times the difference to it,
                          summed over colours: signed
                          (Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks")
    guided-backprop       as gradient, but ReLUs pass positive gradients only
                          (Springenberg et al. 2014, "Striving for Simplicity")
    deconvolution         as gradient, but ReLUs pass every positive gradient
                          (Zeiler and Fergus 2014, "Visualizing and Understanding …")
    grad-cam              a layer's maps, weighted by their mean gradients, summed and rectified
                          (Selvaraju et al. 2017, "Grad-CAM")
    grad-cam++            weighted by sums of their positive gradients
                          (Chattopadhay et al. 2018, "Grad-CAM++")
    layercam              weighted at each position by the positive gradient there
                          (Jiang et al. 2021, "LayerCAM")
    score-cam             weighted by the logits that remain if a map fades the image
                          (Wang et al. 2020, "Score-CAM")

Shapes: C channels, H W rows and columns of the image, h w of a layer's maps, K classes.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import Place
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.maps import peak
from cnnviz.core.models.heads import resolve_targets
from cnnviz.core.models.layers import (
    Form,
    Layout,
    Layouts,
    check_open,
    conv_layers,
    find_layer,
    named_layers,
    not_run,
    replace_outputs,
)
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import ReluRule, frozen, gradients
from cnnviz.core.output.summary import class_fields, top_records
from cnnviz.gradients.options import LAST_CONV, SIGNED, Method, SaliencySpec
from cnnviz.gradients.results import ClassMap, SaliencyResult
from cnnviz.gradients.rules import (
    COMPLETE,
    RULED,
    SAMPLED,
    check_rule,
    image_slope,
    sampled,
    score_cams,
    weighted,
)

_log = logging.getLogger("cnnviz")
_Targets = Callable[[Tensor], tuple[int, ...]]
"""From logits (K,) to the classes to explain."""


def saliency(
    model: Model,
    image: WorkingImage,
    spec: SaliencySpec | None = None,
    *,
    classes: Sequence[int] = (),
) -> SaliencyResult:
    """Traces the logits of some classes back to one image.

    Args:
        model: borrowed; no gradient is left in it.
        image: of the model's input size.
        spec: the method, and which classes; None for the defaults.
        classes: indices, in place of the spec's targets.

    Raises:
        UsageError: no such class or layer, or the layer does not return maps.
        CnnvizError: the network has no convolution for Grad-CAM, or its scores or gradients are not
            finite.
    """
    spec = spec or SaliencySpec()
    method, head = spec.method, model.head
    pixels = model.preprocess.normalise(image.pixels)[None].to(model.device)
    place = Place(model, spec.at, spec.inside)
    reading = model.settle(pixels, place.mask(image))

    def targets_of(logits_K: Tensor) -> tuple[int, ...]:
        if classes:
            return tuple(classes)
        if reading is not None:
            return reading.targets(spec.targets, model.labels, head, image.path)
        return resolve_targets(spec.targets, logits_K.detach().cpu(), model.labels, head)

    layer = None
    if method.of_layer:
        default = spec.layer == LAST_CONV
        layer = default_layer(model, pixels, targets_of) if default else spec.layer
    logits_K, traced = _traced(model, image, targets_of, layer, spec)
    raw_maps = {target: raw.float().cpu() for target, raw in traced.items()}
    if not all(values.isfinite().all() for values in (logits_K, *raw_maps.values())):
        raise CnnvizError(
            f"{model.name} gives scores or gradients that are not finite on '{image.path}' in "
            f"{model.precision.value}; use --precision fp32, or check the weights"
        )
    if method is Method.GRADIENT_X_INPUT:
        raw_maps = {target: raw * pixels[0].cpu() for target, raw in raw_maps.items()}
    readings_K = head.readings(logits_K)
    result = SaliencyResult(
        image=image.path,
        method=method,
        unit=method.unit,
        layer=layer,
        read=(place.text or "own pixels") if reading else None,
        targets=(),
        working=image,
        labels=(reading and reading.labels) or model.labels,
        logits_K=logits_K,
        head=head,
        reading=reading,
        place=place.text,
    )
    top = top_records(result, readings_K) if head.has_classes else None
    targets = tuple(
        _class_map(result, target, float(readings_K[target]), raw)
        for target, raw in raw_maps.items()
    )
    for entry in targets if not classes else ():
        if not bool(entry.map_HW.any()):
            _log.warning("note: %s", _zero(result, entry))
    return replace(result, prediction=top[0] if top else None, top5=top, targets=targets)


def _zero(result: SaliencyResult, entry: ClassMap) -> str:
    """Why a map shows nothing."""
    where = f" at {result.layer}" if result.layer else ""
    why = "the class does not change with it (a saturated output, dead units, a head of zeros?)"
    if bool(entry.raw.any()):
        why = "no position speaks for the class; --layer or --method shows another side"
    return (
        f"the {result.method.value} map of {entry.class_} on '{result.image}'{where} is zero "
        f"everywhere: {why}"
    )


def _class_map(result: SaliencyResult, target: int, reading: float, raw: Tensor) -> ClassMap:
    map_HW = _shown(raw, result.method, result.working.pixels.shape[1:])
    place = place_original = None
    if bool((map_HW > 0).any()):
        row, column = place = peak(map_HW)
        place_original = result.working.to_original((row, column, row + 1, column + 1))
    return ClassMap(
        **class_fields(result, target, reading),
        lowest=float(map_HW.min()),
        highest=float(map_HW.max()),
        peak=place,
        peak_original=place_original,
        raw=raw,
        map_HW=map_HW,
    )


def default_layer(
    model: Model, pixels_1CHW: Tensor | None = None, targets_of: _Targets | None = None
) -> str:
    """Finds the default layer of Grad-CAM: the last convolution that the classes depend on.

    Its output has more than one position, and a gradient from every one of the classes: decoders
    and heads of other tasks have none. It is the one with the most convolutions in front of it, so
    that a shortcut that happens to run last does not count. Transformers have a convolution at
    their very beginning, if at all: if more than one of their blocks comes after it, this is the
    last normalisation of tokens on whose positions the classes still depend (after the last
    attention they depend on the class token only).

    Args:
        model: the network.
        pixels_1CHW: a normalised image; None for noise.
        targets_of: from its logits to the classes; None for the class with the largest logit.
    """
    try:
        check_open(model.module, model.name)
    except UsageError as error:
        raise UsageError(f"{error}; --method gradient needs no layers") from error
    layers = named_layers(model.module)
    norms = _with_places(model, [n for n, x in layers.items() if isinstance(x, nn.LayerNorm)])
    convolutions = _with_places(model, conv_layers(model.module))
    outputs, reached = _influences(model, convolutions | norms, pixels_1CHW, targets_of)
    order = list(outputs)
    ran = [name for name in order if name in convolutions]
    connected = [name for name in ran if name in reached] or ran
    behind = order[order.index(connected[-1]) + 1 if connected else 0 :]
    behind = [name for name in behind if name in norms]
    places = [name for name in behind if name in reached]
    if len(behind) > 1 and places:
        return places[-1]
    if not connected:
        raise CnnvizError(
            f"{model.name} has no convolution with a map for Grad-CAM; name a layer with --layer, "
            f"or use --method gradient, which works on any model"
        )
    depths = _depths({name: outputs[name] for name in ran})
    return max(reversed(connected), key=lambda name: depths[name])


def _influences(
    model: Model,
    layouts: Mapping[str, Layout],
    pixels_1CHW: Tensor | None,
    targets_of: _Targets | None,
) -> tuple[dict[str, Tensor], set[str]]:
    """The layers' outputs in the order of their last run; those that every class depends on."""
    if pixels_1CHW is None:
        generator = torch.Generator().manual_seed(0)
        pixels_1CHW = torch.randn(model.blank().shape, generator=generator)
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        outputs.pop(name, None)
        outputs[name] = output
        return output.clone()

    with frozen(model.module):
        with replace_outputs(model.module, {name: partial(keep, name) for name in layouts}):
            leaf = pixels_1CHW.to(model.device).detach().requires_grad_()
            logits_K = model.logits(leaf.clone())[0]
        targets = targets_of(logits_K) if targets_of else (int(logits_K.argmax()),)
        logit_K = model.head.own_logits(logits_K)
        reached = set(outputs)
        for target in targets:
            slopes = gradients(logit_K[target], list(outputs.values()), model.name)
            named = zip(outputs, slopes, strict=True)
            reached &= {
                name
                for name, slope in named
                if slope is not None and bool(layouts[name].maps(slope).any())
            }
    return outputs, reached


def _depths(outputs: Mapping[str, Tensor]) -> dict[str, int]:
    """How many of these outputs each is computed from, along the longest path, itself included.

    Read from the graph that torch recorded for the backward pass.
    """
    names = {output.grad_fn: name for name, output in outputs.items() if output.grad_fn}
    depths: dict[Any, int] = {}
    waiting: list[Any] = list(names)
    while waiting:
        node = waiting[-1]
        before = [other for other, _ in node.next_functions if other is not None]
        unknown = [other for other in before if other not in depths]
        if unknown:
            waiting += unknown
            continue
        depths[waiting.pop()] = max((depths[b] for b in before), default=0) + (node in names)
    return {name: depths.get(output.grad_fn, 0) for name, output in outputs.items()}


def _with_places(model: Model, names: Sequence[str]) -> dict[str, Layout]:
    """The layers among these whose maps have more than one position."""
    layouts = Layouts(model).of(names, refuse=False)
    return {name: layout for name, layout in layouts.items() if math.prod(layout.shape[1:]) > 1}


def _layout(model: Model, layer: str) -> Layout:
    """The maps of a layer that the user named."""
    find_layer(model.module, layer, model.name)
    layout = Layouts(model).of([layer]).get(layer)
    if layout is None:
        raise not_run(layer)
    if layout.form is Form.VECTOR:
        raise UsageError(
            f"layer '{layer}' of {model.name} returns a vector, not channels of maps; name a "
            "convolution or a block of them with --layer"
        )
    return layout


def _traced(
    model: Model, image: WorkingImage, targets_of: _Targets, layer: str | None, spec: SaliencySpec
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits (K,) and by class what is traced back: to pixels (C, H, W), or to a layer (h, w)."""
    layout = None if layer is None else _layout(model, layer)
    leaf = model.preprocess.normalise(image.pixels)[None].to(model.device).requires_grad_()
    with frozen(model.module):
        with nullcontext([leaf]) if layer is None else _kept(model.module, layer) as outputs:
            # A copy, since the network's first layer may work in place.
            logits_K = model.logits(leaf.clone())[0]
        targets = targets_of(logits_K)
        if spec.method in SAMPLED:
            raw_maps = {target: _sampled(model, image, target, spec) for target in targets}
        elif layout is None:
            raw_maps = _pixel_slopes(model, logits_K, targets, leaf, spec.method)
        else:
            maps_Chw = layout.maps(outputs[-1])[0].detach().float()
            if spec.method is Method.SCORE_CAM:
                raw_maps = score_cams(model, image, maps_Chw, targets, spec)
            else:
                slopes = _layer_slopes(model, logits_K, targets, outputs[-1], str(layer))
                raw_maps = {
                    target: weighted(spec.method, maps_Chw, layout.maps(slope)[0].float())
                    for target, slope in slopes.items()
                }
    return logits_K.detach().cpu(), raw_maps


def _pixel_slopes(
    model: Model, logits_K: Tensor, targets: Sequence[int], leaf: Tensor, method: Method
) -> dict[int, Tensor]:
    """The gradients (C, H, W) of some logits, with the method's rule for ReLUs."""
    logit_K, slopes = model.head.own_logits(logits_K), {}
    for target in targets:
        rule = ReluRule(method is Method.DECONVOLUTION) if method in RULED else None
        with rule or nullcontext():
            slopes[target] = image_slope(model, logit_K[target], leaf)[0]
        if rule is not None:
            check_rule(rule, method, model.name)
    return slopes


def _layer_slopes(
    model: Model, logits_K: Tensor, targets: Sequence[int], output: Tensor, layer: str
) -> dict[int, Tensor]:
    """The gradients of some logits by a layer's output."""
    logit_K, slopes = model.head.own_logits(logits_K), {}
    for target in targets:
        (gradient,) = gradients(logit_K[target], [output], model.name)
        if gradient is None:
            raise UsageError(
                f"layer '{layer}' of {model.name} has no influence on the classes; name "
                "another one with --layer, or use --method gradient"
            )
        slopes[target] = gradient
    return slopes


def _sampled(model: Model, image: WorkingImage, target: int, spec: SaliencySpec) -> Tensor:
    """SmoothGrad or integrated gradients, with a note if these miss what they should sum to."""
    raw, rise = sampled(model, image, target, spec)
    total = float(raw.sum())
    if rise is not None and abs(total - rise) > COMPLETE * abs(rise):
        _log.warning(
            "note: the integrated gradients of %s on '%s' sum to %.3g, but its logit rises by %.3g "
            "from the baseline: a larger --steps than %d is more exact",
            *(model.labels[target], image.path, total, rise, spec.steps),
        )
    return raw


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
    if method in SIGNED:
        return raw.sum(0)
    if not method.of_layer:
        return raw.abs().amax(0)
    rectified = raw.clamp_min(0)[None, None]
    shown: Tensor = functional.interpolate(rectified, tuple(size), mode="bilinear")[0, 0]
    return shown
