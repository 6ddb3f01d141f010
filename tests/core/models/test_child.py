"""Files that would hang, exhaust or crash their reader: a line, within limits, and no traces."""

import io
import os
import pickle
import signal
import struct
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cnnviz.cli.main import run
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models import trained
from cnnviz.core.models.files import child
from cnnviz.core.models.files.archives import check_program, load_script, script_weights
from cnnviz.core.models.files.checkpoints import check_zip, read_state_dicts
from cnnviz.core.models.files.child import run_in_child
from cnnviz.core.models.files.kinds import Kind, first_few, kind_of
from cnnviz.core.models.load import load_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="trials need fork")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SECONDS", 2)
    monkeypatch.setattr(trained, "PASS_SECONDS", 4)


def spin() -> None:
    while True:
        pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.pth"
    path.write_bytes(b"x" * 1000)
    return path


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (spin, "it takes longer than 1 seconds"),
        (lambda: bytearray(2**40), "its 1,000 bytes take more than 256 MiB of memory"),
        (lambda: torch.ones(2**36), "its 1,000 bytes take more than 256 MiB of memory"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "it crashes torch .Segmentation fault"),
        (os.abort, "it crashes torch .Aborted"),
    ],
)
def test_a_child_that_does_not_live_says_why(
    file: Path, work: Callable[[], object], words: str
) -> None:
    with pytest.raises(CnnvizError, match=words):
        run_in_child(file, work, seconds=1)


def test_ordinary_errors_are_left_to_the_parent(file: Path) -> None:
    def fails() -> None:
        raise ValueError("as always")

    def exits() -> None:
        raise SystemExit(3)

    for work in (fails, exits, lambda: None):
        run_in_child(file, work)


def test_a_child_says_nothing(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_in_child(file, lambda: os.write(1, b"out") + os.write(2, b"err"))
    assert capfd.readouterr() == ("", "")


def test_a_child_that_waits_for_nothing_is_killed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "REAL_TIME", 0.2)
    with pytest.raises(CnnvizError, match="it takes longer than 1 seconds"):
        run_in_child(file, lambda: time.sleep(60), seconds=1)


def test_an_interruption_ends_both(file: Path) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_in_child(file, lambda: time.sleep(60))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)


