"""Both occlusion engines against Captum's `Occlusion`, in one process, taking turns.

    python benchmarks/occlusion_vs_captum.py --model resnet18 --mask 15 --stride 10

Captum runs with the fastest of several `perturbations_per_eval`, found first. Every contender
computes the same positions of one random image of 224 x 224; Captum scores one class, the engines
all of them. Reported: the median and range of each contender's seconds, how many times as fast as
Captum, what the cost model predicted, and how far apart the results are.

The incremental engine is left out where `auto` would not take it.

On a machine that others use too, `--threads 1 --clock cpu` counts the processor's seconds instead
of the clock's, and `--part 24` times Captum and the full engine, whose cost is the same for every
position, on about that many positions and scales up.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from captum.attr import Occlusion
from torch import Tensor, nn

from cnnviz.core.choices import Precision
from cnnviz.occlusion.engines.choose import choose
from cnnviz.occlusion.engines.full import FullEngine
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import Network, prepare
from cnnviz.occlusion.masks import mask_grid
from cnnviz.occlusion.options import Border, EngineChoice

SIZE = 224
PER_EVAL = (1, 8, 32, 64)
TARGET = 0
TABLE = {
    "resnet18": 4, "resnet50": 3, "vgg16": 7, "mobilenet_v2": 7, "squeezenet1_1": 6,
    "efficientnet_b0": 3.5, "alexnet": 3, "googlenet": 2.5, "inception_v3": 2.5,
    "shufflenet_v2_x1_0": 2.5, "regnet_y_400mf": 2, "densenet121": 1.5, "convnext_tiny": 1.2,
    "vit_b_16": 1, "swin_t": 1,
}  # fmt: skip


def main() -> None:
    """Parses the command line and measures each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="torchvision name; default: the table's")
    parser.add_argument("--mask", type=int, default=15)
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--precision", default="fp32", choices=[p.value for p in Precision])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--per-eval", type=int, help="Captum's; default: best")
    parser.add_argument("--batch-size", type=int, help="of the full engine; default: automatic")
    parser.add_argument("--clock", default="wall", choices=["wall", "cpu"])
    parser.add_argument("--part", type=int, help="positions that Captum and full are timed on")
    parser.add_argument("--no-captum", action="store_true", help="compare the two engines alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads, "
        f"{options.precision}, {SIZE}x{SIZE}, mask {options.mask}, stride {options.stride}, "
        f"{options.rounds} rounds, {options.clock} clock, part {options.part or 'all'}"
    )
    for name in options.model or TABLE:
        measure(name, options)


def network_of(name: str) -> nn.Module:
    """The architecture with random weights; timing does not depend on them."""
    torch.manual_seed(0)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, **extra)
    return module.eval()


