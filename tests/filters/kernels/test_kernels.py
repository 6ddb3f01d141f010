"""What is read off weights, against plain loops and planted filters."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.filters.kernels.weights import choose_layers, examine, gabor_steps, kernels_of


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 7), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=2))


def planted() -> nn.Sequential:
    """Filter 2 dead, 5 a copy of 1, 7 of 3 turned negative, 9 an exact grey Gabor filter."""
    module = network()
    weight = module[0].weight.data
    weight[2] = 0
    weight[5] = 1.5 * weight[1]
    weight[7] = -weight[3]
    rows, columns = np.mgrid[:7, :7] - 3
    angle, length = np.deg2rad(40), 4.0
    across = columns * np.cos(angle) - rows * np.sin(angle)
    wave = np.exp(-(rows**2 + columns**2) / 8) * np.sin(2 * np.pi * across / length)
    weight[9] = torch.tensor(wave).float()
    return module


def test_planted_dead_duplicate_and_gabor_filters_are_found() -> None:
    report = examine(planted(), "0", gabor=True)
    assert report.dead == (2,)
    assert [d.filters for d in report.duplicates] == [(1, 5), (3, 7)]
    assert [d.cosine for d in report.duplicates] == pytest.approx([1, -1])
    assert report.gabor is not None
    assert [i for i, fit in enumerate(report.gabor.fits) if fit and fit.r2 > 0.7] == [9]
    fit = report.gabor.fits[9]
    assert fit is not None
    assert fit.orientation == pytest.approx(40, abs=3)
    assert fit.wavelength == pytest.approx(4, rel=0.05)
    assert report.gabor.fits[2] is None
    assert report.gabor.share == pytest.approx(1 / 12)
    assert report.gabor.share_by_chance == 0


def test_norms_duplicates_and_chromaticity_equal_plain_loops() -> None:
    module = planted()
    report = examine(module, "0")
    kernels = module[0].weight.detach().double()
    for index, kernel in enumerate(kernels):
        assert report.norms[index] == pytest.approx(float(kernel.pow(2).sum().sqrt()))
        if index == 2:
            assert report.chromaticity is not None
            assert report.chromaticity[index] == 0
            continue
        grey = torch.ones(3, dtype=torch.float64) / 3**0.5
        energy = sum(float(p @ p) for p in kernel.flatten(1).T)
        along = sum(float(p @ grey) ** 2 for p in kernel.flatten(1).T)
        assert report.chromaticity is not None
        assert report.chromaticity[index] == pytest.approx(1 - along / energy, abs=1e-5)
    pairs = []
    for i, j in itertools.combinations([i for i in range(12) if i != 2], 2):
        cosine = torch.cosine_similarity(kernels[i].flatten(), kernels[j].flatten(), dim=0)
        if abs(cosine) > 0.95:
            pairs.append((i, j))
    assert pairs == [d.filters for d in report.duplicates]


def test_grey_filters_have_no_colour_and_opponent_filters_nothing_else() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 5))
    pattern = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    module[0].weight.data = torch.stack(
        [pattern.expand(3, 5, 5), torch.stack([pattern, -pattern, 0 * pattern])]
    )
    assert examine(module, "0").chromaticity == pytest.approx([0, 1], abs=1e-6)


def test_filters_that_read_different_channels_are_no_duplicates() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    module[0].weight.data = module[0].weight.data[:1].expand(4, 2, 3, 3).clone()
    found = [d.filters for d in examine(module, "0").duplicates]
    assert found == [(0, 1), (2, 3)]


def test_duplicates_are_found_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = examine(planted(), "0").duplicates
    monkeypatch.setattr("cnnviz.filters.kernels.weights._CHUNK", 2)
    chunked = examine(planted(), "0").duplicates
    assert [d.filters for d in chunked] == [d.filters for d in whole]
    assert [d.cosine for d in chunked] == pytest.approx([d.cosine for d in whole])


def test_a_transposed_convolution_has_a_filter_per_output_channel() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
    kernels = kernels_of(layer)
    assert kernels.shape == (6, 2, 3, 3)
    for filter_index in range(6):
        alone = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
        image = torch.zeros(1, 4, 1, 1)
        image[0, (filter_index // 3) * 2 + 1] = 1
        alone.weight.data = layer.weight.data
        out = alone(image)[0, filter_index].detach().numpy()
        assert np.allclose(out, kernels[filter_index, 1])


def test_the_model_is_only_read() -> None:
    module = planted()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = examine(module, "0", gabor=True)
    report.kernels[...] = 0
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())


def test_advance_counts_all_gabor_steps() -> None:
    steps: list[int] = []
    examine(network(), "0", gabor=True, advance=steps.append)
    assert sum(steps) == gabor_steps(network(), "0") == 24
    assert gabor_steps(network(), "2") == 0


def test_layers_are_chosen_by_first_all_or_name() -> None:
    module = nn.Sequential(network(), nn.Linear(3, 3))
    assert choose_layers(module, "first", "net") == ["0.0"]
    assert choose_layers(module, "all", "net") == ["0.0", "0.2"]
    assert choose_layers(module, "0.2", "net") == ["0.2"]


def test_layers_without_kernels_and_models_without_convolutions_are_refused() -> None:
    module = nn.Sequential(network(), nn.Linear(3, 3))
    with pytest.raises(UsageError, match=r"'1' is a Linear and has no kernels.*0\.0, 0\.2"):
        choose_layers(module, "1", "net")
    with pytest.raises(UsageError, match=r"'0' is a Sequential and has no kernels.*0\.0"):
        choose_layers(module, "0", "net")
    with pytest.raises(
        UsageError,
        match=r"no layer '0\.7' in net; the nearest are 0\.2, .*; the last convolutions are 0\.2",
    ):
        choose_layers(module, "0.7", "net")
    for choice in ("first", "all"):
        with pytest.raises(CnnvizError, match=r"net has no convolutions.*cnnviz occlude"):
            choose_layers(nn.Sequential(nn.Linear(3, 3)), choice, "net")


def test_broken_weights_are_refused() -> None:
    module = network()
    module[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(CnnvizError, match=r"NaN or infinite"):
        examine(module, "0")
