"""Commands that study images one by one, with a folder of files for each.

A command declares an `ImageStudy`: what it computes for one image, what the summary reports of
it, which files it writes, and what it shows and checks at the end. `ImageRun.go` does the rest:
it opens the folder, resumes, takes a share, reads each image, and collects failures. An image that
cannot be read or studied is reported; the others are still studied. Checks are evaluated at the
end, even if some images failed.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import typer
from PIL import Image

from cnnviz.cli.ci_reports import current
from cnnviz.cli.console import say
from cnnviz.cli.options import OutputOptions
from cnnviz.cli.run import Run
from cnnviz.core.choices import decimals
from cnnviz.core.data.datasets import ImageData, open_images
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError
from cnnviz.core.files import SUMMARY, read_text, safe_name, write_atomically
from cnnviz.core.models.load import Model
from cnnviz.core.output.blocks import Pass
from cnnviz.core.output.lines import LINES, Lines
from cnnviz.core.output.options import Look
from cnnviz.core.output.record import from_json, to_json
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.sheets import Contact, contact_sheets
from cnnviz.core.output.summary import ClassRecord

Advance = Callable[[int], None]
"""Takes the number of steps just done."""
Result = TypeVar("Result")
Entry = TypeVar("Entry")
ERRORS = "errors.json"
"""In the folder of a block: (image, message) of those that failed."""
MOST_SHOWN = 200
"""Images in the terminal's table, and pictures named below it."""


class ImageStudy(ABC, Generic[Result, Entry]):
    """What a command does with each image; subclasses set the attributes in their `__init__`.

    Attributes:
        kind: the record that the summary has of each image; must have the field `image`.
        work: text of the progress bar.
        steps: of progress for an image.
        title: of the terminal's table; no table if it is empty.
        columns: of that table.
        show: pattern of the pictures that are named at the end.
        arrays: file of an image whose `maps` are in the contact sheet; no sheet if it is empty.
        photo: file of an image that is below its map; `input.png` if it is missing.
        look: how the contact sheet's maps are drawn.
        unit: of those maps.
        checks: called at the end with the records of all images; each raises `CheckFailed` if it
            does not hold.
    """

    kind: type[Entry]
    work: str = "studying"
    steps: int = 1
    title: str = ""
    columns: Sequence[str] = ()
    show: str = "overlay.png"
    checks: Sequence[Callable[[Iterable[Entry]], None]] = ()
    arrays: str = ""
    photo: str = "crop.png"
    look = Look()
    unit: str = ""

    @abstractmethod
    def one(self, image: WorkingImage, path: str, advance: Advance) -> Result:
        """Studies an image; a `CnnvizError` fails this image alone."""

    def check(self, entry: Entry) -> None:
        """Raises a CnnvizError if the line of an earlier run cannot be of this run."""

    @abstractmethod
    def entry(self, result: Result) -> Entry:
        """What the summary reports of it."""

    def files(self, result: Result, folder: RunFolder) -> None:
        """Writes the files of an image to its folder."""

    def line(self, entry: Entry) -> str:
        """An image's text in the contact sheet."""
        raise NotImplementedError

    def rows(self, entry: Entry) -> Iterable[Sequence[object]]:
        """An image's rows in the terminal's table."""
        raise NotImplementedError


