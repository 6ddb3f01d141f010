"""Golden outputs: what every command wrote before a change, compared with what it writes now.

    python tests/golden.py --store FOLDER     # before: runs all commands and keeps their outputs
    python tests/golden.py --check FOLDER     # after: runs them again and prints every difference

Compared are exit statuses, `summary.json` (without times, versions and paths), CSV files, the
arrays of NPZ files, the names of all files, and, with `--help-texts`, what `--help` prints.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = Path(__file__).parent.parent / "sample_images"
IGNORED = {
    "elapsed_seconds",
    "seconds",
    "other_seconds",
    "argv",
    "version",
    "fingerprint",
    "folder_of_run",
    "sources",
}
COMMANDS: dict[str, str] = {
    "occlude": "occlude S/truck.png S/frog.png --mask 8 --mask 12 --stride 4 --target top2 "
    "--label truck --expect S/truth.json --sufficient --verify",
    "occlude-cards": "occlude S/truck.png --mask 8 --stride 4 --trust",
    "occlude-layer": "occlude S/frog.png --mask 8 --stride 4 --layer features.block1.relu2 "
    "--method agreement --score logit",
    "render": "render R/occlude/truck --target automobile --score loss --colormap jet",
    "saliency": "saliency S/truck.png S/frog.png --method grad-cam --compare occlusion",
    "trust": "trust S/truck.png --target top2",
    "reasons": "reasons S/truck.png --cell 8 --grid 3 --segments grid --parts 4",
    "layers": "layers S --seed 1",
    "filters": "filters --layer all",
    "activations": "activations S/truck.png --layer features.block1.relu2",
    "max-patches": "max-patches S --layer features.block2.conv2 --layer stem.conv "
    "--filters random:6 --top 4",
    "ablate": "ablate S/labels.csv --filters stem.conv:random:8 --sweep stem.conv --cumulative",
    "ablate-mean": "ablate S/labels.csv --filters stem.conv:1,2 --mode mean",
    "tsne": "tsne S --perplexity 2",
    "audit": "audit S",
    "other": "audit S --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
    "filters-other": "filters --layer all --seed 3 --model resnet18 --weights none",
    "diff": "diff R/audit R/other --top 3",
    "diff-occlude": "diff R/occlude R/occlude",
    "diff-filters": "diff R/filters R/filters",
    "report": "report R/occlude R/tsne R/ablate R/max-patches --out R/page.html",
    "shard-0": "saliency S --shard 0/2 --out R/shares",
    "shard-1": "saliency S --shard 1/2 --out R/shares",
    "merge": "merge R/shares",
    "patches-0": "max-patches S --layer stem.conv --top 3 --shard 0/2 --out R/parts",
    "patches-1": "max-patches S --layer stem.conv --top 3 --shard 1/2 --out R/parts",
    "patches-merge": "merge R/parts",
    "tally-0": "ablate S/labels.csv --filters stem.conv:1 --shard 0/2 --out R/tallies",
    "tally-1": "ablate S/labels.csv --filters stem.conv:1 --shard 1/2 --out R/tallies",
    "tally-merge": "merge R/tallies",
    "rerun": "rerun R/occlude",
    "models": "models squeezenet --json",
    "refusal": "occlude S/truck.png --target unicorn",
}


def run_all(root: Path, only: set[str]) -> None:
    """Runs the commands into `root/NAME`; keeps status and what they print there too."""
    from cnnviz.cli.main import run

    for name, line in COMMANDS.items():
        if only and name not in only:
            continue
        words = [w.replace("S/", "samples/").replace("R/", "") for w in line.split()]
        words = ["samples" if w == "S" else w for w in words]
        if "--out" not in words and not name.startswith(("models", "refusal")):
            words += ["--out", name]
        out, err = io.StringIO(), io.StringIO()
        before = Path.cwd()
        os.chdir(root)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = run(
                    [*words, *([] if name in {"models", "report"} else ["--device", "cpu"])]
                    if words[0] not in {"models", "diff", "render", "report", "merge", "rerun"}
                    else words
                )
        finally:
            os.chdir(before)
        log = {"status": status, "stdout": out.getvalue(), "stderr": err.getvalue()}
        (root / f"{name}.log.json").write_text(json.dumps(log, indent=1))
        print(f"{name}: {status}", flush=True)


def helps(root: Path) -> None:
    """Keeps what `--help` prints."""
    from cnnviz.cli.main import COMMANDS as ALL
    from cnnviz.cli.main import run

    os.environ["COLUMNS"] = "100"
    for name in ["", *ALL]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            run([*([name] if name else []), "--help"])
        (root / f"help-{name or 'cnnviz'}.txt").write_text(out.getvalue())


def with_needed(only: set[str]) -> set[str]:
    """The named commands and those whose folders they read."""
    read = {
        word[2:].split("/")[0]
        for name in only
        for word in COMMANDS[name].split()
        if word.startswith("R/")
    }
    shards = {n for n in COMMANDS for r in read if f"--out R/{r}" in COMMANDS[n]}
    needed = only | shards | (read & COMMANDS.keys())
    return needed if needed == only else with_needed(needed)


def plain(value: Any) -> Any:
    """JSON data without what differs from run to run."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in IGNORED}
    return [plain(v) for v in value] if isinstance(value, list) else value


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two pieces of JSON data differ, up to float rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{place}.{k}: gone" for k in a.keys() - b.keys()]
        found += [f"{place}.{k}: added" for k in b.keys() - a.keys()]
        for key in a.keys() & b.keys():
            found += differences(a[key], b[key], f"{place}.{key}")
        return found
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            d
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{place}[{i}]")
        ]
    if isinstance(a, float) and isinstance(b, float | int) and np.isclose(a, b, 1e-5, 1e-7):
        return []
    return [] if a == b else [f"{place}: {str(a)[:60]} -> {str(b)[:60]}"]


