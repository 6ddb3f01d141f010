"""A worker of a run with `--cluster`: a process that computes blocks of the images.

It runs the same command on the same record up to a pass over the data (`core/output/blocks.py`),
and keeps what it would do there. Then it does it for each block it is given. A later pass begins
with the results of earlier ones: the worker runs the command again, with these results in place.
"""

import contextvars
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnnviz.cli.ci_reports import listening
from cnnviz.cli.options import ClusterOptions
from cnnviz.core.data import datasets
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.extras import version
from cnnviz.core.models.load import Model
from cnnviz.core.output.blocks import Pass, pack, unpack


class _Reached(BaseException):
    """The command has come to a pass that is to be computed."""

    def __init__(self, step: Pass) -> None:
        super().__init__(step.name)
        self.step = step


@dataclass(frozen=True)
class Setting:
    """What a worker is started with: the command, the listed images, and where it runs."""

    record: Any = None
    data: ImageData | None = None
    folder: str = "."
    threads: int = 1
    on_cpu: bool = True


@dataclass
class Inside:
    """What a `Run` in a worker has in place of a cluster: results of earlier passes, and models."""

    data: ImageData | None = None
    known: dict[str, Path] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    def listed(self, _list: Callable[[], ImageData]) -> ImageData:
        """The images that the driver has listed."""
        assert self.data is not None  # noqa: S101
        return self.data

    def loaded(self, options: object, load: Callable[[], Model]) -> Model:
        """Loads a model, once."""
        key = repr(options)
        if key not in self.models:
            self.models[key] = load()
        return self.models[key]

    def spread(self, step: Pass, _root: Path) -> Sequence[Path]:
        """Returns the result of an earlier pass; ends the command at the one to compute."""
        if step.name in self.known:
            return [self.known[step.name]]
        raise _Reached(step)

    def close(self) -> None:
        """The worker keeps everything."""


INSIDE: contextvars.ContextVar[Inside | None] = contextvars.ContextVar("inside", default=None)


class Worker:
    """Computes blocks of the pass that its command has come to."""

    def __init__(self) -> None:
        self._run, self._setting, self._inside = "", Setting(), Inside()
        self._step: Pass | None = None
        self._context, self._open = contextvars.copy_context(), ExitStack()

    def ready(
        self, run: str, setting: Sequence[Any], name: str, known: Sequence[str], *results: bytes
    ) -> tuple[str, str, int] | CnnvizError:
        """Comes to a pass.

        Args:
            run: a name of the run, which differs from those of all others.
            setting: a reference to its `Setting`, which is fetched once.
            name: of the pass.
            known: names of the passes before it.
            results: of these.

        Returns:
            The host, the version of cnnviz, and the pass' batch; or a user's mistake.
        """
        try:
            if run != self._run:
                self._begin(run, setting[0])
            if self._step is None or self._step.name != name:
                self._context.run(self._open.close)
                self._context = contextvars.copy_context()
                given = dict(zip(known, results, strict=True))
                with tempfile.TemporaryDirectory(prefix="cnnviz-") as scratch:
                    self._step = self._context.run(self._come_to, Path(scratch), given)
            assert self._step.name == name, self._step.name  # noqa: S101
            return os.uname().nodename, version(), self._step.batch
        except CnnvizError as error:
            return error
        except OSError as error:
            return UsageError(
                f"a worker on {os.uname().nodename} cannot run the command: {one_line(error)}; "
                "files must have the same paths on all nodes"
            )

    def _begin(self, run: str, setting: Any) -> None:
        """Prepares for another run."""
        import ray
        import torch

        self._setting = ray.get(setting)
        os.chdir(self._setting.folder)
        torch.set_num_threads(self._setting.threads)
        datasets.MAX_WORKERS = self._setting.threads  # images that are decoded at a time
        self._run, self._inside, self._step = run, Inside(self._setting.data), None

    def block(self, start: int, stop: int) -> bytes | CnnvizError:
        """Computes the images of a block; returns the files of its folder."""
        step = self._step
        assert step is not None  # noqa: S101
        with tempfile.TemporaryDirectory(prefix="cnnviz-") as folder:
            try:
                part = step.data.within(range(start, stop))
                self._context.run(step.compute, part, Path(folder))
                return pack(Path(folder))
            except CnnvizError as error:
                return error

    def _come_to(self, scratch: Path, known: Mapping[str, bytes]) -> Pass:
        """Runs the command quietly in a folder, with the results of earlier passes."""
        from cnnviz.cli.signatures import start

        for name, content in known.items():
            self._inside.known[name] = scratch / f"pass-{name}"
            unpack(content, self._inside.known[name])

        record, setting = self._setting.record, self._setting
        output = replace(
            record.output, out=scratch / "out", quiet=True, json=False, junit=None, report=False
        )
        changes: dict[str, Any] = {"output": output, "cluster": ClusterOptions(), "resume": False}
        if setting.on_cpu and record.model.device == "auto":
            changes["model"] = replace(record.model, device="cpu")
        INSIDE.set(self._inside)
        self._open = ExitStack()
        self._open.enter_context(listening())  # what the command opens stays open
        try:
            start(replace(record, **changes))
        except _Reached as reached:
            return reached.step
        raise CnnvizError("the command ended before its pass over the data")
