"""Whether a group's evidence is a shortcut: its patches pasted into images of other classes.

Each patch goes, at its own position, into some images that are predicted as other classes. For
comparison, the same images get a patch of the same size from a random position of a random image of
the class. A group is suspicious if all of three null hypotheses are rejected:

- `random`: its patches raise the class no more than random patches (signs of the differences
  between donors flipped at random);
- `others`: they do so no more than the evidence of other classes for theirs (a t test of the mean
  rise, as arc sine of the root, against their groups; scatter at least that of so many pastes);
- `cover`: covering them changes the prediction of their own images no more than covering any
  position (signs flipped at random).

The p-value of the group is the largest of the three (an intersection-union test: Berger 1982,
Technometrics 24, 295-300).

Shapes: G groups, J donors, H hosts of each, K classes.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray

from cnnviz.audit.groups import WAYS, Class, needed
from cnnviz.audit.hosts import Hosts, Open
from cnnviz.audit.options import ALARM
from cnnviz.audit.rows import Floats, Rows
from cnnviz.core.output.record import Change, Count, Record, Says, Share
from cnnviz.core.statistics import against_others, sign_flips

DONORS = 12
BY_CHANCE = 0.5 / DONORS**0.5
"""Standard deviation of the arc sine of the root of a share of so many."""
PASTES_AN_IMAGE = 3
MIN_HOSTS, MAX_HOSTS = 4, 20
Donor = tuple[int, tuple[int, int, int, int], int]
"""Place in the rows, box of the patch, target class."""


@dataclass(frozen=True)
class Verdict(Record):
    """The results of pasting and covering for a group; null if there are no other predictions."""

    pastes: Annotated[Count, Says("images that got one of its patches")] = 0
    carried: Annotated[Share | None, Says("share of them that became its class")] = None
    carried_random: Annotated[Share | None, Says("the same for random patches")] = None
    rise: Annotated[Change | None, Says("mean rise of the class's probability in them")] = None
    rise_random: Annotated[Change | None, Says("the same for random patches")] = None
    lost: Annotated[Share | None, Says("share of its images that change if it is occluded")] = None
    lost_random: Annotated[Share | None, Says("the same for any position occluded")] = None
    p_random: Annotated[Share | None, Says("p-value: it is as random patches")] = None
    p_others: Annotated[
        Share | None, Says("p-value: it is as other classes' evidence; null with too few groups")
    ] = None
    p_cover: Annotated[Share | None, Says("p-value: it is as any position occluded")] = None

    @property
    def p(self) -> float | None:
        """The largest of the three p-values; None where one is not known."""
        known = [p for p in (self.p_random, self.p_others, self.p_cover) if p is not None]
        return max(known) if len(known) == 3 else None


class Paster:
    """Pastes patches into other images."""

    def __init__(self, hosts: Hosts, rows: Rows, read: Open) -> None:
        self.hosts, self._read, self._draw = hosts, read, hosts.draw
        self._boxes_N4 = rows.boxes_N4

    def paste(
        self, donors: Sequence[Donor], hosts_JH: NDArray[np.int64]
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Pastes a patch of each donor into its hosts (places in the pool), at its own position.

        Returns (J, H) how much the class's probability rises, and whether it is predicted.
        """
        rise, won = [], []
        for (place, (y0, x0, y1, x1), target), hosts_H in zip(donors, hosts_JH, strict=True):
            images = self.hosts.pixels_H[torch.from_numpy(hosts_H)]
            images[:, :, y0:y1, x0:x1] = self._read(place).pixels[:, y0:y1, x0:x1]
            after_HK = self.hosts.probabilities(images)
            rise.append(after_HK[:, target] - self.hosts.base_HK[hosts_H, target])
            won.append(after_HK.argmax(1) == target)
        return np.stack(rise), np.stack(won)

    def hosts_for(self, targets: Sequence[int], count: int) -> NDArray[np.int64] | None:
        """(J, H) places in the pool of images with another prediction; None if there is none."""
        others = [self.hosts.others(target) for target in targets]
        if not all(map(len, others)):
            return None
        return np.stack([self._draw.choice(o, count, replace=count > len(o)) for o in others])

    def sample(self, places_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """A random sample of places."""
        return self._draw.choice(places_N, min(count, len(places_N)), replace=False)

    def elsewhere(self, place: int, boxes_P4: NDArray[np.int64]) -> tuple[int, int, int, int]:
        """A box of the size of the image's evidence, at a random position of the mask."""
        box = _box(self._boxes_N4[place])
        height, width = box[2] - box[0], box[3] - box[1]
        bottom, right = boxes_P4[:, 2].max() - height, boxes_P4[:, 3].max() - width
        y0, x0, _, _ = _box(boxes_P4[self._draw.choice(len(boxes_P4))])
        y0, x0 = min(y0, int(bottom)), min(x0, int(right))
        return y0, x0, y0 + height, x0 + width


def _box(box_4: NDArray[np.int64]) -> tuple[int, int, int, int]:
    y0, x0, y1, x1 = box_4.tolist()
    return y0, x0, y1, x1


def judge(
    hosts: Hosts,
    rows: Rows,
    listed: Sequence[Class],
    boxes_P4: NDArray[np.int64],
    read: Open,
    seed: int,
    progress: Callable[[int], None] = lambda _steps: None,
) -> list[Verdict]:
    """Computes a verdict for each group of each class, in order."""
    groups = [(number, part) for number, entry in enumerate(listed) for part in entry.groups]
    paster = Paster(hosts, rows, read)
    count = PASTES_AN_IMAGE * len(rows) // (2 * DONORS * max(len(groups), 1))
    count = min(max(count, MIN_HOSTS), MAX_HOSTS)
    draw = np.random.default_rng(seed)
    raw: list[Verdict] = []
    judged = max(1, sum(entry.enough for entry in listed))
    for number, part in groups:
        chosen = paster.sample(part, max(DONORS, needed(len(listed[number].groups), judged)))
        raw.append(_test(paster, rows, listed[number], part, chosen, boxes_P4, count, draw))
        progress(1)
    return _against_others(raw, [number for number, _ in groups])


def _test(
    paster: Paster,
    rows: Rows,
    entry: Class,
    part: NDArray[np.int64],
    chosen: NDArray[np.int64],
    boxes_P4: NDArray[np.int64],
    count: int,
    draw: np.random.Generator,
) -> Verdict:
    targets = rows.predicted_N[chosen].tolist()
    hosts_JH = paster.hosts_for(targets, count)
    if hosts_JH is None:
        return Verdict()
    others: list[Donor] = []
    donors: list[Donor] = []
    for place, target in zip(chosen.tolist(), targets, strict=True):
        same = entry.members_N[rows.predicted_N[entry.members_N] == target]
        others.append((int(paster.sample(same, 1)[0]), paster.elsewhere(place, boxes_P4), target))
        donors.append((place, _box(rows.boxes_N4[place]), target))
    rise_JH, won_JH = paster.paste(donors, hosts_JH)
    random_JH, won_random_JH = paster.paste(others, hosts_JH)
    lost_N = (rows.covered_N[part] != rows.predicted_N[part]).astype(np.float64)
    return Verdict(
        pastes=hosts_JH.size,
        carried=float(won_JH.mean()),
        carried_random=float(won_random_JH.mean()),
        rise=float(rise_JH.mean()),
        rise_random=float(random_JH.mean()),
        lost=float(lost_N.mean()),
        lost_random=float(rows.flips_N[part].mean()),
        p_random=sign_flips((rise_JH - random_JH).mean(1), draw),
        p_cover=sign_flips(lost_N - rows.flips_N[part], draw),
    )


def _against_others(verdicts: Sequence[Verdict], class_of: Sequence[int]) -> list[Verdict]:
    """Adds the p-value against the groups of other classes."""
    known = [(v.rise, k) for v, k in zip(verdicts, class_of, strict=True) if v.rise is not None]

    def judged(verdict: Verdict, number: int) -> Verdict:
        if verdict.rise is None:
            return verdict
        others = [rise for rise, other in known if other != number]
        return replace(verdict, p_others=against_others(verdict.rise, others, BY_CHANCE))

    return list(map(judged, verdicts, class_of))


def too_few_others(groups: int, others: int, judged: int) -> str | None:
    """Why a class of so many groups cannot be judged by its patches, if not even 100 % would do.

    `others` is the number of the other classes' groups, `judged` of all classes with enough images.
    """

    def smallest(more: int) -> float:
        p = against_others(1.0, [0.0] * (others + more), BY_CHANCE)
        return 1.0 if p is None else min(1.0, WAYS * groups * (judged + more) * p)

    if smallest(0) <= 1 - ALARM:
        return None
    more = next(more for more in itertools.count(1) if smallest(more) <= 1 - ALARM)
    return (
        f"too few groups of other classes to tell ({others + more} would be needed): p is at least "
        f"{smallest(0):.2f} with {others}"
    )
