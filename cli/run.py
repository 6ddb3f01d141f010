"""One run of a command: its folder, its data, its time, and how it ends."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.console import Console, say
from cnnviz.cli.options import ModelOptions, OutputOptions
from cnnviz.cli.outcome import current
from cnnviz.core.choices import whole_number
from cnnviz.core.errors import UsageError

if TYPE_CHECKING:
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.data.shards import Shard
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.entries import Summary
    from cnnviz.core.output.run_folder import RunFolder

    Advance = Callable[[int], None]
    Study = Callable[
        [Path, WorkingImage, Advance], tuple[Mapping[str, Any], Callable[[RunFolder], None]]
    ]


def caption(command: str, model: str, weights_sha256: str) -> str:
    """What stands on figures: of which command, network and weights they are."""
    return f"cnnviz {command} · {model} · weights {weights_sha256[:12]}"


class Run:
    """One call of a command, from its start to its summary.

    Attributes:
        command: its name.
        console: what the terminal shows.
        caption: stands on every figure.
        folder: where the files go, once `open` was called.
    """

    folder: "RunFolder"

    def __init__(self, command: str, output: OutputOptions) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self.command, self._output = command, output
        self._inputs: Sequence[str | Path] = ()
        self.caption = f"cnnviz {command}"
        self.shard: Shard | None = None
        self.identity: Mapping[str, Any] = {}
        if output.report:
            from cnnviz.core.extras import required
            from cnnviz.report.options import EXTRA

            required("bokeh", "--report", EXTRA)
        self.console = Console(output)
        current().begin(command, output.junit)

    @property
    def root(self) -> Path:
        """The folder that `open` opens if it is given no other."""
        folder = self._output.folder(self.command)
        return folder / self.shard.name if self.shard else folder

    def take_share(self, asked: "Shard | None", images: int | None = None) -> None:
        """The share that is asked for, or that a launcher's variables tell; before the data.

        Args:
            asked: `--shard`.
            images: how many there are, if that is known; one alone is never shared unasked.

        Raises:
            UsageError: these variables make no sense.
        """
        from cnnviz.core.data.shards import of_environment

        told = of_environment(os.environ) if asked is None and images != 1 else None
        if told:
            asked, variable = told
            say(
                f"share {asked} of the images, as {variable} says; cnnviz merge joins them "
                "(everything: --shard 0/1)"
            )
        self.shard = asked if asked and asked.count > 1 else None

    def data(self, sources: Sequence[str], limit: int | None, seed: int) -> "ImageData":
        """Opens a data set; says so where `--limit` leaves images out."""
        from cnnviz.core.data.datasets import open_data

        found = open_data(sources, limit=limit, seed=seed)
        self._inputs = [*sources, *found.files]
        if len(found) < found.total:
            self.console.note(
                f"a sample of {len(found)} of the {found.total} images (--limit {limit})"
            )
        return found

    def load(self, options: ModelOptions, *, scores: bool = True) -> "Model":
        """The model that the options describe; says what was found out about it.

        Without `scores`, a network that has none is taken too.
        """
        loaded = self._placed(options).load(scores=scores)
        for note in loaded.notes:
            say(note)
        self.caption = caption(self.command, loaded.name, loaded.weights_sha256)
        return loaded

    def _placed(self, options: ModelOptions) -> ModelOptions:
        """On the GPU of this process, where a launcher started one for each."""
        rank = whole_number(os.environ.get("LOCAL_RANK", ""))
        if self.shard is None or rank is None or options.device != "auto":
            return options
        import torch

        if not torch.cuda.is_available():
            return options
        return replace(options, device=f"cuda:{rank % torch.cuda.device_count()}")

    def open(self, root: Path | None = None, *, resume: bool = False) -> "RunFolder":
        """Opens the folder.

        Raises:
            UsageError: it is not empty, and `--overwrite` was not given; or there is nothing to
                resume.
        """
        from cnnviz.core.output.run_folder import SUMMARY, RunFolder

        if resume and not self._output.overwrite and ((root or self.root) / SUMMARY).exists():
            raise UsageError(
                f"{root or self.root} holds a finished run: there is nothing to resume; "
                "use --overwrite to repeat it, or another folder with --out"
            )
        self.folder = RunFolder.open(
            root or self.root,
            overwrite=self._output.overwrite,
            resume=resume,
            within=self.root,
            inputs=self._inputs,
        )
        self.folder.figures = self._output.format
        self.folder.caption, self.folder.dark = self.caption, self._output.dark
        return self.folder

    def finish(
        self,
        results: object,
        *,
        model: "Model | None",
        seed: int,
        errors: Sequence[tuple[str, str]] = (),
        show: Sequence[Path] = (),
    ) -> None:
        """Writes the summary and names the pictures.

        Raises:
            typer.Exit: with status 1, when an input failed.
        """
        from cnnviz.core.output.run_folder import summary

        content = summary(
            self.command,
            model=model,
            seed=seed,
            elapsed_seconds=time.perf_counter() - self._started,
            results=results,
            files=self.folder.files,
            errors=errors,
        )
        if self._output.report:
            self._write_page(content)
        if self.shard:
            content["shard"] = {
                "number": self.shard.number,
                "count": self.shard.count,
                "of": dict(self.identity),
            }
        self.console.finish(self.folder, content, show=show)

    def _write_page(self, content: "Summary[object]") -> None:
        """Writes the page of this run, which the summary then lists."""
        from cnnviz.cli.report_runs import page_of_new
        from cnnviz.report.options import MEGABYTES, PAGE

        page, left_out = page_of_new(self.folder.path, content, MEGABYTES)
        for line in left_out:
            self.console.note(f"left out of {PAGE}: {line}")
        written = self.folder.write_bytes(PAGE, page.encode("utf-8", "replace"))
        content["files"] = list(self.folder.files)
        self.console.line(str(written))
