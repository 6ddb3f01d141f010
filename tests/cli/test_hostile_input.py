"""Bad input of every kind: a line and a status, nothing lost, nothing waited for."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core.data.datasets import open_data
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import from_json, lines, read_text, regular
from cnnviz.core.models.labels import read_labels
from cnnviz.core.models.load import load_model
from cnnviz.core.output.run_folder import RunFolder

QUICK = ["--mask", "16", "--stride", "16", "--quiet"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture in it."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save("truck.png")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str = "") -> None:
    """The command says one line, and its status is that of a failure or of wrong usage."""
    status = run(arguments)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cnnviz: ")]
    assert status in (1, 2), arguments
    assert len(said) == 1, said
    assert words in said[0]


@pytest.mark.parametrize("digits", ["9" * 30, "9" * 5000, "-3", "1e9", "nan", "0x10", ""])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("occlude", "--mask"),
        ("occlude", "--stride"),
        ("occlude", "--seed"),
        ("occlude", "--size"),
        ("occlude", "--batch-size"),
        ("occlude", "--repeat"),
        ("occlude", "--target"),
        ("max-patches", "--top"),
        ("max-patches", "--per-image"),
        ("max-patches", "--filters"),
        ("max-patches", "--limit"),
        ("layers", "--image-size"),
        ("tsne", "--perplexity"),
    ],
)
@pytest.mark.usefixtures("place")
def test_numbers_that_no_machine_holds(
    capsys: pytest.CaptureFixture[str], command: str, option: str, digits: str
) -> None:
    given = {"occlude": ["truck.png"], "layers": []}.get(command, ["."])
    if (option, digits) == ("--limit", "9" * 30):
        pytest.skip("more images than there are: all of them")
    fails(capsys, [command, *given, "--out", "out", option, digits])
    assert not (Path("out") / "summary.json").exists()


NAMES = {
    "long": "a" * 300 + ".png",
    "deep": "a/" * 3000 + "x.png",
    "missing": "gone.png",
    "folder": "sub",
    "pipe": "pipe.png",
    "device": "/dev/zero",
    "loop": "loop.png",
    "no text": os.fsdecode(b"\xff\xfe.png"),
    "control": "a\x1b[31m.png",
    "below a file": "truck.png/x.png",
}


@pytest.fixture
def odd(place: Path) -> Path:
    (place / "sub").mkdir()
    os.mkfifo(place / "pipe.png")
    (place / "loop.png").symlink_to(place / "loop.png")
    return place


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    "arguments",
    [
        ["occlude", "NAME"],
        ["saliency", "NAME"],
        ["activations", "NAME", "--layer", "first"],
        ["occlude", "truck.png", "--labels", "NAME"],
        ["occlude", "truck.png", "--expect", "NAME"],
        ["occlude", "truck.png", "--checkpoint", "NAME"],
        ["render", "NAME"],
        ["occlude", "truck.png", "--model", "NAME:make"],
    ],
)
@pytest.mark.usefixtures("odd")
def test_names_that_stand_for_no_file(
    capsys: pytest.CaptureFixture[str], arguments: list[str], kind: str
) -> None:
    fails(capsys, [part.replace("NAME", NAMES[kind]) for part in arguments])


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_manifest_that_names_no_file_costs_that_image_alone(
    odd: Path, kind: str, suffix: str
) -> None:
    name = NAMES[kind].encode("utf-8", "replace").decode()
    rows = {".csv": f'path,label\n"{name}",cat\ntruck.png,dog\n'}
    rows[".jsonl"] = "\n".join(json.dumps({"path": n, "label": "x"}) for n in (name, "truck.png"))
    (odd / f"list{suffix}").write_text(rows[suffix])
    data = open_data([str(odd / f"list{suffix}")])
    assert len(data) == 2
    with pytest.raises(CnnvizError, match=r"\A[^\n]+\Z"):
        data.open(0)
    assert data.open(1).size == (32, 32)


def test_a_manifest_with_a_nul_in_it(odd: Path) -> None:
    (odd / "list.jsonl").write_text('{"path": "a\\u0000.png"}\n{"path": "truck.png"}\n')
    data = open_data([str(odd / "list.jsonl")])
    with pytest.raises(CnnvizError, match="is not a file name"):
        data.open(0)


@pytest.mark.parametrize(
    "text", ["[" * 50_000, '{"a":' * 50_000, "9" * 6000, '["\\ud800"]', "{", ""]
)
@pytest.mark.parametrize("option", ["--labels", "--expect"])
def test_json_that_no_parser_bears(
    place: Path, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    (place / "bad.json").write_text(text)
    fails(capsys, ["occlude", "truck.png", *QUICK, option, "bad.json", "--out", "out"])


def test_deep_json_in_manifests_and_in_earlier_summaries(place: Path) -> None:
    deep = "[" * 50_000 + "]" * 50_000
    (place / "list.jsonl").write_text(f'{{"path": "truck.png", "label": {deep}}}')
    with pytest.raises(UsageError, match="nested too deeply"):
        open_data([str(place / "list.jsonl")])
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(deep)
    (place / "out" / "truck").mkdir(parents=True)
    (place / "out" / "truck" / "summary.json").write_text(deep)
    assert run(["occlude", "truck.png", *QUICK, "--out", "out", "--overwrite"]) == 0


def test_only_line_feeds_end_lines(tmp_path: Path) -> None:
    assert lines("a\r\nb\u2028c\x0cd\x85e\n") == ["a", "b\u2028c\x0cd\x85e"]
    (tmp_path / "names.txt").write_bytes("cat\u2028dog\r\nbird\x0c\n".encode())
    assert read_labels(tmp_path / "names.txt").names == ("cat\u2028dog", "bird")
    (tmp_path / "a\u2028b.png").write_bytes(b"")
    (tmp_path / "list.csv").write_text("a\u2028b.png,cat\n", encoding="utf-8")
    assert [Path(e.path).name for e in open_data([str(tmp_path / "list.csv")]).examples] == [
        "a\u2028b.png"
    ]
    (tmp_path / "list.csv").write_text('path,label\n"x.png","two\nlines"\ny.png,b\n')
    assert open_data([str(tmp_path / "list.csv")]).classes == ("b", "two\nlines")


@pytest.mark.usefixtures("odd")
def test_what_cannot_be_read_to_its_end_is_not_opened() -> None:
    for name in ("pipe.png", "/dev/zero"):
        with pytest.raises(CnnvizError, match="is not a file but a pipe, socket or device"):
            regular(name)
    with pytest.raises(CnnvizError, match="is a folder"):
        read_text("sub")
    Path("bytes").write_bytes(b"\xff\xff")
    with pytest.raises(CnnvizError, match="is not UTF-8"):
        read_text("bytes")


def test_an_empty_out_is_no_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("", "  "):
        fails(capsys, ["occlude", "truck.png", *QUICK, "--out", text], "is not a folder name")
    assert [path.name for path in place.iterdir()] == ["truck.png"]


def test_a_link_below_the_output_folder_leads_nowhere(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("outside", "out", "several"):
        (place / folder).mkdir()
    (place / "out" / "truck").symlink_to(place / "outside")
    (place / "several" / "truck").symlink_to(place / "outside")
    shutil.copy("truck.png", "second.png")
    fails(capsys, ["occlude", "truck.png", *QUICK, "--out", "out", "--overwrite"], "leads out of")
    several = ["occlude", "truck.png", "second.png", *QUICK, "--out", "several", "--overwrite"]
    fails(capsys, several, "is a link")
    assert not list((place / "outside").iterdir())
    assert (place / "several" / "second" / "overlay.png").is_file()
    (place / "mine").symlink_to(place / "outside")  # a link as --out itself is the user's choice
    assert run(["occlude", "truck.png", *QUICK, "--out", "mine"]) == 0


def test_a_link_in_a_files_place_is_replaced_not_followed(place: Path) -> None:
    (place / "precious.txt").write_text("mine")
    (place / "out" / "truck").mkdir(parents=True)
    (place / "out" / "truck" / "overlay.png").symlink_to(place / "precious.txt")
    summary = {"schema": "cnnviz.occlude/1", "files": ["overlay.png", "../../precious.txt"]}
    (place / "out" / "truck" / "summary.json").write_text(json.dumps(summary))
    assert run(["occlude", "truck.png", *QUICK, "--out", "out", "--overwrite"]) == 0
    assert (place / "precious.txt").read_text() == "mine"
    assert not (place / "out" / "truck" / "overlay.png").is_symlink()


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "../../../../etc/passwd", "", "."])
def test_an_earlier_summary_may_list_anything(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "out" / "truck").mkdir(parents=True)
    summary = {"schema": "cnnviz.occlude/1", "files": [name]}
    (place / "out" / "truck" / "summary.json").write_text(json.dumps(summary))
    status = run(["occlude", "truck.png", *QUICK, "--out", "out", "--overwrite"])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cnnviz: ")]
    assert (status, len(said)) in ((0, 0), (1, 1))


def test_inputs_in_the_output_folder_are_never_replaced(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "out" / "input").mkdir(parents=True)
    shutil.copy("truck.png", place / "out" / "input" / "input.png")
    before = (place / "out" / "input" / "input.png").read_bytes()
    mine = str(place / "out" / "input" / "input.png")
    fails(capsys, ["occlude", mine, *QUICK, "--out", "out", "--overwrite"], "is one of the inputs")
    fails(
        capsys,
        ["occlude", "truck.png", mine, *QUICK, "--out", "out", "--overwrite"],
        "is one of the inputs",
    )
    (place / "summary.json").write_text("mine")
    with pytest.raises(CnnvizError, match="is one of the inputs"):
        RunFolder.open(place, overwrite=True, inputs=["summary.json"]).finish({})
    assert (place / "out" / "input" / "input.png").read_bytes() == before
    assert (place / "summary.json").read_text() == "mine"


def test_a_folder_of_one_image_becomes_one_of_several_without_a_stale_summary(place: Path) -> None:
    shutil.copy("truck.png", "second.png")
    assert run(["occlude", "truck.png", *QUICK, "--out", "out"]) == 0
    assert (place / "out" / "truck" / "summary.json").exists()
    (place / "out" / "truck" / "mine.txt").write_text("mine")
    (place / "out" / "truck" / ".overlay.png.0123abcd.tmp").write_text("half")
    assert run(["occlude", "truck.png", "second.png", *QUICK, "--out", "out", "--overwrite"]) == 0
    assert not (place / "out" / "truck" / "summary.json").exists()
    assert (place / "out" / "truck" / "overlay.png").exists()
    assert (place / "out" / "truck" / "mine.txt").read_text() == "mine"
    assert not list((place / "out").rglob("*.tmp"))


def test_layers_of_networks_with_global_pooling_are_json(place: Path) -> None:
    line = ["layers", "--model", "mobilenet_v3_small", "--weights", "none", "--quiet"]
    assert run([*line, "--out", "out"]) == 0
    text = (place / "out" / "summary.json").read_text()
    assert not {"NaN", "Infinity"} & set(text.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["max-patches", "data", "--layer", "stem.conv"],
        ["ablate", "data", "--filters", "stem.conv:0"],
        ["tsne", "data", "--perplexity", "2"],
        ["layers", "data"],
    ],
)
@pytest.mark.parametrize("good", [0, 2])
def test_where_nothing_can_be_used_the_reasons_are_said(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], good: int
) -> None:
    for number in range(8):
        path = place / "data" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < good:
            shutil.copy("truck.png", path)
        else:
            path.write_text("no picture")
    if good and arguments[0] != "tsne":
        assert run([*arguments, "--out", "out", "--quiet"]) == 1  # the bad ones, in a line each
        assert capsys.readouterr().err.count("is not an image that can be read") == 8 - good
        assert (place / "out" / "summary.json").exists()
        return
    fails(
        capsys, [*arguments, "--out", "out", "--quiet"], "and 5 more" if not good else "and 3 more"
    )
    assert not (place / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("raise Stop('mine')", 1, "cnnviz: the network's code raised Stop: mine (net.py, line 2)"),
        ("raise SystemExit(3)", 1, "cnnviz: the factory 'net.py:make' failed: SystemExit: 3"),
        ("raise KeyboardInterrupt", 130, "cnnviz: interrupted; written files are complete"),
    ],
)
def test_whatever_a_factory_raises_is_a_line(
    place: Path, capsys: pytest.CaptureFixture[str], body: str, status: int, words: str
) -> None:
    (place / "net.py").write_text(f"class Stop(BaseException): pass\ndef make(): {body}\n")
    line = ["occlude", "truck.png", *QUICK, "--model", "net.py:make", "--size", "32"]
    assert run([*line, "--out", "out"]) == status
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(words)


def test_names_are_no_commands_to_a_ci_system(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "##[set-output name=a]b##vso[task.x]c.png"
    fails(capsys, ["occlude", name, *QUICK], "no file or folder '# #[set-output name=a]b# #vso[")
    assert run(["occlude", name, "--json", "--out", "out"]) == 2
    shown = capsys.readouterr()
    assert "##" not in shown.out + shown.err
    assert name in json.loads(shown.out)["error"]
    assert (place / "truck.png").exists()


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="torch has no such type")
def test_weights_of_four_bits_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = dict(load_model("bundled").module.state_dict())
    name = next(name for name, value in state.items() if value.ndim == 4)
    state[name] = torch.zeros(state[name].shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    torch.save(state, place / "four.pth")
    fails(capsys, ["occlude", "truck.png", *QUICK, "--checkpoint", "four.pth"], "as float4")
