"""Whether decoding keeps up with the network: pictures per second, by the clock.

Our loader alone, a torch DataLoader with torchvision's transforms and as many workers, the folded
network alone, and `max-patches` of the last convolution, which cannot be faster than the slower of
the first and the third. Pictures are made of the ones given, at two sizes, as JPEG.

    python benchmarks/decoding.py PHOTOS --model resnet18
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from scan_throughput import Files, refuse
from torch.utils.data import DataLoader

from cnnviz.core.data.datasets import ImageData, batches, default_workers, open_data
from cnnviz.core.models.layers import conv_layers
from cnnviz.core.models.load import Model, load_model
from cnnviz.core.models.variants import fast
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import make_plan, scan

SIZES = ((500, 400), (4000, 3000))  # columns, rows


def made(photos: ImageData, size: tuple[int, int], count: int, folder: Path) -> ImageData:
    """So many pictures of one size."""
    for number in range(count):
        picture = photos.open(number % len(photos))
        assert isinstance(picture, Image.Image)  # noqa: S101 (told to mypy)
        picture.resize(size).save(folder / f"{number:03}.jpg", quality=90)
    return open_data([str(folder)])


def rate(count: int, run: Callable[[], object], rounds: int) -> float:
    """Pictures per second, the median of some rounds behind a first."""
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return count / statistics.median(seconds[1:])


def measure(model: Model, data: ImageData, batch_size: int, rounds: int) -> dict[str, float]:
    """Each by itself, and all together."""
    workers = default_workers()
    quick = fast(model)
    plan = make_plan(model, MaxPatchesSpec(layers=tuple(conv_layers(model.module)[-1:])))
    images = torch.randn(batch_size, *model.blank().shape[1:])
    loader = DataLoader(Files(data, model), batch_size, num_workers=workers)

    def network() -> None:
        with torch.inference_mode():
            for _ in range(0, len(data), batch_size):
                quick.outputs(images)

    def ours() -> None:
        for _ in batches(data, model.preprocess, batch_size, on_error=refuse):
            pass

    runs: dict[str, Callable[[], object]] = {
        "our loader": ours,
        f"DataLoader, {workers} workers": lambda: list(loader),
        "network": network,
        "max-patches": lambda: scan(model, data, plan, batch_size=batch_size),
    }
    return {name: rate(len(data), run, rounds) for name, run in runs.items()}


def main() -> None:
    """Parses, makes the pictures and measures both sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = load_model(options.model, weights="none")
    photos = open_data(options.photos)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {model.name}")
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            data = made(photos, size, options.count, Path(folder))
            found = measure(model, data, options.batch_size, options.rounds)
        print(f"{size[0]} x {size[1]}: " + ", ".join(f"{n} {r:.1f}/s" for n, r in found.items()))


if __name__ == "__main__":
    main()
