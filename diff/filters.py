"""What became of the filters of a layer: turned, died, or driven by other images.

Filters are compared number by number, which makes sense for two states of one network; for two
trainings the most similar filter of the other network is reported, too.
Shapes: F filters, D weights of a kernel.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from cnnviz.core.maps import rank_correlation
from cnnviz.diff.results import FilterChange, LayerChange
from cnnviz.diff.sides import Floats, Layer, Side


def compare_filters(a: Side, b: Side) -> tuple[LayerChange, ...]:
    """Compares every layer of two sides that `aligned` returned."""
    return tuple(_compare(name, layer, b.layers[name]) for name, layer in a.layers.items())


def _compare(name: str, a: Layer, b: Layer) -> LayerChange:
    likeness_FF = _likeness(a, b)
    changes = []
    for row, number in enumerate(a.filters):
        dead, other_dead = bool(a.dead_F[row]), bool(b.dead_F[row])
        likeness = nearest = None
        if likeness_FF is not None and not dead and not b.dead_F.all():
            alive_F = np.where(b.dead_F, -np.inf, likeness_FF[row])
            nearest = int(alive_F.argmax())
            likeness = None if other_dead else float(likeness_FF[row, row])
        changes.append(
            FilterChange(
                layer=name,
                filter=number,
                a=float(a.strength_F[row]),
                b=float(b.strength_F[row]),
                died=other_dead and not dead,
                revived=dead and not other_dead,
                likeness=likeness,
                nearest=None if nearest is None else b.filters[nearest],
                nearest_likeness=None if nearest is None else float(alive_F[nearest]),
            )
        )
    rank = rank_correlation(torch.from_numpy(a.strength_F), torch.from_numpy(b.strength_F))
    return LayerChange(name, tuple(changes), rank)


def _likeness(a: Layer, b: Layer) -> Floats | None:
    """(F, F) of each filter of one network with each of the other; None if neither is known."""
    if a.kernels_FD is not None and b.kernels_FD is not None:
        cosines_FF: Floats = _unit(a.kernels_FD) @ _unit(b.kernels_FD).T
        return cosines_FF
    if a.images is None or b.images is None:
        return None
    place = {
        image: column for column, image in enumerate(sorted(set().union(*a.images, *b.images)))
    }
    member = []
    for lists in (a.images, b.images):
        rows = np.repeat(np.arange(len(lists)), [len(images) for images in lists])
        columns = [place[image] for images in lists for image in sorted(images)]
        ones = np.ones(len(columns))
        member.append(csr_matrix((ones, (rows, columns)), shape=(len(lists), max(1, len(place)))))
    shared_FF = (member[0] @ member[1].T).toarray()
    sizes_FF = np.maximum(
        np.array([len(images) for images in a.images])[:, None],
        np.array([len(images) for images in b.images])[None, :],
    )
    overlap_FF: Floats = shared_FF / np.maximum(sizes_FF, 1)
    return overlap_FF


def _unit(kernels_FD: NDArray[np.float32]) -> Floats:
    kernels = kernels_FD.astype(np.float64)
    unit_FD: Floats = kernels / np.maximum(np.linalg.norm(kernels, axis=1, keepdims=True), 1e-300)
    return unit_FD
