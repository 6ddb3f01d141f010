"""The self-test of `cnnviz doctor`: every analysis on the bundled model, against known numbers.

The images are made here, so that no file beyond the installation is needed. `KNOWN` holds what the
analyses gave on a CPU (torch 2.14, float32): for an array its mean, its standard deviation and its
largest value. On a GPU the arrays are compared with the CPU's as a whole.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cnnviz.core.choices import Precision
from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.device import pick_device
from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.models.load import Model, load_model
from cnnviz.embeddings.experiment import embed
from cnnviz.embeddings.options import EmbeddingSpec
from cnnviz.filters.ablation.ablation import ablate
from cnnviz.filters.ablation.options import AblationSpec
from cnnviz.filters.patches.max_patches import max_patches
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.gradients.experiment import saliency
from cnnviz.gradients.options import Method, SaliencySpec
from cnnviz.occlusion.experiment import Occluder, occlude
from cnnviz.occlusion.options import EngineChoice, OcclusionSpec

KNOWN = Path(__file__).with_name("selftest.json")
IMAGES, SIDE, LEVELS = 48, 32, 8
TOLERANCE = {"cpu": 1e-3, "cuda": 1e-2, "mps": 1e-2}
"""Largest difference, as a share of the largest value; a GPU adds in another order."""
INCREMENTAL = EngineChoice.INCREMENTAL
LISTS = 0.9
"""Least share of equal top-9 lists: filters may have two images of almost the same score."""
ORDER = 0.5
"""Least rank correlation of distances on the t-SNE map and in the features."""
COARSE = {Precision.BF16: 0.9, Precision.FP16: 0.95}
"""Least correlation of an occlusion map with that of float32."""
LAYER = "features.block2.conv2"
Arrays = Mapping[str, NDArray[np.float64]]
Line = tuple[str, bool, str]
"""Name of a check, whether it holds, and what was compared."""


def pictures(folder: Path) -> None:
    """Writes the test images, a folder for each class: blobs of colour, from seeded noise."""
    random = np.random.default_rng(0)
    for index in range(IMAGES):
        coarse = random.integers(0, 256, (LEVELS, LEVELS, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.NEAREST)
        place = folder / ("airplane", "ship", "frog")[index % 3]
        place.mkdir(exist_ok=True)
        image.save(place / f"{index:02}.png")


@dataclass(frozen=True)
class Bench:
    """One model on one device, with the test images."""

    model: Model
    data: ImageData
    image: WorkingImage

    @classmethod
    def of(cls, folder: Path, device: str, precision: Precision = Precision.FP32) -> "Bench":
        """Loads the bundled model."""
        model = load_model("bundled", device=device, precision=precision)
        data = open_data([str(folder)])
        return cls(model, data, data.working(0, model.preprocess))

    def occlusion(self, engine: EngineChoice = INCREMENTAL) -> Arrays:
        """The default map and its scores."""
        spec = OcclusionSpec(masks=((8, 8),), stride=4, engine=engine)
        result = occlude(self.model, self.image, spec)
        return {"map": as_array(result.panels[0].map_HW)}

    def scan(self) -> Arrays:
        """The images of each filter's strongest patches, and its mean score."""
        found = max_patches(self.model, self.data, MaxPatchesSpec(layers=(LAYER,), top=9))
        places = {example.path: place for place, example in enumerate(self.data.examples)}
        lists = [[places[patch.image] for patch in entry.patches] for entry in found.filters]
        return {"means": as_array([entry.mean for entry in found.filters]), "top": as_array(lists)}

    def ablation(self) -> Arrays:
        """What each filter of the first layer takes from the labelled class."""
        swept = ablate(self.model, self.data, AblationSpec(sweep=("stem.conv",)))
        ordered = sorted(swept.effects, key=lambda effect: effect.filter)
        return {"changes": as_array([effect.probability_change for effect in ordered])}

    def gradients(self) -> Arrays:
        """The input gradient and Grad-CAM."""
        found = {}
        for method in (Method.GRADIENT, Method.GRAD_CAM):
            entry = saliency(self.model, self.image, SaliencySpec(method=method)).maps[0]
            found[method.value] = as_array(entry.map_HW)
        return found

    def features(self) -> Arrays:
        """The features, and how well t-SNE keeps their distances."""
        embedding = embed(self.model, self.data, EmbeddingSpec(perplexities=(5,)))
        quality = embedding.maps[0].quality.spearman
        return {"vectors": as_array(embedding.vectors.values_ND), "order": as_array([quality])}

    def all(self) -> tuple[dict[str, Arrays], float]:
        """The numbers of every analysis, and the seconds that they took."""
        started = time.perf_counter()
        arrays = {
            "occlusion": self.occlusion(),
            "max-patches": self.scan(),
            "ablation": self.ablation(),
            "gradients": self.gradients(),
            "features and t-SNE": self.features(),
        }
        return arrays, time.perf_counter() - started


