"""`cnnviz saliency`: what the gradient says about an image, and whether occlusion agrees."""

import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnviz.cli.options import MapOptions, ModelOptions, OutputOptions, check_alpha
from cnnviz.cli.run import ImageRun
from cnnviz.core.choices import pixels
from cnnviz.core.errors import UsageError
from cnnviz.gradients.choices import LAST_CONV, Method

if TYPE_CHECKING:
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.panels import Look
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.gradients.comparison import Comparison
    from cnnviz.gradients.experiment import SaliencyResult
    from cnnviz.occlusion.experiment import Occluder

INPUT, ARRAYS, COMPARISON = "input.png", "saliency.npz", "comparison.png"


class Other(StrEnum):
    """What a saliency map can be put beside."""

    OCCLUSION = "occlusion"


def saliency(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")
    ],
    maps: MapOptions,
    model: ModelOptions,
    output: OutputOptions,
    method: Annotated[
        Method,
        typer.Option(
            help="gradient: of the pixels; gradient-x-input; grad-cam: of a layer's maps."
        ),
    ] = Method.GRADIENT,
    layer: Annotated[
        str,
        typer.Option(
            help="For grad-cam: a layer's name, or last-conv, the last convolution with a map. In "
            "residual networks the last block (layer4) is customary."
        ),
    ] = LAST_CONV,
    compare: Annotated[
        Other | None,
        typer.Option(help="Put the map beside one of another kind: occlusion (of the logit)."),
    ] = None,
    mask: Annotated[
        str | None, typer.Option(help="With --compare: side of the mask in pixels, or HxW.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="With --compare: pixels between mask positions.")
    ] = None,
) -> None:
    """Trace a prediction back to the pixels: gradient, gradient x input, Grad-CAM.

    cnnviz saliency dog.jpg --model resnet18 --method grad-cam --layer layer4 --compare occlusion

    Writes overlay and heatmap pictures and the raw gradients, for each image.
    """
    run = ImageRun("saliency", output)
    check_alpha(maps.alpha)
    _check(compare, mask, stride, method, layer)
    from cnnviz.core.data.images import find_images
    from cnnviz.core.output.panels import Look

    paths = find_images(images)
    loaded = run.load(model)
    make = _maker(loaded, method, maps.targets, layer)
    other = _occluder(loaded, maps.targets, mask, stride, model) if compare else None
    run.open_for(paths)
    study = _Study(make, other, Look(maps.colormap, maps.alpha))
    run.study("tracing back", loaded, study, 1 + (other.positions if other else 0))
    run.console.table("Saliency", _COLUMNS, [row for entry in run.entries for row in _rows(entry)])
    best = COMPARISON if compare else "overlay.png"
    run.finish_images(loaded, seed=model.seed, show=best)


def _check(
    compare: Other | None,
    mask: str | None,
    stride: int | None,
    method: Method,
    layer: str,
) -> None:
    if compare is None and (mask is not None or stride is not None):
        raise UsageError("--mask and --stride need --compare occlusion, which places masks")
    if method is not Method.GRAD_CAM and layer != LAST_CONV:
        raise UsageError(f"--layer needs --method grad-cam; {method} looks at pixels, not layers")


def _maker(
    model: "Model", method: Method, targets: tuple[str, ...], layer: str
) -> "Callable[[WorkingImage], SaliencyResult]":
    from cnnviz.core.models.layers import find_layer, note_repeats
    from cnnviz.gradients.experiment import find_last_conv, saliency

    if method is Method.GRAD_CAM:
        layer = find_last_conv(model) if layer == LAST_CONV else layer
        find_layer(model.module, layer, model.name)
        note_repeats(model, [layer])
    _check_targets(model, targets)
    return lambda image: saliency(model, image, method=method, targets=targets, layer=layer)


def _check_targets(model: "Model", targets: tuple[str, ...]) -> None:
    import torch

    from cnnviz.core.models.labels import resolve_targets

    resolve_targets(targets, torch.zeros(model.classes), model.labels)


def _occluder(
    model: "Model",
    targets: tuple[str, ...],
    mask: str | None,
    stride: int | None,
    options: ModelOptions,
) -> "Occluder":
    from cnnviz.occlusion.choices import Score
    from cnnviz.occlusion.experiment import Occluder, OcclusionSpec

    spec = OcclusionSpec(
        masks=(pixels(mask, "--mask"),) if mask else (),
        stride=stride,
        targets=targets,
        score=Score.LOGIT,
        batch_size=options.batch(),
        seed=options.seed,
    )
    return Occluder(model, spec)


class _Study:
    """Traces one image's prediction back, and holds the maps against occlusion if asked to."""

    def __init__(
        self,
        make: "Callable[[WorkingImage], SaliencyResult]",
        other: "Occluder | None",
        look: "Look",
    ) -> None:
        self._make, self._other, self._look = make, other, look

    def __call__(
        self, _path: Path, image: "WorkingImage", advance: Callable[[int], None]
    ) -> "tuple[dict[str, Any], Callable[[RunFolder], None]]":
        from cnnviz.gradients.report import report

        result = self._make(image)
        comparisons = self._compare(image, result, advance) if self._other else ()
        entry = report(result, comparisons)
        return entry, lambda folder: self._write(folder, result, comparisons)

    def _compare(
        self, image: "WorkingImage", result: "SaliencyResult", advance: Callable[[int], None]
    ) -> "tuple[Comparison, ...]":
        from cnnviz.gradients.comparison import Comparison, rank_correlation

        assert self._other is not None  # noqa: S101 (told to mypy)
        begun = time.perf_counter()
        self._make(image)  # once more, now that everything is warm
        turned = time.perf_counter()
        covered = self._other.run(image, progress=advance)
        seconds = turned - begun, time.perf_counter() - turned
        grid = covered.panels[0].grid
        return tuple(
            Comparison(
                other=f"occlusion, mask {grid.name}, stride {grid.stride}",
                other_unit="drop of the logit when covered",
                other_HW=panel.map_HW,
                rank_correlation=rank_correlation(found.map_HW, panel.map_HW),
                seconds=seconds[0],
                other_seconds=seconds[1],
            )
            for found, panel in zip(result.maps, covered.panels, strict=True)
        )

    def _write(
        self,
        folder: "RunFolder",
        result: "SaliencyResult",
        comparisons: "tuple[Comparison, ...]",
    ) -> None:
        import numpy as np

        from cnnviz.core.output.drawing import image_pixels
        from cnnviz.gradients.figures import draw, draw_comparison

        folder.write_image(INPUT, image_pixels(result.image))
        for name, figure in draw(result, self._look).items():
            folder.write_figure(name, figure)
        if comparisons:
            folder.write_figure(COMPARISON, draw_comparison(result, comparisons, self._look))
        folder.write_npz(
            ARRAYS,
            logits=result.logits_K.numpy(),
            targets=np.array([found.target for found in result.maps]),
            raw=np.stack([found.raw.numpy() for found in result.maps]),
            maps=np.stack([found.map_HW.numpy() for found in result.maps]),
        )


_COLUMNS = ("image", "class", "p", "method", "peak (y, x)", "rank correlation")


def _rows(entry: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            Path(entry["image"]).name,
            target["class"],
            f"{target['probability']:.3f}",
            entry["method"] + (f" at {entry['layer']}" if entry["layer"] else ""),
            "{}, {}".format(*target["peak"]),
            _agreement(target),
        )
        for target in entry["targets"]
    ]


def _agreement(target: dict[str, Any]) -> str:
    value = target.get("comparison", {}).get("rank_correlation")
    return "-" if value is None else f"{value:.2f}"
