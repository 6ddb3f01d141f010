"""Images in tar files, as the webdataset library shards a data set.

Files whose names agree up to the first dot are a sample: `0001.jpg` with `0001.cls` or `0001.json`.
If a sample has no image with such a name, those with more dots are its images: `0001.v1.jpg` with
`0001.v1.cls`. If nothing has a label, the folders in the tar are the classes, or else tars that are
called by wnids (ImageNet's own). The headers are read once, for the offset of each image; after
that any image is read in place, so that every command works as it does on a folder, and samples and
resumes by image.
Format: github.com/webdataset/webdataset.
"""

import io
import logging
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, product
from os.path import commonpath
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.data.images import decode_rgb, note_left_out, suffixes
from cnnviz.core.data.tables import LABEL_COLUMNS, Example, ImageSource, label_text, labelled
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import from_json, regular
from cnnviz.core.models.labels import is_wnid
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.remote import RemoteFile

SUFFIX = ".tar"
CLASS, JSON = "cls", "json"
LARGEST_LABEL = 1 << 20
"""Maximum bytes of a file with a label."""
LARGEST_HEADER = 1 << 20
"""Maximum bytes of an extended header: a long name, or a list of attributes."""
LONGEST_PADDING = 1 << 20
_BLOCK = 512
_EXTENDED = tarfile.GNUTYPE_LONGNAME + tarfile.GNUTYPE_LONGLINK
_EXTENDED += tarfile.XHDTYPE + tarfile.XGLTYPE + tarfile.SOLARIS_XHDTYPE
_BRACES = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_UNLABELLED = "note: no image of %r has a label: its .json files have none of the keys %s"
_log = logging.getLogger("cnnviz")
Tar = Path | RemoteFile


def expand(name: str) -> Iterator[str]:
    """Expands `shards-{000..012}.tar` to thirteen names; a name without braces to itself."""
    found = _BRACES.search(name)
    if found is None:
        yield name
        return
    first, last = found.groups()
    if int(last) < int(first):
        raise UsageError(f"'{name}' names no file: the range {found[0]} is empty")
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    for n in numbers:
        yield from expand(name[: found.start()] + n + name[found.end() :])


@dataclass(frozen=True)
class _Member:
    """A file in a tar: its name, and the position of its bytes."""

    name: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """The name of the sample: that of the file up to its first dot."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def extension(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self.name[: -len(self.suffix) - 1] if self.suffix else self.name

    @property
    def suffix(self) -> str:
        return self.extension.rpartition(".")[2]


class _Header(tarfile.TarInfo):
    """A header whose numbers are possible."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        """Parses a header; a tarfile.ReadError where its size is negative or absurd."""
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a file of {header.size} bytes")
        if header.type in _EXTENDED and header.size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a name or attributes of {header.size:,} bytes")
        return header


def _after(stream: IO[bytes], end: int) -> int | None:
    """Where the next of several tars joined by `cat` begins, behind the end of one; None if none.

    Raises a tarfile.ReadError unless a tar ends there: an empty block, and then padding.
    """
    stream.seek(end)
    last, padding = stream.read(_BLOCK), stream.read(LONGEST_PADDING)
    if len(last) < _BLOCK:
        raise tarfile.ReadError("it has no end: it was cut off after a file")
    if any(last):
        raise tarfile.ReadError(f"damaged at byte {end:,}")
    zeros = len(padding) - len(padding.lstrip(b"\0"))
    return end + _BLOCK + zeros // _BLOCK * _BLOCK if zeros < len(padding) else None


def _members(stream: IO[bytes], path: Tar, others: Counter[str]) -> Iterator[_Member]:
    """The regular files of a tar, in order; links and sparse files are counted in `others`."""
    start: int | None = 0
    try:
        while start is not None:
            stream.seek(start)
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header) as archive:
                for entry in archive:
                    if entry.size < 0 or archive.offset <= entry.offset:
                        raise tarfile.ReadError(f"a file of {entry.size} bytes")
                    archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                    member = _Member(entry.name, entry.offset_data, entry.size)
                    hidden = member.key.rpartition("/")[2] == ""  # as .DS_Store
                    if entry.isreg() and not entry.issparse() and not hidden:
                        yield member
                    elif not entry.isdir() and not hidden:
                        others["sparse files" if entry.issparse() else "links and devices"] += 1
                start = _after(stream, archive.offset)
    except (tarfile.TarError, EOFError, ValueError, OSError, OverflowError) as error:
        raise CnnvizError(
            f"'{path}' is not a complete tar file ({one_line(error)}); unpack it first if it is "
            "compressed with gzip or zstd"
        ) from error


def _images(sample: Sequence[_Member], formats: frozenset[str]) -> list[_Member]:
    """The images of a sample: `a.jpg`, or if there is none, `a.v1.jpg`."""
    plain = [member for member in sample if member.extension in formats]
    return plain or [member for member in sample if member.suffix in formats]


def _label(stream: IO[bytes], sample: Sequence[_Member], image: _Member) -> str | None:
    """The label in `.cls`, or under a usual name in `.json`; a ValueError if it is malformed."""
    by_name = {member.name: member for member in sample if member.suffix in (CLASS, JSON)}
    for stem, extension in product((image.stem, image.key), (CLASS, JSON)):
        member = by_name.get(f"{stem}.{extension}")
        if member is None:
            continue
        if member.size > LARGEST_LABEL:
            raise ValueError(f"{member.name} has {member.size:,} bytes")
        stream.seek(member.offset)
        text = stream.read(member.size).decode()
        if extension == CLASS:
            return text.strip()
        content: Any = from_json(text)
        usual = [name for name in LABEL_COLUMNS if isinstance(content, dict) and name in content]
        if usual:
            return label_text(content[usual[0]])
    return None


def _folders(names: Sequence[str]) -> list[str | None]:
    """The folder of each name below the folders that all have in common; None without one."""
    parts = [[part for part in name.split("/") if part not in ("", ".")] for name in names]
    shared = commonpath(["/".join(["", *folders[:-1]]) or "/" for folders in parts])
    common = len(shared.strip("/").split("/")) if shared != "/" else 0
    return [folders[common] if len(folders) > common + 1 else None for folders in parts]


def _by_place(names: Sequence[str], tars: Sequence[Tar]) -> list[str | None]:
    """The class of each image by its folder in its tar, or by its tar's name if that is a wnid."""
    classes = _folders(names)
    if any(classes) or not all(is_wnid(path.stem) for path in tars):
        return classes
    return [path.stem for path in tars]


