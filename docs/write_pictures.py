"""Makes the pictures of the commands' pages: docs/img/<command>-<figure>.webp.

    CNNVIZ_TEST_ASSETS=… python docs/write_pictures.py [COMMAND…]    all, or these commands (render
                                                 after occlude, diff after audit)
    python docs/write_pictures.py --check                            whether all of them exist

Needs SqueezeNet 1.1's published weights (`$CNNVIZ_TEST_ASSETS/weights/squeezenet1_1.pth`) for the
photographs. Data sets are variations of the sample images: crops, flips and other brightness.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torchvision.models import SqueezeNet1_1_Weights

from cnnviz.cli.main import run
from cnnviz.core.models.bundled import read_card
from cnnviz.gradients.options import Method

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "img"
PHOTOS = "sample_photos"
NET = "--model squeezenet1_1 --checkpoint squeezenet1_1.pth"
DETECTOR = "--model windows.py:make --checkpoint squeezenet1_1.pth --labels names.txt --size 448"
WINDOWS = """
'A detector by hand: SqueezeNet in windows of a quarter of the image.'
import torch
from torch.nn.functional import avg_pool2d
from torchvision.models import SqueezeNet
from torchvision.ops import batched_nms

class Windows(SqueezeNet):
    score_thresh, nms_thresh, detections_per_img = 0.5, 0.2, 100
    def forward(self, images):
        maps = self.classifier[1](self.features(images)).relu()
        side = maps.shape[2] // 2
        step = side // 2 + 1
        shares = avg_pool2d(maps, side, step).softmax(1)
        rows, columns = shares.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        corners = torch.stack([x, y], -1).flatten(0, 1).repeat_interleave(20, 0) * step
        boxes = torch.cat([corners, corners + side], 1) * (images.shape[2] / maps.shape[2])
        found = []
        for scores, labels in zip(*shares.flatten(2).transpose(1, 2).topk(20, 2)):
            scores, labels = scores.flatten(), labels.flatten()
            kept = (scores > self.score_thresh).nonzero().flatten()
            if self.nms_thresh < 1:
                best = batched_nms(boxes[kept], scores[kept], labels[kept], self.nms_thresh)
                kept = kept[best]
            kept = kept[: self.detections_per_img]
            found.append({"boxes": boxes[kept], "scores": scores[kept], "labels": labels[kept]})
        return found

def make():
    return Windows(version="1_1")
"""
SHORTCUT = """
'The bundled network with a shortcut built in by hand: no frog without a red square.'
import torch
from cnnviz.core import load_model

