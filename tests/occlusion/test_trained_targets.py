"""Trained networks: the map of a box lies on its object, that of a text on what it names.

Both are trained here on rendered shapes, in seconds. Energy is the share of a map's positive part.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from networks import image_of
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.choices import Precision
from cnnviz.core.models.behaviour import Behaviour
from cnnviz.core.models.boxes import Boxes, BoxReading
from cnnviz.core.models.heads import SCORE, Head, Kind
from cnnviz.core.models.load import Model
from cnnviz.core.models.preprocess import Preprocess
from cnnviz.core.models.targets import with_reader
from cnnviz.core.models.zoo.towers import ImageTower
from cnnviz.embeddings.likeness import describe
from cnnviz.occlusion import OcclusionSpec, occlude

SIDE, CELL = 64, 8
SCENES, RATE = 1024, 6e-3
SHAPES, COLOURS = ("circle", "square", "triangle"), ("red", "green", "blue")
RGB = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (60, 80, 230)}
Shape = tuple[str, str, int, int, int]
"""Colour, shape, column and row of the centre, half of the side."""


def render(shapes: Sequence[Shape], seed: int) -> Tensor:
    """(3, H, W) in [0, 1]: shapes on grey noise."""
    noise = np.random.default_rng(seed).integers(90, 130, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    for colour, shape, x, y, half in shapes:
        corners = (x - half, y - half, x + half, y + half)
        if shape == "circle":
            draw.ellipse(corners, fill=RGB[colour])
        elif shape == "square":
            draw.rectangle(corners, fill=RGB[colour])
        else:
            below = [(x - half, y + half), (x + half, y + half)]
            draw.polygon([(x, y - half), *below], fill=RGB[colour])
    return torch.from_numpy(np.asarray(image).copy()).movedim(2, 0).float() / 255


def in_a_grid(random: np.random.Generator) -> list[Shape]:
    """A shape in each quarter of the image."""
    return [
        (
            str(random.choice(COLOURS)),
            str(random.choice(SHAPES)),
            int(random.integers(13, 20)) + 32 * column,
            int(random.integers(13, 20)) + 32 * row,
            int(random.integers(7, 11)),
        )
        for row in range(2)
        for column in range(2)
    ]


def layers() -> nn.Sequential:
    steps: list[nn.Module] = []
    for channels, out, stride in ((3, 16, 2), (16, 32, 2), (32, 32, 2), (32, 32, 1)):
        steps += [nn.Conv2d(channels, out, 3, stride, 1), nn.ReLU()]
    return nn.Sequential(*steps)


class Detector(nn.Module):
    """A score of each shape and the distances to the sides of its box, in each cell."""

    score_thresh, nms_thresh, detections_per_img = 0.0, 0.5, 100

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = layers(), nn.Conv2d(32, len(SHAPES) + 4, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = self.head(self.body(images))
        rows, columns = found.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centre = CELL * torch.stack([x, y]).float() + CELL / 2
        sides = CELL * found[:, -4:]
        corners = torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1).flatten(2)
        scores = found[:, :-4].sigmoid().flatten(2)
        pairs = zip(corners.movedim(1, 2), scores.movedim(1, 2), strict=True)
        return [{"boxes": boxes, "scores": rows} for boxes, rows in pairs]


@contextmanager
def repeatable() -> Iterator[None]:
    """One thread inside the `with`: sums do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def learnt(scenes: Sequence[Sequence[Shape]]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, and for each cell the shape that is centred there and the sides of its box."""
    images = torch.stack([render(scene, number) for number, scene in enumerate(scenes)])
    cells = SIDE // CELL
    shown, sides = (torch.zeros(len(scenes), channels, cells, cells) for channels in (3, 4))
    for number, scene in enumerate(scenes):
        for _, shape, x, y, half in scene:
            row, column = y // CELL, x // CELL
            shown[number, SHAPES.index(shape), row, column] = 1
            near = torch.tensor([CELL * column, CELL * row]) + CELL / 2
            away = near - torch.tensor([x, y])
            sides[number, :, row, column] = (torch.cat([away, -away]) + half) / CELL
    return images, shown, sides


def train_detector(steps: int = 800) -> Detector:
    network, random = Detector(), np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    images, shown, sides = learnt([in_a_grid(random) for _ in range(SCENES)])
    for step in range(steps):
        part = torch.randint(len(images), (8,))
        found = network.head(network.body(images[part]))
        scores = functional.binary_cross_entropy_with_logits(
            found[:, :-4], shown[part], pos_weight=torch.tensor(4.0)
        )
        there = shown[part].sum(1, keepdim=True)
        loss = 20 * scores + 0.02 * (there * (found[:, -4:] - sides[part])).abs().sum()
        optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


class Contrastive(ImageTower):
    """An image tower and a text tower for captions of a colour and a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.image = layers(), nn.Linear(32, 16)
        self.words, self.text = nn.Embedding(6, 16), nn.Linear(16, 16)
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, x: Tensor) -> Tensor:
        """Images to features."""
        out: Tensor = self.image(self.body(x).mean((2, 3)))
        return out

    def read(self, texts: Sequence[str]) -> Tensor:
        """Captions to features."""
        known = [*COLOURS, *SHAPES]
        words = torch.tensor([[known.index(word) for word in text.split()[1:]] for text in texts])
        out: Tensor = self.text(self.words(words).sum(1).relu())
        return out


