"""A whole scan against a plain loop over single images, and its boxes against the activations.

Images are black-and-white noise and weights whole numbers, so that every sum is exact: equal means
equal, and ties are real ties.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import model_of
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.images import Preprocess
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.layers import Layouts
from cnnviz.core.models.load import Model
from cnnviz.filters.patches.boxes import SHARE, box_of_energy, gradient_energy
from cnnviz.filters.patches.max_patches import find_patches, max_patches
from cnnviz.filters.patches.options import Crop, MaxPatchesSpec, Ranking
from cnnviz.filters.patches.results import FilterPatches, MaxPatches
from cnnviz.filters.patches.scan import make_plan

SIZE = (24, 20)
LAYERS = ("stem", "wide", "narrow", "last")


class Branches(nn.Module):
    """Strides, dilation, two branches that are concatenated and added, ReLUs in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(4, 3, 3, padding=2, dilation=2)
        self.narrow = nn.Conv2d(4, 3, 1)
        self.last = nn.Conv2d(9, 5, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        a, b = self.relu(self.wide(x)), self.relu(self.narrow(x))
        x = self.relu(self.last(torch.cat([a, b, a + b], 1)))
        out: Tensor = self.head(self.pool(x).flatten(1))
        return out


def maps_by_hand(net: Branches, image: Tensor) -> dict[str, Tensor]:
    """What each convolution puts out for one image, in float64, without modules or hooks."""

    def conv(layer: nn.Conv2d, x: Tensor) -> Tensor:
        assert layer.bias is not None
        assert isinstance(layer.padding, tuple)
        return functional.conv2d(
            x,
            layer.weight.double(),
            layer.bias.double(),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
        )

    maps = {"stem": conv(net.stem, image.double()[None])}
    x = maps["stem"].clamp(min=0)
    maps["wide"], maps["narrow"] = conv(net.wide, x), conv(net.narrow, x)
    a, b = maps["wide"].clamp(min=0), maps["narrow"].clamp(min=0)
    maps["last"] = conv(net.last, torch.cat([a, b, a + b], 1))
    return {name: tensor[0] for name, tensor in maps.items()}


def as_model(module: nn.Module, size: tuple[int, int] = SIZE) -> Model:
    return model_of(module, size, "01")


def whole_numbers(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()


@pytest.fixture(scope="module")
def net() -> Branches:
    net = Branches()
    whole_numbers(net)
    return net


def write_noise(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    noise = np.random.default_rng(seed).integers(0, 2, (*size, 3), dtype=np.uint8) * 255
    Image.fromarray(noise).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 images in three classes; every fifth repeats an earlier one, so there are ties."""
    root = tmp_path_factory.mktemp("noise")
    for number in range(45):
        place = root / "abc"[number % 3]
        place.mkdir(exist_ok=True)
        write_noise(place / f"{number:02}.png", number - 3 if number % 5 == 4 else number)
    return root


@pytest.fixture
def data(folder: Path) -> ImageData:
    return open_data([str(folder)])


def pixels_of(path: str) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path)) / 255.0).permute(2, 0, 1)


def value_of(score: Ranking, units: list[float]) -> float:
    if score is Ranking.MAX:
        return max(units)
    if score is Ranking.NORM:
        return math.sqrt(sum(unit * unit for unit in units))
    return sum(units) / len(units)


def everything(
    net: Branches, data: ImageData, score: Ranking
) -> dict[tuple[str, int], list[tuple[float, int, tuple[int, int]]]]:
    """Every image's score and strongest unit for every filter, by single images and loops."""
    kept: dict[tuple[str, int], list[tuple[float, int, tuple[int, int]]]] = {}
    for index, example in enumerate(data.examples):
        for layer, maps in maps_by_hand(net, pixels_of(example.path)).items():
            for channel, grid in enumerate(maps.tolist()):
                units = [unit for row in grid for unit in row]
                place = divmod(units.index(max(units)), len(grid[0]))
                found = (value_of(score, units), index, place)
                kept.setdefault((layer, channel), []).append(found)
    return kept


def entries(result: MaxPatches) -> Iterator[tuple[tuple[str, int], FilterPatches]]:
    return (((entry.layer, entry.filter), entry) for entry in result.filters)


@pytest.mark.parametrize("score", Ranking)
@pytest.mark.parametrize("batch_size", [1, 7, 64, None])
def test_a_scan_equals_a_plain_loop_that_keeps_everything(
    net: Branches, data: ImageData, score: Ranking, batch_size: int | None
) -> None:
    model = as_model(net)
    result = find_patches(
        model, data, make_plan(model, MaxPatchesSpec(score=score, top=6, batch_size=batch_size))
    )
    loop = everything(net, data, score)
    assert {key for key, _entry in entries(result)} == set(loop)
    for key, entry in entries(result):
        wanted = sorted(loop[key], key=lambda item: (-item[0], item[1]))[:6]
        assert [(p.index, p.unit) for p in entry.patches] == [item[1:] for item in wanted], key
        assert [p.score for p in entry.patches] == pytest.approx([v for v, *_ in wanted], rel=1e-6)
        values = [value for value, *_ in loop[key]]
        assert entry.mean == pytest.approx(sum(values) / 45, rel=1e-5, abs=1e-6)
        assert (entry.lowest, entry.highest) == pytest.approx((min(values), max(values)), rel=1e-6)


def test_the_loop_has_ties_so_that_their_order_is_tested(net: Branches, data: ImageData) -> None:
    loop = everything(net, data, Ranking.MAX)
    tied = [len({v for v, *_ in found}) < len(found) for found in loop.values()]
    assert all(tied)


def test_batches_of_any_size_give_the_same_result(net: Branches, data: ImageData) -> None:
    model = as_model(net)
    one, many = (
        max_patches(model, data, MaxPatchesSpec(score=Ranking.NORM, batch_size=size))
        for size in (1, 64)
    )
    assert one.filters == many.filters


def test_a_unit_depends_on_its_box_and_on_nothing_else(net: Branches, data: ImageData) -> None:
    model = as_model(net)
    result = find_patches(model, data, make_plan(model, MaxPatchesSpec(top=3)))
    noise = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1))
    for (layer, channel), entry in entries(result):
        for patch in entry.patches:
            y0, x0, y1, x1 = patch.box
            inside = torch.zeros(SIZE, dtype=torch.bool)
            inside[y0:y1, x0:x1] = True
            pixels = pixels_of(patch.image)
            mixed = torch.where(inside, pixels, noise.double())
            unit = maps_by_hand(net, mixed)[layer][channel][patch.unit]
            assert unit.item() == pytest.approx(patch.score, rel=1e-6)


class Chain(nn.Sequential):
    """A stride, a dilation, a pool; padding as given."""

    def __init__(self, padded: bool) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2, padding=1 if padded else 0),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, dilation=2, padding=2 if padded else 0),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1 if padded else 0),
        )


