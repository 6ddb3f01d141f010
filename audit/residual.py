"""Whether what the images of a class have in common on average makes others the class.

A mark that is in many images of a class, always at the same place, is in their mean. So the class's
mean residual (the mean of its images minus the mean of the others) is added to images that are
predicted as other classes: as it is (`plain`), without its blurred copy (`high_passed`: skies and
lawns go, lines, borders and letters stay), and without its brightness (`colour`: images differ far
more in light than in colour, so a faint cast shows here). A mark without a mean is how the files of
a class are stored: the same images are also stored as JPEG of low quality (`recoded`). For
comparison, the same images get random residuals of the same norm: sums of the data's images with
random signs. For each of the four, two null hypotheses must be rejected:

- `random`: it raises the class no more than random residuals do (signs of the differences between
  images flipped at random);
- `others`: it does so no more than the residuals of other classes for theirs (as for patches).

Shapes: N images, H hosts, B random residuals, C channels, Y X rows and columns of the image.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from cnnviz.audit.groups import Class
from cnnviz.audit.hosts import Hosts, Open
from cnnviz.core.output.record import Change, Count, Record, Says, Share
from cnnviz.core.statistics import against_others, sign_flips

HOSTS = 128
"""Images that a residual is added to, each with a random residual of its own to compare with."""
BLUR = 0.05
"""Standard deviation of the blur that the high-pass removes, in shorter sides of the image."""
QUALITY = 20
"""Of the JPEG that images are stored as: coarser than what is used for photographs."""
RGB, CHUNK = 3, 32
Pictures = NDArray[np.float32]


@dataclass(frozen=True)
class Added(Record):
    """What a residual does to images of other classes."""

    became: Annotated[Share, Says("share of them that become the class")]
    became_random: Annotated[Share, Says("the same with random residuals of the same norm")]
    rise: Annotated[Change, Says("mean rise of the class's probability in them")]
    rise_random: Annotated[Change, Says("the same with random residuals")]
    p_random: Annotated[Share, Says("p-value: it raises the class no more than random residuals")]
    p_others: Annotated[
        Share | None,
        Says("p-value: no more than other classes' residuals; null with too few classes"),
    ] = None

    @property
    def p(self) -> float | None:
        """The larger of the two p-values; None if one is not known."""
        return None if self.p_others is None else max(self.p_random, self.p_others)


@dataclass(frozen=True)
class Residual(Record):
    """The mean of a class's images minus that of the others, added to images of other classes.

    Null if the class has too few images, or there are no other classes; `colour` and `recoded` also
    without three channels.
    """

    images: Annotated[Count, Says("images of other classes that it was added to")] = 0
    plain: Annotated[Added | None, Says("as it is")] = None
    high_passed: Annotated[Added | None, Says("without its blurred copy")] = None
    colour: Annotated[Added | None, Says("without its brightness")] = None
    recoded: Annotated[Added | None, Says("instead of it: the images stored as JPEG")] = None

    @property
    def kinds(self) -> dict[str, Added]:
        """The tests that were made."""
        return {name: added for name, added in vars(self).items() if isinstance(added, Added)}

    @property
    def became(self) -> float | None:
        """The largest share of images that became the class."""
        return max((added.became for added in self.kinds.values()), default=None)


@dataclass(frozen=True, eq=False)
class Averages:
    """Means over the images of each class and over all, and sums of all with random signs."""

    means: tuple[Pictures, ...]
    counts: tuple[int, ...]
    mean: Pictures
    random_BCYX: Pictures

    def residual(self, number: int) -> Pictures:
        """The mean of a class's images minus that of all others; zero if there are no others."""
        count, total = self.counts[number], sum(self.counts)
        if count == total:
            return np.zeros_like(self.mean)
        return (self.means[number] - self.mean) * np.float32(total / (total - count))


def average(
    listed: Sequence[Class], read: Open, seed: int, progress: Callable[[int], None]
) -> Averages:
    """Reads every image once; `progress` is called with the number of images just read."""
    draw = np.random.default_rng(seed)
    means = []
    random: Pictures | np.float32 = np.float32(0)
    signs_B = np.zeros(HOSTS)
    for entry in listed:
        total: NDArray[np.float64] | float = 0.0
        for start in range(0, len(entry.members_N), CHUNK):
            rows = entry.members_N[start : start + CHUNK].tolist()
            images = np.stack([read(row).pixels.numpy() for row in rows])
            signs_BN = draw.choice((-1.0, 1.0), (HOSTS, len(rows)))
            random = random + np.tensordot(signs_BN.astype(np.float32), images, 1)
            signs_B += signs_BN.sum(1)
            total = total + images.sum(0, dtype=np.float64)
            progress(len(rows))
        means.append(np.asarray(total / len(entry.members_N), np.float32))
    counts = [len(entry.members_N) for entry in listed]
    mean = np.average(means, axis=0, weights=counts).astype(np.float32)
    centred = random - np.multiply.outer(signs_B, mean)
    return Averages(tuple(means), tuple(counts), mean, np.asarray(centred, np.float32))


