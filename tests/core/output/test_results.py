import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.files import SUMMARY, safe_name
from cnnviz.core.output import run_folder as results
from cnnviz.core.output.run_folder import RunFolder, summary


def finished(path: Path, overwrite: bool = False) -> RunFolder:
    folder = RunFolder.open(path, overwrite=overwrite)
    folder.write_text("a.txt", "first")
    content = summary(
        "layers", model=None, seed=0, elapsed_seconds=1.0, results=[], files=folder.files
    )
    folder.finish(content)
    return folder


def test_a_folder_with_results_is_refused_and_left_alone(tmp_path):
    finished(tmp_path / "run")
    before = sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir())
    with pytest.raises(UsageError, match="is not empty; use --overwrite"):
        RunFolder.open(tmp_path / "run")
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "run").iterdir()) == before


def test_overwrite_removes_what_the_last_summary_lists_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    finished(run)
    (run / "mine.txt").write_text("the user's")
    RunFolder.open(run, overwrite=True)
    assert [p.name for p in run.iterdir()] == ["mine.txt"]


def test_overwrite_never_empties_a_folder_that_cnnviz_did_not_write(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / SUMMARY).write_text(json.dumps({"schema": "other", "files": ["thesis.tex"]}))
    RunFolder.open(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / SUMMARY).exists()


def test_a_summary_that_lists_files_outside_its_folder_deletes_none_of_them(tmp_path):
    run = finished(tmp_path / "run")
    outside = tmp_path / "precious.txt"
    outside.write_text("keep")
    content = json.loads((run.path / SUMMARY).read_text())
    content["files"] = ["../precious.txt", str(outside)]
    (run.path / SUMMARY).write_text(json.dumps(content))
    RunFolder.open(run.path, overwrite=True)
    assert outside.read_text() == "keep"


def test_resume_takes_an_unfinished_folder_and_no_finished_one(tmp_path):
    (tmp_path / "state").write_text("half way")
    RunFolder.open(tmp_path, resume=True)
    finished(tmp_path / "done")
    with pytest.raises(UsageError, match="there is nothing to resume"):
        RunFolder.open(tmp_path / "done", resume=True)


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UsageError, match="is not a folder; give --out another one"):
        RunFolder.open(tmp_path / "run")
    with pytest.raises(UsageError, match="is not a folder"):
        RunFolder.open(tmp_path / "run" / "below")


def test_equal_names_get_folders_of_their_own(tmp_path):
    root = RunFolder.open(tmp_path / "run")
    names = [root.subfolder(name).path.name for name in ("cat", "cat", "Cat", "dog", "cat")]
    assert names == ["cat", "cat-2", "Cat-3", "dog", "cat-4"]


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "..", ".", "", "a\nb", "\x1b[31mred"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    root = RunFolder.open(tmp_path / "run")
    path = root.write_text(name, "x")
    assert path.parent == tmp_path / "run"
    assert safe_name(name).isprintable()


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path, monkeypatch):
    folder = RunFolder.open(tmp_path / "run")

    def no_space(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.Path, "replace", no_space)
    with pytest.raises(CnnvizError, match=r"cannot write .*a\.txt: No space left on device"):
        folder.write_text("a.txt", "text")
    assert list((tmp_path / "run").iterdir()) == []
    assert folder.files == []


def test_not_a_number_never_gets_into_a_summary(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.finish({"value": float("nan")})
    assert not (folder.path / SUMMARY).exists()


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    drawn = []
    for name in ("one.png", "two.png"):
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([1, 2], [3, 4])
        drawn.append(folder.write_figure(name, figure).read_bytes())
        time.sleep(1.1)  # a date in the file would differ
    assert drawn[0] == drawn[1]


def test_arrays_come_back_without_pickle(tmp_path):
    folder = RunFolder.open(tmp_path / "run")
    path = folder.write_npz("a.npz", numbers=np.arange(3), words=np.array(["é", "b"]))
    with np.load(path, allow_pickle=False) as back:
        assert back["words"].tolist() == ["é", "b"]
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        folder.write_npz("b.npz", objects=np.array([object()]))


KILLED = """
import sys
from pathlib import Path
from cnnviz.core.output.run_folder import RunFolder
folder = RunFolder.open(Path(sys.argv[1]), overwrite=True)
print("ready", flush=True)
while True:
    folder.write_bytes("data.bin", b"x" * 3_000_000 + b"end")
"""


def test_killed_while_writing_leaves_no_half_file_under_its_name(tmp_path):
    for attempt in range(3):
        run = tmp_path / "run"
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(run)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.05 + 0.013 * attempt)
            process.send_signal(signal.SIGKILL)
        data = run / "data.bin"
        assert not data.exists() or data.read_bytes().endswith(b"end")
        assert not (run / SUMMARY).exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody can write to")
def test_a_place_that_cannot_be_written_to_is_one_line():
    with pytest.raises(CnnvizError, match="cannot write to /proc/cnnviz-results"):
        RunFolder.open(Path("/proc/cnnviz-results"))


@pytest.mark.skipif(sys.platform == "win32", reason="has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_rights_that_the_user_gives_new_files(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        results.write_atomically(tmp_path / "a.txt", b"a")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask
