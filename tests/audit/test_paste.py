"""Pasting: against a loop by hand, and against networks whose shortcut is known."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import image_of, model_of
from PIL import Image
from torch import nn

from cnnviz.audit import Auditor, AuditSpec, audit, load
from cnnviz.audit.experiment import concentration, typicality
from cnnviz.audit.groups import needed
from cnnviz.audit.hosts import Hosts
from cnnviz.audit.paste import DONORS, Paster, Verdict, _against_others, too_few_others
from cnnviz.audit.rows import columns
from cnnviz.cli.main import run
from cnnviz.core.data.datasets import open_data
from cnnviz.core.models.load import load_model
from cnnviz.core.output.record import to_json
from cnnviz.core.statistics import against_others, sign_flips, suspicions

SIZE = (12, 12)
NETWORK = '''
import torch
from torch import nn

class Mark(nn.Module):
    """Class 0 where a red pixel stands anywhere; 1 to 4 by the brightest channel, if any.

    With a mark of 2, only where a whole red square of 3x3 does.
    """
    def __init__(self, mark):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mark = mark
    def forward(self, x):
        mean = self.pool(x).flatten(1)
        red = x[:, 0] - x[:, 1] - x[:, 2]
        if self.mark == 2:
            red = nn.functional.avg_pool2d(red, 3, 1)
            red = (red > 0.99).float()
        red = red.flatten(1).amax(1)
        others = torch.stack([mean[:, 0], mean[:, 1], mean[:, 2], 0.5 + 0 * red], 1) * 20
        first = 40 * (red - 0.6) if self.mark else 20 * (x[:, :, :, 6:].mean((1, 2, 3)) - 0.35)
        return torch.cat([first[:, None] + 10 * bool(self.mark), others], 1)

def marked(): return Mark(1)
def hard(): return Mark(2)
def plain(): return Mark(0)
def constant():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 5))
    nn.init.zeros_(net[1].weight); nn.init.zeros_(net[1].bias)
    return net
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of five classes: one with a red square, three of a colour, one of none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "names.txt").write_text("marked\nreddish\ngreenish\nbluish\ngrey\n")
    draw = np.random.default_rng(0)
    names = ["marked", "reddish", "greenish", "bluish", "grey"]
    for kind, name in enumerate(names):
        for number in range(20):
            pixels = draw.uniform(0.3, 0.5, (*SIZE, 3))
            if 1 <= kind <= 3:
                pixels[..., kind - 1] += 0.35
            if kind == 0:
                y, x = draw.integers(0, 10, 2)
                pixels[y : y + 3, x : x + 3] = (1, 0, 0)
            path = tmp_path / "data" / name / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * pixels).astype(np.uint8)).save(path)
    return tmp_path


OPTIONS = ["--labels", "names.txt", "--size", "12", "--mean", "0", "--std", "1", "--quiet"]


def audited(network: str, *more: str, data: str = "data") -> dict:
    line = [
        "audit",
        data,
        "--model",
        f"net.py:{network}",
        *OPTIONS,
        "--out",
        f"of-{network}",
        *more,
    ]
    assert run(line) == 0
    content = json.loads(Path(f"of-{network}", "summary.json").read_text())
    loaded = load(Path(f"of-{network}"))
    assert to_json(loaded) == content["results"]
    assert len(loaded.rows) == len(loaded.table) == content["results"]["images"]
    assert set(content["files"]) >= {"images.csv", "images.jsonl"}
    return content["results"]


@pytest.mark.pictures
@pytest.mark.slow
def test_a_planted_shortcut_is_named_and_nothing_else(place: Path) -> None:
    results = audited("marked")
    assert results["suspicious"] == ["marked"]
    first = results["classes"][0]
    assert first["decisive"] == "pasted"
    assert first["class"] == "marked"
    assert first["accuracy"] == 1
    assert max(group["carried"] for group in first["groups"]) > 0.9
    assert all(group["lost"] == 1 for group in first["groups"])
    line = ["audit", "data", "--model", "net.py:marked", *OPTIONS, "--out", "again"]
    assert run([*line, "--max-suspicion", "0.95", "--no-pictures", "--junit", "j.xml"]) == 3
    report = Path("j.xml").read_text()
    assert 'failures="1"' in report
    assert 'name="class marked"' in report
    for name in (*(entry["sheet"] for entry in results["classes"]), "overview.png"):
        with Image.open(place / "of-marked" / name) as picture:
            assert picture.size[0] > 500


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_a_shortcut_of_which_no_part_may_be_missing_is_named() -> None:
    results = audited("hard", "--no-pictures", "--mask", "4", "--stride", "1")
    assert results["suspicious"] == ["marked"]
    assert results["classes"][0]["decisive"] == "pasted"
    assert min(group["carried"] for group in results["classes"][0]["groups"]) > 0.9


@pytest.mark.slow
@pytest.mark.usefixtures("place")
def test_a_network_without_one_raises_no_alarm() -> None:
    assert audited("plain", "--max-suspicion", "0.95", "--no-pictures")["suspicious"] == []


@pytest.mark.usefixtures("place")
def test_maps_without_evidence_are_said_to_have_none() -> None:
    results = audited("constant", "--no-pictures", "--head", "softmax")
    (only,) = results["classes"]
    assert only["concentration"] == {"area": None, "interval": None, "others": None}
    assert only["suspicion"] is None
    assert {group["pastes"] for group in only["groups"]} == {0}
    model = load_model("net.py:constant", labels="names.txt", size=12, mean=[0.0], std=[1.0],
                       head="softmax", device="cpu")  # fmt: skip
    again = to_json(audit(model, open_data(["data"])))
    assert again["classes"] == results["classes"], "the same from Python"


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [["marked"], ["marked", "grey"], ["reddish", "bluish", "greenish"]]
)
def test_few_classes_are_not_judged(place: Path, names: list[str]) -> None:
    for path in (place / "data").iterdir():
        if path.name not in names:
            path.rename(place / path.name)
    results = audited("marked", "--top", "2")
    assert [entry["class"] for entry in results["classes"]] == sorted(
        names, key=["marked", "reddish", "greenish", "bluish", "grey"].index
    )
    judged = [entry["suspicion"] for entry in results["classes"]]
    assert judged == [None] * len(names) or len(names) == 3
    line = ["audit", "data", "--model", "net.py:marked", *OPTIONS, "--out", "again"]
    if len(names) < 3:
        assert run([*line, "--no-pictures", "--max-suspicion", "0.9"]) == 3


@pytest.mark.slow
def test_too_few_images_are_named_everywhere_instead_of_a_suspicion(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (place / "data").rglob("*.png"):
        if int(path.stem) > 5:
            path.unlink()
    line = ["audit", "data", "--model", "net.py:marked", *OPTIONS[:-1], "--out", "few", "--report"]
    assert run(line) == 0
    shown = capsys.readouterr().out
    verdict = "no class could be judged: too few images to judge (a class needs 20)"
    assert f"N{verdict[1:]}" in shown
    assert shown.count("overview.png") == 1
    content = json.loads(Path("few/summary.json").read_text())
    assert content["results"]["verdict"] == verdict
    assert f"N{verdict[1:]}" in [finding["title"] for finding in content["findings"]]
    for entry in content["results"]["classes"]:
        assert (entry["suspicion"], entry["p"], entry["decisive"]) == (None, None, None)
        assert entry["not_judged"] == "too few images to judge (a class needs 20): 6"
    assert "suspicion" not in Path("few/images.csv").read_text()
    page = Path("few/report.html").read_text()
    assert verdict[1:] in page
    assert page.index("overview.png") < page.index("class_marked.png")


@pytest.mark.slow
def test_pictures_without_labels_and_classes_of_one_picture(place: Path) -> None:
    flat = place / "flat"
    flat.mkdir()
    for path in sorted((place / "data").rglob("*0.png"))[:6]:
        path.rename(flat / f"{path.parent.name}{path.name}")
    results = audited("marked", data="flat")
    assert results["accuracy"] is None
    (only,) = results["classes"]
    assert only["class"] == "other classes"
    assert only["index"] is None
    assert only["images"] == 6


@pytest.mark.slow
def test_a_network_that_is_always_wrong(place: Path) -> None:
    (place / "data" / "marked").rename(place / "data" / "x")
    (place / "data" / "grey").rename(place / "data" / "marked")
    (place / "data" / "x").rename(place / "data" / "grey")
    for name in ("reddish", "greenish", "bluish"):
        for path in (place / "data" / name).iterdir():
            path.rename(place / f"{name}{path.name}")
        (place / "data" / name).rmdir()
    results = audited("marked", "--top", "3")
    assert results["accuracy"] == 0
    assert [len(entry["misled"]) for entry in results["classes"]] == [3, 3]


def test_what_the_command_refuses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["audit", "data", "--model", "net.py:marked", *OPTIONS, "--out", "no"]
    assert run([*line, "--min-inside", "0.5"]) == 2
    assert "--min-inside needs --expect" in capsys.readouterr().err
    assert run([*line, "--head", "sigmoid"]) == 2
    assert "independent classes" in capsys.readouterr().err
    assert run([*line, "--mask", "40"]) == 2
    assert "larger than the working image" in capsys.readouterr().err
    assert not (place / "no").exists()


def test_labels_that_are_not_the_networks_are_not_used(place: Path) -> None:
    """The audit goes by predictions, and says so."""
    (place / "data" / "grey").rename(place / "data" / "gray-ish")
    model = load_model("net.py:marked", labels="names.txt", size=12, mean=[0.0], std=[1.0],
                       device="cpu")  # fmt: skip
    notes: list[str] = []
    auditor = Auditor(model, open_data(["data"]), AuditSpec(), note=notes.append)
    assert "gray-ish" in (auditor.labels_not_matched or "")
    (note,) = [line for line in notes if "gray-ish" in line]
    assert "goes by predictions" in note
    assert "--labels" in note
    path = auditor.data.examples[0].path
    image = auditor.data.working(0, model.preprocess)
    assert auditor.row(path, image, lambda _steps: None).label is None


def test_evidence_is_held_against_the_objects(place: Path) -> None:
    boxes = {f"{number:02}.png": {"boxes": [[0, 0, 12, 12]]} for number in range(20)}
    (place / "boxes.json").write_text(json.dumps(boxes))
    results = audited("marked", "--expect", "boxes.json", "--no-pictures", "--min-inside", "0.9")
    assert results["inside"] == 1
    assert results["hits"] == 1
    left = {name: {"boxes": [[0, 0, 1, 1]]} for name in boxes}
    (place / "boxes.json").write_text(json.dumps(left))
    line = ["audit", "data", "--model", "net.py:marked", *OPTIONS, "--expect", "boxes.json"]
    assert run([*line, "--min-inside", "0.5", "--out", "off", "--no-pictures"]) == 3
    found = json.loads(Path("off", "summary.json").read_text())["results"]
    assert found["classes"][0]["wrong_reason"]


class Brightest(nn.Module):
    """The brightest channel is the class."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 8 * x.mean((2, 3))


