"""`cnnviz rerun`: a run again, from its summary, and whether its numbers are the same."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cnnviz.cli.commands.runs import RerunCommand
from cnnviz.cli.console import findings, say
from cnnviz.cli.merge import SHOWN, passed_on, without_own
from cnnviz.cli.options import OutputOptions
from cnnviz.cli.outcome import current
from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError

LISTED = 8
"""Differences that are named."""
PASSING = frozenset({"seconds", "folder", "folders", "features_reused"})
"""Keys of results that hang on the day or the place."""
ABOUT = ("version", "device", "precision", "seed")


def rerun(given: RerunCommand) -> None:
    """Runs `cnnviz rerun`."""
    current().command = "rerun"
    before = _read(given.summary)
    command, line = before["command"], without_own(before["argv"][1:])
    if share := before.get("shard"):
        line += ["--shard", f"{share['number']}/{share['count']}"]
    root = given.output.out or Path("cnnviz-out") / "rerun"
    place = given.summary if given.summary.is_dir() else given.summary.parent
    if place.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{root} holds the run itself; give --out another folder")
    own = ["--out", str(root), *passed_on(given.output)]
    own += ["--overwrite"] * given.output.overwrite + ["--quiet"] * given.output.json
    if not given.output.quiet:
        say(f"cnnviz {shlex.join([command, *line])}"[:SHOWN])
    from cnnviz.cli.main import run

    status = run([command, *line, *own])
    if status not in (0, 1, 3):
        raise typer.Exit(status)
    if status == 1 and not before.get("errors"):
        raise CnnvizError("the run has errors that it had not before; nothing is compared")
    found = [path for path in root.rglob("summary.json") if _is_of(path, command, share)]
    if len(found) != 1:
        raise CnnvizError(f"{root} holds {len(found)} summaries of {command}; nothing is compared")
    _compare(before, _read(found[0]), given.tolerance, given.output)
    if status:
        raise typer.Exit(status)


def _read(path: Path) -> dict[str, Any]:
    """A summary that can be repeated.

    Raises:
        UsageError: it is none.
    """
    from cnnviz.cli.main import COMMANDS
    from cnnviz.core.files import from_json, read_text

    place = path / "summary.json" if path.is_dir() else path
    try:
        content: Any = from_json(read_text(place))
        command, argv = content["command"], content["argv"]
        known = command in COMMANDS and content["schema"] == f"cnnviz.{command}/1"
        named = argv and argv[0] == command and all(isinstance(word, str) for word in argv)
        if share := content.get("shard"):
            content["shard"] = {key: int(share[key]) for key in ("number", "count")}
    except CnnvizError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"'{place}' is no summary of cnnviz") from error
    if not known or not named:
        raise UsageError(f"'{place}' is no summary of a command that can be repeated")
    return dict(content)


def _is_of(path: Path, command: str, share: object) -> bool:
    try:
        found = _read(path)
    except CnnvizError:
        return False
    return bool(found["command"] == command and found.get("shard") == share)


def _compare(
    before: dict[str, Any], after: dict[str, Any], tolerance: float, output: OutputOptions
) -> None:
    """Says what differs.

    Raises:
        CheckFailed: the results do.
    """
    told = [
        f"{key} was {before.get(key)} and is {after.get(key)}"
        for key in ABOUT
        if before.get(key) != after.get(key)
    ]
    weights = [(summary.get("model") or {}).get("weights_sha256") for summary in (before, after)]
    if weights[0] != weights[1]:
        told.append("the network has other weights")
    pairs = list(_leaves(before.get("results"), after.get("results"), "results"))
    pairs += _leaves(before.get("errors"), after.get("errors"), "errors")
    differing = [pair for pair in pairs if not _same(pair[1], pair[2], tolerance)]
    if output.json:
        content = {
            "same": not differing,
            "compared": len(pairs),
            "differing": len(differing),
            "told": told,
            "first": [
                dict(zip(("place", "was", "is"), p, strict=True)) for p in differing[:LISTED]
            ],
        }
        findings().write(json.dumps(content, ensure_ascii=False) + "\n")
        current().printed = True
    for text in told if not output.quiet else ():
        say(f"note: {text}")
    if differing:
        listed = "; ".join(f"{place}: {was} -> {now}" for place, was, now in differing[:LISTED])
        more = f" and {len(differing) - LISTED} more" if len(differing) > LISTED else ""
        raise CheckFailed(f"{len(differing)} of {len(pairs)} values differ: {listed}{more}")
    if not (output.quiet or output.json):
        findings().write(f"all {len(pairs)} values are the same\n")


def _leaves(was: Any, now: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Everything in two summaries that is no dictionary and no list, side by side."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            if key not in PASSING:
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
