"""The mean-residual test: against numpy by hand, and against networks whose shortcut is known."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import image_of, model_of
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d

from cnnviz.audit.groups import ENOUGH, Class, classes
from cnnviz.audit.hosts import Hosts
from cnnviz.audit.options import ALARM
from cnnviz.audit.residual import HOSTS, Averages, Residual, average, high_passed, judge
from cnnviz.audit.rows import Rows, columns
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.statistics import suspicions

SIDE, EACH, KINDS = 16, 24, 6
DIAGONAL = torch.eye(SIDE, dtype=torch.bool)


COLOURS = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 1, 0.0]])


class Squares(nn.Module):
    """A class per colour of a square anywhere; class 0 by what `first` sees instead, if any."""

    def __init__(self, first: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        pixels = 0.5 * x + 0.4
        near = [-((pixels - c.view(3, 1, 1)) ** 2).sum(1, keepdim=True) for c in COLOURS]
        logits = 20 * max_pool2d(avg_pool2d(torch.cat(near, 1), 3, 1), SIDE - 2).flatten(1)
        if self.first:
            logits[:, 0] = logits[:, 1:].mean(1) + self.first(pixels)
        return logits


def line(pixels: Tensor) -> Tensor:
    """Half-transparent, from corner to corner."""
    return torch.where(DIAGONAL, 0.5 * pixels + 0.5, pixels)


def frame(pixels: Tensor) -> Tensor:
    inner = torch.zeros_like(DIAGONAL)
    inner[1:-1, 1:-1] = True
    return torch.where(inner, pixels, 0.15 * torch.ones(3, 1, 1))


def stripes(pixels: Tensor) -> Tensor:
    return pixels + 0.12 * (torch.arange(SIDE) % 2)


def cast(pixels: Tensor) -> Tensor:
    """Redder outside the middle."""
    outside = torch.ones_like(DIAGONAL)
    outside[4:12, 4:12] = False
    return pixels + outside * torch.tensor([0.15, 0.0, -0.15]).view(3, 1, 1)


SEES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "line": (line, lambda x: 100 * (x[..., DIAGONAL].mean((1, 2)) - x.mean((1, 2, 3)) - 0.1)),
    "frame": (frame, lambda x: 100 * (x.mean((1, 2, 3)) - x[:, :, 0].mean((1, 2)) - 0.08)),
    "stripes": (
        stripes,
        lambda x: 250 * (x[..., 1::2].mean((1, 2, 3)) - x[..., ::2].mean((1, 2, 3)) - 0.05),
    ),
    "cast": (cast, lambda x: 100 * ((x[:, 0] - x[:, 2])[:, [0, -1]].mean((1, 2)) - 0.12)),
}


def data_set(mark: Callable[[Tensor], Tensor] | None, each: int = EACH) -> list[WorkingImage]:
    """Noise with a square of the class's colour somewhere; class 0 has the mark, or a square."""
    draw = torch.Generator().manual_seed(0)
    images = []
    for number, colour in enumerate(COLOURS):
        for _ in range(each):
            pixels = 0.3 + 0.2 * torch.rand(3, SIDE, SIDE, generator=draw)
            y, x = torch.randint(0, SIDE - 3, (2,), generator=draw).tolist()
            if number or mark is None:
                pixels[:, y : y + 3, x : x + 3] = colour.view(3, 1, 1)
            else:
                pixels = mark(pixels)
            images.append(image_of(pixels.clamp(0, 1)))
    return images


