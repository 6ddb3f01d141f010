"""Detectors in the incremental engine: numbers are those of the network, one image at a time."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import FrozenBatchNorm2d

from cnnviz.core.models.boxes import Boxes, taken_over
from cnnviz.core.models.targets import with_reader
from cnnviz.occlusion.engines.choose import choose
from cnnviz.occlusion.engines.full import cover
from cnnviz.occlusion.engines.network import prepare
from cnnviz.occlusion.options import EngineChoice

SIZE = (60, 76)  # not of the 32 that torchvision's detectors pad to
BOXES = torch.tensor([[y, x, y + 12, x + 12] for y in range(0, 48, 24) for x in range(0, 64, 16)])


class Backbone(nn.Module):
    """Two levels of maps, the finer one with what the coarser one knows."""

    out_channels = 32

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
        self.first, self.second = nn.Conv2d(3, 32, 3, 4, 1), nn.Conv2d(32, 32, 3, 2, 1)
        self.norm = norm(32)
        nn.init.uniform_(self.norm.running_mean, -0.3, 0.3)
        nn.init.uniform_(self.norm.running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.norm(self.first(x)).relu()
        coarse = self.second(fine)
        above = nn.functional.interpolate(coarse, size=fine.shape[-2:])
        return OrderedDict([("0", fine + above), ("1", coarse)])


def anchors() -> AnchorGenerator:
    return AnchorGenerator(((8,), (16,)), ((0.5, 1.0),) * 2)


def detector(kind: str, *, frozen: bool) -> nn.Module:
    torch.manual_seed(0)
    backbone = Backbone(frozen=frozen)
    side: dict[str, Any] = {"min_size": SIZE[0], "max_size": SIZE[1]}
    if kind == "SSD":
        boxes = DefaultBoxGenerator([[2]] * 2)
        head = detection.ssd.SSDHead([32, 32], boxes.num_anchors_per_location(), 3)
        network: Any = detection.ssd.SSD(backbone, boxes, (SIZE[1], SIZE[0]), 3, head=head)
    elif kind == "FasterRCNN":
        network = detection.FasterRCNN(backbone, 3, rpn_anchor_generator=anchors(), **side)
    elif kind == "FCOS":
        points = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
        network = detection.FCOS(backbone, 3, anchor_generator=points, **side)
    else:
        network = detection.RetinaNet(backbone, 3, anchor_generator=anchors(), **side)
    for name, part in network.named_modules():  # scores that depend on the image
        if isinstance(part, nn.Conv2d | nn.Linear) and ("classif" in name or "cls_" in name):
            nn.init.kaiming_normal_(part.weight, nonlinearity="linear")
            nn.init.zeros_(part.bias)
    getattr(network, "roi_heads", network).detections_per_img = 4
    network.topk_candidates = 60
    return network.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "frozen"),
    [
        ("RetinaNet", True),
        ("SSD", False),
        pytest.param("FCOS", False, marks=pytest.mark.slow),
        pytest.param("FasterRCNN", False, marks=pytest.mark.slow),
    ],
)
def test_the_boxes_numbers_are_those_of_single_images(kind: str, frozen: bool) -> None:
    network = detector(kind, frozen=frozen)
    taken_over(network, SIZE, None, None)
    before = {name: (type(p), p.training) for name, p in network.named_modules() if name}
    target = Boxes(network, SIZE, kind)
    module = with_reader(network, target.read)
    image = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(1))
    fill = torch.zeros(3, *SIZE)
    with torch.no_grad():
        target.threshold = 0.9 * float(module(image[None]))
        target.settle(lambda: module(image[None]), None)
        expected = torch.cat([module(cover(image, fill, box[None])) for box in BOXES])
    prepared = prepare(module, SIZE, device=torch.device("cpu"))
    engine = choose(prepared, EngineChoice.INCREMENTAL, BOXES, name=kind)
    got = engine.run(image, fill, BOXES).logits_PK
    assert (engine.name, engine.note) == ("incremental", None)
    assert float((expected[:, 0] - expected[0, 0]).abs().max()) > 1e-3
    assert torch.allclose(got, expected, atol=1e-4)
    assert before == {name: (type(p), p.training) for name, p in network.named_modules() if name}
