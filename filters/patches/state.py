"""How far a scan has come, and its file: what lets a killed scan go on.

The file is an npz of plain arrays beside a JSON text that says what the scan is of. It is replaced
whole, never changed in place, so whatever moment the process dies at, the file on disk is the
state after some batch. A file that is of other weights, preprocessing, data or questions is
refused by naming what differs.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnviz.core.data.shards import PART, joined_parts, refuse_other
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import DAMAGE, open_arrays
from cnnviz.core.output.run_folder import write_atomically
from cnnviz.filters.patches.score_stats import ScoreStats
from cnnviz.filters.patches.top_k import TopK

_HEADER = "header"


@dataclass(frozen=True)
class LayerState:
    """What one layer's filters have shown so far.

    Attributes:
        best: the strongest patches.
        stats: of all scores.
    """

    best: TopK
    stats: ScoreStats

    @classmethod
    def empty(cls, filters: int, top: int, device: torch.device | str) -> "LayerState":
        """Nothing seen yet."""
        return cls(TopK.empty(filters, top, device), ScoreStats.empty(filters, device))

    @classmethod
    def read(cls, file: Any, number: int, count: int) -> "LayerState":
        """The layer of that number in a state file, of so many images."""
        names = [f.name for f in fields(ScoreStats) if f.name != "count"]
        arrays = {n: torch.from_numpy(file[f"{number}.{n}"]) for n in ("keys", "units", *names)}
        best = TopK(arrays.pop("keys"), arrays.pop("units"))
        return cls(best, ScoreStats(count, **arrays))

    def on(self, device: torch.device) -> "LayerState":
        """The same on a device."""
        arrays = {name: tensor.to(device) for name, tensor in _arrays(self).items()}
        best = TopK(arrays.pop("keys"), arrays.pop("units"))
        return LayerState(best, ScoreStats(self.stats.count, **arrays))

    def merged(self, other: "LayerState") -> "LayerState":
        """Of both sets of images, which must have none in common."""
        return LayerState(self.best.merged(other.best), self.stats.merged(other.stats))


@dataclass(frozen=True)
class ScanState:
    """A scan after some batch.

    Attributes:
        done: images of the data set gone through, whether they could be used or not.
        layers: by name.
        errors: (image, message) of those that could not be used.
    """

    done: int
    layers: Mapping[str, LayerState]
    errors: tuple[tuple[str, str], ...] = ()


def _arrays(state: LayerState) -> dict[str, Tensor]:
    stats = {f.name: getattr(state.stats, f.name) for f in fields(ScoreStats) if f.name != "count"}
    return {"keys": state.best.keys, "units": state.best.units, **stats}


def save(path: Path, state: ScanState, identity: Mapping[str, Any]) -> None:
    """Replaces the file with this state.

    Args:
        path: the file.
        state: of the scan.
        identity: what the scan is of, JSON data; the same must be given to `load`.

    Raises:
        CnnvizError: the file cannot be written.
    """
    header = {
        "identity": identity,
        "done": state.done,
        "errors": state.errors,
        "counts": [layer.stats.count for layer in state.layers.values()],
    }
    text = json.dumps(header).encode()
    content: dict[str, Any] = {_HEADER: np.frombuffer(text, np.uint8)}
    for number, layer in enumerate(state.layers.values()):
        for name, tensor in _arrays(layer).items():
            content[f"{number}.{name}"] = tensor.cpu().numpy()
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **content)
    write_atomically(path, stream.getvalue())


def load(path: Path, empty: ScanState, identity: Mapping[str, Any]) -> ScanState | None:
    """The state that the file holds; None where there is no file.

    Args:
        path: the file.
        empty: the state before the first batch: names, shapes, types and device to expect.
        identity: what the scan is of.

    Raises:
        UsageError: the file is of another scan; the message says what differs.
        CnnvizError: it is no scan state or cannot be read.
    """
    if not path.exists():
        return None
    try:
        with open_arrays(path) as file:
            header = json.loads(bytes(file[_HEADER]))
            refuse_other(path, dict(header["identity"]), identity)
            layers = {
                name: _layer(file, number, layer, int(header["counts"][number]))
                for number, (name, layer) in enumerate(empty.layers.items())
            }
            errors = tuple((str(image), str(message)) for image, message in header["errors"])
            return ScanState(int(header["done"]), layers, errors)
    except OSError as error:
        raise CnnvizError(f"cannot read {path}: {error.strerror or error}") from error
    except (*DAMAGE, ArithmeticError) as error:
        raise CnnvizError(
            f"'{path}' is not the state of a scan; start again with --overwrite"
        ) from error


def join(paths: Sequence[Path], path: Path) -> None:
    """Writes the state of the whole scan from those of its shares.

    Args:
        paths: the shares' state files, in their order.
        path: the file to write.

    Raises:
        UsageError: they are not of one scan, or a share has not come to its end.
        CnnvizError: one is damaged, or the file cannot be written.
    """
    joined: dict[str, LayerState] = {}
    errors: list[tuple[str, str]] = []
    whole: dict[str, Any] = {}
    parts: list[tuple[list[int], int]] = []
    for share in paths:
        try:
            with open_arrays(share) as file:
                header = json.loads(bytes(file[_HEADER]))
                identity, done = dict(header["identity"]), int(header["done"])
                start, stop, total = map(int, identity[PART])
                for place, name in enumerate(identity["layers or filters"]):
                    layer = LayerState.read(file, place, int(header["counts"][place]))
                    joined[name] = joined[name].merged(layer) if name in joined else layer
                errors += [(str(image), str(message)) for image, message in header["errors"]]
        except (*DAMAGE, ArithmeticError) as error:
            raise CnnvizError(f"'{share}' is not the state of a scan") from error
        parts.append(([start, stop, total], done))
        whole = whole or {**identity, PART: [0, total, total]}
        refuse_other(share, {**identity, PART: [0, total, total]}, whole)
    reached = joined_parts(paths, parts)
    save(path, ScanState(reached, joined, tuple(errors)), whole)


def _layer(file: Any, number: int, like: LayerState, count: int) -> LayerState:
    found, device = LayerState.read(file, number, count), like.best.keys.device
    for name, tensor in _arrays(found).items():
        expected = _arrays(like)[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
    return found.on(device)
