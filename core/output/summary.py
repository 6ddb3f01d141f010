"""`summary.json`: the keys that every command's summary has, and records that several share.

A summary is written last (`RunFolder.finish`), so a folder that has one is complete. `read_summary`
is the one place that opens and checks one; what `results` holds is read by the analysis' `load`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from torch import Tensor

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import from_json as parsed
from cnnviz.core.files import read_text
from cnnviz.core.models.heads import Head, Reading
from cnnviz.core.models.load import Model
from cnnviz.core.output.record import (
    Count,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    Unsigned,
    from_json,
)

SUMMARY = "summary.json"
TOP = 5
HEADS = ("softmax", "sigmoid", "none", "probabilities", "probabilities per class")


@dataclass(frozen=True, kw_only=True)
class ModelRecord(Record):
    """The network of a run."""

    name: str
    weights_sha256: Annotated[str, Says(pattern="^[0-9a-f]{64}$")]
    classes: Count
    input_size: Annotated[Sides, Says("rows, columns of the working image")]
    head: Annotated[
        str,
        Says(
            "what the network's outputs mean",
            enum=[*HEADS, *(f"{head} per pixel" for head in HEADS)],
        ),
    ]

    @classmethod
    def of(cls, model: Model) -> "ModelRecord":
        """Describes a model."""
        return cls(
            name=model.name,
            weights_sha256=model.weights_sha256,
            classes=model.classes,
            input_size=model.input_size,
            head=model.region.name if model.region else model.head.name,
        )


@dataclass(frozen=True, kw_only=True)
class DataRecord(Record):
    """The data set of a run."""

    name: str
    sources: Annotated[tuple[str, ...], Says("as named on the command line", minItems=1)]
    images: Annotated[Positive, Says("images that counted")]
    total: Annotated[Positive, Says("images before --limit")]
    fingerprint: Annotated[str, Says("SHA-256 of paths, labels, sizes and times of the images")]

    @classmethod
    def of(cls, data: ImageData, images: int) -> "DataRecord":
        """Describes a data set, of which so many images counted."""
        return cls(
            name=data.name,
            sources=tuple(data.sources),
            images=images,
            total=data.total,
            fingerprint=data.fingerprint,
        )


@dataclass(frozen=True)
class Failure(Record):
    """An input that failed, and why."""

    input: str
    message: str


@dataclass(frozen=True)
class ShardRecord(Record):
    """The share of the data set of a run with `--shard`."""

    number: Annotated[Count, Says("of the share, from 0")]
    count: Positive
    of: Annotated[Mapping[str, Any], Says("what the shares of one run have in common")]


@dataclass(frozen=True, kw_only=True)
class Summary(Record):
    """The content of a `summary.json`."""

    schema: str
    command: str
    version: Annotated[str, Says("of cnnviz")]
    argv: tuple[str, ...]
    model: ModelRecord | None
    device: str | None
    precision: Precision | None
    seed: int
    elapsed_seconds: Unsigned
    results: Any = None
    files: Annotated[
        tuple[str, ...], Says("relative to the folder of this summary", uniqueItems=True)
    ]
    errors: tuple[Failure, ...]
    shard: Annotated[ShardRecord | None, Says(optional=True)] = None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder and its checked summary; `content` is the same as JSON data."""

    folder: Path
    summary: Summary
    content: Mapping[str, Any] = field(repr=False)

    @property
    def command(self) -> str:
        """The command that made it."""
        return self.summary.command

    def file(self, name: str) -> Path:
        """The path of a file of the run.

        Raises:
            CnnvizError: it lies outside of the run's folder.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise CnnvizError(f"{self.folder / SUMMARY} lists a file outside its folder: {name}")
        return path


def read_summary(folder: Path) -> FinishedRun:
    """Reads and checks the summary of a finished run.

    Raises:
        UsageError: there is no summary of cnnviz in the folder.
        CnnvizError: it cannot be read.
    """
    path = folder if folder.is_file() else folder / SUMMARY
    try:
        content: Any = parsed(read_text(path))
        if content["schema"] != f"cnnviz.{content['command']}/1":
            raise ValueError("unknown schema")
        summary = from_json(Summary, content)
    except (ValueError, LookupError, TypeError, CnnvizError) as error:
        if isinstance(error, CnnvizError) and not path.is_file():
            raise
        raise UsageError(f"'{path}' is not a summary of cnnviz") from error
    return FinishedRun(path.parent, summary, content)


def arguments() -> tuple[str, ...]:
    """The arguments of this process, after the program's name."""
    return tuple(sys.argv[1:])


class Answered(Protocol):
    """The network's output for an image, as `occlude` and `saliency` keep it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names."""

    @property
    def head(self) -> Head:
        """What the numbers mean."""

    @property
    def ranking_K(self) -> Tensor:  # noqa: N802 (a shape)
        """Larger for what ranks first."""

    @property
    def reading(self) -> Reading | None:
        """Of a dense output, the pixels that were read."""


@dataclass(frozen=True, kw_only=True)
class ClassRecord(Record):
    """A class, or an output of a regression, and what the network says of it."""

    class_: str
    index: Count
    probability: Annotated[Share | None, Says(optional=True)] = None
    value: Annotated[
        float | None, Says("of a regression, in place of the probability", optional=True)
    ] = None
    pixels: Annotated[
        Share | None, Says("of a dense output: the class's share of the pixels", optional=True)
    ] = None

    @classmethod
    def of(cls, answered: Answered, index: int, reading: float) -> "ClassRecord":
        """Describes a class of the original image by its probability, or value."""
        return cls(**class_fields(answered, index, reading))


def class_fields(answered: Answered, index: int, reading: float) -> dict[str, Any]:
    """The fields of a `ClassRecord`, for records that add some of their own."""
    found: dict[str, Any] = {"class_": answered.labels[index], "index": index}
    if not answered.head.has_classes:
        return found | {"value": reading}
    if answered.reading is not None:
        found["pixels"] = float(answered.reading.shares_K[index])
    return found | {"probability": reading}


def top_records(answered: Answered, readings_K: Tensor) -> tuple[ClassRecord, ...]:
    """The five most probable classes; of a dense output those predicted for some pixel."""
    best: Sequence[int] = answered.ranking_K.argsort(descending=True, stable=True)[:TOP].tolist()
    if answered.reading is not None:
        best = [index for index in best if answered.reading.shares_K[index] > 0]
    return tuple(ClassRecord.of(answered, index, float(readings_K[index])) for index in best)


Read = Annotated[str, Says("of a dense output: where it was read (own pixels, at y,x, inside …)")]


@dataclass(frozen=True, kw_only=True)
class Pointing(Record):
    """With `--expect`: how a map lies to the object."""

    pointing_game_hit: Annotated[
        bool | None, Says("with --expect: the map's peak lies on the object", optional=True)
    ] = None
    inside: Annotated[
        Share | None,
        Says(
            "with --expect: share of the positive evidence on the object; null (NaN) where there "
            "is none",
            optional=True,
            null=True,
        ),
    ] = None
