"""Writes each command's options into its page, between two comments, from the program itself.

Options that many commands share, of the model and of the output, are on a page of their own.

    python docs/write_options.py            rewrites docs/<command>.md and docs/options.md
    python docs/write_options.py --check    exits with 1 where a page is not as it would be written

A page without the comments, or a command without a page, is a mistake either way.
"""

import argparse
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import typer

from cnnviz.cli.main import COMMANDS

BEGIN = "<!-- options: written by docs/write_options.py -->"
END = "<!-- end of options -->"
DOCS = Path(__file__).parent
SHARED = ("model", "figures", "output")
"""Headings of the groups of options that commands share."""
INTRODUCTION = """# Options that commands share

Same name, same meaning in every command that has them. `cnnviz COMMAND --help` lists all options of
a command; its page lists its other options.
"""


def default_of(parameter: inspect.Parameter) -> str:
    """A parameter's default as a user would type it; empty where there is none."""
    value = parameter.default
    if value is inspect.Parameter.empty or value is None or value is False:
        return ""
    return "on" if value is True else f"`{value}`"


def names_of(parameter: inspect.Parameter, info: Any) -> str:
    """`--mask`, `--model`, `-m`, `--scores/--no-scores`; an argument's metavar."""
    if isinstance(info, typer.models.ArgumentInfo):
        return f"`{info.metavar or parameter.name.upper()}`"
    declared = [name for name in (info.default, *(info.param_decls or ())) if name is not ...]
    return ", ".join(f"`{name}`" for name in declared or ["--" + parameter.name.replace("_", "-")])


def choices_of(metavar: str | None) -> str:
    """The values of a choice, which are its placeholder; else nothing."""
    if not metavar or not metavar.islower():
        return ""
    return " One of " + ", ".join(f"`{choice}`" for choice in metavar.split("|")) + "."


def table_of(parameters: Iterable[inspect.Parameter]) -> str:
    """The parameters of a command as a Markdown table."""
    lines = ["| option | what it does | default |", "|---|---|---|"]
    for parameter in parameters:
        _, info = get_args(parameter.annotation)
        text = (info.help or "").replace("|", "\\|") + choices_of(info.metavar)
        lines.append(f"| {names_of(parameter, info)} | {text} | {default_of(parameter)} |")
    return "\n".join(lines)


def of_command(command: Any) -> str:
    """The table of a command's own options, and links to those that it shares."""
    parameters = inspect.signature(command).parameters.values()
    headings = [command.headings[parameter.name] for parameter in parameters]
    own = [p for p, heading in zip(parameters, headings, strict=True) if heading not in SHARED]
    links = [f"[{heading}](options.md#{heading})" for heading in SHARED if heading in headings]
    shared = f"\n\nAnd the options that commands share: {', '.join(links)}." if links else ""
    return table_of(own) + shared


def of_all() -> str:
    """The page of the shared options."""
    command: Any = COMMANDS["occlude"]
    parameters = inspect.signature(command).parameters.values()
    parts = [INTRODUCTION]
    for heading in SHARED:
        group = [p for p in parameters if command.headings[p.name] == heading]
        parts.append(f"## {heading.capitalize()}\n\n{table_of(group)}\n")
    return "\n".join(parts)


def page_with_options(page: str, table: str) -> str:
    """The page with the part between the comments replaced.

    Raises:
        ValueError: the page lacks the comments.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"no '{BEGIN}' … '{END}' in it")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"


def main() -> int:
    """Rewrites or checks all pages; returns the exit status."""
    parser = argparse.ArgumentParser(description="options of each command, into its page")
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    status, wanted = 0, {DOCS / "options.md": of_all()}
    for name, command in COMMANDS.items():
        path = DOCS / f"{name}.md"
        try:
            page = path.read_text(encoding="utf-8")
            wanted[path] = page_with_options(page, of_command(command))
        except (OSError, ValueError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            status = 1
    for path, page in wanted.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != page):
            print(f"{path.name}: options differ; run docs/write_options.py", file=sys.stderr)
            status = 1
        elif not check:
            path.write_text(page, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
