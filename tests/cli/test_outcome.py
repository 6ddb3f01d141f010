"""What machines hear of a run: JUnit, GitHub's annotations and summary, JSON on both streams."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cnnviz.cli import ci_reports as module
from cnnviz.cli.ci_reports import Outcome
from cnnviz.cli.main import run
from cnnviz.core.errors import CheckFailed

MASK = ["--mask", "16", "--stride", "16", "--pictures", "none"]
HOSTILE = "a<script>alert(1)</script>&\"'|`x`.png"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, one of them of a hostile name, and a file that is none."""
    monkeypatch.chdir(tmp_path)
    for variable in (module.ACTIONS, module.STEP_SUMMARY):
        monkeypatch.delenv(variable, raising=False)
    random = np.random.default_rng(0)
    for name in ("0.png", HOSTILE.replace("/", "_")):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "bad.png").write_text("no picture")
    return tmp_path


def cases(path: str = "r.xml") -> dict[str, str]:
    """Name to passed, failure or error."""
    root = ElementTree.parse(path).getroot()  # noqa: S314 (our own)
    found = {}
    for case in root.iter("testcase"):
        kinds = [child.tag for child in case]
        found[case.get("name") or ""] = kinds[0] if kinds else "passed"
    suite = next(root.iter("testsuite"))
    assert int(suite.get("tests") or 0) == len(found)
    return found


NAMES = ["0.png", HOSTILE.replace("/", "_")]


def test_there_is_a_case_for_each_image() -> None:
    assert run(["occlude", *NAMES, "bad.png", *MASK, "--quiet", "--junit", "r.xml"]) == 1
    assert cases() == {NAMES[0]: "passed", NAMES[1]: "passed", "bad.png": "error"}


def test_images_that_a_check_does_not_hold_for_fail_beside_others_that_cannot_be_read() -> None:
    places = {NAMES[0]: [0, 0, 1, 1], NAMES[1]: [0, 0, 32, 32], "bad.png": [0, 0, 9, 9]}
    boxes = {name: {"boxes": [box]} for name, box in places.items()}
    Path("boxes.json").write_text(json.dumps(boxes))
    line = ["occlude", *NAMES, *MASK, "--expect", "boxes.json", "--min-inside", "0.5", "--quiet"]
    wanted = {NAMES[0]: "failure", NAMES[1]: "passed"}
    assert run([*line, "--junit", "r.xml"]) == 3
    assert cases() == wanted
    assert run([*line, "bad.png", "--junit", "r.xml", "--overwrite"]) == 1
    assert cases() == {**wanted, "bad.png": "error"}


def test_a_check_of_the_whole_run_and_a_run_that_breaks_off_are_a_case_each() -> None:
    rows = [f"{name},cat" for name in ("0.png",)]
    Path("list.csv").write_text("\n".join(["path,label", *rows]))
    line = ["ablate", "list.csv", "--filters", "stem.conv:0", "--quiet", "--junit", "r.xml"]
    status = run([*line, "--min-accuracy", "1"])
    assert (status, cases()) in ((3, {"ablate": "failure"}), (0, {"ablate": "passed"}))
    assert run([*line, "--overwrite", "--filters", "nowhere:1"]) == 2
    assert cases() == {"ablate": "error"}


def test_a_report_replaces_reports_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.xml").write_text("<notes/>")
    line = ["occlude", "0.png", *MASK, "--quiet", "--junit"]
    assert run([*line, "notes.xml"]) == 2
    assert "is not a JUnit report" in capsys.readouterr().err
    assert Path("notes.xml").read_text() == "<notes/>"
    assert run([*line, "."]) == 2
    assert run([*line, "nowhere/r.xml"]) == 1
    assert "cannot write nowhere/r.xml" in capsys.readouterr().err


def test_without_the_library_a_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "junitparser", None)
    assert run(["occlude", "0.png", *MASK, "--junit", "r.xml"]) == 2
    assert "pip install '.[junit]'" in capsys.readouterr().err


def test_github_is_told_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(module.ACTIONS, "true")
    monkeypatch.setenv(module.STEP_SUMMARY, "step.md")
    Path("step.md").write_text("before\n")
    assert run(["occlude", *NAMES, "bad.png", *MASK, "--quiet"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "::error file=bad.png::'bad.png' is not an image that can be read" in said
    text = Path("step.md").read_text()
    assert text.startswith("before\n### cnnviz occlude: failed\n")
    assert "| image | class | p |" in text
    assert "<" not in text
    assert "&#60;script&#62;" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.count("|") for row in rows}) == 1
    assert run(["occlude", "gone.png"]) == 2
    assert "::error::no file or folder 'gone.png'" in capsys.readouterr().err


def test_annotations_are_one_line_each() -> None:
    failing = CheckFailed("low", {"a:b,c%.png": "one\ntwo"})
    listening = Outcome("occlude", verdict=failing)
    lines = list(listening._annotations("low", dict(failing.failed)))
    assert lines == ["::error file=a%3Ab%2Cc%25.png::one%0Atwo"]


def test_errors_are_json_on_stdout_and_there_is_one_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for line, status in (
        (["occlude", "gone.png", "--json"], 2),
        (["occlude", "0.png", "--mask", "x", "--json"], 2),
        (["occlude", "0.png", "--nonsense", "--json"], 2),
        (["occlude", "0.png", "--checkpoint", "bad.png", "--json"], 1),
    ):
        assert run(line) == status
        said = capsys.readouterr()
        content = json.loads(said.out)
        assert content["exit"] == status
        assert content["error"] in said.err
    assert run(["occlude", "0.png", "bad.png", *MASK, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"][0]["input"] == "bad.png"


def test_a_check_that_does_not_hold_leaves_the_summary_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["occlude", "0.png", *MASK, "--expect", "0,0,1,1", "--min-inside", "0.9", "--json"]
    assert run(line) == 3
    assert json.loads(capsys.readouterr().out)["command"] == "occlude"


def test_the_table_has_every_target_and_mask(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["occlude", "0.png", "--target", "top3", "--mask", "16", "--mask", "8", "--stride", "16"]
    assert run([*line, "--pictures", "none"]) == 0
    rows = [text for text in capsys.readouterr().out.splitlines() if "0.png" in text]
    assert len(rows) == 6
