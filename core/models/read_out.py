"""The scores in what a network puts out, and what they mean: settled once, while it is loaded.

Shapes: N images, K classes or values, h w rows and columns of a dense output, H W of the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnviz.core.choices import HeadChoice
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.dense import Region
from cnnviz.core.models.guarded import answer
from cnnviz.core.models.habits import Habits, examine, far_away
from cnnviz.core.models.heads import Head, Kind, settle
from cnnviz.core.models.outputs import (
    find_scores,
    first_tensor,
    two_classes,
    two_maps,
    two_probabilities,
    with_reader,
)
from cnnviz.core.models.preprocess import Preprocess

YES_OR_NO = ("negative", "positive")
"""The classes of a network of one logit."""


@dataclass(frozen=True)
class ReadOut:
    """A network that puts out rows of numbers, and what these mean.

    Attributes:
        module: images (N, 3, H, W) to rows (N, K).
        classes: K; 0 where it has no scores and none are needed.
        head: what the rows mean.
        habits: how it answers.
        notes: what the user should know.
        labels: class names, where they follow from its form.
        region: where a dense output is read.
    """

    module: nn.Module
    classes: int
    head: Head
    habits: Habits
    notes: tuple[str, ...]
    labels: tuple[str, ...] = ()
    region: Region | None = None


def read_out(
    module: nn.Module,
    raw: object,
    name: str,
    preprocess: Preprocess,
    device: torch.device,
    dtype: torch.dtype,
    output: str | None,
    choice: HeadChoice,
    needed: bool,
) -> ReadOut:
    """Finds the scores in what a network puts out, and out what they mean.

    Args:
        module: the network.
        raw: what it puts out for one picture.
        name: of the network, for messages.
        preprocess: for the shape of its input.
        device: where it is.
        dtype: that it computes in.
        output: which of several outputs, as the user says.
        choice: what its numbers mean, as the user says.
        needed: whether a network without scores is refused.

    Raises:
        UsageError: no such output, or numbers that are not what the user says.
        CnnvizError: there are no scores, and they are needed.
    """
    shape = (preprocess.channels, *preprocess.crop)
    try:
        found = find_scores(raw, output, name, preprocess.crop)
    except CnnvizError:
        if needed or output is not None:
            raise
        found = None
    if found is None or (found.dense and not needed):
        part = first_tensor(raw) if found is None else found.read
        module = module if part is None else with_reader(module, part)
        return ReadOut(module, 0, Head(Kind.NONE), Habits(), ())
    module = module if found.read is None else with_reader(module, found.read)
    first: Any = raw if found.read is None else found.read(raw)

    def outputs(images: Tensor) -> Tensor:
        run = partial(module, images.to(device, dtype))
        numbers: Tensor = answer(run, len(images), first.shape[1:], name)
        return numbers.float()

    shown, habits = examine(outputs, shape, dtype)
    head, told = settle(_rows(shown), _far(outputs, shape, dtype), choice, dtype, name)
    classes = shown.shape[1]
    labels: tuple[str, ...] = ()
    if classes == 1 and head.has_classes:
        classes, labels, given = 2, YES_OR_NO, head.probabilities_given
        two = two_probabilities if given else two_maps if found.dense else two_classes
        module, head = with_reader(module, two), Head(probabilities_given=given)
        told = [
            f"{name} puts out one number a {'pixel' if found.dense else 'picture'}: it is taken "
            f"for the {'probability' if given else 'logit'} of the second of two classes (--head "
            "none for a regression)"
        ]
    notes = [*found.notes, *habits.notes(name), *told]
    if not found.dense:
        return ReadOut(module, classes, head, habits, tuple(notes), labels)
    region = Region(head)
    what = "classes" if head.has_classes else "values"
    where = "the pixels where it is predicted" if head.has_classes else "all pixels"
    notes.append(
        f"{name} puts out {classes} {what} for each pixel: each is read by its mean over {where} "
        "(--at or --inside names another place)"
    )
    rows = Head(Kind.SIGMOID if head.has_classes else Kind.NONE)
    module = with_reader(module, region.read)
    return ReadOut(module, classes, rows, habits, tuple(notes), labels, region)


def _rows(outputs: Tensor) -> Tensor:
    """Numbers for each pixel (N, K, h, w) as rows of a pixel (N·h·w, K); rows as they are."""
    return outputs.movedim(1, -1).flatten(0, -2)


def _far(
    outputs: Callable[[Tensor], Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> Callable[[], Tensor | None]:
    def far() -> Tensor | None:
        found = far_away(outputs, shape, dtype)
        return None if found is None else _rows(found)

    return far
