"""Feature maps against a plain forward pass, their places against receptive fields, sheets."""

from dataclasses import replace

import networks
import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor, nn

from cnnviz.core.choices import Scaling
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.receptive_field import receptive_fields
from cnnviz.core.models.load import Model
from cnnviz.core.output.layout import board
from cnnviz.core.output.record import to_json
from cnnviz.core.output.sheets import STRIP, grid, matrix, sheet_cell
from cnnviz.filters.activations.figures import draw_maps, draw_overlays
from cnnviz.filters.activations.maps import Observer, nearest_units
from cnnviz.filters.activations.options import ActivationsSpec, MapOrder
from cnnviz.filters.channels import choose_filters
from cnnviz.filters.kernels.figures import draw_kernels
from cnnviz.filters.kernels.weights import examine

SIZE = (18, 22)


def network(inplace: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(inplace=inplace),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    ).eval()


def model_of(module: nn.Module) -> Model:
    return networks.model_of(module, SIZE, "abcd", mean=0.4, std=0.2)


def picture() -> WorkingImage:
    return networks.noise(SIZE)


def test_maps_are_what_the_layer_puts_out_even_before_an_inplace_relu() -> None:
    found = Observer(model_of(network()), ["0", "1", "2", "6"]).observe(picture())
    plain = network(inplace=False)
    value = model_of(plain).preprocess.normalise(picture().pixels)[None]
    expected: dict[str, Tensor] = {}
    for name, layer in plain.named_children():
        value = expected[name] = layer(value).detach()
    assert [layer.layer for layer in found.layers] == ["0", "1", "2", "6"]
    for layer in found.layers[:3]:
        assert torch.allclose(layer.maps_CHW, expected[layer.layer][0], atol=1e-6)
    assert (found.layers[0].maps_CHW < 0).any()
    assert found.layers[3].maps_CHW.shape == (4, 1, 1)
    assert torch.allclose(found.layers[3].maps_CHW.flatten(), expected["6"][0], atol=1e-6)


def test_numbers_of_each_channel_equal_a_plain_loop() -> None:
    found = Observer(model_of(network()), ["1"]).observe(picture())
    maps = found.layers[0].maps_CHW.numpy()
    entry = to_json(found)["layers"][0]
    for channel, numbers in enumerate(entry["per_channel"]):
        assert numbers["highest"] == pytest.approx(maps[channel].max(), rel=1e-5)
        assert numbers["mean"] == pytest.approx(maps[channel].mean(), rel=1e-5)
        assert numbers["sparsity"] == pytest.approx((maps[channel] == 0).mean(), rel=1e-5)
        row, column = numbers["peak_unit"]
        assert maps[channel, row, column] == maps[channel].max()
        # A 3x3 kernel with stride 2 and padding 1.
        y0, x0, y1, x1 = numbers["peak_box"]
        assert (y0, y1) == (max(0, 2 * row - 1), min(SIZE[0], 2 * row + 2))
        assert (x0, x1) == (max(0, 2 * column - 1), min(SIZE[1], 2 * column + 2))
    peaks = [maps[channel].max() for channel in entry["strongest"]]
    assert peaks == sorted(peaks, reverse=True)


def test_units_are_placed_at_the_centre_of_what_they_see() -> None:
    field = receptive_fields(network(), SIZE)["2"]
    rows, columns = nearest_units(field)
    for axis, (chosen, pixels) in enumerate(zip((rows, columns), SIZE, strict=True)):
        count = field.units[axis]
        for pixel in range(pixels):
            distances = []
            for unit in range(count):
                box = field.box(unit, 0) if axis == 0 else field.box(0, unit)
                distances.append(abs((box[axis] + box[axis + 2]) / 2 - (pixel + 0.5)))
            assert distances[int(chosen[pixel])] == min(distances)


def test_the_model_is_left_as_it_was_even_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    module = network()
    observer = Observer(model_of(module), ["0"])
    monkeypatch.setattr(module[6], "forward", lambda _x: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        observer.observe(picture())
    assert not any(layer._forward_hooks for layer in module.modules())


def test_bad_layers_and_values_are_refused() -> None:
    module = network()
    with pytest.raises(UsageError, match="no layer 'layer9' in net"):
        Observer(model_of(module), ["layer9"])
    tokens = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.Flatten(), nn.LazyLinear(4)).eval()
    tokens(torch.zeros(1, 3, *SIZE))
    with pytest.raises(UsageError, match="layer '1' of net returns 4x320, not channels of maps"):
        Observer(model_of(tokens), ["1"])
    observer = Observer(model_of(module), ["2"])
    with torch.no_grad():
        module[0].weight[0] = float("nan")
    with pytest.raises(CnnvizError, match=r"layer '2' gives values that are not finite"):
        observer.observe(picture())


@pytest.mark.parametrize(
    ("texts", "layers", "expected"),
    [
        (["3,0-2,3"], ["2"], {"2": (0, 1, 2, 3)}),
        (["all"], ["0", "2"], {"0": (0, 1, 2, 3, 4, 5), "2": (0, 1, 2, 3, 4)}),
        (["1", "4"], ["1"], {"1": (1, 4)}),
        (["6:3", "0"], ["2"], {"2": (0,), "6": (3,)}),
        (["1:all-but:1-5"], ["2"], {"1": (0,)}),
    ],
)
def test_filters_are_chosen_in_the_layers_given_or_in_their_own(
    texts: list[str], layers: list[str], expected: dict[str, tuple[int, ...]]
) -> None:
    chosen, layouts = choose_filters(model_of(network()), texts, layers)
    assert dict(chosen) == expected
    assert {name: layout.shape[0] for name, layout in layouts.items()} == {
        name: {"0": 6, "1": 6, "2": 5, "6": 4}[name] for name in expected
    }


