"""Writes what the examples of docs/examples.md print, by running them on the sample images.

    python docs/write_examples.py            rewrites docs/examples.md
    python docs/write_examples.py --check    exits with 1 where an example prints something else

All `cnnviz` lines of the page's `sh` blocks run in the order of the page, in an empty folder with
the sample images. A `text` block after an `sh` block is the output of its last line; long output is
cut in the middle. Digits are not compared: the last ones differ from one machine to the next.
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
PAGE = ROOT / "docs" / "examples.md"
EXAMPLE = re.compile(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
LONGEST, FIRST, LAST = 24, 9, 5


def printed(command: str) -> str:
    """What a command prints on stdout, shortened.

    Raises:
        ValueError: it fails.
    """
    with redirect_stdout(io.StringIO()) as stream:
        status = run(shlex.split(command, comments=True)[1:])
    if status:
        raise ValueError(f"{command} ends with status {status}")
    lines = stream.getvalue().splitlines()
    if len(lines) > LONGEST:
        lines = [*lines[:FIRST], "…", *lines[-LAST:]]
    return "".join(line.rstrip() + "\n" for line in lines)


def with_outputs(page: str) -> str:
    """The page with the output of every example as it is now."""

    def block(example: re.Match[str]) -> str:
        outputs = [printed(line) for line in example[1].splitlines() if line.startswith("cnnviz ")]
        shown = f"\n\n```text\n{outputs[-1]}```" if example[2] is not None else ""
        return f"```sh\n{example[1]}```{shown}"

    with tempfile.TemporaryDirectory() as name, chdir(name):
        Path("sample_images").symlink_to(ROOT / "sample_images")
        # The page shows neither this machine's weights nor its terminal.
        os.environ.update(HOME=name, TORCH_HOME=f"{name}/.cache/torch")
        for setting in ("COLUMNS", "FORCE_COLOR"):
            os.environ.pop(setting, None)
        return EXAMPLE.sub(block, page)


def form(page: str) -> str:
    """The page without its digits."""
    return re.sub(r"\d", "0", page)


def main() -> int:
    """Rewrites or checks the page; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    only_check = parser.parse_args().check
    page = PAGE.read_text(encoding="utf-8")
    written = with_outputs(page)
    if only_check and form(written) != form(page):
        print("docs/examples.md: an example prints something else; run docs/write_examples.py")
        lines = [form(text).splitlines() for text in (page, written)]
        print("\n".join(unified_diff(*lines, "docs/examples.md", "as it is printed", lineterm="")))
        return 1
    if not only_check:
        PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
