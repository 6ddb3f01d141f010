"""Interactions and carriers of torchvision's networks against plain loops over whole passes."""

import pytest
import torch
import torchvision
from networks import model_of, noise
from torch import Tensor, nn

from cnnviz.core import UsageError
from cnnviz.core.models.layers import named_layers
from cnnviz.core.models.load import Model
from cnnviz.occlusion.masks import fill_picture
from cnnviz.occlusion.options import EngineChoice
from cnnviz.reasons.carriers import carriers, patched_layers
from cnnviz.reasons.interactions import Interacting

SIZE, CLASS = 64, 3
NETWORKS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("squeezenet1_1", "resnet18", "mobilenet_v2", "densenet121")
]


def network(name: str) -> Model:
    """Random weights, norms by one batch of noise: no layer's signal dies on the way."""
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None, num_classes=10)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.rand(8, 3, SIZE, SIZE))
    return model_of(module.eval(), (SIZE, SIZE), [str(number) for number in range(10)])


def log_odds(logits_1K: Tensor) -> float:
    p = logits_1K[0].double().softmax(0)[CLASS]
    return float(torch.log(p / (1 - p)))


@pytest.mark.parametrize("engine", [EngineChoice.INCREMENTAL, EngineChoice.FULL])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_pair_is_that_of_images_occluded_one_by_one(name: str, engine: EngineChoice) -> None:
    model, image = network(name), noise((SIZE, SIZE))
    study = Interacting(model, grid=3, fill="gray", engine=engine)
    _first, result = study.run(image, [0, CLASS])
    assert result.engine == engine.value
    assert result.fills == ("gray", "mean", "blur", "noise")
    fills = [fill_picture(fill, image.pixels, model.preprocess) for fill in result.fills]

    @torch.inference_mode()
    def score(fill: Tensor, *cells: int) -> float:
        pixels = image.pixels.clone()
        for cell in cells:
            y0, x0, y1, x1 = result.boxes[cell]
            pixels[:, y0:y1, x0:x1] = fill[:, y0:y1, x0:x1]
        return log_odds(model.module(pixels[None]))

    base = score(fills[0])
    alone = [[base - score(fill, cell) for cell in range(9)] for fill in fills]
    for pair in result.every[::3]:
        i, j = pair.first, pair.second
        both = [base - score(fill, i, j) for fill in fills]
        beyond = [b - drops[i] - drops[j] for b, drops in zip(both, alone, strict=True)]
        assert pair.both == pytest.approx(sum(both) / 4, abs=2e-5)
        assert pair.beyond == pytest.approx(sum(beyond) / 4, abs=2e-5)
        assert (pair.lowest, pair.highest) == pytest.approx((min(beyond), max(beyond)), abs=5e-5)
    assert len(result.every) == 36
    assert max(abs(pair.beyond) for pair in result.every) > 1e-3


@pytest.mark.parametrize("group", [1, 7])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_filter_carries_what_a_hook_that_patches_it_brings_back(
    name: str, group: int
) -> None:
    model, image = network(name), noise((SIZE, SIZE))
    region_HW = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    region_HW[10:50, 10:50] = True
    black = torch.zeros_like(image.pixels)
    layouts = patched_layers(model)
    result = carriers(model, image, region_HW, CLASS, layouts, fill="black", group=group)
    pictures = image.pixels[None], torch.where(region_HW, black, image.pixels)[None]
    parts = named_layers(model.module)
    assert result.engine == "replay"
    assert len(result.layers) >= 2

    @torch.inference_mode()
    def patched(layer: str, channels: slice, into: Tensor, other: Tensor) -> float:
        kept: list[Tensor] = []
        handle = parts[layer].register_forward_hook(lambda *call: kept.append(call[-1].clone()))
        model.module(other)
        handle.remove()

        def patch(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            changed = output.clone()
            changed[:, channels] = kept[0][:, channels]
            return changed

        handle = parts[layer].register_forward_hook(patch)
        score = log_odds(model.module(into))
        handle.remove()
        return score

    with torch.inference_mode():
        before, after = (log_odds(model.module(picture)) for picture in pictures)
    tolerance = 2e-5 if name == "densenet121" else 1e-5  # 120 layers round more
    assert (result.before, result.after) == pytest.approx((before, after), abs=1e-5)
    for layer in result.layers:
        assert (layer.restored, layer.taken) == pytest.approx((1, 1), abs=1e-4)
        assert layer.restored_sum == pytest.approx(sum(c.restored for c in layer.every))
        for carrier in layer.every[:: max(1, len(layer.every) // 6)]:
            channels = slice(carrier.filter, carrier.last + 1)
            assert carrier.last - carrier.filter < group
            restored = patched(layer.layer, channels, *pictures[::-1])
            taken = patched(layer.layer, channels, *pictures)
            assert carrier.restored * result.drop == pytest.approx(restored - after, abs=tolerance)
            assert carrier.taken * result.drop == pytest.approx(before - taken, abs=tolerance)


def test_a_layer_that_runs_twice_cannot_be_patched() -> None:
    relu = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 4, 1), relu, nn.Conv2d(4, 4, 1), relu, nn.Flatten())
    model = model_of(twice, (4, 4), [str(number) for number in range(64)])
    with pytest.raises(UsageError, match=r"layer '1' of net runs 2 times in a forward pass; name"):
        patched_layers(model, ["1"])
