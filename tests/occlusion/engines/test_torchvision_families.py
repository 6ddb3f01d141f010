"""One small member of every torchvision classification family: incremental equals full."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from cnnviz.occlusion.engines.full import FullEngine
from cnnviz.occlusion.engines.incremental.batch import Batch
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import prepare

ODD = (129, 161)
AUXILIARY = ("googlenet", "inception_v3")
# Some only take the size they were made for; the largest odd sizes go to the cheapest ones.
FAMILIES = {
    "alexnet": (193, 257),
    "convnext_tiny": (97, 129),
    "densenet121": (97, 129),
    "efficientnet_b0": ODD,
    "efficientnet_v2_s": (97, 129),
    "googlenet": ODD,
    "inception_v3": (145, 161),
    "maxvit_t": (224, 224),
    "mnasnet0_5": (193, 257),
    "mobilenet_v2": (193, 257),
    "mobilenet_v3_small": (193, 257),
    "regnet_x_400mf": ODD,
    "regnet_y_400mf": ODD,
    "resnet18": ODD,
    "resnext50_32x4d": (97, 129),
    "wide_resnet50_2": (65, 81),
    "shufflenet_v2_x0_5": (193, 257),
    "squeezenet1_1": (193, 257),
    "swin_t": (97, 129),
    "swin_v2_t": (97, 129),
    "vgg11_bn": (97, 129),
    "vit_b_32": (224, 224),
}
# At the size they were made for, the pool in front of the classifier has nothing to do.
CASES = [*FAMILIES.items(), ("alexnet", (224, 224)), ("resnet18", (224, 224))]


def build(name: str) -> nn.Module:
    # The auxiliary heads run in training alone, and only on images of 299 x 299.
    kwargs = {"init_weights": False, "aux_logits": False} if name in AUXILIARY else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **kwargs)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), CASES)
def test_incremental_equals_full_for_torchvision(
    name: str, size: tuple[int, int], settled: Callable[..., nn.Module]
) -> None:
    """Equal in float64; in float32 as near to that as the network's own rounding is, which depends
    on the processor (up to 4e-4 of the largest score)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's own, on scipy and future defaults
        module = settled(build(name), size)
    height, width = size
    image, fill = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(
        [[0, 0, 15, 15], [40, 50, 55, 65], [43, 57, 58, 72], [50, 41, 51, 42],
         [height - 9, width - 11, height, width], [20, 0, 65, 45]]
    )[:: 2 if min(size) >= 224 else 1]  # fmt: skip

    def scores(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        prepared = prepare(module.to(dtype), size, device=torch.device("cpu"), dtype=dtype)
        assert prepared.graph is not None, prepared.reason
        pictures = image.to(dtype), fill.to(dtype), boxes
        incremental = IncrementalEngine(prepared).run(*pictures)
        full = FullEngine(prepared).run(*pictures).logits_PK
        return full, incremental.logits_PK, incremental.base_logits_K

    rounded, ours_rounded, _ = scores(torch.float32)
    full, ours, base = scores(torch.float64)
    scale = float(full.abs().max())
    assert float((full - base).abs().max()) > 1e-3 * scale
    assert float((full - ours).abs().max()) <= 1e-6 * scale
    own = float((rounded - full).abs().max())
    assert float((ours_rounded - full).abs().max()) <= max(5 * own, 1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121"])
def test_large_maps_run_in_parts_with_the_same_numbers(
    name: str, settled: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    part = Batch._part

    def counted(batch: Batch, positions: slice) -> Batch:
        counts.append(positions.stop - positions.start)
        return part(batch, positions)

    monkeypatch.setattr(Batch, "_part", counted)
    size = (224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = settled(build(name), size, 0)
    image, fill = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(
        [[y, x, y + 15, x + 15] for y in (60, 100, 140) for x in range(0, 200, 20)]
    )
    prepared = prepare(module, size, device=torch.device("cpu"))
    full = FullEngine(prepared).run(image, fill, boxes).logits_PK
    incremental = IncrementalEngine(prepared).run(image, fill, boxes).logits_PK
    assert len(set(counts)) > 1
    assert float(full.std(0).max()) > 1e-3 * float(full.abs().max())
    assert float((full - incremental).abs().max()) <= 1e-4 * float(full.abs().max())


def test_every_torchvision_family_is_here() -> None:
    names = torchvision.models.list_models(torchvision.models)

    def family(name: str) -> str:
        return name.rstrip("0123456789").split("_")[0].rstrip("0123456789")

    assert {family(name) for name in names} == {family(name) for name in FAMILIES}
