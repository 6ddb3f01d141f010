"""What `saliency` finds: the records of `summary.json`.

Shapes: C channels, H W rows and columns of the image, h w of a layer's maps, K classes.
"""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.models.heads import Head
from cnnviz.core.models.targets import Reading
from cnnviz.core.output.judged import Scorecard
from cnnviz.core.output.notebook import Displayed
from cnnviz.core.output.record import (
    ABSENT,
    OPTIONAL,
    Box,
    Change,
    Hidden,
    Place,
    Record,
    Says,
    Unsigned,
    from_json,
)
from cnnviz.core.output.summary import ClassRecord, FinishedRun, Read
from cnnviz.gradients.options import Method


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison(Record):
    """A saliency map next to a map of another kind (`other_HW`), of the same class and image."""

    with_: str
    rank_correlation: Annotated[
        Change | None, Says("Spearman's, over all pixels; null where a map is constant")
    ]
    seconds: Annotated[Unsigned, Says("of the saliency map")]
    other_seconds: Unsigned
    other_unit: Hidden[str] = ABSENT
    other_HW: Hidden[Tensor] = ABSENT


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassMap(ClassRecord):
    """The map of one class.

    `raw` is signed: for each pixel and channel (C, H, W), or the sum of the layer's maps (h, w);
    `map_HW` is the map that is shown, negative only with `gradient-x-input` and
    `integrated-gradients`.
    """

    lowest: float
    highest: float
    peak: Annotated[
        Place | None,
        Says("row, column of the working image; null where no value is positive"),
    ]
    peak_original: Annotated[Box | None, Says("the same in the file's own pixels")]
    comparison: Annotated[Comparison | None, OPTIONAL] = None
    trust: Annotated[Scorecard | None, Says("the scorecard of this map", optional=True)] = None
    raw: Hidden[Tensor] = ABSENT
    map_HW: Hidden[Tensor] = ABSENT

    @property
    def target(self) -> int:
        """The class index."""
        return self.index


@dataclass(frozen=True, eq=False, kw_only=True)
class SaliencyResult(Displayed, Record):
    """The maps of one image, a target each, in the order requested.

    `working` is the working image, `labels` are the class names, `logits_K` the float32 logits on
    the CPU, `head` is what they mean, `reading` the pixels of a dense output that were read, and
    `place` the place that the user named there (empty for each class's own pixels). `folder` holds
    the files of an image of a finished run, relative to the run's.
    """

    image: str
    method: Method
    unit: Annotated[str, Says("what the maps' values are")]
    layer: Annotated[str | None, Says("whose maps are weighted; null for methods of pixels")]
    prediction: Annotated[ClassRecord | None, OPTIONAL] = None
    top5: Annotated[tuple[ClassRecord, ...] | None, Says(minItems=1, maxItems=5, optional=True)] = (
        None
    )
    read: Annotated[Read | None, OPTIONAL] = None
    targets: Annotated[tuple[ClassMap, ...], Says(minItems=1)]
    working: Hidden[WorkingImage] = ABSENT
    labels: Hidden[tuple[str, ...]] = ABSENT
    logits_K: Hidden[Tensor] = ABSENT
    head: Hidden[Head] = ABSENT
    reading: Hidden[Reading | None] = ABSENT
    place: Hidden[str] = ABSENT
    folder: Hidden[str] = ABSENT

    @property
    def ranking_K(self) -> Tensor:  # noqa: N802 (a shape)
        """Larger for a class that the image shows more of: by score, or by pixels."""
        if self.reading is None:
            return self.logits_K
        return self.reading.ranking(self.labels, self.logits_K)

    @property
    def maps(self) -> tuple[ClassMap, ...]:
        """The maps, by the name that Python code uses."""
        return self.targets


def load_run(run: FinishedRun) -> tuple[SaliencyResult, ...]:
    """Reads the images of a run of `saliency`.

    Raises:
        CnnvizError: the summary holds something else.
    """
    return from_json(tuple[SaliencyResult, ...], run.summary.results)
