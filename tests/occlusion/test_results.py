"""A result that is written to a summary is read back as it was."""

import math
from pathlib import Path

import pytest
import torch

from cnnviz.core import load_model, read_image
from cnnviz.core.errors import CnnvizError
from cnnviz.core.output.record import from_json, to_json
from cnnviz.gradients import SaliencySpec, saliency
from cnnviz.gradients.results import SaliencyResult
from cnnviz.occlusion import OcclusionResult, OcclusionSpec, occlude
from cnnviz.occlusion.maps import judge_panels
from cnnviz.trust.judge import GradCam

SHIP = Path(__file__).parent.parent.parent / "sample_images" / "ship.png"


def test_occlusion_is_read_back_as_it_was_written() -> None:
    model = load_model(device="cpu")
    spec = OcclusionSpec(masks=((8, 8),), stride=8, label="cat", layer="features.block3.relu2")
    trace = GradCam(model, spec, lambda _note: None)
    result = judge_panels(
        occlude(model, SHIP, spec, trace=trace), torch.ones(32, 32, dtype=torch.bool)
    )
    entry = to_json(result)
    assert {"measured", "compared", "folder"}.isdisjoint(entry)
    assert "map_HW" not in entry["targets"][0]
    again = from_json(OcclusionResult, {**entry, "folder": "ship"})
    assert again.folder == "ship"
    assert to_json(again) == entry
    with pytest.raises(CnnvizError, match="targets"):
        from_json(OcclusionResult, {**entry, "targets": []})


def test_numbers_that_are_not_known_are_null_and_others_absent() -> None:
    model = load_model(device="cpu")
    result = occlude(model, SHIP, OcclusionSpec(masks=((16, 16),), stride=16))
    nothing = judge_panels(result, torch.zeros(32, 32, dtype=torch.bool))
    assert "inside" not in to_json(result)["targets"][0]
    assert to_json(nothing)["targets"][0]["inside"] == 0
    assert result.verified_largest_difference is None
    assert not any(math.isnan(panel.max_drop) for panel in result.panels)


def test_saliency_is_read_back_as_it_was_written() -> None:
    model = load_model(device="cpu")
    result = saliency(model, read_image(SHIP, model.preprocess), SaliencySpec(targets=("top2",)))
    entry = to_json(result)
    assert to_json(from_json(SaliencyResult, entry)) == entry
