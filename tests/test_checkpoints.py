import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._export.verifier import SpecViolationError

from cnnviz.core import checkpoints
from cnnviz.core.archives import FixedBatch, open_archive
from cnnviz.core.checkpoints import Kind, fit, head_classes, kind_of, match_names, read_state_dict
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.exported import load_exported


class Evil:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def network(classes: int = 4) -> nn.Sequential:
    layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5, classes)).eval()


def read(path: Path) -> dict[str, Tensor]:
    return read_state_dict(path, kind_of(path))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict", "net"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_is_found_at_the_top_or_under_a_customary_key(
    tmp_path: Path, key: str | None, zipped: bool
) -> None:
    state = network().state_dict()
    content = state if key is None else {"epoch": 3, "best": 0.5, key: state}
    torch.save(content, tmp_path / "a.th", _use_new_zipfile_serialization=zipped)
    assert same(read(tmp_path / "a.th"), dict(state))


def test_safetensors_round_trip_whatever_the_suffix(tmp_path: Path) -> None:
    state = network().state_dict()
    for name in ("a.safetensors", "a.bin"):
        save_file(dict(state), tmp_path / name)
        assert kind_of(tmp_path / name) is Kind.SAFETENSORS
        assert same(read(tmp_path / name), dict(state))


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.model."])
def test_wrappers_prefixes_are_stripped_as_often_as_they_stand(prefix: str) -> None:
    state = dict(network().state_dict())
    wrapped = {prefix + name: value for name, value in state.items()}
    assert same(match_names(wrapped, state), state)


def test_prefix_that_belongs_to_the_network_or_to_some_names_alone_stays() -> None:
    own = {"model.a": torch.zeros(1), "model.b": torch.zeros(1)}
    assert match_names(own, ["model.a", "model.b"]).keys() == own.keys()
    some = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert match_names(some, ["a", "b"]).keys() == some.keys()
    assert match_names({}, ["a"]) == {}


def test_published_densenet_names_are_translated() -> None:
    wanted = ["features.denseblock1.denselayer1.norm1.weight", "classifier.bias"]
    given = {"features.denseblock1.denselayer1.norm.1.weight": torch.zeros(1)}
    given["classifier.bias"] = torch.zeros(1)
    assert set(match_names(given, wanted)) == set(wanted)


def test_fit_copies_every_tensor_and_forgives_missing_counters(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source, target = network(), network()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    fit(target, state, tmp_path, "net")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(source(x), target(x))


def test_misfit_lists_missing_unexpected_and_both_shapes(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    state["extra"] = state.pop("0.weight")
    state["5.weight"] = torch.zeros(7, 6)
    message = (
        r"'ck' does not fit the model net; missing: 0\.weight; unexpected: extra; "
        r"of another shape: 5\.weight \(file \(7, 6\), model \(4, 5\)\)"
    )
    with pytest.raises(CnnvizError, match=message):
        fit(network(), state, Path("ck"), "net")


def test_misfit_shows_the_first_three_names_and_counts_the_rest() -> None:
    with pytest.raises(CnnvizError, match=r"missing: 0\.weight, 0\.bias, 1\.weight and 5 more"):
        fit(network(), {}, Path("ck"), "net")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    state = dict(network().state_dict())
    state["5.bias"] = torch.tensor([0, value, 0, 0])
    with pytest.raises(CnnvizError, match=r"'ck' holds NaN or infinity in 5\.bias"):
        fit(network(), state, Path("ck"), "net")


def test_class_count_is_read_off_the_head() -> None:
    assert head_classes(network(4), network(9).state_dict()) == 9
    assert head_classes(network(4), network(4).state_dict()) is None
    other = dict(network(9).state_dict()) | {"0.weight": torch.zeros(5, 3, 5, 5)}
    assert head_classes(network(4), other) is None
    scalar = dict(network(4).state_dict()) | {"5.bias": torch.tensor(0.0)}
    assert head_classes(network(4), scalar) is None


def test_fingerprint_depends_on_values_names_types_and_shapes_alone() -> None:
    net = network()
    digest = checkpoints.weights_sha256(net)
    assert len(digest) == 64
    net[1].num_batches_tracked += 5
    assert checkpoints.weights_sha256(net) == digest
    assert checkpoints.weights_sha256(network().double()) != digest
    net[5].bias.data[0] += 1e-6
    assert checkpoints.weights_sha256(net) != digest


@pytest.mark.parametrize("form", ["pickle", "torch", "legacy", "nested"])
def test_pickle_with_code_is_refused_and_runs_nothing(tmp_path: Path, form: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Evil(mark)))
    elif form == "nested":
        torch.save({"state_dict": dict(network().state_dict()), "args": Evil(mark)}, path)
    else:
        torch.save(Evil(mark), path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CnnvizError, match=r"refused to read '.*evil\.pth': it holds more than"):
        read(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))  # noqa: S301
    assert mark.exists(), "the bait itself does nothing, so the test proves nothing"


