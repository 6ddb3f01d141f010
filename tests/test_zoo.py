"""Every network of the zoo through every command: the plain loop's numbers, or one line."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from parts import slow_but
from PIL import Image
from torch import Tensor, nn

from cnnviz.cli.main import COMMANDS, run
from cnnviz.core.models.zoo.factories import unwrapped
from cnnviz.core.output.run_folder import RunFolder

TRACED = "cannot be traced"
CUT = "cuts its gradient"
# What cannot be done, by network and command, and a part of the line that says so. All else must.
NO_GRAPH = {"activations": TRACED}
NO_GRADIENT = {"saliency": CUT, "grad-cam": CUT, "layers": CUT}
REFUSALS: dict[str, dict[str, str]] = {
    "AssertsOne": NO_GRAPH,
    "Branches": NO_GRAPH,
    "Prints": NO_GRAPH,
    "SplitColumns": NO_GRAPH,
    "OneAtATime": {"activations": "is invalid for input"},
    "TestTimeFlip": {
        "activations": "the positions of the units of 'a' are not known",
        "tsne": "the classifier head was not found",
    },
    "Detached": NO_GRADIENT,
    "NoGradient": NO_GRADIENT,
    "Sigmoid": {"audit": "has independent classes"},
}
# How many pixels a unit of `b` sees, where the place is kept; else it sees everything.
SIZES = {
    **dict.fromkeys(("Plain", "Compiled", "CompiledPart", "Parallel", "OptionalArguments"), "5"),
    **dict.fromkeys(("ListOfChunks", "Coordinates", "KeywordArguments", "Rounded"), "5"),
    "Dilated": "9",
    "Depthwise": "7",
    **dict.fromkeys(("Flip", "Roll", "Transpose", "Attention", "GlobalGate", "Sorted"), "inf"),
    "SqueezeAndExcitation": "inf",
}
RANDOM = {"AlwaysDropout", "Jitter"}
# A line that the user must see, by network.
NOTES = {
    **dict.fromkeys(("BatchStatistics", "BatchMaximum", "MinibatchDeviation"), "mixes the images"),
    **dict.fromkeys(("OneAtATime", "AssertsOne"), "mixes the images"),
    **dict.fromkeys(RANDOM, "is stochastic"),
    "Softmax": "returns probabilities: ",
    "Sigmoid": "ends in a sigmoid: its logits are used",
    **dict.fromkeys(("Tuple", "Dict", "Dataclass", "NamedTuple"), "is used"),
    **dict.fromkeys(("OneLogit", "OneFlatLogit", "OneProbability"), "one number per image"),
}
MASK, STRIDE = 6, 5
# One of each kind: an odd forward pass, outputs, heads, batches, gradients, randomness, tracing.
ALWAYS = (
    "ListOfChunks", "Dataclass", "Sigmoid", "OneLogit", "BatchStatistics", "TestTimeFlip",
    "Branches", "Detached", "AlwaysDropout",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zoo")
    generator = np.random.default_rng(0)
    for number in range(12):
        place = root / "data" / ("no", "yes")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (zoo.SIDE, zoo.SIDE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"{number:02}.png")
    (root / "names.txt").write_text("no\nyes\n")
    return root


def lines(root: Path, out: Path) -> dict[str, list[str]]:
    photo, data = str(root / "data" / "no" / "00.png"), str(root / "data")
    return {
        "occlude": [photo, "--mask", str(MASK), "--stride", str(STRIDE), "--fill", "black"],
        "render": [str(out / "occlude" / "00")],
        "saliency": [photo, "--method", "gradient"],
        "trust": [photo],
        "reasons": [photo, "--cell", "12", "--grid", "2", "--segments", "grid", "--parts", "4"],
        "diff": [str(out / "occlude" / "00")] * 2,
        "audit": [data, "--mask", str(MASK), "--stride", str(STRIDE), "--no-pictures"],
        "grad-cam": [photo, "--method", "grad-cam", "--layer", "a"],
        "activations": [photo, "--filters", "a:1"],
        "layers": [data, "--gradients"],
        "filters": ["--no-gabor"],
        "max-patches": [data, "--layer", "b", "--filters", "0-1", "--no-pictures"],
        "ablate": [data, "--filters", "a:1", "--sweep", "a"],
        "tsne": [data, "--method", "pca", "--no-pictures"],
        "report": [str(out / "occlude" / "00"), "--out", str(out / "page.html")],
        "models": ["bundled"],
    }


def call(name: str, command: str, arguments: list[str], out: Path, root: Path) -> tuple[int, str]:
    """Status and stderr of one command on one network; an exception is a traceback, and fails."""
    line = ["saliency" if command == "grad-cam" else command, *arguments]
    if command not in ("models", "report"):
        line += ["--out", str(out / command), "--quiet"]
    if command not in ("models", "render", "diff", "report"):
        line += ["--model", f"{zoo.__file__}:{name}", "--labels", str(root / "names.txt")]
        line += ["--size", str(zoo.SIDE), "--mean", "0", "--std", "1", "--device", "cpu"]
    told, found = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(found):
        status = run(line)
    assert "shape (" not in found.getvalue()  # what `Prints` prints
    return status, told.getvalue()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are not saved: how they are drawn does not depend on the network."""
    monkeypatch.setattr(RunFolder, "write_figure", lambda *_args: None)


