"""`cnnviz occlude`: cover an image piece by piece and see which pieces carry the prediction."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnviz.cli.options import ModelOptions, OutputOptions
from cnnviz.cli.run import ImageRun
from cnnviz.core.errors import CheckFailed, CnnvizError, UsageError
from cnnviz.core.options import Option
from cnnviz.core.output.look import Look
from cnnviz.occlusion.choices import FOLDER, MapKind, OcclusionSpec

if TYPE_CHECKING:
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.data.outlines import Outlines
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.occlusion.agreement import Gradient
    from cnnviz.occlusion.expectation import Verdict
    from cnnviz.occlusion.experiment import Occluder, OcclusionResult


def occlude(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")
    ],
    spec: OcclusionSpec,
    look: Look,
    expect: Annotated[
        str | None,
        Option(
            "Where the object is, in the file's pixels: x0,y0,x1,y1, or a JSON file of boxes "
            "or polygons per image."
        ),
    ] = None,
    min_inside: Annotated[
        float | None,
        Option(
            "With --expect: exit with status 3 if less than this share of the positive "
            "evidence lies on the object.",
            least=0,
            most=1,
        ),
    ] = None,
    scores: Annotated[bool, Option("Write scores.npz (what render reads).")] = True,
    *,
    model: ModelOptions,
    output: OutputOptions,
) -> None:
    """Cover an image piece by piece: which pieces carry the prediction?

    cnnviz occlude dog.jpg --model resnet18 --mask 15 --stride 10

    Writes overlay, heatmap, probability and label pictures and the raw scores, for each image.
    """
    run = ImageRun("occlude", output)
    if min_inside is not None and expect is None:
        raise UsageError("--min-inside needs --expect, which says where the object is")
    from cnnviz.core.data.images import find_images
    from cnnviz.core.data.outlines import read_outlines
    from cnnviz.occlusion.experiment import Occluder

    paths = find_images(images)
    expectations = read_outlines(expect) if expect else None
    loaded = run.load(model)
    occluder = Occluder(loaded, spec, _Tracer(loaded, spec, run.console.note))
    if occluder.note:
        run.console.note(occluder.note)
    run.open_for(paths)
    study = _Study(occluder, expectations, spec.label == FOLDER, look, scores)
    run.study("occluding", loaded, study, occluder.positions)
    columns = COLUMNS if loaded.head.has_classes else REGRESSION
    run.console.table("Occlusion", columns, [_row(entry) for entry in run.entries])
    run.finish_images(loaded, seed=model.seed, show="overlay.png")
    if min_inside is not None:
        _check_inside(study.checked, min_inside)


class _Tracer:
    """Grad-CAM of the classes that occlusion asks about, where the network allows it.

    Where it does not, that is said once, unless the agreement is what was asked for.
    """

    def __init__(self, model: "Model", spec: OcclusionSpec, note: Callable[[str], None]) -> None:
        from cnnviz.gradients.experiment import default_layer

        self._model, self._spec, self._note = model, spec, note
        self._layer: str | None = None
        try:
            self._layer = default_layer(model)
        except CnnvizError as error:
            self._give_up(error)

    def _give_up(self, error: CnnvizError) -> None:
        if self._spec.method is MapKind.AGREEMENT:
            raise error
        self._layer = None
        self._note(f"no agreement.png: {error}")

    def __call__(self, image: "WorkingImage", targets: Sequence[int]) -> "Gradient | None":
        from cnnviz.gradients.choices import Method, SaliencySpec
        from cnnviz.gradients.experiment import saliency
        from cnnviz.occlusion.agreement import Gradient

        if self._layer is None:
            return None
        at, inside = self._spec.at, self._spec.inside
        spec = SaliencySpec(method=Method.GRAD_CAM, layer=self._layer, at=at, inside=inside)
        try:
            found = saliency(self._model, image, spec, classes=targets)
        except CnnvizError as error:
            self._give_up(error)
            return None
        maps = {traced.target: traced.map_HW for traced in found.maps}
        return Gradient(f"Grad-CAM at {self._layer}", maps)


class _Study:
    """Measures one image, judges the maps where the user said what to expect, and writes them."""

    def __init__(
        self,
        occluder: "Occluder",
        expectations: "Outlines | None",
        label_by_folder: bool,
        look: Look,
        scores: bool,
    ) -> None:
        self._occluder, self._look, self._scores = occluder, look, scores
        self._expectations, self._label_by_folder = expectations, label_by_folder
        self.checked: list[tuple[str, float | None]] = []

    def __call__(
        self, path: Path, image: "WorkingImage", advance: Callable[[int], None]
    ) -> "tuple[dict[str, Any], Callable[[RunFolder], None]]":
        from cnnviz.occlusion.report import report

        expected = self._expectations.for_image(str(path)) if self._expectations else None
        label = expected.label if expected and not self._label_by_folder else None
        result = self._occluder.run(image, label=label, progress=advance)
        entry = report(result, *self._judge(result, image))
        return entry, lambda folder: self._write(folder, result)

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
        asked = result.panels[0].target if result.label is None else result.label
        first = next(i for i, panel in enumerate(result.panels) if panel.target == asked)
        self.checked.append((image.path, verdicts[first].inside))
        return verdicts, [judge(a.map_HW, object_HW) if a else None for a in result.agreements]

    def _write(self, folder: "RunFolder", result: "OcclusionResult") -> None:
        from cnnviz.core.data.images import file_crop
        from cnnviz.occlusion.archive import CROP, INPUT, SCORES, to_arrays
        from cnnviz.occlusion.figures import draw, input_pixels

        folder.write_image(INPUT, input_pixels(result))
        crop = file_crop(result.measured.image)
        if crop is not None:
            folder.write_image(CROP, crop)
        for name, figure in draw(result, self._look, crop).items():
            folder.write_figure(name, figure)
        if self._scores:
            folder.write_npz(SCORES, **to_arrays(result))


def _check_inside(checked: list[tuple[str, float | None]], least: float) -> None:
    low = [(path, inside) for path, inside in checked if inside is None or inside < least]
    if low:
        path, inside = low[0]
        share = "no positive evidence at all" if inside is None else f"{inside:.3f}"
        raise CheckFailed(
            f"{len(low)} of {len(checked)} images have less than {least:g} of the positive "
            f"evidence on the object; the first is '{path}': {share}"
        )


COLUMNS = ("image", "class", "p", "mask", "max drop", "reliance", "flips")
REGRESSION = ("image", "output", "value", "mask", "max drop")


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    first = entry["targets"][0]
    height, width = first["mask"]
    mask = str(height) if height == width else f"{height}x{width}"
    row = (Path(entry["image"]).name, first["class"])
    if "value" in first:
        return *row, f"{first['value']:.4g}", mask, f"{first['max_drop']:.4g}"
    return (
        *row,
        f"{first['probability']:.3f}",
        mask,
        f"{first['max_drop']:.3f}",
        f"{first['reliance']:.3f}",
        f"{first['flips']['share']:.1%}",
    )