PAIRS = list(itertools.product(COLOURS, SHAPES))


def two_of(random: np.random.Generator) -> tuple[list[int], list[Shape]]:
    """Two different captions, and their shapes beside each other."""
    picked = random.choice(len(PAIRS), 2, replace=False).tolist()
    rows = random.integers(14, 50, 2).tolist()
    return picked, [
        (*PAIRS[pair], 16 + 32 * half, rows[half], 9) for half, pair in enumerate(picked)
    ]


def train_contrastive(steps: int = 1500) -> Contrastive:
    """By SigLIP's loss: each caption of an image alone."""
    network, random = Contrastive(), np.random.default_rng(0)
    optimiser = torch.optim.Adam(network.parameters(), 4e-3)
    texts = [f"a {colour} {shape}" for colour, shape in PAIRS]
    scenes = [two_of(random) for _ in range(3 * SCENES)]
    images = torch.stack([render(scene, number) for number, (_, scene) in enumerate(scenes)])
    shown = -torch.ones(len(scenes), len(texts))
    for row, (picked, _) in zip(shown, scenes, strict=True):
        row[picked] = 1
    for step in range(steps):
        part = torch.randint(len(images), (12,))
        features = functional.normalize(network(images[part]), dim=1)
        captions = functional.normalize(network.read(texts), dim=1)
        logits = network.logit_scale.exp() * features @ captions.T + network.logit_bias
        loss = -functional.logsigmoid(shown[part] * logits).mean()
        optimiser.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return network.eval()


def model_of(module: nn.Module, **fields: object) -> Model:
    preprocess = Preprocess(SIDE, (SIDE, SIDE), (0.0,) * 3, (1.0,) * 3)
    return Model(
        module, "trained", preprocess, (), (SIDE, SIDE), "", torch.device("cpu"), Precision.FP32,
        behaviour=Behaviour(), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


SPEC = {"masks": ((8, 8),), "stride": 4, "fill": "gray"}


def energy(map_HW: Tensor, rows: slice, columns: slice) -> float:
    positive = map_HW.clamp(min=0)
    return float(positive[rows, columns].sum() / positive.sum())


@pytest.mark.slow
def test_the_map_of_each_box_of_a_trained_detector_lies_on_its_object() -> None:
    """A grid of 2 x 2 objects: at least 0.8 of the energy in the object's quarter."""
    with repeatable():
        network = train_detector()
    target = Boxes(network, (SIDE, SIDE), "trained")
    target.names = SHAPES
    head = Head(Kind.NONE, word=SCORE)
    model = model_of(with_reader(network, target.read), head=head, target=target)
    random, energies, right = np.random.default_rng(99), [], 0
    for seed in range(4):
        scene = in_a_grid(random)
        result = occlude(
            model, image_of(render(scene, 10_000 + seed)), OcclusionSpec(boxes=("all",), **SPEC)
        )
        assert isinstance(result.measured.reading, BoxReading)
        for panel in result.targets:
            assert panel.box is not None
            y0, x0, y1, x1 = panel.box
            row, column = int(y0 + y1 > SIDE), int(x0 + x1 > SIDE)
            quarter = [slice(32 * k, 32 * k + 32) for k in (row, column)]
            energies.append(energy(panel.map_HW, *quarter))
            right += panel.class_.endswith(scene[2 * row + column][1])
    assert len(energies) >= 10, len(energies)  # of 16 objects
    assert right >= 0.75 * len(energies), right
    assert min(energies) >= 0.8, sorted(energies)


@pytest.mark.slow
def test_the_map_of_a_text_lies_on_what_it_names() -> None:
    """Two objects beside each other: most of the energy in the half of the one that is named."""
    with repeatable():
        network, energies = train_contrastive(), []
    random = np.random.default_rng(99)
    for seed in range(6):
        picked, scene = two_of(random)
        image = image_of(render(scene, 10_000 + seed))
        for half, pair in enumerate(picked):
            text = " ".join(["a", *PAIRS[pair]])
            model = describe(model_of(copy.deepcopy(network)), [text])
            columns = slice(32 * half, 32 * half + 32)
            panel = occlude(model, image, OcclusionSpec(**SPEC)).targets[0]
            energies.append(energy(panel.map_HW, slice(None), columns))
    assert float(np.mean(energies)) >= 0.8, sorted(energies)
    assert sum(share > 0.5 for share in energies) >= len(energies) - 1, sorted(energies)
