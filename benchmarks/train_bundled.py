"""Trains the bundled model and writes its weights and its card.

    python benchmarks/train_bundled.py FOLDER [--out core/models/bundled] [--seed 0]

FOLDER holds `CIFAR-10-images-jpg.tar.gz` (train/<class>/*.jpg) and
`cifar10_lossless_4000train_1000test.npz`. An epoch is every JPEG training image once and every
lossless training image `LOSSLESS_REPEATS` times, so that the network learns both kinds of pixels.
Two phases: `HARD` (squares cut out, labels smoothed) finds general features; `PLAIN` lets the
network be sure again, without which its probabilities stop at the smoothed label and an occlusion
experiment measures mostly noise. The recipe is fixed and the last epoch is the model: nothing is
chosen by the test images.
Shapes: N images, H W rows and columns.
"""

import argparse
import io
import json
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cnnviz.core.models.bundled import CifarNet

CLASSES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
LOSSLESS_REPEATS = 3
BATCH = 256
WEIGHT_DECAY = 5e-4
CROP_PAD = 4
HALF = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
"""Half precision: other processors only imitate it, far slower than they compute in float32."""


@dataclass(frozen=True)
class Phase:
    """One cycle of the learning rate.

    Attributes:
        epochs: passes over the data.
        peak_rate: the largest learning rate.
        cutout: side of the square set to the mean in every image, in pixels.
        smoothing: share of the label given to the other classes.
    """

    epochs: int
    peak_rate: float
    cutout: int
    smoothing: float


HARD = Phase(epochs=22, peak_rate=0.25, cutout=8, smoothing=0.05)
PLAIN = Phase(epochs=5, peak_rate=0.05, cutout=0, smoothing=0.0)


@dataclass(frozen=True)
class Data:
    """uint8 images (N, 3, H, W) and int64 labels (N,)."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def read_jpegs(archive: Path, part: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """The archive's images (N, H, W, 3) and labels (N,) of `train` or `test`, in name order."""
    rows = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is None or part not in parts or parts[-2] not in CLASSES:
                continue
            pixels = np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB"))
            rows.append((member.name, pixels, CLASSES.index(parts[-2])))
    rows.sort(key=lambda row: row[0])
    return np.stack([row[1] for row in rows]), np.array([row[2] for row in rows])


