"""A browser, where there is one, and runs to show."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import HOSTILE
from PIL import Image

from cnnviz.cli.main import run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skips where there is none."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def runs(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """Runs of every kind, on pictures of classes with hostile names."""
    return built_once("runs", _run_all)


def _run_all(root: Path) -> None:
    draw = np.random.default_rng(0)
    names = ["cat", HOSTILE.replace("/", "")]
    for number in range(10):
        place = root / "data" / names[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 256, (40, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}<b>.png")
    classes = [*names, *"cdefghij"]
    (root / "names.txt").write_text("\n".join(classes))
    photo = "data/cat/0<b>.png"
    common = ["--quiet", "--labels", "names.txt"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        lines = {
            "occlude": [photo, "--mask", "8", "--mask", "12", "--stride", "6", "--target", "top2"],
            "classic": [photo, "--trust", "--mask", "12", "--stride", "6"],
            "sigmoid": [photo, "--head", "sigmoid", "--mask", "10"],
            "value": [photo, "--head", "none", "--mask", "10", "--target", "3"],
            "tsne": ["data", "--perplexity", "2", "--perplexity", "3"],
            "max-patches": ["data", "--layer", "stem.conv", "--top", "4"],
            "filters": ["--layer", "stem.conv"],
            "ablate": ["data", "--sweep", "stem.conv"],
            "layers": [],
            "saliency": [photo],
            "activations": [photo, "--layer", "stem.conv"],
            "reasons": [photo, "--skip", "filters", "--grid", "4", "--cell", "8"],
            "audit": ["data", "--mask", "16", "--stride", "16", "--top", "2"],
        }
        for name, line in lines.items():
            command = "occlude" if name in ("classic", "sigmoid", "value") else name
            own = ["--quiet"] if name == "value" else common
            assert run([command, *line, *own, "--out", name]) == 0, name
        assert run(["diff", "audit", "audit", "--out", "diff", "--quiet"]) == 0
