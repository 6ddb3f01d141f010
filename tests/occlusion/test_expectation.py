import json
import math

import pytest
import torch

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.output.judged import Judged
from cnnviz.core.output.record import from_json, to_json
from cnnviz.occlusion.maps import judge


def working(path="photo.png", box=(0.0, 0.0, 20.0, 20.0)):
    return WorkingImage(path, torch.zeros(3, 10, 10), box, (20, 20))


def test_a_box_in_file_pixels_becomes_the_working_images_pixels():
    expectation = read_outlines("4,8,12,16").for_image("photo.png")
    expected = torch.zeros(10, 10, dtype=torch.bool)
    expected[4:8, 2:6] = True
    mask = outline_mask(expectation, working())
    assert torch.equal(mask, expected)


def test_an_object_finer_than_a_pixel_is_the_pixel_it_is_in():
    mask = outline_mask(read_outlines("4,8,4.5,8.5").for_image("photo.png"), working())
    assert torch.where(mask) == (4, 2)


def test_boxes_and_polygons_come_from_a_file_by_path_or_name(tmp_path):
    file = tmp_path / "truth.json"
    entry = {"label": "cat", "polygons": [[[0, 0], [10, 0], [10, 10], [0, 10]]]}
    file.write_text(json.dumps({"photo.png": entry, "other.png": {"boxes": [[0, 0, 2, 2]]}}))
    expectations = read_outlines(str(file))
    assert expectations.for_image("folder/photo.png").label == "cat"
    assert expectations.for_image("other.png").label is None
    with pytest.raises(CnnvizError, match=r"'third.png' has no entry 'third.png' in"):
        expectations.for_image("third.png")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "cannot be used"),
        ("[1, 2]", "not an object of image names"),
        ('{"a.png": {}}', "each entry needs 'boxes'"),
        ('{"a.png": {"boxes": [[5, 5, 1, 9]]}}', "is empty"),
        ('{"a.png": [1]}', "each image's entry is an object"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "truth.json"
    file.write_text(content)
    with pytest.raises(UsageError, match=reason):
        read_outlines(str(file))


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,x", "9,9,1,1", "nowhere.json"])
def test_what_is_neither_a_box_nor_a_file_is_refused(text):
    with pytest.raises(UsageError, match="it takes x0,y0,x1,y1 in the image file's pixels"):
        read_outlines(text)


def test_an_object_outside_the_crop_is_an_error():
    expectation = read_outlines("0,0,4,4").for_image("photo.png")
    with pytest.raises(CnnvizError, match="lies outside the working image"):
        outline_mask(expectation, working(box=(10.0, 10.0, 20.0, 20.0)))


def test_judge_counts_positive_evidence_only():
    object_HW = torch.zeros(4, 4, dtype=torch.bool)
    object_HW[:2, :2] = True
    map_HW = torch.full((4, 4), -5.0)
    map_HW[0, 0], map_HW[3, 3] = 3.0, 1.0
    verdict = judge(map_HW, object_HW)
    assert verdict.pointing_game_hit
    assert verdict.inside == pytest.approx(0.75)
    assert verdict.object_share == pytest.approx(0.25)


def test_the_peak_of_a_plateau_is_its_middle():
    object_HW = torch.zeros(5, 5, dtype=torch.bool)
    object_HW[2, 2] = True
    map_HW = torch.zeros(5, 5)
    map_HW[1:4, 1:4] = 1.0
    assert judge(map_HW, object_HW).pointing_game_hit


@pytest.mark.parametrize("map_HW", [-torch.ones(3, 3), torch.zeros(3, 3)])
def test_without_positive_evidence_there_is_neither_hit_nor_miss(map_HW):
    verdict = judge(map_HW, torch.ones(3, 3, dtype=torch.bool))
    assert verdict.pointing_game_hit is None
    assert verdict.inside is not None
    assert math.isnan(verdict.inside)
    written = to_json(verdict)
    assert (written["pointing_game_hit"], written["inside"]) == (None, None)
    assert to_json(Judged()) == {}
    read = from_json(Judged, written)
    assert (read.pointing_game_hit, read.object_share) == (None, 1.0)
    assert math.isnan(read.inside)