def probabilities(name: str, raw: Any) -> Tensor:
    """The plain reading of what a network of the zoo puts out, (N, 2) float64."""
    if name in ("Tuple", "NamedTuple"):
        raw = raw[0] if name == "Tuple" else raw.output
    if name in ("Dict", "Dataclass"):
        raw = raw["logits"] if name == "Dict" else raw.logits
    raw = raw.double()
    if name in ("OneLogit", "OneFlatLogit", "OneProbability"):
        yes = raw.flatten() if name == "OneProbability" else raw.flatten().sigmoid()
        return torch.stack([1 - yes, yes], 1)
    if name in ("Softmax", "Sigmoid"):
        return raw
    return raw.flatten(1).softmax(1)


def plain(name: str) -> nn.Module:
    options = {"num_class": 2} if name == "RequiresClasses" else {}
    make: Any = zoo.ZOO[name]
    with contextlib.redirect_stdout(io.StringIO()):
        return unwrapped(make if isinstance(make, nn.Module) else make(**options)).eval()


def one_by_one(name: str, module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        return torch.cat([probabilities(name, module(image[None])) for image in images])


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255


def check_occlusion(name: str, folder: Path, photo: Path) -> None:
    image = pixels(photo)
    with np.load(folder / "scores.npz") as arrays:
        boxes = arrays["boxes"].tolist()
        logits = torch.from_numpy(arrays["logits"]).double()
        own = str(arrays["head"]) == "sigmoid"
    covered = image.repeat(len(boxes), 1, 1, 1)
    for place, (y0, x0, y1, x1) in enumerate(boxes):
        covered[place, :, y0:y1, x0:x1] = 0
    found = logits.sigmoid() if own else logits.softmax(1)
    wanted = one_by_one(name, plain(name), covered)
    spread = float(wanted.std(0).max())
    assert spread > 1e-4  # the masks do something
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2 * spread + 5e-6)


def check_ablation(name: str, summary: Path, root: Path) -> None:
    images = sorted((root / "data").rglob("*.png"))
    labels = torch.tensor([path.parent.name == "yes" for path in images]).long()
    stack = torch.stack([pixels(path) for path in images])
    module = plain(name)
    before = one_by_one(name, module, stack).argmax(1) == labels
    module.get_submodule("a").register_forward_hook(
        lambda _layer, _inputs, out: out * (torch.arange(zoo.CHANNELS) != 1).view(1, -1, 1, 1)
    )
    after = one_by_one(name, module, stack).argmax(1) == labels
    results = json.loads(summary.read_text())["results"]
    if name == "Sigmoid":  # judged by its average precision: tests/filters/ablation
        assert results["measure"] == "mean average precision"
        return
    accuracy = results["accuracy"]
    assert accuracy["before"]["correct"] == int(before.sum())
    assert accuracy["after"]["correct"] == int(after.sum())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", slow_but(list(zoo.ZOO), *ALWAYS))
def test_every_command_answers_rightly_or_in_a_line(name: str, root: Path, tmp_path: Path) -> None:
    refused = REFUSALS.get(name, {})
    every = lines(root, tmp_path)
    called = {"saliency" if command == "grad-cam" else command for command in every}
    elsewhere = {"merge", "rerun", "doctor", "detect"}  # run others, no network, detectors
    assert called == COMMANDS.keys() - elsewhere
    for command, arguments in every.items():
        status, told = call(name, command, arguments, tmp_path, root)
        failures = [line for line in told.splitlines() if line.startswith("cnnviz: ")]
        if command in refused:
            assert status in (1, 2), (command, told)
            assert len(failures) == 1, told
            assert refused[command] in failures[0]
        else:
            assert (status, failures) == (0, []), (command, told)
        if command == "max-patches" and name == "Twice":
            assert "layer 'b' runs 2 times in a forward pass" in told
        if command == "occlude":
            assert NOTES.get(name, "") in told
    if name in SIZES:
        rows = (tmp_path / "layers" / "layers.csv").read_text().splitlines()
        table = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
        assert next(row["size_x"] for row in table if row["layer"] == "b") == SIZES[name]
    if name not in RANDOM:
        photo = root / "data" / "no" / "00.png"
        check_occlusion(name, tmp_path / "occlude" / "00", photo)
        check_ablation(name, tmp_path / "ablate" / "summary.json", root)


def test_the_zoo_is_large_and_what_is_refused_is_in_it() -> None:
    assert len(zoo.ZOO) >= 60
    assert {*REFUSALS, *NOTES, *RANDOM} <= zoo.ZOO.keys()
