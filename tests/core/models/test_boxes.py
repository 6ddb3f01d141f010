"""Boxes as targets: their numbers, and which boxes are found, vanish and appear, by loops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import image_of
from PIL import Image
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import batched_nms, box_iou

from cnnviz.core import load_model
from cnnviz.core.data.images import WorkingImage, prepare
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.boxes import Boxes, BoxReading
from cnnviz.core.models.heads import SCORE, Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.options import box_name
from cnnviz.occlusion import OcclusionResult, OcclusionSpec, occlude
from cnnviz.occlusion.experiment import Occluder, look
from cnnviz.occlusion.measurement import load
from cnnviz.occlusion.options import PanelSpec
from cnnviz.occlusion.results import to_arrays
from cnnviz.trust.judge import Judge

SIDE, NEAR = 64, 12
FIRST, SECOND = (8, 8, 20, 20), (36, 40, 48, 52)
"""Rows and columns of the two squares: y0, x0, y1, x1."""
SOURCE = """
import torch
from torch import nn
from torch.nn import functional

class Squares(nn.Module):
    '''Squares of 12 pixels, red or blue, by their brightness; torchvision's limits by name.'''
    def __init__(self):
        super().__init__()
        self.score_thresh, self.nms_thresh, self.detections_per_img = 0.4, 0.5, 3
    def forward(self, images):
        found = []
        for image in images:
            near = functional.avg_pool2d(image[None], 12, 4)[0]
            rows, columns = near.shape[1:]
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            corner = 4 * torch.stack([x, y], -1).flatten(0, 1).float()
            boxes, scores = torch.cat([corner, corner + 12], 1), near.amax(0).flatten()
            labels = 1 + (near[2] > near[0]).flatten().long()
            if self.nms_thresh < 1:
                from torchvision.ops import batched_nms
                kept = (scores > self.score_thresh).nonzero().flatten()
                best = batched_nms(boxes[kept], scores[kept], labels[kept], self.nms_thresh)
                kept = kept[best][: self.detections_per_img]
            else:
                kept = scores > self.score_thresh
            found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return found

def make(): return Squares()
def closed():
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Squares()
        def forward(self, images):
            return self.network(images)
    return Closed()
