"""Data sets, streamed: images are listed first, and decoded ahead by threads in a stable order.

Only the list is held in memory. An image that cannot be read is reported and left out; the others
come in the order of the list, regardless of the number of threads.

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
from cnnviz.core.data.urls import source_at
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.remote import READERS, is_url

MAX_WORKERS = 8
REASONS = 3

__all__ = ["Batch", "Example", "ImageData", "batches", "open_data"]

_RGB = Preprocess(None, (0, 0))
"""Leaves an image of three channels as it is in its file."""


@lru_cache(maxsize=1)  # all images of a set are in the same files
def _newest(files: tuple[Path, ...]) -> float:
    return max(path.stat().st_mtime for path in files)


@dataclass(frozen=True)
class ImageData:
    """A list of images, in stable order.

    Attributes:
        examples: the images; after `--limit`, the sample.
        classes: the names of the labels; None if nothing is labelled.
        sources: as the user named them.
        fingerprint: SHA-256 of paths, labels, sizes and times of the examples.
        total: number of images before `--limit`.
        part: indices of the examples that are used: all, or a share of them.
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
        """The first source, and the number of others."""
        more = len(self.sources) - 1
        return self.sources[0] + (f" and {more} more" if more else "")

    def share(self, shard: Shard) -> "ImageData":
        """The same data set, of which only a share is used."""
        part = shard.part(len(self.examples))
        if not part:
            raise UsageError(f"--shard {shard}: there are fewer images than shares")
        return self.within(part)

    def within(self, part: range) -> "ImageData":
        """The same data set, of which only the images of these indices are used."""
        shared = replace(self)
        object.__setattr__(shared, "part", part)
        return shared

    def refused(self, reason: str) -> "ImageData":
        """The same part of the data set, none of whose images can be opened, for this reason."""

        def refuse(example: Example, _preprocess: Preprocess) -> Image.Image:
            raise CnnvizError(f"'{example.path}' is missing: {reason}")

        return replace(self, _source=replace(self._source, open=refuse)).within(self.part)

    def named(self, classes: tuple[str, ...]) -> "ImageData":
        """The same data set, and part of it, with other names of its classes."""
        return replace(self, classes=classes).within(self.part)

    def open(self, index: int, preprocess: Preprocess = _RGB) -> Image.Image | Raster:
        """Decodes an image to 8-bit RGB, or to the channels of a network.

        Raises:
            CnnvizError: it cannot be read, or has other channels.
        """
        return self._source.open(self.examples[index], preprocess)

    def working(self, index: int, preprocess: Preprocess) -> WorkingImage:
        """An image as the working image of a network; raises what `open` raises."""
        example = self.examples[index]
        image = prepare(self.open(index, preprocess), preprocess, example.path)
        label = None if example.label is None else (self.classes or ())[example.label]
        elsewhere = self._source.files or self._source.changed
        reopen = partial(self.open, index) if elsewhere else None
        return replace(image, label=label, reopen=reopen)

    @property
    def files(self) -> Iterator[str | Path]:
        """The files of the images, or the files that contain them."""
        return iter(self._source.files or (example.path for example in self.examples))

    def changed(self, index: int) -> float:
        """The time at which an image's file, or the newest of the containing files, was written.

        It is infinity for a file at a URL whose server does not say.

        Raises:
            OSError: it does not exist.
        """
        if self._source.changed:
            return self._source.changed(self.examples[index])
        return _newest(self._source.files or (Path(self.examples[index].path),))

    @property
    def remote(self) -> bool:
        """Whether the images are at URLs."""
        return self._source.changed is not None

    @property
    def canonical(self) -> bool:
        """Whether the classes are in the order in which models are trained on this data set."""
        return self._source.canonical

    @property
    def folders(self) -> bool:
        """Whether the classes are the names of folders."""
        return self._source.folders


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images, ready for the model.

    Attributes:
        indices: (N,) int64, indices into the data's examples.
        images: (N, 3, H, W) float32, normalised, on the CPU.
        labels: (N,) int64, indices into the data's classes, -1 if unknown.
    """

    indices: Tensor
    images: Tensor
    labels: Tensor


def _sample(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """A class-balanced sample, in the order of the list.

    Every class gives one image per round, in random order, until the limit is reached; a class
    that runs out leaves its share to the others.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(examples))
    members: dict[int | None, list[int]] = {}
    for index in order:
        members.setdefault(examples[index].label, []).append(int(index))
    rounds = [(number, label) for label in members for number in range(len(members[label]))]
    shuffled = {label: place for place, label in enumerate(members)}
    rounds.sort(key=lambda pair: (pair[0], shuffled[pair[1]]))
    chosen = sorted(members[label][number] for number, label in rounds[:limit])
    return [examples[index] for index in chosen]


def _fingerprint(examples: Sequence[Example], source: ImageSource) -> str:
    digest, classes = hashlib.sha256(), source.classes
    for example in examples:
        name = classes[example.label] if classes and example.label is not None else ""
        line = f"{example.path}\0{name}\0{source.state(example)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_data(sources: Sequence[str], *, limit: int | None = None, seed: int = 0) -> ImageData:
    """Lists the images of `sources`; `find_source` says what a source can be.

    Args:
        sources: names as on the command line.
        limit: maximum number of images, drawn at random and class-balanced.
        seed: of that draw.

    Raises:
        UsageError: something does not exist, contains no image, or is malformed; limit below 1.
        CnnvizError: a data set does not exist or is damaged.
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
    """Lists images without labels: files and folders; or a data set, as `open_data`."""
    if any(map(is_set, sources)):
        return open_data(sources)
    if any(map(is_url, sources)):
        source = source_at(sources, labels=False)
    else:
        listed = (Example(str(p), None, n) for n, p in enumerate(find_images(sources)))
        source = ImageSource(tuple(listed), None)
    examples, fingerprint = source.examples, _fingerprint(source.examples, source)
    return ImageData(examples, source.classes, tuple(sources), fingerprint, len(examples), source)


def failures(errors: Sequence[tuple[str, str]]) -> str:
    """Text that names the first of the images that could not be used, given (image, message)."""
    named = [text if path in text else f"'{path}': {text}" for path, text in errors[:REASONS]]
    more = f" and {len(errors) - REASONS} more" if len(errors) > REASONS else ""
    return "; ".join(named) + more


def none_usable(data: ImageData, errors: Sequence[tuple[str, str]]) -> CnnvizError:
    """The error for a data set without any usable image."""
    return CnnvizError(
        f"none of the {len(data)} images of {data.name} could be used: {failures(errors)}"
    )


def default_workers() -> int:
    """The number of decoding threads: one for each core of this process, up to a limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(MAX_WORKERS, cores or 1)


def _decoded(
    data: ImageData, preprocess: Preprocess, workers: int, ahead: int, start: int
) -> Iterator[tuple[int, Tensor | CnnvizError]]:
    """Each image in order, normalised, or the reason why it could not be read."""

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
    """Streams the images through the model's preprocessing, decoding ahead.

    Batches end at multiples of their size in the list, regardless of `start`, so that the parts of
    a run and the shares of a data set have the same batches (on which float32 sums depend).

    Args:
        data: what to stream.
        preprocess: the model's.
        batch_size: images in a batch; fewer at both ends and where some cannot be read.
        on_error: called with the index and the message of each image that cannot be read, in
            order; it is left out.
        workers: decoding threads; by default one for each core.
        start: index of the first image.
    """
    threads = workers or (READERS if data.remote else default_workers())
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
