"""layers, filters, activations and saliency from the outside: files, numbers, messages."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core.output.record import to_json
from cnnviz.filters.activations import results as maps
from cnnviz.filters.kernels import results as kernels
from cnnviz.filters.layers import results as layers
from cnnviz.gradients.options import Method

SCHEMAS = Path(__file__).parent.parent.parent / "docs" / "schemas"
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )

def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))

def moody():
    class Moody(nn.Sequential):
        def forward(self, x):
            out = super().forward(x)
            return out if out.sum() > 0 else -out
    return Moody(*make())
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(NET)
    return str(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    generator = np.random.default_rng(0)
    for number in range(4):
        place = root / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / f"photo{number}.png")
    return root


@pytest.fixture
def photo(photos: Path) -> str:
    return str(photos / "0" / "photo0.png")


@pytest.fixture
def options(net: str, tmp_path: Path) -> list[str]:
    out = str(tmp_path / "out")
    return ["--model", f"{net}:make", "--size", "16", "--device", "cpu", "--out", out, "--quiet"]


LOADERS: dict[str, Callable[[Path], Any]] = {
    "layers": layers.load,
    "filters": kernels.load,
    "activations": maps.load,
}


def checked(folder: Path, command: str) -> dict[str, Any]:
    """The summary, compared with its schema, the files that are there and what `load` reads."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    schema = json.loads((SCHEMAS / f"{command}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(content, schema)
    written = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert written == sorted([*content["files"], "summary.json"])
    if command in LOADERS:
        results = content["results"]
        entries = results if isinstance(results, list) else [results]
        plain = [{k: v for k, v in entry.items() if k != "folder"} for entry in entries]
        loaded = to_json(LOADERS[command](folder))
        assert (loaded if isinstance(loaded, list) else [loaded]) == plain
    return content


