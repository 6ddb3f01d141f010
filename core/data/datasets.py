"""Many pictures, streamed: listed first, decoded ahead by threads, put out in a stable order.

Nothing but the list is held in memory. A picture that cannot be read is reported and left out; the
others come in the order of the list whatever the number of threads.

Shapes: N images, H W rows and columns.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnnviz.core.data.images import Preprocess, WorkingImage, find_images, prepare
from cnnviz.core.data.rasters import Raster
from cnnviz.core.data.shards import Block, Shard
from cnnviz.core.data.sources import find_source, is_set
from cnnviz.core.data.tables import UNKNOWN, Example, ImageSource
from cnnviz.core.errors import CnnvizError, UsageError

MAX_WORKERS = 8
REASONS = 3

__all__ = ["Batch", "Example", "ImageData", "batches", "open_data"]

_RGB = Preprocess(None, (0, 0))
"""Any picture of three channels, as it lies there."""


@lru_cache(maxsize=1)  # all pictures of a set lie in the same files
def _newest(files: tuple[Path, ...]) -> float:
    return max(path.stat().st_mtime for path in files)


@dataclass(frozen=True)
class ImageData:
    """A list of pictures, in stable order.

    Attributes:
        examples: the pictures; after `--limit`, the sample.
        classes: what labels point at; None where nothing is labelled.
        sources: as the user named them.
        fingerprint: SHA-256 over paths, labels, sizes and times of the examples.
        total: how many pictures there were before `--limit`.
        part: which of the examples are gone through: all, or a share of them.
    """

    examples: tuple[Example, ...]
    classes: tuple[str, ...] | None
    sources: tuple[str, ...]
    fingerprint: str
    total: int
    _source: ImageSource = field(repr=False)
    part: range = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "part", range(len(self.examples)))

    def __len__(self) -> int:
        return len(self.part)

    @property
    def block(self) -> Block:
        """The part as a block of the examples."""
        return Block(self.part.start, self.part.stop, len(self.examples))

    @property
    def name(self) -> str:
        """The first source, and how many there are beside it."""
        more = len(self.sources) - 1
        return self.sources[0] + (f" and {more} more" if more else "")

    def share(self, shard: Shard) -> "ImageData":
        """The same data set, of which a share is gone through."""
        found, part = replace(self), shard.part(len(self.examples))
        if not part:
            raise UsageError(f"--shard {shard}: there are fewer images than shares")
        object.__setattr__(found, "part", part)
        return found

    def open(self, index: int, preprocess: Preprocess = _RGB) -> Image.Image | Raster:
        """Decodes one picture to 8-bit RGB, or to the channels of a network.

        Raises:
            CnnvizError: it cannot be read, or has other channels.
        """
        return self._source.open(self.examples[index], preprocess)

    def working(self, index: int, preprocess: Preprocess) -> WorkingImage:
        """One picture as the working image of a network.

        Raises:
            CnnvizError: as `open`.
        """
        example = self.examples[index]
        found = prepare(self.open(index, preprocess), preprocess, example.path)
        label = None if example.label is None else (self.classes or ())[example.label]
        reopen = partial(self.open, index) if self._source.files else None
        return replace(found, label=label, reopen=reopen)

    @property
    def files(self) -> Iterator[str | Path]:
        """The files that the pictures are, or lie in."""
        return iter(self._source.files or (example.path for example in self.examples))

    def changed(self, index: int) -> float:
        """When a picture's file, or the newest of those that pictures lie in, was written.

        Raises:
            OSError: it is not there.
        """
        return _newest(self._source.files or (Path(self.examples[index].path),))

    @property
    def canonical(self) -> bool:
        """Whether the classes stand in the order that all models of this data set share."""
        return self._source.canonical

    @property
    def folders(self) -> bool:
        """Whether the classes are the names of folders."""
        return self._source.folders


@dataclass(frozen=True, eq=False)
class Batch:
    """Some pictures, ready for the model.

    Attributes:
        indices: (N,) int64, positions in the data's examples.
        images: (N, 3, H, W) float32, normalised, on the CPU.
        labels: (N,) int64, positions in the data's classes, -1 where unknown.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor


