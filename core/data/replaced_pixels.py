"""Logits of an image with some of its pixels replaced, for many choices of pixels.

Shapes: N images, C channels, K classes, H W rows and columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.device import beyond_rounding, in_batches, is_out_of_memory
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.load import Model

CPU_BATCH, DEVICE_BATCH = 8, 128


@torch.inference_mode()
def replaced_logits(
    model: Model,
    image: WorkingImage,
    fill_CHW: Tensor,
    count: int,
    kept: Callable[[slice], Tensor],
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] = lambda _steps: None,
) -> Tensor:
    """Logits of the image with every pixel that is not kept replaced by the fill.

    Args:
        model: the network; it is not changed.
        image: of the model's input size.
        fill_CHW: an image in [0, 1], before normalisation.
        count: number of choices.
        kept: maps a slice of the choices to the pixels that are kept, (n, H, W): bool, or shares
            from 0 to 1; called for a batch at a time, so that all masks never exist at once.
        batch_size: images at a time; None for automatic.
        progress: called with the number of images just done.

    Returns:
        (count, K) float32 on the CPU, as the model's head has them.
    """
    normalise = model.preprocess.normalise
    original, replacement = (
        normalise(pixels).to(model.device) for pixels in (image.pixels, fill_CHW)
    )
    batches: list[Tensor] = []
    layouts = [torch.contiguous_format, torch.channels_last]  # the last is the faster

    def batch(part: slice) -> None:
        pictures = _mixed(original, replacement, kept(part))
        try:
            logits_NK = model.logits(pictures.contiguous(memory_format=layouts[-1]))
        except (CnnvizError, RuntimeError) as error:
            if len(layouts) == 1 or is_out_of_memory(error):
                raise
            layouts.pop()  # the network takes views of its input
            logits_NK = model.logits(pictures.contiguous())
        batches.append(logits_NK.cpu())

    def alone(pixels: Tensor) -> Tensor:
        return model.logits(pixels)[0].cpu()

    def last_differs() -> bool:
        """Whether the last image has other logits when it is run alone."""
        picture = _mixed(original, replacement, kept(slice(count - 1, count)))
        return beyond_rounding(alone(picture), batches[-1][-1], alone, picture) > 0

    automatic = CPU_BATCH if model.device.type == "cpu" else DEVICE_BATCH
    before, at_a_time = 0, model.batch_size(batch_size) or automatic
    for done, _size in in_batches(count, at_a_time, batch):
        progress(done - before)
        before = done
    logits_NK = torch.cat(batches)
    if min(at_a_time, count) > 1 and last_differs():
        batches.clear()
        for _done in in_batches(count, 1, batch):
            pass
        logits_NK = torch.cat(batches)
    return model.finite(logits_NK, image.path)


def _mixed(original_CHW: Tensor, replacement_CHW: Tensor, kept_NHW: Tensor) -> Tensor:
    """The images (N, C, H, W) in which those pixels, or shares of pixels, are the original's."""
    kept_N1HW = kept_NHW.to(original_CHW.device)[:, None]
    if kept_NHW.dtype is torch.bool:
        return torch.where(kept_N1HW, original_CHW, replacement_CHW)
    return torch.lerp(replacement_CHW, original_CHW, kept_N1HW)
