"""What several runs know of the same units of one network: max-patches, filters, ablate, layers."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.run_data import RunData
from cnnviz.core.errors import CnnvizError, one_line
from cnnviz.core.files import DAMAGE, open_arrays, read_text

if TYPE_CHECKING:
    from cnnviz.report.passports import Passport

LONGEST = 192
"""Pixels of the longer side of an image whose patches are shown."""


class Units:
    """Passports, filled by one run after the other.

    Attributes:
        passports: of all units that some run tells of.
    """

    def __init__(self, runs: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
        """Reads the runs, which are of one network.

        Raises:
            CnnvizError: one is damaged.
        """
        self._units: dict[tuple[str, int], Passport] = {}
        self._data: list[RunData] = []
        self._names: dict[str, int] = {}
        readers = {
            "max-patches": self._read_patches,
            "filters": self._read_kernels,
            "ablate": self._read_sweep,
        }
        for folder, content in runs:
            reader = readers.get(content["command"])
            if reader is None:
                continue
            try:
                reader(folder, content)
            except (*DAMAGE, AttributeError, ArithmeticError) as error:
                raise CnnvizError(
                    f"what {folder} holds is damaged, or not complete: {one_line(error)}"
                ) from error
        for folder, content in runs:
            if content["command"] == "layers":
                self._read_layers(folder)
        self.passports = list(self._units.values())

    def _unit(self, layer: str, number: int) -> "Passport":
        from cnnviz.report.passports import Passport

        return self._units.setdefault((layer, number), Passport(layer, number))

    def _read_patches(self, _folder: Path, content: Mapping[str, Any]) -> None:
        from cnnviz.report.passports import PATCHES

        self._data.append(RunData(content))
        for entry in content["results"]["filters"]:
            unit = self._unit(str(entry["layer"]), int(entry["filter"]))
            unit.numbers["fires on"] = entry["active_share"]
            unit.numbers["highest"] = entry["highest"]
            if entry.get("classes"):
                label, count = next(iter(entry["classes"].items()))
                unit.numbers["class"] = label
                unit.numbers["of it"] = count / len(entry["patches"])
                unit.numbers["entropy, bits"] = entry["class_entropy_bits"]
            quantiles = ", ".join(f"{k}: {v:.3g}" for k, v in entry["quantiles"].items())
            unit.lines.append(
                f"scores over images: lowest {entry['lowest']:.3g}, mean {entry['mean']:.3g}, "
                f"highest {entry['highest']:.3g}; quantiles {quantiles}"
            )
            for patch in entry["patches"][:PATCHES]:
                place = self._names.setdefault(str(patch["image"]), len(self._names))
                box = [float(edge) for edge in patch["box_original"]]
                unit.patches.append([place, *box, patch["score"], patch.get("class", "")])

    def _read_kernels(self, folder: Path, content: Mapping[str, Any]) -> None:
        import numpy as np

        from cnnviz.filters.kernels.figures import kernel_pixels
        from cnnviz.filters.kernels.results import KERNELS

        with open_arrays(folder / KERNELS) as stored:
            for layer in content["results"]["layers"]:
                name, dead = str(layer["layer"]), set(layer["dead"])
                kernels = np.asarray(stored[f"kernels.{name}"], np.float64)
                flat = kernels.reshape(len(kernels), -1)
                unit_FD = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-300)
                cosines = np.abs(unit_FD @ unit_FD.T)
                np.fill_diagonal(cosines, -1)
                for number, kernel in enumerate(kernels):
                    unit = self._unit(name, number)
                    unit.numbers["norm"] = layer["norms"][number]
                    if number in dead:
                        unit.lines.append("dead: its weights are next to nothing")
                    elif len(kernels) > 1:
                        twin = int(cosines[number].argmax())
                        unit.numbers["twin"] = twin
                        unit.numbers["|cosine|"] = round(float(cosines[number, twin]), 4)
                    if layer["chromaticity"] is not None:
                        unit.numbers["colour"] = layer["chromaticity"][number]
                    if layer["gabor"] is not None and (fit := layer["gabor"]["fits"][number]):
                        unit.numbers["Gabor R²"] = fit["r2"]
                    unit.kernel = _kernel_address(kernel_pixels(kernel))

    def _read_sweep(self, folder: Path, _content: Mapping[str, Any]) -> None:
        from cnnviz.filters.ablation.results import load

        for effect in load(folder).effects:
            unit = self._unit(effect.layer, effect.filter)
            unit.numbers["off: change"] = effect.change
            if effect.p_value is not None:
                unit.numbers["off: p"] = effect.p_value
            if effect.hurts is not None:
                unit.numbers["hurts"] = effect.hurts
                unit.numbers["hurts by"] = effect.hurts_change

    def _read_layers(self, folder: Path) -> None:
        rows = csv.DictReader(io.StringIO(read_text(folder / "layers.csv"), newline=""))
        seen = {row["layer"]: row for row in rows}
        for (layer, _), unit in self._units.items():
            if layer in seen:
                row = seen[layer]
                unit.lines.append(
                    f"receptive field {row['size_y']}×{row['size_x']} pixels, "
                    f"step {row['jump_y']}×{row['jump_x']}"
                )

    def pictures(
        self, units: "Sequence[Passport]", take: Callable[[int], bool]
    ) -> tuple[list[dict[str, Any]], int]:
        """The images of these units' patches, whose boxes become shares of them.

        Args:
            units: that are shown.
            take: says whether something of that size fits.

        Returns:
            Name, address, width and height of each, and how many have no address.
        """
        from cnnviz.report.page import picture_address

        wanted = {patch[0] for unit in units for patch in unit.patches}
        found: list[dict[str, Any]] = []
        sizes: list[tuple[int, int]] = []
        for name, place in self._names.items():
            image = None
            if place in wanted:
                images = (data.image(name) for data in self._data)
                image = next((own for own in images if own is not None), None)
            size = (1, 1) if image is None else image.size
            address = "" if image is None else picture_address(image, LONGEST)
            if address and not take(len(address)):
                address = ""
            sizes.append(size)
            found.append({"name": name, "data": address, "width": size[0], "height": size[1]})
        for unit in units:
            for patch in unit.patches:
                width, height = sizes[patch[0]]
                shares = zip(patch[1:5], (height, width, height, width), strict=True)
                patch[1:5] = [round(edge / side, 4) for edge, side in shares]
        return found, sum(not picture["data"] for picture in found)


def _kernel_address(pixels: Any) -> str:
    """A kernel as a PNG, every pixel as it is."""
    from PIL import Image

    from cnnviz.report.page import data_address

    if pixels is None:
        return ""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return data_address("image/png", stream.getvalue())
