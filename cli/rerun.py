"""`cnnviz rerun`: repeats a run from its summary and compares the numbers."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from cnnviz.cli.ci_reports import current
from cnnviz.cli.commands.runs import RerunCommand
from cnnviz.cli.console import findings, print_json, say
from cnnviz.cli.merge import SHOWN, line_of, without_own
from cnnviz.cli.options import OutputOptions
from cnnviz.cli.repeat import repeated
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError
from cnnviz.core.files import SUMMARY
from cnnviz.core.output.summary import FinishedRun, read_summary

LISTED = 8
"""Maximum number of differences in a message."""
VARYING = frozenset({"folder", "folders", "features_reused"})
"""Keys of results that depend on where a run was made; keys that end in `seconds` on when."""
ABOUT = ("version", "device", "precision", "seed")


def rerun(given: RerunCommand) -> None:
    """Runs `cnnviz rerun`."""
    from cnnviz.cli.main import run  # which imports all commands

    current().command = "rerun"
    before = read_summary(given.summary)
    command, shard, output = before.command, before.summary.shard, given.output
    root = output.out or Path("cnnviz-out") / "rerun"
    own = Shard(shard.number, shard.count) if shard is not None else Shard(0, 1)
    quiet = replace(output, out=root, json=False, quiet=output.quiet or output.json)
    allowed = {"allow_code": given.allow_code, "allow_urls": given.allow_urls}
    record = repeated(before, quiet, **allowed, shard=own)
    line = [*line_of(quiet, root), *["--shard", str(own)] * (shard is not None)]
    line += without_own(before.summary.argv[1:])
    if before.folder.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{root} holds the run itself; give --out another folder")
    if not output.quiet:
        say(f"cnnviz {shlex.join([command, *line])}"[:SHOWN])
    status = run([command, *line], record)
    if status not in (0, 1, 3):
        raise typer.Exit(status)
    if status == 1 and not before.summary.errors:
        raise CnnvizError("the run has errors that it did not have before; nothing is compared")
    if status == CheckFailed.exit_status and not output.quiet:
        say("note: a check of the run failed; only a difference fails this command")
    _compare(before, _repeated(root, before), given.tolerance, output)
    if status == CnnvizError.exit_status:
        raise typer.Exit(status)


def _repeated(root: Path, before: FinishedRun) -> FinishedRun:
    """The run of the same command and shard below a folder."""
    runs = [read_summary(path) for path in root.rglob(SUMMARY)]
    same = [run for run in runs if run.command == before.command and _shard(run) == _shard(before)]
    if len(same) != 1:
        raise CnnvizError(
            f"{root} holds {len(same)} summaries of {before.command}; nothing is compared"
        )
    return same[0]


def _shard(run: FinishedRun) -> tuple[int, int] | None:
    shard = run.summary.shard
    return None if shard is None else (shard.number, shard.count)


def _compare(
    before: FinishedRun, after: FinishedRun, tolerance: float, output: OutputOptions
) -> None:
    """Reports the differences; raises CheckFailed where the results differ."""
    was, now = before.content, after.content
    notes = [f"{k} was {was[k]} and is {now[k]}" for k in ABOUT if was[k] != now[k]]
    weights = [run.summary.model and run.summary.model.weights_sha256 for run in (before, after)]
    if weights[0] != weights[1]:
        notes.append("the network has other weights")
    values = [v for key in ("results", "errors") for v in _leaves(was[key], now[key], key)]
    differing = [value for value in values if not _same(value[1], value[2], tolerance)]
    if output.json:
        first = [dict(zip(("place", "was", "is"), v, strict=True)) for v in differing[:LISTED]]
        content = {
            "same": not differing,
            "compared": len(values),
            "differing": len(differing),
            "notes": notes,
            "first": first,
        }
        print_json([json.dumps(content, ensure_ascii=False) + "\n"])
    for note in notes if not output.quiet else ():
        say(f"note: {note}")
    if differing:
        listed = "; ".join(f"{place}: {was} -> {now}" for place, was, now in differing[:LISTED])
        more = f" and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
        raise CheckFailed(f"{len(differing)} of {len(values)} values differ: {listed}{more}")
    if not (output.quiet or output.json):
        findings().write(f"all {len(values)} values are the same\n")


def _leaves(was: Any, now: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """The scalar values of two pieces of JSON data in pairs, and lists of other lengths."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            if key not in VARYING and not key.endswith("seconds"):
                yield from _leaves(was.get(key), now.get(key), f"{place}.{key}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, (one, other) in enumerate(zip(was, now, strict=True)):
            yield from _leaves(one, other, f"{place}[{number}]")
    elif isinstance(was, dict | list) or isinstance(now, dict | list):
        yield place, _size(was), _size(now)
    else:
        yield place, was, now


def _size(value: Any) -> Any:
    return f"{len(value)} entries" if isinstance(value, dict | list) else value


def _same(was: Any, now: Any, tolerance: float) -> bool:
    numbers = isinstance(was, int | float) and isinstance(now, int | float)
    if numbers and not isinstance(was, bool) and not isinstance(now, bool):
        return bool(abs(was - now) <= tolerance * max(abs(was), abs(now)))
    return bool(was == now)