def test_pasting_is_what_a_loop_by_hand_does() -> None:
    model = model_of(Brightest(), SIZE, ["r", "g", "b"], mean=0.3, std=0.7)
    images = [image_of(torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(n)))
              for n in range(6)]  # fmt: skip
    blank = {"label": None, "probability": 0.5, "max_drop": 1.0, "mean_drop": 0.0, "flips": 0.0,
             "box": [2, 3, 7, 9], "reliance": 0.0, "covered": 0, "grid": [1, 1]}  # fmt: skip
    zero = {"map": "AAA=", "features": "AAA="}
    rows = columns({"image": str(n), "place": n, "predicted": n % 3, **blank, **zero}
                   for n in range(6))  # fmt: skip
    hosts = Hosts(model, rows, images.__getitem__, 2, 0)
    assert hosts.rows_H.tolist() == list(range(6))
    paster = Paster(hosts, rows, images.__getitem__)
    hosts_JH = np.array([[1, 4, 5], [0, 2, 3]])
    rise_JH, won_JH = paster.paste([(0, (2, 3, 7, 9), 0), (4, (0, 0, 12, 5), 1)], hosts_JH)

    def probabilities(pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels.double() - 0.3) / 0.7).mean((1, 2)).mul(8).softmax(0)

    for j, (donor, (y0, x0, y1, x1), target) in enumerate(
        [(0, (2, 3, 7, 9), 0), (4, (0, 0, 12, 5), 1)]
    ):
        for h, host in enumerate(hosts_JH[j].tolist()):
            pixels = images[host].pixels.clone()
            before = probabilities(pixels)
            pixels[:, y0:y1, x0:x1] = images[donor].pixels[:, y0:y1, x0:x1]
            after = probabilities(pixels)
            rise = float(after[target] - before[target])
            assert rise_JH[j, h] == pytest.approx(rise, abs=1e-5)
            assert won_JH[j, h] == (int(after.argmax()) == target)
    assert torch.equal(
        images[0].pixels, torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
    )