def read_data(folder: Path) -> Data:
    """Both training sets put together, and the 1,000 lossless test images."""
    jpeg_images, jpeg_labels = read_jpegs(folder / "CIFAR-10-images-jpg.tar.gz")
    lossless = np.load(folder / "cifar10_lossless_4000train_1000test.npz", allow_pickle=False)
    images = np.concatenate([jpeg_images, *[lossless["x_train"]] * LOSSLESS_REPEATS])
    labels = np.concatenate([jpeg_labels, *[lossless["y_train"].ravel()] * LOSSLESS_REPEATS])

    def channels_first(pixels: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    return Data(
        channels_first(images),
        torch.from_numpy(labels).long(),
        channels_first(lossless["x_test"]),
        torch.from_numpy(lossless["y_test"].ravel()).long(),
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to float32 with zero mean and unit variance per channel."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, cutout: int, generator: torch.Generator) -> Tensor:
    """A random crop out of the reflected border, a random flip, a random square set to the mean."""
    count, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, (count, 1), generator=generator)

    padded = nn.functional.pad(images, [CROP_PAD] * 4, mode="reflect")
    rows = draw(2 * CROP_PAD + 1) + torch.arange(height)
    columns = draw(2 * CROP_PAD + 1) + torch.arange(width)
    columns = torch.where(draw(2) == 1, columns.flip(1), columns)
    which = torch.arange(count)
    cropped = padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    top, left = draw(height - cutout + 1), draw(width - cutout + 1)
    y, x = torch.arange(height), torch.arange(width)
    in_rows = (y >= top) & (y < top + cutout)
    in_columns = (x >= left) & (x < left + cutout)
    hidden = in_rows[:, :, None] & in_columns[:, None, :]
    return cropped.permute(0, 3, 1, 2) * ~hidden[:, None]


def train(model: nn.Module, data: Data, phase: Phase, seed: int) -> nn.Module:
    """Stochastic gradient descent on one cycle of the learning rate (Smith 2018)."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    count = len(data.train_images)
    steps = count // BATCH
    optimiser = torch.optim.SGD(
        model.parameters(), phase.peak_rate, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, phase.peak_rate, phase.epochs * steps, pct_start=0.2, final_div_factor=1e4
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=phase.smoothing)
    for epoch in range(phase.epochs):
        started, total = time.perf_counter(), 0.0
        order = torch.randperm(count, generator=generator)
        for step in range(steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            images = augment(normalise(data.train_images[batch]), phase.cutout, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
                logits = model(images.contiguous(memory_format=torch.channels_last))
            loss = loss_of(logits.float(), data.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1}/{phase.epochs}  loss {total / steps:.4f}  {seconds:.0f} s",
            flush=True,
        )
    return model.eval()


def halve(model: nn.Module) -> dict[str, Tensor]:
    """The state dict rounded to fp16 (counters left out: they play no part in inference)."""
    return {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


@torch.inference_mode()
def measure(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, object]:
    """Top-1 accuracy in all and per class, in percent."""
    predicted = torch.cat([model(normalise(part)).argmax(1) for part in torch.split(images, 250)])
    right = predicted == labels
    return {
        "images": len(labels),
        "top1_percent": round(100 * right.float().mean().item(), 2),
        "per_class_percent": {
            name: round(100 * right[labels == index].float().mean().item(), 1)
            for index, name in enumerate(CLASSES)
        },
    }


def card(accuracy: dict[str, object], seed: int, parameters: int) -> dict[str, object]:
    """What `cnnviz models` tells about the bundled model."""
    return {
        "name": "bundled",
        "architecture": "CifarNet: 9 convolutions, 3 residual blocks, batch norm, global average",
        "parameters": parameters,
        "labels": CLASSES,
        "mean": MEAN,
        "std": STD,
        "size": 32,
        "data": (
            "CIFAR-10 (Krizhevsky 2009): the 50,000 training images as JPEG, and 4,000 of them "
            f"lossless, {LOSSLESS_REPEATS} times an epoch"
        ),
        "recipe": (
            f"SGD (Nesterov momentum 0.9, weight decay {WEIGHT_DECAY}, batch {BATCH}), "
            f"{HARD.epochs} epochs on one cycle to {HARD.peak_rate} with label smoothing "
            f"{HARD.smoothing} and {HARD.cutout}x{HARD.cutout} cutout, then {PLAIN.epochs} epochs "
            f"on one to {PLAIN.peak_rate} without either; crops padded by {CROP_PAD}, flips, "
            f"bf16 autocast, seed {seed}; weights rounded to fp16 after each"
        ),
        "accuracy": accuracy,
        "accuracy_on": "1,000 lossless CIFAR-10 test images, none used in training or selection",
        "limits": (
            "It knows ten classes and has seen only 32x32 pictures: a photograph is resized and "
            "cropped to 32x32, what is small in it is lost, and anything outside the ten classes "
            "still gets one of their names. Made for trying cnnviz out, not for deciding anything."
        ),
    }


def main() -> None:
    """Trains both phases, measures what was rounded, and writes weights and card."""
    parser = argparse.ArgumentParser(description="train the model that ships with cnnviz")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("core/models/bundled"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hard", type=Path, help="weights after the first phase, to go on from")
    options = parser.parse_args()
    data = read_data(options.folder)
    torch.manual_seed(options.seed)
    model = CifarNet().to(memory_format=torch.channels_last)
    if options.hard:
        model.load_state_dict(load_file(options.hard), strict=False)
    else:
        weights = halve(train(model, data, HARD, options.seed))
        save_file(weights, options.out / "hard.safetensors")
        model.load_state_dict(weights, strict=False)
    weights = halve(train(model, data, PLAIN, options.seed))
    model.load_state_dict(weights, strict=False)
    accuracy = measure(model, data.test_images, data.test_labels)
    parameters = sum(p.numel() for p in model.parameters())
    text = json.dumps(card(accuracy, options.seed, parameters), indent=2)
    save_file(weights, options.out / "cifar10.safetensors")
    (options.out / "card.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
