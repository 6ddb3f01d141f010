"""What a mask shows instead of the image.

A fill is a whole picture of the image's size, in RGB of [0, 1] before normalisation; the mask cuts
its piece out of it. A plain colour is a picture too, so the engines know one case.
"""

import re

import torch
from torch import Tensor

from cnnviz.core.data.images import Preprocess
from cnnviz.core.errors import UsageError

GRAYS = {"gray": 0.5, "black": 0.0, "white": 1.0}
PICTURES = ("mean", *GRAYS, "blur", "noise", "image-mean")
BLUR_SHARE = 0.05  # standard deviation of the blur, of the shorter side


def check_fill(name: str) -> str:
    """The name itself, if it is a fill.

    Raises:
        UsageError: it is none.
    """
    if name in PICTURES or re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        return name
    raise UsageError(f"no fill '{name}'; --fill takes {', '.join(PICTURES)} or #rrggbb")


def _plain(colour: Tensor, pixels: Tensor) -> Tensor:
    return colour.view(-1, 1, 1).expand_as(pixels).contiguous()


def fill_picture(name: str, pixels_CHW: Tensor, preprocess: Preprocess, seed: int = 0) -> Tensor:
    """The picture (C, H, W) that masks cut from.

    Args:
        name: one of `PICTURES`, or `#rrggbb`. `mean` is the preprocessing's mean, which
            normalises to zero; `image-mean` this image's own mean; `blur` a Gaussian blur whose
            deviation is 5 % of the shorter side; `noise` uniform colours.
        pixels_CHW: the working image in [0, 1].
        preprocess: for its mean.
        seed: for the noise.

    Raises:
        UsageError: no such fill.
    """
    check_fill(name)
    if name.startswith("#"):
        if preprocess.channels != 3:
            raise UsageError(
                f"--fill {name} is a colour; the network takes {preprocess.channels} channels"
            )
        channels = [int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return _plain(torch.tensor(channels), pixels_CHW)
    if name in GRAYS:
        return torch.full_like(pixels_CHW, GRAYS[name])
    if name == "mean":
        return _plain(torch.tensor(preprocess.mean), pixels_CHW)
    if name == "image-mean":
        return _plain(pixels_CHW.mean((1, 2)), pixels_CHW)
    if name == "noise":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(pixels_CHW.shape, generator=generator)
    return _blur(pixels_CHW)


def _blur(pixels_CHW: Tensor) -> Tensor:
    shorter = min(pixels_CHW.shape[1:])
    sigma = max(BLUR_SHARE * shorter, 0.5)
    reach = min(int(3 * sigma + 0.5), shorter - 1)  # reflection cannot reach past the image
    if reach == 0:
        return pixels_CHW.clone()
    from torchvision.transforms.v2 import functional

    blurred: Tensor = functional.gaussian_blur(pixels_CHW, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred
