"""Whatever a network puts out, however wrapped: the maps of the plain network, or one line."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core import load_model, read_image
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.heads import SCORE, Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.output.summary import ModelRecord
from cnnviz.gradients import Method, SaliencySpec, saliency
from cnnviz.occlusion import OcclusionSpec, PanelSpec, Score, load, look, occlude
from cnnviz.occlusion.engines.choose import make_engine
from cnnviz.occlusion.options import EngineChoice

NETS = """
import collections, dataclasses, warnings
import torch
from torch import nn
from torch.nn import functional

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)
    def scores(self, x):
        z = self.fc(functional.relu(self.b(functional.relu(self.a(x)))).mean((2, 3)))
        return 20 * (z - z.mean(1, keepdim=True))
    def forward(self, x):
        return self.end(self.scores(x))
    def end(self, z):
        return z

def ending(function):
    return type("Net", (Plain,), {"end": lambda self, z: function(z)})

@dataclasses.dataclass
class Output:
    loss: object
    logits: torch.Tensor

Named = collections.namedtuple("Named", "hidden output")
Soft = ending(lambda z: z.softmax(1))
LogSoft = ending(lambda z: z.log_softmax(1))
Sigmoid = ending(lambda z: z.sigmoid())
SigmoidDict = ending(lambda z: {"aux": z[:, :3].sigmoid(), "logits": torch.sigmoid(z)})
SigmoidConv = ending(lambda z: functional.sigmoid(z[:, :, None, None]))
SigmoidScaled = ending(lambda z: 0.5 * z.sigmoid())
Tuple = ending(lambda z: (z, z[:, :3]))
List = ending(lambda z: [z[:, :, None, None]])
Dict = ending(lambda z: {"aux": z[:, :3], "logits": z})
Deep = ending(lambda z: {"loss": None, "heads": {"out": z}})
Data = ending(lambda z: Output(None, z))
NamedTuple = ending(lambda z: Named(z[:, :3], z))
Conv = ending(lambda z: z[:, :, None, None])
Several = ending(lambda z: {"colour": z[:, :3], "shape": z})
OneLogit = ending(lambda z: z[:, 1:2] - z[:, 0:1])
OneFlat = ending(lambda z: z[:, 1] - z[:, 0])
OneProbability = ending(lambda z: (z[:, 1:2] - z[:, 0:1]).sigmoid())
Pair = ending(lambda z: z[:, :2])
Dense = ending(lambda z: {"out": z[:, :, None, None].expand(-1, -1, 1, 2)})
ByNumber = ending(lambda z: {3: z, 4: z[:, :2]})
Squeezed = ending(lambda z: z[:, :, None, None].squeeze())
SqueezedDict = ending(lambda z: {"aux": z[:, :3].squeeze(), "logits": z.squeeze()})
SqueezedLogit = ending(lambda z: (z[:, 1:2] - z[:, 0:1]).squeeze())
SqueezedPair = ending(lambda z: z[:, :2].squeeze())
Zero = ending(lambda z: 0 * z)
Half = ending(lambda z: 0 * z + 0.5)
Unit = ending(functional.normalize)
PositiveUnit = ending(lambda z: functional.normalize(z.abs()))
SmallLogits = ending(lambda z: 0.5 + z / 1000)

class SigmoidLayer(Plain):
    def __init__(self):
        super().__init__()
        self.last = nn.Sequential(nn.Sigmoid())
    def end(self, z):
        return self.last(z)

def Script():
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(Sigmoid().eval(), torch.zeros(1, 3, 12, 12))

class Asserting(Sigmoid):
    def forward(self, x):
        assert x.abs().max() < 100, "no picture"
        return super().forward(x)

class Overflowing(Sigmoid):
    def forward(self, x):
        return super().forward(x) + (x.abs().max() ** 30 * 0)

def pooled(raw):
    return raw["out"].mean((2, 3))
def broken(raw):
    return raw["nothing"]
