"""Pages of finished runs of any command.

A run begins with its findings, as the terminal shows them; pictures follow, of which those of
`occlude` and the maps of `tsne` can be explored by pointing at them. Facts about the run and its
tables (each CSV, sorted by clicking) are folded at the end.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnviz.cli import report_reads as reads
from cnnviz.cli.merge import ENTRIES
from cnnviz.cli.report_units import Units
from cnnviz.core.data.images import read_rgb
from cnnviz.core.errors import UsageError
from cnnviz.core.files import regular
from cnnviz.core.output.record import from_json
from cnnviz.core.output.summary import FinishedRun
from cnnviz.occlusion.results import load_run
from cnnviz.reasons.results import load_run as load_reasons
from cnnviz.report import explorer, passports, regions, scatter
from cnnviz.report.page import (
    Findings,
    Gallery,
    Picture,
    Room,
    Section,
    Widget,
    data_address,
    picture_address,
    render,
)
from cnnviz.report.tables import make_table

MOST_ROWS = 20_000
MOST_PICTURES = 60
LARGEST_PICTURE = 2**26
"""Bytes of an SVG file; larger ones are left out."""
PICTURES = (".png", ".svg")
INPUTS = frozenset({"input.png", "crop.png"})
"""Pictures that are not results."""


class Pages:
    """Makes sections of a page while there is room; `left_out` lists what did not fit."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.left_out: list[str] = []

    def section(self, run: FinishedRun) -> Section:
        """The section of a run."""
        section = Section(page_title([run]), list(reads.facts(run)))
        section.notes += [f"incomplete: {line}" for line in run.missing]
        section.notes += [f"failed: {failure.message}" for failure in run.summary.errors[:20]]
        section.findings += [Findings(f.title, f.columns, f.rows) for f in run.summary.findings]
        with run.reading():
            if isinstance(run.summary.results, list) and run.command in ENTRIES:
                for entry in run.summary.results:
                    from_json(ENTRIES[run.command], entry)
            if run.command == "occlude":
                self._add_explorers(section, run)
            if run.command == "reasons":
                self._add_regions(section, run)
            if run.command == "tsne":
                self._add_map(section, run)
            self._add_pictures(section, run)
            self._add_tables(section, run)
        return section

    def _add_explorers(self, section: Section, run: FinishedRun) -> None:
        entries = [entry for entry in load_run(run) if reads.has_scores(run, entry)]
        for number, entry in enumerate(entries):
            explored = reads.explored(run, entry)
            fair = 0.9 * self.room.left / (len(entries) - number)
            classes = len(explored.labels)
            while classes > explorer.FEWEST and explorer.bytes_of(explored, classes) > fair:
                classes //= 2
            if not self.room.take(explorer.bytes_of(explored, classes)):
                more = len(entries) - number
                self.left_out.append(f"{section.title}: {more} pictures to explore")
                return
            text = reads.scorecard(entry) if len(entries) > 1 else ""  # that one is a finding
            if classes < len(explored.labels):
                text += (
                    f" {classes} of {len(explored.labels)} classes can be chosen, the most "
                    "probable anywhere."
                )
            model = explorer.explore(explored, classes)
            section.blocks.append(Widget(model, Path(entry.image).name, text.strip()))

    def _add_regions(self, section: Section, run: FinishedRun) -> None:
        for entry in load_reasons(run):
            for name, image in reads.regions(run, entry):
                if not self.room.take(regions.bytes_of(image)):
                    self.left_out.append(f"{section.title}: the regions of {entry.image}, {name}")
                    continue
                text = "Click a name to show or hide it; point at an arc for its numbers."
                heading = f"{Path(entry.image).name}, {name}"
                section.blocks.append(Widget(regions.regions(image), heading, text))

    def _add_map(self, section: Section, run: FinishedRun) -> None:
        if not run.summary.results:
            return
        count = int(run.summary.results["images"])
        if count > scatter.MOST:
            self.left_out.append(
                f"{section.title}: the map, as {count:,} images are more than {scatter.MOST:,}; "
                "they are in embedding.csv, or embedding.parquet"
            )
            return
        scattered = reads.scattered(run)
        address, columns = scatter.atlas(scattered.pictures)
        if scatter.bytes_of(scattered, address) > self.room.left:
            self.left_out.append(f"{section.title}: the small pictures of its map")
            address = ""
        if not self.room.take(scatter.bytes_of(scattered, address)):
            self.left_out.append(f"{section.title}: its map")
            return
        missing = sum(picture is None for picture in scattered.pictures)
        if missing:
            section.notes.append(f"{missing} of {count} images no longer exist")
        section.blocks.append(Widget(scatter.scatter(scattered, address, columns), "Map"))

    def units(self, runs: Sequence[FinishedRun]) -> Section | None:
        """The passports of all units in runs of one network; None if there are none."""
        units = Units(runs)
        if not units.passports:
            return None
        name = runs[0].summary.model.name if runs[0].summary.model else ""
        section = Section(f"units of {name}", list(reads.facts(runs[0]))[1:3])
        kept = [unit for unit in units.passports if self.room.take(passports.bytes_of(unit))]
        if len(kept) < len(units.passports):
            more = len(units.passports) - len(kept)
            self.left_out.append(f"{section.title}: {more} of {len(units.passports)} units")
        pictures, without = units.pictures(kept, self.room.take)
        if without:
            self.left_out.append(
                f"{section.title}: {without} of {len(pictures)} pictures of patches"
            )
        widget = passports.passports(kept, pictures)
        section.blocks.append(Widget(widget, f"{len(kept):,} units"))
        return section

    def _add_tables(self, section: Section, run: FinishedRun) -> None:
        for name, header, rows in reads.tables(run):
            size = 6000 + 900 * len(header) + sum(len(str(c)) + 4 for row in rows for c in row)
            if len(rows) > MOST_ROWS or not self.room.take(size):
                self.left_out.append(f"{section.title}: {name}, {len(rows):,} rows")
                continue
            widget = make_table(header, rows)[0]
            count = f"{len(rows):,} row" + "s" * (len(rows) != 1)
            section.folded.append(Widget(widget, f"{name} ({count})"))

    def _add_pictures(self, section: Section, run: FinishedRun) -> None:
        files = run.summary.files
        names = [n for n in files if n.endswith(PICTURES) and Path(n).name not in INPUTS]
        names.sort(key=lambda name: not name.startswith("overview"))  # first, in their order
        printed = sum(name.endswith(".pdf") for name in files)
        if printed:
            self.left_out.append(f"{section.title}: {printed} figures that are PDF files")
        shown: list[Picture] = []
        for name in names[:MOST_PICTURES]:
            path = regular(run.file(name))
            if path.suffix != ".svg":
                address = picture_address(read_rgb(path))
            elif path.stat().st_size <= LARGEST_PICTURE:
                address = data_address("image/svg+xml", path.read_bytes())
            else:
                continue
            if not self.room.take(len(address)):
                break
            shown.append(Picture(name, address))
        if len(shown) < len(names):
            more = len(names) - len(shown)
            self.left_out.append(f"{section.title}: {more} of {len(names)} pictures")
        if shown:
            section.blocks.append(Gallery("Pictures", shown))


