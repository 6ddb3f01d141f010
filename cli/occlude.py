"""`cnnviz occlude`: occlude an image piece by piece and see what the prediction depends on."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnviz.cli.commands.images import OccludeCommand, Pictures
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.choices import decimals
from cnnviz.core.data.images import WorkingImage, file_crop
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.core.models.boxes import Boxes
from cnnviz.core.models.labels import class_index
from cnnviz.core.models.load import Model
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.embeddings.likeness import Likeness
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.figures import (
    COMPARED,
    draw,
    draw_both,
    draw_overlay,
    heading,
    input_pixels,
    unit,
)
from cnnviz.occlusion.maps import judge_panels
from cnnviz.occlusion.measurement import CROP, INPUT, SCORES
from cnnviz.occlusion.options import FOLDER
from cnnviz.occlusion.results import OcclusionResult, to_arrays
from cnnviz.trust.figures import Shown
from cnnviz.trust.figures import draw as draw_cards
from cnnviz.trust.judge import GradCam, Judge
from cnnviz.trust.results import check_verdicts, first_target

REFERENCE = "reference.npz"
"""With `--both`: the scores of the reference image; the image is `reference.png`."""


def occlude(given: OccludeCommand) -> None:
    """Runs `cnnviz occlude`."""
    run = ImageRun("occlude", given.output)
    if given.min_inside is not None and given.expect is None:
        raise UsageError("--min-inside needs --expect, which names the object's location")
    paths = run.images(given.images, given.shard)
    if given.both and given.model.like is None:
        raise UsageError("--both needs --like, a reference image")
    loaded = run.load(given.model, boxes=True)
    occluder = Occluder(loaded, given.spec, GradCam(loaded, given.spec, run.console.note))
    if occluder.note:
        run.console.note(occluder.note)
    study = _Study(given, loaded, occluder)
    _check_labels(run, given, study.labels(paths), loaded)
    run.note_common(expect=given.expect, inside=given.spec.inside)
    depends = {
        "options": given.spec,
        "look": given.look,
        "--expect": given.expect,
        "--scores": given.scores,
        "--trust": study.judge is not None,
        "--pictures": given.pictures,
        "--both": given.both,
    }
    run.go(study, loaded, paths, depends, seed=given.model.seed, resume=given.resume)


class _Study(ImageStudy[OcclusionResult, OcclusionResult]):
    """Measures an image, judges the maps if the object or a verdict is requested."""

    kind = OcclusionResult
    work, title = "occluding", "Occlusion"

    def __init__(self, given: OccludeCommand, model: Model, occluder: Occluder) -> None:
        self._head, self._model = model.head, model
        self._exchanged: OcclusionResult | None = None
        self._given, self._occluder, self.steps = given, occluder, occluder.positions
        self._expected = read_outlines(given.expect) if given.expect else None
        trusted = given.trust or given.min_trust is not None
        self.judge = Judge(model, given.spec, occluder) if trusted else None
        word = model.head.word
        self.columns = ("image", "output", word, f"{word} occluded", "mask")
        if isinstance(model.target, Boxes):
            self.columns = ("image", "box", *self.columns[2:], "reliance", "vanishes")
        if model.head.has_classes:
            self.columns = ("image", "class", "p", "p occluded", "mask", "reliance", "flips")
        if self._expected:
            self.columns = (*self.columns, "hit", "inside")
        if trusted:
            self.columns = (*self.columns, "verdict")
        checks = []
        if given.min_inside is not None:
            checks.append(partial(_check_inside, minimum=given.min_inside))
        if given.min_trust is not None:
            checks.append(partial(check_verdicts, minimum=given.min_trust))
        self.checks = checks
        if given.scores and given.pictures is not Pictures.NONE:
            self.arrays, self.look = SCORES, given.look
            compared = COMPARED[occluder.score]
            self.unit = f"mean {compared}" if model.head.has_classes else f"drop of the {word}"

    def labels(self, paths: Sequence[str]) -> list[str]:
        """The classes that `--expect` names for these images."""
        expected = self._expected
        named = [expected.label_of(path) for path in paths] if expected else []
        return [label for label in named if label is not None]

    def one(self, image: WorkingImage, path: str, advance: Advance) -> OcclusionResult:
        outline = self._expected.for_image(path) if self._expected else None
        label = outline.label if outline and self._given.spec.label != FOLDER else None
        result = self._occluder.run(image, label=label, progress=advance)
        if outline:
            result = judge_panels(result, outline_mask(outline, image))
        if self._given.both:
            self._exchanged = exchanged = self._of_reference(path)
            result = replace(result, reference=exchanged.targets[0])
        if self.judge is None:
            return result
        cards = self.judge.of_occlusion(result)
        pairs = zip(result.targets, cards, strict=True)
        return replace(result, targets=tuple(replace(panel, trust=card) for panel, card in pairs))

    def _of_reference(self, path: str) -> OcclusionResult:
        """The reference image, explained by its similarity to the last image."""
        likeness = self._model.target
        assert isinstance(likeness, Likeness)  # noqa: S101 (--both needs --like)
        assert likeness.reference is not None  # noqa: S101 (of --like)
        with likeness.exchanged(path):
            result = self._occluder.run(likeness.reference)
        name = f"like {Path(path).name}"
        panels = tuple(replace(panel, class_=name) for panel in result.targets)
        return replace(result, targets=panels, measured=replace(result.measured, labels=(name,)))

    def entry(self, result: OcclusionResult) -> OcclusionResult:
        return result

    def files(self, result: OcclusionResult, folder: RunFolder) -> None:
        look, pictures = self._given.look, self._given.pictures
        folder.write_image(INPUT, input_pixels(result))
        crop = file_crop(result.measured.image)
        if crop is not None:
            folder.write_image(CROP, crop)
        shown = [
            Shown(heading(result, panel), map_HW, panel.trust)
            for panel, map_HW in zip(result.targets, result.maps, strict=True)
            if panel.trust is not None
        ]
        lines = [judged.verdict for judged in shown]
        figures = {}
        if pictures is Pictures.ALL:
            figures = draw(result, look, crop, lines)
            if shown:
                beneath = _beneath(result)
                has_classes = result.measured.head.has_classes
                figures |= draw_cards(shown, look, unit(result), beneath, has_classes)
        elif pictures is Pictures.OVERLAY:
            figures = {"overlay.png": draw_overlay(result, look, crop, lines)}
        if self._exchanged and pictures is not Pictures.NONE:
            sides = [(side, _beneath(side)) for side in (result, self._exchanged)]
            figures["both.png"] = draw_both(sides, look)
        for name, figure in figures.items():
            folder.write_figure(name, figure)
        if self._given.scores:
            folder.write_npz(SCORES, **to_arrays(result))
            if self._exchanged:
                folder.write_npz(REFERENCE, **to_arrays(self._exchanged))
                picture = Path(REFERENCE).with_suffix(".png").name
                folder.write_image(picture, input_pixels(self._exchanged))

    def line(self, entry: OcclusionResult) -> str:
        first = entry.targets[0]
        change = self._head.change_text(first.reading, first.occluded)
        return f"{Path(entry.image).name}\n{first.class_}\n{change}"

    def rows(self, entry: OcclusionResult) -> Iterator[tuple[object, ...]]:
        for panel in entry.targets:
            height, width = panel.mask
            mask = str(height) if height == width else f"{height}x{width}"
            verdict = (panel.trust.verdict,) if panel.trust else ()
            name = Path(entry.image).name
            value = panel.value is not None and panel.reliance is None
            occluded = panel.reading if panel.occluded is None else panel.occluded
            readings = [f"{r:.4g}" if value else decimals(r) for r in (panel.reading, occluded)]
            shares: tuple[str, ...] = ()
            if panel.reliance is not None and panel.flips is not None:
                shares = (decimals(panel.reliance), f"{panel.flips.share:.1%}")
            yield name, panel.class_, *readings, mask, *shares, *panel.cells, *verdict


def _beneath(result: OcclusionResult) -> NDArray[np.uint8]:
    """The picture below a result's maps."""
    crop = file_crop(result.measured.image)
    return input_pixels(result) if crop is None else crop