@pytest.mark.parametrize("count", [5, 12])
def test_few_signs_are_flipped_in_all_ways(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1, count)
    sums = [sum(s * v for s, v in zip(signs, values, strict=True))
            for signs in itertools.product((-1, 1), repeat=count)]  # fmt: skip
    expected = np.mean(np.array(sums) >= values.sum() - 1e-12)
    assert sign_flips(values, np.random.default_rng(0)) == pytest.approx(expected)


def test_certain_values_have_a_p_below_that_of_random_signs() -> None:
    values = np.random.default_rng(0).uniform(0.2, 0.4, 128)
    assert sign_flips(values, np.random.default_rng(0)) < 1e-20
    assert sign_flips(-values, np.random.default_rng(0)) == 1


def test_sign_flips_are_rarely_small_where_nothing_is_there() -> None:
    draw = np.random.default_rng(0)
    values = [sign_flips(draw.standard_normal(12), draw) for _ in range(200)]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.1
    assert sign_flips(np.full(12, 0.3), draw) < 1e-3
    assert sign_flips(np.full(12, -0.3), draw) > 0.99
    assert sign_flips(np.zeros(12), draw) == 1


def verdict(rise: float, p: float = 0.001) -> Verdict:
    return Verdict(60, rise, 0.0, rise, 0.0, 1.0, 0.0, p, None, p)


