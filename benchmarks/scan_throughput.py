"""How fast the commands go through a data set, beside what a user would write by hand.

For each network: `max-patches` of its last convolution and of all, the features of `tsne`, and one
`ablate` of a filter; (a) the eager loop with a torch DataLoader, torchvision's transforms and hooks
that does the same, in each batch size given; (b) the bare pass of the folded, channels-last network
over the same loader as ours, in the first of them. The commands choose their batch size themselves.
All in one process, in turns, the order swapped every round; processor time, all threads. Networks
of random weights: their time does not depend on what they know.

    python benchmarks/scan_throughput.py DATA --model resnet50 --batch-size 16 --batch-size 4
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from timing import Seconds, spread, timed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from cnnviz.core.data.datasets import ImageData, batches, open_data
from cnnviz.core.models.layers import conv_layers, named_layers
from cnnviz.core.models.load import Model, load_model
from cnnviz.core.models.variants import fast
from cnnviz.embeddings.features import extract
from cnnviz.embeddings.penultimate import FeatureExtractor
from cnnviz.filters.ablation.replay import ablation_passes
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import make_plan, scan

Loader = DataLoader[Tensor]
TOP = 9


class Files(Dataset[Tensor]):
    """The data as torchvision would read it."""

    def __init__(self, data: ImageData, model: Model) -> None:
        """Takes torchvision's transforms with the model's numbers."""
        p = model.preprocess
        self._paths = [example.path for example in data.examples]
        self._transform = v2.Compose(
            [
                v2.Resize(p.resize or p.crop, antialias=True),
                v2.CenterCrop(p.crop),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(p.mean, p.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as picture:
            found: Tensor = self._transform(picture.convert("RGB"))
        return found


def on_device(loader: Loader, module: nn.Module) -> Iterator[Tensor]:
    """The images where the network is."""
    device = next(module.parameters()).device
    return (images.to(device) for images in loader)


@torch.inference_mode()
def patches_by_hand(module: nn.Module, loader: Loader, layers: list[str]) -> None:
    """The images that excite each filter most: a hook, and a running `topk`."""
    best: dict[str, tuple[Tensor, Tensor]] = {}
    seen = 0

    def hook_of(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_layer: nn.Module, _given: object, maps: Tensor) -> None:
            values, units = maps.flatten(2).max(2)
            places = (
                units
                + (torch.arange(len(maps), device=maps.device)[:, None] + seen) * maps[0, 0].numel()
            )
            if name in best:
                values, places = (
                    torch.cat([best[name][0], values]),
                    torch.cat([best[name][1], places]),
                )
            values, rows = values.topk(min(TOP, len(values)), dim=0)
            best[name] = values, places.gather(0, rows)

        return hook

    modules = named_layers(module)
    hooks = [modules[name].register_forward_hook(hook_of(name)) for name in layers]
    for images in on_device(loader, module):
        module(images)
        seen += len(images)
    for hook in hooks:
        hook.remove()


@torch.inference_mode()
def features_by_hand(module: nn.Module, loader: Loader) -> None:
    """What goes into the last linear layer (of SqueezeNet: convolution)."""
    found: list[Tensor] = []
    heads = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hook = heads[-1].register_forward_pre_hook(
        lambda _layer, given: found.append(
            given[0].flatten(2).mean(2) if given[0].dim() == 4 else given[0].clone()
        )
    )
    for images in on_device(loader, module):
        module(images)
    hook.remove()
    torch.cat(found)


@torch.inference_mode()
def ablation_by_hand(module: nn.Module, loader: Loader, layer: str) -> None:
    """One pass as it is, one with a filter at zero."""

    def hook(_layer: nn.Module, _given: object, maps: Tensor) -> Tensor:
        maps = maps.clone()
        maps[:, 0] = 0
        return maps

    for images in on_device(loader, module):
        module(images).argmax(1)
        handle = named_layers(module)[layer].register_forward_hook(hook)
        module(images).argmax(1)
        handle.remove()


def refuse(_index: int, message: str) -> None:
    """No picture may fail here."""
    raise SystemExit(message)


@torch.inference_mode()
def bare(quick: Model, data: ImageData, batch_size: int) -> None:
    """The folded network over our loader, and nothing else."""
    for batch in batches(data, quick.preprocess, batch_size, on_error=refuse):
        quick.outputs(batch.images)


@torch.inference_mode()
def ablation(model: Model, data: ImageData, batch_size: int, layer: str) -> None:
    """What `ablate --filters LAYER:0` runs."""
    quick, passes = fast(model, [layer]), None
    for batch in batches(data, model.preprocess, batch_size, on_error=refuse):
        passes = passes or ablation_passes(quick, [{}, {layer: (0,)}], {}, first=batch.images)
        passes.run(batch.images, lambda _images, _ablations, logits: logits.argmax(2))


def measure(
    model: Model, data: ImageData, sizes: Sequence[int], rounds: int, only: str = ""
) -> None:
    """Runs all contenders in turns and prints the ratios."""
    convs = conv_layers(model.module)
    last = convs[-1:]
    quick, extractor = fast(model), FeatureExtractor(model)

    def scanned(layers: list[str]) -> Callable[[], object]:
        plan = make_plan(model, MaxPatchesSpec(layers=tuple(layers)))
        return lambda: scan(model, data, plan)

    contenders: dict[str, tuple[Callable[[], object], Callable[[Loader], object]]] = {
        "max-patches, last layer": (
            scanned(last),
            lambda loader: patches_by_hand(model.module, loader, last),
        ),
        "max-patches, all layers": (
            scanned(convs),
            lambda loader: patches_by_hand(model.module, loader, convs),
        ),
        "tsne features": (
            lambda: extract(model, data, extractor),
            lambda loader: features_by_hand(model.module, loader),
        ),
        "ablate one filter": (
            lambda: ablation(model, data, sizes[0], last[0]),
            lambda loader: ablation_by_hand(model.module, loader, last[0]),
        ),
    }
    contenders = {name: pair for name, pair in contenders.items() if only in name}
    runs: dict[tuple[str, int], Callable[[], object]] = {
        ("bare", 0): lambda: bare(quick, data, sizes[0])
    }
    for name, (ours, by_hand) in contenders.items():
        runs[name, 0] = ours
        for size in sizes:
            runs[name, size] = partial(by_hand, DataLoader(Files(data, model), size))
    times: dict[tuple[str, int], list[Seconds]] = {key: [] for key in runs}
    for number in range(rounds + 1):
        for key in sorted(runs, reverse=number % 2 == 1):
            took = timed(model.device, runs[key])
            if number:  # the first round warms up
                times[key].append(took)
    clock = 0 if model.device.type == "cuda" else 1  # wall-clock or processor time
    floor = [took[clock] for took in times["bare", 0]]
    print(f"\n{model.name}: {len(data) / statistics.median(floor):.1f} images/s bare and folded")
    for name in contenders:
        own = [took[clock] for took in times[name, 0]]
        above = [a / b for a, b in zip(own, floor, strict=True)]
        rate = len(data) / statistics.median(own)
        print(f"  {name:<24} {rate:6.1f} images/s   {spread(above)} x the time of the bare pass")
        for size in sizes:
            by_hand_times = [took[clock] for took in times[name, size]]
            gains = [b / a for a, b in zip(own, by_hand_times, strict=True)]
            print(f"  {'':<24} {spread(gains)} x as fast as the loop by hand, batches of {size}")


def main() -> None:
    """Parses, loads and measures each network."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--model", action="append")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, action="append")
    parser.add_argument("--only", default="", help="part of the contenders' names")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sizes = options.batch_size or [16]
    torch.set_num_threads(options.threads)
    data = open_data(options.data, limit=options.limit)
    print(
        f"torch {torch.__version__}, {options.device}, {options.threads} threads: {len(data)} "
        f"images in batches of {sizes}, {options.rounds} rounds"
    )
    for name in options.model or ["resnet50", "mobilenet_v2"]:
        weights = None if options.checkpoint else "none"
        model = load_model(
            name, checkpoint=options.checkpoint, weights=weights, device=options.device
        )
        measure(model, data, sizes, options.rounds, options.only)


if __name__ == "__main__":
    main()
