"""What became of the filters of a layer: turned, died, or driven by other pictures.

Filters are compared number by number, which makes sense for two states of one network; for two
trainings the most alike filter of the other network is named beside.
Shapes: F filters, D weights of a kernel.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cnnviz.core.maps import rank_correlation
from cnnviz.diff.sides import Floats, Layer, Side


@dataclass(frozen=True)
class FilterChange:
    """One filter.

    Attributes:
        layer: its layer.
        filter: its number.
        was: its strength in the first network.
        now: its strength in the second.
        died: it does something in the first network, and nothing in the second.
        revived: the other way round.
        likeness: cosine of its kernels, or the share of its strongest patches' images that both
            have; None where one is dead, or where there is neither.
        nearest: the most alike filter of the second network; None likewise.
        nearest_likeness: likeness with that.
    """

    layer: str
    filter: int
    was: float
    now: float
    died: bool
    revived: bool
    likeness: float | None = None
    nearest: int | None = None
    nearest_likeness: float | None = None

    @property
    def changed(self) -> tuple[bool, float, float]:
        """For sorting: what changed most is least."""
        gone = self.died or self.revived
        return not gone, 2.0 if self.likeness is None else self.likeness, -abs(self.now - self.was)


@dataclass(frozen=True, eq=False)
class LayerChange:
    """One layer.

    Attributes:
        layer: its name.
        filters: in their order.
        rank_correlation: of their strengths; None where one side is constant.
    """

    layer: str
    filters: tuple[FilterChange, ...]
    rank_correlation: float | None

    @property
    def likeness(self) -> float | None:
        """Mean over the filters that have one."""
        known = [f.likeness for f in self.filters if f.likeness is not None]
        return float(np.mean(known)) if known else None


def compare_filters(a: Side, b: Side) -> tuple[LayerChange, ...]:
    """Every layer of two sides; `aligned` has seen to it that they have the same ones."""
    return tuple(_compare(name, own, b.layers[name]) for name, own in a.layers.items())


def _compare(name: str, a: Layer, b: Layer) -> LayerChange:
    likeness_FF = _likeness(a, b)
    found = []
    for row, number in enumerate(a.filters):
        dead, other_dead = bool(a.dead_F[row]), bool(b.dead_F[row])
        change = FilterChange(
            name,
            number,
            float(a.strength_F[row]),
            float(b.strength_F[row]),
            died=other_dead and not dead,
            revived=dead and not other_dead,
        )
        if likeness_FF is not None and not dead and not b.dead_F.all():
            alive_F = np.where(b.dead_F, -np.inf, likeness_FF[row])
            nearest = int(alive_F.argmax())
            change = FilterChange(
                *(change.layer, change.filter, change.was, change.now),
                died=change.died,
                revived=change.revived,
                likeness=None if other_dead else float(likeness_FF[row, row]),
                nearest=b.filters[nearest],
                nearest_likeness=float(alive_F[nearest]),
            )
        found.append(change)
    rank = rank_correlation(torch.from_numpy(a.strength_F), torch.from_numpy(b.strength_F))
    return LayerChange(name, tuple(found), rank)


def _likeness(a: Layer, b: Layer) -> Floats | None:
    """(F, F) of each filter of one network with each of the other; None where nothing tells."""
    if a.kernels_FD is not None and b.kernels_FD is not None:
        cosines_FF: Floats = _unit(a.kernels_FD) @ _unit(b.kernels_FD).T
        return cosines_FF
    if a.images is None or b.images is None:
        return None
    place = {
        image: column for column, image in enumerate(sorted(set().union(*a.images, *b.images)))
    }
    from scipy.sparse import csr_matrix

    member = []
    for lists in (a.images, b.images):
        rows = np.repeat(np.arange(len(lists)), [len(own) for own in lists])
        columns = [place[image] for own in lists for image in sorted(own)]
        ones = np.ones(len(columns))
        member.append(csr_matrix((ones, (rows, columns)), shape=(len(lists), max(1, len(place)))))
    shared_FF = (member[0] @ member[1].T).toarray()
    sizes_FF = np.maximum(
        np.array([len(own) for own in a.images])[:, None],
        np.array([len(own) for own in b.images])[None, :],
    )
    overlap_FF: Floats = shared_FF / np.maximum(sizes_FF, 1)
    return overlap_FF


def _unit(kernels_FD: NDArray[np.float32]) -> Floats:
    kernels = kernels_FD.astype(np.float64)
    unit_FD: Floats = kernels / np.maximum(np.linalg.norm(kernels, axis=1, keepdims=True), 1e-300)
    return unit_FD
