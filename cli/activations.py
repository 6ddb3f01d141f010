"""`cnnviz activations`: the feature maps that a picture makes in some layers."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cnnviz.cli.image_run import ImageRun
from cnnviz.cli.options import IMAGES, ModelOptions, OutputOptions, Resume, Share
from cnnviz.core.choices import Scaling
from cnnviz.core.errors import CnnvizError
from cnnviz.core.options import Option
from cnnviz.filters.activations.choices import MapOrder

if TYPE_CHECKING:
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.filters.activations.maps import Activations, LayerActivation, Observer
    from cnnviz.filters.activations.report import Entry
    from cnnviz.filters.channels import Channels

INPUT, ARRAYS = "input.png", "activations.npz"


def activations(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help=IMAGES)],
    layers: Annotated[
        tuple[str, ...],
        Option("A layer's name; repeatable. Default: the first convolution.", ("--layer",)),
    ] = (),
    top: Annotated[
        int | None, Option("Show so many maps, the strongest (all if not given).", least=1)
    ] = None,
    order: Annotated[
        MapOrder | None,
        Option("channel (the default without --top) or strongest (with --top)."),
    ] = None,
    filters: Annotated[
        tuple[str, ...],
        Option(
            "Lay these over the image: all, 3,7-12 (in each layer), random:10 (from the "
            "layers together), or LAYER:3,7; repeatable."
        ),
    ] = (),
    normalize: Annotated[
        Scaling, Option("Full white: the largest value of each map (filter), or of the layer.")
    ] = Scaling.FILTER,
    alpha: Annotated[
        float, Option("Weight of a map over the image, 0 (image) to 1 (map).", least=0, most=1)
    ] = 0.6,
    resume: Resume = False,
    shard: Share = None,
    *,
    model: ModelOptions,
    output: OutputOptions,
) -> None:
    """Show what a layer makes of an image: its feature maps, how strong and how sparse.

    cnnviz activations dog.jpg --model resnet18 --layer layer4 --top 64

    Writes a sheet of grey tiles for each layer, overlays for --filters, and the raw maps.
    """
    run = ImageRun("activations", output)
    from cnnviz.filters.activations.maps import Observer
    from cnnviz.filters.channels import choose_filters
    from cnnviz.filters.kernels.weights import choose_layers

    paths = run.images(images, shard)
    loaded = run.load(model, scores=False)
    names = list(layers) or choose_layers(loaded.module, "first", loaded.name)
    chosen = choose_filters(loaded, filters, names, model.seed)[0] if filters else {}
    observer = Observer(loaded, [*layers, *chosen] or names)
    for name in chosen:
        if name not in observer.units:
            reason = observer.untraceable or f"nobody knows where the units of '{name}' look"
            raise CnnvizError(f"--filters cannot place maps over the image: {reason}")
    look = _Look(
        top, order or (MapOrder.CHANNEL if top is None else MapOrder.STRONGEST), normalize, alpha
    )
    asked = {"layers": layers, "--filters": chosen, "look": (top, order, normalize, alpha)}
    run.open_for(paths, loaded, asked, resume=resume)
    run.study("looking", loaded, _Study(observer, chosen, look), 1)
    run.table("Activations", _COLUMNS, _rows)
    run.finish_images(loaded, seed=model.seed, show="*_*.png")


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
