"""What the terminal shows: progress and messages on stderr, findings on stdout.

With `--json` stdout carries the summary alone; `--quiet` silences progress and tables. Text from
users (labels, file names) is shown with its control characters replaced, never read as markup.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.console import Console as RichConsole
from rich.table import Table
from rich.text import Text

from cnnviz.cli.options import OutputOptions, ProgressForm
from cnnviz.cli.outcome import current
from cnnviz.core.choices import FigureFormat

if TYPE_CHECKING:
    from cnnviz.core.output.run_folder import RunFolder

PLAIN_STEPS = 4
MOMENT = 0.5
"""Seconds between two JSON lines of progress."""
PIPED_WIDTH = 140
_PICTURES = tuple(f".{kind}" for kind in FigureFormat)
_STDOUT, _STDERR = 1, 2  # file descriptors


_findings: ContextVar[TextIO | None] = ContextVar("findings", default=None)


def findings() -> TextIO:
    """The program's own stdout, for the summary and the tables."""
    return _findings.get() or sys.stdout


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Keeps stdout for the findings: what else is printed meanwhile goes to stderr.

    That is what the user's Python prints, and, where stdout is the process's own, what C code and
    other processes do.
    """
    if _findings.get() is not None:  # a command that runs another
        yield
        return
    with ExitStack() as stack:
        own = stack.enter_context(_own_stdout()) if _is_process_stdout() else sys.stdout
        token = _findings.set(own)
        stack.callback(_findings.reset, token)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _is_process_stdout() -> bool:
    try:
        return sys.stdout.fileno() == _STDOUT
    except (AttributeError, OSError, ValueError):
        return False


@contextmanager
def _own_stdout() -> Iterator[TextIO]:
    """A stream to where stdout went; the descriptor itself leads to stderr for a while."""
    sys.stdout.flush()
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    with os.fdopen(os.dup(_STDOUT), "w", encoding=encoding, errors=errors) as own:
        os.dup2(_STDERR, _STDOUT)
        try:
            yield own
        finally:
            own.flush()
            os.dup2(own.fileno(), _STDOUT)


def printable(text: object) -> str:
    """Text with control characters replaced, so that a file name cannot drive the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def say(message: str) -> None:
    """One line on stderr; of JSON with `--progress json`."""
    shown = printable(message)
    if current().json_lines:
        shown = json.dumps({"message": shown}, ensure_ascii=False)
    print(shown, file=sys.stderr)  # noqa: T201


@cache
def show_warnings() -> None:
    """From now on the lower floors' warnings are lines on stderr, shown as everything else is."""
    import logging

    handler = logging.Handler()
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("cnnviz").addHandler(handler)


class Console:
    """One command's way to its user."""

    def __init__(self, output: OutputOptions) -> None:
        self._output = output
        self._out = RichConsole(file=findings(), highlight=False, width=_width())
        self._err = RichConsole(stderr=True, highlight=False)
        self._shows_findings = not (output.quiet or output.json)
        current().json_lines |= output.progress is ProgressForm.JSON

    def note(self, message: str) -> None:
        """A line that the user should know of but need not act on; silent under `--quiet`."""
        if not self._output.quiet:
            say(message)

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar with the time left; plain lines where stderr is no terminal.

        Yields:
            A function to call with the number of steps just done.
        """
        if self._output.quiet:
            yield lambda _steps: None
        elif current().json_lines:
            yield self._json_lines(what, total)
        elif self._err.is_terminal:
            yield from self._bar(what, total)
        else:
            yield self._lines(what, total)

    def _bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(printable(what), total=total)
            yield lambda steps: bar.update(task, advance=steps)

    def _json_lines(self, what: str, total: int) -> Callable[[int], None]:
        began = time.monotonic()
        done, shown = 0, began

        def advance(steps: int) -> None:
            nonlocal done, shown
            done, now = done + steps, time.monotonic()
            if now - shown >= MOMENT or done == total:
                shown = now
                line = {"progress": what, "done": done, "total": total}
                said = json.dumps({**line, "seconds": round(now - began, 3)}, ensure_ascii=False)
                print(said, file=sys.stderr, flush=True)  # noqa: T201

        return advance

    def _lines(self, what: str, total: int) -> Callable[[int], None]:
        done = shown = 0

        def advance(steps: int) -> None:
            nonlocal done, shown
            done += steps
            quarter = PLAIN_STEPS * done // max(total, 1)
            if quarter > shown:
                shown = quarter
                say(f"{what}: {done}/{total}")

        return advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """The findings in short; numbers stand to the right."""
        current().tables.append((title, columns, rows))
        if not self._shows_findings:
            return
        self._out.print(Text(printable(title), style="italic"), soft_wrap=True)
        table = Table()
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(_is_numeric(row[index]) for row in rows)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*[Text(printable(cell)) for cell in row])
        self._out.print(table)

    def line(self, text: str) -> None:
        """One line among the findings."""
        if self._shows_findings:
            self._out.print(Text(printable(text)), soft_wrap=True)

    def finish(
        self, folder: "RunFolder", content: Mapping[str, Any], show: Sequence[Path] = ()
    ) -> None:
        """Writes the summary, prints it or the paths, and ends with status 1 if inputs failed.

        Args:
            folder: the run's folder, all its files written.
            content: what `core.output.run_folder.summary` made.
            show: the pictures worth opening first; all written PNGs if empty.

        Raises:
            typer.Exit: with status 1, when `content["errors"]` is not empty.
        """
        from cnnviz.core.output.run_folder import json_parts

        written = folder.finish(content)
        current().errors = [(error["input"], error["message"]) for error in content["errors"]]
        if self._output.json:
            findings().writelines(json_parts(content))
            current().printed = True
        pictures = list(show) or [folder.path / n for n in folder.files if n.endswith(_PICTURES)]
        for path in [*pictures, written]:
            self.line(str(path))
        for error in content["errors"]:
            say(f"cnnviz: {error['message']}")
        if content["errors"]:
            raise typer.Exit(1)


def _width() -> int | None:
    """The terminal's or the user's own; where nobody looks (a pipe, a file), enough for tables."""
    if findings().isatty() or "COLUMNS" in os.environ:
        return None
    return PIPED_WIDTH


def _is_numeric(cell: object) -> bool:
    text = str(cell).removesuffix("%").removesuffix("%").strip()
    try:
        float(text)
    except ValueError:
        return text in ("", "-")
    return True
