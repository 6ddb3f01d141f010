"""Networks by timm's and Hugging Face's names, and ONNX files: the libraries' own numbers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from cnnviz.cli.main import app
from cnnviz.core import load_model
from cnnviz.core.data.images import read_image
from cnnviz.core.errors import CnnvizError, UsageError

pytestmark = pytest.mark.needs("timm", "transformers", "onnx", "onnxruntime")
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
constants = pytest.importorskip("huggingface_hub").constants
onnx = pytest.importorskip("onnx")
helper = pytest.importorskip("onnx.helper")

SIDE = 64


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> str:
    """Neither square nor of a round size."""
    values = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    large = Image.fromarray(values).resize((317, 231), Image.Resampling.BICUBIC)
    large.save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def put(hub: Path, repo: str, **files: bytes) -> None:
    """Lays files into the cache, as a download leaves them."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    snapshot = folder / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name.replace("__", ".")).write_bytes(content)


def saved(module: nn.Module, tmp_path: Path) -> bytes:
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / "s")
    return (tmp_path / "s").read_bytes()


def test_timm_without_weights_on_disk_is_one_line_that_says_where_they_belong(hub: Path) -> None:
    message = (
        r"\Athe weights r160_in1k of timm:test_resnet are not on disk and could not.*"
        rf"looked for timm/test_resnet\.r160_in1k in {hub}.*--checkpoint FILE[^\n]*\Z"
    )
    with pytest.raises(CnnvizError, match=message):
        load_model("timm:test_resnet")


def test_timms_own_weights_preprocessing_and_class_names(
    hub: Path, tmp_path: Path, photo: str
) -> None:
    own = timm.create_model("test_resnet").eval()
    nn.init.normal_(own.get_classifier().weight, std=0.3)
    put(hub, "timm/test_resnet.r160_in1k", model__safetensors=saved(own, tmp_path))
    config = timm.data.resolve_model_data_config(own)
    transform = timm.data.create_transform(**config)
    expected = own(transform(Image.open(photo).convert("RGB"))[None])
    for name, options in (
        ("timm:test_resnet", {}),
        ("timm:test_resnet.r160_in1k", {}),
        ("timm:test_resnet", {"weights": "r160_in1k"}),
        ("timm:test_resnet", {"checkpoint": tmp_path / "s"}),
    ):
        model = load_model(name, **options)  # type: ignore[arg-type]
        image = read_image(photo, model.preprocess)
        torch.testing.assert_close(
            model.logits(model.preprocess.normalise(image.pixels)[None]), expected
        )
    model = load_model("timm:test_resnet")
    assert model.labels[1] == "goldfish, Carassius auratus"
    assert model.input_size == (160, 160)
    assert model.name == "timm:test_resnet"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet19", {}, "no model 'timm:resnet19'; the nearest are timm:resnet"),
        ("timm:resnet18.mine", {}, "no weights 'mine' for timm:resnet18; there are a1_in1k"),
        ("timm:resnet18", {"weights": "mine"}, "no weights 'mine' for timm:resnet18; there are"),
        ("timm:nest_tiny", {"size": 90, "weights": "none"}, "for --size 90x90: `patch_size`"),
        ("hf:.", {}, "there is no config.json in that folder"),
    ],
)
def test_names_that_do_not_exist(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(name, **options)


def test_timm_with_another_head_size_and_channels(tmp_path: Path) -> None:
    own = timm.create_model("test_vit", num_classes=7, img_size=96).eval()
    save_file(own.state_dict(), tmp_path / "seven.safetensors")
    model = load_model("timm:test_vit", checkpoint=tmp_path / "seven.safetensors", size=96)
    assert model.classes == 7
    images = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(model.logits(images), own(images))


T = transformers
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SMALL, "intermediate_size": 64, "image_size": SIDE, "patch_size": 16}
SQUARE = {"height": SIDE, "width": SIDE}
NETWORKS: dict[str, tuple[Any, Any]] = {
    "resnet": (
        T.ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, layer_type="basic"),
        T.ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=0.875),
    ),
    "convnext": (
        T.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        T.ConvNextImageProcessor(size={"shortest_edge": 384}),
    ),
    "vit": (transformers.ViTConfig(**VIT), transformers.ViTImageProcessor(size=SQUARE)),
    "swin": (
        T.SwinConfig(image_size=SIDE, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4),
        transformers.ViTImageProcessor(size=SQUARE, image_mean=[0.4, 0.5, 0.6]),
    ),
    "beit": (T.BeitConfig(**VIT), T.BeitImageProcessor(size=SQUARE, do_center_crop=False)),
    "deit": (
        T.DeiTConfig(**VIT),
        T.DeiTImageProcessor(size={"height": 73, "width": 73}, crop_size=SQUARE),
    ),
    "mobilenet_v2": (
        T.MobileNetV2Config(depth_multiplier=0.35),
        T.MobileNetV2ImageProcessor(size={"shortest_edge": 73}, crop_size=SQUARE),
    ),
    "efficientnet": (
        T.EfficientNetConfig(
            width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320, image_size=SIDE
        ),
        T.EfficientNetImageProcessor(size=SQUARE),
    ),
    "regnet": (
        T.RegNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8, groups_width=8),
        T.ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=0.875),
    ),
    "dinov2": (
        T.Dinov2Config(**{**VIT, "patch_size": 8}),
        T.BitImageProcessor(size={"shortest_edge": 73}, crop_size=SQUARE),
    ),
}


