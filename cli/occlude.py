"""`cnnviz occlude`: cover an image piece by piece and see which pieces carry the prediction."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.images import OccludeCommand, Pictures
from cnnviz.cli.image_run import ImageRun
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.core.output.look import Look
from cnnviz.occlusion.choices import FOLDER

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cnnviz.cli.scorecards import Scorecards
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.data.outlines import Outlines
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.occlusion.expectation import Verdict
    from cnnviz.occlusion.experiment import Occluder, OcclusionResult
    from cnnviz.occlusion.report import Entry
    from cnnviz.trust.scorecard import Scorecard


def occlude(given: OccludeCommand) -> None:
    """Runs `cnnviz occlude`."""
    run = ImageRun("occlude", given.output)
    if given.min_inside is not None and given.expect is None:
        raise UsageError("--min-inside needs --expect, which says where the object is")
    from cnnviz.cli.tracer import Tracer
    from cnnviz.core.data.outlines import read_outlines
    from cnnviz.occlusion.experiment import Occluder

    paths = run.images(given.images, given.shard)
    expectations = read_outlines(given.expect) if given.expect else None
    loaded = run.load(given.model)
    occluder = Occluder(loaded, given.spec, Tracer(loaded, given.spec, run.console.note))
    if occluder.note:
        run.console.note(occluder.note)
    cards = None
    if given.trust or given.min_trust:
        from cnnviz.cli.scorecards import Scorecards

        cards = Scorecards(loaded, given.spec, occluder)
    asked = {
        "options": given.spec,
        "look": given.look,
        "--expect": given.expect,
        "--scores": given.scores,
        "--trust": cards is not None,
        "--pictures": given.pictures,
    }
    run.open_for(paths, loaded, asked, resume=given.resume)
    by_folder = given.spec.label == FOLDER
    study = _Study(
        occluder,
        expectations,
        by_folder,
        given.look,
        given.scores,
        given.pictures,
        given.spec.fill,
        cards,
    )
    run.study("occluding", loaded, study, occluder.positions)
    score = next((entry["score"] for entry in run.entries), "probability")
    columns = (*_columns(score), "verdict") if cards else _columns(score)
    run.table("Occlusion", columns, _rows)
    checks: list[Callable[[], None]] = []
    if given.min_inside is not None:
        checks.append(partial(_check_inside, run.entries, given.min_inside))
    if given.min_trust is not None:
        from cnnviz.cli.scorecards import check

        checks.append(lambda: check(run.entries, given.min_trust))
    run.finish_images(loaded, seed=given.model.seed, show="overlay.png", checks=checks)


class _Study:
    """Measures one image, judges the maps where the user said what to expect, and writes them."""

    def __init__(
        self,
        occluder: "Occluder",
        expectations: "Outlines | None",
        label_by_folder: bool,
        look: Look,
        scores: bool,
        pictures: Pictures,
        fill: str,
        cards: "Scorecards | None",
    ) -> None:
        self._occluder, self._look, self._scores, self._cards = occluder, look, scores, cards
        self._pictures, self._fill = pictures, fill
        self._expectations, self._label_by_folder = expectations, label_by_folder

    def __call__(
        self, path: Path, image: "WorkingImage", advance: Callable[[int], None]
    ) -> "tuple[Entry, Callable[[RunFolder], None]]":
        from cnnviz.occlusion.report import report

        expected = self._expectations.for_image(str(path)) if self._expectations else None
        label = expected.label if expected and not self._label_by_folder else None
        result = self._occluder.run(image, label=label, progress=advance)
        entry = report(result, *self._judge(result, image), fill=self._fill)
        cards = self._trust(result, entry) if self._cards else []
        return entry, lambda folder: self._write(folder, result, cards)

    def _trust(self, result: "OcclusionResult", entry: "Entry") -> "list[Scorecard]":
        """A scorecard for each panel, noted in the entry."""
        from cnnviz.trust.report import report

        assert self._cards is not None  # noqa: S101 (told to mypy)
        cards = self._cards.of_result(result)
        for target, card in zip(entry["targets"], cards, strict=True):
            target["trust"] = report(card)
        return cards

    def _judge(
        self, result: "OcclusionResult", image: "WorkingImage"
    ) -> "tuple[list[Verdict], list[Verdict | None]]":
        """Of the maps that are drawn, and of the agreement maps."""
        from cnnviz.core.data.outlines import outline_mask
        from cnnviz.occlusion.expectation import judge

        if self._expectations is None:
            return [], []
        object_HW = outline_mask(self._expectations.for_image(image.path), image)
        verdicts = [judge(map_HW, object_HW) for map_HW in result.maps]
        return verdicts, [judge(a.map_HW, object_HW) if a else None for a in result.agreements]

    def _write(
        self, folder: "RunFolder", result: "OcclusionResult", cards: "list[Scorecard]"
    ) -> None:
        from cnnviz.core.data.images import file_crop
        from cnnviz.occlusion.archive import CROP, INPUT, SCORES, to_arrays
        from cnnviz.occlusion.figures import draw, draw_overlay, input_pixels

        folder.write_image(INPUT, input_pixels(result))
        crop = file_crop(result.measured.image)
        if crop is not None:
            folder.write_image(CROP, crop)
        lines = [card.line for card in cards]
        if self._pictures is Pictures.ALL:
            for name, figure in draw(result, self._look, crop, lines).items():
                folder.write_figure(name, figure)
            if cards:
                self._write_cards(folder, result, cards, crop)
        elif self._pictures is Pictures.OVERLAY:
            folder.write_figure("overlay.png", draw_overlay(result, self._look, crop, lines))
        if self._scores:
            folder.write_npz(SCORES, **to_arrays(result))

    def _write_cards(
        self,
        folder: "RunFolder",
        result: "OcclusionResult",
        cards: "list[Scorecard]",
        crop: "NDArray[np.uint8] | None",
    ) -> None:
        from cnnviz.occlusion.figures import heading, input_pixels, unit
        from cnnviz.trust.figures import draw_certainty, draw_curves

        reading = "probability" if result.measured.head.has_classes else "value"
        names = [heading(result, panel) for panel in result.panels]
        folder.write_figure(
            "curves.png", draw_curves(list(zip(names, cards, strict=True)), reading)
        )
        maps = list(zip(names, result.maps, cards, strict=True))
        beneath = input_pixels(result) if crop is None else crop
        figure = draw_certainty(maps, self._look, unit(result), beneath)
        if figure is not None:
            folder.write_figure("certainty.png", figure)


def _check_inside(entries: Iterable[Mapping[str, Any]], least: float) -> None:
    from cnnviz.cli.scorecards import asked_first

    checked = [(entry["image"], asked_first(entry)["inside"]) for entry in entries]
    low = [(path, inside) for path, inside in checked if inside is None or inside < least]
    if low:
        said = {
            path: "no positive evidence at all" if inside is None else f"{inside:.3f}"
            for path, inside in low
        }
        path = low[0][0]
        raise CheckFailed(
            f"{len(low)} of {len(checked)} images have less than {least:g} of the positive "
            f"evidence on the object; the first is '{path}': {said[path]}",
            {path: f"{share} of the positive evidence is inside" for path, share in said.items()},
        )


DROPS = {"probability": "max drop of p", "logit": "max drop of logit", "loss": "max rise of loss"}


def _columns(score: str) -> tuple[str, ...]:
    if score not in DROPS:
        return "image", "output", "value", "mask", "max drop"
    return "image", "class", "p", "mask", DROPS[score], "reliance", "flips"


def _rows(entry: dict[str, Any]) -> list[tuple[object, ...]]:
    """A row for each class and mask."""
    return [_row(Path(entry["image"]).name, target) for target in entry["targets"]]


def _row(image: str, target: Mapping[str, Any]) -> tuple[object, ...]:
    height, width = target["mask"]
    mask = str(height) if height == width else f"{height}x{width}"
    row = (image, target["class"])
    verdict = (target["trust"]["verdict"],) if "trust" in target else ()
    if "value" in target:
        return *row, f"{target['value']:.4g}", mask, f"{target['max_drop']:.4g}", *verdict
    return (
        *row,
        f"{target['probability']:.3f}",
        mask,
        f"{target['max_drop']:.3f}",
        f"{target['reliance']:.3f}",
        f"{target['flips']['share']:.1%}",
        *verdict,
    )
