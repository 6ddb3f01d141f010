"""From whatever a network puts out to a row of numbers for each picture, (N, K).

Networks return tuples, dicts, dataclasses with `.logits`, maps of one position, one number a
picture. Which tensor is taken is settled once, on a blank picture, and built into the forward pass,
so that tracing and hooks see a network that puts out rows, under the same names of layers.

Shapes: N images, K classes or values.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cnnviz.core.choices import HeadChoice
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, one_line
from cnnviz.core.models.behaviour import Habits, answer, examine, far_away
from cnnviz.core.models.heads import Head, Kind, Region, settle
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.zoo.factories import find_function

FAMILIAR = ("logits", "out", "output")
"""Names under which networks of several outputs put their scores, best first."""
COARSEST = 8
"""Pixels of the picture, along each side, to one of a dense output; coarser maps are features."""
_DEEPEST = 4

Reader = Callable[[Any], Tensor]
Path = tuple[Any, ...]  # of keys, numbers and names of fields, from the outside in


def _parts(raw: object) -> list[tuple[Any, object]]:
    """The named or numbered parts of a container; none of anything else."""
    if isinstance(raw, Mapping):
        return list(raw.items())
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return [(field.name, getattr(raw, field.name)) for field in dataclasses.fields(raw)]
    names = getattr(raw, "_fields", None)
    if isinstance(raw, tuple) and names:
        return list(zip(names, raw, strict=True))
    return list(enumerate(raw)) if isinstance(raw, tuple | list) else []


def _tensors(raw: object, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in it, with the way there."""
    if isinstance(raw, Tensor):
        yield path, raw
    elif len(path) < _DEEPEST:
        for key, value in _parts(raw):
            yield from _tensors(value, (*path, key))


def _at(raw: Any, path: Path) -> Any:
    for key in path:
        field = isinstance(key, str) and not isinstance(raw, Mapping) and hasattr(raw, key)
        raw = getattr(raw, key) if field else raw[key]
    return raw


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _fits(value: Tensor) -> bool:
    """Whether it is a row of numbers for one picture, however many axes of one it has."""
    rows = value.ndim == 1 or (value.ndim >= 2 and value.numel() == value.shape[1])
    return value.is_floating_point() and value.ndim > 0 and value.shape[0] == 1 and rows


def _is_dense(value: Tensor, size: tuple[int, int]) -> bool:
    """Whether it is numbers for each pixel of one picture, not the maps of some layer inside."""
    fine = value.ndim == 4 and all(
        part * COARSEST >= whole for part, whole in zip(value.shape[2:], size, strict=True)
    )
    return fine and value.is_floating_point() and value.shape[0] == 1 and not _fits(value)


def _to_rows(value: Tensor) -> Callable[[Tensor], Tensor]:
    """What makes (N, K) of outputs of this one's shape: (N, K, 1, 1), (N,); dense ones stay."""
    if value.ndim == 1:
        return lambda output: output.unsqueeze(1)
    dense = value.ndim == 4 and not _fits(value)
    keeps = dense or value.ndim == 2
    return (lambda output: output) if keeps else (lambda output: output.flatten(1))


def _reader(path: Path, value: Tensor) -> Reader:
    shaped = _to_rows(value)
    return lambda output: shaped(_at(output, path))


@dataclass(frozen=True)
class Found:
    """What is taken of a network's outputs, and how.

    Attributes:
        read: takes it; None where the network puts out just that.
        dense: it is numbers for each pixel (N, K, h, w), not a row of them a picture.
        notes: what the user should know.
    """

    read: Reader | None
    dense: bool = False
    notes: tuple[str, ...] = ()


def find_scores(raw: object, asked: str | None, name: str, size: tuple[int, int]) -> Found:
    """Finds rows of numbers in what a network puts out, or else numbers for each pixel.

    Args:
        raw: what it puts out for one picture.
        asked: a part's name or number, or `file.py:function`; None for the obvious one.
        name: of the network, for messages.
        size: H, W of the picture.

    Raises:
        UsageError: no part of that name.
        CnnvizError: there is neither in it, or several parts are such and none is obvious.
    """
    if asked is not None and ":" in asked:
        return Found(_by_function(asked, raw, name))
    found = {_name(path): (path, value) for path, value in _tensors(raw)}
    rows = {key: entry for key, entry in found.items() if _fits(entry[1])}
    maps = {key: entry for key, entry in found.items() if _is_dense(entry[1], size)}
    if asked is not None:
        path, value = _asked(asked, found, rows | maps, name)
        return Found(_reader(path, value), value.ndim == 4 and asked in maps)
    taken = rows or maps
    if not taken:
        raise CnnvizError(f"{name} puts out {_described(raw, found)}; {_remedy(found)}")
    key = _obvious(raw, taken, name)
    path, value = taken[key]
    dense = not rows
    if not path:
        return Found(None if dense or value.ndim == 2 else _to_rows(value), dense)
    others = ", ".join(other for other in found if other != key)
    left = f" and leaves {others}" if others else ""
    note = f"{name} puts out {type(raw).__name__}: {key} is taken{left} (--output says otherwise)"
    return Found(_reader(path, value), dense, (note,))


