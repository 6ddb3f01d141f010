"""Exit codes, and the errors that the user can correct; anything else is a bug and may crash.

    0                    done
    CnnvizError          exit status 1: the run, or this input of it, failed
    ├── UsageError       exit status 2: the command line asks for something that does not exist
    └── CheckFailed      exit status 3: a check that the user requested failed
    INTERRUPTED          exit status 130: Ctrl-C

A message is one line: the offending value, what is accepted, and the remedy.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

INTERRUPTED = 130
USER_CODE_ERRORS = (Exception, SystemExit)
"""What a user's code may raise when it is imported or called: its exceptions, and `sys.exit()`,
which is its failure, not the end of our run."""


class CnnvizError(Exception):
    """The run, or one input of it, failed for a reason that the user can correct."""

    exit_status = 1


class UsageError(CnnvizError):
    """The request itself is wrong: an unknown name, a value out of range."""

    exit_status = 2


class CheckFailed(CnnvizError):  # noqa: N818 (not an error of the program: a verdict)
    """A `--min-…` check failed.

    Attributes:
        failed: a message for each image that failed it; empty if it concerns the whole run.
    """

    exit_status = 3

    def __init__(self, message: str, failed: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failed: Mapping[str, str] = failed or {}


LONGEST = 300
"""Maximum length of another library's message; some quote a whole file."""


def one_line(error: BaseException) -> str:
    """Another library's error message on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def located(error: BaseException) -> str:
    """An error of the user's code on one line: type, message, and the innermost file and line."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        place = ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


SIMILAR = 0.5
"""Least similarity of names that are offered in place of a wrong one, 0 to 1."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most similar to `name`, best first; the first few if none is similar."""
    names = list(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=SIMILAR)
    return [lowered[match] for match in close] or names[:count]
