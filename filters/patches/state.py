"""The state of a scan: what is kept for each layer, as arrays of the run's journal.

States of two sets of images merge exactly, but for the last digits of the sum of scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.output.journal import Arrays
from cnnviz.filters.patches.score_stats import ScoreStats
from cnnviz.filters.patches.top_k import TopK


@dataclass(frozen=True)
class LayerState:
    """The strongest patches of one layer's filters so far, and statistics of all scores."""

    best: TopK
    stats: ScoreStats

    @classmethod
    def empty(cls, filters: int, top: int, device: torch.device | str) -> "LayerState":
        """The state before the first image."""
        return cls(TopK.empty(filters, top, device), ScoreStats.empty(filters, device))

    def merged(self, other: "LayerState") -> "LayerState":
        """The state of both sets of images, which must have none in common."""
        return LayerState(self.best.merged(other.best), self.stats.merged(other.stats))

    def arrays(self) -> dict[str, Tensor]:
        """All of it, by name."""
        stats = {field.name: getattr(self.stats, field.name) for field in fields(ScoreStats)}
        stats["count"] = torch.tensor(self.stats.count)
        return {"keys": self.best.keys, "units": self.best.units, **stats}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> "LayerState":
        """The inverse of `arrays`."""
        stats = {field.name: arrays[field.name] for field in fields(ScoreStats)}
        count = int(stats.pop("count"))
        return cls(TopK(arrays["keys"], arrays["units"]), ScoreStats(count, **stats))


def to_arrays(layers: Iterable[LayerState]) -> Arrays:
    """The arrays of all layers, for the journal."""
    return {
        f"{number}.{name}": tensor.cpu().numpy()
        for number, layer in enumerate(layers)
        for name, tensor in layer.arrays().items()
    }


def of_arrays(arrays: Arrays, device: torch.device | str = "cpu") -> list[LayerState]:
    """The inverse of `to_arrays`."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition(".")
        layers.setdefault(int(number), {})[name] = torch.from_numpy(np.asarray(array)).to(device)
    return [LayerState.of_arrays(layers[number]) for number in range(len(layers))]


def merge(parts: Sequence[Arrays]) -> Arrays:
    """The arrays of all images from those of their blocks."""
    joined, *rest = map(of_arrays, parts)
    for layers in rest:
        joined = [a.merged(b) for a, b in zip(joined, layers, strict=True)]
    return to_arrays(joined)