def high_passed(pictures: Pictures) -> Pictures:
    """Pictures (…, Y, X) without their blurred copies."""
    sigma = BLUR * min(pictures.shape[-2:])
    blurred = gaussian_filter(pictures, (0,) * (pictures.ndim - 2) + (sigma,) * 2, mode="nearest")
    return np.asarray(pictures - blurred, np.float32)


PARTS: dict[str, Callable[[Pictures], Pictures]] = {
    "plain": lambda pictures: pictures,
    "high_passed": high_passed,
    "colour": lambda pictures: np.asarray(pictures - pictures.mean(-3, keepdims=True), np.float32),
}
"""What is added of a residual."""


def judge(
    hosts: Hosts,
    averages: Averages,
    listed: Sequence[Class],
    seed: int,
    progress: Callable[[int], None] = lambda _steps: None,
) -> list[Residual]:
    """Tests the residual of each class that has enough images."""
    coding_HCYX, parts = _coding(hosts.pixels_H), PARTS
    if coding_HCYX is None:
        parts = {name: part for name, part in PARTS.items() if name != "colour"}
    random = {name: part(averages.random_BCYX) for name, part in parts.items()}
    draw = np.random.default_rng(seed)
    found: list[tuple[dict[str, Added], int]] = []
    for number, entry in enumerate(listed):
        made: dict[str, Added] = {}
        others = hosts.others(entry.index) if entry.enough else ()
        count = min(HOSTS, len(others))
        if entry.index is not None and count:
            chosen = draw.choice(others, count, replace=False)
            changes = {name: part(averages.residual(number)) for name, part in parts.items()}
            if coding_HCYX is not None:
                changes["recoded"] = coding_HCYX[chosen]
            for name, change in changes.items():
                noise = random.get(name, random["high_passed"])
                made[name] = _add(hosts, chosen, change, noise, entry.index, draw)
        found.append((made, count))
        progress(1)

    def compared(number: int, name: str, added: Added) -> Added:
        """With the p-value against the residuals of other classes."""
        others = [one[name].rise for i, (one, _) in enumerate(found) if one and i != number]
        by_chance = 0.5 / np.sqrt(found[number][1])
        return replace(added, p_others=against_others(added.rise, others, by_chance))

    return [
        Residual(count, **{name: compared(number, name, added) for name, added in made.items()})
        for number, (made, count) in enumerate(found)
    ]


def _coding(pixels_HCYX: torch.Tensor) -> Pictures | None:
    """What storing images as JPEG of low quality changes; None for other channels than three."""
    if pixels_HCYX.shape[1] != RGB:
        return None
    changes = []
    for pixels_CYX in pixels_HCYX.numpy():
        levels = np.rint(255 * np.moveaxis(pixels_CYX, 0, -1)).astype(np.uint8)
        image = Image.fromarray(levels)
        stream = io.BytesIO()
        image.save(stream, "jpeg", quality=QUALITY)
        stored = np.asarray(Image.open(stream, formats=["JPEG"]), np.float32) / 255
        changes.append(np.moveaxis(stored, -1, 0) - pixels_CYX)
    return np.stack(changes)


def _add(
    hosts: Hosts,
    chosen_H: NDArray[np.int64],
    change: Pictures,
    random_BCYX: Pictures,
    target: int,
    draw: np.random.Generator,
) -> Added:
    """Adds a change (C, Y, X), or one per host, and random ones of its norm, to hosts."""
    random_HCYX = random_BCYX[: len(chosen_H)]
    lengths_H = np.linalg.norm(random_HCYX.reshape(len(chosen_H), -1), axis=1)
    norms = np.sqrt((change**2).sum((-3, -2, -1)))
    scale_H = norms / np.maximum(lengths_H, np.finfo(np.float32).tiny)
    scaled = random_HCYX * scale_H[:, None, None, None].astype(np.float32)
    images = hosts.pixels_H[torch.from_numpy(chosen_H)]
    before_H = hosts.base_HK[chosen_H, target]

    def with_(added: Pictures) -> tuple[NDArray[np.float64], float]:
        after_HK = hosts.probabilities((images + torch.from_numpy(added)).clamp(0, 1))
        return after_HK[:, target] - before_H, float((after_HK.argmax(1) == target).mean())

    (rise_H, became), (random_H, became_random) = with_(change), with_(scaled)
    p = sign_flips(rise_H - random_H, draw)
    return Added(became, became_random, float(rise_H.mean()), float(random_H.mean()), p)