def test_random_filters_are_drawn_from_the_layers_together() -> None:
    model = model_of(network())
    chosen, _ = choose_filters(model, ["random:11"], ["0", "2"])
    assert dict(chosen) == {"0": (0, 1, 2, 3, 4, 5), "2": (0, 1, 2, 3, 4)}
    first, again, other = (
        choose_filters(model, ["random:3"], ["0", "2"], seed)[0] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5-3", "the range '5-3' runs backwards; write 3-5"),
        ("1,5-3", "the range '5-3' in '1,5-3' runs backwards"),
        ("5-6", "channel 6 in '5-6' does not exist; layer '0' has channels 0 to 5"),
        ("a", "^invalid channel or range 'a'"),
        ("", "^invalid channel or range ''"),
        ("random:0", "invalid number of filters '0' in 'random:0'"),
        ("random:99", "'random:99' asks for 99 filters; there are 11"),
    ],
)
def test_filters_are_refused_in_the_words_that_were_typed(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose_filters(model_of(network()), [text], ["0", "2"])
    assert "0+2" not in str(caught.value)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = network(), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


def test_layers_that_do_not_run_are_refused() -> None:
    model = model_of(Idle().eval())
    with pytest.raises(
        UsageError, match="layer 'idle' does not run in a forward pass; name another"
    ):
        Observer(model, ["idle"])
    with pytest.raises(
        UsageError, match="layer 'idle' does not run in a forward pass; name another"
    ):
        choose_filters(model, ["idle:0"])


def test_every_tile_of_a_sheet_is_where_its_number_says() -> None:
    pictures = np.arange(50, dtype=np.uint8)[:, None, None] * np.ones((1, 5, 7), np.uint8)
    (axes,) = board([[sheet_cell(grid(pictures, "channel"), "", None)]]).axes
    pixels = np.asarray(axes.images[0].get_array())
    strip = round(STRIP * axes.figure.dpi / 72)
    numbers = []
    for text in axes.texts:
        x, y = text.get_position()
        numbers.append(int(text.get_text()))
        assert (pixels[int(y) - strip - 2, int(x) + 2] == numbers[-1]).all()
    assert numbers == list(range(50))


def test_every_kernel_of_a_matrix_is_in_its_row_and_column() -> None:
    pictures = np.arange(60, dtype=np.uint8).reshape(10, 6, 1, 1) * np.ones((1, 1, 3, 3), np.uint8)
    (axes,) = board([[sheet_cell(matrix(pictures, "filter", "input channel"), "", None)]]).axes
    pixels = np.asarray(axes.images[0].get_array())
    for y, row in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        for x, column in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True):
            number = int(row.get_text()) * 6 + int(column.get_text())
            assert (pixels[int(y), int(x)] == number).all()


def test_a_large_matrix_has_pages_with_the_right_numbers() -> None:
    pictures = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1) * np.ones((1, 3, 3, 3), np.uint8)
    pages = list(matrix(pictures, "filter", "input channel").pages())
    assert [page.numbers[0] for page in pages] == [0, 25, 50]
    for page in pages:
        assert page.pictures[::3, 0, 0].tolist() == list(page.numbers)
    assert sum(page.rows for page in pages) == 60


def test_thousands_of_maps_are_drawn_as_one_image() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2048, 3, stride=3)).eval()
    found = Observer(model_of(nn.Sequential(module, nn.Flatten(), nn.LazyLinear(4)).eval()), ["0"])
    layer = found.observe(picture()).layers[0]
    figure = draw_maps(layer, layer.order(strongest=False), ActivationsSpec(), picture())
    grey = [axes for axes in figure.axes if axes.images]
    assert len(grey) == 2  # the input and the sheet
    assert grey[1].images[0].get_array().shape[0] >= 32 * 6  # type: ignore[union-attr]


def test_pictures_of_signed_and_rectified_maps_state_their_scale() -> None:
    found = Observer(model_of(network()), ["0", "1"]).observe(picture())
    signed = ActivationsSpec(order=MapOrder.STRONGEST, signed=True)
    for layer, low in zip(found.layers, ("−1.0", "0"), strict=True):
        for spec, shown in ((signed, low), (replace(signed, signed=False), "0")):
            figure = draw_maps(layer, [0, 3], spec, picture())
            texts = [text.get_text() for text in figure.findobj(Text)]
            ends = [text for text in texts if text in ("−1.0", "0")]
            assert shown in ends
            assert ("−1.0" in ends) == (shown == "−1.0")
            assert any("activation ÷ the map's largest" in text for text in texts)
            assert {"3", "input"} <= set(texts)
    assert len(draw_overlays(found.layers[1], [0, 3, 5], picture(), signed).axes) == 4


@pytest.mark.parametrize("normalize", list(Scaling))
def test_zero_weights_are_mid_grey(normalize: Scaling) -> None:
    module = network()
    with torch.no_grad():
        module[2].weight[1] = 0
        module[0].weight[2, :, 1, 1] = 0
    for name in ("0", "2"):
        (figure,) = draw_kernels(examine(module, name), "net", normalize)
        pixels = np.asarray(figure.axes[0].images[0].get_array())
        assert (pixels == 128).all(axis=-1).any() if pixels.ndim == 3 else (pixels == 128).any()
