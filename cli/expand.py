"""How Typer gets to know of all options, and how a command's help shows them.

A group of options is a frozen dataclass whose fields carry an `Option`: those in `options.py`, and
the specs of the analyses. A command asks for a whole group with one parameter (`model:
ModelOptions`); `expand` spreads the groups over the command's signature, which is what Typer reads,
and makes the groups of what was given. A field that two groups have (`seed`) is one option. A group
may name its `HEADING` in the command's help.
"""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from cnnviz.cli.options import OutputOptions
from cnnviz.core.options import Option

ARGUMENTS, OWN = "What to look at", "How"
"""Headings of a command's help."""


@dataclass(frozen=True)
class _Parameter:
    """One argument or option of a command, between Typer and the code.

    Attributes:
        name: of the parameter or field.
        hint: its annotation.
        default: what it is where nothing is given.
    """

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
        """What Typer reads: text where we read it ourselves, a list for a tuple of any length."""
        hint, default, option = self.hint, self.default, self.option
        if option is not None:
            kind = get_args(hint)[0]
            names = option.names
            if kind is bool and not names:
                name = option.name(self.name)
                names = (f"{name}/--no-{name[2:]}" if default else name,)
            if self.repeatable:
                kind = list[str if option.parse else get_args(kind)[0]] | None  # type: ignore[misc]
                default = None
            elif option.parse:
                kind = str | None
            hint = Annotated[kind, typer.Option(*names, help=option.help, metavar=option.metavar)]
        return inspect.Parameter(
            self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint
        )

    def value(self, given: Any) -> Any:
        """What the code gets, from what Typer gives.

        Raises:
            UsageError: text that means nothing, a number out of range.
        """
        option = self.option
        if option is None or given is None:
            return given if option is None else self.default
        name, parse = option.name(self.name), option.parse or (lambda text, _name: text)
        several = self.repeatable
        value = tuple(parse(item, name) for item in given) if several else parse(given, name)
        option.check(value, name)
        return value


class Grouped(TyperCommand):
    """A command whose help has its own options first, then those that all commands share."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the arguments, and the options by the group that they are of."""
        headings: dict[str, str] = getattr(self.callback, "headings", {})
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OWN: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                known = headings.get(parameter.name or "", OutputOptions.HEADING)
                sections.setdefault(ARGUMENTS if argument else known, []).append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


@cache
def _members(group: Any) -> tuple[_Parameter, ...]:
    hints = get_type_hints(group, include_extras=True)
    fields = dataclasses.fields(group)
    return tuple(_Parameter(field.name, hints[field.name], field.default) for field in fields)


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """The command with each parameter that is an option group spread into the group's fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, list[str]] = {}
    found: dict[str, _Parameter] = {}
    headings: dict[str, str] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        members = [_Parameter(name, hints[name], parameter.default)]
        if dataclasses.is_dataclass(hints[name]):
            members = list(_members(hints[name]))
            groups[name] = [member.name for member in members]
        for member in members:
            found.pop(member.name, None)  # shown where the last group has it
            found[member.name] = member
            headings[member.name] = getattr(hints[name], "HEADING", OWN)

    def spread(**given: object) -> None:
        values = {name: found[name].value(item) for name, item in given.items()}
        made = {
            name: hints[name](**{member: values[member] for member in members})
            for name, members in groups.items()
        }
        own = {name: values[name] for name in hints if name in values and name not in groups}
        command(**own, **made)

    spread.__name__, spread.__doc__ = command.__name__, command.__doc__
    parameters = [parameter.for_typer for parameter in found.values()]
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {p.name: p.annotation for p in parameters}
    spread.headings = headings  # type: ignore[attr-defined]
    return spread
