"""Are shares of a data set, joined, what one run finds, also where ranks were killed on the way?

    python benchmarks/shards.py /data/test --command max-patches --shares 2 4 --kills 10

Each command runs once over all images, then in shares (as many processes at a time as there are
cores); all files but `summary.json` are compared byte by byte, pictures included, and the summary
but for its times and its command line. Then a rank is killed (SIGKILL) at random moments and
repeated with `--resume`, and the whole is compared again.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMANDS = {
    "max-patches": ["--save-every", "1"],
    "tsne": ["--no-pictures", "--method", "pca"],
    "ablate": ["--filters", "stem.conv:0-3", "--sweep", "stem.conv"],
    "occlude": ["--mask", "8", "--stride", "8", "--pictures", "overlay"],
}
START = 3.0
"""Seconds that a run takes to begin."""
TIMES = ("argv", "elapsed_seconds")


def started(line: list[str]) -> subprocess.Popen[bytes]:
    """A run of cnnviz, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "cnnviz.cli", *line, "--quiet"]
    return subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)  # noqa: S603


def shares(line: list[str], out: Path, count: int) -> float:
    """Goes through all shares, some at a time; the seconds it took."""
    began, waiting = time.perf_counter(), list(range(count))
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < len(os.sched_getaffinity(0)):
            share = f"{waiting.pop(0)}/{count}"
            running.append(started([*line, "--out", str(out), "--shard", share]))
        running.pop(0).wait()
    return time.perf_counter() - began


def killed(line: list[str], out: Path, share: str, kills: int, took: float) -> int:
    """Repeats a rank, killed at random moments of what it has left; how often it was killed."""
    draw, count = random.Random(0), 0  # noqa: S311
    for _ in range(kills):
        child = started([*line, "--out", str(out), "--shard", share, "--resume"])
        try:
            child.wait(draw.uniform(START, START + 2 * took / kills))
        except subprocess.TimeoutExpired:
            child.kill()
            count += 1
        child.wait()
    started([*line, "--out", str(out), "--shard", share, "--resume"]).wait()
    return count


def content(folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """All files but the summary, and the summary without what may differ."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    summary = json.loads(found.pop("summary.json"))
    if summary["command"] == "tsne":
        for key in ("features_reused", "seconds"):
            summary["results"].pop(key, None)
    return found, {key: value for key, value in summary.items() if key not in TIMES}


def merged(parts: Path, out: Path) -> float:
    """Joins the shares; the seconds it took."""
    began = time.perf_counter()
    shutil.rmtree(out, ignore_errors=True)
    if started(["merge", str(parts), "--out", str(out)]).wait() not in (0, 1):
        raise SystemExit(f"merge of {parts} failed")
    return time.perf_counter() - began


def compare(name: str, whole: Path, joined: Path, said: str) -> None:
    """Says whether the two folders hold the same."""
    (files, summary), (others, other) = content(whole), content(joined)
    differing = sorted({*files} ^ {*others}) + [n for n in files if files[n] != others.get(n)]
    equal = f"{len(files)} files byte-equal" if not differing else f"DIFFERS: {differing[:5]}"
    print(f"{name:<12} {said}; {equal}; summaries {'equal' if summary == other else 'DIFFER'}")


def main() -> None:
    """Prints a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("data", type=Path)
    parser.add_argument("--command", action="append", choices=[*COMMANDS])
    parser.add_argument("--shares", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    for command in options.command or COMMANDS:
        line = [command, str(options.data), *COMMANDS[command]]
        with tempfile.TemporaryDirectory() as place:
            whole, joined = Path(place, "whole"), Path(place, "joined")
            began = time.perf_counter()
            started([*line, "--out", str(whole)]).wait()
            one = time.perf_counter() - began
            for count in options.shares:
                parts = Path(place, f"parts{count}")
                took = shares(line, parts, count)
                seconds = merged(parts, joined)
                said = (
                    f"{count} shares: {one:.0f} s alone, {took:.0f} s shared, merge {seconds:.0f} s"
                )
                compare(command, whole, joined, said)
            if options.kills:
                shutil.rmtree(parts / f"shard-1-of-{count}")
                times = killed(line, parts, f"1/{count}", options.kills, took / 2)
                merged(parts, joined)
                compare(command, whole, joined, f"rank 1 of {count} killed {times} times")


if __name__ == "__main__":
    main()
