"""What `trust` finds: the records of `summary.json`, and how verdicts are checked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from cnnviz.core.errors import CheckFailed
from cnnviz.core.output.judged import Judged, Scorecard, Verdict
from cnnviz.core.output.record import ABSENT, Hidden, Record, Says, from_json
from cnnviz.core.output.summary import ClassRecord, FinishedRun
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.trust.options import MinVerdict


@dataclass(frozen=True, eq=False, kw_only=True)
class JudgedMap(Judged, ClassRecord):
    """The map of one class."""

    trust: Annotated[Scorecard, Says("the scorecard of this map")]
    map_HW: Hidden[Tensor] = ABSENT


@dataclass(frozen=True, eq=False, kw_only=True)
class TrustResult(Record):
    """One image; `occlusion` is what its maps are compared with.

    `folder` holds the files of an image of a finished run, relative to the run's.
    """

    image: str
    map: Annotated[str, Says("the file it came from, or 'occlusion'")]
    targets: tuple[JudgedMap, ...]
    occlusion: Hidden[OcclusionResult] = ABSENT
    folder: Hidden[str] = ABSENT


def load_run(run: FinishedRun) -> tuple[TrustResult, ...]:
    """Reads the images of a run of `trust`.

    Raises:
        CnnvizError: the summary holds something else.
    """
    return from_json(tuple[TrustResult, ...], run.summary.results)


def first_target(entry: Any) -> Any:
    """The target that checks are about: that of the true class if it is known, else the first."""
    label = getattr(entry, "label", None)
    index = label.index if label else entry.targets[0].index
    return next(target for target in entry.targets if target.index == index)


def is_below(verdict: Verdict | str, minimum: MinVerdict) -> bool:
    """Whether a verdict is worse than the minimum."""
    order = list(Verdict)
    return order.index(Verdict(verdict)) < order.index(Verdict(minimum.value))


def check_verdicts(entries: Iterable[Any], minimum: MinVerdict) -> None:
    """Checks that no image's verdict is worse than the minimum."""
    cards = [(entry.image, first_target(entry).trust) for entry in entries]
    low = {image: card.line for image, card in cards if is_below(card.verdict, minimum)}
    if low:
        image, line = next(iter(low.items()))
        raise CheckFailed(
            f"the maps of {len(low)} of {len(cards)} images are worse than --min-trust {minimum}; "
            f"the first is '{image}': {line}",
            low,
        )