def hugging_face(name: str, folder: Path) -> tuple[Any, Any]:
    config, processor = NETWORKS[name]
    config.id2label = {0: "cat", 1: "dog", 2: "<script>"}
    torch.manual_seed(0)
    if name == "deit":  # of which the library has several
        config.architectures = ["DeiTForImageClassification"]
    network = T.AutoModelForImageClassification.from_config(config).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2) if parameter.dim() > 1 else None
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return network, processor


@pytest.mark.parametrize("name", NETWORKS)
def test_hugging_face_folders_give_the_librarys_numbers(
    name: str, tmp_path: Path, photo: str
) -> None:
    folder = tmp_path / name
    network, processor = hugging_face(name, folder)
    with Image.open(photo) as picture, torch.no_grad():
        own = processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        expected = network(own).logits
    model = load_model(f"hf:{folder}")
    assert model.labels == ("cat", "dog", "<script>")
    image = read_image(photo, model.preprocess)
    pixels = model.preprocess.normalise(image.pixels)[None]
    assert pixels.shape == own.shape
    # The library resizes tensors, and rounds otherwise than Pillow.
    assert (pixels - own).abs().mean() < 0.02 * own.std()
    torch.testing.assert_close(model.logits(own), expected)
    assert not any("prepares images" in note for note in model.notes)


@pytest.mark.parametrize("name", NETWORKS)
def test_commands_on_hugging_faces_networks_answer_or_refuse_in_a_line(
    name: str, tmp_path: Path, photo: str
) -> None:
    folder = tmp_path / name
    hugging_face(name, folder)
    data = tmp_path / "data"
    for number in range(8):
        place = data / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(values).save(place / f"{number}.png")
    refused = {}
    for line in (
        ["occlude", photo, "--mask", "30", "--stride", "30"],
        ["layers"],
        ["filters", "--layer", "first"],
        ["activations", photo],
        ["saliency", photo, "--method", "gradient"],
        ["saliency", photo, "--method", "grad-cam"],
        ["max-patches", str(data), "--filters", "0-1", "--top", "2", "--crop", "effective"],
        ["ablate", str(data), "--filters", "*:0"],
        ["tsne", str(data), "--perplexity", "2"],
    ):
        out = ["--out", str(tmp_path / "out"), "--overwrite", "--quiet"]
        ran = CliRunner().invoke(app, [*line, "--model", f"hf:{folder}", *out])
        if ran.exit_code:
            assert isinstance(ran.exception, SystemExit | CnnvizError), (line, ran.exception)
            refused[line[0]] = str(ran.exception)
    assert "occlude" not in refused
    assert "saliency" not in refused
    assert "activations" not in refused, refused
    assert "max-patches" not in refused, refused


