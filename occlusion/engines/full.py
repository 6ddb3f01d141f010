"""The full engine: every occluded image goes through the whole network, in batches.

Occluded images are made on the device, one batch at a time, from the image, the fill and the boxes;
nothing is copied to the host before the end.
Shapes: N images in a batch, P positions, C channels, K classes, H W rows and columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cnnviz.core.device import in_batches
from cnnviz.occlusion.engines.network import Network, Scores, ScoreSheet
from cnnviz.occlusion.masks import inside_boxes

# Small batches keep a layer's maps in the CPU caches; a GPU needs many images at once.
CPU_BATCH = 8
DEVICE_BATCH = 128
# glibc requests blocks of 32 MiB and more from the kernel each time, which clears their pages.
CPU_MAP = 28 * 2**20


def cover(image_3HW: Tensor, fill_3HW: Tensor, boxes_N4: Tensor) -> Tensor:
    """Pastes the fill into the image inside each of N boxes: (N, 3, H, W), channels last."""
    size = (int(image_3HW.shape[1]), int(image_3HW.shape[2]))
    inside_NHW1 = inside_boxes(boxes_N4, size)[..., None]
    image_HW3, fill_HW3 = (t.permute(1, 2, 0).contiguous() for t in (image_3HW, fill_3HW))
    covered = torch.where(inside_NHW1, fill_HW3, image_HW3)
    return covered.permute(0, 3, 1, 2)


class FullEngine:
    """Runs the whole network on every occluded image."""

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
        known = network.graph.info.values() if network.graph is not None else ()
        sizes = [torch.Size(info.shape).numel() for info in known if info.shape is not None]
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
        """See `Engine.run`."""
        network = self._network
        image, fill = (t.to(network.device, network.dtype) for t in (image_3HW, fill_3HW))
        boxes = boxes_P4.to(network.device)
        image_13HW = image[None].contiguous(memory_format=torch.channels_last)
        sheet = ScoreSheet(len(boxes), *network.run(image_13HW))

        def batch(part: slice) -> None:
            logits, sums = network.run(cover(image, fill, boxes[part]))
            sheet.write(part, logits, None if sums is None else sums[:, sheet.channel])

        before = 0
        for done, _size in in_batches(len(boxes), self.batch_size, batch):
            progress(done - before)
            before = done
        return sheet.scores()