def one_map(raw):
    return raw["out"]
"""
SIZE = (12, 12)
SAME = [
    "Soft", "LogSoft", "Tuple", "List", "Dict", "Deep", "Data", "NamedTuple", "Conv", "Squeezed",
    "SqueezedDict",
]  # fmt: skip
ONE = OcclusionSpec(masks=((5, 5),), stride=4, targets=("1",))
SPEC = OcclusionSpec(masks=((5, 5),), stride=4, targets=("0", "3"))


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return str(tmp_path / "nets.py")


@pytest.fixture
def picture(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


@pytest.fixture
def network(nets: str) -> Callable[..., Model]:
    return lambda name, **options: load_model(f"{nets}:{name}", size=SIZE, device="cpu", **options)


def maps(model: Model, picture: str, spec: OcclusionSpec = SPEC) -> torch.Tensor:
    return torch.stack([panel.map_HW for panel in occlude(model, picture, spec).panels])


@pytest.mark.parametrize("engine", [EngineChoice.FULL, EngineChoice.INCREMENTAL])
@pytest.mark.parametrize("score", [Score.PROBABILITY, Score.LOSS])
@pytest.mark.parametrize("name", SAME)
def test_wrapped_outputs_give_the_maps_of_the_plain_network(
    network: Callable[..., Model], picture: str, name: str, engine: EngineChoice, score: Score
) -> None:
    spec = OcclusionSpec(masks=((5, 5),), stride=4, targets=("0", "3"), engine=engine, score=score)
    model, plain = network(name), network("Plain")
    found, wanted = occlude(model, picture, spec), occlude(plain, picture, spec)
    assert found.engine == engine.value
    for ours, theirs in zip(found.panels, wanted.panels, strict=True):
        torch.testing.assert_close(ours.map_HW, theirs.map_HW, rtol=1e-5, atol=1e-5)
        assert ours.reading == pytest.approx(theirs.reading, abs=1e-6)
    names = [name for name, _ in model.module.named_modules()]
    assert names == [name for name, _ in plain.module.named_modules()]


@pytest.mark.parametrize(
    ("squeezed", "kept"), [("SqueezedLogit", "OneLogit"), ("SqueezedPair", "Pair")]
)
def test_a_squeezed_batch_axis_comes_back(
    network: Callable[..., Model], picture: str, squeezed: str, kept: str
) -> None:
    model, plain = network(squeezed), network(kept)
    assert any("drops the batch axis of a single image; it is restored" in n for n in model.notes)
    assert (model.head, model.labels) == (plain.head, plain.labels)
    torch.testing.assert_close(maps(model, picture, ONE), maps(plain, picture, ONE))
    for count in (1, 2, 3):
        images = torch.rand(count, 3, *SIZE)
        torch.testing.assert_close(model.logits(images), plain.logits(images))


@pytest.mark.parametrize("name", ["Zero", "Half"])
def test_a_head_of_zeros_cannot_be_told_and_is_said_to_be(
    network: Callable[..., Model], name: str
) -> None:
    model = network(name)
    assert model.head == Head()
    assert any("returns the same numbers for every trial image" in note for note in model.notes)
    torch.testing.assert_close(
        model.head.readings(model.logits(model.blank())), torch.full((1, 5), 0.2).double()
    )


@pytest.mark.parametrize("name", ["Unit", "PositiveUnit"])
def test_embeddings_are_values_and_never_softmaxed(
    network: Callable[..., Model], picture: str, name: str
) -> None:
    model = network(name)
    assert model.head.kind is Kind.NONE
    assert any("vectors of length 1, features of an embedding" in note for note in model.notes)
    images = torch.rand(2, 3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(images), model.module(images))
    assert network(name, head="softmax").head == Head()
    assert network("Soft").head.kind is Kind.SOFTMAX  # one-hot far away: of length 1 as well


@pytest.mark.parametrize("name", ["Sigmoid", "SigmoidLayer", "SigmoidDict", "SigmoidConv"])
@pytest.mark.parametrize("engine", [EngineChoice.FULL, EngineChoice.INCREMENTAL])
def test_a_sigmoid_inside_gives_the_maps_of_head_sigmoid_on_the_plain_network(
    network: Callable[..., Model], picture: str, name: str, engine: EngineChoice
) -> None:
    inside, outside = network(name), network("Plain", head="sigmoid")
    assert inside.head == outside.head == Head(Kind.SIGMOID)
    assert any("ends in a sigmoid: its logits are used" in note for note in inside.notes)
    spec = replace(SPEC, engine=engine)
    wanted = maps(outside, picture, spec)
    torch.testing.assert_close(maps(inside, picture, spec), wanted, rtol=1e-5, atol=1e-5)
    image = read_image(picture, outside.preprocess)
    with torch.no_grad():
        logits = outside.logits(outside.preprocess.normalise(image.pixels)[None])[0]
    for model in (inside, outside):
        panel = occlude(model, picture, SPEC).panels[0]
        assert panel.probability == pytest.approx(float(logits[0].sigmoid()), rel=1e-5)


@pytest.mark.parametrize("name", ["SigmoidScaled", "Script"])
def test_a_sigmoid_that_is_not_the_output_leaves_probabilities(
    network: Callable[..., Model], picture: str, name: str
) -> None:
    model = network(name)
    assert model.head == Head(Kind.SIGMOID, True)
    assert ModelRecord.of(model).head == "probabilities per class"
    # Rounded probabilities leave few digits of their log-odds.
    scale = 0.5 if name == "SigmoidScaled" else 1.0
    image = read_image(picture, model.preprocess)
    with torch.no_grad():
        plain = network("Plain").logits(model.preprocess.normalise(image.pixels)[None])[0]
    panel = occlude(model, picture, SPEC).panels[0]
    assert panel.probability == pytest.approx(scale * float(plain[0].sigmoid()), rel=1e-5)


def test_one_probability_that_a_sigmoid_makes_is_read_by_its_logit(
    network: Callable[..., Model], picture: str
) -> None:
    inside, outside = network("OneProbability"), network("OneLogit")
    assert inside.head == outside.head == Head()
    torch.testing.assert_close(
        maps(inside, picture, ONE), maps(outside, picture, ONE), rtol=1e-5, atol=1e-5
    )


def test_classes_on_their_own_flip_where_they_cross_the_threshold(
    network: Callable[..., Model], picture: str
) -> None:
    model = network("Plain", head="sigmoid")
    probability = occlude(model, picture, SPEC).panels[0].probabilities_P
    for threshold in (float(probability.median()), 0.999999, 1e-6):
        panel = occlude(
            network("Plain", head="sigmoid", threshold=threshold), picture, SPEC
        ).panels[0]
        held = panel.probability >= threshold
        assert panel.flips is not None
        assert panel.flips.share == pytest.approx(
            float(((probability >= threshold) != held).double().mean())
        )
        assert panel.flips.to == ()


@pytest.mark.parametrize("name", ["OneLogit", "OneFlat", "OneProbability"])
def test_one_number_is_the_second_of_two_classes(
    network: Callable[..., Model], picture: str, name: str, tmp_path: Path
) -> None:
    model, pair = network(name), network("Pair")
    assert model.labels == ("negative", "positive")
    assert any("one number per image" in note for note in model.notes)
    spec = OcclusionSpec(masks=((5, 5),), stride=4, targets=("0", "1"))
    torch.testing.assert_close(maps(model, picture, spec), maps(pair, picture, spec))
    (tmp_path / "names.txt").write_text("ham\nspam\n")
    assert network(name, labels=tmp_path / "names.txt").labels == ("ham", "spam")


def test_a_regression_has_values_and_no_ranks(network: Callable[..., Model], picture: str) -> None:
    model = network("OneLogit", head="none")
    result = occlude(model, picture, OcclusionSpec(masks=((5, 5),), stride=4))
    (panel,) = result.panels
    assert panel.reliance is None
    assert panel.flips is None
    values = result.measured.logits_PK[:, 0].double()
    base = float(result.measured.base_logits_K[0])
    assert panel.value == pytest.approx(base)
    torch.testing.assert_close(panel.values_P, base - values)
    for spec, message in (
        (OcclusionSpec(score=Score.LOSS), "--score loss needs classes; a regression"),
        (OcclusionSpec(score=Score.LOG_ODDS), "--score log-odds needs classes; a regression"),
        (OcclusionSpec(label="0"), "--label names a class; a regression"),
        (OcclusionSpec(targets=("top2",)), r"values \(a regression, or .* have no ranking"),
    ):
        with pytest.raises(UsageError, match=message):
            occlude(model, picture, spec)


def test_the_logit_of_probabilities_is_their_log_odds(
    network: Callable[..., Model], picture: str
) -> None:
    spec = OcclusionSpec(masks=((5, 5),), stride=4, targets=("3",), score=Score.LOGIT)
    result = occlude(network("Soft"), picture, spec)
    p = occlude(network("Plain"), picture, SPEC).panels[1].probabilities_P
    base = result.panels[0].reading
    odds = float(np.log(base / (1 - base))) - (p / (1 - p)).log()
    torch.testing.assert_close(result.panels[0].values_P, odds, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.5, "0.50"), (0.9971, "0.997"), (0.9996, "0.9996"), (0.999999, "1.0000"), (1.0, "1.00")],
)
def test_probabilities_near_1_keep_their_digits(p: float, text: str) -> None:
    assert Head().text(p) == f"p = {text}"
    assert Head(Kind.NONE, word=SCORE).text(p) == f"score {text}"


def test_probabilities_near_0_are_no_powers_of_ten() -> None:
    assert Head().text(0.0012) == "p = 0.0012"
    assert Head().text(1.8e-5) == "p < 0.001"
    assert Head().change_text(0.4, 1.8e-5) == "p = 0.40 → < 0.001"


def test_logits_that_lie_between_0_and_1_by_chance_stay_logits(
    network: Callable[..., Model],
) -> None:
    model = network("SmallLogits")
    assert model.head == Head()
    assert not any("probabilities" in note for note in model.notes)


def test_a_sigmoid_that_bears_no_strange_picture_is_known_by_its_numbers(
    network: Callable[..., Model],
) -> None:
    assert network("Asserting").head == Head(Kind.SIGMOID)
    assert network("Overflowing").head == Head(Kind.SIGMOID, True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Several", {}, "several rows of numbers: colour, shape; --output NAME takes one"),
        ("Several", {"output": "size"}, "--output size: no such part; .* returns colour, shape"),
        ("Dense", {}, r"returns out \(1, 5, 1, 2\); a map, not a row .* give --output file"),
        ("Dense", {"output": "out"}, r"--output out: it has shape \(1, 5, 1, 2\), not one row"),
        ("Plain", {"head": "probabilities"}, "--head probabilities: .* numbers outside 0 to 1"),
        (
            "Plain",
            {"threshold": 0.3},
            r"--threshold 0\.3 is for independent classes .* is softmax",
        ),
        ("Plain", {"head": "relu"}, "invalid head 'relu'; --head takes auto, softmax, sigmoid"),
    ],
)
def test_what_cannot_be_taken_is_one_line(
    network: Callable[..., Model], name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CnnvizError, match=message) as error:
        network(name, **options)
    assert "\n" not in str(error.value)


def test_a_part_is_taken_by_name_number_or_function(
    network: Callable[..., Model], nets: str, picture: str
) -> None:
    plain = maps(network("Plain"), picture)
    for name, output in (
        ("Several", "shape"),
        ("Tuple", "0"),
        ("Dense", f"{nets}:pooled"),
        ("ByNumber", "3"),
    ):
        torch.testing.assert_close(maps(network(name, output=output), picture), plain)
    assert network("Tuple", output="1").classes == 3
    for function, message in (
        ("broken", "broken failed: 'nothing'"),
        ("one_map", r"one_map returned shape \(1, 5, 1, 2\) for one image"),
        ("absent", "no function 'absent' in "),
    ):
        with pytest.raises(CnnvizError, match=message):
            network("Dense", output=f"{nets}:{function}")


def test_layers_can_be_looked_at_without_scores(nets: str, picture: str, tmp_path: Path) -> None:
    dense = ["--model", f"{nets}:Dense", "--size", "12", "--quiet", "--out"]
    for command in (
        ["layers"],
        ["filters", "--no-gabor"],
        ["activations", picture, "--filters", "1"],
    ):
        place = tmp_path / command[0]
        assert run([*command, *dense, str(place)]) == 0
        (summary,) = place.rglob("summary.json")
        assert json.loads(summary.read_text())["model"]["classes"] == 0
    assert run(["max-patches", picture, *dense, str(tmp_path / "m"), "--filters", "1"]) == 0
    assert run(["saliency", picture, *dense, str(tmp_path / "s")]) == 1


def test_gradients_and_drawing_again_follow_the_head(
    network: Callable[..., Model], nets: str, picture: str, tmp_path: Path
) -> None:
    for name in ("Tuple", "Dict", "Conv"):
        image = read_image(picture, network("Plain").preprocess)
        ours, theirs = (
            saliency(network(which), image, SaliencySpec(Method.GRADIENT, targets=("3",))).maps[0]
            for which in (name, "Plain")
        )
        torch.testing.assert_close(ours.raw, theirs.raw)
    command = ["occlude", picture, "--model", f"{nets}:OneLogit", "--size", "12", "--mask", "5"]
    assert run([*command, "--head", "none", "--quiet", "--out", str(tmp_path / "o")]) == 0
    folder = tmp_path / "o" / "picture"
    assert (folder / "value.png").exists()
    assert not (folder / "label.png").exists()
    (entry,) = json.loads((folder / "summary.json").read_text())["results"]
    assert {"prediction", "top5"}.isdisjoint(entry)
    assert {"reliance", "flips", "probability"}.isdisjoint(entry["targets"][0])
    again = look(load(folder), PanelSpec())
    assert again.measured.head == Head(Kind.NONE)
    assert again.panels[0].value == pytest.approx(entry["targets"][0]["value"], rel=1e-5)
    assert run(["render", str(folder), "--quiet", "--out", str(tmp_path / "r")]) == 0


def test_scores_of_a_network_with_random_answers_are_averaged(
    nets: str, picture: str, tmp_path: Path
) -> None:
    noisy = tmp_path / "noisy.py"
    noisy.write_text(
        "import torch\nfrom torch import nn\n"
        "class Net(nn.Module):\n"
        "    def forward(self, x):\n"
        "        z = torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)\n"
        "        return z + torch.randn_like(z)\n"
    )
    spread = []
    for repeat in (1, 64):
        model = load_model(f"{noisy}:Net", size=SIZE, repeat=repeat)
        assert any("--repeat N averages N passes" in note for note in model.notes)
        engine = make_engine(
            model, EngineChoice.AUTO, boxes_P4=torch.zeros(200, 4, dtype=torch.long)
        )
        image = torch.zeros(3, *SIZE)
        boxes = torch.tensor([[0, 0, 1, 1]]).repeat(200, 1)
        spread.append(float(engine.run(image, image, boxes).logits_PK[:, 0].std()))
        images = torch.zeros(400, 3, *SIZE)
        assert float(model.logits(images).std()) == pytest.approx(repeat**-0.5, rel=0.2)
    assert spread[1] == pytest.approx(spread[0] / 8, rel=0.4)
