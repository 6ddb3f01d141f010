"""`cnnviz occlude`: cover an image piece by piece and see which pieces carry the prediction."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnviz.cli.options import MapOptions, ModelOptions, OutputOptions, check_alpha
from cnnviz.cli.run import ImageRun
from cnnviz.core.choices import pixels
from cnnviz.core.errors import CheckFailed, UsageError
from cnnviz.occlusion.choices import Border, EngineChoice, Score, Upsample

if TYPE_CHECKING:
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.output.panels import Look
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.occlusion.expectation import Expectations, Verdict
    from cnnviz.occlusion.experiment import Occluder, OcclusionResult

FOLDER_LABEL = "folder"


def occlude(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")
    ],
    maps: MapOptions,
    model: ModelOptions,
    output: OutputOptions,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="Side of the mask in pixels, or HxW; repeat for several. Default: 20 % of the "
            "shorter side."
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Pixels between positions. Default: 10 % of the shorter side."),
    ] = None,
    fill: Annotated[
        str,
        typer.Option(
            help="What masks show: mean, gray, black, white, #rrggbb, blur, noise or image-mean."
        ),
    ] = "mean",
    score: Annotated[
        Score, typer.Option(help="What is compared between untouched and covered.")
    ] = Score.PROBABILITY,
    border: Annotated[
        Border,
        typer.Option(
            help="cover: the whole image, edge masks cut off; inside: whole masks only; center: "
            "centred on every S-th pixel."
        ),
    ] = Border.COVER,
    upsample: Annotated[
        Upsample,
        typer.Option(help="From positions to pixels: mean over covering masks, or interpolation."),
    ] = Upsample.COVERAGE,
    label: Annotated[
        str | None,
        typer.Option(help="The true class; 'folder': the name of each image's folder."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Also watch this layer's strongest map.")
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            help="Where the object is, in the file's pixels: x0,y0,x1,y1, or a JSON file of boxes "
            "or polygons per image."
        ),
    ] = None,
    min_inside: Annotated[
        float | None,
        typer.Option(
            help="With --expect: exit with status 3 if less than this share of the positive "
            "evidence lies on the object."
        ),
    ] = None,
    engine: Annotated[
        EngineChoice,
        typer.Option(help="full: whole passes; incremental: only what a mask can reach."),
    ] = EngineChoice.AUTO,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Have the other engine repeat 32 positions, and compare."),
    ] = False,
    scores: Annotated[
        bool, typer.Option("--scores/--no-scores", help="Write scores.npz (what render reads).")
    ] = True,
) -> None:
    """Cover an image piece by piece: which pieces carry the prediction?

    cnnviz occlude dog.jpg --model resnet18 --mask 15 --stride 10

    Writes overlay, heatmap, probability and label pictures and the raw scores, for each image.
    """
    run = ImageRun("occlude", output)
    check_alpha(maps.alpha)
    _check_share(min_inside, expect)
    from cnnviz.core.data.images import find_images
    from cnnviz.core.output.panels import Look
    from cnnviz.occlusion.expectation import read_expectations
    from cnnviz.occlusion.experiment import Occluder, OcclusionSpec

    spec = OcclusionSpec(
        masks=tuple(pixels(text, "--mask") for text in mask or ()),
        stride=stride,
        border=border,
        fill=fill,
        targets=maps.targets,
        score=score,
        upsample=upsample,
        label=None if label == FOLDER_LABEL else label,
        layer=layer,
        engine=engine,
        batch_size=model.batch(),
        seed=model.seed,
        verify=verify,
    )
    paths = find_images(images)
    expectations = read_expectations(expect) if expect else None
    loaded = run.load(model)
    occluder = Occluder(loaded, spec)
    if occluder.note:
        run.console.note(occluder.note)
    run.open_for(paths)
    study = _Study(
        occluder, expectations, label == FOLDER_LABEL, Look(maps.colormap, maps.alpha), scores
    )
    run.study("occluding", loaded, study, occluder.positions)
    run.console.table("Occlusion", _COLUMNS, [_row(entry) for entry in run.entries])
    run.finish_images(loaded, seed=model.seed, show="overlay.png")
    if min_inside is not None:
        _check_inside(study.checked, min_inside)


class _Study:
    """Measures one image, judges the maps where the user said what to expect, and writes them."""

    def __init__(
        self,
        occluder: "Occluder",
        expectations: "Expectations | None",
        label_by_folder: bool,
        look: "Look",
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
        label = expected.label if expected else None
        if self._label_by_folder:
            label = path.resolve().parent.name
        result = self._occluder.run(image, label=label, progress=advance)
        verdicts = self._judge(result, image)
        return report(result, verdicts), lambda folder: self._write(folder, result)

    def _judge(self, result: "OcclusionResult", image: "WorkingImage") -> "tuple[Verdict, ...]":
        from cnnviz.occlusion.expectation import judge, object_mask

        if self._expectations is None:
            return ()
        object_HW = object_mask(self._expectations.for_image(image.path), image)
        verdicts = tuple(judge(panel.map_HW, object_HW) for panel in result.panels)
        asked = result.panels[0].target if result.label is None else result.label
        first = next(i for i, panel in enumerate(result.panels) if panel.target == asked)
        self.checked.append((image.path, verdicts[first].inside))
        return verdicts

    def _write(self, folder: "RunFolder", result: "OcclusionResult") -> None:
        from cnnviz.core.data.images import file_crop
        from cnnviz.occlusion.archive import CROP, INPUT, SCORES, to_arrays
        from cnnviz.occlusion.figures import draw, input_pixels

        folder.write_image(INPUT, input_pixels(result))
        crop = file_crop(result.measured.image)
        if crop is not None:
            folder.write_image(CROP, crop)
        for name, figure in draw(result, replace(self._look, backdrop=crop)).items():
            folder.write_figure(name, figure)
        if self._scores:
            folder.write_npz(SCORES, **to_arrays(result))


def _check_share(min_inside: float | None, expect: str | None) -> None:
    if min_inside is not None and not 0 <= min_inside <= 1:
        raise UsageError(f"--min-inside {min_inside:g} is out of range; it takes a share, 0 to 1")
    if min_inside is not None and expect is None:
        raise UsageError("--min-inside needs --expect, which says where the object is")


def _check_inside(checked: list[tuple[str, float | None]], least: float) -> None:
    low = [(path, inside) for path, inside in checked if inside is None or inside < least]
    if low:
        path, inside = low[0]
        share = "no positive evidence at all" if inside is None else f"{inside:.3f}"
        raise CheckFailed(
            f"{len(low)} of {len(checked)} images have less than {least:g} of the positive "
            f"evidence on the object; the first is '{path}': {share}"
        )


_COLUMNS = ("image", "class", "p", "mask", "max drop", "reliance", "flips")


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    first = entry["targets"][0]
    height, width = first["mask"]
    return (
        Path(entry["image"]).name,
        first["class"],
        f"{first['probability']:.3f}",
        str(height) if height == width else f"{height}x{width}",
        f"{first['max_drop']:.3f}",
        f"{first['reliance']:.3f}",
        f"{first['flips']['share']:.1%}",
    )
