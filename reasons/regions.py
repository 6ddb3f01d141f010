"""How many reasons an image has for a class: disjoint regions that each hold it on their own.

One is found, covered for good, and the search starts again with what is left, until it finds no
more. Shapes: L cells, H W rows and columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cnnviz.occlusion.results import Region
from cnnviz.occlusion.sufficient import Need, Search
from cnnviz.reasons.results import ClassReasons, Reason


def find_regions(search: Search, fields: dict[str, Any], most: int) -> ClassReasons:
    """Finds at most so many reasons, and the smallest region that is sufficient and necessary."""
    covered_L = torch.zeros(search.cells, dtype=torch.bool)
    found: list[Reason] = []
    complete = False
    while len(found) < most and not complete:
        region = search.smallest(Need.HOLD, covered_L)
        complete = region is None or region.cells == 0
        if region is not None and region.cells:
            covered_L |= region.cells_rc.flatten()
            found.append(_reason(search, region, covered_L))
    # Where the first is lost with the class, it is the smallest that is both: no cell can go.
    needed = found[0] if found and found[0].lost else _both(search, found)
    return ClassReasons(
        **fields,
        cell=search.cell,
        grid=search.shape,
        reasons=tuple(found),
        complete=complete,
        needed=needed,
        lost_when=search.lost_when,
        passes=search.passes,
    )


def _both(search: Search, found: Sequence[Reason]) -> Reason | None:
    base_L = torch.zeros(search.cells, dtype=torch.bool)
    base_L[list(found[0].cells) if found else []] = True
    region = search.smallest(Need.BOTH, base_L=base_L)
    return None if region is None else _reason(search, region, region.cells_rc.flatten())


def _reason(search: Search, region: Region, covered_L: Tensor) -> Reason:
    logits_1K = search.run(covered_L[None], keep=False)
    return Reason(
        cells=tuple(region.cells_rc.flatten().nonzero()[:, 0].tolist()),
        share=region.share,
        alone=region.probability,
        without=float(search.probabilities(logits_1K)[0]),
        lost=bool(search.loses(logits_1K)[0]),
    )
