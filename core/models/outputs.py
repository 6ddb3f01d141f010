"""Locates the class scores in a network's output, and builds them into its forward pass.

Networks return tuples, dicts, dataclasses with `.logits`, maps of one position, one number per
image. Which tensor is taken is decided once, on a blank image, so that tracing and hooks see a
network that returns rows (N, K), with the same names of layers. Then the head (`heads.py`) and the
behaviour (`behaviour.py`) of that network are determined.

Shapes: N images, K classes or values, h w rows and columns of a dense output, H W of the image.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from cnnviz.core.choices import HeadChoice
from cnnviz.core.errors import USER_CODE_ERRORS, CnnvizError, UsageError, one_line
from cnnviz.core.models.behaviour import (
    Behaviour,
    examine,
    far_away,
    run_checked,
)
from cnnviz.core.models.boxes import Boxes, detections
from cnnviz.core.models.heads import FEATURE, SCORE, Head, Kind, LastSigmoid, determine_head
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.targets import Reader, Region, Target, with_reader
from cnnviz.core.models.zoo.factories import find_function

FAMILIAR = ("logits", "out", "output")
"""Usual names of the scores among several outputs, the preferred first."""
COARSEST = 8
"""Pixels of the image per pixel of a dense output, along each side; coarser maps are features."""
YES_OR_NO = ("negative", "positive")
"""Class names of a network with one logit."""
_DEEPEST = 4
_EMBEDDING = re.compile(r"(^|[._])(embed(ding|dings|der)?|fc_embed\w*|to_embed\w*)\d*$")
"""Names of last layers that make embeddings."""

Path = tuple[Any, ...]
"""Keys, indices and field names, from the outside in."""


@dataclass(frozen=True)
class ReadOut:
    """A network that returns rows of numbers (N, K), and what these mean."""

    module: nn.Module
    classes: int
    """K; 0 if it has no scores and none are required, or another number for each image."""
    head: Head
    behaviour: Behaviour
    notes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """Class names, if they follow from the form of the output."""
    target: Target | None = None
    """What makes rows of it, if the network returns none."""


def read_out(
    module: nn.Module,
    raw: object,
    name: str,
    preprocess: Preprocess,
    device: torch.device,
    dtype: torch.dtype,
    output: str | None,
    choice: HeadChoice,
    required: bool,
) -> ReadOut:
    """Locate the class scores in a network's output and determine what they mean.

    `raw` is its output for one blank image, `output` and `choice` are the user's choices of the
    output and of the head, `required` refuses a network without scores.
    """
    if output is None and detections(raw) is not None:
        return _read_boxes(module, raw, name, preprocess, device, dtype, required)
    size = preprocess.crop
    two = torch.zeros(2, preprocess.channels, *size, dtype=dtype, device=device)
    module, raw, scores = _find(module, raw, two, name, size, output, required)
    ends = LastSigmoid()
    if scores.take is not None or scores.shaped is not None or _are_shares(raw):
        take, shaped = scores.take or _same, scores.shaped or _same
        module = with_reader(module, lambda o: shaped(ends.logits(take(o))), ends.watched)
        raw = shaped(take(raw))
    if scores.dense and not required:
        return ReadOut(module, 0, Head(Kind.NONE), Behaviour())
    shape = (preprocess.channels, *preprocess.crop)
    answer_shape: tuple[int, ...] = tuple(raw.shape[1:]) if isinstance(raw, Tensor) else ()
    if 0 in answer_shape:
        raise CnnvizError(f"{name} returns no scores: its output has shape {(1, *answer_shape)}")
    outputs = _checked(module, device, dtype, answer_shape, name)

    def far() -> Tensor | None:
        answer = far_away(outputs, shape, dtype)
        return None if answer is None else _pixel_rows(answer)

    answers, behaviour = examine(outputs, shape, dtype)
    head, head_notes = determine_head(_pixel_rows(answers), far, choice, dtype, name)
    if embedding := choice is HeadChoice.AUTO and not scores.dense and _embedding(module, name):
        head, head_notes = embedding
    if head.probabilities_given and (head.kind is Kind.SIGMOID or answers.shape[1] == 1):
        ends.removed = True
        without = examine(outputs, shape, dtype)
        ends.removed = ends.seen
        if ends.removed:
            answers, behaviour = without
            head = dataclasses.replace(head, probabilities_given=False)
            text = f"{name} ends in a sigmoid: its logits are used (--head overrides this)"
            head_notes = [text] * len(head_notes)
    classes: int = answers.shape[1]
    labels: tuple[str, ...] = ()
    if classes == 1 and head.has_classes:
        module, head, head_notes = _two_classes(module, head, scores.dense, name)
        classes, labels = 2, YES_OR_NO
    notes = (*scores.notes, *behaviour.notes(name), *head_notes)
    result = ReadOut(module, classes, head, behaviour, notes, labels)
    return _read_in_regions(result, name) if scores.dense else result


def _same(output: Any) -> Any:
    return output


def _are_shares(raw: object) -> bool:
    return isinstance(raw, Tensor) and bool(((raw >= 0) & (raw <= 1)).all())


def _find(
    module: nn.Module,
    raw: object,
    two: Tensor,
    name: str,
    size: tuple[int, int],
    output: str | None,
    required: bool,
) -> "tuple[nn.Module, object, Scores]":
    """The scores in the output of one image, whose batch axis is restored if two images show it."""
    try:
        return module, raw, find_scores(raw, output, name, size)
    except CnnvizError:
        restored = _batch_axis(module, raw, two)
        if restored is not None:
            module, raw = with_reader(module, restored), restored(raw)
            scores = find_scores(raw, output, name, size)
            note = f"{name} drops the batch axis of a single image; it is restored"
            return module, raw, dataclasses.replace(scores, notes=(note, *scores.notes))
        if required or output is not None:
            raise
        return module, raw, Scores(_first_tensor(raw), dense=True)


def _embedding(module: nn.Module, name: str) -> tuple[Head, list[str]] | None:
    """The head of features, if the name of the last linear layer says that; with a note."""
    linear = [layer for layer, kind in module.named_modules() if isinstance(kind, nn.Linear)]
    if not linear or not _EMBEDDING.search(linear[-1].lower()):
        return None
    note = f"{name} ends in '{linear[-1]}': features of an embedding and not classes"
    return Head(Kind.NONE, word=FEATURE), [f"{note} (--head overrides this)"]


def _checked(
    module: nn.Module, device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], name: str
) -> Callable[[Tensor], Tensor]:
    """Runs normalised images (N, C, H, W), and checks that it answers each with that shape."""

    def outputs(images: Tensor) -> Tensor:
        run = partial(module, images.to(device, dtype))
        answer: Tensor = run_checked(run, len(images), shape, name)
        return answer.float()

    return outputs


def _read_boxes(
    module: nn.Module,
    raw: object,
    name: str,
    preprocess: Preprocess,
    device: torch.device,
    dtype: torch.dtype,
    required: bool,
) -> ReadOut:
    """Turn a detector's boxes into one row per image; if none is required, its first tensor."""
    if not required:
        read = _first_tensor(raw)
        module = module if read is None else with_reader(module, read)
        return ReadOut(module, 0, Head(Kind.NONE), Behaviour())
    target = Boxes(module, preprocess.crop, name)
    module = with_reader(module, target.read)
    outputs = _checked(module, device, dtype, (1,), name)
    _, behaviour = examine(outputs, (preprocess.channels, *preprocess.crop), dtype)
    notes = (*filter(None, [target.note]), *behaviour.notes(name))
    return ReadOut(module, 0, Head(Kind.NONE, word=SCORE), behaviour, notes, target=target)


