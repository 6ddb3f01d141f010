"""What sweeping every filter of a layer costs, replayed and by whole hooked passes.

Both contenders see the same random images in one process, in turns, and both count answers as the
command does. The whole passes are measured on a few filters and all of the images, and scaled to
the number of filters: each filter costs them the same. The replay is measured in full, with its
rehearsal. Processor time is shown too, since it does not count what other programs take.

    python benchmarks/ablation_sweep.py --layer layer4.1.conv2 --layer layer3.0.conv1 --layer conv1
    python benchmarks/ablation_sweep.py --model bundled --images 1000      (every convolution)
"""

import argparse
import resource
from collections.abc import Callable, Sequence

import torch
from timing import Seconds, spread, timed
from torch import Tensor

from cnnviz.core.models.load import Model, load_model
from cnnviz.filters.ablation.replay import Replay, WholePasses, default_memory
from cnnviz.filters.ablation.tally import Tally
from cnnviz.filters.channels import Channels, LayerChannels

TARGETS = {"layer4.1.conv2": 100.0, "layer3.0.conv1": 1.8, "conv1": 1.0}


def count(model: Model, passes: Replay | WholePasses, images: Tensor, ablations: int) -> None:
    """Every ablation of every image, answers counted."""
    tally = Tally(ablations, model.classes, 0, model.device, model.head)
    labels = torch.arange(len(images)) % model.classes
    with torch.inference_mode():
        for part in torch.split(torch.arange(len(images)), passes.images):
            tally.start(labels[part])
            passes.run(images[part], tally.add)
    tally.finish()


def replayed(model: Model, images: Tensor, ablations: Sequence[Channels], memory: int) -> None:
    """The whole sweep, planning and rehearsal included."""
    passes = Replay(model, ablations, {}, first=images, memory=memory)
    count(model, passes, images, len(ablations))


def compare(
    model: Model, layer: str, channels: int, images: Tensor, options: argparse.Namespace
) -> None:
    """Runs both in turns and prints medians, ranges and the ratio."""
    sweep: list[Channels] = [{}, *({layer: (channel,)} for channel in range(channels))]
    some = sweep[1 : 1 + options.whole]
    whole = WholePasses(model, some, {}, images=options.batch_size)
    contenders: dict[str, Callable[[], object]] = {
        "whole passes": lambda: count(model, whole, images, len(some)),
        "replay": lambda: replayed(model, images, sweep, options.memory),
    }
    warm_up = images[: options.batch_size]
    count(model, whole, warm_up, len(some))
    replayed(model, warm_up, sweep[:9], options.memory)
    times: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for repeat in range(options.repeats):
        for name in sorted(contenders, reverse=repeat % 2 == 0):
            times[name].append(timed(model.device, contenders[name]))
    scale = channels / len(some)
    print(f"{layer}: {channels} filters, {len(images)} images")
    for number, clock in enumerate(("wall-clock", "processor")):
        plain = [row[number] * scale for row in times["whole passes"]]
        quick = [row[number] for row in times["replay"]]
        print(f"  {clock:>10}  whole passes {spread(plain)} s (from {len(some)} filters)")
        print(f"  {clock:>10}  replay       {spread(quick)} s")
        ratios = [p / q for p, q in zip(plain, quick, strict=True)]
        target = f" (target {TARGETS[layer]:g})" if layer in TARGETS else ""
        print(f"  {clock:>10}  ratio        {spread(ratios)}{target}")


def sweep_all(model: Model, images: Tensor, memory: int) -> None:
    """Every filter of every convolution in one go."""
    layers = LayerChannels(model)
    counts = layers.counts(layers.convolutions())
    sweep: list[Channels] = [{}]
    sweep += [{name: (channel,)} for name, total in counts.items() for channel in range(total)]
    wall, processor = timed(model.device, lambda: replayed(model, images, sweep, memory))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(sweep) - 1} filters of {len(counts)} convolutions, {len(images)} images: "
        f"{wall:.0f} s wall-clock, {processor:.0f} s processor, {peak:.0f} MiB at the peak"
    )


def main() -> None:
    """Parses, loads, prints the configuration and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--layer", action="append", help="default: every convolution in one go")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--whole", type=int, default=2, help="filters for the whole passes")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--memory", type=int, help="MiB")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    weights = None if options.model == "bundled" else "none"
    model = load_model(options.model, weights=weights, device=options.device)
    options.memory = options.memory * 2**20 if options.memory else default_memory(model.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.images, 3, *model.input_size, generator=generator)
    print(
        f"{model.name} on {model.device}, torch {torch.__version__}, {options.threads} threads, "
        f"batches of {options.batch_size}, {options.memory / 2**20:.0f} MiB for the replay"
    )
    if not options.layer:
        sweep_all(model, images, options.memory)
    for layer in options.layer or ():
        channels = LayerChannels(model).counts([layer])[layer]
        compare(model, layer, channels, images, options)


if __name__ == "__main__":
    main()
