"""Writes each command's options into its page, between two comments, from the program itself.

    python docs/write_options.py            rewrites docs/<command>.md
    python docs/write_options.py --check    exits with 1 where a page is not as it would be written

A page without the comments, or a command without a page, is a mistake either way.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import typer

from cnnviz.cli.main import app

BEGIN = "<!-- options: written by docs/write_options.py -->"
END = "<!-- end of options -->"
DOCS = Path(__file__).parent


def default_of(parameter: Any) -> str:
    """A parameter's default as a user would type it; empty where there is none."""
    value = parameter.default
    if callable(value) or value is None or value is False or value == ():
        return ""
    if value is True:
        return f"`{parameter.opts[0]}`"
    return f"`{getattr(value, 'value', value)}`"


def names_of(parameter: Any) -> str:
    """`--mask`, `-m, --model` or `--scores / --no-scores`; an argument's metavar."""
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    both = ", ".join(f"`{name}`" for name in parameter.opts)
    off = [name for name in parameter.secondary_opts if name.startswith("--")]
    return f"{both} / `{off[0]}`" if off else both


def table_of(command: Any) -> str:
    """The command's parameters as a Markdown table."""
    lines = ["| option | what it does | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name in ("help", "install_completion", "show_completion"):
            continue
        text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
        choices = getattr(parameter.type, "choices", None)
        if choices:
            values = ", ".join(f"`{getattr(choice, 'value', choice)}`" for choice in choices)
            text = f"{text} One of {values}."
        lines.append(f"| {names_of(parameter)} | {text} | {default_of(parameter)} |")
    return "\n".join(lines)


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
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    status = 0
    for name, command in commands.items():
        path = DOCS / f"{name}.md"
        try:
            page = path.read_text(encoding="utf-8")
            wanted = page_with_options(page, table_of(command))
        except (OSError, ValueError) as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            status = 1
            continue
        if page != wanted and check:
            print(f"{path.name}: options differ; run docs/write_options.py", file=sys.stderr)
            status = 1
        elif page != wanted:
            path.write_text(wanted, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
