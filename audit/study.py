"""The audit of one image: its map, its evidence patch, and what the network loses without it.

Three analyses meet here: occlusion makes the map, the features are those of the embeddings, and the
row is the audit's.

Shapes: C H W channels, rows and columns of the working image, D features.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cnnviz.audit.options import AuditSpec
from cnnviz.audit.rows import Row, digest, packed
from cnnviz.core.data.datasets import ImageData
from cnnviz.core.data.images import WorkingImage
from cnnviz.core.data.labels import match_labels
from cnnviz.core.data.outlines import Outlines, outline_mask
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.maps import plateau
from cnnviz.core.models.heads import Kind
from cnnviz.core.models.load import Model
from cnnviz.core.output.record import Box
from cnnviz.embeddings.penultimate import FeatureExtractor
from cnnviz.occlusion.experiment import Occluder
from cnnviz.occlusion.maps import judge
from cnnviz.occlusion.masks import fill_picture
from cnnviz.occlusion.options import OcclusionSpec
from cnnviz.occlusion.results import Panel

FLAT = 0.1
"""Drops this close to the largest are as large, since masks cover other things, too."""


def evidence(panel: Panel) -> tuple[Box, int]:
    """The box of the evidence, and the position nearest to its centre.

    Where the drop is largest; where it saturates (many masks take the same), the centre of those
    masks. Occluding a part of a shortcut is enough there, so the box reaches from the centre of the
    first mask to that of the last, or to the image's edge where they do, since more of them would
    be beyond it; it is at least as large as a mask. A map that is about the same everywhere (at the
    other positions, too, more than half of the largest drop) or nowhere positive has no such place,
    but only a largest drop.
    """
    flat_P = plateau(panel.values_P.view(panel.grid.shape), FLAT).flatten()
    rest_P = panel.values_P[~flat_P]
    same = not len(rest_P) or panel.max_drop <= 2 * float(rest_P.mean())
    if panel.max_drop <= 0 or same:
        largest_P = (panel.grid.boxes_P4 == torch.tensor(panel.max_drop_box)).all(1)
        return panel.max_drop_box, int(largest_P.nonzero()[0])
    places_F = flat_P.nonzero()[:, 0]
    boxes_F4 = panel.grid.boxes_P4[places_F]
    starts_F2, ends_F2 = boxes_F4[:, :2], boxes_F4[:, 2:]
    limits_2 = panel.grid.boxes_P4[:, 2:].amax(0)
    centres_F2 = (starts_F2 + ends_F2) / 2
    low_2 = torch.where(starts_F2.amin(0) == 0, 0, centres_F2.amin(0))
    high_2 = torch.where(ends_F2.amax(0) == limits_2, limits_2, centres_F2.amax(0))
    sides_2 = torch.maximum((ends_F2 - starts_F2).amax(0), (high_2 - low_2).ceil().long())
    start_2 = ((low_2 + high_2 - sides_2) / 2).floor().long().clamp(min=0)
    start_2 = torch.minimum(start_2, limits_2 - sides_2)
    distance_F = (centres_F2 - (start_2 + sides_2 / 2)).square().sum(1)
    y0, x0, y1, x1 = [*start_2.tolist(), *(start_2 + sides_2).tolist()]
    return (y0, x0, y1, x1), int(places_F[distance_F.argmin()])


class Auditor:
    """An audit set up once for a model and a data set, and run on any of its images.

    Attributes:
        occluder: makes the maps.
        layer: whose features describe the patches.
        labels_not_matched: why the labels of the data are not used; None if they are.
    """

    def __init__(
        self,
        model: Model,
        data: ImageData,
        spec: AuditSpec,
        expectations: Outlines | None = None,
        note: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Checks that the model predicts one class per image, and prepares the engine.

        `note` is called with a line that the user should see.

        Raises:
            UsageError: the model or the spec does not fit.
        """
        independent = model.head.kind is Kind.SIGMOID and f"{model.name} has independent classes"
        if why := model.unjudged or independent:
            raise UsageError(f"audit needs one class per image; {why}")
        self.model, self.data, self.spec = model, data, spec
        self.occluder = Occluder(
            model,
            OcclusionSpec(
                masks=(spec.mask,) if spec.mask else (),
                stride=spec.stride,
                fill=spec.fill,
                batch_size=spec.batch_size,
                seed=spec.seed,
            ),
        )
        if self.occluder.note:
            note(self.occluder.note)
        self._expectations = expectations
        self._classes: tuple[int, ...] = ()
        self.labels_not_matched: str | None = None
        try:
            self._classes = match_labels(data, model)
        except UsageError as error:
            self.labels_not_matched = str(error)
            note(f"note: {self.labels_not_matched}; the audit goes by predictions, without labels")
        self._place = {example.path: place for place, example in enumerate(data.examples)}
        self._at_a_time = model.batch_size(2) or 2
        self._extract: Callable[[Tensor], tuple[Tensor, Tensor]]
        try:
            extractor = FeatureExtractor(model)
        except UsageError:
            note("note: no penultimate features found; patches are grouped by scores")
            self._extract, self.layer = lambda images: (model.logits(images),) * 2, "scores"
        else:
            self._extract, self.layer = extractor, extractor.layer

    def row(self, path: str, image: WorkingImage, progress: Callable[[int], None]) -> Row:
        """Measures an image; `progress` is called with the number of positions just done."""
        place = self._place[path]
        label = self._label(place, image)
        text = None if label is None else str(label)
        result = self.occluder.run(image, label=text, progress=progress)
        predicted = int(result.measured.ranking_K.argmax())
        by_class = {panel.target: panel for panel in result.targets}
        row = self._row(place, label, image, by_class[predicted])
        if self._expectations is not None:
            object_HW = outline_mask(self._expectations.for_image(image.path), image)
            verdict = judge(by_class[predicted].map_HW, object_HW)
            row = replace(
                row,
                inside=verdict.inside,
                object_share=verdict.object_share,
                hit=verdict.pointing_game_hit,
            )
        if label is not None and label != predicted:
            panel = by_class[label]
            row = replace(
                row,
                label_probability=panel.reading,
                label_max_drop=panel.max_drop,
                label_box=evidence(panel)[0],
            )
        return row

    def check(self, row: Row) -> None:
        """Raises a CnnvizError if a row that was read back is not one of this data and network."""
        known = place = self._place.get(row.image)
        if known is not None:
            known = self.data.examples[known].label
        if place != row.place or (known is not None and self._classes[known] != row.label):
            raise CnnvizError("it is not of an image of the data set")
        classes = [c for c in (row.label, row.predicted, row.covered) if c is not None]
        if max(classes) >= self.model.classes:
            raise CnnvizError("it has a class that the network does not have")
        of_label = (row.label_probability, row.label_max_drop, row.label_box)
        if {value is None for value in of_label} != {row.label in (None, row.predicted)}:
            raise CnnvizError("what it has of the label does not fit its prediction")

    def _label(self, place: int, image: WorkingImage) -> int | None:
        """The true class, from the data set or else from the expectations."""
        known = self.data.examples[place].label
        if known is not None and self._classes:
            return self._classes[known]
        expected = self._expectations.for_image(image.path) if self._expectations else None
        if expected is None or expected.label is None:
            return None
        return self.model.class_index(expected.label)

    def _row(self, place: int, label: int | None, image: WorkingImage, panel: Panel) -> Row:
        """What the map of the predicted class shows."""
        box, center = evidence(panel)
        return Row(
            image=image.path,
            place=place,
            label=label,
            predicted=panel.target,
            probability=panel.reading,
            max_drop=panel.max_drop,
            mean_drop=panel.mean_drop,
            box=box,
            reliance=panel.reliance or 0.0,
            flips=panel.flips.share if panel.flips else 0.0,
            covered=int(panel.winners_P[center]),
            pixels=digest(image.pixels.numpy()),
            crop=tuple(image.box_original),
            grid=tuple(panel.grid.shape),
            map=packed(panel.values_P.numpy()),
            features=packed(self._lost(image, box).numpy()),
        )

    def _lost(self, image: WorkingImage, box: Box) -> Tensor:
        """(D,) what the features of the image lose when the box is covered."""
        y0, x0, y1, x1 = box
        preprocess = self.model.preprocess
        fill = fill_picture(self.spec.fill, image.pixels, preprocess, self.spec.seed)
        covered = image.pixels.clone()
        covered[:, y0:y1, x0:x1] = fill[:, y0:y1, x0:x1]
        pair = torch.stack([preprocess.normalise(image.pixels), preprocess.normalise(covered)])
        parts = [self._extract(part)[0] for part in torch.split(pair, self._at_a_time)]
        features_2D = torch.cat(parts).float().detach().cpu()
        return features_2D[0] - features_2D[1]
