"""Makes the README's pictures: photographs with their maps, and a page being explored.

    CNNVIZ_TEST_ASSETS=… python docs/write_strip.py

Needs SqueezeNet 1.1's published weights (`$CNNVIZ_TEST_ASSETS/weights/squeezenet1_1.pth`), and
Chromium with Playwright for the animation.
"""

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from cnnviz.cli.main import run
from cnnviz.core import load_model, read_image
from cnnviz.core.output.options import Look
from cnnviz.core.output.overlays import draw_picture, paint_map, photograph, scales
from cnnviz.occlusion import OcclusionSpec, occlude

DOCS = Path(__file__).parent
IMAGES = DOCS / "img"
PHOTOS = DOCS.parent / "sample_photos"
WEIGHTS = Path(os.environ["CNNVIZ_TEST_ASSETS"], "weights", "squeezenet1_1.pth")
MODEL = "squeezenet1_1"
SHOWN = ("soccer-ball", "traffic-light", "jack-o-lantern", "daisy", "balloon")
EXPLORED = "balloon"
SIDE, GAP = 240, 6
PATH = [(0.3, 0.3), (0.42, 0.36), (0.5, 0.42), (0.56, 0.5), (0.62, 0.56), (0.72, 0.6), (0.8, 0.4)]
"""Where the pointer goes on the explored picture, as shares of its width and height."""
MILLISECONDS = 700


def write_strip() -> None:
    """Photographs, and below each the same one with its map."""
    model = load_model(MODEL, checkpoint=WEIGHTS, device="cpu")
    width, height = len(SHOWN) * (SIDE + GAP) - GAP, 2 * SIDE + GAP
    figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
    for place, name in enumerate(SHOWN):
        image = read_image(PHOTOS / f"{name}.jpg", model.preprocess)
        values = occlude(model, image, OcclusionSpec()).panels[0].map_HW.numpy()
        (scale,) = scales([values], Look(), "")
        for row in (0, 1):
            left, low = place * (SIDE + GAP) / width, (1 - row) * (SIDE + GAP) / height
            axes = figure.add_axes((left, low, SIDE / width, SIDE / height))
            axes.set_axis_off()
            if row:
                paint_map(axes, values, scale, over=photograph(image))
            else:
                size = (image.pixels.shape[1], image.pixels.shape[2])
                draw_picture(axes, photograph(image), size)
    stream = io.BytesIO()
    figure.savefig(stream, dpi=100)
    Image.open(stream).convert("RGB").save(IMAGES / "strip.webp", quality=82)


def write_hover() -> None:
    """A page of `occlude --report` while a pointer moves over the picture."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        line = ["occlude", str(PHOTOS / f"{EXPLORED}.jpg"), "--model", MODEL]
        line += ["--checkpoint", str(WEIGHTS), "--out", folder, "--report", "--quiet"]
        if run(line):
            raise SystemExit("the run failed")
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1360, "height": 860})
        page.goto((Path(folder) / EXPLORED / "report.html").as_uri())
        page.wait_for_timeout(2500)
        box: Any = page.locator("canvas").first.bounding_box()
        frames = []
        for x, y in PATH:
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            page.wait_for_timeout(250)
            clip = {"x": 40, "y": box["y"] - 70, "width": 1280, "height": box["height"] + 80}
            shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
            frames.append(shot.resize((960, round(960 * shot.height / shot.width))))
        browser.close()
    frames[0].save(
        IMAGES / "hover.webp", save_all=True, append_images=frames[1:], duration=MILLISECONDS,
        loop=0, quality=80,
    )  # fmt: skip


if __name__ == "__main__":
    write_strip()
    write_hover()
