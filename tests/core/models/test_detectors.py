"""Detectors by name: DETR and its like, YOLO. Numbers by loops; files of strangers run nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import image_of
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from cnnviz.core import load_model
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.boxes import Boxes, BoxReading
from cnnviz.core.models.load import Model
from cnnviz.core.models.zoo.detectors import _networks, _ultralytics
from cnnviz.occlusion import OcclusionResult, OcclusionSpec, occlude
from cnnviz.occlusion.options import EngineChoice

SIDE, CLASSES = 64, ("cat", "dog", "cow")
Raw = Callable[[Tensor], tuple[Tensor, Tensor]]
"""One image (1, 3, H, W) to boxes (n, 4) and scores (n, K), by hand."""


def explained(model: Model, image: Any, share: float) -> OcclusionResult:
    """A map of the first box above a share of the highest score."""
    assert isinstance(model.target, Boxes)
    with torch.no_grad():
        highest = float(model.outputs(model.preprocess.normalise(image.pixels)[None]))
    model.target.threshold = share * highest  # with random weights all are low
    asked = OcclusionSpec(
        masks=((32, 32),), stride=32, boxes=("1",), fill="black", engine=EngineChoice.INCREMENTAL
    )
    return occlude(model, image, asked)


def check_by_loop(model: Model, raw: Raw, share: float = 0.99, engine: str = "") -> BoxReading:
    """The numbers of a box are those of a loop over single occluded images."""
    generator = torch.Generator().manual_seed(3)
    image = image_of(torch.rand(3, SIDE, SIDE, generator=generator))
    result = explained(model, image, share)
    assert engine in ("", result.engine)
    reading = result.measured.reading
    assert isinstance(reading, BoxReading)
    label = model.labels.index(reading.names[0])
    values = []
    for y0, x0, y1, x1 in result.targets[0].grid.boxes_P4.tolist():
        pixels = image.pixels.clone()
        pixels[:, y0:y1, x0:x1] = 0
        with torch.no_grad():
            boxes, scores = raw(model.preprocess.normalise(pixels)[None])
        overlap = box_iou(reading.corners_B4[:1], boxes)[0]
        values.append(float((overlap * scores[:, label]).max()))
    assert result.targets[0].probabilities_P.tolist() == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert max(values) - min(values) > 1e-5
    return reading


def _tiny(transformers: Any, name: str) -> Any:
    """A configuration of a few thousand parameters."""
    stages = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
    stages |= {"layer_type": "basic"}
    names: dict[str, Any] = {"id2label": dict(enumerate(CLASSES)), "num_queries": 6}
    if name == "Yolos":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 16, "num_detection_tokens": 6}
        return transformers.YolosConfig(image_size=[SIDE, SIDE], **sizes, **names)
    names |= {"d_model": 16, "decoder_layers": 1, "encoder_layers": 1}
    names |= {"decoder_attention_heads": 2, "encoder_attention_heads": 2}
    names |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    if name == "RTDetr":
        out = ["stage2", "stage3", "stage4"]
        backbone = transformers.RTDetrResNetConfig(out_features=out, **stages)
        sides = {"encoder_hidden_dim": 16, "encoder_in_channels": [8, 8, 16]}
        sides |= {"decoder_in_channels": [16] * 3}
        return transformers.RTDetrConfig(
            backbone_config=backbone, num_denoising=0, **sides, **names
        )
    backbone = transformers.ResNetConfig(out_features=["stage4"], **stages)
    kind = getattr(transformers, f"{name}Config")
    return kind(backbone_config=backbone, use_timm_backbone=False, **names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Detr", "ConditionalDetr", "RTDetr", "Yolos"])
def test_detectors_of_transformers_by_a_loop(tmp_path: Path, name: str) -> None:
    """Those with an output for no object by a softmax, the others by sigmoids."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = getattr(transformers, f"{name}ForObjectDetection")(_tiny(transformers, name)).eval()
    network.save_pretrained(tmp_path)
    whole = name == "RTDetr"
    if whole:
        transformers.RTDetrImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(
            tmp_path
        )
    else:
        size = {"shortest_edge": SIDE, "longest_edge": 2 * SIDE}
        transformers.DetrImageProcessor(size=size).save_pretrained(tmp_path)

    def raw(image: Tensor) -> tuple[Tensor, Tensor]:
        output = network(pixel_values=image)
        x, y, width, height = (SIDE * output.pred_boxes[0]).unbind(1)
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        last = name in ("Detr", "Yolos")
        logits = output.logits[0]
        return torch.stack(corners, 1), logits.softmax(1)[:, :-1] if last else logits.sigmoid()

    model = load_model(f"hf:{tmp_path}")
    assert model.labels == CLASSES
    assert (model.preprocess.squash, model.preprocess.bars is not None) == (whole, not whole)
    check_by_loop(model, raw)


if find_spec("ultralytics") is None:
    pytest.skip("ultralytics is not installed", allow_module_level=True)