class ImageRun(Run):
    """The images of one call; call `images` or `take` first, then `go`.

    Attributes:
        folder: where the run's files go: `<out>/<stem>` for one image, `<out>` for several.
        entries: what the summary reports of each image that worked, with its `folder`; for several
            images they are on disk.
        errors: (image, message) of those that failed.
    """

    def __init__(self, command: str, output: OutputOptions, *, folders: bool = True) -> None:
        """Starts the clock; `folders`: whether each image has files in a separate folder."""
        super().__init__(command, output)
        self._folders = folders
        self._paths: Sequence[str] = ()
        self._places: dict[str, int] = {}
        self._alone = False
        self.entries: list[dict[str, Any]] | Lines = []
        self._index: Lines | None = None
        self.errors: list[tuple[str, str]] = []

    def images(self, sources: Sequence[str], requested: Shard | None) -> list[str]:
        """Lists the images, and takes the share of them that is requested."""
        return self.take(self.listed(partial(open_images, sources)), requested)

    def take(self, data: ImageData, requested: Shard | None) -> list[str]:
        """Lists the images of a data set, and takes the share of them that is requested."""
        self._data = data
        paths = [example.path for example in self._data.examples]
        self._places = {path: place for place, path in enumerate(paths)}
        self.take_share(requested, len(paths))
        return paths

    def labels(self) -> list[str]:
        """The label of each image: that of the data set, or else the name of its folder."""
        classes = self._data.classes or ()
        return [
            Path(one.path).resolve().parent.name if one.label is None else classes[one.label]
            for one in self._data.examples
        ]

    def note_common(self, **places: str | None) -> None:
        """Prints a note on each option that gives one box, or pixel, for several images."""
        for option, place in places.items():
            if place and len(self._places) > 1 and not Path(place).exists():
                self.console.note(
                    f"--{option} {place}: taken for each of the {len(self._places)} images; "
                    "a JSON file has boxes for each"
                )

    def go(
        self,
        study: ImageStudy[Any, Any],
        model: Model,
        paths: Sequence[str],
        depends: Mapping[str, object],
        *,
        seed: int,
        inputs: Sequence[Path] = (),
        resume: bool = False,
    ) -> None:
        """Studies all images, and finishes the run.

        Args:
            study: what to do with each.
            model: the network.
            paths: the images, from `images` or `take`.
            depends: what else the results depend on, by the option's or group's name.
            seed: the run's seed.
            inputs: files that are read in addition to the images.
            resume: whether to skip images whose results are complete.
        """
        self.open_for(paths, model, depends, study, inputs=inputs, resume=resume)
        self.go_through(study, model)
        if study.title and len(self.entries):
            self._table(study)
        if study.arrays and self._index is not None:
            self._overview(study)
        checks = [partial(check, _Records(self.entries, study.kind)) for check in study.checks]
        self.finish_images(model, seed=seed, show=study.show, checks=checks)

    def go_through(self, study: ImageStudy[Any, Any], model: Model) -> None:
        """Reads, studies and writes every image under one progress bar; the folder is open."""
        if self.cluster is not None and not self._alone:
            self._on_cluster(study, model)
            return
        several = len(self._paths) > 1
        total = len(self._paths) if several else study.steps
        with self.console.progress(study.work, total, "images" if several else "") as advance:
            for path in self._paths:
                self._one(path, model, study, (lambda _steps: None) if several else advance)
                if several:
                    advance(1)

    def _on_cluster(self, study: ImageStudy[Any, Any], model: Model) -> None:
        """Has every image studied by workers, whose files are then those of this run."""
        assert self._index is not None  # noqa: S101
        left, compute = set(self._paths), partial(self._block, study, model)
        with self.console.progress(study.work, len(self._data), "images") as advance:
            step = Pass("images", self._data, 1, self.identity, compute, advance)
            for folder in self.spread(step) or ():
                self._index.take(folder, left)
                failed = json.loads(read_text(folder / ERRORS))
                self.errors += from_json(tuple[tuple[str, str], ...], failed)

    def _block(
        self, study: ImageStudy[Any, Any], model: Model, data: ImageData, folder: Path
    ) -> None:
        """Studies the images of a block; writes the files to a folder."""
        here = self.folder, self._data, self.errors, self._index
        self._data, self.errors = data, []
        self.folder = RunFolder.open(folder)
        self.folder.figures, self.folder.caption = here[0].figures, here[0].caption
        self.folder.mark = here[0].mark
        self._index = Lines(self.folder, self.identity, resume=False)
        try:
            for place in data.part:
                self._one(data.examples[place].path, model, study, lambda _steps: None)
            write_atomically(folder / ERRORS, json.dumps(self.errors).encode())
        finally:
            self.folder, self._data, self.errors, self._index = here

    def open_for(
        self,
        paths: Sequence[str],
        model: Model,
        depends: Mapping[str, object],
        study: ImageStudy[Any, Any],
        *,
        inputs: Sequence[Path] = (),
        resume: bool = False,
    ) -> None:
        """Opens the folder for these images; the parameters are those of `go`."""
        self._inputs = [*self._data.files, *inputs]
        self._alone = self._folders and len(paths) == 1 and self.shard is None
        listed = "\n".join(paths).encode("utf-8", "surrogateescape")
        images = hashlib.sha256(listed).hexdigest()
        if self.shard:
            part = self.shard.part(len(paths))
            paths = paths[part.start : part.stop]
            if not paths:
                raise UsageError(f"--shard {self.shard}: there are fewer images than shares")
        self._paths = paths
        self.open(
            self.root / safe_name(Path(paths[0]).stem) if self._alone else None, resume=resume
        )
        if self._alone:
            return
        self.identity = {
            "command": self.command,
            "weights": model.weights_sha256,
            "model": model.name,
            "preprocessing": repr(model.preprocess),
            "precision": model.precision,
            "outputs": model.choices,
            "--format": self._output.format,
            "--dark": self._output.dark,
            "--width": self._output.width,
            **{name: repr(value) for name, value in depends.items()},
        }
        resume = resume and not self._output.overwrite
        if self.shard:
            self.identity = {**self.identity, "images": images}
        self._index = Lines(
            self.folder,
            self.identity,
            resume=resume,
            images=images,
            changed=lambda image: self._data.changed(self._places[image]),
            check=partial(self._check, study, model),
        )
        self.entries, done = self._index, self._index.adopt()
        self._paths = [path for path in paths if path not in done]
        if done:
            self.console.note(f"{len(paths) - len(self._paths)} of the {len(paths)} are done")
        if dropped := self._index.dropped:
            self.console.note(f"{dropped} lines of {LINES} are damaged or out of date: done again")

    def _check(self, study: ImageStudy[Any, Any], model: Model, line: Mapping[str, Any]) -> None:
        """Raises a CnnvizError if the line of an earlier run cannot be of this run."""
        entry = from_json(study.kind, line)
        study.check(entry)
        if self._folders and "folder" not in line:
            raise CnnvizError("it names no folder")
        if not hasattr(entry, "top5"):
            return
        if (entry.top5 is not None) != model.head.has_classes:
            raise CnnvizError("it has predictions, or none, unlike the network")
        if (entry.prediction is None) == bool(entry.top5):
            raise CnnvizError("it has no prediction")
        named: list[ClassRecord] = [entry.prediction, *entry.top5] if entry.top5 else []
        if any(model.labels[one.index] != one.class_ for one in named):
            raise CnnvizError("it predicts a class that the network does not have")

    def _one(self, path: str, model: Model, study: ImageStudy[Any, Any], advance: Advance) -> None:
        """Studies one image."""
        before = len(self.folder.files)
        try:
            image = self._data.working(self._places[path], model.preprocess)
            result = study.one(image, path, advance)
            entry = to_json(study.entry(result))
            if self._folders:
                target = (
                    self.folder if self._index is None else self.folder.subfolder(Path(path).stem)
                )
                study.files(result, target)
                relative = target.path.relative_to(self.folder.path).as_posix()
                entry["folder"] = relative
            if self._index is None:
                self.entries = [entry]
            else:
                self._index.add(entry, self.folder.files[before:])
        except CnnvizError as error:
            text = str(error)  # what a network does wrong may not name the image
            named = Path(path).name in text
            self.errors.append((path, text if named else f"'{path}': {text}"))

    def _overview(self, study: ImageStudy[Any, Any]) -> None:
        """Writes `overview.png`, a row per image, from the files of the images."""
        folders = [self.folder.path / raw["folder"] for raw in self.entries]
        if len(folders) < 2 or not all((folder / study.arrays).exists() for folder in folders):
            return

        def read() -> Iterator[Contact]:
            for folder, entry in zip(folders, _Records(self.entries, study.kind), strict=True):
                with np.load(folder / study.arrays) as arrays:
                    map_HW = arrays["maps"][0]
                name = folder / study.photo
                photo = np.asarray(Image.open(name if name.exists() else folder / "input.png"))
                yield photo, map_HW, study.line(entry)

        sheets = contact_sheets(read(), len(folders), study.look, study.unit)
        for page, figure in enumerate(sheets, start=1):
            number = f"-{page}" if page > 1 else ""
            self.folder.write_figure(f"overview{number}.png", figure)

    def _table(self, study: ImageStudy[Any, Any]) -> None:
        """Prints the rows of the first images."""
        first = list(islice(_Records(self.entries, study.kind), MOST_SHOWN))
        rows = [row for entry in first for row in study.rows(entry)]
        self.console.table(study.title, study.columns, rows)
        top = next(iter(self.entries)).get("top5") if self._alone else None
        if top:
            best = [(one["class"], decimals(one["probability"])) for one in top]
            self.console.table(f"Top {len(best)}", ("class", "p"), best)
        for target in getattr(first[0], "targets", ()) if self._alone else ():
            if card := getattr(target, "trust", None):
                self.console.sentence(f"{target.class_}: {card.line}")
        if len(self.entries) > MOST_SHOWN:
            more = len(self.entries) - MOST_SHOWN
            self.console.sentence(f"… and {more} more images, all of them in images.jsonl")

    def finish_images(
        self,
        model: Model,
        *,
        seed: int,
        show: str,
        checks: Sequence[Callable[[], None]] = (),
        results: object = ...,
    ) -> None:
        """Writes the summary, prints the pictures that match `show`, and evaluates the checks.

        Args:
            model: the network.
            seed: the run's seed.
            show: pattern of the pictures that are printed.
            checks: each raises `CheckFailed` if it does not hold.
            results: of the summary; by default the entries.
        """
        current().images = lambda: (str(entry["image"]) for entry in self.entries)
        pattern = show.replace(".png", f".{self._output.format}")
        files = self.folder.files
        overviews = [name for name in files if name.startswith("overview")]
        matching = chain(overviews, (name for name in files if Path(name).match(pattern)))
        shown = [self.folder.path / name for name in islice(dict.fromkeys(matching), MOST_SHOWN)]
        ended: typer.Exit | None = None
        try:
            content = self.entries if results is ... else results
            self.finish(content, model=model, seed=seed, errors=self.errors, show=shown)
        except typer.Exit as error:
            ended = error
        finally:
            if self._index is not None and (self.folder.path / SUMMARY).exists():
                self._index.close()
        verdict = _verdict(checks)
        if ended is not None:
            if verdict is not None:
                say(f"cnnviz: {verdict}")
                current().verdict = verdict
            raise ended
        if verdict is not None:
            raise verdict


class _Records(Iterable[Entry]):
    """Entries as records, read anew each time."""

    def __init__(self, entries: list[dict[str, Any]] | Lines, kind: type[Entry]) -> None:
        self._entries, self._kind = entries, kind

    def __iter__(self) -> Iterator[Entry]:
        return (from_json(self._kind, entry) for entry in self._entries)


def _verdict(checks: Sequence[Callable[[], None]]) -> CheckFailed | None:
    """Combines all checks that do not hold into one error; None if all hold."""
    errors: list[CheckFailed] = []
    for check in checks:
        try:
            check()
        except CheckFailed as error:
            errors.append(error)
    if not errors:
        return None
    failed: dict[str, str] = {}
    for each in errors:
        for name, text in each.failed.items():
            failed[name] = f"{failed[name]}; {text}" if name in failed else text
    return CheckFailed("; ".join(map(str, errors)), failed)
