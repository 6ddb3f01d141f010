"""Small square pictures of a data set's images, for maps that show the images themselves.

Shapes: N images, S side of a thumbnail.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cnnviz.core.data.datasets import ImageData, batches
from cnnviz.core.data.images import Preprocess
from cnnviz.core.output.drawing import in_colour, to_uint8

BATCH = 64
MISSING = 200


def thumbnails(
    data: ImageData,
    indices: Sequence[int],
    side: int,
    preprocess: Preprocess,
    *,
    progress: Callable[[int], None] = lambda _steps: None,
) -> NDArray[np.uint8]:
    """The centre squares of some images, (N, S, S, 3); one that cannot be read is grey.

    Args:
        data: the images.
        indices: which of them, in the order wanted.
        side: S, in pixels.
        preprocess: of the network, for the channels.
        progress: called with the number of images just done.
    """
    chosen = dataclasses.replace(data, examples=tuple(data.examples[i] for i in indices))
    count = preprocess.channels
    small = dataclasses.replace(
        preprocess, resize=side, crop=(side, side), mean=(0.0,) * count, std=(1.0,) * count
    )
    pictures = np.full((len(chosen), side, side, 3), MISSING, np.uint8)
    for batch in batches(chosen, small, BATCH, on_error=lambda _index, _message: progress(1)):
        pictures[batch.indices.numpy()] = to_uint8(in_colour(batch.images.numpy(), small.bands))
        progress(len(batch.indices))
    return pictures
