"""Networks without one right class: average precision of several, absolute error of values."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import validate
from PIL import Image
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from cnnviz.cli.main import app
from cnnviz.core import load_model, open_data
from cnnviz.core.data.labels import check_labels
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.output.record import to_json
from cnnviz.filters.ablation import measures
from cnnviz.filters.ablation.ablation import AblationResult, _check_finite, ablate
from cnnviz.filters.ablation.measures import ERROR, PRECISION, Answers
from cnnviz.filters.ablation.options import AblationSpec
from cnnviz.filters.ablation.results import load

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs" / "schemas" / "ablate.schema.json").read_text())
COLOURS = ("red", "green", "blue")
SOURCE = """
import torch
from torch import nn

class Planted(nn.Module):
    '''Channel k is the mean of colour k; a fourth channel is of no use.'''
    def __init__(self, scale, shift):
        super().__init__()
        self.colours = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.colours.weight.zero_()
            self.colours.weight[:3, :, 0, 0] = torch.eye(3)
            self.colours.bias.zero_()
            self.head.weight.zero_()
            self.head.weight[:, :3] = scale * torch.eye(3)
            self.head.bias.fill_(shift)
    def forward(self, x):
        return self.head(self.colours(x).mean((2, 3)))

def labels(): return Planted(20.0, -8.0)
def shares(): return nn.Sequential(Planted(20.0, -8.0), nn.Sigmoid())
def values(): return Planted(10.0, 0.0)
def value():
    net = Planted(10.0, 0.0)
    net.head = nn.Linear(4, 1)
    nn.init.constant_(net.head.weight, 2.0)
    nn.init.zeros_(net.head.bias)
    return net
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """24 pictures of any set of colours, none too, faintly noisy; manifests of what is in them."""
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    generator = np.random.default_rng(0)
    several, values, sums = [], [], ["path,label"]
    for number in range(24):
        present = [(number % 8) >> k & 1 for k in range(3)]
        level = np.array(present) * 160 + generator.integers(0, 60, 3)
        pixels = np.broadcast_to(level.astype(np.uint8), (6, 6, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{number:02}.png")
        names = [name for name, there in zip(COLOURS, present, strict=True) if there]
        several.append(json.dumps({"path": f"{number:02}.png", "label": names}))
        noisy = (10 * level / 255 + generator.normal(0, 0.2, 3)).round(3).tolist()
        values.append(json.dumps({"path": f"{number:02}.png", "label": noisy}))
        sums.append(f"{number:02}.png,{2 * level.sum() / 255:.4f}")
    (tmp_path / "several.jsonl").write_text("\n".join(several))
    (tmp_path / "values.jsonl").write_text("\n".join(values))
    (tmp_path / "sums.csv").write_text("\n".join(sums))
    return tmp_path


def made(place: Path, name: str, head: str = "auto") -> Model:
    labels = place / "names.txt" if name != "value" else None
    return load_model(
        f"{place / 'net.py'}:{name}", size=6, mean=(0,), std=(1,), head=head, labels=labels
    )


def pixels(place: Path) -> torch.Tensor:
    found = [np.asarray(Image.open(place / f"{n:02}.png")) for n in range(24)]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


def without(model: Model, place: Path, channel: int | None) -> torch.Tensor:
    """What the network puts out with the weights of a channel set to zero, (24, 3)."""
    net = next(m for m in model.module.modules() if hasattr(m, "colours"))
    kept = net.colours.weight.detach().clone()
    with torch.no_grad():
        if channel is not None:
            net.colours.weight[channel] = 0
        found = model.module(pixels(place))
        net.colours.weight.copy_(kept)
    return found


def truth(place: Path, manifest: str) -> np.ndarray:
    entries = [json.loads(line) for line in (place / manifest).read_text().splitlines()]
    if manifest == "values.jsonl":
        return np.array([entry["label"] for entry in entries])
    return np.array([[name in entry["label"] for name in COLOURS] for entry in entries])


def run(place: Path, model: Model, manifest: str, **asked: object) -> AblationResult:
    spec = AblationSpec(**asked)  # type: ignore[arg-type]
    return ablate(model, open_data([str(place / manifest)]), spec)


@pytest.mark.parametrize("name", ["labels", "shares"])
def test_several_labels_are_judged_by_scikit_learns_average_precision(
    place: Path, name: str
) -> None:
    model = made(place, name, "sigmoid" if name == "labels" else "auto")
    layer = "colours" if name == "labels" else "0.colours"
    result = run(place, model, "several.jsonl", filters=(f"{layer}:1",), sweep=(layer,))
    assert result.counts is None
    found = result.measured
    assert found is not None
    right = truth(place, "several.jsonl")
    for ablation, channel in enumerate([None, 1, 0, 1, 2, 3]):
        answers = without(model, place, channel)
        by_hand = [average_precision_score(right[:, k], answers[:, k]) for k in range(3)]
        assert found.each_VK[ablation] == pytest.approx(by_hand)
    assert found.mean_V[0] == 1
    assert found.images_K.tolist() == [12, 12, 12]
    assert found.each_VK[1].tolist() == [1, 0.5, 1]  # all the same: the share that has it
    assert found.interval is not None
    assert found.change is not None
    assert found.interval[0] < found.change < found.interval[1] < 0
    effects = {effect.filter: effect for effect in result.effects}
    assert [effects[k].hurts for k in range(4)] == [*COLOURS, None]
    assert effects[3].change == 0
    assert effects[0].harm == pytest.approx(1 / 6)


def test_values_are_judged_by_their_absolute_error(place: Path) -> None:
    model = made(place, "values", "none")
    result = run(place, model, "values.jsonl", filters=("colours:0,2",), sweep=("colours",))
    found, right = result.measured, truth(place, "values.jsonl")
    assert found is not None
    for ablation, channel in ((0, None), (2, 0), (3, 1), (4, 2), (5, 3)):
        by_hand = np.abs(without(model, place, channel).numpy() - right).mean(0)
        assert found.each_VK[ablation] == pytest.approx(by_hand, rel=1e-4)
    assert found.mean_V[0] == pytest.approx(0.17, abs=0.05)
    assert found.change is not None
    assert found.change > 1
    assert found.interval is not None
    assert 0 < found.interval[0] < found.change < found.interval[1]
    assert [effect.hurts for effect in result.effects] == [*COLOURS, None]
    assert [effect.harm > 0 for effect in result.effects] == [True] * 3 + [False]


def test_one_value_from_a_csv(place: Path) -> None:
    model = made(place, "value", "none")
    result = run(place, model, "sums.csv", sweep=("colours",), cumulative=True)
    assert result.measured is not None
    assert result.measured.mean_V[0] == pytest.approx(0, abs=1e-3)
    for curve in result.cumulative:
        assert curve.accuracy[0] == pytest.approx(0, abs=1e-3)
        assert curve.accuracy[-1] == max(curve.accuracy) > 1


def test_labels_of_folders_are_one_class_each(place: Path) -> None:
    (place / "data" / "green").mkdir(parents=True)
    (place / "00.png").rename(place / "data" / "green" / "a.png")
    data = open_data([str(place / "data")])
    assert check_labels(data, made(place, "labels", "sigmoid")).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("rows", "name", "head", "words"),
    [
        ("0.png,violet", "labels", "sigmoid", "no class 'violet'"),
        ("00.png,red|violet", "labels", "sigmoid", "no class 'violet'"),
        ("00.png,1|2", "values", "none", r"invalid label '1\|2': .* as 1.5\|1.5\|1.5"),
        ("00.png,red", "value", "none", "invalid label 'red': .* has 1 values, .* as 1.5"),
        ("00.png,nan", "value", "none", "invalid label 'nan'"),
        ("path,label\n00.png,", "labels", "sigmoid", "1 of the 1 images .* have no label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    place: Path, rows: str, name: str, head: str, words: str
) -> None:
    (place / "bad.csv").write_text(rows)
    with pytest.raises(UsageError, match=words):
        check_labels(open_data([str(place / "bad.csv")]), made(place, name, head))


def test_an_empty_set_of_classes_is_a_label(place: Path) -> None:
    (place / "list.csv").write_text("00.png,|\n01.png,red|blue\n")
    data = open_data([str(place / "list.csv")])
    found = check_labels(data, made(place, "labels", "sigmoid"))
    by_name = dict(zip(data.classes or (), found.tolist(), strict=True))
    assert by_name == {"|": [0, 0, 0], "red|blue": [1, 0, 1]}


def test_more_answers_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "LARGEST", 1000)
    with pytest.raises(UsageError, match="5 ablations of 100 images would keep"):
        Answers(5, 100, 3, PRECISION, together=False)


def test_answers_that_are_not_numbers_and_classes_nobody_has(place: Path) -> None:
    answers = Answers(1, 2, 2, ERROR, together=False)
    answers.start(torch.zeros(2, 2))
    answers.add(slice(0, 2), slice(0, 1), torch.full((2, 1, 2), torch.nan))
    with pytest.raises(CnnvizError, match=r"not numbers \(original network\)"):
        _check_finite(made(place, "values", "none"), answers.arrays())
    answers = Answers(1, 2, 2, PRECISION, together=False)
    answers.start(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    answers.add(slice(0, 2), slice(0, 1), torch.tensor([[[2.0, 1.0]], [[1.0, 1.0]]]))
    found = answers.finish()
    assert np.isnan(found.each_VK[0, 1])
    assert found.mean_V.tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "head", "manifest", "measure"),
    [
        ("labels", "sigmoid", "several.jsonl", "mean average precision"),
        ("values", "none", "values.jsonl", "mean absolute error"),
    ],
)
def test_the_command_writes_what_is_measured(
    place: Path, name: str, head: str, manifest: str, measure: str
) -> None:
    model = ["--model", f"{place / 'net.py'}:{name}", "--size", "6", "--mean", "0", "--std", "1"]
    line = ["ablate", str(place / manifest), "--head", head, "--labels", str(place / "names.txt")]
    filters = ["--filters", "colours:2", "--sweep", "colours", "--cumulative"]
    out = place / "out"
    ran = CliRunner().invoke(app, [*line, *filters, *model, "--out", str(out)])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    summary = json.loads((out / "summary.json").read_text())
    validate(summary, SCHEMA)
    results = summary["results"]
    assert results["measure"] == measure
    assert results["accuracy"] is results["flips"] is None
    assert results["measured"]["after"] - results["measured"]["before"] == pytest.approx(
        results["measured"]["change"], abs=1e-6
    )
    assert [entry["class"] for entry in results["classes"]] == list(COLOURS)
    assert results["sweep"]["top"][-1]["filter"] == 3
    assert {path.name for path in out.glob("*.png")} == {
        "classes.png",
        "sweep.png",
        "cumulative.png",
    }
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert rows[-1]["filter"] == "3"
    assert rows[0]["lost"] == rows[0]["p_value"] == ""
    loaded = load(out)
    assert to_json(loaded) == results
    assert [effect.harm > 0 for effect in loaded.effects] == [True] * 3 + [False]
    assert float(rows[-1]["accuracy"]) == pytest.approx(results["measured"]["before"], abs=1e-6)
    ran = CliRunner().invoke(app, [*line, *filters, *model, "--min-accuracy", "0.5"])
    assert isinstance(ran.exception, CnnvizError | SystemExit)
    assert "counts right answers" in str(ran.exception) + ran.output
