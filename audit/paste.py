"""Whether a group's evidence is a shortcut: its patches pasted into images of other classes.

A patch that makes others' images into its class wherever it is put, and without which the class is
lost, decides alone. Each patch goes, at its own place, into some images that are predicted as
other classes. The same images get, for comparison, a patch of the same size from a random place of
a random image of the class. Three null hypotheses, and a group is suspicious where none holds:

- `random`: its patches raise the class no more than those do (signs of the differences between
  donors flipped at random);
- `others`: they do so no more than the evidence of the other classes does for theirs (a t test of
  its mean rise, as arc sine of the root, against the median of their groups with their spread by
  the median absolute deviation; at least what so many pastes scatter by chance);
- `cover`: covering them changes the prediction of their own images no more than covering any place
  does (signs flipped at random).

The p-value of the group is the largest of the three (an intersection-union test: Berger 1982,
Technometrics 24, 295-300).
Shapes: G groups, J donors, H hosts of each, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnviz.audit.groups import Class
from cnnviz.audit.rows import Rows
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.device import in_batches
from cnnviz.core.models.load import Model
from cnnviz.core.statistics import against_others, sign_flips

DONORS = 12
PASTES_AN_IMAGE = 3
FEWEST, MOST_HOSTS = 4, 20
POOL = 128
Open = Callable[[int], WorkingImage]
Donor = tuple[int, tuple[int, int, int, int], int]
"""Place in the rows, box of the patch, the class that is hoped for."""


@dataclass(frozen=True)
class Verdict:
    """What pasting and covering say of one group.

    Attributes:
        pastes: how many images got one of its patches.
        carried: share of them that became its class.
        carried_random: likewise of patches from random places of the class's images.
        rise: mean rise of the class's probability.
        rise_random: likewise of those.
        lost: share of its own images whose prediction changes when the patch is covered.
        lost_random: mean share of all positions that do so.
        p_random: p-value of the first null hypothesis of the module.
        p_others: of the second; None where there are too few groups of other classes to tell.
        p_cover: of the third.
        suspicion: see `suspicion`; None where `p_others` is.
    """

    pastes: int
    carried: float
    carried_random: float
    rise: float
    rise_random: float
    lost: float
    lost_random: float
    p_random: float
    p_others: float | None
    p_cover: float
    suspicion: float | None = None

    @property
    def p(self) -> float | None:
        """The largest of the three; None where one is not known."""
        return None if self.p_others is None else max(self.p_random, self.p_others, self.p_cover)


@dataclass(frozen=True, eq=False)
class _Pasted:
    """Of each donor and host: how much the class's probability rose, and whether it won."""

    rise_JH: NDArray[np.float64]
    won_JH: NDArray[np.bool_]