def test_the_crop_alone_fed_to_a_copy_of_the_layers_gives_the_same_value(data: ImageData) -> None:
    chain = Chain(padded=True)
    whole_numbers(chain, seed=3)
    alone = Chain(padded=False)
    alone.load_state_dict(chain.state_dict())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2))
    size = (48, 40)
    model = as_model(nn.Sequential(chain, head), size)
    upscaled = Preprocess(40, size, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest")
    model = Model(**(vars(model) | {"preprocess": upscaled}))
    plan = make_plan(model, MaxPatchesSpec(layers=("0.5",), top=45))
    result = find_patches(model, data, plan)
    compared = 0
    for entry in result.filters:
        for patch in entry.patches:
            y0, x0, y1, x1 = patch.box
            if min(y0, x0) == 0 or (y1, x1) == size or y1 == size[0] or x1 == size[1]:
                continue
            image = Image.open(patch.image).resize((40, 48), Image.Resampling.NEAREST)
            pixels = torch.from_numpy(np.asarray(image) / 255.0).permute(2, 0, 1).float()
            with torch.no_grad():
                value = alone(pixels[None, :, y0:y1, x0:x1])
            assert value.shape[2:] == (1, 1)
            assert value[0, entry.filter].item() == pytest.approx(patch.score, rel=1e-6)
            compared += 1
    assert compared > 10


def test_boxes_in_the_file_are_the_box_scaled_back(net: Branches, tmp_path: Path) -> None:
    write_noise(tmp_path / "large.png", 1, (72, 60))
    small = Preprocess(20, SIZE, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest")
    model = Model(**(vars(as_model(net)) | {"preprocess": small}))
    result = find_patches(
        model, open_data([str(tmp_path)]), make_plan(model, MaxPatchesSpec(layers=("stem",)))
    )
    for entry in result.filters:
        for patch in entry.patches:
            assert patch.box_original == tuple(3 * edge for edge in patch.box)


def test_in_place_relus_behind_a_layer_do_not_change_what_is_scored(
    net: Branches, data: ImageData
) -> None:
    model = as_model(net)
    result = find_patches(
        model, data, make_plan(model, MaxPatchesSpec(layers=("stem",), score=Ranking.MEAN))
    )
    loop = everything(net, data, Ranking.MEAN)
    lowest = {key: min(value for value, *_ in found) for key, found in loop.items()}
    assert min(lowest.values()) < 0
    for key, entry in entries(result):
        assert entry.lowest == pytest.approx(lowest[key], rel=1e-5)


def test_module_is_left_without_hooks_when_a_scan_fails(net: Branches, data: ImageData) -> None:
    model = as_model(net)
    plan = make_plan(model, MaxPatchesSpec())

    def interrupt(_images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_patches(model, data, plan, progress=interrupt)
    assert not any(layer._forward_hooks for layer in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_classes_among_the_patches_and_their_entropy(net: Branches, data: ImageData) -> None:
    model = as_model(net)
    result = find_patches(model, data, make_plan(model, MaxPatchesSpec(top=6)))
    for entry in result.filters:
        labels = [Path(patch.image).parent.name for patch in entry.patches]
        assert entry.classes == {name: labels.count(name) for name in set(labels)}
        shares = [labels.count(name) / 6 for name in set(labels)]
        bits = -sum(share * math.log2(share) for share in shares)
        assert entry.class_entropy_bits == pytest.approx(bits, abs=1e-12)


def test_a_filter_that_never_fires_is_dead_and_the_others_are_not(
    net: Branches, data: ImageData
) -> None:
    dead = Branches()
    dead.load_state_dict(net.state_dict())
    assert dead.stem.bias is not None
    dead.stem.weight.data[1] = -1
    dead.stem.bias.data[1] = 0
    dead.stem.bias.data[0] = 100
    model = as_model(dead)
    result = find_patches(model, data, make_plan(model, MaxPatchesSpec(layers=("stem",))))
    assert [entry.filter for entry in result.dead] == [1]
    assert result.of("stem")[0].active_share == 1


class Poison(nn.Module):
    """Divides by the largest pixel: a black image becomes NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.scaled = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        largest = x.amax((1, 2, 3), keepdim=True)
        return self.scaled(self.conv(x) * (largest / largest)).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_an_image_with_nan_is_named_with_its_filter_and_left_out(
    tmp_path: Path, batch_size: int
) -> None:
    for number in range(6):
        write_noise(tmp_path / f"{number}.png", number)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "2-black.png")
    model = as_model(Poison())
    spec = MaxPatchesSpec(
        layers=("conv", "scaled"), top=9, crop=Crop.EFFECTIVE, batch_size=batch_size
    )
    result = max_patches(model, open_data([str(tmp_path)]), spec)
    assert result.images == 6
    assert all(len(entry.patches) == 6 for entry in result.filters)
    ((path, message),) = result.errors
    assert path.endswith("2-black.png")
    assert "filter 0 of layer 'scaled' is NaN" in message
    assert "2-black.png" in message


class Exit(nn.Module):
    """Skips its second layer once every image of a batch is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rest = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.stem(x)
        if not bool((x > 0.9).all()):
            maps = self.rest(maps)
        return maps.mean((2, 3))  # type: ignore[no-any-return]


def test_a_layer_that_some_images_do_not_reach_is_an_error_that_names_it(tmp_path: Path) -> None:
    for number in range(4):
        write_noise(tmp_path / f"{number}.png", number)
    Image.new("RGB", SIZE[::-1], "white").save(tmp_path / "9.png")
    model = as_model(Exit())
    spec = MaxPatchesSpec(crop=Crop.EFFECTIVE, batch_size=2)
    with pytest.raises(UsageError, match="layer 'rest' does not run"):
        max_patches(model, open_data([str(tmp_path)]), spec)


def test_nothing_but_nan_is_an_error_that_names_filter_and_image(
    net: Branches, data: ImageData
) -> None:
    broken = Branches()
    broken.load_state_dict(net.state_dict())
    broken.wide.weight.data[2, 0, 0, 0] = math.nan
    model = as_model(broken)
    with pytest.raises(CnnvizError, match=r"none of the .*00\.png.*filter 2 of.*'wide'"):
        find_patches(model, data, make_plan(model, MaxPatchesSpec()))


def test_unreadable_images_in_the_middle_are_listed_and_the_rest_goes_on(
    net: Branches, tmp_path: Path
) -> None:
    for number in range(9):
        write_noise(tmp_path / f"{number}.png", number)
    for number in (0, 4, 8):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    model = as_model(net)
    result = find_patches(
        model, open_data([str(tmp_path)]), make_plan(model, MaxPatchesSpec(batch_size=2))
    )
    assert result.images == 6
    assert [Path(path).name for path, _message in result.errors] == ["0.png", "4.png", "8.png"]
    assert {p.index for entry in result.filters for p in entry.patches} == {1, 2, 3, 5, 6, 7}


def test_several_patches_of_one_image_need_the_max_score(net: Branches, data: ImageData) -> None:
    model = as_model(net)
    with pytest.raises(UsageError, match="--per-image 2 needs --score max"):
        make_plan(model, MaxPatchesSpec(score=Ranking.NORM, per_image=2))
    result = find_patches(model, data, make_plan(model, MaxPatchesSpec(per_image=2, top=9)))
    most = max(
        sum(p.index == patch.index for p in entry.patches)
        for entry in result.filters
        for patch in entry.patches
    )
    assert most == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["lost"]}, "no layer 'lost' in net; the nearest are last"),
        ({"layers": ["stem"], "filters": ["4"]}, "channel 4 .* 'stem' has channels 0 to 3"),
        ({"filters": ["random:99"]}, "asks for 99 filters; there are 15"),
        ({"filters": ["x"]}, "'x'"),
        ({"top": 0}, "--top 0"),
        ({"per_image": 0}, "--per-image 0"),
        ({"layers": ["st*x"]}, "no layer matches"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    net: Branches, options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(as_model(net), MaxPatchesSpec(**options))  # type: ignore[arg-type]


def test_filters_are_chosen_per_layer_by_number_or_drawn_from_all(net: Branches) -> None:
    model = as_model(net)
    assert dict(make_plan(model, MaxPatchesSpec()).filters) == {
        "stem": (0, 1, 2, 3), "wide": (0, 1, 2), "narrow": (0, 1, 2), "last": (0, 1, 2, 3, 4),
    }  # fmt: skip
    chosen = make_plan(
        model,
        MaxPatchesSpec(
            layers=(
                "stem",
                "last",
            ),
            filters=("1,2",),
        ),
    ).filters
    assert dict(chosen) == {"stem": (1, 2), "last": (1, 2)}
    assert dict(make_plan(model, MaxPatchesSpec(filters=("last:3",))).filters) == {"last": (3,)}
    drawn = make_plan(model, MaxPatchesSpec(filters=("random:6",), seed=1)).filters
    assert sum(map(len, drawn.values())) == 6
    assert drawn == make_plan(model, MaxPatchesSpec(filters=("random:6",), seed=1)).filters


def test_scanning_some_filters_gives_what_scanning_all_gives_for_them(
    net: Branches, data: ImageData
) -> None:
    model = as_model(net)
    every = dict(entries(find_patches(model, data, make_plan(model, MaxPatchesSpec()))))
    some = dict(
        entries(find_patches(model, data, make_plan(model, MaxPatchesSpec(filters=("last:1,4",)))))
    )
    assert some == {key: every[key] for key in (("last", 1), ("last", 4))}


def test_a_linear_layer_counts_as_maps_of_one_unit(net: Branches, data: ImageData) -> None:
    model = as_model(net)
    spec = MaxPatchesSpec(layers=("head",), top=1, crop=Crop.RECEPTIVE_FIELD)
    result = find_patches(model, data, make_plan(model, spec))
    for entry in result.filters:
        assert (entry.patches[0].unit, entry.patches[0].box) == ((0, 0), (0, 0, *SIZE))
    logits = torch.cat([model.logits(pixels_of(e.path).float()[None]) for e in data.examples])
    found = [entry.patches[0].score for entry in result.filters]
    assert found == pytest.approx(logits.amax(0).tolist(), rel=1e-5)


def test_images_with_one_unit_give_one_patch_however_many_are_allowed(
    net: Branches, data: ImageData
) -> None:
    model = as_model(net)
    plan = make_plan(model, MaxPatchesSpec(layers=("head",), top=len(data) + 5, per_image=3))
    for entry in find_patches(model, data, plan).filters:
        assert sorted(patch.index for patch in entry.patches) == list(range(len(data)))
        assert all(math.isfinite(patch.score) for patch in entry.patches)


def test_gradient_energy_of_a_convolution_is_its_weights_squared() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2)
    model = as_model(nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(2)))
    model.logits(torch.zeros(1, 3, *SIZE))
    layout = Layouts(model).of(["0"])["0"]
    energy = gradient_energy(model, "0", layout, [1, 3], [(2, 4), (0, 0)], torch.rand(2, 3, *SIZE))
    weights = conv.weight.detach().double().square().sum(1)
    for image, (channel, y, x) in enumerate([(1, 4, 8), (3, 0, 0)]):
        wanted = torch.zeros(SIZE, dtype=torch.float64)
        wanted[y : y + 3, x : x + 3] = weights[channel]
        torch.testing.assert_close(energy[image], wanted)


@pytest.mark.parametrize("seed", range(5))
def test_the_energy_box_carries_its_share_and_no_side_can_move_in_by_the_rule(seed: int) -> None:
    energy = torch.rand(13, 17, generator=torch.Generator().manual_seed(seed)).double() ** 8
    box = box_of_energy(energy)
    assert box is not None
    y0, x0, y1, x1 = box
    assert energy[y0:y1, x0:x1].sum() >= SHARE * energy.sum()
    outside = [energy[: y0 + 1], energy[y1 - 1 :], energy[:, : x0 + 1], energy[:, x1 - 1 :]]
    assert all(part.sum() > (1 - SHARE) / 4 * energy.sum() for part in outside)


def test_no_energy_has_no_box_and_a_point_has_its_pixel() -> None:
    energy = torch.zeros(5, 6).double()
    assert box_of_energy(energy) is None
    energy[3, 2] = 1e-30
    assert box_of_energy(energy) == (3, 2, 4, 3)


def test_effective_crop_narrows_large_fields_and_leaves_small_ones(
    net: Branches, data: ImageData
) -> None:
    model = as_model(net)
    plan = make_plan(
        model,
        MaxPatchesSpec(
            layers=(
                "stem",
                "head",
            ),
            top=2,
            crop=Crop.RECEPTIVE_FIELD,
        ),
    )
    exact = dict(entries(find_patches(model, data, plan)))
    narrowed = dict(
        entries(
            find_patches(model, data, replace(plan, spec=replace(plan.spec, crop=Crop.EFFECTIVE)))
        )
    )
    assert exact["stem", 0].patches == narrowed["stem", 0].patches
    assert exact["head", 0].patches[0].box == (0, 0, *SIZE)
    assert narrowed["head", 0].patches[0].box != (0, 0, *SIZE)


class Untraced(nn.Module):
    """Its control flow depends on the pixels, so no graph of it can be made."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            x = -x
        return self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


def test_a_network_without_a_graph_needs_the_effective_crop(data: ImageData) -> None:
    model = as_model(Untraced())
    plan = make_plan(model, MaxPatchesSpec(top=2, crop=Crop.RECEPTIVE_FIELD))
    with pytest.raises(CnnvizError, match="use --crop effective, which does not need it"):
        find_patches(model, data, plan)
    result = find_patches(model, data, replace(plan, spec=replace(plan.spec, crop=Crop.EFFECTIVE)))
    for entry in result.filters:
        for patch in entry.patches:
            y, x = patch.unit
            y0, x0, y1, x1 = patch.box
            assert y <= y0 < y1 <= y + 3
            assert x <= x0 < x1 <= x + 3


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(
    net: Branches, data: ImageData
) -> None:
    cramped = Branches()
    cramped.load_state_dict(net.state_dict())
    refused = []

    def refuse(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > 4:
            refused.append(len(inputs[0]))
            raise torch.OutOfMemoryError("out of memory")

    cramped.last.register_forward_pre_hook(refuse)
    roomy, tight = as_model(net), as_model(cramped)
    whole = find_patches(roomy, data, make_plan(roomy, MaxPatchesSpec(batch_size=16)))
    assert find_patches(tight, data, make_plan(tight, MaxPatchesSpec(batch_size=16))) == whole
    assert refused == [16, 8]
