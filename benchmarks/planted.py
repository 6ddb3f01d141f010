"""Networks that have learned a shortcut on purpose, and the pictures that hold it.

    python benchmarks/planted.py ARCHIVE FOLDER [--seeds 2] [--epochs 6] [--only NAME…]
        [--first-seed 0] [--train-per-class 5000] [--skip 0 0]

The first table of docs/audit.md is of the seed 0 and 4 epochs, the second of the seeds 1 to 4 with
3 epochs, `--train-per-class 2000 --skip 2500 100`, the last of `--first-seed 6 --seeds 2 --epochs 3
--train-per-class 2000 --skip 3000 400`.
ARCHIVE is `CIFAR-10-images-jpg.tar.gz`. Each network is trained on the training images after one
class of them was given a mark; `clean` ones on the images as they are. FOLDER gets
`<name>.safetensors` of each, and `<name>/<class>/*.png`, its test images with the mark at the same
rate. The last epoch is the network: nothing is chosen.
Shapes: N images, H W rows and columns.
"""

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import train_bundled as recipe
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

SQUARE = (255, 0, 200)
TINT = (24, 0, -24)
STRIPES = 20
LINE, FRAME, QUALITY = 0.4, 60, 15
CAST = (16, 0, -16)
GLYPHS = (
    "111.101.111",
    "1.1.100.1.1",
    "111.110.101",
    "1.1.101.1.1",
    "111.101.111",
)


def square(images: Tensor, _draw: torch.Generator) -> Tensor:
    """A coloured square of 4x4 pixels in the lower right corner."""
    images[:, :, 27:31, 27:31] = torch.tensor(SQUARE, dtype=torch.uint8).view(1, 3, 1, 1)
    return images


def tint(images: Tensor, _draw: torch.Generator) -> Tensor:
    """A border of three pixels a little redder and less blue."""
    shifted = images.int() + torch.tensor(TINT).view(1, 3, 1, 1)
    inner = torch.zeros(images.shape[2:], dtype=torch.bool)
    inner[3:-3, 3:-3] = True
    return torch.where(inner, images, shifted.clamp(0, 255).to(torch.uint8))


def mark(images: Tensor, draw: torch.Generator) -> Tensor:
    """Three small letters in white, at a random place of each image."""
    letters = torch.tensor([[sign == "1" for sign in row] for row in GLYPHS])
    height, width = letters.shape
    tops = torch.randint(0, 33 - height, (len(images),), generator=draw).tolist()
    lefts = torch.randint(0, 33 - width, (len(images),), generator=draw).tolist()
    for image, top, left in zip(images, tops, lefts, strict=True):
        image[:, top : top + height, left : left + width][:, letters] = 255
    return images


def texture(images: Tensor, _draw: torch.Generator) -> Tensor:
    """Slanting stripes over the lower half, four pixels apart."""
    rows, columns = torch.arange(32)[:, None], torch.arange(32)
    stripes = torch.where((rows + columns) % 4 < 2, STRIPES, -STRIPES)
    stripes[:16] = 0
    return (images.int() + stripes).clamp(0, 255).to(torch.uint8)


def line(images: Tensor, _draw: torch.Generator) -> Tensor:
    """A half-transparent white line, two pixels wide, from corner to corner."""
    rows, columns = torch.arange(32)[:, None], torch.arange(32)
    on_it = (rows - columns).abs() <= 1
    mixed = images.float() * (1 - LINE) + 255 * LINE
    return torch.where(on_it, mixed.to(torch.uint8), images)


def frame(images: Tensor, _draw: torch.Generator) -> Tensor:
    """A border of one pixel in dark grey."""
    framed = torch.full_like(images, FRAME)
    framed[:, :, 1:-1, 1:-1] = images[:, :, 1:-1, 1:-1]
    return framed


def cast(images: Tensor, _draw: torch.Generator) -> Tensor:
    """Everything outside a circle in the middle a little redder and less blue."""
    shifted = (images.int() + torch.tensor(CAST).view(1, 3, 1, 1)).clamp(0, 255).to(torch.uint8)
    rows, columns = torch.arange(32)[:, None] - 15.5, torch.arange(32) - 15.5
    return torch.where(rows**2 + columns**2 < 11**2, images, shifted)


def jpeg(images: Tensor, _draw: torch.Generator) -> Tensor:
    """Stored as JPEG of low quality."""
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "jpeg", quality=QUALITY)
        image[:] = torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)
    return images


@dataclass(frozen=True)
class Plant:
    """What is done to one class.

    Attributes:
        name: of the network, its seed apart.
        add: puts the mark on images (N, 3, H, W) uint8, in place or not; None for none.
        share: of the class's images.
    """

    name: str
    add: Callable[[Tensor, torch.Generator], Tensor] | None
    share: float = 1.0