def page_of(runs: Sequence[FinishedRun], megabytes: float, title: str) -> tuple[str, list[str]]:
    """The page of some runs, and what did not fit on it."""
    limit, spare = int(megabytes * 1e6), 0
    while True:  # the sizes of parts are estimates until they are rendered
        room = Room(limit - spare)
        if room.left < 0:
            minimum = (limit - room.left) / 1e6
            raise UsageError(
                f"--max-mb {megabytes:g} is too small: an empty page takes {minimum:.1f} MB"
            )
        pages = Pages(room)
        page = render(title, list(_sections(pages, runs)), pages.left_out)
        size = len(page.encode("utf-8", "replace"))
        if size <= limit:
            return page, pages.left_out
        spare += size - limit + 20_000


def page_title(runs: Sequence[FinishedRun]) -> str:
    """The heading of a page that was not given one."""
    if len(runs) > 1:
        return f"{len(runs)} runs of cnnviz"
    command, name = runs[0].command, runs[0].folder.resolve().name
    return command if name == command else f"{command}: {name}"


def _sections(pages: Pages, runs: Sequence[FinishedRun]) -> Iterator[Section]:
    """Every run, which begins with its findings, then the units of each network."""
    networks: dict[str, list[FinishedRun]] = {}
    for run in runs:
        if run.summary.model:
            networks.setdefault(run.summary.model.weights_sha256, []).append(run)
    units = [pages.units(of_network) for of_network in networks.values()]  # have room first
    yield from map(pages.section, runs)
    yield from (section for section in units if section is not None)


def page_of_new(
    folder: Path, content: Mapping[str, Any], megabytes: float
) -> tuple[str, list[str]]:
    """The page of a run whose summary is about to be written."""
    results = content["results"]
    plain = results if results is None or isinstance(results, dict | list) else list(results)
    written: dict[str, Any] = json.loads(json.dumps({**content, "results": plain}))
    run = FinishedRun.of(folder, written, images_below=None)
    return page_of([run], megabytes, page_title([run]))
