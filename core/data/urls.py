"""Images at URLs: files, folders, manifests and tars.

They are listed and labelled like local ones of the same names, in the same order.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from PIL import Image

from cnnviz.core.data import tars
from cnnviz.core.data.images import decode_rgb, is_hidden, note_left_out, note_unused, suffixes
from cnnviz.core.data.rasters import ARRAYS, Raster, is_raster, read_raster
from cnnviz.core.data.tables import MANIFESTS, Example, ImageSource, Manifest, labelled, read_rows
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import LARGEST_TEXT
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.remote import (
    LARGEST_IMAGE,
    RemoteFile,
    below,
    checked,
    described,
    file_at,
    files_at,
    is_url,
    within,
)

FEW = 1000
"""So many files of a manifest are described one by one; for more, their folder is listed."""
Labelled = list[tuple[RemoteFile, str | None]]


def source_at(urls: Sequence[str], *, labels: bool = True) -> ImageSource:
    """Lists the images at URLs; `labels`: whether folders are classes."""
    if strangers := [url for url in urls if not is_url(url)]:
        raise UsageError(
            f"URLs and local files cannot be combined: '{strangers[0]}' is not a URL; copy one to "
            "the place of the other"
        )
    urls = [checked(url) for url in urls]
    if any(url.endswith(tars.SUFFIX) for url in urls):
        return _tars(urls)
    if len(urls) == 1 and _suffix(urls[0]) in MANIFESTS:
        return _manifest(urls[0])
    files = {url: described(url) for url in urls}
    if len(urls) == 1 and files[urls[0]] is None:
        return _folder(urls[0], labels=labels)
    folders = labels and not any(files.values())
    listed: Labelled = []
    for url in sorted(urls, key=_name) if folders else urls:
        file = files[url]
        images = [(url, file)] if file else _images(url, below(url))
        listed += [(image, _name(url) if folders else None) for _, image in images if image]
    return _source(listed)


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _images(folder: str, listed: Sequence[tuple[str, RemoteFile]]) -> list[tuple[str, RemoteFile]]:
    """The images among the files below a folder, as `images_below` chooses them."""
    listed = [(name, file) for name, file in listed if not is_hidden(PurePosixPath(name))]
    images = [pair for pair in listed if _suffix(pair[0]) in suffixes()]
    images = images or [pair for pair in listed if _suffix(pair[0]) in ARRAYS]
    if not images:
        raise UsageError(f"the folder '{folder}' holds no image")
    note_unused(folder, [_suffix(name) for name, _ in listed], [_suffix(n) for n, _ in images])
    return images


def _folder(folder: str, *, labels: bool) -> ImageSource:
    """A folder for each class, a flat one, or one of tars."""
    listed = below(folder)
    if not listed:
        raise UsageError(f"no file or folder '{folder}'")
    shards = [file for name, file in listed if name.endswith(tars.SUFFIX)]
    if shards and not any(_suffix(name) in suffixes() | ARRAYS for name, _ in listed):
        others = Counter(_suffix(n) for n, _ in listed if not n.endswith(tars.SUFFIX))
        note_left_out(folder, others, "next to tar files")
        return tars.of_tars(shards)
    images = _images(folder, listed)
    parts = (name.split("/") for name, _ in images)
    classes = (part[0] if labels and len(part) > 1 else None for part in parts)
    source = _source([(file, label) for (_, file), label in zip(images, classes, strict=True)])
    return replace(source, folders=labels)


def _tars(urls: Sequence[str]) -> ImageSource:
    if strangers := [url for url in urls if not url.endswith(tars.SUFFIX)]:
        raise UsageError(
            f"tar files can be combined only with tar files, not with '{strangers[0]}'"
        )
    return tars.of_tars([file_at(name) for url in urls for name in tars.expand(url)])


def _manifest(url: str) -> ImageSource:
    """The images of a manifest, all of which are below its folder."""
    folder = url.rpartition("/")[0]
    try:
        text = file_at(url).content(LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"the manifest cannot be used: '{url}' is not UTF-8 text") from error
    rows = read_rows(text, Manifest(url, _suffix(url), lambda _name: False))
    places = [within(folder, path) for path, _ in rows]
    files: list[RemoteFile | None]
    if len(places) <= FEW or folder.startswith("https://"):
        files = files_at(places)
    else:
        known = {file.url: file for _, file in below(folder)}
        files = [known.get(place) for place in places]
    listed = [(f or _lost(p)) for f, p in zip(files, places, strict=True)]
    return _source([(f, label or None) for f, (_, label) in zip(listed, rows, strict=True)])


def _lost(url: str) -> RemoteFile:
    """An image that does not exist, which is reported when it is read."""
    return RemoteFile(url, -1, "-", float("inf"))


def _source(listed: Labelled) -> ImageSource:
    files = _Files(tuple(file for file, _ in listed))
    source = labelled((file.url, label) for file, label in listed)
    return replace(source, open=files.open, state=files.state, changed=files.changed)


@dataclass(frozen=True)
class _Files:
    """The images of a source, by row."""

    files: tuple[RemoteFile, ...]

    def state(self, example: Example) -> str:
        return self.files[example.row].stamp

    def changed(self, example: Example) -> float:
        return self.files[example.row].changed

    def open(self, example: Example, preprocess: Preprocess) -> Image.Image | Raster:
        """Reads an image whole, and decodes it."""
        file = self.files[example.row]
        if file.size < 0:
            raise CnnvizError(f"no file '{file}'")
        if is_raster(file.url, preprocess):
            with TemporaryDirectory(prefix="cnnviz-") as folder:
                path = file.copy(Path(folder))
                try:
                    return read_raster(path, preprocess)
                except CnnvizError as error:
                    raise CnnvizError(str(error).replace(str(path), file.url)) from error
        return decode_rgb(io.BytesIO(file.content(LARGEST_IMAGE)), file.url, preprocess)
