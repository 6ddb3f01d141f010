"""What a cluster costs: throughput against one process, the driver's memory, and joining journals.

    python benchmarks/cluster.py throughput cifar/ --images 5000
    python benchmarks/cluster.py memory
    python benchmarks/cluster.py join --journals 512

`throughput` runs max-patches (all convolutions, the bundled network) in one process with two
threads, and with `--cluster ray --workers 2`; processor time is that of all processes. `memory`
stores the blocks of lists of 10,000 to 1,000,000 images that exist in memory alone. `join` joins
journals of 3,944 filters (SqueezeNet's) in a tree, as they arrive.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import torch
from million import MANY, network, synthetic
from timing import resident

from cnnviz.core.data.shards import Block
from cnnviz.core.output.blocks import JOURNAL, Blocks, block_size, of_journals, pack
from cnnviz.core.output.journal import Journal
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import make_plan
from cnnviz.filters.patches.state import LayerState, check, merge, to_arrays
from cnnviz.filters.patches.top_k import EMPTY, TopK
from cnnviz.filters.patches.top_k import pack as keys_of

BATCH = 256
CLOCKS = (time.perf_counter, time.process_time)


def timed(line: list[str], threads: int) -> tuple[float, float]:
    """Runs cnnviz; returns seconds, and processor seconds of it and of all that it starts."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    began, spent = time.perf_counter(), dict[int, float]()
    child = psutil.Popen([sys.executable, "-m", "cnnviz.cli", *line, "--quiet"], env=environment)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for process in [child, *child.children(recursive=True)]:
                try:
                    times = process.cpu_times()
                except psutil.Error:
                    continue
                spent[process.pid] = times.user + times.system

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = child.wait()
    ended.set()
    watcher.join()
    if status:
        raise SystemExit(f"{' '.join(line)} ended with {status}")
    return time.perf_counter() - began, sum(spent.values())


def throughput(data: Path, images: int) -> None:
    """Prints both runs, for few images and for all: the difference is what the images take."""
    with tempfile.TemporaryDirectory() as place:
        for name, more, threads in (
            ("one process", [], 2),
            ("two workers", ["--cluster", "ray", "--workers", "2"], 1),
        ):
            took = []
            for count in (images // 10, images):
                line = ["max-patches", str(data), "--limit", str(count), "--no-pictures", *more]
                took.append(timed([*line, "--out", f"{place}/{name} {count}"], threads))
                seconds, spent = took[-1]
                print(
                    f"{name}: {count} images {seconds:.1f} s, processor {spent:.1f} s", flush=True
                )
            rest = images - images // 10
            wall, spent = (took[1][k] - took[0][k] for k in (0, 1))
            print(f"{name}: {rest / wall:.0f} images/s, processor {1e3 * spent / rest:.2f} ms each")
        one, two = (Path(place, f"{n} {images}") for n in ("one process", "two workers"))
        command = ["diff", "-rq", "-x", "summary.json", str(one), str(two)]
        same = subprocess.run(command, check=False, capture_output=True).returncode == 0  # noqa: S603
        print("files equal" if same else "FILES DIFFER")


def memory() -> None:
    """Prints the driver's memory, with blocks of as many filters as the network of `million.py`."""
    model = network()
    plan = make_plan(model, MaxPatchesSpec())
    layers = [LayerState.empty(len(f), 9, "cpu") for f in plan.filters.values()]
    for count in (10_000, 100_000, 1_000_000):
        before = resident()
        data = synthetic(count)
        listed, most, began = resident(), 0.0, time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            step = of_journals(
                "scan", data, BATCH, {}, lambda _data, _journal: None, lambda _count: None, merge
            )
            blocks = Blocks(Path(place), step, resume=False)
            for block in blocks.missing(block_size(count, BATCH)):
                blocks.add(block, journal(layers, block, count))
                most = max(most, resident())
            blocks.joined()
        took, own, more = time.perf_counter() - began, listed - before, most - listed
        print(f"{count:9,d} images: list {own:.0f} MiB, then {more:.0f} MiB; {took:.1f} s")
        del data, step, blocks


def journal(layers: list[LayerState], block: range, total: int) -> bytes:
    """The folder of a block, as a worker sends it."""
    with tempfile.TemporaryDirectory() as folder:
        made = Journal(Path(folder, JOURNAL), {}, Block(block.start, block.stop, total))
        made.save(block.stop, {}, to_arrays(layers))
        return pack(Path(folder))


def filled(row: int) -> LayerState:
    """The state of many filters after one image, with random scores."""
    scores_NF = torch.randn(1, MANY, generator=torch.Generator().manual_seed(row))
    keys_FA = torch.full((MANY, 9), EMPTY)
    keys_FA[:, 0], units_FA = keys_of(scores_NF[0], torch.tensor(row)), torch.full((MANY, 9), -1)
    units_FA[:, 0] = row % 49
    stats = LayerState.empty(MANY, 9, "cpu").stats.with_scores(scores_NF, scores_NF)
    return LayerState(TopK(keys_FA, units_FA), stats)


def join(count: int) -> None:
    """Prints what storing and joining journals takes, without making them."""
    making, most = [0.0, 0.0], 0
    began = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as place:
        checked = partial(check, per_image=1)
        step = of_journals(
            "scan", synthetic(count), 1, {}, lambda *_: None, lambda _: None, merge, checked
        )
        blocks = Blocks(Path(place), step, resume=False)
        for block in blocks.missing(1):
            started = time.perf_counter(), time.process_time()
            content = journal([filled(block.start)], block, count)
            making = [a + clock() - b for a, b, clock in zip(making, started, CLOCKS, strict=True)]
            blocks.add(block, content)
            most = max(most, len(blocks.finished))
        blocks.joined()
    wall, spent = (clock() - b - m for clock, b, m in zip(CLOCKS, began, making, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{count} journals of {MANY} filters, {len(content) / 1e6:.1f} MB each, stored and joined "
        f"in {wall:.0f} s, processor {spent:.0f} s ({1e3 * spent / count:.1f} ms each); peak of "
        f"the process {peak:.0f} MiB, at most {most} journals on disk between joins"
    )


def main() -> None:
    """Runs one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("part", choices=("throughput", "memory", "join"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--journals", type=int, default=512)
    options = parser.parse_args()
    if options.part == "throughput":
        throughput(options.data, options.images)
    elif options.part == "memory":
        memory()
    else:
        join(options.journals)


if __name__ == "__main__":
    main()
