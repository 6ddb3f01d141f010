"""How a run ended, for those who are no people: JUnit, GitHub's annotations, JSON.

One `Outcome` stands for one command line. The command notes in it what it looks at; when it has
ended, whichever way, `close` tells everybody who listens.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError, one_line

ACTIONS, STEP_SUMMARY = "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"
EXTRA = "junit"
_MARKUP = frozenset("\\`*_[]<>|#!~&")


@dataclass
class Outcome:
    """One command line.

    Attributes:
        command: its name, once it is known.
        junit: the file that `--junit` names.
        json_lines: whether stderr carries JSON lines (`--progress json`).
        printed: whether stdout has its JSON document.
        images: the names of those that worked.
        errors: (input, message) of those that failed.
        verdict: a check that did not hold, though the run ends because of these errors.
        tables: title, columns and rows of the findings.
    """

    command: str = ""
    junit: Path | None = None
    json_lines: bool = False
    printed: bool = False
    images: Callable[[], Iterable[str]] = tuple
    errors: Sequence[tuple[str, str]] = ()
    verdict: CheckFailed | None = None
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = field(
        default_factory=list
    )

    def begin(self, command: str, junit: Path | None) -> None:
        """Notes what is run, and that its end is to be written to a file.

        Raises:
            UsageError: the file is something else's, or the package that writes it is missing.
        """
        self.command = command
        if junit is None:
            return
        from cnnviz.core.extras import required

        required("junitparser", "--junit", EXTRA)
        if junit.exists() and (junit.is_dir() or b"<testsuite" not in _beginning(junit)):
            raise UsageError(f"--junit {junit} is there and no JUnit report; name another file")
        self.junit = junit

    def close(self, status: int, message: str, error: BaseException | None) -> None:
        """Tells how it ended.

        Args:
            status: the exit status.
            message: what the user is told of a failure; empty where there is none.
            error: what broke it off.

        Raises:
            CnnvizError: the JUnit file cannot be written.
        """
        if isinstance(error, CheckFailed):
            self.verdict = error
        failed = dict(self.verdict.failed) if self.verdict else {}
        if os.environ.get(ACTIONS) == "true":
            for line in self._annotations(message, failed):
                print(line, file=sys.stderr)  # noqa: T201
        place = os.environ.get(STEP_SUMMARY)
        if place and (self.command or message):  # a command that runs another says nothing
            self._append_table(Path(place), status, message)
        if self.junit is not None:
            self._write_junit(self.junit, message, error, failed)

    def _annotations(self, message: str, failed: dict[str, str]) -> Iterable[str]:
        told = [*self.errors, *failed.items()]
        for name, text in told:
            yield f"::error file={_property(name)}::{_escaped(text)}"
        if message and not told:
            yield f"::error::{_escaped(message)}"

    def _append_table(self, place: Path, status: int, message: str) -> None:
        said = {0: "done", 3: "a check did not hold", 130: "interrupted"}.get(status, "failed")
        text = [f"### {_cell(f'cnnviz {self.command}'.strip())}: {said}", ""]
        text += [_cell(message), ""] if message else []
        for title, columns, rows in self.tables:
            text += [f"**{_cell(title)}**", "", _row(columns), "|---" * len(columns) + "|"]
            text += [*map(_row, rows), ""]
        text += [f"- {_cell(name)}: {_cell(told)}" for name, told in self.errors]
        try:
            with place.open("a", encoding="utf-8") as stream:
                stream.write("\n".join(text) + "\n")
        except OSError as error:
            print(f"{STEP_SUMMARY}: {one_line(error)}", file=sys.stderr)  # noqa: T201

    def _write_junit(
        self, path: Path, message: str, error: BaseException | None, failed: dict[str, str]
    ) -> None:
        from cnnviz.core.extras import required
        from cnnviz.core.output.run_folder import replace_file

        library: Any = required("junitparser", "--junit", EXTRA)
        suite = library.TestSuite(f"cnnviz {self.command}")

        def add(name: str, result: Any = None) -> None:
            case = library.TestCase(_clean(name), f"cnnviz.{self.command}")
            if result is not None:
                case.result = [result]
            suite.add_testcase(case)

        for image in self.images():
            add(image, library.Failure(_clean(failed.pop(image))) if image in failed else None)
        for name, text in failed.items():  # checks of something else than an image
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
    """Of the command line that is run."""
    found = _current.get(None)
    return Outcome() if found is None else found


@contextmanager
def listening() -> Iterator[Outcome]:
    """Makes an `Outcome` the current one for as long as the block runs."""
    outcome = Outcome()
    token = _current.set(outcome)
    try:
        yield outcome
    finally:
        _current.reset(token)


def print_error(stream: Any, message: str, status: int) -> None:
    """The one JSON document of a run that has no summary."""
    stream.write(json.dumps({"error": message, "exit": status}, ensure_ascii=False) + "\n")
    stream.flush()


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(500)
    except OSError as error:
        raise CnnvizError(f"--junit {path} cannot be read: {one_line(error)}") from error


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _escaped(text: str) -> str:
    """As GitHub's workflow commands want their message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _cell(value: object) -> str:
    """Text as a cell of a Markdown table: nothing in it is read as markup."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in text)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"