def _note_unused(paths: Sequence[Tar], others: Mapping[str, int]) -> None:
    kinds = {kind if " " in kind or not kind else f".{kind}": n for kind, n in others.items()}
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    note_left_out(f"{paths[0]}{more}", kinds, "not the images of their samples")


@dataclass(frozen=True)
class _Places:
    """The positions of images in tars.

    Attributes:
        tars: the files.
        stamps: size and time of each.
        places_N3: of each image, the number of its file, its offset and its number of bytes.
    """

    tars: tuple[Tar, ...]
    stamps: tuple[str, ...]
    places_N3: NDArray[np.int64]

    def state(self, example: Example) -> str:
        """Text that changes when the tar changes."""
        number, offset, size = self.places_N3[example.row].tolist()
        return f"{self.stamps[number]} {offset} {size}"

    def changed(self, example: Example) -> float:
        """When the tar at a URL changed."""
        path = self.tars[self.places_N3[example.row, 0]]
        return path.changed if isinstance(path, RemoteFile) else path.stat().st_mtime

    def open(self, example: Example, preprocess: Preprocess) -> Image.Image:
        """Decodes an image in place, which is never a raster."""
        number, offset, size = self.places_N3[example.row].tolist()
        path = self.tars[number]
        if isinstance(path, RemoteFile):
            return decode_rgb(
                io.BytesIO(path.read(offset, offset + size)), example.path, preprocess
            )
        try:
            with path.open("rb") as stream:
                stream.seek(offset)
                content = stream.read(size)
        except OSError as error:
            raise CnnvizError(f"'{path}' cannot be read: {one_line(error)}") from error
        return decode_rgb(io.BytesIO(content), example.path, preprocess)


def _scan(path: Tar, others: Counter[str]) -> Iterator[tuple[_Member, str | None]]:
    """The images of a tar with their labels; `others` counts the files that are not used."""
    formats = frozenset(suffix.removeprefix(".") for suffix in suffixes())
    local = isinstance(path, Path) and regular(path)
    with path.open("rb") as stream, path.open("rb") if local else nullcontext(stream) as labels:
        members = _members(stream, path, others)
        for _, group in groupby(members, key=lambda member: member.key):
            sample = list(group)
            images = _images(sample, formats)
            unused = (m for m in sample if m not in images and m.suffix != CLASS)
            others.update(m.extension if m.suffix in formats else m.suffix for m in unused)
            for image in images:
                try:
                    label = _label(labels, sample, image)
                except ValueError as error:
                    raise CnnvizError(
                        f"'{path}': the label of {image.stem} cannot be read: {one_line(error)}"
                    ) from error
                yield image, label


def of_tars(paths: Sequence[Tar]) -> ImageSource:
    """The images in some tar files, in order."""
    others: Counter[str] = Counter()
    names: list[str] = []
    labels: list[str | None] = []
    places: list[tuple[int, int, int]] = []
    for number, path in enumerate(paths):
        for image, label in _scan(path, others):
            names.append(image.name)
            labels.append(label)
            places.append((number, image.offset, image.size))
    if not names:
        kinds = ", ".join(sorted(kind or "no suffix" for kind in others)[:8]) or "no file"
        raise UsageError(f"'{paths[0]}' holds no image (.jpg .png .webp ...) but {kinds}")
    _note_unused(paths, others)
    if all(label is None for label in labels):
        in_tar = [paths[place[0]] for place in places]
        labels = _by_place(names, in_tar)
        if others[JSON] and not any(labels):
            _log.warning(_UNLABELLED, str(paths[0]), ", ".join(LABEL_COLUMNS))
    table = _Places(tuple(paths), tuple(map(_stamp, paths)), np.array(places, np.int64))
    shown = (f"{paths[place[0]]}/{name}" for place, name in zip(places, names, strict=True))
    source = labelled(zip(shown, labels, strict=True))
    source = replace(source, open=table.open, state=table.state)
    local = tuple(path for path in paths if isinstance(path, Path))
    return replace(source, files=local, changed=None if local else table.changed)


def _stamp(path: Tar) -> str:
    if isinstance(path, RemoteFile):
        return path.stamp
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}"