def measure(name: str, options: argparse.Namespace) -> None:
    """Alternates the contenders on one model and prints a paragraph."""
    device, dtype = torch.device(options.device), Precision(options.precision).dtype
    module = network_of(name).to(device)
    ours = network_of(name).to(device, dtype)
    started = time.perf_counter()
    network = prepare(ours, (SIZE, SIZE), device=device, dtype=dtype)
    prepared = time.perf_counter() - started
    mask = (options.mask, options.mask)
    boxes_P4 = mask_grid((SIZE, SIZE), mask, options.stride, Border.COVER).boxes_P4
    image = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(device)
    runs, scores = contenders(module, network, image, boxes_P4, options)
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {contender: [] for contender in runs}
    for _round in range(options.rounds):
        for contender, run in runs.items():
            scale = 1.0
            if options.part and contender != "incremental":
                scale = (len(boxes_P4) + 1) / (part_of(boxes_P4, options, contender) + 1)
            seconds[contender].append(scale * clocked(run, device, options.clock))
    report(name, len(boxes_P4), prepared, seconds, options)
    describe_costs(network, boxes_P4, options)
    compare(scores, len(boxes_P4) // options.part if options.part else 1)


def contenders(
    module: nn.Module,
    network: Network,
    image: Tensor,
    boxes_P4: Tensor,
    options: argparse.Namespace,
) -> tuple[dict[str, Callable[[], None]], dict[str, Tensor]]:
    """What to run, by name, and where each leaves its logits or Captum's differences."""
    fill, scores = torch.zeros_like(image), {}
    runs: dict[str, Callable[[], None]] = {}
    if not options.no_captum:
        per_eval = options.per_eval or fastest_per_eval(module, image, options)

        mask, stride = options.mask, options.stride
        if options.part:
            mask = stride = captum_side(options.part)

        def captum() -> None:
            run_captum(module, image, mask, stride, per_eval)

        runs[f"captum ({per_eval} per eval)"] = captum
    engines = [FullEngine(network, batch_size=options.batch_size)]
    best = choose(network, EngineChoice.AUTO, boxes_P4)
    if best.name == "incremental":
        engines.append(best)  # type: ignore[arg-type]
    for engine in engines:

        def run(engine: FullEngine = engine) -> None:
            step = len(boxes_P4) // options.part if options.part and engine.name == "full" else 1
            boxes = boxes_P4[:: max(1, step)]
            scores[engine.name] = engine.run(image, fill, boxes).logits_PK

        runs[engine.name] = run
    return runs, scores


def captum_side(part: int) -> int:
    """Side of masks that tile the image with about `part` of them."""
    return -(-SIZE // max(1, round(part**0.5)))


def part_of(boxes_P4: Tensor, options: argparse.Namespace, contender: str) -> int:
    """How many positions a contender is timed on."""
    if contender == "full":
        return len(boxes_P4[:: max(1, len(boxes_P4) // options.part)])
    return int((-(-SIZE // captum_side(options.part))) ** 2)


def fastest_per_eval(module: nn.Module, image: Tensor, options: argparse.Namespace) -> int:
    """Captum's best `perturbations_per_eval`, on masks side by side."""
    side = captum_side(options.part) if options.part else options.mask
    run_captum(module, image, SIZE, SIZE, 1)
    seconds = {
        per_eval: clocked(
            lambda n=per_eval: run_captum(module, image, side, side, n), image.device, options.clock
        )
        for per_eval in PER_EVAL
        if not options.part or per_eval <= options.part
    }
    print("captum by per_eval:", {k: f"{v:.2f} s" for k, v in seconds.items()})
    return min(seconds, key=lambda per_eval: seconds[per_eval])


def run_captum(module: nn.Module, image: Tensor, mask: int, stride: int, per_eval: int) -> Tensor:
    """Captum's own occlusion with the mean as fill (zero behind normalisation)."""
    with torch.no_grad():
        attribution: Tensor = Occlusion(module).attribute(
            image[None],
            target=TARGET,
            strides=(3, stride, stride),
            sliding_window_shapes=(3, mask, mask),
            baselines=0,
            perturbations_per_eval=per_eval,
        )
    return attribution


def clocked(run: Callable[[], object], device: torch.device, clock: str) -> float:
    """Seconds of one run, the device's work included."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = now()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return now() - started


def report(
    name: str,
    positions: int,
    prepared: float,
    seconds: dict[str, list[float]],
    options: argparse.Namespace,
) -> None:
    """Medians, ranges and ratios to the first contender."""
    print(f"\n{name}: {positions} positions, prepared in {prepared:.2f} s")
    first = statistics.median(next(iter(seconds.values())))
    for contender, times in seconds.items():
        median = statistics.median(times)
        print(
            f"  {contender:22} {median:7.2f} s  ({min(times):.2f} to {max(times):.2f})  "
            f"{first / median:5.2f} x"
        )
    if not options.no_captum and name in TABLE:
        print(f"  target of the best engine: {TABLE[name]} x captum")


def describe_costs(network: Network, boxes_P4: Tensor, options: argparse.Namespace) -> None:
    """What the cost model thought, and what `auto` takes."""
    if network.graph is None:
        print(f"  no incremental engine: {network.reason}")
        return
    engine = IncrementalEngine(network)
    batch_size = FullEngine(network, batch_size=options.batch_size).batch_size
    full, incremental = engine.predict_full(boxes_P4, batch_size), engine.predict(boxes_P4)
    groups = engine.plan(boxes_P4.numpy()).groups
    chosen = choose(network, EngineChoice.AUTO, boxes_P4).name
    print(
        f"  predicted: full {full:.2f} s, incremental {incremental:.2f} s "
        f"({full / incremental:.2f} x, {len(groups)} groups); auto takes {chosen}"
    )


def compare(scores: dict[str, Tensor], step: int) -> None:
    """How far the engines are apart."""
    if len(scores) == 2:
        full, incremental = scores.values()
        incremental = incremental[:: max(1, step)]
        difference = float((full - incremental).abs().max())
        relative = difference / float(full.abs().max())
        print(f"  largest logit difference {difference:.1e}, {relative:.1e} of the largest logit")
        probability = float((full.softmax(1) - incremental.softmax(1)).abs().max())
        print(f"  largest probability difference {probability:.1e}", flush=True)


if __name__ == "__main__":
    main()
