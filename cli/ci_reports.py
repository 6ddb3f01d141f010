"""Machine-readable run results: JUnit, GitHub annotations and summaries, errors as JSON.

One `Outcome` belongs to one command line. The command notes in it what it studies; when the command
has ended, however it ends, `close` writes the reports.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError, one_line
from cnnviz.core.extras import required
from cnnviz.core.files import replace_file

ACTIONS, STEP_SUMMARY = "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"
EXTRA = "junit"
_MARKUP = frozenset("\\`*_[]<>|#!~&")


@dataclass
class Outcome:
    """The outcome of one command line.

    Attributes:
        command: its name, once known.
        given: the record of the command, once it is parsed.
        junit: the file of `--junit`.
        printed: whether stdout has its JSON document.
        interrupted: whether a command that it ran was interrupted, and has reported so.
        images: returns the names of the images that worked.
        errors: (input, message) of the inputs that failed.
        verdict: a check that does not hold, although the run ends because of the errors.
        tables: title, columns and rows of each table; a sentence has no columns.
        at_end: closed when the command has ended.
    """

    command: str = ""
    given: Any = None
    junit: Path | None = None
    printed: bool = False
    interrupted: bool = False
    images: Callable[[], Iterable[str]] = tuple
    errors: Sequence[tuple[str, str]] = ()
    verdict: CheckFailed | None = None
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = field(
        default_factory=list
    )
    at_end: ExitStack = field(default_factory=ExitStack)

    def begin(self, command: str, junit: Path | None) -> None:
        """Notes the command, and the file to write; refuses a file that is not a JUnit report."""
        self.command = command
        if junit is None:
            return
        required("junitparser", "--junit", EXTRA)
        if junit.exists() and (not junit.is_file() or b"<testsuite" not in _beginning(junit)):
            raise UsageError(f"--junit {junit} exists and is not a JUnit report; name another file")
        self.junit = junit

    def close(self, status: int, message: str, error: BaseException | None) -> None:
        """Writes all reports.

        Args:
            status: the exit status.
            message: the error message; empty if there is none.
            error: what ended the command.
        """
        if isinstance(error, CheckFailed):
            self.verdict = error
        failed = dict(self.verdict.failed) if self.verdict else {}
        if os.environ.get(ACTIONS) == "true":
            for line in self._annotations(message, failed):
                print(line, file=sys.stderr)  # noqa: T201
        summary = os.environ.get(STEP_SUMMARY)
        if summary and (self.command or message):  # a command that runs another reports nothing
            self._append_tables(Path(summary), status, message)
        if self.junit is not None:
            self._write_junit(self.junit, message, error, failed)

    def _annotations(self, message: str, failed: dict[str, str]) -> Iterable[str]:
        reported = [*self.errors, *failed.items()]
        for name, text in reported:
            yield f"::error file={_property(name)}::{_escaped(text)}"
        if message and not reported:
            yield f"::error::{_escaped(message)}"

    def _append_tables(self, summary: Path, status: int, message: str) -> None:
        end = {0: "done", 3: "a check did not hold", 130: "interrupted"}.get(status, "failed")
        text = [f"### {_cell(f'cnnviz {self.command}'.strip())}: {end}", ""]
        text += [_cell(message), ""] if message else []
        for title, columns, rows in self.tables:
            text += [f"**{_cell(title)}**" if columns else _cell(title), ""]
            if columns:
                text += [_row(columns), "|---" * len(columns) + "|", *map(_row, rows), ""]
        text += [f"- {_cell(name)}: {_cell(reason)}" for name, reason in self.errors]
        try:
            with summary.open("a", encoding="utf-8") as stream:
                stream.write("\n".join(text) + "\n")
        except OSError as error:
            print(f"{STEP_SUMMARY}: {one_line(error)}", file=sys.stderr)  # noqa: T201

    def _write_junit(
        self, path: Path, message: str, error: BaseException | None, failed: dict[str, str]
    ) -> None:
        library: Any = required("junitparser", "--junit", EXTRA)
        suite = library.TestSuite(f"cnnviz {self.command}")

        def add(name: str, result: Any = None) -> None:
            case = library.TestCase(_clean(name), f"cnnviz.{self.command}")
            if result is not None:
                case.result = [result]
            suite.add_testcase(case)

        for image in self.images():
            add(image, library.Failure(_clean(failed.pop(image))) if image in failed else None)
        for name, text in failed.items():  # checks of something other than an image
            add(name, library.Failure(_clean(text)))
        for name, text in self.errors:
            add(name, library.Error(_clean(text)))
        if self.verdict is not None and not self.verdict.failed:
            add(self.command, library.Failure(_clean(str(self.verdict))))
        elif error is not None and self.verdict is None:
            add(self.command, library.Error(_clean(message)))
        elif not list(suite):
            add(self.command)
        report = library.JUnitXml()
        report.add_testsuite(suite)
        report.update_statistics()
        replace_file(path, lambda stream: stream.write(report.tostring()))


_current: ContextVar[Outcome] = ContextVar("outcome")


def current() -> Outcome:
    """The outcome of the command line that is running."""
    outcome = _current.get(None)
    return Outcome() if outcome is None else outcome


@contextmanager
def listening() -> Iterator[Outcome]:
    """Makes an `Outcome` the current one while the block runs."""
    outcome = Outcome()
    token = _current.set(outcome)
    try:
        with outcome.at_end:
            yield outcome
    finally:
        _current.reset(token)


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(500)
    except OSError as error:
        raise CnnvizError(f"--junit {path} cannot be read: {one_line(error)}") from error


def _clean(text: str) -> str:
    """Replaces characters that XML cannot hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _escaped(text: str) -> str:
    """Escapes the message of a GitHub workflow command."""
    return text.replace("##", "# #").replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _cell(value: object) -> str:
    """A cell of a Markdown table, in which nothing is read as markup."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in text)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"
