"""`cnnviz report`: one page that shows runs, to be opened from disk and sent to a colleague."""

import json
from pathlib import Path

from cnnviz.cli.commands.runs import ReportCommand
from cnnviz.cli.console import findings, say
from cnnviz.cli.outcome import current
from cnnviz.core.errors import UsageError
from cnnviz.report.choices import EXTRA


def report(given: ReportCommand) -> None:
    """Runs `cnnviz report`."""
    current().command = "report"
    from cnnviz.core.extras import required

    required("bokeh", "report", EXTRA)
    from cnnviz.cli.report_reads import read_summary
    from cnnviz.cli.report_runs import page_of
    from cnnviz.cli.run_data import run_folders
    from cnnviz.core.files import write_atomically

    if given.out.is_dir():
        raise UsageError(f"{given.out} is a folder; give --out a file")
    if given.out.exists() and not _is_page(given.out):
        raise UsageError(
            f"{given.out} is there and no page of cnnviz; name another file with --out"
        )
    if given.out.exists() and not given.overwrite:
        raise UsageError(f"{given.out} is there; use --overwrite, or another file with --out")
    found = [read_summary(folder) for run in given.runs for folder in run_folders(run)]
    title = ", ".join(dict.fromkeys(f"cnnviz {content['command']}" for _, content in found))
    page, left_out = page_of(found, given.max_mb, title)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out, page.encode("utf-8", "replace"))
    if given.json_:
        told = {"page": str(given.out), "bytes": given.out.stat().st_size, "left_out": left_out}
        findings().write(json.dumps(told, ensure_ascii=False) + "\n")
        current().printed = True
        return
    for line in left_out if not given.quiet else ():
        say(f"left out: {line}")
    if not given.quiet:
        findings().write(f"{given.out}\n")


def _is_page(path: Path) -> bool:
    """Whether it is a page that can be replaced."""
    with path.open("rb") as stream:
        return b"Content-Security-Policy" in stream.read(600)