def test_whole_pickled_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(CnnvizError, match=r"more than tensors .*save the network's state_dict"):
        read(tmp_path / "whole.pt")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "script", "exported"])
def test_truncated_file_is_one_line(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "cut"
    if kind == "safetensors":
        save_file(dict(network().state_dict()), path)
    elif kind == "script":
        scripted(path)
    elif kind == "exported":
        exported(path)
    else:
        torch.save(network().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: max(12, int(len(content) * share))])
    with pytest.raises(CnnvizError, match=r"^the checkpoint '.*cut' is truncated or dam") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with pytest.raises(UsageError, match=r"no checkpoint file '.*a\.pth'"):
        kind_of(path)
    path.touch()
    with pytest.raises(CnnvizError, match="is empty"):
        kind_of(path)
    path.write_text("<!DOCTYPE html><title>404</title>")
    with pytest.raises(CnnvizError, match="is no checkpoint: neither a PyTorch file"):
        kind_of(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CnnvizError, match="is a Git LFS pointer"):
        kind_of(path)
    path.write_bytes(b"PK\x03\x04 no zip at all")
    with pytest.raises(CnnvizError, match="is truncated or damaged"):
        kind_of(path)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {}}, 7])
def test_checkpoint_without_a_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CnnvizError, match="holds no state dict; it was looked for at the top and"):
        read(tmp_path / "a.pth")


def scripted(path: Path, net: nn.Module | None = None) -> nn.Module:
    net = net or network()
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 8, 8)), str(path))
    return net


def exported(
    path: Path, net: nn.Module | None = None, *, batch: int | None = None, size: int = 8
) -> nn.Module:
    net = net or network()
    dynamic = ({0: torch.export.Dim("batch")},) if batch is None else None
    program = torch.export.export(
        net, (torch.zeros(batch or 2, 3, size, size),), dynamic_shapes=dynamic
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    path.write_bytes(buffer.getvalue())
    return net


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


def test_exported_network_free_in_size_says_so(tmp_path: Path) -> None:
    dim = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        network(), (torch.zeros(2, 3, 8, 9),), dynamic_shapes=({0: dim, 2: dim, 3: dim},)
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


def altered(path: Path, entry: str, change: Callable[[bytes], bytes]) -> None:
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
    altered(tmp_path / "a.pt2", "sample_inputs/model.pt", lambda _: pickled(Evil(tmp_path / "m")))
    module = load_exported(tmp_path / "a.pt2").module
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(x), net(x))
    assert not (tmp_path / "m").exists()


def _pickled_weight(config: Any) -> None:
    next(iter(config["config"].values()))["use_pickle"] = True


def test_evil_weights_of_an_exported_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    exported(path)
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
        (_evil_size, "stands where a size should"),
        (_evil_target, "it uses 'torch.hub.load'"),
        (_evil_operator, "it uses 'torch.ops.aten.from_file.default'"),
        (_evil_name, "stands where a name should"),
        (_evil_spec, "does not take one tensor and give one"),
        (_evil_key, "stands where a name should"),
    ],
)
def test_exported_graph_with_code_in_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    exported(tmp_path / "a.pt2")
    altered(tmp_path / "a.pt2", "models/model.json", lambda text: edited(text, change))
    with pytest.raises(CnnvizError, match=f"refused to read .*{reason}"):
        load_exported(tmp_path / "a.pt2")
    assert not (tmp_path / "mark").exists()


def test_guards_of_an_exported_graph_are_dropped_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = exported(tmp_path / "a.pt2")

    def change(program: Any) -> None:
        program["guards_code"] = ["__import__('pathlib').Path('mark').touch() is None"]

    altered(tmp_path / "a.pt2", "models/model.json", lambda text: edited(text, change))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_exported(tmp_path / "a.pt2").module(x), net(x))
    assert not (tmp_path / "mark").exists()


def test_exported_archive_with_a_name_twice_or_compressed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    exported(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(archive.namelist()[0], b"x")
    with pytest.raises(CnnvizError, match="names in it stand twice"):
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
    for _ in range(40):
        (tmp_path / "a.pt2").write_bytes(whole)
        altered(tmp_path / "a.pt2", "model.json", lambda text: edited(text, one_change(generator)))
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
