"""Data sets in tar files, against the library whose format they are; runs over data sets."""

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import slow_but
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.data.shards import Shard
from cnnviz.core.errors import CnnvizError, UsageError


def picture(number: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def tar(path: Path, files: Sequence[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def shards(folder: Path, counts: Sequence[int] = (3, 2), label: str = "cls") -> list[Path]:
    made, first = [], 0
    for number, count in enumerate(counts):
        files: list[tuple[str, bytes]] = []
        for n in range(first, first + count):
            said = (
                str(n % 2) if label == "cls" else json.dumps({"caption": "x", "label": "ab"[n % 2]})
            )
            files += [(f"deep/{n:04d}.png", picture(n)), (f"deep/{n:04d}.{label}", said.encode())]
        made.append(tar(folder / f"part-{number:03d}.tar", files))
        first += count
    return made


def samples(path: Path) -> list[dict[str, Any]]:
    webdataset = pytest.importorskip("webdataset")
    with path.open("rb") as stream:
        files = [
            {"__url__": str(path), **file}
            for file in webdataset.tariterators.tar_file_iterator(stream)
        ]
        return list(webdataset.tariterators.group_by_keys(files))


def pixels(data: ImageData, index: int) -> np.ndarray:
    return np.asarray(data.open(index))


@pytest.mark.needs("webdataset")
@pytest.mark.parametrize("label", ["cls", "json"])
def test_tars_give_what_webdataset_gives(tmp_path: Path, label: str) -> None:
    made = shards(tmp_path, label=label)
    data = open_data([str(path) for path in made])
    theirs = [sample for path in made for sample in samples(path)]
    assert len(data) == len(theirs) == 5
    for index, sample in enumerate(theirs):
        example = data.examples[index]
        assert example.path == f"{sample['__url__']}/{sample['__key__']}.png"
        assert (pixels(data, index) == np.asarray(Image.open(io.BytesIO(sample["png"])))).all()
        assert data.classes is not None
        assert example.label is not None
        said = json.loads(sample[label])
        assert data.classes[example.label] == str(said if label == "cls" else said["label"])


def test_braces_and_folders_name_the_same_tars(tmp_path: Path) -> None:
    made = [str(path) for path in shards(tmp_path)]
    for sources in ([str(tmp_path / "part-{000..001}.tar")], [str(tmp_path)]):
        found = open_data(sources)
        assert found.examples == open_data(made).examples
        assert found.fingerprint == open_data(made).fingerprint


def test_a_changed_tar_is_other_data(tmp_path: Path) -> None:
    made = [str(path) for path in shards(tmp_path)]
    before = open_data(made).fingerprint
    os.utime(made[1], (1, 1))
    assert open_data(made).fingerprint != before


def test_any_picture_of_a_tar_in_any_order_and_shares(tmp_path: Path) -> None:
    made = [str(path) for path in shards(tmp_path, (4, 3))]
    data = open_data(made)
    for n in (6, 0, 3):
        assert (pixels(data, n) == np.asarray(Image.open(io.BytesIO(picture(n))))).all()
    assert list(data.share(Shard(1, 2)).part) == [3, 4, 5, 6]
    sample = open_data(made, limit=4)
    assert [e.label for e in sample.examples].count(0) == 2
    for index, example in enumerate(sample.examples):
        assert (pixels(sample, index) == pixels(data, example.row)).all()


def labels_of(data: ImageData) -> list[tuple[str, str | None]]:
    classes = data.classes or ()
    return [
        (e.path.partition(".tar/")[2], None if e.label is None else classes[e.label])
        for e in data.examples
    ]


@pytest.mark.parametrize(
    ("names", "read", "left_out"),
    [
        (["a.v1.png", "a.v1.cls"], [("a.v1.png", "1")], ""),
        (["a.v1.png", "a.v1.json", "b.png", "b.cls"], [("a.v1.png", "x"), ("b.png", "1")], ""),
        (["a.png", "a.seg.png", "a.cls"], [("a.png", "1")], "1 .seg.png"),
        (["a_0.5_x.png", "a_0.5_x.cls", "a_0.7_y.png"], [("a_0.5_x.png", "1"),
                                                         ("a_0.7_y.png", None)], ""),
        (["a.left.png", "a.right.png", "a.cls"], [("a.left.png", "1"), ("a.right.png", "1")], ""),
        (["a.JPEG.png", "a.npy", "b", "b.mp4"], [("a.JPEG.png", None)],
         "1 .npy, 1 without a suffix, 1 .mp4"),
    ],
)  # fmt: skip
def test_names_with_dots_are_read_and_what_is_not_is_counted(
    tmp_path: Path,
    names: list[str],
    read: list[tuple[str, str | None]],
    left_out: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    contents = {"png": picture(1), "cls": b"1", "json": b'{"label": "x"}'}
    path = tar(tmp_path / "x.tar", [(n, contents.get(n.rpartition(".")[2], b"?")) for n in names])
    data = open_data([str(path)])
    assert labels_of(data) == read
    assert pixels(data, 0).shape == (9, 7, 3)
    assert caplog.text.count("left out") == bool(left_out)
    assert left_out in caplog.text


@pytest.mark.parametrize("below", ["", "./", "data/", "./a/b/"])
def test_the_folders_in_a_tar_are_classes(tmp_path: Path, below: str) -> None:
    files = [(f"{below}{c}/{n}.png", picture(n)) for c in ("cat", "dog") for n in range(2)]
    data = open_data([str(tar(tmp_path / "x.tar", files))])
    assert [label for _, label in labels_of(data)] == ["cat", "cat", "dog", "dog"]
    files.append((f"{below}dog/1.cls", b"wolf"))
    said = open_data([str(tar(tmp_path / "y.tar", files))])
    assert [label for _, label in labels_of(said)] == [None, None, None, "wolf"]


def test_tars_called_by_wnids_are_classes(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n01443537"):
        tar(tmp_path / f"{wnid}.tar", [(f"{wnid}_{n}.JPEG", picture(n, "JPEG")) for n in range(2)])
    data = open_data([str(tmp_path)])
    assert [label for _, label in labels_of(data)] == ["n01440764"] * 2 + ["n01443537"] * 2
    tar(tmp_path / "other.tar", [("a.png", picture(1))])
    assert open_data([str(tmp_path)]).classes is None


def test_tars_in_folders_are_read_and_json_without_a_label_is_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("train", "val"):
        tar(tmp_path / part / "0.tar", [("a.png", picture(1)), ("a.json", b'{"species": 1}')])
    (tmp_path / "index.idx").write_text("")
    assert len(open_data([str(tmp_path)])) == 2
    assert "has a label: its .json files have none of the keys label, class" in caplog.text
    assert "next to tar files: 1 .idx" in caplog.text


def test_hidden_files_links_and_samples_without_pictures_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = [(".DS_Store", b"x"), ("a.png", picture(1)), ("a.txt", b"a dog"), ("b.txt", b"none")]
    path = tar(tmp_path / "x.tar", files)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data = open_data([str(path)])
    assert [Path(e.path).name for e in data.examples] == ["a.png"]
    assert data.classes is None
    assert "1 links and devices" in caplog.text


KINDS = [
    "missing",
    "cut",
    "text",
    "packed",
    "without",
    "empty",
    "mixed",
    "label",
    "backwards",
    "folder",
]


def bad_tars(folder: Path) -> dict[str, tuple[list[Path], str]]:
    whole = tar(folder / "whole.tar", [("a.png", picture(1))])
    cut = folder / "cut.tar"
    cut.write_bytes(
        tar(folder / "long.tar", [("a.png", picture(1)), ("b.png", bytes(9000))]).read_bytes()[
            :4000
        ]
    )
    text = folder / "text.tar"
    text.write_text("no tar at all")
    other = folder / "other.png"
    other.write_bytes(picture(3))
    label = [("a.png", picture(1)), ("a.json", b"{")]
    return {
        "missing": ([folder / "gone.tar"], "no file"),
        "cut": ([cut], "not a complete tar"),
        "text": ([text], "not a complete tar"),
        "packed": ([tar(folder / "packed.tar", [("a.png", b"")], "w:gz")], "unpack it first"),
        "without": ([tar(folder / "none.tar", [("a.txt", b"x")])], "no image .* but txt"),
        "empty": ([tar(folder / "empty.tar", [])], "but no file"),
        "mixed": ([whole, other], "only with tar files"),
        "label": ([tar(folder / "label.tar", label)], "label of a cannot be read"),
        "backwards": ([folder / "x-{3..1}.tar"], "is empty"),
        "folder": ([folder / "d.tar"], "is a folder"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_bad_tars_are_refused_in_a_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "d.tar").mkdir()
    paths, message = bad_tars(tmp_path)[kind]
    with pytest.raises(CnnvizError, match=message):
        open_data([str(path) for path in paths])


def test_a_damaged_picture_in_a_tar_is_its_own_error(tmp_path: Path) -> None:
    data = open_data(
        [str(tar(tmp_path / "x.tar", [("a.png", b"no picture"), ("b.png", picture(1))]))]
    )
    with pytest.raises(CnnvizError, match=r"x\.tar/a\.png"):
        data.open(0)
    assert pixels(data, 1).shape == (9, 7, 3)


def test_without_the_library_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[datasets\]'"):
        open_data(["hf-dataset:x"])


TARS, ARROW = "part-{000..001}.tar", "hf-dataset:d"
SETS = [
    TARS,
    pytest.param("list.csv", marks=pytest.mark.slow),
    pytest.param(ARROW, marks=pytest.mark.needs("datasets")),
]
LINES = {
    "occlude": ["--mask", "16", "--stride", "16", "--pictures", "overlay"],
    "saliency": [],
    "activations": ["--layer", "stem.conv"],
}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures of cats and dogs, as files with a manifest, in tars, and in Arrow files."""
    monkeypatch.chdir(tmp_path)
    names = ("cat", "dog")
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    rows = [f"{n}.png,{names[n % 2]}" for n in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    for number, members in enumerate(([0, 1], [2])):
        files = [(f"{n}.png", picture(n)) for n in members]
        labels = [(f"{n}.cls", names[n % 2].encode()) for n in members]
        both = [file for pair in zip(files, labels, strict=True) for file in pair]
        tar(tmp_path / f"part-{number:03d}.tar", both)
    if ARROW in request.node.name:
        import datasets

        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
        cells = [{"bytes": picture(n), "path": None} for n in range(3)]
        columns = {"image": cells, "label": [0, 1, 0]}
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        made.save_to_disk(str(tmp_path / "d"))
    return tmp_path


def entries(folder: str) -> list[dict[str, Any]]:
    found = json.loads(Path(folder, "summary.json").read_text())["results"]
    return [{k: v for k, v in entry.items() if k not in ("image", "folder")} for entry in found]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("source", SETS)
@pytest.mark.parametrize("command", slow_but(LINES, "occlude"))
def test_commands_on_single_images_take_data_sets_too(source: str, command: str) -> None:
    line = [command, *LINES[command], "--quiet"]
    files = [f"{n}.png" for n in range(3)]
    assert run([*line, source, "--out", "set"]) == 0
    assert run([*line, *files, "--out", "files"]) == 0
    assert entries("set") == entries("files")
    for number in ("0", "1", "2"):
        ours, theirs = Path("set", number), Path("files", number)
        assert {p.name for p in ours.iterdir()} == {p.name for p in theirs.iterdir()}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("source", SETS)
def test_the_label_of_a_data_set_is_its_folder(source: str) -> None:
    line = ["occlude", source, *LINES["occlude"], "--label", "folder", "--quiet", "--out", "out"]
    assert run(line) == 0
    assert [entry["label"]["class"] for entry in entries("out")] == ["cat", "dog", "cat"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("source", SETS)
def test_a_run_over_a_data_set_goes_on_and_in_shares(source: str) -> None:
    line = ["occlude", source, *LINES["occlude"], "--quiet"]
    assert run([*line, "--out", "whole"]) == 0
    for number in range(2):
        assert run([*line, "--out", "parts", "--shard", f"{number}/2"]) == 0
    assert run(["merge", "parts", "--out", "all", "--quiet"]) == 0
    assert entries("all") == entries("whole")
    Path("whole/summary.json").unlink()
    folder = Path("whole", "0")
    before = (folder / "overlay.png").stat().st_mtime_ns
    assert run([*line, "--out", "whole", "--resume"]) == 0
    assert (folder / "overlay.png").stat().st_mtime_ns == before
