"""`cnnviz reasons`: how many reasons does the network have, and which are needed?"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cnnviz.cli.commands.images import ReasonsCommand
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.choices import decimals
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.models.load import Model
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.overlays import photograph
from cnnviz.core.output.record import table
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.summary import read_summary
from cnnviz.reasons.experiment import Reasoner
from cnnviz.reasons.figures import draw
from cnnviz.reasons.results import Carrier, Pair, ReasonsResult
from cnnviz.reasons.units import Units

INPUT, PAIRS, FILTERS = "input.png", "pairs.csv", "filters.csv"


def reasons(given: ReasonsCommand) -> None:
    """Runs `cnnviz reasons`."""
    run = ImageRun("reasons", given.output)
    paths = run.images(given.images, given.shard)
    loaded = run.load(given.model)
    units = None
    if given.units is not None:
        units = Units(read_summary(given.units, given.data))
        if units.closed:
            run.console.note(
                f"the images of {given.units} are in other folders than it, so no patches are "
                "shown; name theirs with --data"
            )
    study = _Study(given, loaded, units)
    run.note_common(expect=given.expect, inside=given.spec.inside)
    depends = {"options": given.spec, "--expect": given.expect, "--units": given.units}
    inputs = [units.summary] if units else []
    run.go(study, loaded, paths, depends, seed=given.model.seed, inputs=inputs, resume=given.resume)


class _Study(ImageStudy[ReasonsResult, ReasonsResult]):
    """Finds the reasons of one image."""

    kind = ReasonsResult
    work, title = "searching", "Reasons"
    columns = ("image", "class", "p", "reason", "share", "alone", "without")
    show = "reasons.png"

    def __init__(self, given: ReasonsCommand, model: Model, units: Units | None) -> None:
        self._units, spec = units, given.spec
        if units is not None:
            spec = replace(spec, layers=spec.layers or units.layers)
        self._reasoner = Reasoner(model, spec)
        self._expected = read_outlines(given.expect) if given.expect else None
        self.steps = self._reasoner.steps

    def one(self, image: WorkingImage, path: str, advance: Advance) -> ReasonsResult:
        result = self._reasoner.run(image, advance)
        if self._expected is not None:
            result = result.on(outline_mask(self._expected.for_image(path), image))
        return result

    def entry(self, result: ReasonsResult) -> ReasonsResult:
        return result

    def files(self, result: ReasonsResult, folder: RunFolder) -> None:
        image = result.occlusion.measured.image
        folder.write_image(INPUT, image_pixels(image))
        patches = None if self._units is None else self._units.patches
        for name, figure in draw(result, photograph(image), patches).items():
            folder.write_figure(name, figure)
        if rows := list(result.table_pairs()):
            folder.write_csv(PAIRS, *table(Pair, rows))
        if filters := list(result.table_carriers()):
            folder.write_csv(FILTERS, *table(Carrier, filters))

    def rows(self, entry: ReasonsResult) -> Iterator[tuple[object, ...]]:
        for target in entry.targets:
            named = [(str(n), reason) for n, reason in enumerate(target.reasons, start=1)]
            if target.needed is not None:
                named.append(("also necessary", target.needed))
            for name, reason in named:
                yield (
                    Path(entry.image).name,
                    target.class_,
                    decimals(target.reading),
                    name,
                    f"{reason.share:.1%}",
                    decimals(reason.alone),
                    decimals(reason.without) + " (lost)" * reason.lost,
                )
