"""Which images of a finished run may be opened again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnviz.core.files import shown_path
from cnnviz.core.output import run_data
from cnnviz.core.output.run_data import RunData


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((4, 4, 3), 99, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_images_are_opened_below_the_named_folders_alone(photos: Path, tmp_path: Path) -> None:
    name = shown_path(str(photos / "a.png"))
    for folders, opened in (([photos], True), ([tmp_path], True), ([tmp_path / "run"], False)):
        data = RunData([str(photos)], folders)
        assert data.closed is not opened
        assert (data.image(name) is not None) is opened
    assert RunData([str(photos)], None).picture(name) is not None


@pytest.mark.parametrize(
    "source", ["/", "..", "cifar10:/", "hf-dataset:/", "\0", "~", "C:/secret", "photos/../.."]
)
def test_a_source_elsewhere_is_not_even_listed(
    source: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(*_: object) -> None:
        raise AssertionError

    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(run_data, "open_data", listed)
    data = RunData([source], [photos])
    assert data.closed
    assert data.image("/etc/hostname") is None


def test_a_link_out_of_the_folder_is_not_followed(photos: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(photos / "a.png")
    Image.open(photos / "b.png").save(inside / "own.png")
    data = RunData([str(inside)], [inside])
    assert data.image(shown_path(str(inside / "own.png"))) is not None
    assert data.image(shown_path(str(inside / "link.png"))) is None


def test_a_manifest_that_names_files_elsewhere_shows_none(photos: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "list.csv").write_text(f"path,label\n{photos / 'a.png'},x\n")
    data = RunData([str(inside / "list.csv")], [inside])
    assert not data.closed
    assert data.image(shown_path(str(photos / "a.png"))) is None