def _batch_axis(module: nn.Module, raw: object, two: Tensor) -> Reader | None:
    """What restores the batch axis that `squeeze` took from the output for one image, as it does.

    Two images keep it; None if their output is not two of `raw`, or there is none.
    """
    try:
        with torch.no_grad():
            leaves, form = tree_flatten(module(two))
    except USER_CODE_ERRORS:
        return None
    ones = tree_leaves(raw)
    shapes = [leaf.shape[1:] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves]
    fits = [
        isinstance(one, Tensor) and len(leaf) == len(two) and one.shape == shape
        for one, leaf, shape in zip(ones, leaves, shapes, strict=False)
        if shape is not None
    ]
    if len(ones) != len(leaves) or not any(fits):
        return None

    def restore(output: Any) -> Any:
        parts = zip(tree_leaves(output), shapes, strict=True)
        return tree_unflatten([p if s is None else p.reshape(-1, *s) for p, s in parts], form)

    return restore


def _two_classes(
    module: nn.Module, head: Head, dense: bool, name: str
) -> tuple[nn.Module, Head, list[str]]:
    """Make two classes of one logit or probability; with a note."""
    given = head.probabilities_given
    two_logits = _two_logit_maps if dense else _two_logits
    note = (
        f"{name} returns one number per {'pixel' if dense else 'image'}, taken as the "
        f"{'probability' if given else 'logit'} of the second of two classes (--head none for a "
        "regression)"
    )
    module = with_reader(module, _two_probabilities if given else two_logits)
    return module, Head(probabilities_given=given), [note]


