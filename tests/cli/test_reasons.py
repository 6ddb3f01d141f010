"""`cnnviz reasons` from the outside: files, numbers, the page, and what it refuses."""

import json
from pathlib import Path

import pytest

from cnnviz.cli.main import run
from cnnviz.core.output.summary import read_summary
from cnnviz.reasons.results import load_run

SAMPLES = Path(__file__).parent.parent.parent / "sample_images"
TRUCK = str(SAMPLES / "truck.png")
FEW = ["--skip", "pairs", "--skip", "filters", "--quiet"]


def test_a_run_has_its_regions_on_the_object_and_on_the_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--cell", "8", "--expect", str(SAMPLES / "truth.json"), "--report"]
    options += ["--segments", "grid", "--parts", "4"]
    assert run(["reasons", TRUCK, *options, *FEW, "--out", str(out)]) == 0
    finished = read_summary(out / "truck")
    (result,) = load_run(finished)
    (target,) = result.targets
    assert target.class_ == "truck"
    assert target.reasons
    assert all(reason.alone >= 0.9 * target.reading for reason in target.reasons)
    assert all(reason.inside is not None for reason in target.reasons)
    shapley = target.shapley
    assert shapley is not None
    total = sum(part.value for part in shapley.parts)
    assert total == pytest.approx(shapley.all - shapley.none, abs=1e-4)
    files = {"input.png", "reasons.png", "shapley.png", "report.html"}
    assert files <= {path.name for path in (out / "truck").iterdir()}
    page = (out / "truck" / "report.html").read_text("utf-8")
    assert "reason 1: " in page
    assert json.loads((out / "truck" / "summary.json").read_text())["schema"] == "cnnviz.reasons/1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--most", "0"], "--most 0 is out of range; it takes a whole number from 1 to 20"),
        (["--hold", "1.5"], "--hold 1.5 is out of range"),
        (["--cell", "0"], "--cell 0 is out of range"),
        (["--segments", "squares"], "no file 'squares'; --segments takes grid, slic or a label"),
        (["--head", "none", "--target", "1"], "reasons needs classes or boxes"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reasons", TRUCK, *options, *FEW, "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
