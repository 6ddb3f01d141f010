"""`cnnviz merge`: joins the shares of a data set, as if one run had studied all images."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import typer

from cnnviz.audit.rows import Row
from cnnviz.cli.ci_reports import current
from cnnviz.cli.commands.runs import MergeCommand
from cnnviz.cli.console import say
from cnnviz.cli.options import OutputOptions
from cnnviz.cli.repeat import requested
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import SUMMARY, exists
from cnnviz.core.output.journal import Check, Merge, join
from cnnviz.core.output.lines import LINES, join_lines
from cnnviz.core.output.mirrors import shown
from cnnviz.core.output.record import from_json
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.summary import FinishedRun, ShardRecord, read_summary
from cnnviz.embeddings import features
from cnnviz.filters.ablation import options as ablation
from cnnviz.filters.ablation import tally
from cnnviz.filters.activations.results import Activations
from cnnviz.filters.patches import options as patches
from cnnviz.filters.patches import state
from cnnviz.gradients.results import SaliencyResult
from cnnviz.occlusion.boxes import Detected
from cnnviz.occlusion.results import OcclusionResult
from cnnviz.reasons.results import ReasonsResult
from cnnviz.trust.results import TrustResult

OWN = {"--out": 1, "-o": 1, "--shard": 1, "--resume": 0, "--overwrite": 0, "--json": 0}
OWN |= {"--report": 0, "--quiet": 0, "-q": 0, "--junit": 1}
OWN |= {"--cluster": 1, "--workers": 1, "--cpus-per-worker": 1, "--gpus-per-worker": 1}
"""Options in which the runs of one command may differ, with the number of their values."""
ENTRIES: dict[str, Any] = {
    "occlude": OcclusionResult,
    "saliency": SaliencyResult,
    "trust": TrustResult,
    "reasons": ReasonsResult,
    "activations": Activations,
    "audit": Row,
    "detect": Detected,
}
"""What the lines of `images.jsonl` are, by command."""
SHOWN = 200
"""Characters of the shares' command that are printed."""


def merge(given: MergeCommand) -> None:
    """Runs `cnnviz merge`: joins the journals, and has the command draw and summarise the result.

    The command is that of the shares' checked options. Their command line is text: it is shown and
    noted in the summary, so that `rerun` can repeat it.
    """
    output = given.output
    shares = _checked([_read(folder) for folder in _share_folders(given.folders)])
    command, line = shares[0].command, _line(shares[0])
    root = output.out or Path("cnnviz-out") / "merged"
    whole = replace(output, out=root, overwrite=False)
    record = requested(
        shares[0], _shard(shares[0]).request, whole, given.code, allow_urls=given.allow_urls
    )
    folder = RunFolder.open(root, overwrite=output.overwrite)
    _join(shares, folder)
    del folder  # releases its lock: the command opens it
    if not output.quiet:
        say(f"{len(shares)} shares of: cnnviz {shlex.join([command, *line])}"[:SHOWN])
    from cnnviz.cli.main import run  # which imports all commands

    status = run([command, *line_of(output, root), "--resume", "--shard", "0/1", *line], record)
    current().printed = output.json  # by that run
    raise typer.Exit(status)


def line_of(output: OutputOptions, root: Path) -> list[str]:
    """The output options of the command that is run, for its summary."""
    flags = {"--report": output.report, "--quiet": output.quiet, "--json": output.json}
    junit = ["--junit", str(output.junit)] if output.junit else []
    return ["--out", shown(root), *(name for name, on in flags.items() if on), *junit]


def _join(runs: Sequence[FinishedRun], folder: RunFolder) -> None:
    """Joins the journals of the shares."""
    shares = [run.folder for run in runs]
    if exists(shares[0] / LINES):
        kind = ENTRIES.get(runs[0].command, dict)
        join_lines(shares, folder, _shard(runs[0]).of, partial(from_json, kind))
        written = sum("/" in name for run in runs for name in run.summary.files)
        if written != sum("/" in name for name in folder.files):
            raise UsageError(
                f"{SUMMARY} and {LINES} of the shares list different files; repeat the commands "
                "of the shares with --overwrite"
            )
        return
    merges: dict[str, tuple[Merge, Check]] = {
        features.FEATURES: (partial(features.merge, scratch=folder.path), features.check),
        patches.STATE: (state.merge, state.check),
        ablation.STATE: (tally.merge, tally.check),
    }
    for name, (merge, check) in merges.items():
        if exists(shares[0] / name):
            join([share / name for share in shares], folder.path / name, merge, check=check)
            return
    raise CnnvizError(f"{shares[0]} has no journal; expected one of {', '.join([LINES, *merges])}")


def _read(folder: Path) -> FinishedRun:
    """Reads the finished share in a folder."""
    try:
        run = read_summary(folder)
        _shard(run)
    except CnnvizError as error:
        raise UsageError(
            f"{folder} holds no finished run with --shard; "
            "if it was interrupted, repeat its command with --resume"
        ) from error
    return run


def _shard(run: FinishedRun) -> ShardRecord:
    """The shard of a run; raises a UsageError if it has none."""
    shard = run.summary.shard
    if shard is None or shard.number >= shard.count or run.summary.argv[:1] != (run.command,):
        raise UsageError(f"{run.folder} is not a share")
    return shard


def without_own(line: Sequence[str]) -> list[str]:
    """Drops the options in `OWN` from a command line."""
    kept: list[str] = []
    rest = iter(line)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in OWN:
            kept.append(word)
        elif OWN[name] and not equals:
            next(rest, None)
    return kept


def _share_folders(folders: Sequence[Path]) -> list[Path]:
    """The folders themselves, or the shares in them."""
    shares: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no folder '{folder}'")
        inside = sorted(path for path in folder.glob("shard-*-of-*") if path.is_dir())
        shares += inside or [folder]
    return shares


def _checked(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """The shares in order; refuses missing and duplicate ones, and those of different runs."""
    count = _shard(runs[0]).count
    by_number = {_shard(run).number: run for run in runs}
    if len(by_number) < len(runs):
        raise UsageError("a share was given twice; expected the folders of one run")
    if missing := [number for number in range(count) if number not in by_number]:
        named = ", ".join(f"{number}/{count}" for number in missing)
        raise UsageError(f"missing: --shard {named}; run it, with --resume if it was interrupted")
    first = by_number[0]
    for run in runs:
        parts = {
            "number of shares": (_shard(run).count, count),
            "command": (run.command, first.command),
            "options": (_shard(run).request, _shard(first).request),
            "network": (run.summary.model, first.summary.model),
            "precision": (run.summary.precision, first.summary.precision),
            "data or question": (_shard(run).of, _shard(first).of),
        }
        differing = [name for name, (value, other) in parts.items() if value != other]
        if differing:
            raise UsageError(
                f"{run.folder} and {first.folder} differ in {', '.join(differing)}; "
                "expected all shards of one run"
            )
    return [by_number[number] for number in range(count)]


def _line(run: FinishedRun) -> list[str]:
    return without_own(run.summary.argv[1:])