BACKBONES: dict[str, Any] = {
    "resnet": lambda: T.ResNetModel(NETWORKS["resnet"][0]),
    "vit": lambda: T.ViTModel(NETWORKS["vit"][0]),
    "dinov2": lambda: T.Dinov2Model(NETWORKS["dinov2"][0]),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_without_a_classifier_is_features_and_its_map_is_refused(
    name: str, tmp_path: Path, photo: str
) -> None:
    torch.manual_seed(0)
    BACKBONES[name]().eval().save_pretrained(tmp_path / "net")
    NETWORKS[name][1].save_pretrained(tmp_path / "net")
    source = f"hf:{tmp_path / 'net'}"
    with pytest.raises(CnnvizError, match=r"hold no classifier \(classifier.*tsne do without it"):
        load_model(source)
    model, other = (load_model(source, features=True, seed=seed) for seed in (0, 1))
    assert model.classes == 0
    assert model.unjudged == f"{source} has no classifier"
    assert "hold no classifier" in model.notes[0]
    assert model.weights_sha256 == other.weights_sha256  # nothing random is left
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(model.logits(images), other.logits(images))
    assert load_model(source, head="none").classes == model.logits(images).shape[1]
    for number in range(6):
        values = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    pictures = [str(tmp_path / f"{number}.png") for number in range(6)]
    out = ["--out", str(tmp_path / "out"), "--quiet", "--model", source]
    ran = CliRunner().invoke(app, ["tsne", *pictures, "--perplexity", "1", *out])
    assert ran.exit_code == 0, ran.output
    result = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert result["layer"] == "penultimate (output)"
    ran = CliRunner().invoke(app, ["occlude", photo, *out, "--overwrite"])
    assert "hold no classifier" in str(ran.exception)


def test_a_part_that_nobody_trained_is_refused(tmp_path: Path) -> None:
    network, _ = hugging_face("resnet", tmp_path / "net")
    state = {k: v for k, v in network.state_dict().items() if "stages.0" not in k}
    save_file(state, tmp_path / "net" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CnnvizError, match=r"lack resnet\.encoder\.stages\.0.* would be random"):
        load_model(f"hf:{tmp_path / 'net'}", features=True)


@pytest.mark.parametrize(
    ("problem", "head"),
    [
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", "none"),
        (None, "softmax"),
    ],
)
def test_what_the_configuration_says_about_the_outputs_is_read(
    problem: str | None, head: str, tmp_path: Path
) -> None:
    hugging_face("resnet", tmp_path / "net")
    file = tmp_path / "net" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"problem_type": problem}))
    model = load_model(f"hf:{tmp_path / 'net'}")
    assert model.head.name == head
    assert (f"the head is {head}, by the problem_type" in model.notes[0]) == (head != "softmax")
    assert load_model(f"hf:{tmp_path / 'net'}", head="softmax").head.name == "softmax"