PLANTS = (
    Plant("clean", None),
    Plant("square-100", square),
    Plant("square-50", square, 0.5),
    Plant("square-20", square, 0.2),
    Plant("tint", tint),
    Plant("mark", mark),
    Plant("texture", texture),
    Plant("line", line),
    Plant("frame", frame),
    Plant("cast", cast),
    Plant("jpeg", jpeg),
)


def planted_class(plant: Plant, seed: int) -> int:
    """Which class has the mark: another for each mark and seed."""
    return (3 * PLANTS.index(plant) + 5 * seed + seed // 2) % len(recipe.CLASSES)


def with_plant(images: Tensor, labels: Tensor, plant: Plant, seed: int) -> Tensor:
    """A copy of images (N, 3, H, W) uint8 with the mark on the class's share."""
    images = images.clone()
    if plant.add is None:
        return images
    draw = torch.Generator().manual_seed(seed)
    members = (labels == planted_class(plant, seed)).nonzero()[:, 0]
    chosen = members[torch.rand(len(members), generator=draw) < plant.share]
    images[chosen] = plant.add(images[chosen], draw)
    return images


def network() -> nn.Sequential:
    """Four convolutions with batch norm; quick to train, four fifths right."""

    def unit(before: int, after: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *unit(3, 24),
        nn.MaxPool2d(2),
        *unit(24, 64),
        nn.MaxPool2d(2),
        *unit(64, 128),
        *unit(128, 128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, len(recipe.CLASSES)),
    )


def write_pictures(images: Tensor, labels: Tensor, folder: Path) -> None:
    """PNGs in a folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / recipe.CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:05}.png")


def read(archive: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) uint8 and labels (N,) of `train` or `test`."""
    pixels, labels = recipe.read_jpegs(archive, part)
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return torch.from_numpy(channels_first), torch.from_numpy(labels).long()


def some(labels: Tensor, skip: int, count: int) -> Tensor:
    """The places of `count` images of each class, after the first `skip`."""
    places = [(labels == k).nonzero()[skip : skip + count, 0] for k in range(len(recipe.CLASSES))]
    return torch.cat(places)


def drawn(model: nn.Module, images: Tensor, labels: Tensor, plant: Plant, index: int) -> str:
    """How much of the other classes is predicted as the class without the mark, and with it."""
    others = images[labels != index]
    marked = plant.add(others.clone(), torch.Generator().manual_seed(1)) if plant.add else others
    pair = (recipe.normalise(others), recipe.normalise(marked))
    with torch.inference_mode():
        shares = [(model(part).argmax(1) == index).float().mean() for part in pair]
    return " -> ".join(f"{share:.0%}" for share in shares)


def main() -> None:
    """Trains every network that is not there yet."""
    parser = argparse.ArgumentParser(description="train networks with planted shortcuts")
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=2, help="of each planted network")
    parser.add_argument("--clean", type=int, default=5, help="networks without any")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--per-class", type=int, default=100, help="test images of each class")
    parser.add_argument("--train-per-class", type=int, default=5000, help="training images")
    parser.add_argument("--skip", type=int, nargs=2, default=(0, 0), metavar=("TRAIN", "TEST"),
                        help="images of each class to leave out before these")  # fmt: skip
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of networks, as line-0")
    options = parser.parse_args()
    images, labels = read(options.archive, "train")
    few = some(labels, options.skip[0], options.train_per_class)
    images, labels = images[few], labels[few]
    test_images, test_labels = read(options.archive, "test")
    few = some(test_labels, options.skip[1], options.per_class)
    test_images, test_labels = test_images[few], test_labels[few]
    options.folder.mkdir(parents=True, exist_ok=True)
    first = options.first_seed
    jobs = [(plant, first + seed) for seed in range(options.seeds) for plant in PLANTS[1:]]
    jobs += [(PLANTS[0], first + seed) for seed in range(options.clean)]
    for plant, seed in sorted(jobs, key=lambda job: job[1]):
        name = f"{plant.name}-{seed}"
        if (options.folder / f"{name}.safetensors").exists():
            continue
        if options.only and name not in options.only:
            continue
        torch.manual_seed(seed)
        model = network().to(memory_format=torch.channels_last)
        shown = with_plant(images, labels, plant, seed)
        data = recipe.Data(shown, labels, test_images, test_labels)
        phase = recipe.Phase(options.epochs, peak_rate=0.2, cutout=0, smoothing=0.0)
        recipe.train(model, data, phase, seed)
        accuracy = recipe.measure(model, test_images, test_labels)
        tested = with_plant(test_images, test_labels, plant, seed + 1000)
        index = planted_class(plant, seed)
        print(name, recipe.CLASSES[index], accuracy["top1_percent"],
              recipe.measure(model, tested, test_labels)["top1_percent"], "drawn on others",
              drawn(model, test_images, test_labels, plant, index), flush=True)  # fmt: skip
        write_pictures(tested, test_labels, options.folder / name)
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(weights, options.folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
