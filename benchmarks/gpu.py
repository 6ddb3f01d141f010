"""What cnnviz does on this GPU, in under six minutes: engines, matrix rate, scans, t-SNE features.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick     tests the benchmark where there is no GPU

Five parts, each with warm-up, the contenders in turns and the device's work included:
`matrices`, the rate of plain products in each number format, which bounds everything else;
`occlusion`, both engines against Captum's at the same positions (`occlusion_vs_captum.py`);
`graphs`, the next image of a run with the default masks: the full engine, and the incremental one
with its launches made one by one and replayed as a CUDA graph;
`scans`, images a second of `max-patches` of all convolutions and of the features of `tsne`, beside
the bare pass, on images in memory, and (`scan_throughput.py`) from files next to the loop
by hand; `neighbours`, exact ones on the device against Annoy (`tsne_time.py`).
Networks have random weights. What does not begin in time is named as left out.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import occlusion_vs_captum
import scan_throughput
import torch
import tsne_time
from PIL import Image
from timing import spread, timed

from cnnviz.core.data.datasets import Batch, ImageData, open_data
from cnnviz.core.models.layers import conv_layers
from cnnviz.core.models.load import Model, load_model
from cnnviz.core.models.variants import fast
from cnnviz.embeddings.penultimate import FeatureExtractor
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import Scan, make_plan
from cnnviz.occlusion.engines.choose import make_engine
from cnnviz.occlusion.masks import mask_grid, masks_and_stride
from cnnviz.occlusion.options import Border, EngineChoice

LIMIT = 330  # seconds; what runs then may take half a minute more
NETWORKS = ("resnet50", "mobilenet_v2", "resnet18", "vgg16")
STARTED = time.perf_counter()


def matrices(device: torch.device, side: int, rounds: int) -> None:
    """The rate of square products, 2 n³ operations each."""
    formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in formats.items():
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        took = [timed(device, lambda a=a, b=b: a @ b)[0] for _ in range(rounds + 1)][1:]
        rates = [2 * side**3 / seconds / 1e12 for seconds in took]
        print(f"  {name}: {spread(rates)} TFLOP/s ({side} x {side})")


def occlusion(name: str, options: argparse.Namespace) -> None:
    """Full and incremental engine against Captum, with its best `perturbations_per_eval`."""
    quick = options.quick
    occlusion_vs_captum.measure(
        name,
        argparse.Namespace(
            device=str(options.device), precision="fp32", mask=56 if quick else 15,
            stride=56 if quick else 10, rounds=options.rounds, per_eval=None, batch_size=None,
            clock="wall", part=4 if quick else None, no_captum=False,
        ),
    )  # fmt: skip


def graphs(name: str, options: argparse.Namespace) -> None:
    """The engines on one image after the other, each with the same masks."""
    model = load_model(name, weights="none", device=str(options.device))
    given = ((112, 112),) if options.quick else ()
    (mask,), stride = masks_and_stride(model.input_size, given, 112 if options.quick else None)
    boxes_P4 = mask_grid(model.input_size, mask, stride, Border.COVER).boxes_P4
    made = {
        "full": make_engine(model, EngineChoice.FULL, boxes_P4=boxes_P4),
        "incremental": make_engine(model, EngineChoice.INCREMENTAL, boxes_P4=boxes_P4),
        "incremental, CUDA graph": make_engine(
            model, EngineChoice.INCREMENTAL, boxes_P4=boxes_P4, cuda_graphs=True
        ),
    }
    image = torch.randn(3, *model.input_size, device=options.device)
    times: dict[str, list[float]] = {title: [] for title in made}
    for number in range(options.rounds + 3):  # the second run records
        for title, engine in made.items():
            fill = torch.zeros_like(image)
            seconds = timed(options.device, lambda e=engine, f=fill: e.run(image, f, boxes_P4))[0]
            if number >= 3:
                times[title].append(1e3 * seconds)
    for title, values in times.items():
        print(f"  {title:<24} {spread(values)} ms an image, {len(boxes_P4)} positions")


def in_memory(model: Model, data: ImageData, batch_size: int, rounds: int) -> None:
    """Images a second without decoding, compared with the bare pass of the folded network."""
    layers = conv_layers(model.module)
    plan = make_plan(model, MaxPatchesSpec(layers=tuple(layers)))
    run, quick = Scan(fast(model, layers), data, plan, batch_size), fast(model)
    images = torch.randn(batch_size, 3, *model.input_size)
    if model.device.type == "cuda":
        images = images.pin_memory()
    extractor, seen = FeatureExtractor(model), 0

    def scanned() -> None:
        nonlocal seen
        indices = torch.arange(seen, seen + batch_size)
        run.add(Batch(indices, images, torch.zeros(batch_size, dtype=torch.int64)))
        seen += batch_size

    @torch.inference_mode()
    def bare() -> None:
        quick.outputs(images)

    @torch.inference_mode()
    def features() -> None:
        extractor(images)[0].cpu()

    contenders: dict[str, Callable[[], None]] = {
        "bare, folded": bare, "max-patches, all layers": scanned, "tsne features": features,
    }  # fmt: skip
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 3):
        for name, contender in contenders.items():
            seconds = timed(model.device, contender)[0]
            if number >= 3:
                rates[name].append(batch_size / seconds)
    for name, values in rates.items():
        print(f"  {name:<24} {spread(values)} images/s in memory")
    if model.device.type == "cuda":
        print(f"  peak {torch.cuda.max_memory_allocated(model.device) / 2**20:.0f} MiB")


def scans(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Scans in memory and from files."""
    model = load_model(name, weights="none", device=str(options.device))
    data, batch_size = open_data([str(folder)]), 4 if options.quick else 256
    in_memory(model, data, batch_size, options.rounds)
    if not options.quick:
        scan_throughput.measure(model, data, [batch_size], 1)


def files(folder: Path, count: int) -> None:
    """JPEG files of 256 x 256 noise."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        pixels = torch.randint(0, 256, (256, 256, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.jpg")


def main() -> None:
    """Runs the parts one after the other, as long as there is time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--quick", action="store_true", help="few and small, to test the benchmark")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device, quick = options.device, options.quick
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    print(f"torch {torch.__version__}, {device} ({name}), fp32 unless named, wall clock")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        files(folder, 4 if quick else 512)
        count, side = (600, 256) if quick else (20_000, 8192)
        parts: list[tuple[str, Callable[[], None]]] = [
            ("matrices", lambda: matrices(device, side, options.rounds)),
            ("neighbours", lambda: tsne_time.neighbours(count, 64, 1, str(device))),
        ]
        for network in ("squeezenet1_1",) if quick else NETWORKS:
            parts += [
                (f"scans, {network}", lambda n=network: scans(n, folder, options)),
                (f"occlusion, {network}", lambda n=network: occlusion(n, options)),
                (f"graphs, {network}", lambda n=network: graphs(n, options)),
            ]
        for part, run in parts:
            since = time.perf_counter()
            if since - STARTED > LIMIT:
                print(f"\n{part}: left out, {LIMIT} s are over")
                continue
            print(f"\n{part}", flush=True)
            run()
            print(f"  ({time.perf_counter() - since:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