def test_a_folder_of_timms_in_the_hubs_format(tmp_path: Path) -> None:
    own = timm.create_model("test_resnet", num_classes=2).eval()
    nn.init.normal_(own.get_classifier().weight, std=0.3)
    (tmp_path / "model.safetensors").write_bytes(saved(own, tmp_path))
    data = ("input_size", "mean", "std", "interpolation", "crop_pct", "classifier", "first_conv")
    config = {
        "architecture": "test_resnet",
        "num_classes": 2,
        "label_names": ["n01", "n02"],
        "label_descriptions": {"n01": "cat", "n02": "dog"},
        "pretrained_cfg": {key: own.pretrained_cfg[key] for key in data},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(f"hf:{tmp_path}")
    assert model.labels == ("cat", "dog")
    assert not any("prepares images" in note for note in model.notes)
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(model.logits(images), own(images))


def test_a_network_of_timm_without_classes_is_features(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import timm\ndef make(): return timm.create_model('test_resnet', num_classes=0)"
    )
    with pytest.raises(CnnvizError, match=r"net\.py:make has no classifier \(0 classes\)"):
        load_model(f"{tmp_path / 'net.py'}:make")
    assert load_model(f"{tmp_path / 'net.py'}:make", scores=False).classes == 0


def test_a_hugging_face_network_by_its_id_from_the_cache(hub: Path, tmp_path: Path) -> None:
    with pytest.raises(CnnvizError, match="could not be fetched: looked for a/b"):
        load_model("hf:a/b")
    network, _ = hugging_face("resnet", tmp_path / "made")
    files = {path.name.replace(".", "__"): path for path in (tmp_path / "made").iterdir()}
    put(hub, "a/b", **{name: path.read_bytes() for name, path in files.items()})
    images = torch.randn(2, 3, SIDE, SIDE)
    torch.testing.assert_close(load_model("hf:a/b").logits(images), network(images).logits)
    random = load_model("hf:a/b", weights="none", seed=3)
    assert not torch.allclose(random.logits(images), network(images).logits)


def test_hugging_face_folders_with_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hugging_face("vit", tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").unlink()
    model = load_model(f"hf:{tmp_path / 'vit'}")
    assert "does not define how to prepare images" in " ".join(model.notes)
    assert model.input_size == (SIDE, SIDE)
    weights = tmp_path / "vit" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CnnvizError, match=r"the weights of hf:.* cannot be read from"):
        load_model(f"hf:{tmp_path / 'vit'}")
    weights.unlink()
    with pytest.raises(CnnvizError, match=r"the weights of hf:.* cannot be read from"):
        load_model(f"hf:{tmp_path / 'vit'}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    with pytest.raises(UsageError, match=r"no config\.json .* PEFT's adapter: .*merge_and_unload"):
        load_model(f"hf:{tmp_path / 'adapter'}")
    (tmp_path / "text").mkdir()
    T.BertConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(CnnvizError, match="of the type 'bert', for which transformers has no"):
        load_model(f"hf:{tmp_path / 'text'}")
    (tmp_path / "code").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))  # nobody may agree to run it
    asked = {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
    (tmp_path / "code" / "config.json").write_text(json.dumps(asked))
    (tmp_path / "code" / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    with pytest.raises(CnnvizError, match="hf:"):
        load_model(f"hf:{tmp_path / 'code'}")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_that_comes_with_a_known_architecture_is_not_run(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    names = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")
    content = json.loads((tmp_path / file).read_text())
    content["auto_map"] = dict.fromkeys(names, "evil.Evil")
    content["_attn_implementation_internal"] = content["_attn_implementation"] = "some/kernel"
    (tmp_path / file).write_text(json.dumps(content))
    model = load_model(f"hf:{tmp_path}")
    assert model.classes == 3
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_labels": 10**9}, "num_labels is 1000000000; at most 1,000,000 classes"),
        ({"num_labels": 1_000_001}, "num_labels is 1000001; at most 1,000,000 classes"),
        ({"num_labels": "many"}, "num_labels is many; at most 1,000,000 classes"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1e\\+06; at most 10,000 are built"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers is 10001; at most 10,000 are built"),
        ({"model_type": "resnet", "depths": [1, 10**6]}, "depths is 1e\\+06; at most 10,000"),
        (
            {
                "model_type": "upernet",
                "backbone_config": {"model_type": "resnet", "depths": [10**9]},
            },
            "depths is 1e\\+09; at most 10,000",
        ),
    ],
)
def test_configurations_of_too_many_classes_or_layers_are_refused(
    content: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"} | content))
    with pytest.raises(CnnvizError, match=message):
        load_model(f"hf:{tmp_path}", weights="none")


@pytest.mark.parametrize(
    "content",
    [
        {"size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": 8, "width": 8193}},
        {"size": {"shortest_edge": 10**6}},
        {"size": {"height": 8, "width": 8}, "crop_size": {"height": 10**6, "width": 8}},
        {"size": {"height": "x", "width": 8}},
    ],
)
def test_image_processors_of_absurd_sizes_are_refused(
    content: dict[str, object], tmp_path: Path
) -> None:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    given = {"image_processor_type": "ViTImageProcessor"} | content
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    with pytest.raises(
        CnnvizError, match=r"at most 8,192|preprocessor_config\.json cannot be used"
    ):
        load_model(f"hf:{tmp_path}", weights="none")


def onnx_file(path: Path, batch: int | str = "n", outputs: int = 1, last: bool = False) -> Path:
    """Mean colours of the picture times a matrix, by hand."""
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
    shape = [batch, 8, 8, 3] if last else [batch, 3, 8, 8]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2] if last else [2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["logits"]),
        helper.make_node("Relu", ["logits"], ["other"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 4])
            for name in ("other", "logits")[2 - outputs :]
        ],
        [helper.make_tensor("w", onnx.TensorProto.FLOAT, [3, 4], matrix.flatten())],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    made.ir_version = 8
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("batch", "outputs"), [("n", 1), (1, 1), (5, 1), ("n", 2)])
def test_onnx_files_are_run_as_black_boxes(
    tmp_path: Path, batch: int | str, outputs: int, last: bool
) -> None:
    path = onnx_file(tmp_path / "net.onnx", batch, outputs, last)
    images = torch.rand(3, 3, 8, 8)
    right = images.mean((2, 3)) @ (torch.arange(12.0).reshape(3, 4) / 7)
    for options in ({"name": str(path)}, {"checkpoint": path}):
        model = load_model(**options)  # type: ignore[arg-type]
        assert model.input_size == (8, 8)
        assert model.notes[0] == (
            f"'{path}' does not define how to prepare images; assumed: as for ImageNet, "
            "resized to 8, mean 0.485,0.456,0.406, std 0.229,0.224,0.225 (--size, --mean, --std)"
        )
        torch.testing.assert_close(model.logits(images), right)
    if outputs == 2:
        other = load_model(str(path), output="other")
        torch.testing.assert_close(other.logits(images), right.clamp_min(0))


