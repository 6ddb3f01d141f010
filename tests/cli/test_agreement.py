"""What `occlude` and `render` show of occlusion and gradient together."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from parts import slow_but

from cnnviz.cli.main import run

ROOT = Path(__file__).parent.parent.parent
SHIP = str(ROOT / "sample_images" / "ship.png")
FAST = ["--mask", "8", "--stride", "8", "--quiet"]
NETS = """
import torch
from torch import nn


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        with torch.no_grad():
            return self.conv(x).mean((2, 3))


def cut():
    torch.manual_seed(0)
    return Cut()


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
"""


def entries(folder: Path, command: str = "occlude") -> list[dict]:
    summary = json.loads((folder / "summary.json").read_text())
    schema = json.loads((ROOT / "docs" / "schemas" / f"{command}.schema.json").read_text())
    jsonschema.validate(summary, schema)
    return summary["results"]


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def test_the_summary_and_the_arrays_have_both_maps(tmp_path: Path) -> None:
    expect = ["--expect", str(ROOT / "sample_images" / "truth.json")]
    assert run(["occlude", SHIP, *FAST, *expect, "--out", str(tmp_path)]) == 0
    (entry,) = entries(tmp_path / "ship")
    assert (entry["score"], entry["upsample"], entry["method"]) == (
        "log-odds",
        "density",
        "occlusion",
    )
    found = entry["targets"][0]["agreement"]
    assert found["with"] == "Grad-CAM at features.block3.conv2"
    assert found["pointing_game_hit"] is True
    with np.load(tmp_path / "ship" / "scores.npz") as arrays:
        occluded, traced = arrays["maps"][0], arrays["gradients"][0]
        assert arrays["gradient_target"].tolist() == [8]
    parts = [np.maximum(values, 0) for values in (occluded, traced)]
    both = sum(part / np.quantile(part, 0.99) for part in parts)
    assert both[tuple(found["peak"])] == pytest.approx(both.max(), rel=1e-4)
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (occluded, traced)]
    assert found["rank_correlation"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=0.05)  # ties


def test_without_options_the_defaults_are_run(tmp_path: Path) -> None:
    assert run(["occlude", SHIP, "--quiet", "--out", str(tmp_path)]) == 0
    (entry,) = entries(tmp_path / "ship")
    assert (entry["score"], entry["upsample"]) == ("log-odds", "density")
    assert entry["targets"][0]["mask"] == [8, 8]
    assert entry["targets"][0]["stride"] == 2


@pytest.mark.parametrize(
    ("options", "score", "upsample"),
    [
        (["--score", "logit"], "logit", "density"),
        (["--upsample", "bicubic"], "log-odds", "bicubic"),
        (["--stride", "4x8"], "log-odds", "density"),
        (["--mask", "8"], "log-odds", "density"),
        (["--preset", "classic"], "probability", "coverage"),
        (["--preset", "classic", "--mask", "8", "--score", "loss"], "loss", "coverage"),
    ],
)
def test_what_is_asked_for_is_what_it_was(
    tmp_path: Path, options: list[str], score: str, upsample: str
) -> None:
    assert run(["occlude", SHIP, *options, "--quiet", "--out", str(tmp_path)]) == 0
    (entry,) = entries(tmp_path / "ship")
    assert (entry["score"], entry["upsample"]) == (score, upsample)


@pytest.mark.pictures
@pytest.mark.parametrize(
    "options", slow_but([[], ["--mask", "8"], ["--method", "agreement"]], ["--mask", "8"])
)
def test_render_without_options_draws_what_the_run_drew(tmp_path: Path, options: list[str]) -> None:
    assert run(["occlude", SHIP, *options, "--quiet", "--out", str(tmp_path)]) == 0
    method = options if "--method" in options else []
    again = str(tmp_path / "again")
    assert run(["render", str(tmp_path / "ship"), *method, "--quiet", "--out", again]) == 0
    (entry,) = entries(tmp_path / "again" / "ship", "render")
    assert entry["method"] == ("agreement" if method else "occlusion")
    for name in ("overlay.png", "heatmap.png", "agreement.png", "label.png"):
        drawn = [tmp_path / place / name for place in ("ship", "again/ship")]
        assert drawn[0].read_bytes() == drawn[1].read_bytes()


def test_the_agreement_is_judged_where_it_is_what_is_asked_for(tmp_path: Path) -> None:
    expect = ["--expect", str(ROOT / "sample_images" / "truth.json"), "--quiet"]
    line = ["occlude", SHIP, *expect, "--out"]
    assert run([*line, str(tmp_path / "a"), "--method", "agreement"]) == 0
    assert run([*line, str(tmp_path / "o")]) == 0
    agreed, occluded = (entries(tmp_path / name / "ship")[0]["targets"][0] for name in "ao")
    assert agreed["inside"] == agreed["agreement"]["inside"] == occluded["agreement"]["inside"]
    assert occluded["inside"] != agreed["inside"]
    assert agreed["max_drop"] == occluded["max_drop"]  # of the occlusion, either way


@pytest.mark.parametrize("made", ["cut", "flat"])
def test_where_there_is_no_gradient_the_rest_is_there_and_a_line_says_so(
    tmp_path: Path, nets: Path, made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["occlude", SHIP, "--model", f"{nets}:{made}", "--size", "32", "--mask", "8"]
    assert run([*line, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().err.count("no agreement.png: ") == 1
    (entry,) = entries(tmp_path / "out" / "ship")
    assert "agreement" not in entry["targets"][0]
    assert not (tmp_path / "out" / "ship" / "agreement.png").exists()
    assert (tmp_path / "out" / "ship" / "overlay.png").exists()
    assert run([*line, "--method", "agreement", "--out", str(tmp_path / "b")]) == 1
    assert "Grad-CAM" in (said := capsys.readouterr().err) or "gradient" in said
    again = ["render", str(tmp_path / "out" / "ship"), "--out", str(tmp_path / "r"), "--quiet"]
    assert run([*again, "--method", "agreement"]) == 1
    assert "no gradient of '" in capsys.readouterr().err
    assert run(again) == 0


def test_another_class_than_the_runs_has_no_gradient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["occlude", SHIP, *FAST, "--out", str(tmp_path)]) == 0
    line = ["render", str(tmp_path / "ship"), "--target", "cat", "--target", "ship", "--quiet"]
    assert run([*line, "--out", str(tmp_path / "r")]) == 0
    (entry,) = entries(tmp_path / "r" / "ship", "render")
    assert ["agreement" in target for target in entry["targets"]] == [False, True]
    assert run([*line, "--method", "agreement", "--out", str(tmp_path / "s")]) == 1
    assert "no gradient of 'cat' was traced" in capsys.readouterr().err


def test_classes_named_by_numbers_get_their_own_gradient(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(str(9 - number) for number in range(10)))
    line = ["occlude", SHIP, *FAST, "--labels", str(names), "--target", "top3"]
    assert run([*line, "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "ship" / "scores.npz") as named:
        traced = torch.from_numpy(named["gradients"])
        targets = named["gradient_target"].tolist()
    plain = ["occlude", SHIP, *FAST, "--target", "top3", "--out", str(tmp_path / "plain")]
    assert run(plain) == 0
    with np.load(tmp_path / "plain" / "ship" / "scores.npz") as arrays:
        assert arrays["gradient_target"].tolist() == targets
        torch.testing.assert_close(torch.from_numpy(arrays["gradients"]), traced)


def test_the_regions_are_in_the_summary_the_arrays_and_a_picture(tmp_path: Path) -> None:
    line = ["occlude", SHIP, *FAST, "--sufficient", "--target", "top2", "--out", str(tmp_path)]
    assert run(line) == 0
    (entry,) = entries(tmp_path / "ship")
    assert (tmp_path / "ship" / "sufficient.png").exists()
    first = entry["sufficient"][0]
    assert first["class"] == "ship"
    assert first["region"]["probability"] >= 0.9 * first["probability"]
    with np.load(tmp_path / "ship" / "scores.npz") as arrays:
        cells = arrays["sufficient_8"]
    assert cells.sum() == first["region"]["cells"]
    assert cells.size == first["region"]["of_cells"] == 256
