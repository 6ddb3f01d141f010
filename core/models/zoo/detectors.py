"""Detectors by name: DETR and its like (transformers), YOLO (ultralytics).

Both return all their candidates, before any selection: boxes (n, 4) and scores (n, K) of all
classes (`boxes.py`).

Files of ultralytics (.pt) are pickles of whole networks. They go through torch's restricted
unpickler, which keeps tensors and plain values alone; the network is built from ultralytics' own
list by the name that the file gives. Nothing of a file is run, and nothing is downloaded, installed
or sent.

Shapes: N images, n candidates, K classes, H W rows and columns of the image.
"""

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError, UsageError, nearest
from cnnviz.core.extras import required
from cnnviz.core.models.files.checkpoints import read_network
from cnnviz.core.models.fitting import fit
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.zoo.published import Architecture, Published

YOLO = "yolo:"
MOST_CLASSES = 10_000
_SIDE, _GREY, _OVERLAP, _MOST_BOXES = 640, 114 / 255, 0.7, 300
"""ultralytics' defaults: input, colour of bars, non-maximum suppression, boxes per image."""
_HEADS = ("Detect", "v10Detect")
_NAME = re.compile(r"(yolov?\d+)([a-z]?)(.*)")
_QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}


def with_query_boxes(module: nn.Module) -> nn.Module:
    """Let a network of transformers that finds objects return the boxes of all its queries.

    The scores are a softmax if there is an output more than classes (no object), or else sigmoids.
    """
    config: Any = module.config

    def forward(run: Callable[..., Any], x: Tensor) -> list[dict[str, Tensor]]:
        output = run(pixel_values=x)
        logits = output.logits.float()
        classes: int = config.num_labels
        scores = logits.sigmoid()
        if logits.shape[-1] == classes + 1:
            scores = logits.softmax(-1)[..., :classes]
        centres, sides = output.pred_boxes.float().split(2, dim=-1)
        corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=-1)
        corners = corners * corners.new_tensor([x.shape[3], x.shape[2]] * 2)
        return [{"boxes": b, "scores": s} for b, s in zip(corners, scores, strict=True)]

    return _returning(module, forward, suppression=1.0)


def _returning(module: nn.Module, forward: Callable[..., Any], suppression: float) -> nn.Module:
    """Replace a network's forward by one that calls it; layers keep their names.

    Candidates that overlap more than `suppression` are the same box; of 1, none are.
    """
    kind: Any = type(module)

    def call(self: Any, x: Tensor) -> Any:
        return forward(lambda *given, **named: kind.forward(self, *given, **named), x)

    limits = {"score_thresh": 0.0, "nms_thresh": suppression, "detections_per_img": _MOST_BOXES}
    module.__class__ = type(kind.__name__, (kind,), {"forward": call, **limits})
    return module


def yolo_architecture(name: str) -> Architecture:
    """The architecture `yolo:FILE.pt`, with its weights, or `yolo:yolo11n`, without."""
    tasks = _ultralytics(name)
    source = name.removeprefix(YOLO)
    preprocess = Preprocess(_SIDE, (_SIDE, _SIDE), (0.0,) * 3, (1.0,) * 3, bars=(_GREY,) * 3)
    stem, labels, file = source.removesuffix(".yaml"), tuple[str, ...](), None
    tensors: Mapping[str, Tensor] = {}
    if source.endswith(".pt"):
        file = Path(source).expanduser()
        if not file.is_file():
            raise UsageError(
                f"no file '{source}' (--model {name}); cnnviz downloads no weights of ultralytics"
            )
        tensors, held = read_network(file)
        stem, labels = _described(held, file)
    known = _networks(tasks)
    if stem not in known:
        near = ", ".join(nearest(stem, list(known)))
        raise UsageError(f"no detector '{stem}' in ultralytics ({name}); the nearest are {near}")

    def make(classes: int | None, _size: tuple[int, int]) -> nn.Module:
        return _with_anchor_boxes(
            tasks.DetectionModel(copy.deepcopy(known[stem]), ch=3, nc=classes, verbose=False)
        )

    def network(size: tuple[int, int]) -> tuple[nn.Module, str]:
        if file is None:
            raise UsageError(
                f"{name} names no weights: --model {YOLO}FILE.pt, --checkpoint FILE or "
                "--weights none"
            )
        module = make(len(labels), size)
        return module, fit(module, dict(tensors), file, f"{YOLO}{stem}", False)

    entry = Published("file", preprocess, labels, network=network)
    return Architecture(name, make, True, {"file": entry}, "file", names_weights=True)


def _described(held: Mapping[str, Any], file: Path) -> tuple[str, tuple[str, ...]]:
    """The name of a file's architecture, and its class names."""
    content, names = held.get("yaml"), held.get("names")
    stem = Path(str(content.get("yaml_file", ""))).stem if isinstance(content, dict) else ""
    if isinstance(names, dict) and list(names) == list(range(len(names))):
        names = list(names.values())
    if not stem or not isinstance(names, list) or not 0 < len(names) <= MOST_CLASSES:
        raise CnnvizError(
            f"'{file}' does not say which architecture of ultralytics it is and what its classes "
            "are; save the state_dict() alone: --model yolo:NAME --checkpoint FILE"
        )
    return stem, tuple(map(str, names))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@cache
def _ultralytics(name: str) -> Any:
    """Import ultralytics' networks; it stays offline and does not touch the user's settings.

    It replaces Pillow's and torch's functions for files, which are put back.
    """
    kept = Image.open, torch.load, torch.save
    try:
        with TemporaryDirectory() as folder, _environment({**_QUIET, "YOLO_CONFIG_DIR": folder}):
            tasks = required("ultralytics.nn.tasks", f"--model {name}", "yolo")
            settings = required("ultralytics.utils", f"--model {name}", "yolo").SETTINGS
            dict.__setitem__(settings, "sync", False)
    finally:
        Image.open, torch.load, torch.save = kept
    return tasks


@cache
def _networks(tasks: Any) -> dict[str, dict[str, Any]]:
    """The detectors of ultralytics by name, as its configurations with a scale: `yolo11n`."""
    root = Path(tasks.__file__).parents[1] / "cfg" / "models"
    known: dict[str, dict[str, Any]] = {}
    for file in sorted(root.rglob("yolo*.yaml")):
        content, parts = tasks.YAML.load(file), _NAME.fullmatch(file.stem)
        if parts is None or content["head"][-1][2] not in _HEADS:
            continue
        for scale in [parts[2]] if parts[2] else content.get("scales") or [""]:
            known[f"{parts[1]}{scale}{parts[3]}"] = {**content, "scale": scale}
    return known


def _with_anchor_boxes(module: Any) -> nn.Module:
    """Let a YOLO return the boxes of all its places."""
    head = module.model[-1]
    alone, head.xyxy, head.dynamic = bool(head.end2end), True, True  # a new grid for each pass
    heads = type(head)

    def forward(self: Any, maps: list[Tensor]) -> list[dict[str, Tensor]]:
        rows, raw = heads.forward(self, maps)
        if alone:  # it has selected the best ones
            rows = self._inference(raw["one2one"])
        return [{"boxes": one[:4].T, "scores": one[4:].T} for one in rows]

    head.__class__ = type(heads.__name__, (heads,), {"forward": forward, "one_step": True})
    return _returning(module, lambda run, x: run(x), suppression=1.0 if alone else _OVERLAP)