def _read_in_regions(dense: ReadOut, name: str) -> ReadOut:
    """Turn dense outputs into one row per image."""
    region, has_classes = Region(dense.head), dense.head.has_classes
    what = "classes" if has_classes else "values"
    where = "the pixels where it is predicted" if has_classes else "all pixels"
    note = (
        f"{name} returns {dense.classes} {what} for each pixel: each is read as its mean over "
        f"{where} (--at or --inside names another region)"
    )
    return dataclasses.replace(
        dense,
        module=with_reader(dense.module, region.read),
        head=Head(Kind.SIGMOID if has_classes else Kind.NONE),
        notes=(*dense.notes, note),
        target=region,
    )


def _pixel_rows(outputs: Tensor) -> Tensor:
    """Dense outputs (N, K, h, w) as one row per pixel (N·h·w, K); rows stay unchanged."""
    return outputs.movedim(1, -1).flatten(0, -2)


def _two_logits(outputs: Tensor) -> Tensor:
    """One logit (N, 1) as logits of no and yes (N, 2): softmax then equals the sigmoid."""
    return functional.pad(outputs, (1, 0))


def _two_logit_maps(outputs: Tensor) -> Tensor:
    return functional.pad(outputs, (0, 0, 0, 0, 1, 0))


def _two_probabilities(outputs: Tensor) -> Tensor:
    return torch.cat([1 - outputs, outputs], 1)


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


def _first_tensor(raw: object) -> Reader | None:
    """Read the first tensor, of any shape (graphs need one); None if `raw` is it, or has none."""
    path = next((path for path, _ in _tensors(raw)), ())
    return (lambda output: _at(output, path)) if path else None


def _is_row(value: Tensor) -> bool:
    """Whether it is a row of numbers for one image, with any number of axes of length one."""
    row = value.ndim == 1 or (value.ndim >= 2 and value.numel() == value.shape[1])
    return value.is_floating_point() and value.ndim > 0 and value.shape[0] == 1 and row


def _is_dense(value: Tensor, size: tuple[int, int]) -> bool:
    """Whether it is numbers for each pixel of one image, not the feature maps of some layer."""
    fine = value.ndim == 4 and all(
        part * COARSEST >= whole for part, whole in zip(value.shape[2:], size, strict=True)
    )
    return fine and value.is_floating_point() and value.shape[0] == 1 and not _is_row(value)