def zipped(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """A checkpoint as torch writes it, around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
    return path


def bomb_of_keys(depth: int) -> bytes:
    """A dict whose key is a tuple of twice the same tuple, of twice the same, …: 2^depth hashes."""
    inner = b"(" + b"K\x01" + b"t"
    deeper = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))
    return b"\x80\x02}" + inner + deeper + b"K\x01s."


def test_keys_that_take_for_ever_to_hash(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.pth", bomb_of_keys(60))
    with pytest.raises(CnnvizError, match=r"refused to read .* longer than"):
        read_state_dicts(path, Kind.PICKLE)
    zipped(path, bomb_of_keys(3))
    with pytest.raises(CnnvizError, match="holds no state dict"):
        read_state_dicts(path, Kind.PICKLE)


def test_a_pickle_that_asks_for_all_memory(tmp_path: Path) -> None:
    data = b"\x80\x02cbuiltins\nbytearray\n" + pickle.dumps(2**30, 2)[2:-1] + b"\x85R."
    path = zipped(tmp_path / "a.pth", data)
    with pytest.raises(CnnvizError, match="MiB of memory"):
        read_state_dicts(path, Kind.PICKLE)


def test_a_small_zip_that_unpacks_to_much(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    with pytest.raises(CnnvizError, match=r"its [\d,]+ bytes unpack to 10,000,000"):
        check_zip(path)


def weights(path: Path, **options: bool) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(options.get("checked", True))
    torch.save(net().state_dict(), path)
    torch.serialization.set_crc32_options(before)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    weights(path)
    check_zip(path)
    data = bytearray(path.read_bytes())
    place = data.index(net().body.weight.detach().numpy().tobytes())
    data[place + 5] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(CnnvizError, match="truncated or damaged: Bad CRC-32"):
        check_zip(path)


def test_an_archive_without_checksums_is_read(tmp_path: Path) -> None:
    weights(tmp_path / "a.pth", checked=False)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is not None
    check_zip(tmp_path / "a.pth")
    assert read_state_dicts(tmp_path / "a.pth", Kind.PICKLE)[0].tensors


def test_long_names_are_cut(tmp_path: Path) -> None:
    assert len(first_few(["a" * 10**6, "b"])) < 200
    torch.save({"a" * 10**6: 1}, tmp_path / "a.pth")
    with pytest.raises(CnnvizError, match="holds no state dict") as caught:
        read_state_dicts(tmp_path / "a.pth", Kind.PICKLE)
    assert len(str(caught.value)) < 1000


# TorchScript ------------------------------------------------------------------------------------


class Loops(Net):
    def forward(self, x: Tensor) -> Tensor:
        while bool(x.isfinite().any()) or bool(x.isfinite().all()):
            x = x * 1.0
        return self.body(x).mean((2, 3))


class Writes(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "mark")
        return self.body(x).mean((2, 3))


class WritesWhenLoaded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.ones(3)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], "mark")
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.weight


class Prints(Net):
    def forward(self, x: Tensor) -> Tensor:
        print("{}")  # noqa: T201
        return self.body(x).mean((2, 3))


def script(kind: type[nn.Module], path: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"):
        compiled = torch.jit.script(kind().eval())
        data = io.BytesIO()
        torch.jit.save(compiled, data)
    path.write_bytes(data.getvalue())
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.body(x).mean((2, 3))\n"
    )
    return tmp_path


@pytest.mark.parametrize("kind", [Net, Loops, Writes, Prints])
def test_weights_of_a_program_are_read_without_running_it(place: Path, kind: type[Net]) -> None:
    path = script(kind, place / "a.pt")
    assert kind_of(path) is Kind.TORCHSCRIPT
    model = load_model("net.py:Net", checkpoint=path, size=8)
    assert torch.equal(model.module.body.weight, net().body.weight)  # type: ignore[arg-type,union-attr]
    assert not (place / "mark").exists()


def test_weights_of_a_program_that_acts_when_loaded(place: Path) -> None:
    path = script(WritesWhenLoaded, place / "a.pt")
    with pytest.raises(CnnvizError, match=r"holds no weights outside its program|does not fit"):
        load_model("net.py:Net", checkpoint=path, size=8)
    assert not (place / "mark").exists()


@pytest.mark.parametrize("kind", [Writes, WritesWhenLoaded])
def test_a_program_that_reaches_files_is_not_run(place: Path, kind: type[nn.Module]) -> None:
    path = script(kind, place / "a.pt")
    with pytest.raises(CnnvizError, match=r"refused to run .*: its program names 'save'"):
        load_model(checkpoint=path, size=8)
    with pytest.raises(CnnvizError, match="refused to run"):
        check_program(path)
    assert not (place / "mark").exists()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.load(str(path))(torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    assert (place / "mark").exists(), "torch itself does not write, so the test proves nothing"


@pytest.mark.parametrize(
    "line",
    [
        "ops.image.read_file('x')",
        "ops . image . write_file('x', y)",
        "torch.from_file('x')",
        "ops.evil.anything(x)",
        "a = __torch__.torch.classes.evil.Thing",
    ],
)
def test_programs_by_what_they_name(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/code/__torch__/net.py", f"class Net:\n  {line}\n")
    with pytest.raises(CnnvizError, match="refused to run"):
        check_program(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/code/__torch__/net.py", "x = torch.relu(ops.prim.data(saved))\n")
    check_program(path)


def test_a_program_that_never_ends_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script(Loops, place / "a.pt")
    Image.new("RGB", (8, 8)).save("x.png")
    assert run(["occlude", "x.png", "--model", "a.pt", "--size", "8", "--quiet"]) == 1
    assert "it takes longer than 4 seconds" in capsys.readouterr().err


def test_what_a_program_prints_is_no_finding(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script(Prints, place / "a.pt")
    Image.new("RGB", (8, 8)).save("x.png")
    line = ["occlude", "x.png", "--model", "a.pt", "--size", "8", "--mask", "4", "--stride", "4"]
    assert run([*line, "--json", "--out", "out"]) == 0
    assert capfd.readouterr().out.startswith('{\n  "schema"')


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_program(tmp_path: Path, share: float) -> None:
    path = script(Net, tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    for place in range(int(share * len(data)), int(share * len(data)) + 40):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(CnnvizError, match=r"damaged|cannot be read|not a checkpoint"):
        load_model(checkpoint=path, size=8)
    for read in (script_weights, load_script):
        try:
            read(path)
        except CnnvizError as error:
            assert "cannot be read" in str(error) or "weights" in str(error)  # noqa: PT017


def test_frozen_weights_are_told(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        frozen = torch.jit.freeze(torch.jit.script(net()))
        torch.jit.save(frozen, str(tmp_path / "a.pt"))
    with pytest.raises(CnnvizError, match="it is frozen"):
        script_weights(tmp_path / "a.pt")
    x = torch.ones(1, 3, 8, 8)
    assert torch.equal(load_script(tmp_path / "a.pt")(x), frozen(x))


def test_a_shuffled_header_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\x03\x04" + struct.pack("<Q", 2**63) * 20)
    with pytest.raises(CnnvizError, match="truncated or damaged"):
        kind_of(path)
