import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models import checkpoints
from cnnviz.core.models.checkpoints import (
    Kind,
    fit,
    head_classes,
    kind_of,
    match_names,
    read_state_dict,
)


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
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_file_is_one_line(tmp_path: Path, kind: str, share: float) -> None:
    path, state = tmp_path / "cut", network().state_dict()
    if kind == "safetensors":
        save_file(dict(state), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
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
