"""How long `tsne` takes, part by part, beside openTSNE on its own.

Two parts. `neighbours`: exact neighbours in torch against openTSNE's default (Annoy) on clustered
random features, with the recall of both against brute force in float64. `mnist`: a small network is
trained on MNIST's training images, the 10,000 test images are laid out, and the time of each part
is set beside openTSNE's own `fit` (Annoy, its own start) on the same components.

Contenders alternate in one process after a warm-up; medians and ranges are printed, in seconds of
wall clock and of processor time (all threads together), which other jobs on the machine do not
stretch.

    python benchmarks/tsne_time.py neighbours
    python benchmarks/tsne_time.py mnist --root DIR     where torchvision's MNIST lies
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from openTSNE import TSNE
from openTSNE.affinity import get_knn_index
from torch import Tensor, nn

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import open_data
from cnnviz.core.data.images import Preprocess
from cnnviz.core.models.load import Model
from cnnviz.embeddings import figures, sheets
from cnnviz.embeddings.experiment import Embedder
from cnnviz.embeddings.neighbors import Points, nearest
from cnnviz.embeddings.options import EmbeddingSpec
from cnnviz.embeddings.pca import pca
from cnnviz.embeddings.results import quality_rows
from cnnviz.embeddings.tsne import neighbors_needed

PERPLEXITY = 30
EPOCH_IMAGES = 20_000
Times = dict[str, list[tuple[float, float]]]


def synchronise(device: str) -> None:
    """Waits for the device, so that the clock sees its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def alternate(contenders: dict[str, Callable[[], object]], rounds: int, device: str) -> Times:
    """Runs the contenders in turn; wall and processor seconds of each round."""
    times: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            synchronise(device)
            wall, busy = time.perf_counter(), time.process_time()
            run()
            synchronise(device)
            times[name].append((time.perf_counter() - wall, time.process_time() - busy))
    return times


def show(times: Times) -> None:
    """One line per contender: median and range."""
    for name, rounds in times.items():
        shown = []
        for kind, values in zip(("wall", "processor"), zip(*rounds, strict=True), strict=True):
            low, high = min(values), max(values)
            shown.append(f"{kind} {statistics.median(values):.2f} s ({low:.2f} to {high:.2f})")
        print(f"  {name:34} {'   '.join(shown)}")


def ratio(times: Times, slow: str, fast: str) -> str:
    """How many times faster, by wall clock and by processor time."""
    medians = {
        name: [statistics.median(values) for values in zip(*times[name], strict=True)]
        for name in (slow, fast)
    }
    wall, busy = (s / f for s, f in zip(medians[slow], medians[fast], strict=True))
    return f"{wall:.2f} times by wall clock, {busy:.2f} by processor time"