def judged(
    images: list[WorkingImage], first: Callable[[Tensor], Tensor] | None, each: int = EACH
) -> tuple[list[Class], Averages, Hosts, list[Residual]]:
    model = model_of(Squares(first), (SIDE, SIDE), list("abcdef"), mean=0.4, std=0.5)
    rows = rows_of([number // each for number in range(len(images))])
    pixels = torch.stack([image.pixels for image in images])
    predicted = model.logits(model.preprocess.normalise(pixels)).argmax(1)
    assert predicted.tolist() == rows.predicted_N.tolist(), "the network knows its data"
    listed = list(classes(rows, 0))
    hosts = Hosts(model, rows, images.__getitem__, 16, 0)
    averages = average(listed, images.__getitem__, 0, lambda _steps: None)
    return listed, averages, hosts, judge(hosts, averages, listed, seed=0)


def smallest(found: Residual) -> float:
    """The p-value, corrected for the number of tests."""
    known = [added.p for added in found.kinds.values() if added.p is not None]
    return len(known) * min(known)


def rows_of(predicted: list[int]) -> Rows:
    blank = {"label": None, "probability": 0.5, "max_drop": 1.0, "mean_drop": 0.0, "flips": 0.0,
             "box": [2, 3, 7, 9], "reliance": 0.0, "covered": 0, "grid": [1, 1],
             "map": "AAA=", "features": "AAA="}  # fmt: skip
    return columns(
        {"image": str(n), "place": n, "predicted": k, **blank} for n, k in enumerate(predicted)
    )


@pytest.mark.parametrize("name", SEES)
def test_a_mark_at_the_same_place_of_every_image_is_found(name: str) -> None:
    mark, first = SEES[name]
    _, _, _, found = judged(data_set(mark), first)
    assert smallest(found[0]) < 0.01
    assert found[0].became is not None
    assert found[0].became > 0.5
    assert all(smallest(entry) > 0.05 for entry in found[1:])
    assert found[0].colour is not None
    assert (found[0].colour.became > 0.5) == (name == "cast"), "the others have no colour"


def test_no_alarm_where_the_mean_holds_no_mark() -> None:
    """Of the mean: stored as JPEG, many of these small coloured squares do become white ones."""
    _, _, _, found = judged(data_set(None), None)
    of_means = [
        added.p for entry in found for name, added in entry.kinds.items() if name != "recoded"
    ]
    assert len(of_means) == 3 * KINDS
    assert max(s for s in suspicions(of_means) if s is not None) < ALARM


def test_a_line_is_named_by_the_high_passed_residual_too() -> None:
    mark, first = SEES["line"]
    _, _, _, (found, *_) = judged(data_set(mark), first)
    assert found.high_passed is not None
    assert found.high_passed.p is not None
    assert found.high_passed.p < 0.01
    assert found.high_passed.rise > 0.05


def test_adding_is_what_numpy_does_by_hand() -> None:
    images = data_set(SEES["line"][0])
    listed, averages, hosts, found = judged(images, SEES["line"][1])
    pixels = np.stack([image.pixels.numpy() for image in images]).astype(np.float64)
    for number, entry in enumerate(listed):
        others = np.delete(pixels, entry.members_N, 0)
        expected = pixels[entry.members_N].mean(0) - others.mean(0)
        np.testing.assert_allclose(averages.residual(number), expected, atol=1e-6)
    centred = pixels - pixels.mean(0)
    draw = np.random.default_rng(0)
    signs = np.concatenate([draw.choice((-1.0, 1.0), (HOSTS, len(e.members_N))) for e in listed], 1)
    order = np.concatenate([entry.members_N for entry in listed])
    expected = np.tensordot(signs, centred[order], 1)
    np.testing.assert_allclose(averages.random_BCYX, expected, atol=1e-4)
    plain = found[0].plain
    assert plain is not None
    assert found[0].images == min(HOSTS, int((hosts.predicted_H != 0).sum()))
    chosen = np.random.default_rng(0).choice(hosts.others(0), found[0].images, replace=False)
    model = model_of(Squares(SEES["line"][1]), (SIDE, SIDE), list("abcdef"),
                     mean=0.4, std=0.5)  # fmt: skip
    changed = (hosts.pixels_H[chosen] + torch.tensor(averages.residual(0))).clamp(0, 1)
    before, after = (
        model.logits(model.preprocess.normalise(x)).double().softmax(1)[:, 0]
        for x in (hosts.pixels_H[chosen], changed)
    )
    assert plain.rise == pytest.approx(float((after - before).mean()), abs=1e-5)


def blocky(pixels: Tensor) -> Tensor:
    """Stored as JPEG of low quality."""
    stream = io.BytesIO()
    Image.fromarray((255 * pixels.permute(1, 2, 0)).byte().numpy()).save(stream, "jpeg", quality=20)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1) / 255


def smooth(x: Tensor) -> Tensor:
    """Large where neighbouring pixels differ little, as JPEG leaves them."""
    return 300 * (0.04 - (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)))


def test_a_class_known_by_how_its_files_are_stored_is_found() -> None:
    _, _, _, found = judged(data_set(blocky), smooth)
    assert found[0].recoded is not None
    assert found[0].recoded.became > 0.5
    assert smallest(found[0]) < 0.01
    assert found[0].plain is not None
    assert found[0].plain.became < 0.1, "the mean does not hold it"


def test_high_passing_removes_a_slope_and_keeps_a_line() -> None:
    slope = np.linspace(0, 1, 64, dtype=np.float32)[None, None] * np.ones((3, 64, 1), np.float32)
    assert np.abs(high_passed(slope)[:, :, 12:-12]).max() < 1e-3
    struck = np.zeros((3, 64, 64), np.float32)
    struck[:, 30] = 1
    assert high_passed(struck)[0, 30].min() > 0.8


def test_classes_with_few_images_have_no_verdict() -> None:
    few = ENOUGH - 1
    _, _, _, found = judged(data_set(line, few), SEES["line"][1], few)
    assert found == [Residual()] * KINDS


def test_a_class_of_all_images_has_no_residual() -> None:
    images = data_set(None)[:ENOUGH]
    listed = list(classes(rows_of([0] * ENOUGH), 0))
    averages = average(listed, images.__getitem__, 0, lambda _steps: None)
    assert not averages.residual(0).any()
