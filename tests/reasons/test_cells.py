"""`cnnviz reasons`: pairs of cells and filters from the outside."""

import csv
import json
from pathlib import Path

import jsonschema
import pytest

from cnnviz.cli.main import run
from cnnviz.core.output.summary import read_summary
from cnnviz.reasons import load_run

ROOT = Path(__file__).parent.parent.parent
SHIP = str(ROOT / "sample_images" / "ship.png")
LAYER = "features.block3.conv2"


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of max-patches of one layer."""
    out = tmp_path_factory.mktemp("units")
    line = ["max-patches", str(ROOT / "sample_images"), "--layer", LAYER, "--filters", "0-63"]
    assert run([*line, "--top", "2", "--out", str(out), "--quiet"]) == 0
    return out


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.slow
def test_a_run_has_all_pairs_and_all_filters(
    units: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["reasons", SHIP, "--grid", "3", "--units", str(units), "--group", "4"]
    data = ["--data", str(ROOT / "sample_images")]
    assert run([*line, *data, "--out", str(tmp_path), "--quiet"]) == 0
    assert "no patches" not in capsys.readouterr().err
    folder = tmp_path / "ship"
    content = json.loads((folder / "summary.json").read_text())
    schema = json.loads((ROOT / "docs" / "schemas" / "reasons.schema.json").read_text())
    jsonschema.validate(content, schema)
    assert {"pairs.png", "filters.png", "pairs.csv", "filters.csv"} <= set(content["files"])
    (result,) = load_run(read_summary(folder))
    pairs, carried = result.targets[0].interactions, result.targets[0].carriers
    table = rows(folder / "pairs.csv")
    assert pairs is not None
    assert len(table) == pairs.of_pairs == 36
    named = [row for row in table if row["relation"] != "none"]
    assert len(named) == len(pairs.pairs)
    assert {row["class"] for row in table} == {result.targets[0].class_}
    for row in table:
        both = float(row["both"]) - float(row["first_drop"]) - float(row["second_drop"])
        assert float(row["beyond"]) == pytest.approx(both, abs=1e-5)
        assert float(row["lowest"]) <= float(row["beyond"]) <= float(row["highest"])
    assert carried is not None
    assert [layer.layer for layer in carried.layers] == [LAYER]
    table = rows(folder / "filters.csv")
    assert len(table) == -(-carried.layers[0].of_filters // 4)
    restored = sum(float(row["restored"]) for row in table)
    assert restored == pytest.approx(carried.layers[0].restored_sum, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--region", "0,0,0,5"], "invalid region '0,0,0,5'; --region takes rows and columns"),
        (["--region", "0,0,40,8"], "--region 0,0,40,8 is outside the working image of 32x32"),
        (["--layer", "nowhere"], "no layer 'nowhere' in bundled; the nearest are"),
        (["--grid", "17"], "--grid 17 is out of range; it takes a whole number from 2 to 16"),
        (["--skip", "pictures"], "'pictures' is not one of 'pairs', 'filters'"),
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["reasons", SHIP, *options, "--out", str(tmp_path)]) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_units_are_of_max_patches_and_their_images_are_named(
    units: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skip = ["reasons", SHIP, "--skip", "pairs", "--layer", LAYER, "--region", "8,8,24,24"]
    assert run([*skip, "--units", str(units), "--out", str(tmp_path / "a")]) == 0
    assert "name theirs with --data" in capsys.readouterr().err
    assert not (tmp_path / "a" / "ship" / "pairs.csv").exists()
    other = str(tmp_path / "a" / "ship")
    assert run([*skip, "--units", other, "--out", str(tmp_path / "b")]) == 2
    assert "--units takes a run of max-patches" in capsys.readouterr().err