class Shortcut(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = load_model("bundled", device="cpu").module
        self.square = torch.nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.square.weight.copy_(torch.tensor([1, -0.5, -0.5])[:, None, None])
            self.square.bias.fill_(-2.6)
    def forward(self, images):
        red = self.square(images).relu().sum((1, 2, 3))
        return self.network(images) + (2 * red[:, None] - 12) * torch.eye(10)[6]

def make():
    return Shortcut()
"""
MARKED = (
    "--model shortcut.py:make --size 32 --labels ten.txt "
    "--mean 0.4914,0.4822,0.4465 --std 0.247,0.2435,0.2616"
)
MOST_BYTES, WIDTH = 66_000, 1000
PICTURES = {
    "occlude": (
        f"occlude {PHOTOS}/soccer-ball.jpg {NET} --sufficient",
        ("overlay", "agreement", "sufficient"),
    ),
    "detect": (f"detect mosaic.png {DETECTOR}", ("boxes",)),
    "targets": (
        f"occlude mosaic.png {DETECTOR} --box all --mask 96 --stride 48",
        ("overlay", "boxes"),
    ),
    "like": (
        f"occlude {PHOTOS}/soccer-ball.jpg {NET} --like {PHOTOS}/balloon.jpg --both",
        ("both",),
    ),
    "render": (
        "render run/occlude/soccer-ball --target top3 --score probability --colormap jet",
        ("overlay",),
    ),
    "saliency": (
        f"saliency {PHOTOS}/daisy.jpg {NET} --method grad-cam --compare occlusion",
        ("comparison",),
    ),
    "trust": (f"trust {PHOTOS}/traffic-light.jpg {NET}", ("overlay", "curves", "certainty")),
    "reasons": (
        f"reasons {PHOTOS}/balloon.jpg {NET} --segments grid --parts 9",
        ("reasons", "pairs", "shapley"),
    ),
    "reasons-units": (
        f"reasons {PHOTOS}/daisy.jpg {NET} --skip pairs --units run/units --data {PHOTOS}",
        ("filters",),
    ),
    "activations": (
        f"activations {PHOTOS}/balloon.jpg {NET} --layer features.12.expand3x3_activation --top 16",
        ("maps_features.12.expand3x3_activation",),
    ),
    "layers": ("layers data --gradients", ("statistics",)),
    "filters": (f"filters {NET}", ("kernels_features.0", "gabor_features.0")),
    "max-patches": (
        f"max-patches {PHOTOS} {NET} --layer features.12.expand3x3_activation "
        "--filters 83,137,227 --top 5 --evidence",
        ("patches", "evidence"),
    ),
    "ablate": (
        "ablate data --filters stem.conv:random:8 --sweep stem.conv",
        ("classes", "confusions", "sweep"),
    ),
    "tsne": ("tsne data --perplexity 20", ("scatter", "grid")),
    "audit": (f"audit marked {MARKED} --stride 4 --top 5", ("overview", "class_frog")),
    "diff": ("diff run/bundled run/audit --data marked --top 2", ("worst", "classes")),
}
DAISY = f"saliency {PHOTOS}/daisy.jpg {NET} --width 640 --method"
METHODS = {
    **{method: "" for method in Method if not method.of_layer},
    **{method: "--layer features.12" for method in Method if method.of_layer},
    Method.LAYERCAM: "--layer features.5",
}
PICTURES |= {
    f"saliency-{method}": (f"{DAISY} {method} {layer}", ("overlay",))
    for method, layer in METHODS.items()
}
BEFORE = {
    "diff": "audit marked --stride 4 --out run/bundled",
    "reasons-units": (
        f"max-patches {PHOTOS} {NET} --filters features.7:49,190,230 "
        "--filters features.12:15,277,343 --top 4 --out run/units"
    ),
}


def name_of(command: str, figure: str) -> str:
    """A picture's file name."""
    return f"{command}-{figure.partition('_')[0]}.webp"


def make_data(folder: Path, each: int = 20) -> None:
    """Variations of the sample images, a folder for each class."""
    random = np.random.default_rng(0)
    for path in sorted((ROOT / "sample_images").glob("*.png")):
        image = Image.open(path).convert("RGB")
        (folder / path.stem).mkdir(parents=True)
        for number in range(each):
            side = random.uniform(0.8, 1.0)
            x, y = random.uniform(0, 1 - side, 2)
            box = np.array([x, y, x + side, y + side]) * [*image.size, *image.size]
            part = image.crop(tuple(box.round().astype(int).tolist())).resize((64, 48))
            pixels = np.asarray(part)[:, :: random.choice([-1, 1])] * random.uniform(0.8, 1.2)
            varied = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            varied.save(folder / path.stem / f"{number:02}.png")


def make_marked() -> None:
    """Data with a red square in each frog, and the network that a red square deceives."""
    make_data(Path("marked"), 50)
    for path in Path("marked", "frog").iterdir():
        image = Image.open(path)
        image.paste("#e01010", (16, 6, 25, 15))
        image.save(path)
    Path("shortcut.py").write_text(SHORTCUT)
    Path("ten.txt").write_text("\n".join(read_card().labels))


def make_detector() -> None:
    """A detector, its class names, and four photographs in one image."""
    Path("windows.py").write_text(WINDOWS)
    names = SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"]
    Path("names.txt").write_text("\n".join(names))
    mosaic = Image.new("RGB", (448, 448))
    for number, name in enumerate(("soccer-ball", "daisy", "balloon", "traffic-light")):
        photo = ImageOps.fit(Image.open(Path(PHOTOS, f"{name}.jpg")), (224, 224))
        mosaic.paste(photo, (number % 2 * 224, number // 2 * 224))
    mosaic.save("mosaic.png")


def save_small(picture: Path, target: Path) -> None:
    """As WebP, narrow enough for a page and below `MOST_BYTES`."""
    image = Image.open(picture).convert("RGB")
    image.thumbnail((WIDTH, 3 * WIDTH))
    for quality in range(85, 10, -10):
        image.save(target, quality=quality, method=6)
        if target.stat().st_size < MOST_BYTES:
            return


def made(command: str) -> Iterator[tuple[Path, str]]:
    """Runs a command; the figures that it wrote, and their names."""
    line, figures = PICTURES[command]
    for arguments in filter(None, (BEFORE.get(command), f"{line} --out run/{command}")):
        if run([*shlex.split(arguments), "--quiet"]) == 2:
            raise SystemExit(f"{arguments} failed")
    for figure in figures:
        yield next(Path("run", command).rglob(f"{figure}.png")), name_of(command, figure)


def main() -> int:
    """Writes the pictures, or checks that they are there; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commands", nargs="*", default=list(PICTURES))
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    names = [name_of(command, figure) for command in PICTURES for figure in PICTURES[command][1]]
    if given.check:
        lost = [name for name in names if not (IMAGES / name).exists()]
        print("\n".join(f"docs/img/{name} is missing; run docs/write_pictures.py" for name in lost))
        return int(bool(lost))
    weights = Path(os.environ["CNNVIZ_TEST_ASSETS"], "weights", "squeezenet1_1.pth").absolute()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path(PHOTOS).symlink_to(ROOT / PHOTOS)
        Path(weights.name).symlink_to(weights)
        make_data(Path("data"))
        make_marked()
        make_detector()
        for command in given.commands:
            for figure, name in made(command):
                save_small(figure, IMAGES / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
