"""`summary.json`: the keys that every command's summary has, and records that several share.

A summary is written last (`RunFolder.finish`), so a folder that has one is complete, except for the
images of blocks that it names as given up. `read_summary` is the one place that opens and checks
one, and prints what is missing; what `results` holds is read by the analysis' `load`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

from torch import Tensor

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE, SUMMARY, read_text
from cnnviz.core.files import from_json as parsed
from cnnviz.core.models.boxes import Boxes
from cnnviz.core.models.heads import SIMILARITY, Head
from cnnviz.core.models.load import Model
from cnnviz.core.models.targets import Reading, RegionReading
from cnnviz.core.output.record import (
    Box,
    Count,
    InvalidRecord,
    Positive,
    Record,
    Says,
    Share,
    Sides,
    Unsigned,
    from_json,
)
from cnnviz.core.output.run_data import RunData

_log = logging.getLogger("cnnviz")

TOP = 5
HEADS = ("softmax", "sigmoid", "none", "probabilities", "probabilities per class")


def random_mark(seed: int) -> str:
    """What pictures, tables and pages say of a network that is not trained."""
    return f"random weights, seed {seed}"


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
            enum=[*HEADS, *(f"{head} per pixel" for head in HEADS), Boxes.name, SIMILARITY],
        ),
    ]
    random_weights: Annotated[
        Count | None, Says("the seed, if the weights are random (--weights none)", optional=True)
    ] = None

    fast_decoding: Annotated[
        bool | None, Says("JPEG files were decoded at a reduced size", optional=True)
    ] = None

    @property
    def mark(self) -> str:
        """`random weights, seed 0`; empty for a trained network."""
        return "" if self.random_weights is None else random_mark(self.random_weights)

    @classmethod
    def of(cls, model: Model) -> "ModelRecord":
        """Describes a model."""
        return cls(
            name=model.name,
            weights_sha256=model.weights_sha256,
            classes=model.classes,
            input_size=model.input_size,
            head=model.target.name if model.target else model.head.name,
            random_weights=model.random,
            fast_decoding=model.preprocess.fast or None,
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
    request: Annotated[Mapping[str, Any], Says("the options of the command, for merge")]


GIVEN_UP = "its block was given up"
"""In the message of an image that a run with `--cluster` did not compute."""


@dataclass(frozen=True)
class GivenUp(Record):
    """A block of images that no worker could compute."""

    start: Annotated[Count, Says("place of its first image in the list of images, from 0")]
    stop: Annotated[Count, Says("place after that of its last image")]
    images: Annotated[Positive, Says("in it; all of them are in `errors`")]
    tries: Annotated[Positive, Says("workers that died computing it")]
    error: Annotated[str, Says("how the last of them died")]

    @property
    def name(self) -> str:
        """The images."""
        return f"images {self.start} to {self.stop}"

    @property
    def line(self) -> str:
        """What is missing, and why."""
        why = f"given up after {self.tries} tries, as the worker died ({self.error})"
        return f"{self.name} are missing: {why}"


@dataclass(frozen=True)
class ClusterRecord(Record):
    """What computed a run with `--cluster`; the results depend on it only by what is missing."""

    workers: Annotated[Count, Says("maximum at a time; 0 if all blocks were done before")]
    blocks: Annotated[Count, Says("that were computed, in all passes")]
    started_twice: Annotated[Count, Says("last blocks that a second worker was given")]
    lost: Annotated[tuple[str, ...], Says("workers that were lost and replaced")]
    given_up: Annotated[
        tuple[GivenUp, ...],
        Says("blocks whose images are missing; --resume computes them", optional=True),
    ] = ()


@dataclass(frozen=True)
class Finding(Record):
    """What the terminal shows of the results: a table, or a sentence, which has no columns."""

    title: Annotated[str, Says("of the table; the sentence")]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


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
    findings: Annotated[
        tuple[Finding, ...], Says("the tables and sentences of the terminal", optional=True)
    ] = ()
    shard: Annotated[ShardRecord | None, Says(optional=True)] = None
    cluster: Annotated[ClusterRecord | None, Says(optional=True)] = None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: its folder and its checked summary; `content` is the same as JSON data."""

    folder: Path
    summary: Summary
    content: Mapping[str, Any] = field(repr=False)
    images_below: Sequence[Path] | None = ()

    @classmethod
    def of(
        cls, folder: Path, content: Mapping[str, Any], images_below: Sequence[Path] | None = ()
    ) -> "FinishedRun":
        """Checks the content of a summary."""
        summary = from_json(Summary, content)
        if summary.schema != f"cnnviz.{summary.command}/1":
            raise CnnvizError(f"unknown schema '{summary.schema[:60]}'")
        return cls(folder, summary, content, images_below)

    @property
    def command(self) -> str:
        """The command that made it."""
        return self.summary.command

    @property
    def failed(self) -> frozenset[str]:
        """The inputs that failed."""
        return frozenset(failure.input for failure in self.summary.errors)

    @property
    def missing(self) -> tuple[str, ...]:
        """A line for each block of images that the run lacks."""
        cluster = self.summary.cluster
        return () if cluster is None else tuple(block.line for block in cluster.given_up)

    @cached_property
    def data(self) -> RunData:
        """The data set of the run, which is opened again if it still exists."""
        results = self.summary.results
        data = results.get("data") if isinstance(results, Mapping) else None
        sources = data.get("sources", ()) if isinstance(data, Mapping) else ()
        below = self.images_below
        allowed = None if below is None else [*below, self.folder]
        return RunData(from_json(tuple[str, ...], sources), allowed)

    def file(self, name: str) -> Path:
        """The path of a file of the run."""
        path = self.folder / name
        if "\0" in name or not path.resolve().is_relative_to(self.folder.resolve()):
            raise CnnvizError(f"{self.folder / SUMMARY} lists a file outside its folder: {name}")
        return path

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reports the errors that damaged files and those of other versions cause."""
        try:
            yield
        except InvalidRecord as error:
            raise CnnvizError(
                f"the files of {self.folder} are damaged or of another version of cnnviz: {error}; "
                "repeat the run (cnnviz rerun)"
            ) from error
        except (*DAMAGE, AttributeError, ArithmeticError) as error:
            raise CnnvizError(
                f"the files of {self.folder} are damaged or incomplete: {one_line(error)}"
            ) from error


def run_folders(named: Path) -> list[Path]:
    """The run in a folder, or the runs in its subfolders; a summary's path means its folder."""
    if named.is_file():
        return [named.parent]
    if (named / SUMMARY).exists():
        return [named]
    below = sorted(path.parent for path in named.glob(f"*/{SUMMARY}"))
    if not below:
        raise UsageError(f"no finished run in {named}: it has no {SUMMARY}")
    return below


