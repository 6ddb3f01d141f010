"""Data sets in Arrow files, against the library whose format they are."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnnviz.core.data.datasets import ImageData, open_data
from cnnviz.core.errors import CnnvizError

pytestmark = pytest.mark.needs("datasets")
datasets = pytest.importorskip("datasets")


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels(data: ImageData, index: int) -> np.ndarray:
    return np.asarray(data.open(index))


def saved(folder: Path, columns: dict[str, Any], features: dict[str, Any]) -> str:
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.save_to_disk(str(folder))
    return f"hf-dataset:{folder}"


def cells(count: int) -> list[dict[str, Any]]:
    return [{"bytes": picture(n), "path": None} for n in range(count)]


def test_a_data_set_on_disk_gives_what_the_library_gives(tmp_path: Path) -> None:
    kinds = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat", "owl"])}
    text = saved(tmp_path / "d", {"img": cells(5), "label": [1, 0, 1, -1, 0]}, kinds)
    data, theirs = open_data([text]), datasets.load_from_disk(str(tmp_path / "d"))
    assert data.classes == ("dog", "cat", "owl")
    assert [e.label for e in data.examples] == [1, 0, 1, None, 0]
    assert [Path(e.path).name for e in data.examples] == list("01234")
    for index in range(5):
        assert (pixels(data, index) == np.asarray(theirs[index]["img"])).all()
    assert open_data([text]).fingerprint == data.fingerprint


def several() -> Any:
    return datasets.Sequence(datasets.ClassLabel(names=["a", "b"]))


@pytest.mark.parametrize(
    ("kind", "values", "labels"),
    [
        (several, [[0], [1, 0], []], ["a", "b|a", "|"]),
        (lambda: datasets.Value("string"), ["x", None, "y"], ["x", None, "y"]),
        (lambda: datasets.Value("int64"), [7, 12, 7], ["7", "12", "7"]),
    ],
)
def test_labels_of_other_kinds(
    tmp_path: Path, kind: Callable[[], Any], values: list[Any], labels: list[str | None]
) -> None:
    kinds = {"image": datasets.Image(), "label": kind()}
    data = open_data([saved(tmp_path / "d", {"image": cells(3), "label": values}, kinds)])
    names = data.classes or ()
    assert [None if e.label is None else names[e.label] for e in data.examples] == labels


def test_splits_and_columns_are_chosen(tmp_path: Path) -> None:
    kinds = {
        "left": datasets.Image(),
        "right": datasets.Image(),
        "fine": datasets.ClassLabel(names=["a", "b"]),
        "coarse": datasets.ClassLabel(names=["c"]),
    }
    columns = {"left": cells(2), "right": cells(2), "fine": [0, 1], "coarse": [0, 0]}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "d"))
    name = f"hf-dataset:{tmp_path / 'd'}"
    for text, message in (
        (name, "splits train, test; choose with ,split="),
        (f"{name},split=val", "splits"),
        (f"{name},split=test", "columns of images left, right"),
        (f"{name},split=test,image=left", "columns of classes fine, coarse"),
        (f"{name},split=test,image=left,label=none", "no column none"),
        (f"{name},splits=test", "takes ,split="),
        (f"{name},test", "takes ,split="),
        ("hf-dataset:gone", "is not a data set written by"),
        (f"hf-dataset:{tmp_path}", "is not a data set written by"),
    ):
        with pytest.raises(CnnvizError, match=message):
            open_data([text])
    data = open_data([f"{name},split=test,image=right,label=fine"])
    assert data.classes == ("a", "b")
    assert data.examples[1].path.endswith("/test/1")


def test_a_row_without_a_picture_is_its_own_error(tmp_path: Path) -> None:
    text = saved(tmp_path / "d", {"image": [*cells(1), None]}, {"image": datasets.Image()})
    with pytest.raises(CnnvizError, match="has no image"):
        open_data([text]).open(1)
