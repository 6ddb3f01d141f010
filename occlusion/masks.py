"""Where the masks go: a fixed grid of boxes over the working image.

A box is (y0, x0, y1, x1) in pixels, first row and column included, last excluded, always clipped to
the image. P positions, row by row from the top left.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cnnviz.core.errors import UsageError
from cnnviz.occlusion.options import Border

# Of the shorter side: what points best on pictures with known objects (docs/truth.md), and what
# goes with a mask or a stride of the user's, as MATLAB's occlusionSensitivity has it.
MASK_SHARE, STRIDE_SHARE = 0.28, 0.07
CLASSIC_MASK_SHARE, CLASSIC_STRIDE_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class Grid:
    """Equal masks at regular places.

    Attributes:
        mask: (rows, columns) of one mask, in pixels.
        stride: pixels from one mask to the next, both ways.
        border: what happens at the edges.
        shape: (rows, columns) of the grid of positions.
        boxes_P4: int64 boxes, row by row.
    """

    mask: tuple[int, int]
    stride: int
    border: Border
    shape: tuple[int, int]
    boxes_P4: Tensor

    @property
    def name(self) -> str:
        """The mask's size as people write it: `15` or `15x30`."""
        height, width = self.mask
        return str(height) if height == width else f"{height}x{width}"


def masks_and_stride(
    size: tuple[int, int], masks: tuple[tuple[int, int], ...], stride: int | None
) -> tuple[tuple[tuple[int, int], ...], int]:
    """What is asked for, and for what is not asked for a share of the shorter side.

    Args:
        size: (rows, columns) of the working image.
        masks: (rows, columns) of each; none for a square one.
        stride: pixels between positions; None for a share.
    """
    own = bool(masks) or stride is not None
    mask_share = CLASSIC_MASK_SHARE if own else MASK_SHARE
    stride_share = CLASSIC_STRIDE_SHARE if own else STRIDE_SHARE
    side, step = (max(1, round(share * min(size))) for share in (mask_share, stride_share))
    return masks or ((side, side),), step if stride is None else stride


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


def mask_grid(size: tuple[int, int], mask: tuple[int, int], stride: int, border: Border) -> Grid:
    """Lays masks over an image.

    `cover`: corners at 0, S, 2S, … until the image is covered, the last mask cut off at the edge
    (a stride above the mask's side leaves gaps between masks);
    `inside`: whole masks only; `center`: centred on every S-th pixel from (0, 0), cut off.

    Args:
        size: (rows, columns) of the working image.
        mask: (rows, columns) of a mask.
        stride: pixels between masks.
        border: see above.

    Raises:
        UsageError: the mask is larger than the image, or the stride is below 1.
    """
    (height, width), (rows, columns) = size, mask
    if stride < 1:
        raise UsageError(f"stride {stride} is too small; --stride takes whole pixels from 1")
    if rows > height or columns > width:
        raise UsageError(
            f"mask {rows}x{columns} is larger than the working image {height}x{width}; "
            "use a smaller --mask or a larger --size"
        )
    y0, x0 = _starts(height, rows, stride, border), _starts(width, columns, stride, border)
    top, left = (axis.flatten() for axis in torch.meshgrid(y0, x0, indexing="ij"))
    boxes_P4 = torch.stack([top, left, top + rows, left + columns], dim=1)
    limit = torch.tensor([height, width, height, width])
    clipped_P4 = torch.minimum(boxes_P4.clamp(min=0), limit)
    return Grid(mask, stride, border, (len(y0), len(x0)), clipped_P4)