"""


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    (tmp_path / "names.txt").write_text("background\nred thing\nblue thing\n")
    return str(path)


def made(source: str, name: str = "make", **options: object) -> Model:
    given = {"size": SIDE, "mean": (0,), "std": (1,), "threshold": 0.7} | options
    names = Path(source).parent / "names.txt"
    return load_model(f"{source}:{name}", labels=names, **given)  # type: ignore[arg-type]


def picture() -> WorkingImage:
    """A red square and a blue one on black."""
    pixels = torch.zeros(3, SIDE, SIDE)
    for channel, (y0, x0, y1, x1), value in ((0, FIRST, 0.93), (2, SECOND, 0.83)):
        pixels[channel, y0:y1, x0:x1] = value
    return image_of(pixels)


def spec(*boxes: str, **options: object) -> OcclusionSpec:
    base = {"masks": ((8, 8),), "stride": 8, "fill": "black", "boxes": boxes}
    return OcclusionSpec(**(base | options))  # type: ignore[arg-type]


def covered(image: WorkingImage, result: OcclusionResult) -> list[Tensor]:
    """The occluded images, one after the other."""
    images = []
    for y0, x0, y1, x1 in result.targets[0].grid.boxes_P4.tolist():
        pixels = image.pixels.clone()
        pixels[:, y0:y1, x0:x1] = 0
        images.append(pixels)
    return images


def number(raw: dict[str, Tensor], corners: Tensor, label: int) -> float:
    """The largest IoU times score of the detections of a class, one by one."""
    best = 0.0
    for box, score, of in zip(raw["boxes"], raw["scores"], raw["labels"], strict=True):
        if int(of) == label:
            best = max(best, float(box_iou(corners[None], box[None])) * float(score))
    return best


def test_the_map_of_a_bright_square_is_the_square(source: str) -> None:
    result = occlude(made(source), picture(), spec("all", masks=((4, 4),), stride=4))
    assert [panel.class_ for panel in result.targets] == ["1 red thing", "2 blue thing"]
    assert [panel.box for panel in result.targets] == [FIRST, SECOND]
    for panel, (y0, x0, y1, x1) in zip(result.targets, (FIRST, SECOND), strict=True):
        inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        inside[y0:y1, x0:x1] = True
        assert float(panel.map_HW[inside].min()) > 0.05
        assert float(panel.map_HW[~inside].abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["make", "closed"])
def test_numbers_are_those_of_a_loop_over_covered_images(source: str, name: str) -> None:
    """With every detection of an open network, with the kept ones of a closed one."""
    image = picture()
    result = occlude(made(source, name), image, spec("all"))
    alone = None
    if name == "closed":
        alone = load_model(f"{source}:{name}", size=SIDE, scores=False).module.network
    reading = result.measured.reading
    assert isinstance(reading, BoxReading)
    expected: list[list[float]] = [[], []]
    for pixels in covered(image, result):
        raw = everything(pixels) if alone is None else alone(pixels[None])[0]
        for index, label in enumerate((1, 2)):
            expected[index].append(number(raw, reading.corners_B4[index], label))
    for panel, values in zip(result.targets, expected, strict=True):
        assert panel.probabilities_P.tolist() == pytest.approx(values, abs=1e-5)
        assert max(values) > min(values)


def everything(pixels: Tensor) -> dict[str, Tensor]:
    """Every detection of `Squares`, by hand."""
    boxes, scores, labels = [], [], []
    for y in range(0, SIDE - NEAR + 1, 4):
        for x in range(0, SIDE - NEAR + 1, 4):
            mean = pixels[:, y : y + NEAR, x : x + NEAR].mean((1, 2))
            boxes.append([x, y, x + NEAR, y + NEAR])
            scores.append(float(mean.max()))
            labels.append(2 if mean[2] > mean[0] else 1)
    return {
        "boxes": torch.tensor(boxes).float(),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels),
    }


def test_boxes_vanish_where_a_loop_finds_none(source: str) -> None:
    image = picture()
    result = occlude(made(source), image, spec("1"))
    gone = []
    for pixels in covered(image, result):
        raw = everything(pixels)
        above = raw["scores"] >= 0.7
        boxes, scores, labels = (raw[key][above] for key in ("boxes", "scores", "labels"))
        kept = batched_nms(boxes, scores, labels, 0.5)
        first = torch.tensor([[8.0, 8.0, 20.0, 20.0]])
        there = (box_iou(first, boxes[kept])[0] >= 0.5) & (labels[kept] == 1)
        gone.append(not bool(there.any()))
    panel = result.targets[0]
    assert panel.flips is not None
    assert 0 < sum(gone) < len(gone)
    assert panel.flips.share == pytest.approx(sum(gone) / len(gone))
    assert [code > 0 for code in panel.winners_P.tolist()] == gone


def test_a_box_that_appears_is_named(source: str) -> None:
    """A bright fill makes a new object of the mask."""
    result = occlude(
        made(source), picture(), spec("1", masks=((12, 12),), stride=4, fill="#0000ff")
    )
    flips = result.targets[0].flips
    assert flips is not None
    assert [flip.class_ for flip in flips.to] == ["another blue thing"]
    assert flips.to[0].positions > 50
    codes = result.targets[0].winners_P.unique().tolist()
    reading = result.measured.reading
    assert isinstance(reading, BoxReading)
    assert {reading.outcomes[code] for code in codes} == {
        "stays",
        "another blue thing appears",
        "vanishes, another blue thing appears",
    }


@pytest.mark.parametrize(
    ("requested", "indices"),
    [
        (("2",), [1]),
        (("all",), [0, 1, 2]),
        (("ALL",), [0, 1, 2]),
        (("a",), [0, 2]),
        (("A@2",), [2]),
        (("b", "1", "b@1"), [1, 0]),
    ],
)
def test_boxes_are_named(requested: tuple[str, ...], indices: list[int]) -> None:
    assert list(reading_of("a", "b", "a").targets(requested, (), model_head(), "x")) == indices


def reading_of(*names: str) -> BoxReading:
    corners = torch.tensor([[0.0, 0, 4, 4]] * len(names))
    return BoxReading(corners, torch.linspace(0.9, 0.7, len(names)), names, ("a", "class"), (8, 8))


def model_head() -> Head:
    return Head(Kind.NONE, word=SCORE)


@pytest.mark.parametrize("text", ["4", "cat", "b@2"])
def test_a_missing_box_is_refused_with_those_that_are_there(text: str) -> None:
    with pytest.raises(CnnvizError, match=rf"no box '{text}' .* 1 a 0\.90, 2 b 0\.80, 3 a 0\.70"):
        reading_of("a", "b", "a").targets((text,), (), model_head(), "x")


def test_very_many_boxes_are_refused() -> None:
    many = reading_of(*["a"] * 101)
    with pytest.raises(CnnvizError, match=r"'x': --box names 101 boxes; at most 100 are explained"):
        many.targets(("all",), (), model_head(), "x")
    assert len(many.targets(("1", "a@100"), (), model_head(), "x")) == 2


def test_an_image_without_boxes_is_refused(source: str) -> None:
    with pytest.raises(CnnvizError, match=r"no box 'all' .* there is none"):
        occlude(made(source), image_of(torch.zeros(3, SIDE, SIDE)), spec("all"))


@pytest.mark.parametrize(
    ("corner", "score", "reason"),
    [
        (float("nan"), 0.9, "not finite"),
        (float("inf"), 0.9, "not finite"),
        (0.0, float("nan"), "not finite"),
        (0.0, 5.9, r"scores from 5\.9 to 5\.9"),
        (0.0, -5.0, "scores from -5 to -5"),
        (10.0, 0.9, r"returns the box \(10, 0, 9, 9\) for an image of 64x64; boxes are x0, y0"),
        (-10.0, 0.9, "and overlap it"),
        (130.0, 0.9, "and overlap it"),
        (0.0, 0.7, r"a box of class 1; there are 1 class names \(--labels names"),
    ],
)
def test_boxes_that_mean_nothing_are_refused(corner: float, score: float, reason: str) -> None:
    target = Boxes(torch.nn.Identity(), (SIDE, SIDE), "net")
    target.names = ("background",) if score == 0.7 else ()
    right = {-10.0: -1.0, 130.0: 140.0}.get(corner, 9.0)
    corners, label = torch.tensor([[corner, 0.0, right, 9.0]]), torch.tensor([1])
    found = [{"boxes": corners, "scores": torch.tensor([score]), "labels": label}]
    with pytest.raises(CnnvizError, match=reason):
        target.settle(lambda: target.rows(found), None)


def test_boxes_without_area_are_not_found_and_those_beyond_the_image_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A box cut off at the edge until nothing remains; one of which half is outside, told once."""
    target = Boxes(torch.nn.Identity(), (SIDE, SIDE), "net")
    target.names = ("red", "blue")
    corners = torch.tensor([[SIDE, 0.0, SIDE, 9.0], [-8, 8, 8, 16], [8, 8, 64.2, 16]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    found = [{"boxes": corners, "scores": scores, "labels": labels}]
    for _ in range(2):
        reading = target.settle(lambda: target.rows(found), None)
    assert reading.numbered == ("1 blue", "2 red")
    assert target.rows(found)[0, :2].tolist() == pytest.approx([0.8, 0.7])
    assert [record.getMessage() for record in caplog.records] == [
        "net returns boxes that reach beyond the image (box 1 blue: 50 % inside): they are drawn "
        "up to its edge, and IoU is that of the whole box"
    ]


@pytest.mark.parametrize("text", ["", "0", "dog@", "dog@0", "dog@x", "@1"])
def test_names_of_boxes_are_checked(text: str) -> None:
    with pytest.raises(UsageError, match=r"invalid box .* --box takes a number"):
        box_name(text, "--box")


def test_a_detector_without_box_says_what_to_do(source: str) -> None:
    with pytest.raises(UsageError, match=r"returns boxes: --box N, CLASS, CLASS@N or all"):
        occlude(made(source), picture(), spec())
    with pytest.raises(UsageError, match=r"--target names a class; net.py:make returns boxes"):
        occlude(made(source), picture(), spec("1", targets=("3",)))
    with pytest.raises(UsageError, match=r"--label names a class; here each number is a score"):
        occlude(made(source), picture(), spec("1", label="red thing"))
    with pytest.raises(UsageError, match=r"--box is for detectors; bundled returns no boxes"):
        occlude(load_model(), image_of(torch.zeros(3, 32, 32)), OcclusionSpec(boxes=("1",)))
    with pytest.raises(UsageError, match="--at and --inside are for maps of classes"):
        occlude(made(source), picture(), spec("1", at=(1.0, 1.0)))


def test_a_detector_that_selects_boxes_itself_is_noted(source: str) -> None:
    assert not any("selected" in note for note in made(source).notes)
    assert any("selected itself" in note for note in made(source, "closed").notes)


def test_a_run_is_read_back_and_drawn_for_other_boxes(source: str, tmp_path: Path) -> None:
    result = occlude(made(source), picture(), spec("1"))
    np.savez(tmp_path / "scores.npz", **to_arrays(result))
    pixels = (picture().pixels * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "input.png")
    again = look(load(tmp_path), PanelSpec(boxes=("all",)), engine="none")
    assert [panel.box for panel in again.targets] == [FIRST, SECOND]
    assert torch.equal(again.targets[0].map_HW, result.targets[0].map_HW)
    with pytest.raises(UsageError, match=r"returns boxes: --box"):
        look(load(tmp_path), PanelSpec())


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "scores": lambda a: a["box_scores"].fill(np.nan),
    "corners": lambda a: a["box_corners"].fill(np.inf),
    "fewer": lambda a: a.update(box_names=a["box_names"][:1]),
    "other": lambda a: a.update(box_names=np.array(["cat", "dog"])),
    "none": lambda a: a.update(box_names=np.repeat(a["box_names"], 99)),
    "range": lambda a: a["box_scores"].fill(1e30),
    "threshold": lambda a: a.update(threshold=np.array(np.nan)),
    "word": lambda a: a.update(word=np.array("<b>")),
}


@pytest.mark.parametrize("name", FORGED)
def test_foreign_boxes_are_checked(source: str, tmp_path: Path, name: str) -> None:
    arrays = to_arrays(occlude(made(source), picture(), spec("1")))
    arrays = {key: values.copy() for key, values in arrays.items()}
    FORGED[name](arrays)
    np.savez(tmp_path / "scores.npz", **arrays)
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "input.png")
    with pytest.raises(CnnvizError, match=r"scores.npz cannot be read: it is damaged or not"):
        load(tmp_path)


