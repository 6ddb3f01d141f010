import argparse
import datetime
import enum
import functools
import gzip
import json
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.files import checkpoints
from cnnviz.core.models.files.checkpoints import read_shards, read_state_dicts
from cnnviz.core.models.files.kinds import MAX_SHARDS, Kind, kind_of, shards
from cnnviz.core.models.fitting import choose


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
    return read_state_dicts(path, kind_of(path))[0].tensors


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


def test_settings_and_numbers_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    state = network().state_dict()
    content = {
        "model": state,
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), nested=SimpleNamespace(a=[1, 2])),
        "best": np.float32(0.5),
        "curve": np.arange(5.0),
        "counts": defaultdict(int, a=3),
        "when": datetime.datetime(2026, 1, 1),
        "left": deque([1, 2]),
    }
    for zipped in (True, False):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        assert same(read(tmp_path / "a.pth"), dict(state))


class Namespace(Evil):
    """Evil under the name of something harmless: the name is all that a file can give."""


def test_what_a_harmless_name_is_given_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"model": network().state_dict(), "args": Namespace(mark)}, tmp_path / "a.pth")
    with pytest.raises(CnnvizError, match="refused to read"):
        read(tmp_path / "a.pth")
    assert not mark.exists()


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
    with pytest.raises(CnnvizError, match="is not a checkpoint: neither a PyTorch file"):
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
    with pytest.raises(CnnvizError, match="holds no state dict at the top or under"):
        read(tmp_path / "a.pth")


class Settings:
    """Of a package that is not installed where the file is read."""

    def __init__(self) -> None:
        self.rate, self.parts = 0.1, [1, 2]


class Stage(enum.Enum):
    FIT = "fit"


def lightning(strange: object, net: nn.Module | None = None) -> dict[str, object]:
    """A checkpoint as Lightning's Trainer writes it, with hyper-parameters that are objects."""
    state = {f"net.{name}": value for name, value in (net or network()).state_dict().items()}
    # Before 3.11.4 an enum's member was pickled as a call of getattr, which is refused.
    stages = {Stage.FIT: 1} if sys.version_info >= (3, 11, 4) else {}
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": {"best": Path("a.ckpt")}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"model": strange, "stages": stages},
    }


def test_lightning_checkpoints_with_objects_in_them_give_their_weights(tmp_path: Path) -> None:
    net = network()
    partial = functools.partial(torch.optim.Adam, lr=0.1)
    for strange in (Settings(), partial, [Settings(), Settings], {"a": {"b": Settings()}}):
        torch.save(lightning(strange, net), tmp_path / "a.ckpt")
        found = read_state_dicts(tmp_path / "a.ckpt", Kind.PICKLE)
        assert found[0].key == "state_dict"
        enums = sys.version_info < (3, 11, 4) or "Stage" in "".join(found[0].omitted)
        assert enums
        fitted = choose(found, network(), None, tmp_path / "a.ckpt")
        assert same(fitted.tensors, dict(net.state_dict()))
        assert any("skipped objects other than tensors: " in note for note in fitted.notes)


def test_objects_that_do_harm_are_refused_among_lightnings_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for strange in (Evil(mark), [Settings(), Namespace(mark)], Evaluated()):
        torch.save(lightning(strange), tmp_path / "a.ckpt")
        with pytest.raises(CnnvizError, match="refused to read"):
            read(tmp_path / "a.ckpt")
        assert not mark.exists()


class Evaluated:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1 / 0",)


def test_weights_that_are_objects_themselves_are_refused(tmp_path: Path) -> None:
    content = {"state_dict": Settings(), "epoch": 1}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CnnvizError, match=r"holds more than tensors .*Settings"):
        read(tmp_path / "a.ckpt")


def npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, **{name: value.numpy() for name, value in network().state_dict().items()})


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("metadata.json", "config.json", "model.weights.h5"):
            archive.writestr(name, "{}")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net.pth", b"x")


def arrays(path: Path) -> None:
    torch.save({"model": {k: v.numpy() for k, v in network().state_dict().items()}}, path)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "npz": (npz, r"is an archive of numpy arrays \(\.npz\), not a checkpoint of PyTorch; save"),
    "keras": (keras, r"is a network of Keras \(\.keras\)"),
    "zip": (zipped, r"is a zip archive that holds net\.pth"),
    "arrays": (arrays, "holds numpy arrays instead of tensors; save them as tensors"),
    "protocol": (
        lambda path: torch.save(network().state_dict(), path, pickle_protocol=4),
        "saved with pickle protocol 4 or 5, which torch's restricted unpickler does not read",
    ),
    "npy": (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "is an array of numpy"),
    "h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    "gguf": (lambda path: path.write_bytes(b"GGUF\3\0\0\0"), "is a GGUF file"),
    "lite": (lambda path: path.write_bytes(b"\x20\0\0\0TFL3"), "is a TensorFlow Lite file"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(b"x")), "is compressed by gzip"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_others_are_called_what_they_are(tmp_path: Path, kind: str) -> None:
    write, message = OTHERS[kind]
    write(tmp_path / "a.pth")
    with pytest.raises(CnnvizError, match=message):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["model.safetensors", "optimizer.pt"], r"name the file in it: .*model\.safetensors"),
        (["m-1.safetensors", "m.safetensors.index.json"], r"in it: .*\.index\.json"),
        ([".metadata", "__0_0.distcp"], "format_utils.dcp_to_torch_save"),
        (["notes.txt"], "is a folder; it holds no checkpoint"),
    ],
)
def test_a_folder_is_told_from_the_file_in_it(
    tmp_path: Path, files: list[str], message: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=message):
        kind_of(tmp_path)


def sharded(folder: Path) -> dict[str, Tensor]:
    """The network's weights in two files and their index."""
    state = dict(network().state_dict())
    names, where = list(state), {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        file = f"m-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return state


@pytest.mark.parametrize(
    "name",
    ["m.safetensors.index.json", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"],
)
def test_a_checkpoint_in_shards_is_read_from_its_index_or_any_of_them(
    tmp_path: Path, name: str
) -> None:
    state, path = sharded(tmp_path), tmp_path / name
    assert same(read_shards(shards(path)).tensors, state)


def test_shards_that_are_missing_outside_or_double_are_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    first, second = (tmp_path / f"m-{k:05}-of-00002.safetensors" for k in (1, 2))
    second.rename(tmp_path / "gone")
    message = (
        r"is part of a checkpoint in 2 files, of which m-00002-of-00002\.safetensors is not in"
    )
    for path in (first, tmp_path / "m.safetensors.index.json"):
        with pytest.raises(UsageError, match=message):
            shards(path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(CnnvizError, match=r"holds 0\.bias, .*as another part does, too"):
        read_shards(shards(first))
    index = tmp_path / "x.index.json"
    for content, problem in (
        ({"weight_map": {"a": "../a.safetensors"}}, r"lists '\.\./a\.safetensors', which is not"),
        ({"weight_map": {"a": "x.index.json"}}, "lists 'x.index.json', which is not"),
        ({"weight_map": {str(k): f"{k}.bin" for k in range(MAX_SHARDS)}}, "at most 10,000 are"),
        ({}, "it has no weight_map"),
        ([], "it has no weight_map"),
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(CnnvizError, match=problem):
            shards(index)