def _to_rows(value: Tensor) -> Reader | None:
    """What makes (N, K) of outputs like this one, (N, K, 1, 1) or (N,); None if nothing has to."""
    if value.ndim == 1:
        return lambda output: output.unsqueeze(1)
    dense = value.ndim == 4 and not _is_row(value)
    return None if dense or value.ndim == 2 else lambda output: output.flatten(1)


@dataclass(frozen=True)
class Scores:
    """Which part of a network's output the scores are."""

    take: Reader | None = None
    """Takes it from the output; None if the output is just that."""
    shaped: Reader | None = None
    """Makes rows of it; None if it has that shape."""
    dense: bool = False
    """It is numbers for each pixel (N, K, h, w), not one row per image."""
    notes: tuple[str, ...] = ()


def find_scores(raw: object, requested: str | None, name: str, size: tuple[int, int]) -> Scores:
    """Find rows of numbers in the output for one image of `size`, or else numbers for each pixel.

    `requested` is a part's name or number, or `file.py:function`; None for the obvious part.
    """
    if requested is not None and ":" in requested:
        return Scores(*_by_function(requested, raw, name))
    parts = {".".join(map(str, path)): (path, value) for path, value in _tensors(raw)}
    rows = [key for key, (_, value) in parts.items() if _is_row(value)]
    maps = [key for key, (_, value) in parts.items() if _is_dense(value, size)]
    if requested is not None:
        if requested not in rows + maps:
            raise _no_such_output(requested, parts, name)
        key = requested
    elif rows or maps:
        key = _obvious(raw, rows or maps, name)
    else:
        shapes = ", ".join(f"{key or 'shape'} {tuple(v.shape)}" for key, (_, v) in parts.items())
        a_map = "a map, " if any(value.ndim == 4 for _, value in parts.values()) else ""
        raise CnnvizError(
            f"{name} returns {shapes or type(raw).__name__}; {a_map}not a row of numbers for each "
            "image: give --output file.py:function, where function(raw) returns a tensor (N,) or "
            "(N, K)"
        )
    path, value = parts[key]
    shaped, dense = _to_rows(value), key in maps
    if not path:
        return Scores(None, shaped, dense)

    def take(output: Any) -> Any:
        return _at(output, path)

    if requested is not None:
        return Scores(take, shaped, dense)
    others = ", ".join(other for other in parts if other != key)
    unused = f", {others} unused" if others else ""
    note = f"{name} returns {type(raw).__name__}: {key} is used{unused} (--output names another)"
    return Scores(take, shaped, dense, (note,))


def _obvious(raw: object, keys: Iterable[str], name: str) -> str:
    listed = list(keys)
    for familiar in FAMILIAR:
        if familiar in listed:
            return familiar
    if len(listed) == 1 or isinstance(raw, tuple | list):
        return listed[0]
    raise CnnvizError(
        f"{name} returns several rows of numbers: {', '.join(listed)}; --output NAME takes one"
    )


def _no_such_output(
    requested: str, parts: Mapping[str, tuple[Path, Tensor]], name: str
) -> UsageError:
    if requested in parts:
        shape = tuple(parts[requested][1].shape)
        return UsageError(
            f"--output {requested}: it has shape {shape}, not one row of numbers per image"
        )
    listed = ", ".join(key for key in parts if key) or "one tensor alone"
    return UsageError(f"--output {requested}: no such part; {name} returns {listed}")


def _by_function(requested: str, raw: object, name: str) -> tuple[Reader, Reader | None]:
    function = find_function(requested)

    def read(output: Any) -> Any:
        try:
            return function(output)
        except USER_CODE_ERRORS as error:
            raise CnnvizError(f"--output {requested} failed: {one_line(error)}") from error

    rows = read(raw)
    if not isinstance(rows, Tensor) or not _is_row(rows):
        what = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise CnnvizError(
            f"--output {requested} returned {what} for one image of {name}, not numbers of shape "
            "(1,) or (1, K)"
        )
    return read, _to_rows(rows)
