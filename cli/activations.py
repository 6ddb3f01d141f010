"""`cnnviz activations`: the feature maps that a picture makes in some layers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnviz.cli.commands.images import ActivationsCommand
from cnnviz.cli.image_run import ImageRun
from cnnviz.core.choices import Scaling
from cnnviz.core.errors import CnnvizError
from cnnviz.filters.activations.choices import MapOrder

if TYPE_CHECKING:
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.filters.activations.maps import Activations, LayerActivation, Observer
    from cnnviz.filters.activations.report import Entry
    from cnnviz.filters.channels.spec import Channels

INPUT, ARRAYS = "input.png", "activations.npz"


def activations(given: ActivationsCommand) -> None:
    """Runs `cnnviz activations`."""
    run = ImageRun("activations", given.output)
    from cnnviz.filters.activations.maps import Observer
    from cnnviz.filters.channels.shapes import choose_filters
    from cnnviz.filters.kernels.weights import choose_layers

    paths = run.images(given.images, given.shard)
    loaded = run.load(given.model, scores=False)
    names = list(given.layers) or choose_layers(loaded.module, "first", loaded.name)
    chosen = (
        choose_filters(loaded, given.filters, names, given.model.seed)[0] if given.filters else {}
    )
    observer = Observer(loaded, [*given.layers, *chosen] or names)
    for name in chosen:
        if name not in observer.units:
            reason = observer.untraceable or f"nobody knows where the units of '{name}' look"
            raise CnnvizError(f"--filters cannot place maps over the image: {reason}")
    look = _Look(
        given.top,
        given.order or (MapOrder.CHANNEL if given.top is None else MapOrder.STRONGEST),
        given.normalize,
        given.alpha,
    )
    asked = {
        "layers": given.layers,
        "--filters": chosen,
        "look": (given.top, given.order, given.normalize, given.alpha),
    }
    run.open_for(paths, loaded, asked, resume=given.resume)
    run.study("looking", loaded, _Study(observer, chosen, look), 1)
    run.table("Activations", _COLUMNS, _rows)
    run.finish_images(loaded, seed=given.model.seed, show="*_*.png")


class _Look:
    """Which maps are shown, in what order and with what scale."""

    def __init__(self, top: int | None, order: MapOrder, normalize: Scaling, alpha: float) -> None:
        self.top, self.order, self.normalize, self.alpha = top, order, normalize, alpha

    def shown(self, found: "LayerActivation") -> list[int]:
        """Channel numbers: the strongest `top`, in the order asked for."""
        strongest = found.order(strongest=True)[: self.top]
        return sorted(strongest) if self.order is MapOrder.CHANNEL else strongest


class _Study:
    """Looks at one image's feature maps, and draws them."""

    def __init__(self, observer: "Observer", chosen: "Channels", look: _Look) -> None:
        self._observer, self._chosen, self._look = observer, chosen, look

    def __call__(
        self, _path: Path, image: "WorkingImage", _advance: Callable[[int], None]
    ) -> "tuple[Entry, Callable[[RunFolder], None]]":
        from cnnviz.filters.activations.report import report

        found = self._observer.observe(image)
        return report(found), lambda folder: self._write(folder, found)

    def _write(self, folder: "RunFolder", found: "Activations") -> None:
        from cnnviz.core.output.drawing import image_pixels
        from cnnviz.filters.activations.figures import draw_maps, draw_overlays

        folder.write_image(INPUT, image_pixels(found.image))
        for layer in found.layers:
            shown = self._look.shown(layer)
            figure = draw_maps(layer, shown, self._look.normalize, self._look.order)
            folder.write_figure(f"maps_{layer.layer}.png", figure)
            chosen = self._chosen.get(layer.layer, ())
            if chosen:
                figure = draw_overlays(layer, chosen, found.image, self._look.alpha)
                folder.write_figure(f"overlay_{layer.layer}.png", figure)
        arrays = {layer.layer: layer.maps_CHW.numpy() for layer in found.layers}
        folder.write_npz(ARRAYS, **arrays)


_COLUMNS = ("image", "layer", "maps", "zeros", "silent", "strongest")


def _rows(entry: dict[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            Path(entry["image"]).name,
            layer["layer"],
            "{} of {}x{}".format(layer["channels"], *layer["map"]),
            f"{layer['sparsity']:.1%}",
            len(layer["silent"]),
            ", ".join(map(str, layer["strongest"][:5])),
        )
        for layer in entry["layers"]
    ]
