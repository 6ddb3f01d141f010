"""What a weight file is, by its content; the files of a checkpoint that consists of several.

A checkpoint is recognised by its content, not by its suffix. Files of other libraries are whole but
not ours to read: the error says what they are.
"""

import re
import zipfile
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import from_json, read_text

SUFFIXES = frozenset({".pth", ".pt", ".th", ".ckpt", ".safetensors", ".pt2", ".onnx"})
SHOWN = 3
LONGEST = 120  # letters of a name that is shown
MAX_SHARDS, MAX_INDEX = 10_000, 64 * 2**20
"""Files of a checkpoint, and bytes of the index that lists them."""

_INDEX = ".index.json"
_SHARD = re.compile(r"(.*-)\d{5}-of-(?P<count>\d{5})(?P<end>\.\w+)")
_FOREIGN = {
    b"\x93NUMPY": "an array of numpy (.npy)",
    b"\x89HDF": "an HDF5 file (.h5, as Keras writes)",
    b"GGUF": "a GGUF file",
    b"TFL3": "a TensorFlow Lite file",
    b"\x1f\x8b": "compressed by gzip",
}
"""First bytes, or those after four, of files that are taken for checkpoints."""


class Kind(StrEnum):
    """The format of a weight file, by its content."""

    SAFETENSORS = "safetensors"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export archive"
    ONNX = "ONNX file"
    PICKLE = "checkpoint"
    INDEX = "index of shards"


def first_few(items: Iterable[str]) -> str:
    """Join the first few of some names, cut to `LONGEST`, and say how many more there are."""
    listed = list(items)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    shown = (name if len(name) <= LONGEST else name[:LONGEST] + "…" for name in listed[:SHOWN])
    return ", ".join(shown) + more


def damaged(path: Path, error: Exception) -> CnnvizError:
    """The error to raise for a checkpoint that its reader fails on."""
    return CnnvizError(f"the checkpoint '{path}' is truncated or damaged: {one_line(error)}")


def _kind_of_zip(path: Path) -> Kind:
    with zipfile.ZipFile(path) as archive:
        listed = archive.namelist()
    names = [name.partition("/")[2] or name for name in listed]
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return Kind.TORCHSCRIPT
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return Kind.EXPORTED
    if "data.pkl" in names or not listed:
        return Kind.PICKLE
    if all(name.endswith(".npy") for name in listed):
        raise _foreign(path, "an archive of numpy arrays (.npz)")
    if "model.weights.h5" in listed:
        raise _foreign(path, "a network of Keras (.keras)")
    raise _foreign(path, f"a zip archive that holds {first_few(listed)}")


def _foreign(path: Path, what: str) -> CnnvizError:
    """The error to raise for a file of another kind, which is not damaged."""
    return CnnvizError(
        f"'{path}' is {what}, not a checkpoint of PyTorch; save the network's state_dict() with "
        "torch.save, or as .safetensors"
    )


def _is_a_folder(path: Path) -> UsageError:
    """The error to raise for a folder, which names the file in it."""
    try:
        inside = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        return UsageError(f"'{path}' is a folder that cannot be read: {error.strerror or error}")
    if any(name.endswith(".distcp") for name in inside):
        return UsageError(
            f"'{path}' is a distributed checkpoint (.distcp); make one file of it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        )
    weights = [n for n in inside if n.endswith((_INDEX, ".bin")) or Path(n).suffix in SUFFIXES]
    best = sorted(weights, key=lambda name: not name.endswith(_INDEX))
    remedy = f"name the file in it: {path / best[0]}" if best else "it holds no checkpoint"
    return UsageError(f"'{path}' is a folder; {remedy}")


def parts_of(path: Path) -> list[str]:
    """The names of the files of a checkpoint in several, from its index or one of them, or none."""
    part = _SHARD.fullmatch(path.name)
    if path.name.endswith(_INDEX) and kind_of(path) is Kind.INDEX:
        return _indexed(path)
    if part and int(part["count"]) in range(2, MAX_SHARDS):
        count = int(part["count"])
        return [f"{part[1]}{k:05}-of-{count:05}{part['end']}" for k in range(1, count + 1)]
    return []


def shards(path: Path) -> list[Path]:
    """All files of a checkpoint in several, from its index or one of them; none for a whole one."""
    files = [path.with_name(name) for name in parts_of(path)]
    if lost := [file.name for file in files if not file.is_file()]:
        raise UsageError(
            f"'{path}' is part of a checkpoint in {len(files)} files, of which {first_few(lost)} "
            f"{'is' if len(lost) == 1 else 'are'} not in '{path.parent}'"
        )
    return files


def _indexed(path: Path) -> list[str]:
    """The names of the files that an index lists; all are in its folder."""
    if path.stat().st_size > MAX_INDEX:
        raise CnnvizError(f"'{path}' has more than {MAX_INDEX:,} bytes, too many for an index")
    try:
        content = from_json(read_text(path))
    except ValueError as error:
        raise damaged(path, error) from error
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise CnnvizError(f"'{path}' is not an index of shards: it has no weight_map")
    names = sorted({str(name) for name in files.values()})
    if odd := [name for name in names if Path(name).name != name or name.endswith(_INDEX)]:
        raise CnnvizError(f"'{path}' lists '{odd[0][:LONGEST]}', which is not a file in its folder")
    if len(names) >= MAX_SHARDS:
        raise CnnvizError(f"'{path}' lists {len(names):,} files; at most {MAX_SHARDS:,} are read")
    return names


def kind_of(path: Path) -> Kind:
    """Recognise the format of a file; raise if it is missing, empty, damaged or unknown."""
    if path.is_dir():
        raise _is_a_folder(path)
    if not path.is_file():
        raise UsageError(f"no checkpoint file '{path}'")
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CnnvizError(f"the checkpoint '{path}' is empty")
    if head.startswith(b"version https://git-lfs"):
        raise CnnvizError(f"'{path}' is a Git LFS pointer, not the file itself; run git lfs pull")
    return _kind_by(path, head)


def _kind_by(path: Path, head: bytes) -> Kind:
    """The format by suffix, where a format has no signature, and first bytes."""
    if path.suffix.lower() == ".onnx":  # a protocol buffer has no signature
        return Kind.ONNX
    if head.startswith(b"PK"):
        try:
            return _kind_of_zip(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise damaged(path, error) from error
    if path.name.endswith(_INDEX):
        return Kind.INDEX
    for magic, what in _FOREIGN.items():
        if magic in (head[: len(magic)], head[4:8]):
            raise _foreign(path, what)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return Kind.SAFETENSORS
    if head.startswith(b"\x80"):
        return Kind.PICKLE
    raise CnnvizError(
        f"'{path}' is not a checkpoint: neither a PyTorch file (.pth .pt .th .ckpt .pt2) "
        "nor .safetensors nor .onnx"
    )
