"""Finished runs as pages show them: whatever a command wrote, read back from its folder.

Every run has its facts, its tables (each CSV, sorted by clicking) and its pictures; some have more:
the pictures of `occlude` can be asked, the maps of `tsne` explored.
"""

import csv
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.run_data import SUMMARY
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE, from_json, read_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cnnviz.report.explorer import Explored
    from cnnviz.report.page import Room, Section
    from cnnviz.report.scatter import Scattered

MOST_ROWS = 20_000
MOST_PICTURES = 60
SHOWN = 400
"""Letters of a command line that are shown."""
PICTURES = (".png", ".svg")
PLAIN = frozenset({"input.png", "crop.png"})
"""Pictures of a run that are no findings."""


class Pages:
    """Sections of a page, made one after the other while there is room.

    Attributes:
        room: what is left on the page.
        left_out: what did not fit.
    """

    def __init__(self, room: "Room") -> None:
        self.room = room
        self.left_out: list[str] = []

    def section(self, folder: Path, content: Mapping[str, Any]) -> "Section":
        """What the page says of a run.

        Args:
            folder: of the run.
            content: its summary.

        Raises:
            CnnvizError: what it wrote is not there, or damaged.
        """
        from cnnviz.report.page import Section

        name = folder.resolve().name
        section = Section(f"{content['command']}: {name}", list(_facts(content)))
        section.notes += [f"failed: {e['message']}" for e in content["errors"][:20]]
        try:
            if content["command"] in ("occlude", "render"):
                self._add_explorers(section, folder, content)
            if content["command"] == "tsne":
                self._add_map(section, folder, content)
            self._add_tables(section, folder, content)
            self._add_pictures(section, folder, content)
        except (*DAMAGE, AttributeError, ArithmeticError) as error:
            raise CnnvizError(
                f"what {folder} holds is damaged, or not complete: {one_line(error)}"
            ) from error
        return section

    def _add_explorers(self, section: "Section", folder: Path, content: Mapping[str, Any]) -> None:
        from cnnviz.report.explorer import FEWEST, bytes_of, explore
        from cnnviz.report.page import Widget

        entries = [e for e in content["results"] if _holds_scores(folder, e)]
        for number, entry in enumerate(entries):
            explored = _explored(_inside(folder, str(entry.get("folder", "."))), entry)
            fair = 0.9 * self.room.left / (len(entries) - number)
            classes = len(explored.labels)
            while classes > FEWEST and bytes_of(explored, classes) > fair:
                classes //= 2
            if not self.room.take(bytes_of(explored, classes)):
                more = len(entries) - number
                self.left_out.append(f"{more} pictures of {section.title} that could be asked")
                return
            text = _scorecard(entry)
            if classes < len(explored.labels):
                text += (
                    f" {classes} of {len(explored.labels)} classes can be chosen, those that are "
                    "most probable anywhere."
                )
            model = explore(explored, classes)
            section.blocks.append(Widget(model, Path(entry["image"]).name, text.strip()))

    def _add_map(self, section: "Section", folder: Path, content: Mapping[str, Any]) -> None:
        from cnnviz.report.page import Widget
        from cnnviz.report.scatter import MOST, atlas, bytes_of, scatter

        if not content["results"]:
            return
        count = int(content["results"]["images"])
        if count > MOST:
            self.left_out.append(
                f"{section.title}: the map, as {count:,} images are more than {MOST:,}; "
                "they are in embedding.csv, or embedding.parquet"
            )
            return
        scattered = _scattered(folder, content)
        address, columns = atlas(scattered.pictures)
        if bytes_of(scattered, address) > self.room.left:
            self.left_out.append(f"{section.title}: the small pictures of its map")
            address = ""
        if not self.room.take(bytes_of(scattered, address)):
            self.left_out.append(f"{section.title}: its map")
            return
        missing = sum(picture is None for picture in scattered.pictures)
        if missing:
            section.notes.append(f"{missing} of {count} pictures are no longer where they were")
        section.blocks.append(Widget(scatter(scattered, address, columns), "Map"))

    def units(self, runs: "Sequence[tuple[Path, Mapping[str, Any]]]") -> "Section | None":
        """The passports of all units that runs on one network tell of; None where none does."""
        from cnnviz.cli.report_units import Units
        from cnnviz.report.page import Section, Widget
        from cnnviz.report.passports import bytes_of, passports

        found = Units(runs)
        if not found.passports:
            return None
        first = runs[0][1]
        section = Section(f"units of {first['model']['name']}", list(_facts(first))[1:3])
        kept = [unit for unit in found.passports if self.room.take(bytes_of(unit))]
        if len(kept) < len(found.passports):
            more = len(found.passports) - len(kept)
            self.left_out.append(f"{section.title}: {more} of {len(found.passports)} units")
        pictures, without = found.pictures(kept, self.room.take)
        if without:
            self.left_out.append(
                f"{section.title}: {without} of {len(pictures)} pictures of patches"
            )
        section.blocks.append(Widget(passports(kept, pictures), f"{len(kept):,} units"))
        return section

    def _add_tables(self, section: "Section", folder: Path, content: Mapping[str, Any]) -> None:
        from cnnviz.report.page import Widget
        from cnnviz.report.tables import make_table

        for name, header, rows in _tables(folder, content):
            size = 6000 + 900 * len(header) + sum(len(str(c)) + 4 for row in rows for c in row)
            if len(rows) > MOST_ROWS or not self.room.take(size):
                self.left_out.append(f"{section.title}: {name}, {len(rows):,} rows")
                continue
            section.blocks.append(
                Widget(make_table(header, rows)[0], f"{name}, {len(rows):,} rows")
            )

    def _add_pictures(self, section: "Section", folder: Path, content: Mapping[str, Any]) -> None:
        from cnnviz.core.data.images import read_rgb
        from cnnviz.report.page import Gallery, Picture, data_address, picture_address

        names = [
            name
            for name in map(str, content["files"])
            if name.endswith(PICTURES) and Path(name).name not in PLAIN
        ]
        printed = sum(str(name).endswith(".pdf") for name in content["files"])
        if printed:
            self.left_out.append(f"{section.title}: {printed} figures that are PDF files")
        shown = []
        for name in names[:MOST_PICTURES]:
            path = _inside(folder, name)
            if path.suffix == ".svg":
                address = data_address("image/svg+xml", path.read_bytes())
            else:
                address = picture_address(read_rgb(path))
            if not self.room.take(len(address)):
                break
            shown.append(Picture(name, address))
        if len(shown) < len(names):
            more = len(names) - len(shown)
            self.left_out.append(f"{section.title}: {more} of {len(names)} pictures")
        if shown:
            section.blocks.append(Gallery("Pictures", shown))