def first_tensor(raw: object) -> Reader | None:
    """Takes the first tensor, of any shape (graphs need one); None where nothing is to be taken."""
    path = next((path for path, _ in _tensors(raw)), ())
    return (lambda output: _at(output, path)) if path else None


def _obvious(raw: object, rows: Mapping[str, object], name: str) -> str:
    for familiar in FAMILIAR:
        if familiar in rows:
            return familiar
    if len(rows) == 1 or isinstance(raw, tuple | list):
        return next(iter(rows))
    raise CnnvizError(
        f"{name} puts out several rows of numbers: {', '.join(rows)}; --output NAME takes one"
    )


def _asked(
    asked: str,
    found: Mapping[str, tuple[Path, Tensor]],
    rows: Mapping[str, tuple[Path, Tensor]],
    name: str,
) -> tuple[Path, Tensor]:
    if asked in rows:
        return rows[asked]
    if asked in found:
        shape = tuple(found[asked][1].shape)
        raise UsageError(f"--output {asked}: it has shape {shape}, not a row of numbers a picture")
    parts = ", ".join(key for key in found if key) or "one thing alone"
    raise UsageError(f"--output {asked}: no such part; {name} puts out {parts}")


def _by_function(asked: str, raw: object, name: str) -> Reader:
    function = find_function(asked)

    def read(output: Any) -> Any:
        try:
            return function(output)
        except USER_CODE_ERRORS as error:
            raise CnnvizError(f"--output {asked} failed: {one_line(error)}") from error

    rows = read(raw)
    if not isinstance(rows, Tensor) or not _fits(rows):
        what = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise CnnvizError(
            f"--output {asked} returned {what} for one picture of {name}, not numbers of shape "
            "(1,) or (1, K)"
        )
    shaped = _to_rows(rows)
    return lambda output: shaped(read(output))


def _described(raw: object, found: Mapping[str, tuple[object, Tensor]]) -> str:
    if not found:
        return type(raw).__name__
    return ", ".join(f"{key or 'shape'} {tuple(v.shape)}" for key, (_, v) in found.items())


def _remedy(found: Mapping[str, tuple[object, Tensor]]) -> str:
    dense = any(v.ndim == 4 for _, v in found.values())
    return (
        ("a map, " if dense else "")
        + "not a row of numbers for each picture: give --output file.py:function, where "
        "function(raw) returns a tensor (N,) or (N, K)"
    )


class _Read(nn.Module):
    """An archive's network and what is read out of it."""

    def __init__(self, network: nn.Module, read: Reader) -> None:
        super().__init__()
        self.network, self.read = network, read

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to (N, K)."""
        return self.read(self.network(x))


def with_reader(module: nn.Module, read: Reader) -> nn.Module:
    """The same network, putting out what `read` makes of its outputs.

    Its class is replaced, so that layers keep their names; an archive is wrapped.
    """
    kind: Any = type(module)
    if isinstance(module, torch.jit.ScriptModule | fx.GraphModule):
        return _Read(module, read).train(module.training)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return read(kind.forward(self, x))

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return module


def two_classes(outputs: Tensor) -> Tensor:
    """One logit a picture as logits of no and yes (N, 2): softmax gives the sigmoid's numbers."""
    return functional.pad(outputs, (1, 0))


def two_maps(outputs_N1hw: Tensor) -> Tensor:
    """One logit a pixel as logits of no and yes (N, 2, h, w)."""
    return functional.pad(outputs_N1hw, (0, 0, 0, 0, 1, 0))


def two_probabilities(outputs: Tensor) -> Tensor:
    """One probability as those of no and yes, (N, 1, …) to (N, 2, …)."""
    return torch.cat([1 - outputs, outputs], 1)


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
