"""`cnnviz trust`: how far a map can be believed, whoever made it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.images import TrustCommand
from cnnviz.cli.image_run import ImageRun
from cnnviz.core.errors import UsageError
from cnnviz.core.output.look import Look

if TYPE_CHECKING:
    from torch import Tensor

    from cnnviz.cli.scorecards import Bench
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.data.outlines import Outlines
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.occlusion.experiment import OcclusionResult
    from cnnviz.trust.report import Entry
    from cnnviz.trust.scorecard import Scorecard


def trust(given: TrustCommand) -> None:
    """Runs `cnnviz trust`."""
    run = ImageRun("trust", given.output)
    from cnnviz.cli.scorecards import Bench, check
    from cnnviz.core.data.outlines import read_outlines

    paths = run.images(given.images, given.shard)
    maps = _find_maps(given.given, paths)
    expectations = read_outlines(given.expect) if given.expect else None
    loaded = run.load(given.model)
    bench = Bench(loaded, given.spec, seed=given.model.seed, batch_size=given.model.batch_size)
    asked = {"options": given.spec, "look": given.look, "--expect": given.expect, "--map": maps}
    run.open_for(paths, loaded, asked, inputs=list(maps.values()), resume=given.resume)
    study = _Study(loaded, bench, maps, expectations, given.look)
    run.study("judging", loaded, study, bench.occluder.positions)
    p = "p" if loaded.head.has_classes else "value"
    columns = ("image", "class", p, "gain", "chance", "verdict")
    run.table("Trust", columns, _rows)
    verdict = [lambda: check(run.entries, given.min_trust)]
    run.finish_images(loaded, seed=given.model.seed, show="overlay.png", checks=verdict)


def _find_maps(given: Path | None, paths: list[Path]) -> dict[Path, Path]:
    """The map of each image.

    Raises:
        UsageError: there is none for an image, or one file for several.
    """
    if given is None:
        return {}
    if not given.is_dir():
        if len(paths) > 1:
            raise UsageError(
                f"--map {given} is one map, and there are {len(paths)} images; give a folder with "
                "a map named like each"
            )
        return {paths[0]: given}
    maps = {path: given / f"{path.stem}.npy" for path in paths}
    missing = [path for path, name in maps.items() if not name.exists()]
    if missing:
        raise UsageError(
            f"no '{missing[0].stem}.npy' in {given} for '{missing[0]}'"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return maps


class _Study:
    """Judges the maps of one image."""

    def __init__(
        self,
        model: "Model",
        bench: "Bench",
        maps: dict[Path, Path],
        expectations: "Outlines | None",
        look: Look,
    ) -> None:
        self._model, self._bench, self._maps = model, bench, maps
        self._expectations, self._look = expectations, look

    def __call__(
        self, path: Path, image: "WorkingImage", advance: Callable[[int], None]
    ) -> "tuple[Entry, Callable[[RunFolder], None]]":
        import torch

        from cnnviz.core.data.rasters import read_map

        result = self._bench.occluder.run(image, progress=advance)
        if path in self._maps:
            size = (int(image.pixels.shape[1]), int(image.pixels.shape[2]))
            if len(result.panels) > 1:
                raise UsageError("--map is a map of one class; name it with one --target")
            given_HW = torch.from_numpy(read_map(self._maps[path], size))
            maps = {result.panels[0].target: given_HW}
            cards = self._bench.judge(result, maps)
        else:
            maps = {panel.target: panel.map_HW for panel in result.panels}
            cards = self._bench.judge_occlusion(result)
        entry = self._report(path, result, maps, cards)
        return entry, lambda folder: self._write(folder, path, result, maps, cards)

    def _report(
        self,
        path: Path,
        result: "OcclusionResult",
        maps: "dict[int, Tensor]",
        cards: "list[Scorecard]",
    ) -> "Entry":
        from cnnviz.core.output.entries import add_reading, in_order
        from cnnviz.occlusion.expectation import judge
        from cnnviz.occlusion.report import add_verdict
        from cnnviz.trust.report import Target, report

        measured, given = result.measured, self._maps.get(path)
        readings_K = measured.head.readings(measured.base_logits_K)
        object_HW = self._object(measured.image)
        targets: list[Target] = []
        for (target, map_HW), card in zip(maps.items(), cards, strict=True):
            entry: Target = {
                "class": measured.labels[target],
                "index": target,
                "trust": report(card),
            }
            add_reading(entry, measured, float(readings_K[target]))
            if object_HW is not None:
                add_verdict(entry, judge(map_HW, object_HW))
            targets.append(in_order(Target, entry))
        return {
            "image": measured.image.path,
            "map": str(given) if given else "occlusion",
            "targets": targets,
        }

    def _object(self, image: "WorkingImage") -> "Tensor | None":
        """Where it is, if the user said what to expect."""
        from cnnviz.core.data.outlines import outline_mask

        if self._expectations is None:
            return None
        return outline_mask(self._expectations.for_image(image.path), image)

    def _write(
        self,
        folder: "RunFolder",
        path: Path,
        result: "OcclusionResult",
        maps: "dict[int, Tensor]",
        cards: "list[Scorecard]",
    ) -> None:
        from cnnviz.core.output.drawing import image_pixels
        from cnnviz.core.output.panels import photograph
        from cnnviz.occlusion.figures import unit
        from cnnviz.trust.figures import draw_certainty, draw_curves, draw_maps

        measured = result.measured
        readings_K = measured.head.readings(measured.base_logits_K)
        names = [f"{measured.labels[t]}  {measured.head.text(float(readings_K[t]))}" for t in maps]
        shown = list(zip(names, maps.values(), cards, strict=True))
        what = "the map's own unit" if path in self._maps else unit(result)
        beneath = photograph(measured.image)
        folder.write_image("input.png", image_pixels(measured.image))
        folder.write_figure("overlay.png", draw_maps(shown, self._look, what, beneath))
        reading = "probability" if measured.head.has_classes else "value"
        folder.write_figure(
            "curves.png", draw_curves(list(zip(names, cards, strict=True)), reading)
        )
        figure = draw_certainty(shown, self._look, what, beneath)
        if figure is not None:
            folder.write_figure("certainty.png", figure)


def _rows(entry: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            Path(entry["image"]).name,
            target["class"],
            f"{target['probability']:.3f}" if "probability" in target else f"{target['value']:.4g}",
            f"{target['trust']['against_chance']['gain']:.3f}",
            "{:.3f}…{:.3f}".format(*target["trust"]["against_chance"]["interval"]),
            target["trust"]["verdict"],
        )
        for target in entry["targets"]
    ]
