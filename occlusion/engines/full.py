"""The full engine: every occluded image goes through the whole network, in batches.

Occluded images are made on the device, one batch at a time, from the image, the fill and the boxes;
nothing is copied to the host before the end. A few positions of each run are repeated alone, since
some networks mix a batch only if its images cause it: an early exit that is taken if any image
allows it, experts that each take so many images of a batch and no more.
Shapes: N images in a batch, P positions, C channels, K classes, H W rows and columns.
"""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from cnnviz.core.device import beyond_rounding, in_batches
from cnnviz.core.models.variants import fitting_batch
from cnnviz.occlusion.engines.network import Network, Scores, ScoreSheet
from cnnviz.occlusion.masks import inside_boxes

DEVICE_BATCH = 128
REPEATED_SHARE = 0.01
"""Share of the positions that are repeated alone, besides two of the most changed batch."""
_log = logging.getLogger("cnnviz")


def cover(image_3HW: Tensor, fill_3HW: Tensor, boxes_N4: Tensor) -> Tensor:
    """Pastes the fill into the image inside each of N boxes: (N, 3, H, W), channels last."""
    size = (int(image_3HW.shape[1]), int(image_3HW.shape[2]))
    inside_NHW1 = inside_boxes(boxes_N4, size)[..., None]
    image_HW3, fill_HW3 = (t.permute(1, 2, 0).contiguous() for t in (image_3HW, fill_3HW))
    covered = torch.where(inside_NHW1, fill_HW3, image_HW3)
    return covered.permute(0, 3, 1, 2)


@torch.inference_mode()
def difference_alone(
    network: Network,
    image_3HW: Tensor,
    fill_3HW: Tensor,
    boxes_N4: Tensor,
    scores: Scores,
) -> float:
    """The largest difference of some positions' scores from those of each run alone.

    0 if rounding explains it; see `beyond_rounding`.
    """
    image, fill = (t.to(network.device, network.dtype) for t in (image_3HW, fill_3HW))
    largest = 0.0
    for position, box_4 in enumerate(boxes_N4.to(network.device)):
        images = cover(image, fill, box_4[None])
        logits_1K, sums_1C = network.run(images)
        got_K = scores.logits_PK[position]
        difference = beyond_rounding(logits_1K[0], got_K, lambda x: network.run(x)[0][0], images)
        largest = max(largest, difference)
        if sums_1C is not None and scores.activation_P is not None:
            channel = slice(scores.activation_channel, (scores.activation_channel or 0) + 1)
            got = scores.activation_P[position : position + 1]
            difference = beyond_rounding(
                sums_1C[0, channel], got, partial(_sum, network, channel), images
            )
            largest = max(largest, difference)
    return largest


def _sum(network: Network, channel: slice, images: Tensor) -> Tensor:
    sums_NC = network.run(images)[1]
    assert sums_NC is not None  # noqa: S101 (there is a layer)
    return sums_NC[0, channel]


class FullEngine:
    """Runs the whole network on every occluded image."""

    name = "full"

    def __init__(
        self,
        network: Network,
        *,
        batch_size: int | None = None,
        note: str | None = None,
        model: str = "the network",
    ) -> None:
        self._network, self.note, self._model = network, note, model
        self.batch_size = batch_size or self._default_batch()
        self._runs = 0

    def _default_batch(self) -> int:
        network = self._network
        if network.device.type != "cpu":
            return DEVICE_BATCH
        known = network.graph.info.values() if network.graph is not None else ()
        sizes = [torch.Size(info.shape).numel() for info in known if info.shape is not None]
        return fitting_batch(max(sizes, default=1), network.dtype)

    def run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None] = lambda _steps: None,
    ) -> Scores:
        """See `Engine.run`."""
        scores = self._run(image_3HW, fill_3HW, boxes_P4, progress)
        if min(self.batch_size, len(boxes_P4)) == 1:
            return scores
        picked_N = self._picked(scores)
        boxes_N4 = boxes_P4[picked_N.to(boxes_P4.device)]
        difference = difference_alone(
            self._network, image_3HW, fill_3HW, boxes_N4, scores.of(picked_N)
        )
        self._runs += 1
        if difference == 0:
            return scores
        before = f" (the {self._runs - 1} before it were not)" if self._runs > 1 else ""
        _log.warning(
            "%s mixes the images of a batch: alone, an image's scores differ by %.3g; from this "
            "image on each is run alone%s",
            self._model,
            difference,
            before,
        )
        self.batch_size = 1
        return self._run(image_3HW, fill_3HW, boxes_P4, lambda _steps: None)

    def _picked(self, scores: Scores) -> Tensor:
        """Positions to repeat alone: the ends of one batch, and the last of some others.

        In that batch even the least changed image differs most from the original: this is what an
        image does that takes its whole batch along. The others differ from run to run.
        """
        count, size = len(scores.logits_PK), self.batch_size
        changes_P = (scores.logits_PK - scores.base_logits_K).abs().amax(1).nan_to_num().cpu()
        batches = [batch for batch in torch.split(changes_P, size) if len(batch) > 1]
        most = max(range(len(batches)), key=lambda number: float(batches[number].min()))
        picked = {most * size, min(count, (most + 1) * size) - 1}
        others = max(1, int(REPEATED_SHARE * count))
        for number in range(self._runs * others, (self._runs + 1) * others):
            picked.add(min(count, (number % len(batches) + 1) * size) - 1)
        return torch.tensor(sorted(picked), device=scores.logits_PK.device)

    @torch.inference_mode()
    def _run(
        self,
        image_3HW: Tensor,
        fill_3HW: Tensor,
        boxes_P4: Tensor,
        progress: Callable[[int], None],
    ) -> Scores:
        network = self._network
        image, fill = (t.to(network.device, network.dtype) for t in (image_3HW, fill_3HW))
        boxes = boxes_P4.to(network.device)
        image_13HW = image[None].contiguous(memory_format=torch.channels_last)
        sheet = ScoreSheet(len(boxes), *network.run(image_13HW))

        def batch(part: slice) -> None:
            logits, sums = network.run(cover(image, fill, boxes[part]))
            sheet.write(part, logits, sheet.watched(sums))

        before = 0
        for done, _size in in_batches(len(boxes), self.batch_size, batch):
            progress(done - before)
            before = done
        return sheet.scores()
