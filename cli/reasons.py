"""`cnnviz reasons`: how many reasons does the network have, and which are needed?"""

from collections.abc import Iterator
from pathlib import Path

from cnnviz.cli.commands.images import ReasonsCommand
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.models.load import Model
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.overlays import photograph
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.reasons.experiment import Reasoner
from cnnviz.reasons.figures import draw
from cnnviz.reasons.results import ReasonsResult

INPUT = "input.png"


def reasons(given: ReasonsCommand) -> None:
    """Runs `cnnviz reasons`."""
    run = ImageRun("reasons", given.output)
    paths = run.images(given.images, given.shard)
    loaded = run.load(given.model)
    study = _Study(given, loaded)
    run.note_common(expect=given.expect, inside=given.spec.inside)
    depends = {"options": given.spec, "--expect": given.expect}
    run.go(study, loaded, paths, depends, seed=given.model.seed, resume=given.resume)


class _Study(ImageStudy[ReasonsResult, ReasonsResult]):
    """Finds the reasons of one image."""

    kind = ReasonsResult
    work, title = "searching", "Reasons"
    columns = ("image", "class", "p", "reason", "share", "alone", "without")
    show = "reasons.png"

    def __init__(self, given: ReasonsCommand, model: Model) -> None:
        self._reasoner = Reasoner(model, given.spec)
        self._expected = read_outlines(given.expect) if given.expect else None
        self.steps = self._reasoner.occluder.positions

    def one(self, image: WorkingImage, path: Path, advance: Advance) -> ReasonsResult:
        result = self._reasoner.run(image, advance)
        if self._expected is not None:
            result = result.on(outline_mask(self._expected.for_image(str(path)), image))
        return result

    def entry(self, result: ReasonsResult) -> ReasonsResult:
        return result

    def files(self, result: ReasonsResult, folder: RunFolder) -> None:
        image = result.occlusion.measured.image
        folder.write_image(INPUT, image_pixels(image))
        for name, figure in draw(result, photograph(image)).items():
            folder.write_figure(name, figure)

    def rows(self, entry: ReasonsResult) -> Iterator[tuple[object, ...]]:
        for target in entry.targets:
            named = [(str(n), reason) for n, reason in enumerate(target.reasons, start=1)]
            if target.needed is not None:
                named.append(("necessary too", target.needed))
            for name, reason in named:
                yield (
                    Path(entry.image).name,
                    target.class_,
                    f"{target.reading:.3f}",
                    name,
                    f"{reason.share:.1%}",
                    f"{reason.alone:.3f}",
                    f"{reason.without:.3f}" + " (lost)" * reason.lost,
                )
