"""Turns command records into functions that Typer reads, and formats their help.

A command (`cli/commands/`) and a group of options (`options.py`, the specs of the analyses) are
frozen dataclasses whose fields carry an `Option`. A command has a whole group as one field (`model:
ModelOptions`); `expand` spreads the groups over one signature, which is what Typer reads, and makes
the groups and the command of what was given. A field that two groups have (`seed`) is one option.
The help lists the options that a command names in `FIRST`, and some that all share, before the
others, which are grouped by their groups' `HEADING`.
"""

import dataclasses
import gc
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from cnnviz.cli.ci_reports import current
from cnnviz.cli.early import begin
from cnnviz.cli.options import OutputOptions
from cnnviz.core.choices import pixels
from cnnviz.core.errors import UsageError
from cnnviz.core.options import Option, channel_numbers, low_high, numbers, point
from cnnviz.core.output.mirrors import uploading
from cnnviz.core.remote import is_url

_PARSED_ONLY: ContextVar[bool] = ContextVar("parsed_only", default=False)
ARGUMENTS, FIRST, ADVANCED, OWN = "Input", "Options", "Advanced", "analysis"
"""Headings of a command's help."""
SHARED = ("model", "checkpoint", "out", "overwrite", "report", "help")
"""Options that most people use, of every command that has them."""
URL_ARGUMENTS = ("images", "data")
TAKE_URLS = ("model", "checkpoint", "out", "texts", "title")
"""Arguments and options whose text may be a URL."""
FEW = 12
"""As many options need no groups."""
KINDS = {
    "images": "Explain an image",
    "networks": "Inspect a network",
    "datasets": "Study a data set",
    "runs": "Finished runs and the installation",
}
"""Headings of the program's help, by the module of `cli/commands/`."""
PLACEHOLDERS = {
    int: "INTEGER",
    float: "NUMBER",
    Path: "PATH",
    pixels: "PIXELS",
    numbers: "N,N,N",
    channel_numbers: "N,N,N",
    low_high: "LOW,HIGH",
    point: "ROW,COLUMN",
}
"""Values in the help, by the parser or the type of an option; else TEXT."""


@dataclass(frozen=True)
class _Parameter:
    """One argument or option of a command: name, annotation and default."""

    name: str
    hint: Any
    default: Any

    @property
    def option(self) -> Option | None:
        return next((extra for extra in get_args(self.hint) if isinstance(extra, Option)), None)

    @property
    def repeatable(self) -> bool:
        kind = get_args(self.hint)[0]
        return get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis

    @cached_property
    def for_typer(self) -> inspect.Parameter:
        """The parameter for Typer: text where we parse it, a list for a tuple of any length."""
        hint, default, option = self.hint, self.default, self.option
        if option is not None:
            kind = get_args(hint)[0]
            names = option.names
            if kind is bool and not names:
                name = option.name(self.name)
                names = (f"{name}/--no-{name[2:]}" if default else name,)
            choices = self.choices
            if self.repeatable:
                of_text = option.parse or choices
                kind = list[str if of_text else get_args(kind)[0]] | None  # type: ignore[misc]
                default = None
            elif option.parse or choices:
                kind, default = str | None, default and str(default)
            metavar = option.metavar or self._placeholder(option)
            made = typer.Option(*names, help=option.help, metavar=metavar)
            if choices:
                made.autocompletion = lambda: list(choices)
            hint = Annotated[kind, made]
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
        )

    @cached_property
    def _kind(self) -> type:
        """The type of one value."""
        kinds = _plain_types(get_args(self.hint)[0])
        return next(kind for kind in kinds if kind is not NoneType)

    @property
    def choices(self) -> type[StrEnum] | None:
        """The choice that the option is, if it is one."""
        option = self.option
        if option is None or option.parse or not issubclass(self._kind, StrEnum):
            return None
        return self._kind

    def _placeholder(self, option: Option) -> str | None:
        if self._kind is bool:
            return None
        if self.choices:
            return "|".join(self.choices)
        return PLACEHOLDERS.get(option.parse, PLACEHOLDERS.get(self._kind, "TEXT"))

    def _chosen(self, text: str, name: str) -> StrEnum:
        """The choice of that name, regardless of case, `-` and `_` (gradcam is grad-cam)."""
        assert self.choices  # noqa: S101
        for choice in self.choices:
            if _bare(choice) == _bare(text):
                return choice
        known = ", ".join(f"'{choice}'" for choice in self.choices)
        raise UsageError(f"Invalid value for '{name}': '{text}' is not one of {known}")

    def value(self, given: Any) -> Any:
        """Converts what Typer returns; raises a UsageError for an invalid value."""
        option = self.option
        takes = self.name in (TAKE_URLS if option else URL_ARGUMENTS)
        _refuse_urls(option.name(self.name) if option else self.name.upper(), given, takes=takes)
        if option is None or given is None:
            return given if option is None else self.default
        name, parse = option.name(self.name), option.parse or (lambda text, _name: text)
        if self.choices:
            parse = self._chosen
        several = self.repeatable
        value = tuple(parse(item, name) for item in given) if several else parse(given, name)
        option.check(value, name)
        return value


