"""`cnnviz activations`: the feature maps of layers on images."""

from collections.abc import Iterator
from pathlib import Path

from cnnviz.cli.commands.images import ActivationsCommand
from cnnviz.cli.per_image import Advance, ImageRun, ImageStudy
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.run_folder import RunFolder
from cnnviz.filters.activations.figures import draw_maps, draw_overlays
from cnnviz.filters.activations.maps import Observer
from cnnviz.filters.activations.options import ActivationsSpec, MapOrder
from cnnviz.filters.activations.results import Activations
from cnnviz.filters.channels import Channels, choose_filters
from cnnviz.filters.kernels.weights import choose_layers

INPUT, ARRAYS = "input.png", "activations.npz"


def activations(given: ActivationsCommand) -> None:
    """Runs `cnnviz activations`."""
    run, spec, seed = ImageRun("activations", given.output), given.spec, given.model.seed
    paths = run.images(given.images, given.shard)
    model = run.load(given.model, scores=False)
    names = list(spec.layers) or choose_layers(model.module, "first", model.name)
    overlaid = choose_filters(model, spec.filters, names, seed)[0] if spec.filters else {}
    observer = Observer(model, [*spec.layers, *overlaid] or names)
    for name in overlaid:
        if name not in observer.units:
            reason = observer.untraceable or f"the positions of the units of '{name}' are not known"
            raise CnnvizError(f"--filters cannot place maps over the image: {reason}")
    depends = {
        "layers": spec.layers,
        "--filters": overlaid,
        "look": (spec.top, spec.order, spec.normalize, spec.signed, spec.alpha),
    }
    study = _Study(observer, overlaid, spec)
    run.go(study, model, paths, depends, seed=seed, resume=given.resume)


class _Study(ImageStudy[Activations, Activations]):
    """Observes the layers on one image, and draws their maps."""

    kind = Activations
    work = "running the model"
    title = "Activations"
    columns = ("image", "layer", "maps", "zeros", "silent", "strongest")
    show = "*_*.png"

    def __init__(self, observer: Observer, overlaid: Channels, spec: ActivationsSpec) -> None:
        self._observer, self._overlaid, self._spec = observer, overlaid, spec

    def one(self, image: WorkingImage, path: str, advance: Advance) -> Activations:  # noqa: ARG002
        return self._observer.observe(image)

    def entry(self, result: Activations) -> Activations:
        return result

    def files(self, result: Activations, folder: RunFolder) -> None:
        assert result.working is not None  # noqa: S101 (just observed)
        spec = self._spec
        folder.write_image(INPUT, image_pixels(result.working))
        for layer in result.layers:
            shown = layer.order(strongest=True)[: spec.top]
            if spec.sorting is MapOrder.CHANNEL:
                shown.sort()
            figure = draw_maps(layer, shown, spec, result.working)
            folder.write_figure(f"maps_{layer.layer}.png", figure)
            if channels := self._overlaid.get(layer.layer):
                figure = draw_overlays(layer, channels, result.working, spec)
                folder.write_figure(f"overlay_{layer.layer}.png", figure)
        folder.write_npz(ARRAYS, **{layer.layer: layer.maps_CHW.numpy() for layer in result.layers})

    def rows(self, entry: Activations) -> Iterator[tuple[object, ...]]:
        for layer in entry.layers:
            yield (
                Path(entry.image).name,
                layer.layer,
                "{} of {}x{}".format(layer.channels, *layer.map),
                f"{layer.sparsity:.1%}",
                len(layer.silent),
                ", ".join(map(str, layer.strongest[:5])),
            )
