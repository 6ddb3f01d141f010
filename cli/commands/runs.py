"""Commands that read finished runs, and the one that checks the installation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from cnnviz.cli.options import Data, OutputOptions
from cnnviz.core.options import Option
from cnnviz.core.output.options import Look
from cnnviz.diff.options import DiffSpec
from cnnviz.report.options import MEGABYTES, PAGE

AllowCode = Annotated[
    bool,
    Option("Run code that the summary names (a factory, --output file.py:function)."),
]
AllowUrls = Annotated[bool, Option("Read the URLs that the summary names.")]


@dataclass(frozen=True, kw_only=True)
class DiffCommand:
    """Compare two runs: what changed between two networks?

    cnnviz diff before/ after/ --max-flips 0.05

    Compares runs of occlude, audit, tsne, filters, max-patches or ablate. Lists images and filters,
    the most changed first, and the classes that changed more than the others.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("top", "min_agreement", "max_flips", "data")

    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B", help="The folders of two finished runs."),
    ]
    spec: DiffSpec
    look: Look
    min_agreement: Annotated[
        float | None,
        Option(
            "Exit with status 3 if the mean agreement of the maps, filters or neighbours is lower.",
            least=-1,
            most=1,
        ),
    ] = None
    max_flips: Annotated[
        float | None,
        Option(
            "Exit with status 3 if the prediction changes for a larger share of the images.",
            least=0,
            most=1,
        ),
    ] = None
    pictures: Annotated[bool, Option("Draw what changed.")] = True
    data: Data = ()
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Make one self-contained HTML page of finished runs.

    cnnviz report cnnviz-out/occlude/dog --out dog.html

    Point at an image of occlude to see the scores with that position occluded; click on columns to
    sort tables. The page loads nothing from any network.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("title", "data", "max_mb")

    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, of any commands."),
    ]
    out: Annotated[Path, Option("File of the page.", ("--out", "-o"), metavar="FILE")] = Path(PAGE)
    title: Annotated[str | None, Option("Heading of the page.")] = None
    data: Data = ()
    max_mb: Annotated[
        float,
        Option("Maximum size of the page in megabytes; it lists what was left out.", least=1),
    ] = MEGABYTES
    overwrite: Annotated[bool, Option("Replace an earlier page.")] = False
    json_: Annotated[bool, Option("Print what was written as JSON.", ("--json",))] = False
    quiet: Annotated[bool, Option("Print nothing.", ("--quiet", "-q"))] = False


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Join the results of a run that was split with --shard.

    cnnviz merge cnnviz-out/occlude --out all

    Joins the journals of the shares, and draws and summarises them as one run would have; call it
    from the folder in which the shares were started.
    """

    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="The folders of all shares, or the folder that contains them."
        ),
    ]
    code: Annotated[
        tuple[str, ...],
        Option(
            "Code of the shares that may run, by the name that they were given: net.py:make (a "
            "factory, or --output); repeatable."
        ),
    ] = ()
    allow_urls: AllowUrls = False
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class RerunCommand:
    """Repeat a run from its summary and compare the numbers.

    cnnviz rerun cnnviz-out/occlude/dog/summary.json --out again

    Runs the command of the summary and compares all results; exits with status 3 if they differ.
    Call it from the folder in which the run was started.
    """

    FIRST: ClassVar[tuple[str, ...]] = ("tolerance",)

    summary: Annotated[
        Path, typer.Argument(metavar="SUMMARY", help="A summary.json, or its folder.")
    ]
    allow_code: AllowCode = False
    allow_urls: AllowUrls = False
    tolerance: Annotated[
        float,
        Option("Relative difference of two numbers that is ignored.", least=0, most=1),
    ] = 0.0
    output: OutputOptions


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Check the installation, and every analysis on this machine.

    cnnviz doctor --device cuda

    Prints PASS, WARN or FAIL for packages, torch, the device, folders and each analysis, whose
    results are compared with stored ones; exits with status 1 after a FAIL.
    """

    device: Annotated[str, Option("auto, cpu, cuda, cuda:N or mps.")] = "auto"
    full: Annotated[
        bool, Option("Also run ResNet-18 (random weights): speed, memory, bf16 and fp16.")
    ] = False
    json: Annotated[bool, Option("Print the checks as JSON and nothing else.")] = False