def read_summary(folder: Path | FinishedRun, images_below: Sequence[Path] = ()) -> FinishedRun:
    """Reads and checks the summary of a finished run, from its folder or its own path.

    Images of its data set are opened only below its folder and below `images_below`.
    """
    if isinstance(folder, FinishedRun):  # whose summary may not be on disk yet (`--report`)
        return folder
    path = folder / SUMMARY if folder.is_dir() else folder
    text = read_text(path)
    try:
        content: Any = parsed(text)
        run = FinishedRun.of(path.parent, content, images_below)
    except (ValueError, CnnvizError) as error:
        raise UsageError(f"'{path}' is not a summary of cnnviz ({one_line(error)})") from error
    for line in run.missing:
        _log.warning("note: %s is incomplete: %s; its command with --resume ends it", folder, line)
    return run


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
        """What was frozen of the image: the pixels that were read, the boxes."""


@dataclass(frozen=True, kw_only=True)
class ClassRecord(Record):
    """A class, or an output of a regression, and what the network says of it."""

    class_: str
    index: Count
    probability: Annotated[Share | None, Says(optional=True)] = None
    value: Annotated[
        float | None,
        Says("of a regression, or of a box: in place of the probability", optional=True),
    ] = None
    pixels: Annotated[
        Share | None, Says("of a dense output: the class's share of the pixels", optional=True)
    ] = None

    box: Annotated[
        Box | None, Says("of a detector: y0, x0, y1, x1 in the working image", optional=True)
    ] = None

    @property
    def reading(self) -> float:
        """The probability, or the value."""
        return next(x for x in (self.probability, self.value) if x is not None)

    @classmethod
    def of(cls, answered: Answered, index: int, reading: float) -> "ClassRecord":
        """Describes a class of the original image by its probability, or value."""
        return cls(**class_fields(answered, index, reading))


def class_fields(answered: Answered, index: int, reading: float) -> dict[str, Any]:
    """The fields of a `ClassRecord`, for records that add some of their own."""
    found: dict[str, Any] = {"class_": answered.labels[index], "index": index}
    reads = answered.reading
    if reads is not None and (answered.head.has_classes or reads.labels):
        found |= reads.fields(index)
    return found | {"probability" if answered.head.has_classes else "value": reading}


def top_records(answered: Answered, readings_K: Tensor) -> tuple[ClassRecord, ...]:
    """The five most probable classes; of a dense output those predicted for some pixel."""
    best: Sequence[int] = answered.ranking_K.argsort(descending=True, stable=True)[:TOP].tolist()
    if isinstance(answered.reading, RegionReading):
        best = [index for index in best if answered.reading.shares_K[index] > 0]
    return tuple(ClassRecord.of(answered, index, float(readings_K[index])) for index in best)


Read = Annotated[str, Says("of a dense output: where it was read (own pixels, at y,x, inside …)")]