def _check_labels(run: ImageRun, given: OccludeCommand, expected: list[str], model: Model) -> None:
    """Refuses true classes that the network does not have, before the first image is occluded."""
    by_folder = given.spec.label == FOLDER
    labels = run.labels() if by_folder else expected
    wrong: dict[str, str] = {}
    for label in set(labels):
        try:
            class_index(label, model.labels)
        except UsageError as error:
            wrong[label] = str(error)
    if wrong:
        count = sum(label in wrong for label in labels)
        raise UsageError(
            f"{'--label folder' if by_folder else '--expect'}: {count} of the {len(labels)} labels "
            f"are not classes of {model.name}: {wrong[min(wrong)]}"
        )


def _check_inside(entries: Iterable[OcclusionResult], minimum: float) -> None:
    checked = {entry.image: first_target(entry).inside for entry in entries}
    low = {
        image: "no positive evidence at all" if math.isnan(inside) else f"{inside:.3f}"
        for image, inside in checked.items()
        if not inside >= minimum
    }
    if low:
        image, share = next(iter(low.items()))
        raise CheckFailed(
            f"{len(low)} of {len(checked)} images have less than {minimum:g} of the positive "
            f"evidence on the object; the first is '{image}': {share}",
            {name: f"{text} of the positive evidence is inside" for name, text in low.items()},
        )
