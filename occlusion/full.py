"""The plain engine: every covered image goes through the whole network, in batches.

Covered images are made on the device, a batch at a time, from the image, the fill and the boxes;
all of them never exist at once, and nothing comes to the host before the end.
Shapes: N images in a batch, P positions, C channels, K classes, H W rows and columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cnnviz.core.device import in_batches
from cnnviz.occlusion.network import Network

# Small batches keep a layer's maps in the processor's caches; a GPU wants many images at once.
CPU_BATCH = 8
DEVICE_BATCH = 128
# glibc takes blocks of 32 MiB and more fresh from the kernel each time, which clears their pages.
CPU_MAP = 28 * 2**20


@dataclass(frozen=True, eq=False)
class Scores:
    """What the network said, on its device.

    Attributes:
        base_logits_K: float32 logits of the untouched image.
        logits_PK: float32 logits at each position.
        base_activation: with a layer, the sum of its strongest map on the untouched image.
        activation_P: the same map's sum at each position.
        activation_channel: which map that is: the one with the largest sum.
    """

    base_logits_K: Tensor
    logits_PK: Tensor
    base_activation: float | None = None
    activation_P: Tensor | None = None
    activation_channel: int | None = None


class Engine(Protocol):
    """Runs covered images through a network it was prepared for; one engine serves many images."""

    @property
    def name(self) -> str:
        """`full` or `incremental`."""

    @property
    def note(self) -> str | None:
        """A line that the user should see, such as why another engine runs than was asked for."""

    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = ...,
    ) -> Scores:
        """Scores of the image with the fill pasted inside each box.

        Args:
            image_3HW: normalised, float32.
            fill_3HW: of the same size: what the masks show.
            boxes_P4: int64 rows y0, x0, y1, x1 (ends excluded), inside the image, of any sizes.
            progress: called with the number of positions just done.
        """


def cover(image_3HW: Tensor, fill_3HW: Tensor, boxes_N4: Tensor) -> Tensor:
    """The image with the fill inside box n, for each n: (N, 3, H, W), channels last."""
    rows_H = torch.arange(image_3HW.shape[1], device=image_3HW.device)
    columns_W = torch.arange(image_3HW.shape[2], device=image_3HW.device)
    y0, x0, y1, x1 = boxes_N4.T[..., None]
    inside_N1HW = (
        ((rows_H >= y0) & (rows_H < y1))[:, None, :, None]
        & ((columns_W >= x0) & (columns_W < x1))[:, None, None, :]
    )  # fmt: skip
    inside_NHW1 = inside_N1HW.permute(0, 2, 3, 1)
    image_HW3, fill_HW3 = (t.permute(1, 2, 0).contiguous() for t in (image_3HW, fill_3HW))
    covered = torch.where(inside_NHW1, fill_HW3, image_HW3)
    return covered.permute(0, 3, 1, 2)


class FullEngine:
    """The whole network on every covered image."""

    name = "full"

    def __init__(
        self, network: Network, *, batch_size: int | None = None, note: str | None = None
    ) -> None:
        self._network, self.note = network, note
        self.batch_size = batch_size or self._default_batch()

    def _default_batch(self) -> int:
        network = self._network
        if network.device.type != "cpu":
            return DEVICE_BATCH
        places = network.graph.places.values() if network.graph is not None else ()
        sizes = [torch.Size(place.shape).numel() for place in places if place.shape is not None]
        fitting = CPU_MAP // (max(sizes, default=1) * network.dtype.itemsize)
        return max(1, min(CPU_BATCH, fitting))

    @torch.inference_mode()
    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = lambda _steps: None,
    ) -> Scores:
        """See `Engine.run`.

        Raises:
            CnnvizError: not even one image fits the device's memory.
        """
        network = self._network
        image, fill = (t.to(network.device, network.dtype) for t in (image_3HW, fill_3HW))
        boxes = boxes_P4.to(network.device)
        image_13HW = image[None].contiguous(memory_format=torch.channels_last)
        base_logits, base_sums = network.run(image_13HW)
        logits_PK = torch.empty(len(boxes), base_logits.shape[1], device=network.device)
        channel = None if base_sums is None else int(base_sums[0].argmax())
        activation_P = None if base_sums is None else torch.empty(len(boxes), device=network.device)

        def batch(part: slice) -> None:
            logits, sums = network.run(cover(image, fill, boxes[part]))
            logits_PK[part] = logits
            if activation_P is not None and sums is not None:
                activation_P[part] = sums[:, channel]

        before = 0
        for done, _size in in_batches(len(boxes), self.batch_size, batch):
            progress(done - before)
            before = done
        base = None if base_sums is None else float(base_sums[0, channel])
        return Scores(base_logits[0], logits_PK, base, activation_P, channel)
