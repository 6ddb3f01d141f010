import inspect
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from cnnviz.cli.early import begin
from cnnviz.cli.main import COMMANDS, parse, run
from cnnviz.cli.signatures import FEW, SHARED
from cnnviz.core.errors import UsageError

ROOT = Path(__file__).parent.parent.parent


def test_help_imports_neither_torch_nor_matplotlib():
    lines = [["--help"], *([name, "--help"] for name in COMMANDS)]
    code = (
        "import sys\nfrom cnnviz.cli.main import run\n"
        f"statuses = [run(line) for line in {lines!r}]\n"
        "heavy = {'torch', 'matplotlib', 'torchvision', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} {statuses}' if heavy or any(statuses) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_occluding_with_a_network_of_ones_own_does_without_torchvision(tmp_path):
    """Importing it takes about as long as the rest of a small run."""
    line = ["occlude", str(ROOT / "sample_images" / "ship.png"), "--out", str(tmp_path)]
    code = (
        "import sys\nfrom cnnviz.cli.main import run\n"
        f"sys.exit(run({line!r}) or 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["occlude", "none.png"], "no file or folder 'none.png'"),
        (["tsne", "file:///x.zip"], "is a URL of another protocol than s3://"),
        (["occlude", "a.png", "--checkpoint", "none.pth"], "no file 'none.pth'"),
        (["occlude", "a.png", "--labels", "none.txt"], "no file 'none.txt'"),
        (["audit", ".", "--expect", "none.json"], "--expect 'none.json' cannot be used"),
        (["occlude", "a.png"], "cnnviz-out/occlude/a is not empty; use --overwrite"),
        (["filters", "--out", "a.png"], "a.png is not a folder"),
    ],
)
def test_wrong_paths_are_reported_before_torch_is_imported(line, message, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "cnnviz-out" / "occlude" / "a" / "mine").mkdir(parents=True)
    code = (
        "import sys\nfrom cnnviz.cli.main import run\n"
        f"sys.exit(9 if run({line!r}) != 2 - ('no file ' in {message!r} and 'folder' not in "
        f"{message!r}) else 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert message in done.stderr
    assert done.returncode == 0, done.stderr


def test_a_list_of_images_is_not_taken_for_an_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out", "of", "other").mkdir(parents=True)
    for name in ("of.csv", "of.png"):
        Path(name).touch()
    begin("occlude", parse(["occlude", "of.csv", "--out", "out"]))
    with pytest.raises(UsageError, match="out/of is not empty"):
        begin("occlude", parse(["occlude", "of.png", "--out", "out"]))


def test_a_launchers_share_begins_beside_the_folders_of_the_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out", "share-of-another").mkdir(parents=True)
    given = parse(["max-patches", ".", "--out", "out"])
    with pytest.raises(UsageError, match="out is not empty"):
        begin("max-patches", given)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    begin("max-patches", given)


@pytest.mark.parametrize(
    ("sources", "folder"),
    [
        (["a.png"], "out/a"),
        (["a.png", "b.png"], "out"),
        (["two"], "out"),
        (["a.csv"], None),
        (["a.tar"], None),
        (["one"], None),
    ],
)
def test_the_folder_that_is_checked_early_is_the_one_that_is_written(
    sources, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png", "two/a.png", "two/b.png", "one/a.png", "a.tar"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("a.csv").write_text("path\na.png\nb.png\n")
    given = parse(["occlude", *sources, "--out", "out"])
    for occupied in ("out/a/mine", "out/one/mine", "out/two/mine"):
        Path(occupied).mkdir(parents=True)
    if folder is None:
        begin("occlude", given)
    else:
        with pytest.raises(UsageError, match=f"{folder} is not empty"):
            begin("occlude", given)


def test_a_folder_as_checkpoint_is_left_to_its_reader_who_knows_the_remedy(tmp_path, capsys):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "model.safetensors").touch()
    checkpoint = str(tmp_path / "checkpoint-500")
    assert run(["filters", "--model", "resnet18", "--checkpoint", checkpoint]) == 2
    assert "is a folder; name the file in it: " in capsys.readouterr().err


def test_torchvision_comes_without_torchs_compiler():
    code = (
        "import sys\nfrom cnnviz.core.lazy import torchvision\n"
        "torchvision('models').get_model('squeezenet1_1')\n"
        "early = 'torch._dynamo' in sys.modules\n"
        "from torchvision.ops import roi_align as module\n"
        "from torch._dynamo.utils import is_compile_supported as real\n"
        "used = sys.modules['torchvision.ops.roi_align'].is_compile_supported\n"
        "sys.exit(early or used('cpu') != real('cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_programs_help_fits_80_columns_and_cuts_nothing(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.replace("[ARGS]...", "")
    listed = {line.split()[0] for line in text.splitlines() if line.startswith("  ")}
    assert set(COMMANDS) <= listed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_common_options_first_and_types_as_people_write_them(name, capsys):
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    first = text.partition("Advanced (")[0]
    assert sum(line.startswith("  -") for line in first.splitlines()) <= FEW + 1
    assert set(COMMANDS[name].first) - {"help", *SHARED} <= set(
        inspect.signature(COMMANDS[name]).parameters
    )
    assert "<" not in text.replace("cnnviz-out/<command>", "")


def test_the_demo_network_is_named_where_no_model_is(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["layers", "--out"]
    assert run([*line, "a"]) == run([*line, "b", "--model", "bundled"]) == 0
    assert capsys.readouterr().err.count("no --model: this is the demo network") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_every_option_says_what_it_does(name):
    assert COMMANDS[name].__doc__
    for parameter in inspect.signature(COMMANDS[name]).parameters.values():
        _, info = get_args(parameter.annotation)
        assert info.help, parameter.name


def test_docs_hold_the_options_the_program_has():
    done = subprocess.run(
        [sys.executable, "docs/write_options.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_no_arguments_shows_the_help(capsys):
    assert run([]) == 0
    assert "occlude" in capsys.readouterr().out


def test_an_unknown_command_is_one_line(capsys):
    assert run(["oclude"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_wrong_option_is_one_line_that_points_to_the_commands_help(capsys):
    assert run(["saliency", "--method", "all", "a.png"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("cnnviz: Invalid value for '--method': 'all' is not one of ")
    assert told.count("\n") == 1


def test_version_is_the_packages(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("cnnviz ")


@pytest.mark.parametrize("folder", ["core", "occlusion", "filters", "embeddings", "gradients"])
def test_a_folder_imports_only_from_floors_below(folder):
    above = {"cli", "occlusion", "filters", "embeddings", "gradients"} - {folder}
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for other in above:
            assert f"cnnviz.{other}" not in text, f"{path} names cnnviz.{other}"


def test_interrupting_ends_with_130_and_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("cnnviz.core.data.datasets.find_images", interrupt)
    Path("x.png").touch()
    assert run(["occlude", "x.png"]) == 130
    assert capsys.readouterr().err.startswith("cnnviz: interrupted")


def test_what_the_users_code_prints_goes_to_stderr(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\nprint('imported')\n\nclass Net(nn.Sequential):\n"
        "    def forward(self, x):\n        print('forward')\n"
        "        return super().forward(x)\n\ndef make():\n    print('made')\n"
        "    return Net(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    line = ["saliency", str(ROOT / "sample_images" / "ship.png"), "--size", "16", "--json"]
    line += ["--model", f"{tmp_path / 'net.py'}:make", "--out", str(tmp_path / "out")]
    assert run(line) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["command"] == "saliency"
    assert {"imported", "made", "forward"} <= set(told.err.splitlines())


def test_warnings_of_the_lower_floors_cannot_drive_the_terminal(capsys):
    run(["models", "bundled"])
    capsys.readouterr()
    logging.getLogger("cnnviz").warning("note: %s", "evil\x1b[2J\nname")
    assert capsys.readouterr().err == "note: evil\ufffd[2J\ufffdname\n"


def test_what_c_code_and_other_processes_print_does_not_reach_stdout(tmp_path):
    (tmp_path / "net.py").write_text(
        "import os, subprocess\n"
        "from torch import nn\n"
        "def make():\n"
        "    os.write(1, b'from C\\n')\n"
        "    subprocess.run(['echo', 'from a process'], check=True)\n"
        "    print('from Python')\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    line = ["layers", "--model", f"{tmp_path / 'net.py'}:make", "--size", "8", "--json"]
    command = [sys.executable, "-m", "cnnviz.cli", *line, "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["command"] == "layers"
    for word in ("from C", "from a process", "from Python"):
        assert word in done.stderr
