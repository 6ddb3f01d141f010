import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.serialize import serialize
from torch._export.verifier import SpecViolationError
from torch.nn import functional

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.files.archives import FixedBatch, open_archive
from cnnviz.core.models.files.exported import load_exported
from cnnviz.core.models.files.kinds import Kind, kind_of
from cnnviz.core.models.load import load_model
from cnnviz.embeddings.penultimate import FeatureExtractor
from cnnviz.filters.patches.options import MaxPatchesSpec
from cnnviz.filters.patches.scan import make_plan
from cnnviz.occlusion.engines.incremental.engine import IncrementalEngine
from cnnviz.occlusion.engines.network import prepare

# Entries of an archive, in today's form and in the one before torch 2.8.
PROGRAM = ("models/model.json", "serialized_exported_program.json")
SAMPLES = ("sample_inputs/model.pt", "serialized_example_inputs.pt")


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def network(classes: int = 4) -> nn.Sequential:
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5, classes)).eval()


def scripted(path: Path, net: nn.Module | None = None) -> nn.Module:
    net = net or network()
    with warnings.catch_warnings(action="ignore"):  # newer torch announces TorchScript's end
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 8, 8)), str(path))
    return net


def exported(
    path: Path, net: nn.Module | None = None, *, batch: int | None = None, size: int = 8
) -> nn.Module:
    net = net or network()
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    program = torch.export.export(
        net, (torch.zeros(batch or 2, 3, size, size),), dynamic_shapes=dynamic, strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    return net


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("make", [scripted, exported])
def test_truncated_archive_is_one_line(
    tmp_path: Path, make: Callable[[Path], nn.Module], share: float
) -> None:
    path = tmp_path / "cut"
    make(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CnnvizError, match=r"^the checkpoint '.*cut' is truncated or dam") as error:
        load_model(checkpoint=path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [scripted, exported])
def test_archive_gives_the_same_answers_for_any_number_of_images(
    tmp_path: Path, make: Callable[[Path], nn.Module]
) -> None:
    net = make(tmp_path / "a.pt")
    archive = open_archive(tmp_path / "a.pt", kind_of(tmp_path / "a.pt"))
    assert archive.module.eval() is archive.module
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 8, 8)
        assert torch.allclose(archive.module(x), net(x), atol=1e-6)
    assert archive.state.keys() == net.state_dict().keys()