class Paster:
    """Pastes patches into a pool of images that stays in memory."""

    def __init__(
        self, model: Model, rows: Rows, read: Open, batch_size: int | None, seed: int
    ) -> None:
        """Draws the pool, as many of each predicted class as can be.

        Args:
            model: borrowed.
            rows: of all images.
            read: opens an image by its place in the rows.
            batch_size: images at a time; None for automatic.
            seed: of all that is drawn.
        """
        self._model, self._rows, self._read = model, rows, read
        self._batch = model.batch_size(batch_size) or 64
        self._draw = np.random.default_rng(seed)
        self._boxes_N4 = rows.boxes_N4
        self.hosts = self._pool()
        pixels = [model.preprocess.normalise(read(place).pixels) for place in self.hosts.tolist()]
        self._pixels = torch.stack(pixels)
        self._base_HK = self._probabilities(self._pixels)

    def _pool(self) -> NDArray[np.int64]:
        order = self._draw.permutation(len(self._rows))
        turn: dict[int, int] = {}
        turns = []
        for place in order.tolist():
            predicted = int(self._rows.predicted_N[place])
            turn[predicted] = turn.get(predicted, -1) + 1
            turns.append(turn[predicted])
        chosen = order[np.argsort(np.array(turns), kind="stable")][:POOL]
        return np.sort(chosen)

    @torch.inference_mode()
    def _probabilities(self, images: Tensor) -> NDArray[np.float64]:
        found: list[Tensor] = []

        def run(part: slice) -> None:
            found.append(self._model.head.readings(self._model.logits(images[part]).cpu()))

        for _, fitting in in_batches(len(images), self._batch, run):
            self._batch = fitting
        return torch.cat(found).double().numpy()

    def paste(self, donors: Sequence[Donor], hosts_JH: NDArray[np.int64]) -> _Pasted:
        """Pastes a patch of each donor into hosts, at its own place.

        Args:
            donors: whose patches.
            hosts_JH: for each donor, places in the pool.
        """
        rise, won = [], []
        for (place, (y0, x0, y1, x1), target), hosts_H in zip(donors, hosts_JH, strict=True):
            patch = self._model.preprocess.normalise(self._read(place).pixels)[:, y0:y1, x0:x1]
            images = self._pixels[torch.from_numpy(hosts_H)]
            images[:, :, y0:y1, x0:x1] = patch
            after_HK = self._probabilities(images)
            rise.append(after_HK[:, target] - self._base_HK[hosts_H, target])
            won.append(after_HK.argmax(1) == target)
        return _Pasted(np.stack(rise), np.stack(won))

    def hosts_for(self, targets: Sequence[int], count: int) -> NDArray[np.int64] | None:
        """(J, H) places in the pool of images that are predicted otherwise; None: there is none."""
        predicted = self._rows.predicted_N[self.hosts]
        chosen = []
        for target in targets:
            others = np.flatnonzero(predicted != target)
            if not len(others):
                return None
            chosen.append(self._draw.choice(others, count, replace=count > len(others)))
        return np.stack(chosen)

    def sample(self, places_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Some of these, without order."""
        return self._draw.choice(places_N, min(count, len(places_N)), replace=False)

    def elsewhere(self, place: int, boxes_P4: NDArray[np.int64]) -> tuple[int, int, int, int]:
        """A box as large as that of the image's evidence, at a random position of the mask."""
        own = _box(self._boxes_N4[place])
        height, width = own[2] - own[0], own[3] - own[1]
        bottom, right = boxes_P4[:, 2].max() - height, boxes_P4[:, 3].max() - width
        y0, x0, _, _ = _box(boxes_P4[self._draw.choice(len(boxes_P4))])
        y0, x0 = min(y0, int(bottom)), min(x0, int(right))
        return y0, x0, y0 + height, x0 + width


def _box(box_4: NDArray[np.int64]) -> tuple[int, int, int, int]:
    y0, x0, y1, x1 = box_4.tolist()
    return y0, x0, y1, x1


def judge(
    model: Model,
    rows: Rows,
    found: Sequence[Class],
    boxes_P4: NDArray[np.int64],
    read: Open,
    *,
    batch_size: int | None,
    seed: int,
    progress: Callable[[int], None] = lambda _steps: None,
) -> list[list[Verdict | None]]:
    """A verdict, without suspicion, for each group of each class; None: nothing to paste into.

    Args:
        model: borrowed.
        rows: of all images.
        found: the classes with their groups.
        boxes_P4: all positions of the mask.
        read: opens an image by its place in the rows.
        batch_size: images at a time; None for automatic.
        seed: of all that is drawn.
        progress: called with the number of groups just done.

    Raises:
        CnnvizError: an image can no longer be read, or one does not fit the memory.
    """
    groups = [(number, part) for number, entry in enumerate(found) for part in entry.groups]
    if not groups:
        return [[] for _ in found]
    paster = Paster(model, rows, read, batch_size, seed)
    wanted = PASTES_AN_IMAGE * len(rows) // (2 * DONORS * len(groups))
    hosts = min(max(wanted, FEWEST), MOST_HOSTS)
    draw = np.random.default_rng(seed)
    raw: list[Verdict | None] = []
    for number, part in groups:
        raw.append(_test(paster, rows, found[number], part, boxes_P4, hosts, draw))
        progress(1)
    verdicts = _against_others(raw, [number for number, _ in groups])
    return list(_by_class(found, verdicts))


def _by_class(
    found: Sequence[Class], verdicts: Sequence[Verdict | None]
) -> Iterator[list[Verdict | None]]:
    start = 0
    for entry in found:
        yield list(verdicts[start : start + len(entry.groups)])
        start += len(entry.groups)


def _test(
    paster: Paster,
    rows: Rows,
    of: Class,
    part: NDArray[np.int64],
    boxes_P4: NDArray[np.int64],
    count: int,
    draw: np.random.Generator,
) -> Verdict | None:
    own = paster.sample(part, DONORS)
    targets = rows.predicted_N[own].tolist()
    hosts_JH = paster.hosts_for(targets, count)
    if hosts_JH is None:
        return None
    others: list[Donor] = []
    for place, target in zip(own.tolist(), targets, strict=True):
        same = of.members_N[rows.predicted_N[of.members_N] == target]
        others.append((int(paster.sample(same, 1)[0]), paster.elsewhere(place, boxes_P4), target))
    donors: list[Donor] = [
        (place, _box(rows.boxes_N4[place]), target)
        for place, target in zip(own.tolist(), targets, strict=True)
    ]
    evidence = paster.paste(donors, hosts_JH)
    random = paster.paste(others, hosts_JH)
    lost_N = (rows.covered_N[part] != rows.predicted_N[part]).astype(np.float64)
    return Verdict(
        pastes=hosts_JH.size,
        carried=float(evidence.won_JH.mean()),
        carried_random=float(random.won_JH.mean()),
        rise=float(evidence.rise_JH.mean()),
        rise_random=float(random.rise_JH.mean()),
        lost=float(lost_N.mean()),
        lost_random=float(rows.flips_N[part].mean()),
        p_random=sign_flips((evidence.rise_JH - random.rise_JH).mean(1), draw),
        p_others=None,
        p_cover=sign_flips(lost_N - rows.flips_N[part], draw),
    )


def _against_others(raw: Sequence[Verdict | None], class_of: Sequence[int]) -> list[Verdict | None]:
    """With the p-value against the groups of other classes."""
    known = [(v.rise, own) for v, own in zip(raw, class_of, strict=True) if v is not None]
    judged: list[Verdict | None] = []
    for verdict, own in zip(raw, class_of, strict=True):
        if verdict is None:
            judged.append(None)
            continue
        others = [rise for rise, other in known if other != own]
        by_chance = 0.5 / np.sqrt(min(DONORS, verdict.pastes))
        judged.append(replace(verdict, p_others=against_others(verdict.rise, others, by_chance)))
    return judged