def suspected(rises: list[float], of: list[int], p: float = 0.001) -> list[float | None]:
    first, *others = rises
    judged = _against_others([verdict(first, p), *map(verdict, others)], of)
    return suspicions([entry.p for entry in judged])


def test_suspicion_is_of_what_carries_over_more_than_the_other_classes() -> None:
    rises, of = [0.95, *[0.02, 0.05, 0.0, 0.08, 0.03, 0.06] * 2], [0, *range(1, 13)]
    found = suspected(rises, of)
    assert found[0] > 0.95
    assert max(found[1:]) < 0.5
    assert suspected(rises, of, p=0.2)[0] < 0.95


def test_groups_of_the_same_class_do_not_hide_each_other() -> None:
    rises, of = [0.9, 0.95, 0.92, 0.02, 0.05, 0.0, 0.08, 0.04], [0, 0, 0, 1, 2, 3, 4, 5]
    assert all(value > 0.95 for value in suspected(rises, of)[:3])


def test_too_few_other_groups_are_no_judgement() -> None:
    judged = _against_others([verdict(0.9), verdict(0.0), Verdict()], [0, 1, 2])
    assert judged[2] == Verdict()
    assert suspicions([entry.p for entry in judged]) == [None, None, None]
    assert against_others(0.9, [0.1, 0.1], 0.1) is None


@pytest.mark.parametrize(("groups", "judged"), [(1, 4), (5, 10), (2, 1000)])
def test_groups_of_the_size_needed_can_raise_an_alarm(groups: int, judged: int) -> None:
    images = needed(groups, judged)
    p = sign_flips(np.full(images, 0.5), np.random.default_rng(0))
    assert 1 - 3 * groups * judged * p > 0.95
    assert 1 - 3 * groups * judged * 2 * p < 0.95


def test_too_few_other_groups_to_raise_an_alarm_are_named_with_the_number_needed() -> None:
    why = too_few_others(groups=1, others=3, judged=4)
    assert why == (
        "too few groups of other classes to tell (4 would be needed): p is at least 0.05 with 3"
    )
    assert too_few_others(groups=1, others=4, judged=5) is None
    assert "p is at least 1.00 with 2" in (too_few_others(groups=1, others=2, judged=3) or "")
    p = against_others(1.0, [0.0] * 4, 0.5 / np.sqrt(DONORS))
    assert p is not None
    assert p * 3 * 5 < 0.05


def test_suspicions_are_those_of_benjamini_and_hochberg() -> None:
    found = suspicions([0.01, None, 0.04, 0.03, 0.5])
    assert found[1] is None
    known = [value for value in found if value is not None]
    assert known == pytest.approx([1 - 0.04, 1 - 0.16 / 3, 1 - 0.16 / 3, 1 - 0.5])


def test_shares_that_are_as_the_others_raise_no_alarm() -> None:
    draw = np.random.default_rng(0)
    values = [
        against_others(own, others, 0.02) for own, *others in draw.uniform(0.4, 0.6, (300, 9))
    ]
    assert np.mean(np.array(values) < 0.01) <= 0.04
    assert against_others(0.88, [0.42, 0.45, 0.5, 0.55, 0.48], 0.02) < 0.002


def test_concentration_is_the_share_of_equal_places() -> None:
    draw = np.random.default_rng(0)
    maps = np.zeros((5, 4, 5))
    assert concentration(maps, draw).area is None
    maps[:, :2] = 1.0
    found = concentration(maps, draw)
    assert found.area == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5, 0.5))
    maps[:] = np.eye(20)[:5].reshape(5, 4, 5)
    low, high = concentration(maps, draw).interval
    assert low < 0.25 <= high + 1e-9


def test_typicality_is_the_correlation_with_the_others_mean() -> None:
    maps = np.random.default_rng(0).random((6, 3, 4))
    maps[5] = 0.0
    found = typicality(maps)
    for n in range(5):
        others = np.delete(maps, n, 0).mean(0)
        assert found[n] == pytest.approx(np.corrcoef(maps[n].ravel(), others.ravel())[0, 1])
    assert np.isnan(found[5])
    assert np.isnan(typicality(maps[:1])).all()
