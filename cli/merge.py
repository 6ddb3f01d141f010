"""`cnnviz merge`: what the shares of a data set found, as one run would have written it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cnnviz.cli.commands.runs import MergeCommand
from cnnviz.cli.console import say
from cnnviz.cli.outcome import current
from cnnviz.core.errors import CnnvizError, UsageError

if TYPE_CHECKING:
    from cnnviz.core.output.run_folder import RunFolder

OWN = {"--out": 1, "-o": 1, "--shard": 1, "--resume": 0, "--overwrite": 0, "--json": 0}
OWN |= {"--report": 0, "--quiet": 0, "-q": 0, "--progress": 1, "--junit": 1}
"""Options that a share and the whole do not have in common, with the number of their values."""
SHOWN = 200
"""Letters of the shares' command that are shown."""


def merge(given: MergeCommand) -> None:
    """Runs `cnnviz merge`."""
    shares = _checked([_Share.read(folder) for folder in _below(given.folders)])
    command, line = shares[0].command, shares[0].line
    from cnnviz.core.output.run_folder import RunFolder

    root = given.output.out or Path("cnnviz-out") / "merged"
    paths = [share.folder for share in shares]
    folder = RunFolder.open(root, overwrite=given.output.overwrite)
    _join(paths, folder, shares[0].content["shard"]["of"])
    del folder  # and its lock: the command opens it
    own = ["--out", str(root), "--resume", "--shard", "0/1"]
    own += (
        ["--report"] * given.output.report
        + ["--quiet"] * given.output.quiet
        + ["--json"] * given.output.json
    )
    own += ["--progress", given.output.progress.value]
    own += ["--junit", str(given.output.junit)] if given.output.junit else []
    if not given.output.quiet:
        say(f"{len(shares)} shares of: cnnviz {shlex.join([command, *line])}"[:SHOWN])
    from cnnviz.cli.main import run

    status = run([command, *line, *own])
    current().printed = given.output.json  # by that run
    raise typer.Exit(status)


def _join(shares: Sequence[Path], folder: "RunFolder", identity: dict[str, Any]) -> None:
    """Joins the journals of the shares."""
    from cnnviz.core.output.journal import LINES, Merge, join, join_lines
    from cnnviz.embeddings.features import file as features
    from cnnviz.filters.ablation import choices as ablation
    from cnnviz.filters.ablation import tally
    from cnnviz.filters.patches import choices as patches
    from cnnviz.filters.patches import state

    if (shares[0] / LINES).exists():
        join_lines(shares, folder, identity)
        return
    merges: dict[str, Merge] = {
        features.FEATURES: partial(features.merge, scratch=folder.path),
        patches.STATE: state.merge,
        ablation.STATE: tally.merge,
    }
    for name, merge in merges.items():
        if (shares[0] / name).exists():
            join([share / name for share in shares], folder.path / name, merge)
            return
    raise CnnvizError(f"{shares[0]} has no journal; expected one of {', '.join([LINES, *merges])}")


@dataclass(frozen=True)
class _Share:
    """A finished run with `--shard`.

    Attributes:
        folder: where it is.
        content: its summary.
        command: its name.
        line: what it was called with, without what is the share's own.
    """

    folder: Path
    content: dict[str, Any]
    command: str
    line: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> "_Share":
        """The share in a folder.

        Raises:
            UsageError: there is no finished run with `--shard` in it.
        """
        from cnnviz.core.files import from_json, read_text
        from cnnviz.core.output.run_folder import SUMMARY

        try:
            content: Any = from_json(read_text(folder / SUMMARY))
            command, *line = map(str, content["argv"])
            known = content["schema"] == f"cnnviz.{command}/1" and command == content["command"]
            number, count = int(content["shard"]["number"]), int(content["shard"]["count"])
        except (CnnvizError, ValueError, LookupError, TypeError) as error:
            raise UsageError(
                f"{folder} holds no finished run with --shard; "
                "if it was cut off, repeat its command with --resume"
            ) from error
        if not known or not 0 <= number < count:
            raise UsageError(f"{folder / SUMMARY} is no summary of a share")
        return cls(folder, content, command, tuple(without_own(line)))

    @property
    def number(self) -> int:
        return int(self.content["shard"]["number"])


def without_own(line: Sequence[str]) -> list[str]:
    """A command's arguments but for those that say where a run writes and what it says."""
    kept: list[str] = []
    rest = iter(line)
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in OWN:
            kept.append(word)
        elif OWN[name] and not equals:
            next(rest, None)
    return kept


def _below(folders: Sequence[Path]) -> list[Path]:
    """The folders themselves, or the shares in them."""
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no folder '{folder}'")
        inside = sorted(path for path in folder.glob("shard-*-of-*") if path.is_dir())
        found += inside or [folder]
    return found


def _checked(shares: Sequence[_Share]) -> list[_Share]:
    """The shares in their order.

    Raises:
        UsageError: one is missing or twice there, or they are not of one question, of one data
            set and by one network.
    """
    count = int(shares[0].content["shard"]["count"])
    by_number = {share.number: share for share in shares}
    if len(by_number) < len(shares):
        raise UsageError("a share is there twice; give the folders of one run")
    if missing := [number for number in range(count) if number not in by_number]:
        named = ", ".join(f"{number}/{count}" for number in missing)
        raise UsageError(f"missing: --shard {named}; run it, or with --resume if it was cut off")
    first = by_number[0]
    for share in shares:
        parts = {
            "number of shares": (int(share.content["shard"]["count"]), count),
            "command": (share.command, first.command),
            "options": (share.line, first.line),
            "network": (share.content["model"], first.content["model"]),
            "precision": (share.content["precision"], first.content["precision"]),
            "data or question": (_digest(share), _digest(first)),
        }
        differing = [name for name, (own, other) in parts.items() if own != other]
        if differing:
            raise UsageError(
                f"{share.folder} and {first.folder} differ in {', '.join(differing)}; "
                "shares of one run are wanted"
            )
    return [by_number[number] for number in range(count)]


def _digest(share: _Share) -> str:
    return json.dumps(share.content["shard"]["of"], sort_keys=True)
