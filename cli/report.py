"""`cnnviz report`: one page that shows runs, to be opened from disk and sent to a colleague."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cnnviz.cli.console import findings, say
from cnnviz.cli.outcome import current
from cnnviz.core.errors import UsageError
from cnnviz.core.options import Option
from cnnviz.report.choices import EXTRA, MEGABYTES, PAGE


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, of any commands."),
    ],
    out: Annotated[Path, Option("The page's file.", ("--out", "-o"), metavar="<file>")] = Path(
        PAGE
    ),
    max_mb: Annotated[
        float,
        Option("The page's size in megabytes, at most; it says what was left out.", least=1),
    ] = MEGABYTES,
    overwrite: Annotated[bool, Option("Replace an earlier page.")] = False,
    json_: Annotated[bool, Option("Print what was written as JSON.", ("--json",))] = False,
    quiet: Annotated[bool, Option("Say nothing.", ("--quiet", "-q"))] = False,
) -> None:
    """One page to show: runs of any commands in a file that opens anywhere, offline.

    cnnviz report cnnviz-out/occlude/dog --out dog.html

    Point at the pictures of occlude to cover a place; sort tables by clicking. Nothing is loaded
    from any network.
    """
    current().command = "report"
    from cnnviz.core.extras import required

    required("bokeh", "report", EXTRA)
    from cnnviz.cli.report_reads import read_summary
    from cnnviz.cli.report_runs import page_of
    from cnnviz.cli.run_data import run_folders
    from cnnviz.core.output.run_folder import write_atomically

    if out.is_dir():
        raise UsageError(f"{out} is a folder; give --out a file")
    if out.exists() and not _is_page(out):
        raise UsageError(f"{out} is there and no page of cnnviz; name another file with --out")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} is there; use --overwrite, or another file with --out")
    found = [read_summary(folder) for run in runs for folder in run_folders(run)]
    title = ", ".join(dict.fromkeys(f"cnnviz {content['command']}" for _, content in found))
    page, left_out = page_of(found, max_mb, title)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page.encode("utf-8", "replace"))
    if json_:
        told = {"page": str(out), "bytes": out.stat().st_size, "left_out": left_out}
        findings().write(json.dumps(told, ensure_ascii=False) + "\n")
        current().printed = True
        return
    for line in left_out if not quiet else ():
        say(f"left out: {line}")
    if not quiet:
        findings().write(f"{out}\n")


def _is_page(path: Path) -> bool:
    """Whether it is a page that can be replaced."""
    with path.open("rb") as stream:
        return b"Content-Security-Policy" in stream.read(600)
