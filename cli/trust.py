"""`cnnviz trust`: how much can you trust a heatmap, from cnnviz or any other tool?"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cnnviz.cli.commands.images import TrustCommand
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.choices import decimals
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.outlines import outline_mask, read_outlines
from cnnviz.core.data.rasters import check_npy, read_map
from cnnviz.core.errors import UsageError
from cnnviz.core.models.load import Model
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.overlays import photograph
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.core.output.summary import class_fields
from cnnviz.occlusion.figures import COMPARED, unit
from cnnviz.occlusion.maps import judge
from cnnviz.trust.figures import Shown, draw, draw_maps
from cnnviz.trust.judge import Judge
from cnnviz.trust.results import JudgedMap, TrustResult, check_verdicts

OCCLUSION = "occlusion"
INPUT, ARRAYS = "input.png", "trust.npz"


def trust(given: TrustCommand) -> None:
    """Runs `cnnviz trust`."""
    run = ImageRun("trust", given.output)
    paths = run.images(given.images, given.shard)
    maps = _find_maps(given.given, paths)
    loaded = run.load(given.model)
    study = _Study(given, loaded, maps)
    run.note_common(expect=given.expect, inside=given.spec.inside)
    depends = {
        "options": given.spec,
        "look": given.look,
        "--expect": given.expect,
        "--map": maps,
    }
    run.go(
        study,
        loaded,
        paths,
        depends,
        seed=given.model.seed,
        inputs=list(maps.values()),
        resume=given.resume,
    )


def _find_maps(given: Path | None, paths: list[str]) -> dict[str, Path]:
    """Finds the map file of each image."""
    if given is None:
        return {}
    if not given.is_dir():
        if len(paths) > 1:
            raise UsageError(
                f"--map {given} is one map, and there are {len(paths)} images; give a folder with "
                "a map named like each"
            )
        check_npy(given)
        return {paths[0]: given}
    maps = {path: given / f"{Path(path).stem}.npy" for path in paths}
    missing = [path for path, name in maps.items() if not name.exists()]
    if missing:
        raise UsageError(
            f"no '{Path(missing[0]).stem}.npy' in {given} for '{missing[0]}'"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    return maps


class _Study(ImageStudy[TrustResult, TrustResult]):
    """Judges the maps of one image."""

    kind = TrustResult
    work, title = "scoring maps", "Trust"

    def __init__(self, given: TrustCommand, model: Model, maps: dict[str, Path]) -> None:
        self._maps, self._head, self.look = maps, model.head, given.look
        self.arrays, self.photo = ARRAYS, INPUT
        self._judge = Judge.of(
            model, given.spec, seed=given.model.seed, batch_size=given.model.batch_size
        )
        compared = COMPARED[self._judge.occluder.score]
        self.unit = "the map's own unit" if maps else f"mean {compared}"
        self._expected = read_outlines(given.expect) if given.expect else None
        self.steps = self._judge.occluder.positions
        p = "p" if model.head.has_classes else "value"
        self.columns = ("image", "class", p, "gain", "chance", "verdict")
        if self._expected:
            self.columns = (*self.columns[:-1], "hit", "inside", "verdict")
        if given.min_trust is not None:
            self.checks = [partial(check_verdicts, minimum=given.min_trust)]

    def one(self, image: WorkingImage, path: str, advance: Advance) -> TrustResult:
        result = self._judge.occluder.run(image, progress=advance)
        measured, file = result.measured, self._maps.get(path)
        if file is None:
            maps = {panel.index: panel.map_HW for panel in result.targets}
            cards = self._judge.of_occlusion(result)
        else:
            if len(result.targets) > 1:
                raise UsageError("--map is a map of one class; name it with one --target")
            given_HW = torch.from_numpy(read_map(file, measured.size))
            maps = {result.targets[0].index: given_HW}
            cards = self._judge.of_maps(result, maps)
        object_HW = None
        if self._expected is not None:
            object_HW = outline_mask(self._expected.for_image(image.path), image)
        readings_K = measured.head.readings(measured.base_logits_K)
        return TrustResult(
            image=image.path,
            map=OCCLUSION if file is None else str(file),
            targets=tuple(
                JudgedMap(
                    **class_fields(measured, target, float(readings_K[target])),
                    **({} if object_HW is None else vars(judge(map_HW, object_HW))),
                    trust=card,
                    map_HW=map_HW,
                )
                for (target, map_HW), card in zip(maps.items(), cards, strict=True)
            ),
            occlusion=result,
        )

    def entry(self, result: TrustResult) -> TrustResult:
        return result

    def files(self, result: TrustResult, folder: RunFolder) -> None:
        measured = result.occlusion.measured
        shown = [
            Shown(f"{t.class_}  {measured.head.text(t.reading)}", t.map_HW, t.trust)
            for t in result.targets
        ]
        of_occlusion = result.map == OCCLUSION
        map_unit = unit(result.occlusion) if of_occlusion else "the map's own unit"
        beneath, has_classes = photograph(measured.image), measured.head.has_classes
        folder.write_image(INPUT, image_pixels(measured.image))
        maps = np.stack([target.map_HW.numpy() for target in result.targets])
        targets = np.array([target.index for target in result.targets])
        folder.write_npz(ARRAYS, maps=maps, targets=targets)
        folder.write_figure("overlay.png", draw_maps(shown, self.look, map_unit, beneath))
        figures = draw(shown, self.look, map_unit, beneath, has_classes)
        for name, figure in figures.items():
            folder.write_figure(name, figure)

    def line(self, entry: TrustResult) -> str:
        first = entry.targets[0]
        read = self._head.text(first.reading)
        return f"{Path(entry.image).name}\n{first.class_}  {read}\nverdict: {first.trust.verdict}"

    def rows(self, entry: TrustResult) -> Iterator[tuple[object, ...]]:
        for target in entry.targets:
            chance = target.trust.against_chance
            low, high = chance.interval
            yield (
                Path(entry.image).name,
                target.class_,
                f"{target.value:.4g}"
                if target.probability is None
                else decimals(target.probability),
                f"{target.trust.gain:.3f}",
                f"{low:.3f} to {high:.3f}",
                *target.cells,
                target.trust.verdict,
            )
