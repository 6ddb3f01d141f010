"""The boxes that a detector finds on an image, numbered as `occlude --box` names them."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from cnnviz.core.data.images import WorkingImage
from cnnviz.core.errors import CnnvizError
from cnnviz.core.models.boxes import MOST, BoxReading
from cnnviz.core.models.heads import share_text
from cnnviz.core.models.load import Model
from cnnviz.core.output.drawing import image_pixels
from cnnviz.core.output.layout import board, picture
from cnnviz.core.output.overlays import draw_picture
from cnnviz.core.output.record import ABSENT, Box, Hidden, Positive, Record, Says, Share
from cnnviz.occlusion.figures import CLASS_COLOURS


@dataclass(frozen=True, kw_only=True)
class FoundBox(Record):
    """A box of an image."""

    number: Annotated[Positive, Says("by falling score")]
    class_: str
    score: Share
    box: Annotated[Box, Says("y0, x0, y1, x1 in the working image")]
    box_original: Annotated[Box, Says("y0, x0, y1, x1 in the file")]


@dataclass(frozen=True, eq=False, kw_only=True)
class Detected(Record):
    """The boxes of one image."""

    image: str
    boxes: tuple[FoundBox, ...]
    working: Hidden[WorkingImage] = ABSENT
    folder: Hidden[str] = ABSENT


def detect(model: Model, image: WorkingImage) -> Detected:
    """Finds and numbers the boxes of an image.

    Raises:
        CnnvizError: the network is not a detector.
    """
    pixels = model.preprocess.normalise(image.pixels)[None].to(model.device)
    reading = model.settle(pixels, None)
    if not isinstance(reading, BoxReading):
        raise CnnvizError(f"{model.name} returns no boxes; cnnviz occlude explains its classes")
    boxes = [
        FoundBox(
            number=index + 1,
            class_=name,
            score=float(reading.scores_B[index]),
            box=reading.box(index),
            box_original=image.to_original(reading.box(index)),
        )
        for index, name in enumerate(reading.names)
    ]
    return Detected(image=image.path, boxes=tuple(boxes), working=image)


def draw_boxes(result: Detected, beneath: NDArray[np.uint8] | None) -> Figure:
    """Draws the boxes with their numbers, classes and scores: the first ones of very many."""
    shown = result.boxes[:MOST]
    size = tuple(map(int, result.working.pixels.shape[1:]))
    photograph = image_pixels(result.working) if beneath is None else beneath
    classes = list(dict.fromkeys(box.class_ for box in shown))

    def paint(axes: Axes) -> None:
        draw_picture(axes, photograph, (size[0], size[1]))
        for box in shown[::-1]:  # the strongest last, above the others
            y0, x0, y1, x1 = box.box
            colour = CLASS_COLOURS[classes.index(box.class_) % len(CLASS_COLOURS)]
            for edge, width in (("white", 3.0), (colour, 1.8)):
                corner = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=edge, lw=width)
                axes.add_patch(corner)
            axes.annotate(
                f"{box.number} {box.class_} {share_text(box.score)}",
                (x0, y0),
                (1, -1),
                textcoords="offset points",
                va="top",
                fontsize="x-small",
                bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": colour, "alpha": 0.85},
                color="black",
                clip_on=True,
            )
        axes.set(xlim=(0, size[1]), ylim=(size[0], 0))

    title = f"{len(result.boxes):,} boxes" if len(result.boxes) != 1 else "1 box"
    if len(shown) < len(result.boxes):
        title += f", of which the {MOST} with the highest scores are drawn"
    cell = picture(paint, (size[0], size[1]), title)
    return board([[cell]])