def compare(old: Path, new: Path, only: set[str]) -> list[str]:
    """Every difference between two folders of outputs."""
    found = []
    for name in COMMANDS:
        if only and name not in only:
            continue
        logs = [json.loads((root / f"{name}.log.json").read_text()) for root in (old, new)]
        if logs[0]["status"] != logs[1]["status"]:
            found.append(
                f"{name}: status {logs[0]['status']} -> {logs[1]['status']}: "
                f"{logs[1]['stderr'][-300:]}"
            )
        files = [
            {p.relative_to(root).as_posix() for p in (root / name).rglob("*") if p.is_file()}
            for root in (old, new)
        ]
        found += [f"{f}: file gone" for f in sorted(files[0] - files[1])]
        found += [f"{f}: file added" for f in sorted(files[1] - files[0])]
        for file in sorted(files[0] & files[1]):
            found += [f"{file}{d}" for d in compare_file(old / file, new / file)]
    for path in sorted(old.glob("help-*.txt")) if not only else []:
        if (new / path.name).exists() and (new / path.name).read_text() != path.read_text():
            found.append(f"{path.name}: differs (diff {path} {new / path.name})")
    return found


def compare_file(old: Path, new: Path) -> list[str]:
    """Differences of one file, by its kind; pictures and pages are only there."""
    if old.suffix in {".json", ".jsonl"} and old.name != "journal.json":
        texts = [p.read_text() for p in (old, new)]
        if old.suffix == ".jsonl":
            datas = [[plain(json.loads(line)) for line in t.splitlines()] for t in texts]
        else:
            datas = [plain(json.loads(t)) for t in texts]
        return differences(*datas)
    if old.suffix == ".csv":
        rows = [p.read_text().splitlines() for p in (old, new)]
        if rows[0] == rows[1]:
            return []
        if len(rows[0]) != len(rows[1]):
            return [f": {len(rows[0])} -> {len(rows[1])} rows"]
        return [
            f":{i}: {a[:90]} -> {b[:90]}"
            for i, (a, b) in enumerate(zip(*rows, strict=True))
            if a != b
        ][:5]
    if old.suffix == ".npz":
        with np.load(old) as a, np.load(new) as b:
            found = [f".{k}: gone" for k in set(a) - set(b)] + [
                f".{k}: added" for k in set(b) - set(a)
            ]
            for key in set(a) & set(b):
                if key in {"header", "key", "paths"}:
                    continue
                x, y = a[key], b[key]
                same = x.shape == y.shape and (
                    np.allclose(x, y, 1e-5, 1e-6, equal_nan=True)
                    if x.dtype.kind in "fiub"
                    else bool((x == y).all())
                )
                found += [] if same else [f".{key}: differs"]
        return found
    return []


def main() -> int:
    """Stores or checks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path)
    parser.add_argument("--check", type=Path, nargs="?", const=Path("build/golden"))
    parser.add_argument("--only", default="")
    parser.add_argument("--help-texts", action="store_true")
    given = parser.parse_args()
    only = {name for name in given.only.split(",") if name}
    stored = given.store or given.check
    if stored is None:
        parser.error("--store FOLDER or --check FOLDER")
    root = stored.resolve() if given.store else Path(tempfile.mkdtemp())
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    shutil.copytree(SAMPLES, root / "samples")
    only = with_needed(only)
    run_all(root, only)
    if given.help_texts or given.store:
        helps(root)
    if given.store:
        return 0
    found = compare(stored.resolve(), root, only)
    print("\n".join(found) or "equal", f"\n(outputs: {root})")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