def fails(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Ends with this status and one line on stderr, which is returned."""
    assert run(arguments) == status
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    return error


def test_layers_lists_every_layer(options: list[str], tmp_path: Path) -> None:
    assert run(["layers", *options]) == 0
    results = checked(tmp_path / "out", "layers")["results"]
    assert [row["name"] for row in results["layers"]] == ["0", "1", "2", "3", "4", "5"]
    field = results["layers"][3]["receptive_field"]
    assert field == {
        "size": [10, 10],
        "jump": [4, 4],
        "start": [-2, -2],
        "first_unit": [0, 0, 8, 8],
    }
    assert results["layers"][4]["receptive_field"]["size"] == [None, None]
    table = (tmp_path / "out" / "layers.csv").read_text().splitlines()
    assert table[4] == "3,Conv2d,4x3x3,292,2592,1,10,10,4,4,-2,-2"
    assert table[5].endswith("inf,inf,inf,inf,-inf,-inf")


def test_layers_prints_a_table(
    net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["layers", "--model", f"{net}:make", "--image-size", "16x32", "--device", "cpu"]
    assert run([*line, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Conv2d" in shown
    assert "8x16x32" in shown


def test_layers_on_data_measures_activations_and_gradients(
    photos: Path, options: list[str], tmp_path: Path
) -> None:
    (photos / "0" / "broken.png").write_bytes(b"no image")
    assert run(["layers", str(photos), *options, "--gradients"]) == 1
    content = checked(tmp_path / "out", "layers")
    results = content["results"]
    assert results["data"] == {"images": 4, "labelled": 4, "gradients": True}
    rectified = results["layers"][1]
    assert 0.2 < rectified["activations"]["zeros"] < 0.8
    assert rectified["activations"]["values"] == 4 * 8 * 16 * 16
    assert rectified["gradients"]["values"] == 4 * 8 * 16 * 16
    assert [Path(error["input"]).name for error in content["errors"]] == ["broken.png"]
    assert "statistics.png" in content["files"]


def test_layers_of_a_network_that_cannot_be_traced(net: str, tmp_path: Path) -> None:
    line = ["layers", "--model", f"{net}:moody", "--size", "16", "--device", "cpu", "--quiet"]
    assert run([*line, "--out", str(tmp_path / "out")]) == 0
    results = checked(tmp_path / "out", "layers")["results"]
    assert "control flow" in results["untraceable"]
    assert all(row["receptive_field"] is None for row in results["layers"])


def test_layers_refuses_what_it_cannot_do(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "invalid image size '12x'" in fails(
        ["layers", *options, "--image-size", "12x"], 2, capsys
    )
    assert "does not run on images of 2x2" in fails(
        ["layers", *options, "--image-size", "2"], 2, capsys
    )
    assert "need DATA" in fails(["layers", *options, "--gradients"], 2, capsys)


def test_layers_takes_a_network_that_runs_at_the_image_size_alone(net: str, tmp_path: Path) -> None:
    Path(net).write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(2 * 8 * 4, 3))\n"
    )
    line = ["layers", "--model", f"{net}:make", "--size", "16", "--image-size", "8x4", "--quiet"]
    assert run([*line, "--out", str(tmp_path / "out")]) == 0
    assert checked(tmp_path / "out", "layers")["results"]["image_size"] == [8, 4]


def test_filters_draws_and_measures(options: list[str], tmp_path: Path) -> None:
    assert run(["filters", *options, "--layer", "all"]) == 0
    content = checked(tmp_path / "out", "filters")
    first, second = content["results"]["layers"]
    assert first["gabor"]["share"] == 0
    assert len(first["gabor"]["fits"]) == len(first["norms"]) == 8
    assert second["gabor"] is None
    assert second["chromaticity"] is None
    assert content["files"] == ["kernels.npz", "kernels_0.png", "gabor_0.png", "kernels_3.png"]


def test_filters_compares_models(options: list[str], net: str, tmp_path: Path) -> None:
    state = {"0.weight": torch.zeros(8, 3, 5, 5), "0.bias": torch.zeros(8)}
    state |= {"3.weight": torch.ones(4, 8, 3, 3), "3.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "other.pth")
    line = ["filters", *options, "--no-gabor", "--compare", f"{net}:make={tmp_path}/other.pth"]
    assert run(line) == 0
    content = checked(tmp_path / "out", "filters")
    assert content["results"]["compared"][0]["dead"] == list(range(8))
    assert content["results"]["layers"][0]["dead"] == []
    assert "comparison.png" in content["files"]


def test_filters_refuses_what_it_cannot_do(
    options: list[str], net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no layer 'layer9'" in fails(["filters", *options, "--layer", "layer9"], 2, capsys)
    assert "is a ReLU and has no kernels" in fails(["filters", *options, "--layer", "1"], 2, capsys)
    line = ["filters", *options, "--layer", "all", "--compare", "resnet18"]
    assert "--compare shows first layers" in fails(line, 2, capsys)
    line = ["filters", "--model", f"{net}:flat", "--size", "16", "--out", str(tmp_path / "x")]
    assert "has no convolutions" in fails(line, 1, capsys)


def test_activations_draws_several_layers_and_overlays(
    photo: str, options: list[str], tmp_path: Path
) -> None:
    line = ["activations", photo, *options, "--layer", "0", "--layer", "3", "--filters", "3,0"]
    assert run([*line, "--top", "2"]) == 0
    content = checked(tmp_path / "out" / "photo0", "activations")
    assert content["files"] == [
        "input.png",
        "maps_0.png",
        "overlay_0.png",
        "maps_3.png",
        "overlay_3.png",
        "activations.npz",
    ]
    arrays = np.load(tmp_path / "out" / "photo0" / "activations.npz")
    assert arrays["0"].shape == (8, 16, 16)
    assert (arrays["0"] < 0).any()
    assert len(content["results"][0]["layers"][1]["per_channel"]) == 4


def test_activations_of_several_images_go_on_after_a_bad_one(
    photos: Path, options: list[str], tmp_path: Path
) -> None:
    (photos / "0" / "broken.png").write_bytes(b"no image")
    assert run(["activations", str(photos), *options]) == 1
    content = checked(tmp_path / "out", "activations")
    assert len(content["results"]) == 4
    assert len(content["errors"]) == 1


def test_activations_refuses_what_it_cannot_do(
    photo: str, options: list[str], net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["activations", photo, *options]
    told = fails([*line, "--filters", "9"], 2, capsys)
    assert "channel 9 in '9' does not exist; layer '0' has channels 0 to 7" in told
    assert "nearest are" in fails([*line, "--layer", "33"], 2, capsys)
    assert "--top 0" in fails([*line, "--top", "0"], 2, capsys)
    moody = ["activations", photo, "--model", f"{net}:moody", "--size", "16", "--filters", "1"]
    assert "cannot place maps" in fails([*moody, "--out", str(tmp_path / "x")], 1, capsys)


@pytest.mark.parametrize("method", list(Method))
def test_saliency_writes_maps_of_each_target(
    method: Method, photo: str, options: list[str], tmp_path: Path
) -> None:
    assert run(["saliency", photo, *options, "--method", method, "--target", "top2"]) == 0
    content = checked(tmp_path / "out" / "photo0", "saliency")
    (entry,) = content["results"]
    assert entry["layer"] == ("3" if method.of_layer else None)
    assert entry["unit"] == method.unit
    assert len(entry["targets"]) == 2
    arrays = np.load(tmp_path / "out" / "photo0" / "saliency.npz")
    assert arrays["maps"].shape == (2, 16, 16)
    for target, shown in zip(entry["targets"], arrays["maps"], strict=True):
        assert shown[tuple(target["peak"])] == shown.max()
    assert arrays["raw"].shape[1:] == ((3, 3) if method.of_layer else (3, 16, 16))


def test_saliency_beside_occlusion_has_correlation_and_times(
    photo: str, options: list[str], tmp_path: Path
) -> None:
    line = ["saliency", photo, *options, "--compare", "occlusion", "--mask", "6", "--stride", "4"]
    assert run([*line, "--target", "1", "--target", "predicted"]) == 0
    content = checked(tmp_path / "out" / "photo0", "saliency")
    assert "comparison.png" in content["files"]
    for target in content["results"][0]["targets"]:
        assert target["comparison"]["with"] == "occlusion, mask 6, stride 4"
        assert abs(target["comparison"]["rank_correlation"]) <= 1
        assert target["comparison"]["other_seconds"] > 0


def test_saliency_refuses_what_it_cannot_do(
    photo: str, options: list[str], net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["saliency", photo, *options]
    assert "wolf" in fails([*line, "--target", "wolf"], 2, capsys)
    for option, method, needed in (
        ("--layer=3", "gradient", "grad-cam or grad-cam++ or layercam or score-cam"),
        ("--samples=9", "grad-cam", "smoothgrad"),
        ("--noise=0.1", "gradient", "smoothgrad"),
        ("--steps=9", "smoothgrad", "integrated-gradients"),
        ("--baseline=mean", "grad-cam", "integrated-gradients"),
    ):
        told = fails([*line, "--method", method, option], 2, capsys)
        assert f"{option.partition('=')[0]} needs --method {needed}; {method} has none" in told
    assert "need --compare" in fails([*line, "--mask", "3"], 2, capsys)
    grad_cam = [*line, "--method", "grad-cam"]
    assert "no layer 'layer9'" in fails([*grad_cam, "--layer", "layer9"], 2, capsys)
    flat = ["saliency", photo, "--model", f"{net}:flat", "--size", "16", "--method", "grad-cam"]
    message = fails([*flat, "--out", str(tmp_path / "x")], 1, capsys)
    assert "--method gradient, which works on any model" in message


@pytest.mark.parametrize("method", ["smoothgrad", "integrated-gradients"])
def test_a_missing_captum_is_named_with_its_extra(
    method: str,
    photo: str,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    told = fails(["saliency", photo, *options, "--method", method], 2, capsys)
    assert f"--method {method} needs the package captum: pip install '.[attribution]'" in told


@pytest.mark.pictures
@pytest.mark.parametrize("command", ["layers", "filters", "activations", "saliency"])
def test_json_is_all_that_stdout_carries_and_a_second_run_is_the_same(
    command: str,
    photo: str,
    options: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inputs = [photo] if command in ("activations", "saliency") else []
    extra = ["--no-gabor"] if command == "filters" else []
    line = [command, *inputs, *options, *extra, "--json"]
    assert run(line) == 0
    first = json.loads(capsys.readouterr().out)
    out = tmp_path / "out" / "photo0" if inputs else tmp_path / "out"
    pictures = {name: (out / name).read_bytes() for name in first["files"] if ".png" in name}
    assert "not empty" in fails(line, 2, capsys)
    assert run([*line, "--overwrite"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["results"] == first["results"]
    assert all((out / name).read_bytes() == data for name, data in pictures.items())


@pytest.mark.slow
def test_real_squeezenet_first_layer(assets: Path, tmp_path: Path) -> None:
    weights = str(assets / "weights" / "squeezenet1_1.pth")
    line = ["filters", "--model", "squeezenet1_1", "--checkpoint", weights, "--quiet"]
    assert run([*line, "--device", "cpu", "--out", str(tmp_path)]) == 0
    (layer,) = checked(tmp_path, "filters")["results"]["layers"]
    assert layer["dead"] == []
    assert layer["gabor"]["share"] > 0.9
    assert layer["gabor"]["share"] > layer["gabor"]["share_by_chance"] + 0.2