def _refuse_urls(name: str, given: object, *, takes: bool) -> None:
    """Raises a UsageError for a URL where a local file is expected; a `Path` has lost a slash."""
    for one in given if isinstance(given, list | tuple) else (given,):
        text = re.sub("^([A-Za-z][\\w+.-]+:/)", r"\1/", str(one)) if isinstance(one, Path) else one
        if not isinstance(text, str) or (takes and text is one):
            continue
        if is_url(text) or is_url(text.partition("=")[2]):
            raise UsageError(
                f"{name} {text}: it takes a local file; URLs are for images, data sets, --model, "
                "--checkpoint and --out"
            )


def _bare(text: str) -> str:
    return text.lower().replace("-", "").replace("_", "")


def _plain_types(hint: Any) -> list[type]:
    """The types in a hint, as int and NoneType in `tuple[int, ...] | None`."""
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    return [kind for part in parts for kind in _plain_types(part)] if parts else [hint]


class Program(TyperGroup):
    """The program, whose help groups the commands by what they study."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Writes a line for each command."""
        for kind, heading in KINDS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [
                        (name, (command.help or "").partition("\n")[0])
                        for name, command in self.commands.items()
                        if getattr(command.callback, "kind", "") == kind
                    ]
                )


class Grouped(TyperCommand):
    """A command whose help lists the options that people use first before the others."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments, the options used first, and the others group by group."""
        headings: dict[str, str] = getattr(self.callback, "headings", {})
        first: Sequence[str] = getattr(self.callback, "first", ())
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], FIRST: []}
        parameters = self.get_params(ctx)
        if len(parameters) <= FEW:
            first = [parameter.name or "" for parameter in parameters]
        for parameter in sorted(
            parameters, key=lambda p: first.index(p.name) if p.name in first else len(first)
        ):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            name = parameter.name or ""
            heading = f"{ADVANCED} ({headings.get(name, OutputOptions.HEADING)})"
            if parameter.param_type_name == "argument":
                heading, record = ARGUMENTS, (parameter.metavar or "", record[1])
            elif name in first:
                heading = FIRST
            sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


@cache
def _members(group: Any) -> tuple[_Parameter, ...]:
    hints = get_type_hints(group, include_extras=True)
    fields = dataclasses.fields(group)
    return tuple(_Parameter(f.name, hints[f.name], _default(f)) for f in fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def name_of(command: type) -> str:
    """`MaxPatchesCommand` to `max-patches`."""
    return re.sub("(?<!^)(?=[A-Z])", "-", command.__name__.removesuffix("Command")).lower()


def start(record: Any) -> Any:
    """Calls the body of a command.

    It is the function of the command's name in the module of that name: a `MaxPatchesCommand` is
    handed to `cnnviz.cli.max_patches.max_patches`, imported when it runs.
    """
    name = name_of(type(record)).replace("-", "_")
    current().given = record
    with uploading(getattr(getattr(record, "output", None), "out", None)):
        body = getattr(import_module(f"cnnviz.cli.{name}"), name)
        if not gc.isenabled():  # see `main`
            gc.freeze()
            gc.enable()
        return body(record)


@contextmanager
def parsed_only() -> Iterator[None]:
    """Lets commands return their record instead of running."""
    before = _PARSED_ONLY.set(True)
    try:
        yield
    finally:
        _PARSED_ONLY.reset(before)


def expand(command: type) -> Callable[..., Any]:
    """A function with all fields of a command as its parameters, which runs the command."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    found: dict[str, _Parameter] = {}
    headings: dict[str, str] = {}
    for parameter in _members(command):
        kind: Any = parameter.hint
        members = [parameter]
        if hasattr(kind, "__dataclass_fields__"):
            members = list(_members(kind))
            groups[parameter.name] = kind, [member.name for member in members]
        for member in members:
            found.pop(member.name, None)  # shown where the last group has it
            found[member.name] = member
            headings[member.name] = getattr(kind, "HEADING", OWN)

    def spread(**given: object) -> Any:
        values = {name: found[name].value(item) for name, item in given.items()}
        made = {
            name: kind(**{member: values[member] for member in members})
            for name, (kind, members) in groups.items()
        }
        own = {p.name: values[p.name] for p in _members(command) if p.name not in groups}
        record = command(**own, **made)
        if _PARSED_ONLY.get():
            return record
        begin(spread.__name__, record)
        return start(record)

    spread.__name__, spread.__doc__ = name_of(command), command.__doc__
    parameters = [parameter.for_typer for parameter in found.values()]
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    spread.headings = headings  # type: ignore[attr-defined]
    spread.first = (*getattr(command, "FIRST", ()), *SHARED)  # type: ignore[attr-defined]
    spread.kind = command.__module__.rpartition(".")[2]  # type: ignore[attr-defined]
    return spread
