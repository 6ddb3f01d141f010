"""What in a patch drives the filter: the unit's gradient, and guided back-projection.

Zeiler and Fergus 2014 (section 3) put beside each patch the pixels that excite the unit, by a
deconvolutional network. Guided back-projection (Springenberg et al. 2015, "Striving for Simplicity:
The All Convolutional Net") is the gradient that passes a ReLU only where it is positive as well, so
that it keeps what excites the unit and drops what inhibits it.

Shapes: A units, one per image; C channels, H W rows and columns of the image, h w of the patch.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cnnviz.core.device import in_batches
from cnnviz.core.models.layers import Layout
from cnnviz.core.models.load import Model
from cnnviz.filters.patches.boxes import PatchImages, unit_gradients
from cnnviz.filters.patches.results import FilterPatches, Patch

_log = logging.getLogger("cnnviz")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of one patch, per pixel in [0, 1] of the working image; (C, h, w) float32.

    Attributes:
        gradient: of the unit.
        guided: the same by guided back-projection.
    """

    gradient: np.ndarray
    guided: np.ndarray


class EvidenceTracer:
    """Traces units back to the pixels of their patches."""

    def __init__(
        self, model: Model, images: PatchImages, layouts: Mapping[str, Layout], batch_size: int
    ) -> None:
        self._model, self._images, self._layouts = model, images, layouts
        self._batch_size, self._noted = batch_size, False

    def of(self, rows: Sequence[FilterPatches]) -> list[list[Evidence]]:
        """The evidence of each patch of some filters of one layer.

        Raises:
            CnnvizError: an image can no longer be read, or the network has no gradient.
        """
        units = [(entry.filter, patch) for entry in rows for patch in entry.patches]
        traced: list[Evidence] = []

        def trace(part: slice) -> None:
            traced.extend(self._trace(rows[0].layer, units[part]))

        for _done, size in in_batches(len(units), self._batch_size, trace):
            self._batch_size = size
        remaining = iter(traced)
        return [[next(remaining) for _patch in entry.patches] for entry in rows]

    def _trace(self, layer: str, units: Sequence[tuple[int, Patch]]) -> Iterator[Evidence]:
        preprocess = self._model.preprocess
        images = self._images.fetch(patch.index for _filter, patch in units)
        pixels = torch.stack([images[patch.index].pixels for _filter, patch in units])
        std_C11 = torch.tensor(preprocess.std)[:, None, None]
        plain, guided = (
            unit_gradients(
                self._model,
                layer,
                self._layouts[layer],
                [number for number, _patch in units],
                [(patch.unit[0], patch.unit[1]) for _filter, patch in units],
                preprocess.normalise(pixels),
                guided=by_guide,
            )
            / std_C11
            for by_guide in (False, True)
        )
        if not self._noted and torch.equal(plain, guided):
            self._noted = True
            _log.warning(
                "note: guided back-projection is the plain gradient at '%s': no ReLU of it is "
                "known to torch, or none has a negative gradient",
                layer,
            )
        for (_filter, patch), gradient_CHW, guided_CHW in zip(units, plain, guided, strict=True):
            y0, x0, y1, x1 = patch.box
            cut = np.s_[:, y0:y1, x0:x1]
            yield Evidence(gradient_CHW.numpy()[cut], guided_CHW.numpy()[cut])


def to_arrays(
    rows: Sequence[FilterPatches], evidence: Sequence[Sequence[Evidence]]
) -> dict[str, np.ndarray]:
    """The arrays of `evidence.npz`: `gradient_F_K` and `guided_F_K` of filter F's patch K."""
    return {
        f"{kind}_{entry.filter}_{place}": getattr(one, kind)
        for entry, traced in zip(rows, evidence, strict=True)
        for place, one in enumerate(traced)
        for kind in ("gradient", "guided")
    }
