"""How far an ablation has come, and its file: a run that was cut off goes on, shares are joined.

What is counted are sums over images, and rows of some of them, so that two parts of a data set
join exactly. The file is replaced whole, never changed in place.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cnnviz.core.data.shards import PART, joined_parts, refuse_other
from cnnviz.core.errors import CnnvizError
from cnnviz.core.files import DAMAGE, open_arrays
from cnnviz.core.output.run_folder import replace_file
from cnnviz.filters.ablation.tally import SUMS

if TYPE_CHECKING:
    from numpy.typing import NDArray

STATE = "tally.npz"
SECONDS = 60.0
"""Between two writes of the file."""
_HEADER = "header"


@dataclass(frozen=True)
class AblationState:
    """What is counted of the images before a place.

    Attributes:
        done: that place in the data.
        errors: place and message of images that do not count.
        arrays: of `Tally` or `Answers`, and `indices` (M,), the places of those that count.
    """

    done: int
    errors: Mapping[int, str]
    arrays: "Mapping[str, NDArray[Any]]"


@dataclass
class Saving:
    """Where an ablation writes down how far it has come.

    Attributes:
        path: the file.
        resume: go on from it where there is one.
        identity: what the ablation is of, JSON data.
    """

    path: Path
    resume: bool
    identity: Mapping[str, Any]
    _next: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    @property
    def due(self) -> bool:
        """Whether it is time to write; writing takes a twentieth of a run at most."""
        return time.monotonic() > self._next

    def save(self, state: AblationState) -> None:
        """Replaces the file.

        Raises:
            CnnvizError: it cannot be written.
        """
        started = time.monotonic()
        _save(self.path, state, self.identity)
        ended = time.monotonic()
        self._next = ended + max(SECONDS, 20 * (ended - started))

    def load(self) -> AblationState | None:
        """What the file says; None where there is none, or it is not to be used.

        Raises:
            UsageError: it is of another ablation.
            CnnvizError: it cannot be read.
        """
        if not self.resume or not self.path.exists():
            return None
        found, identity = _load(self.path)
        refuse_other(self.path, identity, self.identity)
        return found


def _save(path: Path, state: AblationState, identity: Mapping[str, Any]) -> None:
    header = {"identity": identity, "done": state.done, "errors": list(state.errors.items())}
    text = np.frombuffer(json.dumps(header).encode(), np.uint8)
    content: dict[str, Any] = {_HEADER: text, **state.arrays}
    replace_file(path, lambda stream: np.savez(stream, allow_pickle=False, **content))


def _load(path: Path) -> tuple[AblationState, dict[str, Any]]:
    try:
        with open_arrays(path) as file:
            header = json.loads(bytes(file[_HEADER]))
            arrays = {name: file[name] for name in file if name != _HEADER}
        errors = {int(place): str(message) for place, message in header["errors"]}
        return AblationState(int(header["done"]), errors, arrays), dict(header["identity"])
    except DAMAGE as error:
        raise CnnvizError(
            f"'{path}' is not the state of an ablation; start again with --overwrite"
        ) from error


def _axis(name: str) -> int:
    """Along which the images stand."""
    return 1 if name == "answers" else 0


def join(paths: Sequence[Path], path: Path) -> None:
    """Writes the state of the whole ablation from those of its shares.

    Args:
        paths: the shares' state files, in their order.
        path: the file to write.

    Raises:
        UsageError: they are not of one ablation, or a share has not come to its end.
        CnnvizError: one is damaged, or the file cannot be written.
    """
    loaded = [_load(share) for share in paths]
    total = joined_parts(paths, [(identity[PART], state.done) for state, identity in loaded])
    whole = {**loaded[0][1], PART: [0, total, total]}
    for share, (_, identity) in zip(paths, loaded, strict=True):
        refuse_other(share, {**identity, PART: whole[PART]}, whole)
    states = [state for state, _ in loaded]
    arrays = {
        name: sum((state.arrays[name] for state in states[1:]), states[0].arrays[name])
        if name in SUMS
        else np.concatenate([state.arrays[name] for state in states], _axis(name))
        for name in states[0].arrays
    }
    errors = {place: message for state in states for place, message in state.errors.items()}
    _save(path, AblationState(total, errors, arrays), whole)
