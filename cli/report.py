"""`cnnviz report`: one page that shows runs, to be opened from disk and sent to a colleague."""

import json
from pathlib import Path

from cnnviz.cli.ci_reports import current
from cnnviz.cli.commands.runs import ReportCommand
from cnnviz.cli.console import findings, print_json, printable, say
from cnnviz.cli.report_runs import page_of, page_title
from cnnviz.core.errors import UsageError
from cnnviz.core.files import write_atomically
from cnnviz.core.output.summary import read_summary, run_folders
from cnnviz.report.options import GENERATOR


def report(given: ReportCommand) -> None:
    """Runs `cnnviz report`."""
    current().command = "report"
    _check_page(given.out, overwrite=given.overwrite)
    folders = [folder for named in given.runs for folder in run_folders(named)]
    runs = [read_summary(folder, given.data) for folder in folders]
    if not given.quiet and any(run.data.closed for run in runs):
        say("note: images of data sets are shown only from folders named with --data")
    page, left_out = page_of(runs, given.max_mb, given.title or page_title(runs))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, page.encode("utf-8", "replace"))
    if given.json_:
        written = {"page": str(given.out), "bytes": given.out.stat().st_size, "left_out": left_out}
        print_json([json.dumps(written, ensure_ascii=False) + "\n"])
        return
    for line in left_out if not given.quiet else ():
        say(f"left out: {line}")
    if not given.quiet:
        findings().write(f"{printable(given.out)}\n")


def _check_page(out: Path, *, overwrite: bool) -> None:
    """Refuses to write to a folder, over another file, or over an earlier page unasked."""
    if out.is_dir():
        raise UsageError(f"{out} is a folder; give --out a file")
    if not out.exists():
        return
    with out.open("rb") as stream:
        if GENERATOR.encode() not in stream.read(600):
            raise UsageError(f"{out} exists and is not a page of cnnviz; give --out another file")
    if not overwrite:
        raise UsageError(f"{out} exists; use --overwrite, or give --out another file")