def _sample(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """A class-balanced sample, in the order of the list.

    Every class gives one picture a round, in random order, until the limit is reached; a class
    that runs out leaves its share to the others.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(examples))
    members: dict[int | None, list[int]] = {}
    for index in order:
        members.setdefault(examples[index].label, []).append(int(index))
    rounds = [(place, turn) for turn in members for place in range(len(members[turn]))]
    shuffled = {turn: place for place, turn in enumerate(members)}
    rounds.sort(key=lambda pair: (pair[0], shuffled[pair[1]]))
    chosen = sorted(members[turn][place] for place, turn in rounds[:limit])
    return [examples[index] for index in chosen]


def _fingerprint(examples: Sequence[Example], source: ImageSource) -> str:
    digest, classes = hashlib.sha256(), source.classes
    for example in examples:
        name = classes[example.label] if classes and example.label is not None else ""
        line = f"{example.path}\0{name}\0{source.state(example)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_data(sources: Sequence[str], *, limit: int | None = None, seed: int = 0) -> ImageData:
    """Lists the pictures that `sources` stand for; see `find_source` for what they can be.

    Args:
        sources: names as on the command line.
        limit: at most so many pictures, class-balanced, drawn at random.
        seed: of that draw.

    Raises:
        UsageError: something does not exist, holds no picture, or is malformed; limit below 1.
        CnnvizError: a torchvision data set is not there.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: it takes a whole number from 1")
    source = find_source(sources)
    examples: Sequence[Example] = source.examples
    if limit is not None and limit < len(examples):
        examples = _sample(examples, limit, seed)
    return ImageData(
        examples=tuple(examples),
        classes=source.classes,
        sources=tuple(sources),
        fingerprint=_fingerprint(examples, source),
        total=len(source.examples),
        _source=source,
    )


def open_images(sources: Sequence[str]) -> ImageData:
    """Lists pictures one by one: files, folders, or a data set (see `find_source`).

    Raises:
        UsageError: something does not exist, holds no picture, or is malformed.
        CnnvizError: a data set is not there.
    """
    if any(map(is_set, sources)):
        return open_data(sources)
    examples = tuple(Example(str(p), None, n) for n, p in enumerate(find_images(sources)))
    source = ImageSource(examples, None)
    fingerprint = _fingerprint(examples, source)
    return ImageData(examples, None, tuple(sources), fingerprint, len(examples), source)


def failures(errors: Sequence[tuple[str, str]]) -> str:
    """The first few images that could not be used, with the reasons, and how many more there are.

    Args:
        errors: (image, message) of each.
    """
    said = [text if path in text else f"'{path}': {text}" for path, text in errors[:REASONS]]
    more = f" and {len(errors) - REASONS} more" if len(errors) > REASONS else ""
    return "; ".join(said) + more


def none_usable(data: ImageData, errors: Sequence[tuple[str, str]]) -> CnnvizError:
    """What to raise where nothing is left of a data set; see `failures`."""
    return CnnvizError(
        f"none of the {len(data)} images of {data.name} could be used: {failures(errors)}"
    )


def default_workers() -> int:
    """Threads that decode: one for each core this process may use, within reason."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MAX_WORKERS, cores or 1)


def _decoded(
    data: ImageData, preprocess: Preprocess, workers: int, ahead: int, start: int
) -> Iterator[tuple[int, Tensor | CnnvizError]]:
    """Each picture in order, normalised, or the reason why it could not be read."""

    def decode(index: int) -> Tensor | CnnvizError:
        try:
            image = data.working(index, preprocess)
        except CnnvizError as error:
            return error
        return preprocess.normalise(image.pixels)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    waiting: deque[tuple[int, Future[Tensor | CnnvizError]]] = deque()
    try:
        for index in range(max(start, data.part.start), data.part.stop):
            waiting.append((index, pool.submit(decode, index)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(
    data: ImageData,
    preprocess: Preprocess,
    batch_size: int,
    *,
    on_error: Callable[[int, str], None],
    workers: int | None = None,
    start: int = 0,
) -> Iterator[Batch]:
    """Streams the pictures through the model's preprocessing, decoding ahead.

    Batches end at multiples of their size in the list, whatever the first picture, so that the
    parts of a run and the shares of a data set have the same ones (sums in float32 hang on that).

    Args:
        data: what to stream.
        preprocess: the model's.
        batch_size: pictures in a batch; fewer at both ends and where some cannot be read.
        on_error: called with the index and the message of each picture that cannot be read, in
            order; it is left out.
        workers: threads that decode; one for each core if not given.
        start: index of the first picture.
    """
    threads = workers or default_workers()
    indices: list[int] = []
    images: list[Tensor] = []

    def batch() -> Batch:
        labels = [data.examples[index].label for index in indices]
        known = [UNKNOWN if label is None else label for label in labels]
        stacked = torch.stack(images)
        if torch.cuda.is_available():
            stacked = stacked.pin_memory()  # copied to the device while it computes
        made = Batch(torch.tensor(indices), stacked, torch.tensor(known))
        indices.clear()
        images.clear()
        return made

    for index, image in _decoded(data, preprocess, threads, batch_size + threads, start):
        if isinstance(image, CnnvizError):
            on_error(index, str(image))
        else:
            indices.append(index)
            images.append(image)
        if indices and (index + 1) % batch_size == 0:
            yield batch()
    if indices:
        yield batch()
