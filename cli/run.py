"""What commands share that take images one by one: a run folder, and a folder in it for each image.

The command brings a study: it looks at one working image and returns what `summary.json` says of it
and how its files are written. An image that cannot be read or studied is noted; the rest goes on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.console import Console
from cnnviz.cli.options import OutputOptions
from cnnviz.core.errors import CnnvizError

if TYPE_CHECKING:
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder

    Advance = Callable[[int], None]
    Study = Callable[
        [Path, WorkingImage, Advance], tuple[dict[str, Any], Callable[[RunFolder], None]]
    ]


class ImageRun:
    """The images of one call, one after the other.

    Attributes:
        folder: where the run's files go: `<out>/<stem>` for one image, `<out>` for several.
        entries: what the summary says of each image that worked, with its `folder`.
    """

    def __init__(self, command: str, paths: Sequence[Path], output: OutputOptions) -> None:
        """Opens the folder.

        Raises:
            UsageError: it is not empty, and `--overwrite` was not given.
        """
        from cnnviz.core.output.run_folder import RunFolder, safe_name

        self._command, self._paths = command, paths
        out = output.folder(command)
        self._alone = len(paths) == 1
        root = out / safe_name(paths[0].stem) if self._alone else out
        self.folder = RunFolder.open(root, overwrite=output.overwrite)
        self.entries: list[dict[str, Any]] = []
        self._errors: list[tuple[str, str]] = []

    def study(
        self, console: Console, what: str, model: "Model", study: "Study", steps: int
    ) -> None:
        """Reads, studies and writes every image under one progress bar.

        Args:
            console: shows the bar.
            what: the bar's text.
            model: for its preprocessing.
            study: called with the path, the working image and a function that takes steps done.
            steps: how many steps an image takes.
        """
        with console.progress(what, steps * len(self._paths)) as advance:
            for path in self._paths:
                done = self._one(path, model, study, advance)
                advance(steps - done)

    def _one(self, path: Path, model: "Model", study: "Study", advance: "Advance") -> int:
        from cnnviz.core.data.images import read_image

        done = 0

        def progress(steps: int) -> None:
            nonlocal done
            done += steps
            advance(steps)

        try:
            entry, write = study(path, read_image(path, model.preprocess), progress)
            target = self.folder if self._alone else self.folder.subfolder(path.stem)
            write(target)
        except CnnvizError as error:
            self._errors.append((str(path), str(error)))
        else:
            relative = target.path.relative_to(self.folder.path).as_posix()
            self.entries.append(entry | {"folder": relative})
        return done

    def finish(
        self, console: Console, model: "Model", *, seed: int, seconds: float, show: str
    ) -> None:
        """Writes the summary and names the pictures whose file names match the pattern `show`.

        Raises:
            typer.Exit: with status 1, when an image failed.
        """
        from cnnviz.core.output.run_folder import summary

        content = summary(
            self._command,
            model=model,
            seed=seed,
            elapsed_seconds=seconds,
            results=self.entries,
            files=self.folder.files,
            errors=self._errors,
        )
        shown = [self.folder.path / name for name in self.folder.files if Path(name).match(show)]
        console.finish(self.folder, content, show=shown)