def blobs(count: int, dimensions: int) -> Points:
    """Ten Gaussian clusters, float32."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(10, dimensions))
    points = centres[rng.integers(10, size=count)] + rng.normal(size=(count, dimensions))
    return np.asarray(points, np.float32)


def recall(found: np.ndarray, points: Points, sample: int = 500) -> float:
    """The share of the true neighbours that were found, for some points."""
    wide = torch.from_numpy(np.asarray(points, np.float64))
    chosen = np.random.default_rng(0).choice(len(points), sample, replace=False)
    distances = torch.cdist(wide[chosen], wide, compute_mode="donot_use_mm_for_euclid_dist")
    distances[torch.arange(sample), torch.from_numpy(chosen)] = torch.inf
    true = distances.topk(found.shape[1], largest=False).indices.numpy()
    pairs = zip(true, found[chosen], strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))


def neighbours(count: int, dimensions: int, rounds: int, device: str) -> None:
    """Exact neighbours against Annoy."""
    points, k = blobs(count, dimensions), neighbors_needed(PERPLEXITY)
    threads = torch.get_num_threads()

    def annoy() -> np.ndarray:
        index = get_knn_index(
            points, "annoy", k, "euclidean", n_jobs=threads, random_state=0
        ).build()
        return np.asarray(index[0])

    print(f"neighbours: {count} points, {dimensions} dimensions, k = {k}")
    nearest(points[:1000], k, device=device)
    ours, theirs = "exact, torch", "openTSNE's default (Annoy)"
    runs = {ours: lambda: nearest(points, k, device=device), theirs: annoy}
    times = alternate(runs, rounds, device)
    show(times)
    print(f"  {ratio(times, theirs, ours)}")
    print(f"  recall: {recall(nearest(points, k, device=device).indices, points):.6f} (exact), "
          f"{recall(annoy(), points):.6f} (Annoy)")  # fmt: skip


def train(root: Path, device: str) -> nn.Module:
    """A small convolutional network after one pass over 20,000 training images."""
    from torchvision.datasets import MNIST

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10),
    ).to(device)  # fmt: skip
    data = MNIST(str(root), train=True)
    images, labels = data.data[:EPOCH_IMAGES], data.targets[:EPOCH_IMAGES]
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for part in torch.split(torch.randperm(len(images)), 64):
        x = (images[part].float()[:, None] / 255 - 0.5).mul(2).expand(-1, 3, -1, -1).to(device)
        loss: Tensor = nn.functional.cross_entropy(net(x), labels[part].to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return net.eval()


@contextmanager
def timed(name: str, _steps: int = 0) -> Iterator[Callable[[int], None]]:
    """Prints how long a part took; a `Stage` for `embed`."""
    wall, busy = time.perf_counter(), time.process_time()
    yield lambda _done: None
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    print(f"  {name:34} wall {wall:.2f} s   processor {busy:.2f} s", flush=True)


def mnist(root: Path, count: int, device: str) -> None:
    """The whole experiment, part by part, beside openTSNE's own fit."""
    net = train(root, device)
    size = (28, 28)
    model = Model(
        net, "small", Preprocess(None, size, (0.5,) * 3, (0.5,) * 3), tuple("0123456789"), size,
        "-", torch.device(device), Precision.FP32,
    )  # fmt: skip
    # All or a sample: openTSNE changes its method at 10,000 points.
    data = open_data([f"mnist:{root}"], limit=count)
    print(f"mnist: {len(data)} test images, perplexity {PERPLEXITY}")
    spec = EmbeddingSpec(perplexities=(PERPLEXITY,))
    wall, busy = time.perf_counter(), time.process_time()
    embedder = Embedder(model, data, spec, timed)
    features = embedder.features()
    beyond_wall, beyond_busy = time.perf_counter(), time.process_time()
    result = embedder.lay_out(features)
    with timed("drawing"):
        chosen = sheets.chosen_images(len(data), 0)
        framed = sheets.framed_thumbnails(result, chosen)
        figures.scatter(result).canvas.draw()
        sheets.images(result, chosen, framed).pixels()
        sheets.grid(result, chosen, framed).pixels()
    done_wall, done_busy = time.perf_counter(), time.process_time()
    beyond = done_wall - beyond_wall, done_busy - beyond_busy
    print(f"  {'all but features':34} wall {beyond[0]:.2f} s   processor {beyond[1]:.2f} s")
    print(f"  {'everything':34} wall {done_wall - wall:.2f} s   processor {done_busy - busy:.2f} s")
    for row in quality_rows(result):
        print("  " + "  ".join(f"{cell:>9}" for cell in row))
    wrong = 0 if result.correct_N is None else int((~result.correct_N).sum())
    print(f"  accuracy of the network: {1 - wrong / len(data):.2%}", flush=True)
    components = pca(result.vectors.values_ND, 50).scores_Nc.astype(np.float64)
    theirs = TSNE(perplexity=PERPLEXITY, n_jobs=torch.get_num_threads(), random_state=0)
    times = alternate({"openTSNE's own fit (Annoy)": lambda: theirs.fit(components)}, 1, device)
    show(times)
    own = times["openTSNE's own fit (Annoy)"][0]
    shares = [ours / alone for ours, alone in zip(beyond, own, strict=True)]
    print(f"  all but features: {shares[0]:.2f} times openTSNE's own fit by wall clock, "
          f"{shares[1]:.2f} by processor time")  # fmt: skip


def main() -> None:
    """Reads the options, prints the configuration, runs one part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=["neighbours", "mnist"])
    parser.add_argument("--root", type=Path, help="folder of torchvision's MNIST")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores,"
          f" device {args.device}, load {load:.1f}")  # fmt: skip
    if args.part == "neighbours":
        neighbours(args.count, args.dimensions, args.rounds, args.device)
    elif args.root is None:
        parser.error("mnist needs --root")
    else:
        mnist(args.root, args.count, args.device)


if __name__ == "__main__":
    main()
