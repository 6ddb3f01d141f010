"""The terminal: progress and messages on stderr, results on stdout.

With `--json` stdout carries only the summary; `--quiet` silences progress and tables. Text from
users (labels, file names) is printed with control characters replaced, never read as markup.
"""

import logging
import os
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from cnnviz.cli.ci_reports import current
from cnnviz.cli.options import OutputOptions
from cnnviz.core.choices import typeset
from cnnviz.core.errors import one_line
from cnnviz.core.files import well_formed

_EMPTY, _PERCENT = ("", "-", "None"), re.compile(r"(?<=\d)%")
PLAIN_STEPS = 4
PIPED_WIDTH = 140
_CI_COMMAND = re.compile(r"##(?=\w*\[)")
_STDOUT, _STDERR = 1, 2  # file descriptors
_LIBRARIES = (
    *(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)


_findings: ContextVar[TextIO | None] = ContextVar("findings", default=None)


def findings() -> TextIO:
    """The stream for the summary and the tables: stdout as it was when the program started."""
    return _findings.get() or sys.stdout


@contextmanager
def stdout_kept() -> Iterator[None]:
    """Reserves stdout for results: everything else that is printed to it goes to stderr.

    That is output of the user's Python code, and, if stdout is the process's, of C code and of
    other processes.
    """
    if _findings.get() is not None:  # a command that runs another
        yield
        return
    with ExitStack() as stack:
        stream = stack.enter_context(_own_stdout()) if _is_process_stdout() else sys.stdout
        token = _findings.set(stream)
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
    """Yields a stream to the former stdout; its descriptor leads to stderr meanwhile."""
    sys.stdout.flush()
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    with os.fdopen(os.dup(_STDOUT), "w", encoding=encoding, errors=errors) as stream:
        os.dup2(_STDERR, _STDOUT)
        try:
            yield stream
        finally:
            stream.flush()
            os.dup2(stream.fileno(), _STDOUT)


def printable(text: object) -> str:
    """Replaces what would control the terminal, or the CI system that reads its lines.

    Those are control characters, and `##[command]` or `##vso[command]` anywhere in a line.
    """
    shown = "".join(c if c.isprintable() else "\ufffd" for c in str(text))
    return _CI_COMMAND.sub("# #", shown)


def print_json(parts: Iterable[str]) -> None:
    """Prints a JSON document to stdout; in its strings, `##` is escaped as in `printable`."""
    findings().writelines(well_formed(part).replace("##", "#\\u0023") for part in parts)
    findings().flush()
    current().printed = True


def say(message: str) -> None:
    """Prints a line to stderr."""
    print(printable(message), file=sys.stderr)  # noqa: T201


@cache
def show_warnings() -> None:
    """Prints warnings of the analyses as lines on stderr from now on."""
    handler = logging.Handler()
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("cnnviz").addHandler(handler)


@contextmanager
def libraries_silenced() -> Iterator[None]:
    """Drops warnings and log lines of libraries while the block runs; a user's are printed."""

    def heard(path: str, text: str) -> None:
        if path.endswith(".py") and not path.startswith(_LIBRARIES):
            say(f"{Path(path).name}: {text}")

    def show(message: Any, category: Any, filename: str, *_more: object) -> None:
        heard(filename, f"{category.__name__}: {one_line(Warning(message))}")

    handler, before = logging.Handler(logging.WARNING), logging.lastResort
    handler.emit = lambda record: heard(record.pathname, record.getMessage())  # type: ignore[method-assign]
    with warnings.catch_warnings():
        show_all: Any = show
        warnings.showwarning, logging.lastResort = show_all, handler
        try:
            yield
        finally:
            logging.lastResort = before


class Console:
    """What one command prints."""

    def __init__(self, output: OutputOptions) -> None:
        self._output, self.mark = output, ""
        self._out = RichConsole(file=findings(), highlight=False, width=_width())
        self._err = RichConsole(stderr=True, highlight=False)
        self._shows_findings = not (output.quiet or output.json)

    def note(self, message: str) -> None:
        """Prints a line that needs no action; silent under `--quiet`."""
        if not self._output.quiet:
            say(message)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Shows a progress bar, or plain lines if stderr is not a terminal.

        More than `total` steps are counted, too: how many there will be is then unknown.

        Yields:
            A function to call with the number of steps just done.
        """
        if self._output.quiet:
            yield lambda _steps: None
        elif self._err.is_terminal:
            yield from self._bar(what, total, unit)
        else:
            yield self._lines(what, total, unit)

    def _bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit} {{task.fields[rate]}}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(printable(what), total=total, rate="")
            began, done = time.monotonic(), 0

            def advance(steps: int) -> None:
                nonlocal done
                done += steps
                if done > total:  # how many more is not known
                    bar.tasks[task].total = None
                rate = f"{done / (time.monotonic() - began + 1e-9):.3g}/s" if unit else ""
                bar.update(task, advance=steps, rate=rate)

            yield advance

    def _lines(self, what: str, total: int, unit: str) -> Callable[[int], None]:
        done = shown = 0
        began = time.monotonic()

        def advance(steps: int) -> None:
            nonlocal done, shown
            done += steps
            quarter = PLAIN_STEPS * done // max(total, 1)
            if quarter > shown:
                shown = quarter
                each = (time.monotonic() - began) / max(done, 1) + 1e-9
                pace = f" ({1 / each:.3g}/s, {each * (total - done):.0f} s left)" if unit else ""
                known = str(total) if done <= total else "?"
                say(f"{what}: {done}/{known} {unit}".rstrip() + pace)

        return advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Prints a table without its empty rows and columns; numbers are aligned to the right."""
        title += f" ({self.mark})" if self.mark else ""
        cells = [[_PERCENT.sub(" %", str(cell)) for cell in row] for row in rows]
        rows = [row for row in cells if any(cell not in _EMPTY for cell in row[1:])] or cells
        kept = [k for k in range(len(columns)) if any(row[k] not in _EMPTY for row in rows)]
        columns = [columns[k] for k in kept] if kept else columns
        rows = [[row[k] for k in kept] for row in rows] if kept else rows
        current().tables.append((title, columns, rows))
        if not self._shows_findings:
            return
        self._out.print(Text(printable(typeset(title)), style="italic"), soft_wrap=True)
        table = Table()
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(_is_numeric(row[index]) for row in rows)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*[Text(printable(typeset(str(cell)))) for cell in row])
        self._out.print(table)

    def sentence(self, text: str) -> None:
        """Prints a line of the findings, which the summary and pages have, too."""
        current().tables.append((text, (), ()))
        self.line(typeset(text))

    def line(self, text: str) -> None:
        """Prints a line of the results."""
        if self._shows_findings:
            self._out.print(Text(printable(text)), soft_wrap=True)


def _width() -> int | None:
    """The width of tables in a pipe or file; None for the width of the terminal or of COLUMNS."""
    if findings().isatty() or "COLUMNS" in os.environ:
        return None
    return PIPED_WIDTH


def _is_numeric(cell: object) -> bool:
    """Whether it is empty or a number, perhaps a bound (`<0.001`), with a unit (`95 %`, `1.2M`)."""
    text = str(cell).lstrip("<>").rstrip("%kMGTP").strip()
    try:
        float(text)
    except ValueError:
        return text in ("", "-")
    return True
