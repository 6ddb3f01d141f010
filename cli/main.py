"""The `cnnviz` program: its commands, and how every way of failing ends.

A user's mistake is one line on stderr and an exit status (`core.errors`); anything else is a bug
and shows its traceback.
"""

import _thread
import gc
import io
import json
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from types import FrameType
from typing import Annotated, Any

import typer

from cnnviz.cli.ci_reports import current, listening
from cnnviz.cli.commands.datasets import AblateCommand, AuditCommand, MaxPatchesCommand, TsneCommand
from cnnviz.cli.commands.images import (
    ActivationsCommand,
    DetectCommand,
    OccludeCommand,
    ReasonsCommand,
    RenderCommand,
    SaliencyCommand,
    TrustCommand,
)
from cnnviz.cli.commands.networks import FiltersCommand, LayersCommand, ModelsCommand
from cnnviz.cli.commands.runs import (
    DiffCommand,
    DoctorCommand,
    MergeCommand,
    ReportCommand,
    RerunCommand,
)
from cnnviz.cli.console import libraries_silenced, print_json, say, show_warnings, stdout_kept
from cnnviz.cli.signatures import Grouped, Program, expand, name_of, parsed_only, start
from cnnviz.core.errors import INTERRUPTED, CnnvizError, UsageError, located
from cnnviz.core.extras import version

SHOWN = 300
LONGEST = 2_000
"""Maximum characters of a message, which may quote an argument."""
_MOMENT = 0.02  # seconds
# Typer brings its own copy of Click from some version on; both name the base of their errors alike.
UsageMistake: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)

TRY = """\b
Try:
  cnnviz occlude dog.jpg --model resnet18        what carries the prediction?
  cnnviz max-patches photos/ --model resnet18    what drives each filter?
  cnnviz trust dog.jpg --model resnet18          how far can you trust it?
  cnnviz reasons dog.jpg --model resnet18        how many reasons has it?

Without --model, cnnviz uses the small network that ships with it."""

app = typer.Typer(
    name="cnnviz",
    cls=Program,
    help="See what a convolutional network has learned and where it looks.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=TRY,
    context_settings={"help_option_names": ["-h", "--help"]},
)
RECORDS: dict[str, type] = {
    name_of(command): command
    for command in (
        OccludeCommand,
        SaliencyCommand,
        ReasonsCommand,
        TrustCommand,
        ActivationsCommand,
        DetectCommand,
        RenderCommand,
        LayersCommand,
        FiltersCommand,
        ModelsCommand,
        MaxPatchesCommand,
        AblateCommand,
        TsneCommand,
        AuditCommand,
        ReportCommand,
        DiffCommand,
        MergeCommand,
        RerunCommand,
        DoctorCommand,
    )
}
COMMANDS = {name: expand(command) for name, command in RECORDS.items()}


def _keeping_stdout(command: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(command)
    def kept(*args: object, **options: object) -> object:
        show_warnings()
        with stdout_kept(), libraries_silenced():
            return command(*args, **options)

    return kept


for _name, _command in COMMANDS.items():
    app.command(_name, cls=Grouped)(_keeping_stdout(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cnnviz {version()}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """See what a convolutional network has learned and where it looks."""


@contextmanager
def _interruptions_kept() -> Iterator[list[int]]:
    """Repeats an interruption that arrived in a finaliser or callback, where Python drops it.

    Yields the interruptions so far, as some libraries turn them into other errors.
    """
    before, came = sys.unraisablehook, list[int]()

    def noted(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def again(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt):
            threading.Timer(_MOMENT, _thread.interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = again
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, noted)
    try:
        yield came
    finally:
        sys.unraisablehook = before
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _called_with(arguments: Sequence[str]) -> Iterator[None]:
    """Sets the arguments that summaries record."""
    before = sys.argv
    sys.argv = [before[0] if before else "cnnviz", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def parse(arguments: Sequence[str]) -> Any:
    """Returns the record of a command line, without running it."""
    try:
        with parsed_only(), redirect_stdout(io.StringIO()):
            record = app(list(arguments), prog_name="cnnviz", standalone_mode=False)
    except UsageMistake as error:
        raise UsageError(getattr(error, "format_message", error.__str__)()) from error
    if not hasattr(record, "__dataclass_fields__"):
        raise UsageError(f"'{shlex.join(arguments)[:SHOWN]}' does not run a command")
    return record


def run(arguments: Sequence[str], record: object = None) -> int:
    """Runs one command line; returns the exit status.

    0 done, 1 failed in part or whole, 2 wrong usage, 3 a check did not hold, 130 interrupted.

    Args:
        arguments: the command line, which the summary records.
        record: the same, parsed and changed; what runs if it is given.
    """
    given, caller = list(arguments) or ["--help"], current()
    with listening() as outcome:
        status, message, error = _ended(given, record)
        if message and not outcome.interrupted:
            say(f"cnnviz: {message if len(message) <= LONGEST else message[:LONGEST] + '…'}")
        caller.interrupted = status == INTERRUPTED
        if status and not outcome.printed and "--json" in given:
            content = {"error": message or f"exit status {status}", "exit": status}
            print_json([json.dumps(content, ensure_ascii=False) + "\n"])
        try:
            outcome.close(status, message, error)
        except CnnvizError as failure:
            say(f"cnnviz: {failure}")
            status = status or failure.exit_status
    return status


def _ended(given: list[str], record: object) -> tuple[int, str, BaseException | None]:
    """Runs a command line; returns exit status, message and the error that ended it."""
    try:
        with _interruptions_kept() as came, _called_with(given):
            try:
                status = _status(given, record)
                if status == INTERRUPTED or (came and status):  # an image failed because of it
                    raise KeyboardInterrupt
                return status, "", None
            except Exception as error:
                if came:  # a library turned the interruption into this error
                    raise KeyboardInterrupt from error
                raise
    except CnnvizError as error:
        return error.exit_status, str(error), error
    except OSError as error:  # from a file name or the disk
        named = f": '{str(error.filename)[:SHOWN]}'" if error.filename else ""
        return 1, f"{error.strerror or error}{named}", error
    except (KeyboardInterrupt, typer.Abort):
        whole = "interrupted; written files are complete, but there is no summary"
        return INTERRUPTED, whole, None
    except UsageMistake as error:
        message = getattr(error, "format_message", error.__str__)()
        message = message.replace("Value error, ", "")  # added by pydantic
        command = getattr(getattr(error, "ctx", None), "command_path", "cnnviz")
        return 2, f"{message} ({command} --help)", error
    except BaseException as error:
        if isinstance(error, Exception | SystemExit | GeneratorExit):
            raise  # a bug, or a requested exit
        return 1, f"the network's code raised {located(error)}", error


def _status(given: list[str], record: object) -> int:
    """Runs a command line, or its record; `typer.Exit` becomes a status, as Typer does it."""
    if record is None:
        return app(given, prog_name="cnnviz", standalone_mode=False) or 0
    try:
        start(record)
    except typer.Exit as error:
        return error.exit_code
    return 0


def main() -> None:
    """The entry point."""
    gc.disable()  # until the modules are imported (`start`): it would go through all of torch
    sys.exit(run(sys.argv[1:]))