def legacy(path: Path, extra: dict[str, bytes] | None = None) -> nn.Module:
    """An archive in the form that torch wrote before 2.8."""
    net = network()
    dynamic = ({0: torch.export.Dim("batch")},)
    saved = serialize(
        torch.export.export(net, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=dynamic, strict=False)
    )
    entries = {
        "serialized_exported_program.json": saved.exported_program,
        "serialized_state_dict.pt": saved.state_dict,
        "serialized_constants.pt": saved.constants,
        "serialized_example_inputs.pt": saved.example_inputs,
        "version": ".".join(map(str, SCHEMA_VERSION)).encode(),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (entries | (extra or {})).items():
            archive.writestr(name, content)
    return net


def test_exported_archive_of_torch_before_2_8_is_read_and_held_to_the_same(tmp_path: Path) -> None:
    path, evil = tmp_path / "a.pt2", pickled(Evil(tmp_path / "mark"))
    net = legacy(path, {"serialized_example_inputs.pt": evil})
    assert kind_of(path) is Kind.EXPORTED
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(load_exported(path).module(x), net(x))
    for name in ("serialized_state_dict.pt", "serialized_constants.pt"):
        legacy(path, {name: evil})
        with pytest.raises(CnnvizError, match=f"refused to read .*{name} in it holds more than"):
            load_exported(path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("batch", [1, 3])
def test_exported_network_of_fixed_batch_takes_any_number_of_images(
    tmp_path: Path, batch: int
) -> None:
    net = exported(tmp_path / "a.pt2", batch=batch)
    archive = open_archive(tmp_path / "a.pt2", Kind.EXPORTED)
    assert isinstance(archive.module, FixedBatch)
    assert archive.size == (8, 8)
    for count in (1, 3, 4):
        x = torch.randn(count, 3, 8, 8)
        assert torch.allclose(archive.module(x), net(x), atol=1e-6)


class Deeper(nn.Module):
    """Strides, a residual, a gate, a name with a hyphen in it, and both kinds of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.ModuleDict({"block-0": nn.Conv2d(8, 8, 3, padding=1, groups=2)})
        self.gate = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 6, 3, dilation=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 3, 2, 1)
        x = x + functional.silu(self.blocks["block-0"](x))
        x = x * self.gate(functional.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.head(functional.avg_pool2d(self.last(x), 2).mean((2, 3)))


def test_exported_network_has_windows_and_penultimate_features(tmp_path: Path) -> None:
    net = Deeper().eval()
    exported(tmp_path / "a.pt2", net, size=64)
    model = load_model(checkpoint=tmp_path / "a.pt2", device="cpu")
    prepared = prepare(model.module, (64, 64), device=torch.device("cpu"))
    assert prepared.reason is None
    image, fill = torch.randn(2, 3, 64, 64)
    boxes = torch.tensor([[0, 0, 7, 7], [20, 30, 27, 37], [57, 50, 64, 57]])
    covered = [image.clone() for _ in boxes]
    for picture, (y0, x0, y1, x1) in zip(covered, boxes.tolist(), strict=True):
        picture[:, y0:y1, x0:x1] = fill[:, y0:y1, x0:x1]
    with torch.inference_mode():
        wanted = net(torch.stack(covered))
    assert (wanted - net(image[None])).abs().max() > 1e-3
    engine = IncrementalEngine(prepared)
    rows, _columns = engine.plan(boxes.numpy()).axes
    assert min(int(spans.sizes.max()) for spans in rows.spans.values()) < 16
    torch.testing.assert_close(engine.run(image, fill, boxes).logits_PK, wanted)
    features, logits = FeatureExtractor(model)(torch.stack(covered))
    torch.testing.assert_close(logits, wanted)
    with torch.inference_mode():
        torch.testing.assert_close(net.head(features), wanted)


def test_what_an_archive_cannot_do_says_how_to_do_it(tmp_path: Path) -> None:
    exported(tmp_path / "a.pt2", batch=1)
    scripted(tmp_path / "a.pt")
    for name, reason in (("a.pt2", "its graph takes 1 image at a time"), ("a.pt", "TorchScript")):
        model = load_model(checkpoint=tmp_path / name, size=8, device="cpu")
        assert reason in str(prepare(model.module, (8, 8), device=torch.device("cpu")).reason)
        remedy = rf"^{name} is an archive, .* --model NAME --checkpoint {name}$"
        with pytest.raises(UsageError, match=remedy):
            FeatureExtractor(model)
        with pytest.raises(UsageError, match=remedy):
            make_plan(model, MaxPatchesSpec())


def test_exported_network_free_in_size_says_so(tmp_path: Path) -> None:
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        network(),
        (torch.zeros(2, 3, 8, 9),),
        dynamic_shapes=({0: dim, 2: dim, 3: dim},),
        strict=False,
    )
    torch.export.save(program, tmp_path / "a.pt2")
    archive = open_archive(tmp_path / "a.pt2", Kind.EXPORTED)
    assert archive.size is None
    assert archive.module(torch.zeros(1, 3, 20, 30)).shape == (1, 4)


def test_archive_with_nan_is_refused(tmp_path: Path) -> None:
    net = network()
    net[5].bias.data[1] = float("nan")
    for make in (scripted, exported):
        make(tmp_path / "a.pt2", net)
        with pytest.raises(CnnvizError, match=r"holds NaN or infinity in 5\.bias"):
            open_archive(tmp_path / "a.pt2", kind_of(tmp_path / "a.pt2"))


def test_network_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "a.pt2", network().train())
    with pytest.raises(CnnvizError, match=r"exported in training mode; call \.eval\(\) first"):
        load_exported(tmp_path / "a.pt2")


def altered(path: Path, entry: str | tuple[str, ...], change: Callable[[bytes], bytes]) -> None:
    """Rewrites one entry of an archive."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in contents if name.endswith(entry))
    contents[name] = change(contents[name])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, content in contents.items():
            archive.writestr(key, content)


def pickled(evil: Evil) -> bytes:
    buffer = io.BytesIO()
    torch.save((evil,), buffer)
    return buffer.getvalue()


def test_evil_sample_inputs_of_an_exported_network_are_never_read(tmp_path: Path) -> None:
    net = exported(tmp_path / "a.pt2")
    altered(tmp_path / "a.pt2", SAMPLES, lambda _: pickled(Evil(tmp_path / "m")))
    module = load_exported(tmp_path / "a.pt2").module
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(x), net(x))
    assert not (tmp_path / "m").exists()


def _pickled_weight(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def test_evil_weights_of_an_exported_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    exported(path)
    with zipfile.ZipFile(path) as archive:
        if "serialized_state_dict.pt" in archive.namelist():
            pytest.skip("torch before 2.8 has no raw weights to replace")
    altered(path, "weights/weight_0", lambda _: pickled(Evil(tmp_path / "mark")))
    altered(path, "model_weights_config.json", lambda text: edited(text, _pickled_weight))
    with pytest.raises(CnnvizError, match=r"refused to read .*'0\.weight' in it is pickled"):
        load_exported(path)
    assert not (tmp_path / "mark").exists()
    with pytest.raises(SpecViolationError, match=r"0\.weight is not an instance"):
        torch.export.load(path)
    assert (tmp_path / "mark").exists(), "torch itself is not fooled, so the test proves nothing"


def edited(text: bytes, change: Callable[[Any], None]) -> bytes:
    content = json.loads(text)
    change(content)
    return json.dumps(content).encode()


def _evil_size(program: Any) -> None:
    sizes = program["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
    sizes[0]["as_expr"]["expr_str"] = "__import__('pathlib').Path('mark').touch()"


def _evil_target(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"


def _evil_operator(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def _evil_name(program: Any) -> None:
    program["graph_module"]["graph"]["nodes"][0]["name"] = "x=open('mark','w')"


def _evil_spec(program: Any) -> None:
    root = program["graph_module"]["module_call_graph"][0]
    enum = '{"__enum__": true, "fqn": "os:X", "name": "Y"}'
    leaf = {"type": "builtins.dict", "context": enum, "children_spec": []}
    root["signature"]["in_spec"] = json.dumps([1, leaf])


def _evil_key(program: Any) -> None:
    program["graph_module"]["graph"]["tensor_values"]["a'); print('b"] = {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_evil_size, "is not a size"),
        (_evil_target, "it uses 'torch.hub.load'"),
        (_evil_operator, "it uses 'torch.ops.aten.from_file.default'"),
        (_evil_name, "is not a name"),
        (_evil_spec, "does not take one tensor and give one"),
        (_evil_key, "is not a name"),
    ],
)
def test_exported_graph_with_code_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "a.pt2")
    altered(tmp_path / "a.pt2", PROGRAM, lambda text: edited(text, change))
    with pytest.raises(CnnvizError, match=f"refused to read .*{reason}"):
        load_exported(tmp_path / "a.pt2")
    assert not (tmp_path / "mark").exists()


def test_guards_of_an_exported_graph_are_dropped_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = exported(tmp_path / "a.pt2")

    def change(program: Any) -> None:
        if "guards_code" not in program:
            pytest.skip("this torch writes no guards")
        program["guards_code"] = ["__import__('pathlib').Path('mark').touch() is None"]

    altered(tmp_path / "a.pt2", PROGRAM, lambda text: edited(text, change))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_exported(tmp_path / "a.pt2").module(x), net(x))
    assert not (tmp_path / "mark").exists()


def test_exported_archive_with_a_name_twice_or_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    exported(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"x")
    with pytest.raises(CnnvizError, match="two entries in it have one name"):
        load_exported(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/zeros", bytes(10_000))
    with pytest.raises(CnnvizError, match="it is compressed"):
        load_exported(path)


def test_exported_graphs_with_anything_changed_load_or_are_refused(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    exported(tmp_path / "a.pt2")
    whole = (tmp_path / "a.pt2").read_bytes()
    for _ in range(20):
        (tmp_path / "a.pt2").write_bytes(whole)
        altered(tmp_path / "a.pt2", PROGRAM, lambda text: edited(text, one_change(generator)))
        try:
            assert load_exported(tmp_path / "a.pt2").module is not None
        except CnnvizError as error:
            assert "a.pt2" in str(error)  # noqa: PT017


def one_change(generator: np.random.Generator) -> Callable[[Any], None]:
    """Goes down a random way in the JSON and puts something else at its end."""

    def change(content: Any) -> None:
        while True:
            keys = list(content) if isinstance(content, dict) else list(range(len(content)))
            key = keys[generator.integers(len(keys))]
            inner = content[key]
            if not isinstance(inner, dict | list) or not inner or generator.random() < 0.05:
                content[key] = (None, 7, "x", [], {}, -1, True)[generator.integers(7)]
                return
            content = inner

    return change
