"""What can go wrong by the user's doing; anything else is a bug and may crash loudly.

    CnnvizError          exit status 1: the run, or this input of it, failed
    ├── UsageError       exit status 2: the command line asks for something that does not exist
    └── CheckFailed      exit status 3: a check that the user asked for did not hold

A message is one line: the offending value, what is accepted, and the remedy.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

USER_CODE_ERRORS = (Exception, SystemExit)
"""What a user's code may raise when it is imported, called, or run with what it did not expect: its
own exceptions and `sys.exit()` too are its failure, not an end of ours."""


class CnnvizError(Exception):
    """The run, or one input of it, failed for a reason the user can do something about."""

    exit_status = 1


class UsageError(CnnvizError):
    """The request itself is wrong: an unknown name, a value out of range."""

    exit_status = 2


class CheckFailed(CnnvizError):  # noqa: N818 (not an error of the program: a verdict)
    """A `--min-…` check did not hold.

    Attributes:
        failed: the images that it did not hold for, and what is said of each; empty where it is of
            the whole run.
    """

    exit_status = 3

    def __init__(self, message: str, failed: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.failed: Mapping[str, str] = failed or {}


LONGEST = 300
"""Letters of what somebody else's error says; some quote a whole file."""


def one_line(error: BaseException) -> str:
    """What somebody else's error says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def located(error: BaseException) -> str:
    """Somebody else's error on one line: type, message, and the innermost file and line."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f" ({Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SyntaxError):
        place = ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like `name`, best first; the first few where none is alike."""
    names = list(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)
    return [lowered[match] for match in close] or names[:count]
