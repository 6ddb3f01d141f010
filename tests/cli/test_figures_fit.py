"""No text of any figure leaves it or covers another one, however long the names are.

PNG, PDF and SVG files are made of the same figure, so it is measured once.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from parts import slow_but
from PIL import Image
from rendering import misplaced

from cnnviz.cli.main import run
from cnnviz.core.output.canvas import Bar, Entry
from cnnviz.core.output.layout import Cell, board, picture
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.text import text_width as width_of
from cnnviz.core.output.text import wrap
from cnnviz.filters.patches import figures as patches

LONG = "Greater Swiss Mountain dog, working breed from the Alps"
MASKS = ["--mask", "5", "--mask", "8", "--mask", "12x20", "--stride", "6"]
LAYER = "features.block3.conv2"
OTHER = ["--weights", "none"]  # another network
PAIR = ["0.png", "1.png", "--mask", "16", "--stride", "16"]
LINES = {
    "occlude": ["occlude", "0.png", *MASKS, "--target", "top3", "--layer", "stem.conv"],
    "occlude-dark": ["occlude", "0.png", "--stride", "8", "--dark", "--label", "0"],
    "occlude-trust": ["occlude", "0.png", "--mask", "16", "--stride", "8", "--trust"],
    "occlude-sufficient": ["occlude", "0.png", "--mask", "16", "--stride", "8", "--sufficient"],
    "occlude-many": ["occlude", "0.png", "1.png", "--mask", "16", "--stride", "16"],
    "occlude-narrow": ["occlude", "0.png", "--mask", "8", "--stride", "8", "--width", "600"],
    "saliency": ["saliency", "0.png", "--method", "grad-cam", "--target", "top3"],
    "saliency-compare": ["saliency", "0.png", "--compare", "occlusion", "--stride", "8"],
    "trust": ["trust", "0.png", "--target", "top2"],
    "reasons": ["reasons", "0.png", "--cell", "8", "--grid", "3", "--segments", "grid"],
    "activations": ["activations", "0.png", "--filters", "random:6", "--layer", "stem.conv"],
    "filters": ["filters", "--layer", "all"],
    "filters-random": ["filters", "--weights", "none", "--compare", "bundled"],
    "layers": ["layers", "."],
    "ablate": ["ablate", "labels.csv", "--filters", "stem.conv:random:8"],
    "ablate-sweep": ["ablate", "labels.csv", "--sweep", "stem.conv", "--cumulative"],
    "tsne": ["tsne", "."],
    "tsne-labelled": ["tsne", "labels.csv"],
    "audit": ["audit", "labels.csv", "--top", "3"],
    "max-patches": ["max-patches", "labels.csv", "--layer", "stem.conv", "--filters", "0-3"],
    "max-patches-evidence": ["max-patches", ".", "--layer", LAYER, "--evidence", "--top", "3"],
    "trust-many": ["trust", "0.png", "1.png"],
}
ON_RUNS = {
    "render": ([["occlude", "0.png", *MASKS]], ["render", "r0/0", "--target", "top3"]),
    "diff-occlude": ([["occlude", *PAIR], ["occlude", *PAIR, *OTHER]], ["diff", "r0", "r1"]),
    "diff-ablate": (
        [["ablate", "labels.csv", "--filters", "stem.conv:1", *more] for more in ([], OTHER)],
        ["diff", "r0", "r1"],
    ),
    "diff-filters": (
        [["filters", "--layer", "stem.conv"], ["filters", "--layer", "stem.conv", *OTHER]],
        ["diff", "r0", "r1"],
    ),
    "diff-max-patches": (
        [["max-patches", "labels.csv", "--layer", "stem.conv", *more] for more in ([], OTHER)],
        ["diff", "r0", "r1"],
    ),
    "diff-tsne": ([["tsne", "labels.csv", *more] for more in ([], OTHER)], ["diff", "r0", "r1"]),
    "diff-audit": ([["audit", "labels.csv", *more] for more in ([], OTHER)], ["diff", "r0", "r1"]),
}
"""Commands that read finished runs, after the command lines that make these."""
QUICK = ("occlude-dark", "saliency", "activations", "filters-random")


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The faults of each figure that is written."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    names = [f"{LONG} {number}" for number in range(10)]
    Path("names.txt").write_text("\n".join(names), "utf-8")
    rows = [f'{number}.png,"{names[number % 2]}"' for number in range(8)]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]), "utf-8")
    faults: dict[str, list[str]] = {}
    write = RunFolder.write_figure

    def measured(folder: RunFolder, name: str, figure: Figure) -> Path:
        written = write(folder, name, figure)  # signs it
        faults[written.name] = misplaced(figure)
        return written

    def lettered(sheet: np.ndarray, texts: list[patches._Text]) -> np.ndarray:
        placed = [(text.text, _extent(text)) for text in texts if text.text]
        faults[f"sheet {len(faults)}"] = [
            *(f"outside: {text!r}" for text, box in placed if not _inside(box, sheet.shape)),
            *(
                f"{a!r} covers {b!r}"
                for (a, one), (b, two) in combinations(placed, 2)
                if _meet(one, two)
            ),
        ]
        return letter(sheet, texts)

    letter = patches._add_texts
    monkeypatch.setattr(patches, "_add_texts", lettered)
    monkeypatch.setattr(RunFolder, "write_figure", measured)
    return faults


def _extent(text: patches._Text) -> tuple[float, ...]:
    shown = patches.shortened(text.text, text.size, text.width)
    anchor = "mm" if text.centred else "lm"
    x0, y0, x1, y1 = patches._font(text.size).getbbox(shown, anchor=anchor)
    return text.x + x0, text.y + y0, text.x + x1, text.y + y1


def _inside(extent: tuple[float, ...], shape: tuple[int, ...]) -> bool:
    x0, y0, x1, y1 = extent
    return x0 >= 0 and y0 >= 0 and x1 <= shape[1] and y1 <= shape[0]


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("command", slow_but(list(LINES), *QUICK))
def test_no_text_is_clipped_or_covered(command: str, found: dict[str, list[str]]) -> None:
    assert run([*LINES[command], "--labels", "names.txt", "--quiet", "--out", "o"]) == 0
    assert found
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("command", slow_but(list(ON_RUNS)))
def test_no_text_is_clipped_or_covered_in_pictures_of_finished_runs(
    command: str, found: dict[str, list[str]]
) -> None:
    lines, reading = ON_RUNS[command]
    for number, line in enumerate(lines):
        assert run([*line, "--labels", "names.txt", "--quiet", "--out", f"r{number}"]) == 0
    found.clear()
    assert run([*reading, "--quiet", "--out", "o"]) == 0
    assert found
    assert {name: faults for name, faults in found.items() if faults} == {}


@pytest.mark.parametrize("count", [1, 3])
def test_a_board_of_long_names_has_room_for_them(count: int) -> None:
    bar = Bar(np.zeros((9, 3)), -1.0, 1.0, f"{LONG} over all masks", (True, True))
    one = picture(lambda _axes: None, (40, 60), f"{LONG}\n{'a.b' * 50}\n{LONG}", LONG, bar, 90.0)
    legend = [Entry(LONG, "red")] * 3
    figure = board([[one] * count, [one] * count], heading=LONG * 3, legend=legend)
    assert misplaced(figure) == []


def test_what_is_clipped_or_covered_is_found() -> None:
    figure = board([[Cell(None, below="beside"), picture(lambda _axes: None, (2, 2), "title")]])
    assert misplaced(figure) == []
    figure.text(0.9, 0.5, LONG)
    text = next(t for t in figure.findobj(Text) if t.get_text() == "title")
    figure.text(*text.get_position(), "over the title")
    figure.text(0.1, 0.9, "-1 %")
    assert misplaced(figure) == [
        f"outside: {LONG!r}",
        "hyphen: '-1 %'",
        "'over the title' covers 'title'",
    ]


@pytest.mark.parametrize("width", [40.0, 90.0, 300.0])
def test_wrapped_lines_are_no_wider_than_asked_and_nothing_is_lost_without_a_sign(width) -> None:
    text = f"{LONG} features.12.expand3x3_activation.{'x' * 60}"
    lines = wrap(text, 9.0, width, 50)
    assert max(width_of(line, 9.0) for line in lines) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap(text, 9.0, width, 2)[-1].endswith("…") == (len(lines) > 2)
