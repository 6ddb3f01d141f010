"""Finished runs as pages show them: whatever a command wrote, read back from its folder.

Every run has its facts, its tables (each CSV, sorted by clicking) and its pictures; some have more:
the pictures of `occlude` can be asked, the maps of `tsne` explored.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli import report_reads as reads
from cnnviz.cli.run_data import inside
from cnnviz.core.errors import CnnvizError, UsageError, one_line
from cnnviz.core.files import DAMAGE

if TYPE_CHECKING:
    from cnnviz.report.page import Room, Section

MOST_ROWS = 20_000
MOST_PICTURES = 60
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
        section = Section(f"{content['command']}: {name}", list(reads.facts(content)))
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

        entries = [e for e in content["results"] if reads.holds_scores(folder, e)]
        for number, entry in enumerate(entries):
            explored = reads.explored(inside(folder, str(entry.get("folder", "."))), entry)
            fair = 0.9 * self.room.left / (len(entries) - number)
            classes = len(explored.labels)
            while classes > FEWEST and bytes_of(explored, classes) > fair:
                classes //= 2
            if not self.room.take(bytes_of(explored, classes)):
                more = len(entries) - number
                self.left_out.append(f"{more} pictures of {section.title} that could be asked")
                return
            text = reads.scorecard(entry)
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
        scattered = reads.scattered(folder, content)
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
        section = Section(f"units of {first['model']['name']}", list(reads.facts(first))[1:3])
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

        for name, header, rows in reads.tables(folder, content):
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
            path = inside(folder, name)
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
