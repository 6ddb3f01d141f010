"""What a scan of every filter of every convolution costs beside the bare forward pass.

Both contenders read the same images through the same loader in one process, in turns; the order
swaps every time. Wall-clock time is what users see; processor time is shown too, since it does
not count what other programs on the machine take. Peak memory is measured in processes of their
own, one for each number of images.

    python benchmarks/max_patches_overhead.py DATA --model squeezenet1_1 --checkpoint W.pth
    python benchmarks/max_patches_overhead.py DATA --memory 1000,10000
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import Seconds, spread, timed

from cnnviz.core.data.datasets import ImageData, batches, open_data
from cnnviz.core.models.load import Model, load_model
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import ScanPlan, make_plan, scan

TARGET = 1.25


def bare(model: Model, data: ImageData, batch_size: int) -> None:
    """A forward pass over the data and nothing else."""
    with torch.inference_mode():
        for batch in batches(data, model.preprocess, batch_size, on_error=_refuse):
            model.logits(batch.images)


def _refuse(_index: int, message: str) -> None:
    raise SystemExit(message)


def compare(model: Model, data: ImageData, plan: ScanPlan, batch_size: int, repeats: int) -> None:
    """Runs both in turns and prints medians, ranges and the ratio of each pair."""
    contenders: dict[str, Callable[[], object]] = {
        "bare forward": lambda: bare(model, data, batch_size),
        "scan": lambda: scan(model, data, plan),
    }
    times: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name in sorted(contenders, reverse=repeat % 2 == 1):
            took = timed(model.device, contenders[name])
            if repeat:  # the first round warms up
                times[name].append(took)
    for number, clock in enumerate(("wall-clock", "processor")):
        for name, rows in times.items():
            print(f"{clock:>10}  {name:<13} {spread([row[number] for row in rows])} s")
        pairs = zip(times["scan"], times["bare forward"], strict=True)
        ratios = [scanned[number] / plain[number] for scanned, plain in pairs]
        print(f"{clock:>10}  ratio         {spread(ratios)} (target {TARGET})")


def compare_memory(arguments: list[str], counts: list[int]) -> None:
    """Prints the peak memory of a scan of each number of images, each in a fresh process."""
    peaks = []
    for count in counts:
        command = [sys.executable, __file__, *arguments, "--limit", str(count), "--peak"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        peaks.append(float(done.stdout.split()[-1]))
        print(f"{count:>7} images: {peaks[-1]:.0f} MiB at the peak")
    print(f"growth from {counts[0]} to {counts[-1]}: {peaks[-1] / peaks[0] - 1:+.1%} (target 10 %)")


def main() -> None:
    """Parses, loads, prints the configuration and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", help="numbers of images, with a comma between")
    parser.add_argument("--peak", action="store_true", help="scan once and print the peak memory")
    options = parser.parse_args()
    if options.memory:
        given = [a for a in sys.argv[1:] if a not in ("--memory", options.memory)]
        compare_memory(given, [int(count) for count in options.memory.split(",")])
        return
    torch.set_num_threads(options.threads)
    model = load_model(options.model, checkpoint=options.checkpoint, device=options.device)
    data = open_data(options.data, limit=options.limit)
    plan = make_plan(model, MaxPatchesSpec())
    filters = sum(map(len, plan.filters.values()))
    print(
        f"{model.name} on {model.device}, torch {torch.__version__}, {options.threads} threads: "
        f"{len(data)} images of {model.input_size}, bare in batches of {options.batch_size}, "
        f"{filters} filters in {len(plan.filters)} layers, top {plan.spec.top} by {plan.spec.score}"
    )
    if options.peak:
        scan(model, data, plan)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    compare(model, data, plan, options.batch_size, options.repeats)


if __name__ == "__main__":
    main()