def as_array(values: object) -> NDArray[np.float64]:
    """Anything made of numbers, on the CPU."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def digest(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean, standard deviation and largest value of an array."""
    return np.array([values.mean(), values.std(), np.abs(values).max()])


def known(arrays: Arrays) -> Arrays:
    """What `KNOWN` holds of an analysis' arrays."""
    whole = ("top", "order")
    return {
        name: values.ravel() if name in whole else digest(values) for name, values in arrays.items()
    }


def compared(
    name: str, got: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float
) -> tuple[bool, float, str]:
    """Whether numbers are close enough, a number that says how close, and words for it."""
    if name == "top":
        equal = float((got.reshape(-1, 9) == expected.reshape(-1, 9)).all(axis=1).mean())
        return equal >= LISTS, equal, f"{equal:.0%} of the top-9 lists equal"
    if name == "order":
        return bool(got[0] >= ORDER), float(got[0]), f"rank correlation of distances {got[0]:.2f}"
    apart = float(np.abs(got - expected).max() / (np.abs(expected).max() or 1.0))
    return apart <= tolerance, apart, f"{name} {apart:.0e} of the largest value apart"


def line(
    title: str, got: Arrays, expected: Arrays, tolerance: float, measured: dict[str, float]
) -> Line:
    """Compares the arrays of one analysis."""
    good, texts = True, list[str]()
    for name, values in got.items():
        fine, number, text = compared(name, values, expected.get(name, values), tolerance)
        good, texts = good and fine, [*texts, text]
        measured[f"{title}: {name}"] = number
    return title, good, ", ".join(texts)


def run(device: str, *, full: bool, measured: dict[str, float]) -> Iterator[Line]:
    """Runs every analysis; yields a name, whether it is right, and what was compared.

    The numbers are added to `measured`. An analysis that fails ends the test with such a line.
    """
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        pictures(folder)
        try:
            picked = pick_device(device)
            cpu = Bench.of(folder, "cpu")
            arrays, seconds = cpu.all()
            stored = json.loads(KNOWN.read_text(encoding="utf-8"))
            for title, of in arrays.items():
                expected = {key: np.array(values) for key, values in stored[title].items()}
                yield line(f"{title} on the CPU", known(of), expected, TOLERANCE["cpu"], measured)
            if picked.type != "cpu":
                yield from _on_device(Bench.of(folder, str(picked)), arrays, seconds, measured)
            yield from _engines(Bench.of(folder, str(picked)), measured)
            if picked.type == "cuda":
                yield _replayed(Bench.of(folder, str(picked)), measured)
            if full:
                yield from _coarse(folder, str(picked), measured)
                yield _large(Bench.of(folder, str(picked)), measured)
        except (CnnvizError, RuntimeError, OSError, ValueError, LookupError) as error:
            yield "self-test", False, f"{type(error).__name__}: {one_line(error)}"


def _engines(bench: Bench, measured: dict[str, float]) -> Iterator[Line]:
    """The two occlusion engines against each other."""
    incremental, full = bench.occlusion(), bench.occlusion(EngineChoice.FULL)
    title = f"occlusion, incremental and full engine on {bench.model.device}"
    yield line(title, incremental, full, TOLERANCE[bench.model.device.type], measured)