def yolo(name: str = "yolo11n") -> Any:
    """A network of ultralytics at random weights, whose scores vary."""
    tasks = _ultralytics("yolo:")
    torch.manual_seed(0)
    network = tasks.DetectionModel(
        {**_networks(tasks)[name], "yaml_file": f"{name}.yaml"}, ch=3, nc=3, verbose=False
    )
    head = network.model[-1]
    for parts in filter(None, [head.cv3, getattr(head, "one2one_cv3", None)]):
        for part in parts:  # made so that all scores are almost the same
            part[-1].weight.data.mul_(5)
            part[-1].bias.data.zero_()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    network.train()(torch.rand(4, 3, SIDE, SIDE))
    network.names = dict(enumerate(CLASSES))
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolo11n", "yolov10n"])
def test_yolo_from_its_file_by_a_loop(tmp_path: Path, name: str) -> None:
    """All candidates count; boxes are found after suppression, if the network needs it."""
    network = yolo(name)
    content = {"model": network.half(), "ema": None, "train_args": {"data": Path("x")}}
    torch.save(content, tmp_path / "best.pt")
    network.float().model[-1].xyxy = True
    head = network.model[-1]
    branch = "one2one" if head.end2end else "one2many"  # older releases: of yolov10n, one2one

    def raw(image: Tensor) -> tuple[Tensor, Tensor]:
        _, heads = network(image)
        rows = head._inference(heads.get(branch, heads))[0]
        return rows[:4].T, rows[4:].T

    model = load_model(f"yolo:{tmp_path / 'best.pt'}", size=SIDE)
    assert model.labels == CLASSES
    reading = check_by_loop(model, raw, share=0.9, engine="incremental")
    assert isinstance(model.target, Boxes)
    generator = torch.Generator().manual_seed(3)
    boxes, scores = raw(torch.rand(1, 3, SIDE, SIDE, generator=generator))
    best, classes = scores.max(1)
    above = best >= model.target.threshold
    boxes, best, classes = boxes[above], best[above], classes[above]
    kept = []
    for label in range(len(CLASSES)):
        of_class = (classes == label).nonzero()[:, 0]
        kept.append(of_class[nms(boxes[of_class], best[of_class], 1.0 if head.end2end else 0.7)])
    best = best[torch.cat(kept)]
    assert reading.scores_B.tolist() == pytest.approx(sorted(best.tolist(), reverse=True))
    assert not [key for key in os.environ if key.startswith("YOLO_")]


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


class Deep(nn.Module):
    """A network that holds itself."""

    def __init__(self) -> None:
        super().__init__()
        self._modules["a"] = self
        self._modules["b"] = self


def _forged(**changes: Any) -> Any:
    network = nn.Sequential(nn.Linear(1, 1))
    described = {"yaml": {"yaml_file": "yolo11n.yaml"}, "names": {0: "a"}}
    for key, value in {**described, **changes}.items():
        setattr(network, key, value)
    return network


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda mark: {"model": Evil(mark)}, "refused to read"),
        (lambda mark: {"model": _forged(evil=Evil(mark))}, "refused to read"),
        (lambda _: {"model": {"weight": torch.ones(1)}}, "holds no network of ultralytics under"),
        (lambda _: torch.ones(1), "holds no network of ultralytics under"),
        (lambda _: {"model": Deep()}, "holds a network of too many parts"),
        (lambda _: {"model": _forged(yaml={})}, "does not say which architecture"),
        (lambda _: {"model": _forged(names=None)}, "does not say which architecture"),
        (lambda _: {"model": _forged(names={0: "a", 7: "b"})}, "does not say which architecture"),
        (
            lambda _: {"model": _forged(yaml={"yaml_file": "/etc/x.yaml"})},
            "no detector 'x' in ultr",
        ),
        (lambda _: {"model": _forged()}, "yolo:yolo11n"),
    ],
)
def test_files_of_strangers_run_nothing(
    tmp_path: Path, content: Callable[[Path], Any], message: str
) -> None:
    mark = tmp_path / "mark"
    torch.save(content(mark), tmp_path / "x.pt")
    with pytest.raises(CnnvizError, match=message):
        load_model(f"yolo:{tmp_path / 'x.pt'}", size=SIDE)
    assert not mark.exists()


def test_yolo_without_weights_or_file_says_what_to_give() -> None:
    with pytest.raises(UsageError, match=r"no detector 'yolo11' in .* the nearest are yolo11"):
        load_model("yolo:yolo11")
    with pytest.raises(UsageError, match=r"no file 'yolo11n\.pt' .* cnnviz downloads no weights"):
        load_model("yolo:yolo11n.pt")
    with pytest.raises(UsageError, match=r"yolo:yolo11n names no weights: --model yolo:FILE\.pt"):
        load_model("yolo:yolo11n")


@pytest.mark.slow
@pytest.mark.needs("ultralytics")
def test_ultralytics_leaves_other_packages_functions_as_they_were() -> None:
    code = (
        "import torch\nfrom PIL import Image\n"
        "from cnnviz.core.models.zoo.detectors import _ultralytics\n"
        "kept = Image.open, torch.load, torch.save\n"
        "_ultralytics('yolo:yolo11n')\n"
        "assert (Image.open, torch.load, torch.save) == kept\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
