"""One run of a command: its folder, data, network and time, and how it ends."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

from cnnviz.cli.ci_reports import current
from cnnviz.cli.cluster import Cluster, cluster_of
from cnnviz.cli.console import Console, print_json, say
from cnnviz.cli.options import ModelOptions, OutputOptions
from cnnviz.cli.repeat import request
from cnnviz.core.choices import FigureFormat, whole_number
from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.shards import Shard, of_environment
from cnnviz.core.errors import UsageError
from cnnviz.core.models.boxes import Boxes
from cnnviz.core.models.files.checkpoints import file_sha256
from cnnviz.core.models.load import Model
from cnnviz.core.models.trained import BUNDLED
from cnnviz.core.output.blocks import Pass, delete
from cnnviz.core.output.mirrors import shown
from cnnviz.core.output.record import to_json
from cnnviz.core.output.run_folder import RunFolder, json_parts, summary
from cnnviz.core.output.style import style
from cnnviz.core.output.summary import Finding, random_mark
from cnnviz.report.options import MEGABYTES, PAGE

_PICTURES = tuple(f".{kind}" for kind in FigureFormat)


def caption(command: str, model: str, weights_sha256: str) -> str:
    """The caption of figures: command, network and weights."""
    return f"cnnviz {command} · {model} · weights {weights_sha256[:12]}"


def _choices(options: ModelOptions) -> str:
    """The options that say what a network's inputs and outputs are, with digests of their files."""
    files = [options.like] if options.like else []
    files += [Path(file) for _, file in options.inputs]
    function = Path((options.pick or "").rpartition(":")[0]).expanduser()
    files += [function] if function.is_file() else []
    said = (
        options.head, options.pick, options.threshold, options.like_layer, options.texts,
        options.inputs, options.cover, options.repeat, [file_sha256(file) for file in files],
    )  # fmt: skip
    return repr(said)


