"""What docs/python.md shows runs, from public faces alone."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page: re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S) for page in PAGES}
DEEP = re.compile(r"(?:from|import) cnnviz\.\w+\.\w+")
ANALYSES = (
    "occlude", "render", "saliency", "trust", "layers", "filters", "activations", "max-patches",
    "ablate", "tsne", "audit",
)  # fmt: skip


def test_every_block_of_the_python_page_runs(tmp_path, monkeypatch, capsys):
    (tmp_path / "sample_images").symlink_to(ROOT / "sample_images")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = BLOCKS[ROOT / "docs" / "python.md"]
    assert len(blocks) > len(ANALYSES)
    for block in blocks:
        exec(block, names)  # noqa: S102 (the page's own)
    assert capsys.readouterr().out
    assert {"overlay.png", "automobile.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_readmes_example_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (block,) = BLOCKS[ROOT / "README.md"]
    exec(block, {})  # noqa: S102 (the page's own)
    assert "32" in capsys.readouterr().out


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_has_its_part_on_the_python_page(name):
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    assert re.search(rf"^## {name}\n(.*\n)*?```python\n", page, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_teaches_a_deep_path(page):
    assert DEEP.findall(page.read_text("utf-8")) == []
