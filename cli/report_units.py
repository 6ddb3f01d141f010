"""Passports: what several runs of one network measure of the same units."""

from collections.abc import Callable, Sequence
from typing import Any

from cnnviz.core.output.record import rounded
from cnnviz.core.output.summary import FinishedRun
from cnnviz.filters.ablation import results as ablation
from cnnviz.filters.kernels import results as kernels
from cnnviz.filters.kernels.figures import kernel_pixels
from cnnviz.filters.kernels.weights import most_similar
from cnnviz.filters.layers import results as layers
from cnnviz.filters.patches import results as patches
from cnnviz.report.page import picture_address, pixels_address
from cnnviz.report.passports import PATCHES, Passport

LONGEST = 192
"""Maximum side of an image whose patches are shown."""


class Units:
    """The passports of all units in runs of one network; `passports` lists them."""

    def __init__(self, runs: Sequence[FinishedRun]) -> None:
        """Reads the runs."""
        self._units: dict[tuple[str, int], Passport] = {}
        self._runs: list[FinishedRun] = []
        self._names: dict[str, int] = {}
        readers = {
            "max-patches": self._read_patches,
            "filters": self._read_kernels,
            "ablate": self._read_sweep,
            "layers": self._read_layers,
        }
        for run in sorted(runs, key=lambda run: run.command == "layers"):
            if run.command in readers and run.summary.shard is None:
                with run.reading():
                    readers[run.command](run)
        self.passports = list(self._units.values())

    def _unit(self, layer: str, number: int) -> Passport:
        return self._units.setdefault((layer, number), Passport(layer, number))

    def _read_patches(self, run: FinishedRun) -> None:
        self._runs.append(run)
        for entry in patches.load(run).filters:
            unit = self._unit(entry.layer, entry.filter)
            unit.numbers["active on (%)"] = 100 * entry.active_share
            unit.numbers["highest"] = entry.highest
            if entry.classes:
                label, count = next(iter(entry.classes.items()))
                unit.numbers["class"] = label
                unit.numbers["of it"] = count / len(entry.patches)
                unit.numbers["entropy, bits"] = rounded(entry.class_entropy_bits or 0.0)
            quantiles = ", ".join(f"{k}: {v:.3g}" for k, v in entry.quantiles.items())
            unit.lines.append(
                f"scores over images: lowest {entry.lowest:.3g}, mean {entry.mean:.3g}, "
                f"highest {entry.highest:.3g}; quantiles {quantiles}"
            )
            for patch in entry.patches[:PATCHES]:
                place = self._names.setdefault(patch.image, len(self._names))
                box = map(float, patch.box_original)
                unit.patches.append([place, *box, patch.score, patch.class_ or ""])

    def _read_kernels(self, run: FinishedRun) -> None:
        for layer in kernels.load(run).layers:
            twin_F, cosine_F = most_similar(layer.kernels)
            for number, kernel in enumerate(layer.kernels):
                unit = self._unit(layer.layer, number)
                unit.numbers["norm"] = layer.norms[number]
                if number in layer.dead:
                    unit.lines.append("dead: its weights are next to zero")
                elif layer.filters > 1:
                    unit.numbers["twin"] = int(twin_F[number])
                    unit.numbers["|cosine|"] = round(float(cosine_F[number]), 4)
                if layer.chromaticity is not None:
                    unit.numbers["colour"] = layer.chromaticity[number]
                if layer.gabor is not None and (fit := layer.gabor.fits[number]):
                    unit.numbers["Gabor R²"] = fit.r2
                unit.kernel = pixels_address(kernel_pixels(kernel))

    def _read_sweep(self, run: FinishedRun) -> None:
        for effect in ablation.load(run).effects:
            unit = self._unit(effect.layer, effect.filter)
            points, unit_of = (1, "change") if effect.correct is None else (100, "points")
            unit.numbers[f"when removed ({unit_of})"] = points * effect.change
            if effect.p_value is not None:
                unit.numbers["p value"] = effect.p_value
            if effect.hurts is not None:
                unit.numbers["worst class"] = effect.hurts
                unit.numbers[f"its change ({unit_of})"] = points * effect.hurts_change

    def _read_layers(self, run: FinishedRun) -> None:
        rows = {row.name: row for row in layers.load(run).layers}
        for (layer, _), unit in self._units.items():
            if layer in rows and (field := rows[layer].receptive_field):
                size_y, size_x, jump_y, jump_x, *_ = field.texts
                unit.lines.append(
                    f"receptive field {size_y}×{size_x} pixels, step {jump_y}×{jump_x}"
                )

    def pictures(
        self, units: Sequence[Passport], take: Callable[[int], bool]
    ) -> tuple[list[dict[str, Any]], int]:
        """The images of these units' patches; the boxes become shares of them.

        Returns:
            Name, address, width and height of each, and how many have no address.
        """
        needed = {patch[0] for unit in units for patch in unit.patches}
        pictures: list[dict[str, Any]] = []
        sizes: list[tuple[int, int]] = []
        for name, place in self._names.items():
            image = None
            if place in needed:
                images = (run.data.image(name) for run in self._runs)
                image = next((i for i in images if i is not None), None)
            size = (1, 1) if image is None else image.size
            address = "" if image is None else picture_address(image, LONGEST)
            if address and not take(len(address)):
                address = ""
            sizes.append(size)
            pictures.append({"name": name, "data": address, "width": size[0], "height": size[1]})
        for unit in units:
            for patch in unit.patches:
                width, height = sizes[patch[0]]
                shares = zip(patch[1:5], (height, width, height, width), strict=True)
                patch[1:5] = [round(edge / side, 4) for edge, side in shares]
        return pictures, sum(not picture["data"] for picture in pictures)