def test_onnx_occlusion_is_the_plain_loop_and_layers_are_refused(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    values = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "x.png")
    photo, model = str(tmp_path / "x.png"), ["--model", str(path), "--mean", "0", "--std", "1"]
    out = ["--out", str(tmp_path / "out"), "--quiet"]
    line = ["occlude", photo, "--mask", "4", "--stride", "4", "--fill", "black", "--score", "logit"]
    ran = CliRunner().invoke(app, [*line, "--target", "3", *model, *out])
    assert ran.exit_code == 0, ran.output
    entry = json.loads((tmp_path / "out" / "x" / "summary.json").read_text())["results"][0]
    assert entry["engine"] == "full"
    pixels = values.astype(np.float64) / 255
    matrix = np.arange(12).reshape(3, 4) / 7
    drops = []
    for y in (0, 4):
        for x in (0, 4):
            covered = pixels.copy()
            covered[y : y + 4, x : x + 4] = 0
            drops.append(((pixels - covered).mean((0, 1)) @ matrix)[3])
    assert entry["targets"][0]["max_drop"] == pytest.approx(max(drops), rel=1e-4)
    for command, words in (
        (["activations", photo, "--layer", "conv1"], "no visible layers"),
        (["saliency", photo, "--method", "gradient"], "cuts its gradient"),
        (["filters"], "has no convolutions"),
    ):
        ran = CliRunner().invoke(app, [*command, *model, "--out", str(tmp_path / command[0])])
        assert words in str(ran.exception) + ran.output


def test_onnx_files_that_cannot_be_run_are_refused_in_a_line(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "net.onnx")
    whole = path.read_bytes()
    for content in (b"text", whole[:60], whole[:-20], b""):
        path.write_bytes(content)
        with pytest.raises(CnnvizError, match=r"cannot be read|is empty"):
            load_model(str(path))
    with pytest.raises(UsageError, match="no checkpoint file"):
        load_model(str(tmp_path / "gone.onnx"))
    path.write_bytes(whole)
    with pytest.raises(UsageError, match="contains its own network: name it alone"):
        load_model("resnet18", checkpoint=path)
    with pytest.raises(CnnvizError, match="to have 3 channels, but got 4"):
        load_model(str(path)).logits(torch.rand(1, 4, 8, 8))
    words = helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [1, 16])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [1, 16])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [words], [out])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    made.ir_version = 8
    onnx.save(made, path)
    with pytest.raises(CnnvizError, match="it must take one batch of images"):
        load_model(str(path))