def _replayed(bench: Bench, measured: dict[str, float]) -> Line:
    """The incremental engine's CUDA graph against the same launches made one by one."""
    maps, seconds = [], []
    for graphs in (True, False):
        occluder = Occluder(
            bench.model,
            OcclusionSpec(masks=((8, 8),), stride=4, engine=INCREMENTAL, cuda_graphs=graphs),
        )
        for index in range(4):  # the third and fourth are replayed
            image = bench.data.working(index, bench.model.preprocess)
            started = time.perf_counter()
            result = occluder.run(image)
            maps.append(as_array(result.panels[0].map_HW))
            took = time.perf_counter() - started
        seconds.append(took)
    title = f"occlusion, CUDA graph and single launches on {bench.model.device}"
    graph, single = ({"map": np.stack(part)} for part in (maps[:4], maps[4:]))
    _, good, text = line(title, graph, single, TOLERANCE["cuda"], measured)
    measured |= {"an image by a CUDA graph: seconds": seconds[0], "by launches": seconds[1]}
    return title, good, f"{text}; {seconds[0]:.3f} and {seconds[1]:.3f} s for an image"


def _on_device(
    bench: Bench, expected: Mapping[str, Arrays], seconds: float, measured: dict[str, float]
) -> Iterator[Line]:
    """Every analysis on a GPU, against the CPU's arrays; then time, memory and waits."""
    device = bench.model.device
    bench.all()  # compiles and allocates
    with waits_counted(device) as waits:
        arrays, needed = bench.all()
    for title, of in arrays.items():
        yield line(f"{title} on {device}", of, expected[title], TOLERANCE[device.type], measured)
    measured |= {"seconds on the CPU": seconds, f"seconds on {device}": needed}
    text = f"{needed:.2f} s; the CPU needs {seconds:.2f} s"
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        measured |= {"peak MiB": peak, "waits": len(waits)}
        text += f"; at most {peak:.0f} MiB; the CPU waited {len(waits)} times"
    yield f"all analyses on {device}", True, text


@contextmanager
def waits_counted(device: torch.device) -> Iterator[list[str]]:
    """Yields a list that gets an entry each time the CPU waits for a CUDA device."""
    waits = list[str]()
    if device.type != "cuda":
        yield waits
        return

    def heard(message: Warning | str, *_more: object, **_named: object) -> None:
        waits.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = heard
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _coarse(folder: Path, device: str, measured: dict[str, float]) -> Iterator[Line]:
    """Half precision: how much the occlusion map resembles that of float32."""
    exact = Bench.of(folder, device).occlusion()["map"].ravel()
    for precision, least in COARSE.items():
        got = Bench.of(folder, device, precision).occlusion()["map"].ravel()
        alike = float(np.corrcoef(exact, got)[0, 1])
        measured[f"{precision}: correlation"] = alike
        title = f"{precision} on {device}"
        yield title, alike >= least, f"correlation {alike:.3f} with the occlusion map of fp32"


def _large(bench: Bench, measured: dict[str, float]) -> Line:
    """How much faster the incremental engine is for ResNet-18 with random weights."""
    device = bench.model.device
    model = load_model("resnet18", weights="none", device=str(device))
    image = bench.data.working(0, model.preprocess)
    seconds = {}
    for engine in (EngineChoice.FULL, EngineChoice.INCREMENTAL):
        spec = OcclusionSpec(masks=((32, 32),), stride=16, engine=engine)
        started = time.perf_counter()
        occlude(model, image, spec)
        seconds[engine.value] = time.perf_counter() - started
    gain = seconds["full"] / seconds["incremental"]
    measured |= {f"resnet18, {name}: seconds": value for name, value in seconds.items()}
    text = (
        f"{seconds['incremental']:.1f} s, whole passes {seconds['full']:.1f} s ({gain:.1f} times)"
    )
    return f"occlusion, ResNet-18 on {device}", True, text
