"""What an audit notes of one image: its map, its evidence patch, and what the network loses by it.

Here three analyses meet: occlusion makes the map, the features are those of the embeddings, and the
row is the audit's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cnnviz.audit.choices import AuditSpec
from cnnviz.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from cnnviz.audit.rows import Row
    from cnnviz.core.data.datasets import ImageData
    from cnnviz.core.data.images import WorkingImage
    from cnnviz.core.data.outlines import Outlines
    from cnnviz.core.models.load import Model
    from cnnviz.core.output.run_folder import RunFolder
    from cnnviz.occlusion.experiment import Occluder
    from cnnviz.occlusion.results import OcclusionResult


class _Features:
    """What a network makes of images: the features before its head, or its scores."""

    def __init__(self, model: "Model", note: Callable[[str], None]) -> None:
        from cnnviz.embeddings.penultimate import FeatureExtractor

        self._at_a_time = model.batch_size(2) or 2
        self._extract: Callable[[Tensor], tuple[Tensor, Tensor]]
        try:
            extractor = FeatureExtractor(model)
        except UsageError:
            note("note: its penultimate features were not found: patches are grouped by scores")
            self._extract, self.layer = lambda images: (model.logits(images),) * 2, "scores"
        else:
            self._extract, self.layer = extractor, extractor.layer

    def lost(self, image_CHW: "Tensor", covered_CHW: "Tensor") -> "Tensor":
        """(D,) what the first has and the second has not; both normalised."""
        import torch

        pair = torch.stack([image_CHW, covered_CHW])
        parts = [self._extract(part)[0] for part in torch.split(pair, self._at_a_time)]
        features_2D = torch.cat(parts).float().detach().cpu()
        return features_2D[0] - features_2D[1]


class AuditStudy:
    """Measures one image and notes what the audit needs of it."""

    def __init__(
        self,
        model: "Model",
        occluder: "Occluder",
        spec: AuditSpec,
        expectations: "Outlines | None",
        data: "ImageData",
        note: Callable[[str], None],
    ) -> None:
        from cnnviz.core.data.labels import match_labels

        self._model, self._occluder, self._spec = model, occluder, spec
        self._expectations, self._data = expectations, data
        self._classes = match_labels(data, model)
        self._place = {example.path: place for place, example in enumerate(data.examples)}
        self.features = _Features(model, note)

    def __call__(
        self, path: Path, image: "WorkingImage", advance: Callable[[int], None]
    ) -> "tuple[Row, Callable[[RunFolder], None]]":
        """The image's row; it has no files of its own."""
        place = self._place[str(path)]
        label = self._label(place, image)
        text = None if label is None else str(label)
        result = self._occluder.run(image, label=text, progress=advance)
        return self._row(place, label, image, result), lambda _folder: None

    def _label(self, place: int, image: "WorkingImage") -> int | None:
        """The true class: the data set's, or what `--expect` says."""
        known = self._data.examples[place].label
        if known is not None:
            return self._classes[known]
        expected = self._expectations.for_image(image.path) if self._expectations else None
        if expected is None or expected.label is None:
            return None
        return self._model.class_index(expected.label)

    def _row(
        self, place: int, label: int | None, image: "WorkingImage", result: "OcclusionResult"
    ) -> "Row":
        import torch

        from cnnviz.audit.rows import digest, packed
        from cnnviz.core.output.numbers import digits

        by_class = {panel.target: panel for panel in result.panels}
        predicted = int(result.measured.ranking_K.argmax())
        panel = by_class[predicted]
        y0, x0, y1, x1 = panel.max_drop_box
        original, covered = self._pair(image, (y0, x0, y1, x1))
        best = int(torch.as_tensor(panel.values_P).argmax())
        row: Row = {
            "image": image.path,
            "place": place,
            "label": label,
            "predicted": predicted,
            "probability": digits(panel.reading),
            "max_drop": digits(panel.max_drop),
            "mean_drop": digits(panel.mean_drop),
            "box": [y0, x0, y1, x1],
            "reliance": digits(panel.reliance or 0.0),
            "flips": digits(panel.flips.share if panel.flips else 0.0),
            "covered": int(panel.winners_P[best]),
            "pixels": digest(image.pixels.numpy()),
            "crop": [digits(edge) for edge in image.box_original],
            "grid": list(panel.grid.shape),
            "map": packed(panel.values_P.numpy()),
            "features": packed(self.features.lost(original, covered).numpy()),
        }
        self._add_verdict(row, image, panel.map_HW)
        if label is not None and label != predicted:
            other = by_class[label]
            row["label_probability"] = digits(other.reading)
            row["label_max_drop"] = digits(other.max_drop)
            row["label_box"] = list(other.max_drop_box)
        return row

    def _pair(
        self, image: "WorkingImage", box: tuple[int, int, int, int]
    ) -> "tuple[Tensor, Tensor]":
        """The image, normalised, and with the box covered."""
        from cnnviz.occlusion.masks import fill_picture

        y0, x0, y1, x1 = box
        preprocess = self._model.preprocess
        fill = fill_picture(self._spec.fill, image.pixels, preprocess, self._spec.seed)
        covered = image.pixels.clone()
        covered[:, y0:y1, x0:x1] = fill[:, y0:y1, x0:x1]
        return preprocess.normalise(image.pixels), preprocess.normalise(covered)

    def _add_verdict(self, row: "Row", image: "WorkingImage", map_HW: "Tensor") -> None:
        from cnnviz.core.data.outlines import outline_mask
        from cnnviz.core.output.numbers import digits
        from cnnviz.core.output.record import rounded
        from cnnviz.occlusion.maps import judge

        if self._expectations is None:
            return
        verdict = judge(map_HW, outline_mask(self._expectations.for_image(image.path), image))
        row["inside"] = rounded(verdict.inside or 0.0)
        row["object_share"] = digits(verdict.object_share or 0.0)
        row["hit"] = bool(verdict.pointing_game_hit)
