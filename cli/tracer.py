"""The gradient that goes with an occlusion: Grad-CAM, where the network allows it."""

from collections.abc import Callable, Sequence

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.load import Model
from cnnviz.gradients.options import Method, SaliencySpec
from cnnviz.gradients.experiment import default_layer, saliency
from cnnviz.occlusion.agreement import Gradient
from cnnviz.occlusion.options import MapKind, OcclusionSpec


class Tracer:
    """Grad-CAM of the classes that occlusion asks about, where the network allows it.

    Where it does not, that is said once, unless the agreement is what was asked for.
    """

    def __init__(self, model: Model, spec: OcclusionSpec, note: Callable[[str], None]) -> None:
        """Finds the layer.

        Args:
            model: borrowed; no gradient is left in it.
            spec: of the occlusion.
            note: says a line.

        Raises:
            CnnvizError: the agreement is asked for, and there is no layer for it.
        """
        self._model, self._spec, self._note = model, spec, note
        self._layer: str | None = None
        try:
            self._layer = default_layer(model)
        except CnnvizError as error:
            self._give_up(error)

    def _give_up(self, error: CnnvizError) -> None:
        if self._spec.method is MapKind.AGREEMENT:
            raise error
        self._layer = None
        self._note(f"no agreement.png: {error}")

    def __call__(self, image: WorkingImage, targets: Sequence[int]) -> Gradient | None:
        """Its maps, with their name; None where the network has none."""
        if self._layer is None:
            return None
        at, inside = self._spec.at, self._spec.inside
        spec = SaliencySpec(method=Method.GRAD_CAM, layer=self._layer, at=at, inside=inside)
        try:
            found = saliency(self._model, image, spec, classes=targets)
        except CnnvizError as error:
            self._give_up(error)
            return None
        maps = {traced.target: traced.map_HW for traced in found.maps}
        return Gradient(f"Grad-CAM at {self._layer}", maps)