def read_summary(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A run's folder and summary.

    Raises:
        UsageError: it is none of cnnviz.
    """
    place = folder / SUMMARY
    try:
        content: Any = from_json(read_text(place))
        known = content["schema"] == f"cnnviz.{content['command']}/1"
        known = known and isinstance(content["files"], list) and "results" in content
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"'{place}' is no summary of cnnviz") from error
    if not known:
        raise UsageError(f"'{place}' is no summary of cnnviz")
    return place.parent, content


def _inside(folder: Path, name: str) -> Path:
    """A file of the run; whatever a summary says, none outside."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CnnvizError(f"{folder / SUMMARY} lists what is not its own: {name}")
    return path


def _facts(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    line = "cnnviz " + shlex.join(map(str, content["argv"]))
    yield "command", line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
    model = content["model"]
    if model:
        size = "×".join(map(str, model["input_size"]))
        yield "model", f"{model['name']}, {model['classes']} classes, {size}, {model['head']}"
        yield "weights", str(model["weights_sha256"])[:12]
        yield "device", f"{content['device']}, {content['precision']}"
    yield "version", str(content["version"])
    yield "seconds", f"{content['elapsed_seconds']:.1f}"


def _tables(
    folder: Path, content: Mapping[str, Any]
) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    """The results as a table, where they are a list of entries, and every CSV of the run."""
    results = content["results"]
    if isinstance(results, list) and results:
        rows = [dict(_flat(part)) for entry in results for part in _parts(entry)]
        header = list(dict.fromkeys(name for row in rows for name in row))
        yield "results", header, [[row.get(name, "") for name in header] for row in rows]
    for name in map(str, content["files"]):
        if not name.endswith(".csv"):
            continue
        text = read_text(_inside(folder, name))
        lines = list(csv.reader(io.StringIO(text, newline="")))
        if len(lines) > 1:
            yield name, lines[0], [list(line) for line in lines[1:]]


def _parts(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """An entry as rows: one for each class or map where it is about several."""
    image = {"image": entry.get("image", "")}
    for name in ("targets", "maps"):
        if isinstance(entry.get(name), list):
            yield from ({**image, **part} for part in entry[name])
            return
    yield {**image, **entry}


def _flat(entry: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """What can stand in a row: plain values, those of dictionaries, of lists the first entry's."""
    for key, value in entry.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            if len(before) < 2 * SHOWN:
                yield from _flat(value, f"{name} ")
        elif isinstance(value, list):
            if value and isinstance(value[0], dict):
                if key != "top5":
                    yield from _flat(value[0], f"{name} ")
            elif len(value) <= 4:
                yield name, ", ".join(map(str, value))
        else:
            yield name, value


def _holds_scores(folder: Path, entry: Mapping[str, Any]) -> bool:
    from cnnviz.occlusion.archive import SCORES

    return (_inside(folder, str(entry.get("folder", "."))) / SCORES).exists()


def _scorecard(entry: Mapping[str, Any]) -> str:
    """What the scorecard of the first map says."""
    card = entry["targets"][0].get("trust")
    if not card:
        return ""
    trust = "" if card["trust"] is None else f", trust {card['trust']:.2f}"
    reasons = "; ".join(card["reasons"])
    return f"Scorecard: {card['verdict']}{trust}. {reasons}".strip()


def _explored(folder: Path, entry: Mapping[str, Any]) -> "Explored":
    import numpy as np
    import torch

    from cnnviz.occlusion.archive import load, load_crop
    from cnnviz.occlusion.choices import Upsample
    from cnnviz.report.explorer import Explored

    measured, crop = load(folder), load_crop(folder)
    pixels = measured.image.pixels.numpy()
    if crop is None:
        crop = (pixels * 255).round().astype(np.uint8).transpose(1, 2, 0)
    return Explored(
        picture=crop,
        size=(int(pixels.shape[1]), int(pixels.shape[2])),
        boxes_P4=torch.cat([grid.boxes_P4 for grid in measured.grids]).numpy(),
        masks=[(grid.name, *grid.shape) for grid in measured.grids],
        labels=measured.labels,
        logits_PK=measured.logits_PK.double().numpy(),
        base_logits_K=measured.base_logits_K.double().numpy(),
        head=measured.head.kind.value,
        given=measured.head.probabilities_given,
        score=measured.score.value,
        density=measured.upsample is Upsample.DENSITY,
        targets=list(dict.fromkeys(int(target["index"]) for target in entry["targets"])),
    )


def _scattered(folder: Path, content: Mapping[str, Any]) -> "Scattered":
    import numpy as np
    from PIL import Image

    from cnnviz.cli.run_data import RunData
    from cnnviz.report.scatter import TILE, Scattered

    maps, rows = {}, list[list[str]]()
    for entry in content["results"]["maps"]:
        text = read_text(_inside(folder, f"{entry['folder']}/embedding.csv"))
        _, *rows = csv.reader(io.StringIO(text, newline=""))
        perplexity = entry["perplexity"]
        name = "PCA" if perplexity is None else f"perplexity {perplexity:g}"
        maps[name] = np.array([[float(row[3]), float(row[4])] for row in rows])
    names = [row[0] for row in rows]
    place = {name: number for number, name in enumerate(names)}
    text = read_text(_inside(folder, "neighbors.csv"))
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    columns = [n for n, name in enumerate(header) if name.startswith("neighbor")]
    near = np.full((len(names), len(columns)), -1, np.int64)
    for line in lines:
        near[place[line[0]]] = [place[line[column]] for column in columns]
    data = RunData(content)
    pictures: list[NDArray[np.uint8] | None] = []
    for name in names:
        found = data.image(name)
        if found is None:
            pictures.append(None)
            continue
        found.thumbnail((TILE, TILE))
        square = Image.new("RGB", (TILE, TILE), (200, 200, 200))
        square.paste(found, ((TILE - found.width) // 2, (TILE - found.height) // 2))
        pictures.append(np.asarray(square))
    labels, predicted = ([row[column] for row in rows] for column in (1, 2))
    return Scattered(names, maps, labels, predicted, near, pictures)


def page_of(
    runs: Sequence[tuple[Path, Mapping[str, Any]]], megabytes: float, title: str
) -> tuple[str, list[str]]:
    """The page of some runs, and what did not fit.

    Args:
        runs: folder and summary of each.
        megabytes: the page's size, at most.
        title: of the page.

    Raises:
        CnnvizError: a run is damaged.
        UsageError: a package is missing, or even an empty page is larger than that.
    """
    from cnnviz.report.page import Room, render

    limit, spare = int(megabytes * 1e6), 0
    while True:  # sizes are known before they are drawn only about
        room = Room(limit - spare)
        if room.left < 0:
            least = (limit - room.left) / 1e6
            raise UsageError(
                f"--max-mb {megabytes:g} is too small: what makes a page work takes {least:.1f} MB"
            )
        pages = Pages(room)
        page = render(title, list(_sections(pages, runs)), pages.left_out)
        size = len(page.encode("utf-8", "replace"))
        if size <= limit:
            return page, pages.left_out
        spare += size - limit + 20_000


def _sections(pages: Pages, runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> "Iterator[Section]":
    """Units of each network first, then every run."""
    networks: dict[str, list[tuple[Path, Mapping[str, Any]]]] = {}
    for folder, content in runs:
        if content["model"]:
            networks.setdefault(content["model"]["weights_sha256"], []).append((folder, content))
    for of_one in networks.values():
        units = pages.units(of_one)
        if units is not None:
            yield units
    for folder, content in runs:
        yield pages.section(folder, content)


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as it will stand on disk, entries that come one by one as a list."""
    results = content["results"]
    plain = results if results is None or isinstance(results, dict | list) else list(results)
    found: dict[str, Any] = json.loads(json.dumps({**content, "results": plain}))
    return found
