"""`cnnviz saliency`: what the gradient says about an image, and whether occlusion agrees."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.images import Other, SaliencyCommand
from cnnviz.cli.image_run import ImageRun
from cnnviz.cli.options import ModelOptions
from cnnviz.core.errors import UsageError
from cnnviz.core.output.look import Look
from cnnviz.gradients.choices import LAST_CONV, Method, SaliencySpec

if TYPE_CHECKING:
    from torch import Tensor

    from cnnviz.cli.scorecards import Bench
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.gradients.comparison import Comparison
    from cnnviz.gradients.experiment import SaliencyResult
    from cnnviz.gradients.report import Entry
    from cnnviz.occlusion.experiment import Occluder
    from cnnviz.trust.scorecard import Scorecard

INPUT, ARRAYS, COMPARISON = "input.png", "saliency.npz", "comparison.png"


def saliency(given: SaliencyCommand) -> None:
    """Runs `cnnviz saliency`."""
    run = ImageRun("saliency", given.output)
    _check(given.spec, given.compare, given.mask, given.stride)
    paths = run.images(given.images, given.shard)
    loaded = run.load(given.model)
    _check_model(loaded, given.spec)
    other = (
        _occluder(loaded, given.spec, given.mask, given.stride, given.model)
        if given.compare
        else None
    )
    bench = None
    if given.trust or given.min_trust:
        from cnnviz.cli.scorecards import Bench

        bench = Bench(loaded, given.spec, seed=given.model.seed, batch_size=given.model.batch_size)
    asked = {
        "options": given.spec,
        "look": given.look,
        "--compare": given.compare,
        "--mask": given.mask,
        "--stride": given.stride,
        "--trust": bench is not None,
    }
    run.open_for(paths, loaded, asked, resume=given.resume)
    study = _Study(loaded, given.spec, other, given.look, bench)
    run.study("tracing back", loaded, study, 1 + (other.positions if other else 0))
    p = "p" if loaded.head.has_classes else "value"
    columns = ("image", "class", p, *_COLUMNS)
    run.table("Saliency", (*columns, "verdict") if bench else columns, _rows)
    best = COMPARISON if given.compare else "overlay.png"
    checks: list[Callable[[], None]] = []
    if given.min_trust is not None:
        from cnnviz.cli.scorecards import check

        checks.append(lambda: check(run.entries, given.min_trust))
    run.finish_images(loaded, seed=given.model.seed, show=best, checks=checks)


def _check(
    spec: SaliencySpec,
    compare: Other | None,
    mask: tuple[int, int] | None,
    stride: int | None,
) -> None:
    if compare is None and (mask is not None or stride is not None):
        raise UsageError("--mask and --stride need --compare occlusion, which places masks")
    if spec.method is not Method.GRAD_CAM and spec.layer != LAST_CONV:
        raise UsageError(
            f"--layer needs --method grad-cam; {spec.method} looks at pixels, not layers"
        )


def _check_model(model: "Model", spec: SaliencySpec) -> None:
    """Before any image: are the layer, the classes and the place there?"""
    import torch

    from cnnviz.core.data.outlines import Place
    from cnnviz.core.models.heads import resolve_targets
    from cnnviz.core.models.layers import find_layer, note_repeats
    from cnnviz.gradients.experiment import default_layer

    if spec.method is Method.GRAD_CAM:
        layer = default_layer(model) if spec.layer == LAST_CONV else spec.layer
        find_layer(model.module, layer, model.name)
        note_repeats(model, [layer])
    resolve_targets(spec.targets, torch.zeros(model.classes), model.labels, model.head)
    Place(model, spec.at, spec.inside)


def _occluder(
    model: "Model",
    traced: SaliencySpec,
    mask: tuple[int, int] | None,
    stride: int | None,
    options: ModelOptions,
) -> "Occluder":
    from cnnviz.occlusion.choices import OcclusionSpec, Score
    from cnnviz.occlusion.experiment import Occluder

    spec = OcclusionSpec(
        masks=(mask,) if mask else (),
        stride=stride,
        targets=traced.targets,
        at=traced.at,
        inside=traced.inside,
        score=Score.LOGIT,
        batch_size=options.batch_size,
        seed=options.seed,
    )
    return Occluder(model, spec)


class _Study:
    """Traces one image's prediction back, and holds the maps against occlusion if asked to."""

    def __init__(
        self,
        model: "Model",
        spec: SaliencySpec,
        other: "Occluder | None",
        look: Look,
        bench: "Bench | None",
    ) -> None:
        self._model, self._spec, self._other, self._look = model, spec, other, look
        self._bench = bench

    def _make(self, image: "WorkingImage") -> "SaliencyResult":
        from cnnviz.gradients.experiment import saliency

        return saliency(self._model, image, self._spec)

    def __call__(
        self, _path: Path, image: "WorkingImage", advance: Callable[[int], None]
    ) -> "tuple[Entry, Callable[[RunFolder], None]]":
        from cnnviz.gradients.report import report

        result = self._make(image)
        comparisons = self._compare(image, result, advance) if self._other else ()
        entry = report(result, comparisons)
        cards = self._trust(image, result, entry) if self._bench else []
        return entry, lambda folder: self._write(folder, result, comparisons, cards)

    def _trust(
        self, image: "WorkingImage", result: "SaliencyResult", entry: "Entry"
    ) -> "list[Scorecard]":
        """A scorecard for each map, noted in the entry."""
        from cnnviz.gradients.experiment import saliency
        from cnnviz.trust.report import report

        def make(image: "WorkingImage", classes: "Sequence[int]") -> "dict[int, Tensor]":
            found = saliency(self._model, image, self._spec, classes=classes)
            return {traced.target: traced.map_HW for traced in found.maps}

        assert self._bench is not None  # noqa: S101 (told to mypy)
        maps = {found.target: found.map_HW for found in result.maps}
        occluded = self._bench.occluder.run(image)
        cards = self._bench.judge(occluded, maps, make, result.method.value)
        for target, card in zip(entry["targets"], cards, strict=True):
            target["trust"] = report(card)
        return cards

    def _compare(
        self, image: "WorkingImage", result: "SaliencyResult", advance: Callable[[int], None]
    ) -> "tuple[Comparison, ...]":
        from cnnviz.core.maps import rank_correlation
        from cnnviz.gradients.comparison import Comparison

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
        cards: "list[Scorecard]",
    ) -> None:
        import numpy as np

        from cnnviz.core.output.drawing import image_pixels
        from cnnviz.gradients.figures import draw, draw_comparison

        folder.write_image(INPUT, image_pixels(result.image))
        for name, figure in draw(result, self._look, [card.line for card in cards]).items():
            folder.write_figure(name, figure)
        if cards:
            from cnnviz.gradients.figures import class_line
            from cnnviz.trust.figures import draw_curves

            names = [class_line(result, found) for found in result.maps]
            reading = "probability" if result.head.has_classes else "value"
            pairs = list(zip(names, cards, strict=True))
            folder.write_figure("curves.png", draw_curves(pairs, reading))
        if comparisons:
            folder.write_figure(COMPARISON, draw_comparison(result, comparisons, self._look))
        folder.write_npz(
            ARRAYS,
            logits=result.logits_K.numpy(),
            targets=np.array([found.target for found in result.maps]),
            raw=np.stack([found.raw.numpy() for found in result.maps]),
            maps=np.stack([found.map_HW.numpy() for found in result.maps]),
        )


_COLUMNS = ("method", "peak (y, x)", "rank correlation")


def _rows(entry: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            Path(entry["image"]).name,
            target["class"],
            f"{target['probability']:.3f}" if "probability" in target else f"{target['value']:.4g}",
            entry["method"] + (f" at {entry['layer']}" if entry["layer"] else ""),
            "{}, {}".format(*target["peak"]),
            _agreement(target),
            *((target["trust"]["verdict"],) if "trust" in target else ()),
        )
        for target in entry["targets"]
    ]


def _agreement(target: dict[str, Any]) -> str:
    value = target.get("comparison", {}).get("rank_correlation")
    return "-" if value is None else f"{value:.2f}"
