"""`cnnviz detect`: the boxes of a detector, drawn and numbered for `occlude --box`."""

from collections.abc import Iterator
from pathlib import Path

from cnnviz.cli.commands.images import DetectCommand
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.data.images import WorkingImage, file_crop
from cnnviz.core.errors import UsageError
from cnnviz.core.models.boxes import MOST, Boxes
from cnnviz.core.models.load import Model
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.occlusion.boxes import Detected, draw_boxes
from cnnviz.occlusion.boxes import detect as detect_on


def detect(given: DetectCommand) -> None:
    """Runs `cnnviz detect`."""
    run = ImageRun("detect", given.output)
    paths = run.images(given.images, given.shard)
    model = run.load(given.model, boxes=True)
    if not isinstance(model.target, Boxes):
        raise UsageError(
            f"{model.name} returns no boxes; detect takes detectors, as --model "
            "fasterrcnn_resnet50_fpn (cnnviz models fpn lists some)"
        )
    depends = {"--threshold": given.model.threshold}
    study = _Study(model)
    run.go(study, model, paths, depends, seed=given.model.seed, resume=given.resume)


class _Study(ImageStudy[Detected, Detected]):
    """Finds the boxes of one image, and draws them."""

    kind = Detected
    work, title, show = "detecting", "Boxes", "boxes.png"
    columns = ("image", "box", "score", "x0, y0, x1, y1 in the file")

    def __init__(self, model: Model) -> None:
        self._model = model

    def one(self, image: WorkingImage, path: str, advance: Advance) -> Detected:  # noqa: ARG002
        return detect_on(self._model, image)

    def entry(self, result: Detected) -> Detected:
        return result

    def files(self, result: Detected, folder: RunFolder) -> None:
        folder.write_figure("boxes.png", draw_boxes(result, file_crop(result.working)))

    def rows(self, entry: Detected) -> Iterator[tuple[object, ...]]:
        name = Path(entry.image).name
        for box in entry.boxes[:MOST]:
            y0, x0, y1, x1 = box.box_original
            yield name, f"{box.number} {box.class_}", f"{box.score:.3f}", f"{x0}, {y0}, {x1}, {y1}"
        if (more := len(entry.boxes) - MOST) > 0:
            yield name, f"… and {more:,} more, not drawn", "", "in summary.json (--threshold)"
        if not entry.boxes:
            least = self._model.head.threshold
            yield name, "none", "", f"no score of {least:g} or more (--threshold)"