class Run:
    """One call of a command, from its start to its summary.

    Attributes:
        command: its name.
        console: what the terminal shows.
        caption: small text below every figure.
        shard: the share of the images, if there is one.
        cluster: where passes over the images are computed, if not in this process.
        identity: what the results depend on, if the command's journal is of lines.
        folder: where the files go, after `open`.
    """

    folder: RunFolder

    def __init__(self, command: str, output: OutputOptions) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()
        self.command, self._output = command, output
        self._inputs: Sequence[str | Path] = ()
        self.caption, self._mark = f"cnnviz {command}", ""
        self._notes: list[str] = []
        self.shard: Shard | None = None
        self.identity: Mapping[str, Any] = {}
        self.console = Console(output)
        self.cluster = cluster_of(current().given, self.console.note)
        if self.cluster is not None:
            current().at_end.callback(self.cluster.close)
        current().begin(command, output.junit)

    @property
    def root(self) -> Path:
        """The folder that `open` opens by default."""
        folder = self._output.folder(self.command)
        return folder / self.shard.name if self.shard else folder

    def take_share(self, requested: Shard | None, images: int | None = None) -> None:
        """Takes the requested share, or the one of a launcher's variables; call it before `data`.

        Args:
            requested: `--shard`.
            images: their number, if known; a single image is shared only on request.
        """
        single = requested is not None or images == 1 or self.cluster is not None
        launched = None if single else of_environment(os.environ)
        if launched:
            requested, variable = launched
            say(
                f"share {requested} of the images, according to {variable}; cnnviz merge joins "
                "them (everything: --shard 0/1)"
            )
        self.shard = requested if requested and requested.count > 1 else None

    def data(self, sources: Sequence[str], limit: int | None, seed: int) -> ImageData:
        """Opens a data set; prints a note if `--limit` leaves images out."""
        data = self.listed(partial(open_data, sources, limit=limit, seed=seed))
        self._inputs = [*sources, *data.files]
        if len(data) < data.total:
            self.console.note(
                f"a sample of {len(data)} of the {data.total} images (--limit {limit})"
            )
        return data

    def listed(self, lists: Callable[[], ImageData]) -> ImageData:
        """Lists images; a worker of a cluster takes those that the driver has listed."""
        return lists() if self.cluster is None else self.cluster.listed(lists)

    def spread(self, step: Pass) -> Sequence[Path] | None:
        """Computes a pass on the cluster; returns the folders of its blocks, None without one."""
        return None if self.cluster is None else self.cluster.spread(step, self.folder.path)

    def load(
        self,
        options: ModelOptions,
        *,
        scores: bool = True,
        features: bool = False,
        boxes: bool = False,
    ) -> Model:
        """Loads the model; `open` prints notes about it, as a mistake in the options is one line.

        Without `scores`, a network that has no class scores is accepted, too; with `features`, one
        whose weights hold no classifier; with `boxes`, a detector.

        Raises:
            UsageError: it is a detector, which the command does not take.
        """
        load = partial(self._placed(options).load, scores=scores, features=features)
        model = load() if self.cluster is None else self.cluster.loaded((options, scores), load)
        model = replace(model, choices=_choices(options))
        if isinstance(model.target, Boxes) and not boxes:
            raise UsageError(
                f"{model.name} returns boxes, which {self.command} does not take; cnnviz detect "
                "and cnnviz occlude --box do"
            )
        demo = model.name == BUNDLED and BUNDLED not in " ".join(sys.argv)
        if demo and not self._output.quiet:
            self._notes.append(
                "no --model: this is the demo network that ships with cnnviz, for pictures of "
                f"32 x 32 pixels ({', '.join(model.labels)}); for photographs: --model resnet18"
            )
        self._notes += model.notes
        self.caption = caption(self.command, model.name, model.weights_sha256)
        if model.random is not None:
            self.console.mark = self._mark = random_mark(model.random)
            self.caption += f" ({self._mark})"
        return model

    def _placed(self, options: ModelOptions) -> ModelOptions:
        """Selects the GPU of this process, if a launcher started one process for each."""
        rank = whole_number(os.environ.get("LOCAL_RANK", ""))
        if self.shard is None or rank is None or options.device != "auto":
            return options
        if not torch.cuda.is_available():
            return options
        return replace(options, device=f"cuda:{rank % torch.cuda.device_count()}")

    def open(self, root: Path | None = None, *, resume: bool = False) -> RunFolder:
        """Opens the folder."""
        self.folder = RunFolder.open(
            root or self.root,
            overwrite=self._output.overwrite,
            resume=resume,
            within=self.root,
            inputs=self._inputs,
        )
        for note in self._notes:
            say(note)
        self._notes.clear()
        self.folder.figures = self._output.format
        self.folder.caption, self.folder.mark = self.caption, self._mark
        current().at_end.enter_context(style(dark=self._output.dark, width=self._output.width))
        return self.folder

    def finish(
        self,
        results: object,
        *,
        model: Model | None,
        seed: int,
        errors: Sequence[tuple[str, str]] = (),
        show: Sequence[Path] = (),
    ) -> None:
        """Writes the summary, and prints it or the paths.

        Args:
            results: the command's own part of the summary, as plain data.
            model: the network; None for commands without one.
            seed: the run's seed.
            errors: (input, message) of the inputs that failed.
            show: pictures to open first; all that were written, if empty.
        """
        content = summary(
            self.command,
            model=model,
            seed=seed,
            elapsed_seconds=time.perf_counter() - self._started,
            results=results,
            files=self.folder.files,
            errors=errors,
        )
        content["findings"] = [
            to_json(Finding(title, tuple(columns), tuple(tuple(map(str, row)) for row in rows)))
            for title, columns, rows in current().tables
        ]
        reported = errors
        if isinstance(self.cluster, Cluster):
            content["cluster"] = to_json(self.cluster.record())
            reported = self.cluster.reported(errors)
        if self._output.report:
            self._write_page(content)
        if self.shard:
            content["shard"] = {
                "number": self.shard.number,
                "count": self.shard.count,
                "of": dict(self.identity),
                "request": request(current().given),
            }
        written = self.folder.finish(content)
        if isinstance(self.cluster, Cluster):
            self.cluster.end(self.folder.path)
        else:
            delete(self.folder.path)  # of a run on a cluster that was not finished
        current().errors = reported
        if self._output.json:
            print_json(json_parts(content))
        files = self.folder.files
        pictures = [self.folder.path / name for name in files if name.endswith(_PICTURES)]
        for path in [*(show or pictures), written]:
            self.console.line(shown(path))
        for _, message in reported:
            say(f"cnnviz: {message}")
        if reported:
            raise typer.Exit(1)

    def _write_page(self, content: Any) -> None:
        """Writes the run's report page, and lists it in the summary."""
        from cnnviz.cli.report_runs import page_of_new

        page, left_out = page_of_new(self.folder.path, content, MEGABYTES)
        for line in left_out:
            self.console.note(f"left out of {PAGE}: {line}")
        written = self.folder.write_bytes(PAGE, page.encode("utf-8", "replace"))
        content["files"] = list(self.folder.files)
        self.console.line(shown(written))
