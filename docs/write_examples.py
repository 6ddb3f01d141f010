"""Writes what the README's examples print below them, by running them on the sample images.

    python docs/write_examples.py            rewrites README.md
    python docs/write_examples.py --check    exits with 1 where an example prints something else

An example is a `sh` block of one line, followed by a `text` block. Long output is cut in the
middle. Digits are not compared: the last ones differ from one machine to the next.
"""

import argparse
import io
import os
import re
import shlex
import sys
import tempfile
from contextlib import chdir, redirect_stdout
from difflib import unified_diff
from pathlib import Path

from cnnviz.cli.main import run

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
EXAMPLE = re.compile(r"```sh\n(cnnviz [^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)
BEFORE = re.compile(r"^cnnviz .* --quiet$", re.MULTILINE)
"""Run first, for the examples that take runs."""
LONGEST, FIRST, LAST = 24, 9, 5


def printed(command: str) -> str:
    """What a command prints on stdout, shortened.

    Raises:
        ValueError: it fails.
    """
    with redirect_stdout(io.StringIO()) as stream:
        status = run(shlex.split(command)[1:])
    if status:
        raise ValueError(f"{command} ends with status {status}")
    lines = stream.getvalue().splitlines()
    if len(lines) > LONGEST:
        lines = [*lines[:FIRST], "…", *lines[-LAST:]]
    return "".join(line.rstrip() + "\n" for line in lines)


def with_outputs(page: str) -> str:
    """The page with the output of every example as it is now."""

    def block(found: re.Match[str]) -> str:
        return f"```sh\n{found[1]}\n```\n\n```text\n{printed(found[1])}```"

    with tempfile.TemporaryDirectory() as name, chdir(name):
        Path("sample_images").symlink_to(ROOT / "sample_images")
        # Neither anybody's own weights nor their terminal are on the page.
        os.environ.update(HOME=name, TORCH_HOME=f"{name}/.cache/torch")
        for setting in ("COLUMNS", "FORCE_COLOR"):
            os.environ.pop(setting, None)
        for command in BEFORE.findall(page):
            printed(command)
        return EXAMPLE.sub(block, page)


def form(page: str) -> str:
    """The page without its digits."""
    return re.sub(r"\d", "0", page)


def main() -> int:
    """Rewrites or checks the README; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    only_check = parser.parse_args().check
    page = README.read_text(encoding="utf-8")
    written = with_outputs(page)
    if only_check and form(written) != form(page):
        print("README.md: an example prints something else; run docs/write_examples.py")
        lines = [form(text).splitlines() for text in (page, written)]
        print("\n".join(unified_diff(*lines, "README.md", "as it is printed", lineterm="")))
        return 1
    if not only_check:
        README.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
