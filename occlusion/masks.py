"""Where the masks go, and what they show in place of the image.

Masks are a fixed grid of boxes over the working image. A box is (y0, x0, y1, x1) in pixels, first
row and column included, last excluded, always clipped to the image. P positions, row by row from
the top left. A fill is an image of the working image's size, in RGB of [0, 1] before normalisation,
from which a mask cuts its part; a plain colour is an image too, so the engines know one case.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.choices import pair_of, pixels_text
from cnnviz.core.data.images import Preprocess
from cnnviz.core.errors import UsageError
from cnnviz.core.lazy import torchvision
from cnnviz.occlusion.options import Border, Preset

MASK_SHARE, STRIDE_SHARE = 0.28, 0.07  # of the shorter side; measured in docs/truth.md
CLASSIC_MASK_SHARE, CLASSIC_STRIDE_SHARE = 0.2, 0.1  # MATLAB's occlusionSensitivity
GRAYS = {"gray": 0.5, "black": 0.0, "white": 1.0}
FILLS = ("mean", *GRAYS, "blur", "noise", "image-mean")
BLUR_SHARE = 0.05  # standard deviation of the blur, of the shorter side


@dataclass(frozen=True)
class Grid:
    """Equal masks (rows, columns) at regular positions, `shape` of them; boxes row by row.

    The stride is a pair where it differs between rows and columns.
    """

    mask: tuple[int, int]
    stride: int | tuple[int, int]
    border: Border
    shape: tuple[int, int]
    boxes_P4: Tensor

    @property
    def name(self) -> str:
        """The mask's size: `15` or `15x30`."""
        return pixels_text(self.mask)


def masks_and_stride(
    size: tuple[int, int],
    masks: tuple[tuple[int, int], ...],
    stride: int | tuple[int, int] | None,
    preset: Preset | None = None,
) -> tuple[tuple[tuple[int, int], ...], tuple[int, int]]:
    """Returns masks and stride; those not given are shares of the shorter side of the image.

    The mask's sides are the nearest multiples of the stride, so that every pixel lies under as many
    masks as its neighbours and the map has no seams. The stride leaves no gaps between masks. The
    classic preset has its shares as they are.
    """
    shorter = min(size)
    if preset is Preset.CLASSIC:
        side = max(1, round(CLASSIC_MASK_SHARE * shorter))
        step = max(1, round(CLASSIC_STRIDE_SHARE * shorter))
        return masks or ((side, side),), pair_of(step if stride is None else stride)
    step = min([max(1, round(STRIDE_SHARE * shorter)), *(min(mask) for mask in masks)])
    rows, columns = pair_of(step if stride is None else stride)
    mask = (
        _multiple(MASK_SHARE * shorter, rows, shorter),
        _multiple(MASK_SHARE * shorter, columns, shorter),
    )
    return masks or (mask,), (rows, columns)


def _multiple(side: float, step: int, limit: int) -> int:
    """The nearest multiple of the step, if it fits; else the side itself."""
    nearest = max(1, round(side / step)) * step
    return nearest if nearest <= limit else max(1, round(side))


def inside_boxes(boxes_N4: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) bool, on the boxes' device: which pixels lie in each box."""
    rows_H = torch.arange(size[0], device=boxes_N4.device)
    columns_W = torch.arange(size[1], device=boxes_N4.device)
    y0, x0, y1, x1 = boxes_N4.T[..., None]
    down_NH = (rows_H >= y0) & (rows_H < y1)
    across_NW = (columns_W >= x0) & (columns_W < x1)
    inside_NHW: Tensor = down_NH[:, :, None] & across_NW[:, None, :]
    return inside_NHW


def _starts(length: int, mask: int, stride: int, border: Border) -> Tensor:
    """First pixel of each mask along one axis; may be negative under `center`."""
    if border is Border.CENTER:
        return torch.arange(0, length, stride) - mask // 2
    if border is Border.INSIDE:
        return torch.arange(0, length - mask + 1, stride)
    steps = -(-max(length - mask, 0) // stride)
    return torch.arange(0, min(steps * stride + 1, length), stride)


def mask_grid(
    size: tuple[int, int], mask: tuple[int, int], stride: int | tuple[int, ...], border: Border
) -> Grid:
    """Lays masks (rows, columns in pixels) over an image.

    `cover`: corners at 0, S, 2S, … until the image is covered, the last mask cut off at the edge
    (a stride above the mask's side leaves gaps between masks);
    `inside`: whole masks only; `center`: centred on every S-th pixel from (0, 0), cut off.
    """
    (height, width), (rows, columns) = size, mask
    down, across = pair_of(stride)
    if min(down, across) < 1:
        raise UsageError(
            f"stride {pixels_text(stride)} is too small; --stride takes whole pixels from 1"
        )
    if rows > height or columns > width:
        raise UsageError(
            f"mask {rows}x{columns} is larger than the working image {height}x{width}; "
            "use a smaller --mask or a larger --size"
        )
    y0, x0 = _starts(height, rows, down, border), _starts(width, columns, across, border)
    top, left = (axis.flatten() for axis in torch.meshgrid(y0, x0, indexing="ij"))
    boxes_P4 = torch.stack([top, left, top + rows, left + columns], dim=1)
    limit = torch.tensor([height, width, height, width])
    clipped_P4 = torch.minimum(boxes_P4.clamp(min=0), limit)
    step = down if down == across else (down, across)
    return Grid(mask, step, border, (len(y0), len(x0)), clipped_P4)


def nearest_positions(grid: Grid, size: tuple[int, int]) -> Tensor:
    """(H, W): the position whose mask's centre is nearest to each pixel."""
    rows, columns = grid.shape
    boxes = grid.boxes_P4.reshape(rows, columns, 4).double()
    nearest = []
    for axis, (line, length) in enumerate(zip((boxes[:, 0], boxes[0]), size, strict=True)):
        centres = (line[:, axis] + line[:, axis + 2]) / 2
        edges = (centres[:-1] + centres[1:]) / 2
        nearest.append(torch.searchsorted(edges, torch.arange(length, dtype=torch.float64) + 0.5))
    return nearest[0][:, None] * columns + nearest[1]


def check_fill(name: str) -> str:
    """Returns the name if it is a fill; raises UsageError otherwise."""
    if name in FILLS or re.fullmatch(r"#[0-9a-fA-F]{6}", name):
        return name
    raise UsageError(f"no fill '{name}'; --fill takes {', '.join(FILLS)} or #rrggbb")


def _plain(colour: Tensor, pixels: Tensor) -> Tensor:
    return colour.view(-1, 1, 1).expand_as(pixels).contiguous()


def fill_picture(name: str, pixels_CHW: Tensor, preprocess: Preprocess, seed: int = 0) -> Tensor:
    """Makes the image (C, H, W) that masks cut from.

    Args:
        name: one of `FILLS`, or `#rrggbb`. `mean` is the preprocessing's mean, which
            normalises to zero; `image-mean` this image's own mean; `blur` a Gaussian blur whose
            deviation is 5 % of the shorter side; `noise` uniform colours.
        pixels_CHW: the working image in [0, 1].
        preprocess: for its mean.
        seed: of the noise.
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
    functional = torchvision("transforms.v2.functional")
    blurred: Tensor = functional.gaussian_blur(pixels_CHW, [2 * reach + 1] * 2, [sigma] * 2)
    return blurred
