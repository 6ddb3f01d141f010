"""Commands that read finished runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cnnviz.cli.options import OutputOptions
from cnnviz.core.options import Option
from cnnviz.core.output.look import Look
from cnnviz.diff.options import DiffSpec
from cnnviz.report.options import MEGABYTES, PAGE


@dataclass(frozen=True, kw_only=True)
class DiffCommand:
    """What changed from one network to another, in two runs over the same data?

    cnnviz diff before/ after/ --max-flips 0.05

    Takes runs of occlude, audit, tsne, filters, max-patches or ablate; lists images and filters
    with the most changed first, and the classes that changed more than the others.
    """

    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B", help="The folders of two finished runs."),
    ]
    spec: DiffSpec
    look: Look
    min_agreement: Annotated[
        float | None,
        Option(
            "Exit with status 3 if the two agree less than this: in their maps, their filters or "
            "their neighbours, whichever the runs tell of.",
            least=-1,
            most=1,
        ),
    ] = None
    max_flips: Annotated[
        float | None,
        Option(
            "Exit with status 3 if a larger share of the images is predicted as another class.",
            least=0,
            most=1,
        ),
    ] = None
    pictures: Annotated[bool, Option("Draw what changed.")] = True
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """One page to show: runs of any commands in a file that opens anywhere, offline.

    cnnviz report cnnviz-out/occlude/dog --out dog.html

    Point at the pictures of occlude to cover a place; sort tables by clicking. Nothing is loaded
    from any network.
    """

    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, of any commands."),
    ]
    out: Annotated[Path, Option("The page's file.", ("--out", "-o"), metavar="<file>")] = Path(PAGE)
    max_mb: Annotated[
        float,
        Option("The page's size in megabytes, at most; it says what was left out.", least=1),
    ] = MEGABYTES
    overwrite: Annotated[bool, Option("Replace an earlier page.")] = False
    json_: Annotated[bool, Option("Print what was written as JSON.", ("--json",))] = False
    quiet: Annotated[bool, Option("Say nothing.", ("--quiet", "-q"))] = False


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Join what runs with --shard have found, as if one run had gone through all images.

    cnnviz merge cnnviz-out/occlude --out all

    The shares' command is run again with nothing left to study, from the folder it was called in:
    it writes tables, pictures and the summary.
    """

    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="The folders of all shares, or the one they lie in."),
    ]
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class RerunCommand:
    """Repeat a run from its summary: are its numbers still the same?

    cnnviz rerun cnnviz-out/occlude/dog/summary.json --out again

    Runs the command of the summary, from the folder it was called in, and compares all results;
    exits with status 3 where they differ.
    """

    summary: Annotated[
        Path, typer.Argument(metavar="SUMMARY", help="A summary.json, or the folder it lies in.")
    ]
    tolerance: Annotated[
        float,
        Option("Relative difference of two numbers that is none.", least=0, most=1),
    ] = 0.0
    output: OutputOptions