def test_the_smallest_region_keeps_the_score(source: str) -> None:
    result = occlude(made(source), picture(), spec("2", sufficient=True))
    assert result.sufficient is not None
    entry = result.sufficient[0]
    assert entry.region.probability >= 0.9 * entry.reading
    y0, x0, y1, x1 = SECOND
    assert bool(entry.pixels_of(entry.region)[y0:y1, x0:x1].any())


def test_maps_of_boxes_are_judged(source: str) -> None:
    model, asked = made(source), spec("all")
    occluder = Occluder(model, asked)
    cards = Judge(model, asked, occluder).of_occlusion(occluder.run(picture()))
    assert len(cards) == 2
    assert all(card.gain > 0.1 for card in cards)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        "fasterrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "fcos_resnet50_fpn",
        "ssdlite320_mobilenet_v3_large",
        "maskrcnn_resnet50_fpn",
        "keypointrcnn_resnet50_fpn",
    ],
)
def test_torchvisions_detectors_by_a_loop(name: str) -> None:
    """Values by the network's own thresholds set by hand, one image at a time.

    Which of nearly equal proposals are kept depends on rounding, which shows with key points.
    """
    near = 3e-3 if name.startswith("keypoint") else 1e-3
    model = load_model(name, weights="none", size=96)
    generator = torch.Generator().manual_seed(3)
    image = image_of(torch.rand(3, 96, 96, generator=generator))
    assert isinstance(model.target, Boxes)
    with torch.no_grad():
        highest = float(model.outputs(model.preprocess.normalise(image.pixels)[None]))
    model.target.threshold = 0.99 * highest  # with random weights all are low
    asked = OcclusionSpec(masks=((48, 48),), stride=48, boxes=("1",), fill="black")
    result = occlude(model, image, asked)
    reading = result.measured.reading
    assert isinstance(reading, BoxReading)
    loaded = load_model(name, weights="none", size=96, scores=False).module
    network = detection.__dict__[name](weights=None, weights_backbone=None)
    network.load_state_dict(loaded.state_dict())
    network.eval()
    heads = getattr(network, "roi_heads", network)
    heads.score_thresh, heads.nms_thresh, heads.detections_per_img = 0.0, 1.0, 10**9
    for part in ("mask_roi_pool", "keypoint_roi_pool"):
        if getattr(heads, part, None) is not None:
            setattr(heads, part, None)
    network.transform.min_size, network.transform.max_size = (96,), 96
    classes = [int(label.removeprefix("class ")) for label in reading.names[:1]]
    boxes = result.targets[0].grid.boxes_P4.tolist()
    with torch.no_grad():
        for position, (y0, x0, y1, x1) in enumerate(boxes):
            pixels = image.pixels.clone()
            pixels[:, y0:y1, x0:x1] = 0
            raw = network(pixels[None])[0]
            for index, label in enumerate(classes):
                overlap = box_iou(reading.corners_B4[index][None], raw["boxes"])[0]
                values = overlap * raw["scores"] * (raw["labels"] == label)
                got = float(result.targets[index].probabilities_P[position])
                assert got == pytest.approx(float(values.max()), rel=near, abs=1e-5)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (32, 32), (200, 3)])
def test_detectors_see_whole_images_beside_bars(source: str, size: tuple[int, int]) -> None:
    """Of the mean colour; positions in the working image lead back to the file."""
    preprocess = made(source, mean=(0.25,), std=(1,)).preprocess
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    working = prepare(image, preprocess, "x")
    share = SIDE / max(size)
    columns, rows = (max(1, int(side * share)) for side in size)
    resized = torch.from_numpy(np.array(image.resize((columns, rows), Image.Resampling.BILINEAR)))
    top, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    expected = torch.full((3, SIDE, SIDE), 0.25)
    expected[:, top : top + rows, left : left + columns] = resized.movedim(2, 0) / 255
    assert torch.allclose(working.pixels, expected)
    assert working.to_original((top, left, top + rows, left + columns)) == (0, 0, height, width)
    assert preprocess.geometry == f"fitted into {SIDE}x{SIDE}"
