"""What the methods do other than the plain gradient of one image.

SmoothGrad and integrated gradients are Captum's. Guided back-propagation and deconvolution are not
(`ReluRule`): Captum's hooks on modules miss `torch.relu` and mix up a module that runs twice, so
that its maps of DenseNet and GoogLeNet are others. The weights of Grad-CAM++ are those of the
paper: torchcam's leave out the denominator, pytorch-grad-cam adds 1e-6 to it, which is larger than
it where gradients are below 1e-3.

Shapes: C channels, H W rows and columns of the image, h w of a layer's maps, K classes.
"""

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.replaced_pixels import replaced_logits
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.extras import required
from cnnviz.core.models.load import Model
from cnnviz.core.models.variants import ReluRule, frozen, gradients
from cnnviz.gradients.options import Baseline, Method, SaliencySpec

SAMPLED = (Method.SMOOTHGRAD, Method.INTEGRATED_GRADIENTS)
RULED = (Method.GUIDED_BACKPROP, Method.DECONVOLUTION)
COMPLETE = 0.05
"""Integrated gradients whose sum is off by a larger share of the difference come with a note."""


def captum(method: Method) -> ModuleType:
    """Captum's attribution methods; a UsageError says how to install them."""
    return required("captum.attr", f"--method {method}", "attribution")


def image_slope(model: Model, score: Tensor, leaf: Tensor) -> Tensor:
    """The gradient of a score by the image.

    Raises:
        CnnvizError: it does not reach the image.
    """
    (gradient,) = gradients(score, [leaf], model.name)
    if gradient is None:
        raise CnnvizError(
            f"the gradient of {model.name} does not reach the image; cnnviz occlude needs none"
        )
    return gradient


def sampled(
    model: Model, image: WorkingImage, target: int, spec: SaliencySpec
) -> tuple[Tensor, float | None]:
    """SmoothGrad or integrated gradients (C, H, W) of a class's logit, by Captum.

    The images are run one at a time, since some networks mix a batch. With integrated gradients
    comes what they should sum to: the difference of the logits of image and baseline.
    """
    library, normalise = captum(spec.method), model.preprocess.normalise
    pixels_1CHW = normalise(image.pixels)[None]

    def logits(pixels_NCHW: Tensor) -> Tensor:
        return model.head.own_logits(model.logits(pixels_NCHW))

    def slopes(
        forward_fn: Callable[[Tensor], Tensor],
        inputs: tuple[Tensor],
        target_ind: int,
        additional_forward_args: object = None,  # noqa: ARG001 (Captum's signature)
    ) -> tuple[Tensor]:
        with frozen(model.module):
            # A copy, since the network's first layer may work in place.
            score = forward_fn(inputs[0].clone())[0, target_ind]
            return (image_slope(model, score, inputs[0]),)

    if spec.method is Method.SMOOTHGRAD:
        inner = library.Saliency(logits)
        inner.gradient_func = slopes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(spec.seed)
            raw = library.NoiseTunnel(inner).attribute(
                pixels_1CHW,
                nt_samples=spec.samples,
                nt_samples_batch_size=1,
                stdevs=spec.noise * float(pixels_1CHW.max() - pixels_1CHW.min()),
                target=target,
                abs=False,
            )
        return raw[0].detach(), None
    method = library.IntegratedGradients(logits)
    method.gradient_func = slopes
    start = pixels_1CHW * 0
    if spec.baseline is not Baseline.MEAN:
        white = spec.baseline is Baseline.WHITE
        start = normalise(torch.full_like(image.pixels, float(white)))[None]
    raw = method.attribute(
        pixels_1CHW, start, target=target, n_steps=spec.steps, internal_batch_size=1
    )
    with torch.no_grad():
        rise = logits(pixels_1CHW)[0, target] - logits(start)[0, target]
    return raw[0].detach(), float(rise)


def check_rule(rule: ReluRule, method: Method, name: str) -> None:
    """Raises UsageError if the passes under a rule met no ReLU of the network `name`."""
    if rule.count == 0:
        has = f" (it has {', '.join(sorted(rule.others))})" if rule.others else ""
        raise UsageError(
            f"--method {method} changes the gradient of ReLUs, and {name} runs none{has}; use "
            "--method smoothgrad or integrated-gradients, which need none"
        )


def try_rule(model: Model, method: Method) -> str:
    """Runs a rule on noise; returns a note on the activations that it leaves alone, or nothing.

    Raises:
        UsageError: the network has no ReLU.
    """
    rule, generator = ReluRule(method is Method.DECONVOLUTION), torch.Generator().manual_seed(0)
    with frozen(model.module):
        leaf = torch.randn(model.blank().shape, generator=generator).requires_grad_()
        logit_K = model.head.own_logits(model.logits(leaf.clone())[0])
        with rule:
            image_slope(model, logit_K[logit_K.argmax()], leaf)
    check_rule(rule, method, model.name)
    if not rule.others:
        return ""
    others = ", ".join(sorted(rule.others))
    return f"--method {method} changes the ReLUs of {model.name} only; {others} keep their gradient"


def weighted(method: Method, maps_Chw: Tensor, slope_Chw: Tensor) -> Tensor:
    """Grad-CAM, Grad-CAM++ or LayerCAM (h, w), signed.

    With Grad-CAM++ (equation 19, and 7 for the weights) the derivatives are those of exp(logit),
    which divided by its second derivative leave 1 / (2 + sum of the map × gradient). The paper's
    maps are not negative; of a layer in front of its ReLU, the positive part is summed.
    """
    if method is Method.LAYERCAM:
        return (slope_Chw.clamp_min(0) * maps_Chw).sum(0)
    weights_C = slope_Chw.mean((1, 2))
    if method is Method.GRAD_CAM_PP:
        positive, totals = slope_Chw.clamp_min(0), maps_Chw.clamp_min(0).sum((1, 2), keepdim=True)
        weights_C = (positive / (2 + totals * positive)).sum((1, 2))
    return torch.einsum("c,chw->hw", weights_C, maps_Chw)


def score_cams(
    model: Model,
    image: WorkingImage,
    maps_Chw: Tensor,
    targets: tuple[int, ...],
    spec: SaliencySpec,
) -> dict[int, Tensor]:
    """Score-CAM (h, w) of each class, from one pass over the images that each map leaves.

    A map, enlarged and scaled to [0, 1], fades the image to the preprocessing's mean. The weights
    of the maps are the softmax, over the maps, of the logits that remain; 0 where these are equal,
    as the class then depends on none of them.
    """
    maps = maps_Chw.cpu()
    mean = torch.tensor(model.preprocess.mean)[:, None, None].expand_as(image.pixels)

    def kept(part: slice) -> Tensor:
        size = (image.pixels.shape[1], image.pixels.shape[2])
        large = functional.interpolate(maps[part][:, None], size, mode="bilinear")[:, 0]
        low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
        return (large - low) / (high - low).clamp_min(torch.finfo(large.dtype).tiny)

    logits_CK = replaced_logits(model, image, mean, len(maps), kept, batch_size=spec.batch_size)
    logit_CK = model.head.own_logits(logits_CK)
    weights_CK = (logit_CK.softmax(0) * (logit_CK.amax(0) > logit_CK.amin(0))).float()
    return {t: torch.einsum("c,chw->hw", weights_CK[:, t], maps) for t in targets}
