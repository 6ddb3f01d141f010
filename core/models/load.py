"""A trained network, ready to be asked: weights in place, preprocessing and class names known.

`load_model` goes from what a user can name (the bundled model, a torchvision model, a factory in a
file, a checkpoint) to a `Model`. The module in it is freshly made and in eval mode; analyses only
borrow it.

Shapes: N images, H W rows and columns, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnviz.core.choices import HeadChoice, Precision
from cnnviz.core.device import pick_device
from cnnviz.core.errors import UsageError
from cnnviz.core.models import heads
from cnnviz.core.models.behaviour import Habits, guarded, probe
from cnnviz.core.models.heads import Head, Reading, Region
from cnnviz.core.models.labels import Labels, class_index, read_labels
from cnnviz.core.models.outputs import read_out
from cnnviz.core.models.preprocess import Preprocess, adjust, plain
from cnnviz.core.models.trained import BUNDLED, find_trained


@dataclass(frozen=True, eq=False)
class Model:
    """A network and everything needed to feed it and to read its answer.

    Attributes:
        module: in eval mode, on `device`, in `precision`; borrowed by analyses, never changed.
        name: as summaries call it: "bundled", "resnet18", "net.py:make", "model.pt2".
        preprocess: resize, crop, mean and std.
        labels: one per class; class indices as text where the names are unknown.
        input_size: (rows, columns) of the working image.
        weights_sha256: over the state dict before any conversion (an archive: over the file).
        device: where the module is.
        precision: the number format of its weights.
        wnids: WordNet ids per class, where a labels file gave them.
        notes: what was found while loading and the user should know, a line each.
        habits: whether answers depend on the batch or differ each time.
        head: what its numbers mean.
        repeat: passes that scores are averaged over, where answers differ each time.
        region: where a dense output is read; None of a network that puts out rows.
        layout: how images lie in memory when they go into it.
    """

    module: nn.Module
    name: str
    preprocess: Preprocess
    labels: tuple[str, ...]
    input_size: tuple[int, int]
    weights_sha256: str
    device: torch.device
    precision: Precision
    wnids: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    habits: Habits = field(default_factory=Habits)
    head: Head = field(default_factory=Head)
    repeat: int = 1
    region: Region | None = None
    layout: torch.memory_format = torch.contiguous_format

    @property
    def classes(self) -> int:
        """The number of classes K."""
        return len(self.labels)

    @property
    def unjudged(self) -> str | None:
        """Why its answer to a picture is not one class that is right or wrong; None where it is."""
        if not self.head.has_classes:
            return f"{self.name} gives values, not classes (--head none)"
        return f"{self.name} gives a class to each pixel, not to a picture" if self.region else None

    def blank(self, size: tuple[int, int] | None = None) -> Tensor:
        """One image of zeros, (1, C, H, W), on the CPU."""
        return torch.zeros(1, self.preprocess.channels, *(size or self.input_size))

    def logits(self, images_N3HW: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) on any device to float32 logits (N, K) on the model's.

        Of a regression (`head`) they are its values. The mean of `repeat` passes.
        """
        outputs = self.outputs(images_N3HW)
        for _ in range(self.repeat - 1):
            outputs = outputs + self.outputs(images_N3HW)
        return self.head.logits(outputs / self.repeat)

    def outputs(self, images_N3HW: Tensor) -> Tensor:
        """One pass: what the network puts out, float32 (N, K) where it is a row of numbers."""
        pinned = images_N3HW.is_pinned()
        images = images_N3HW.to(self.device, self.precision.dtype, non_blocking=pinned)
        rows: Tensor = self.module(images.contiguous(memory_format=self.layout))
        return rows.float() if isinstance(rows, Tensor) else rows

    def settle(self, pixels_13HW: Tensor, inside_HW: Tensor | None) -> Reading | None:
        """Says where a dense output is read from now on: in one picture, untouched.

        Args:
            pixels_13HW: the picture, normalised.
            inside_HW: what the user points at, bool; None: where each class is predicted.
        """
        if self.region is None:
            return None
        with torch.no_grad():
            return self.region.settle(lambda: self.outputs(pixels_13HW), inside_HW)

    def batch_size(self, asked: int | None) -> int | None:
        """So many images at a time (None: automatic), or one where they would mix."""
        return 1 if self.habits.mixes_batch else asked

    def class_index(self, text: str) -> int:
        """The class of that name (case, '_' and space alike; an unambiguous part will do) or index.

        Raises:
            UsageError: no class, or more than one, goes by that name.
        """
        return class_index(text, self.labels, self.wnids)


def load_model(
    name: str = BUNDLED,
    *,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    labels: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str = "auto",
    precision: str = "fp32",
    seed: int = 0,
    value_range: tuple[float, float] | None = None,
    show: Sequence[int] | None = None,
    state: str | None = None,
    head: str = "auto",
    output: str | None = None,
    threshold: float = 0.5,
    repeat: int = 1,
    scores: bool = True,
) -> Model:
    """Loads a network with its weights, preprocessing and class names.

    Args:
        name: "bundled", a torchvision model (classification, segmentation), `FILE.py:FACTORY` or
            `package.module:FACTORY`. A TorchScript or torch.export checkpoint needs no name.
        checkpoint: weight file (.pth .pt .th .ckpt .safetensors .pt2), recognised by content.
        weights: torchvision's name of ready-made weights, or "none" for random ones (seeded).
            By default torchvision's own default, unless there is a checkpoint.
        labels: file of class names (.txt, .json).
        size: side of the square input, or (rows, columns); by default the weights' own.
        mean: what is subtracted from pixels in [0, 1]: one number, or one per channel.
        std: what is divided by: one number, or one per channel.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "fp32", "bf16" or "fp16".
        seed: of random weights; torch's own generator is left as it was.
        value_range: the values of arrays and TIFF files that stand for 0 and 1.
        show: the channels drawn as red, green and blue, counted from 1, or one drawn as grey.
        state: which of several sets of weights in the checkpoint, by key or prefix; by default the
            one that fits best, averaged weights (EMA) before raw ones.
        head: what its numbers mean: "auto" (found out), "softmax", "sigmoid" (each class on its
            own), "probabilities" or "none" (a regression).
        output: which of several outputs, by name or number, or `FILE.py:FUNCTION` that makes (N,)
            or (N, K) of whatever the network puts out.
        threshold: probability from which a class on its own holds.
        repeat: passes that scores are averaged over.
        scores: whether a row of numbers for each picture is needed; without, a network that has
            none is taken too, with no classes.

    Raises:
        UsageError: a name, option or file that does not exist.
        CnnvizError: weights that cannot be fetched, read or fitted, or are not finite.
    """
    target, number_format = pick_device(device), _precision(precision)
    file = Path(checkpoint) if checkpoint is not None else None

    def adjusted(base: Preprocess | None) -> Preprocess:
        return adjust(base or plain(size), size, mean, std)

    if state is not None and file is None:
        raise UsageError(f"--state {state} names weights in a file; give it with --checkpoint")
    dtype = number_format.dtype
    given = read_labels(Path(labels)) if labels is not None else None
    with _seeded(seed):
        count = len(given.names) if given else None
        trained = find_trained(name, file, weights, state, adjusted, count)
        wanted = trained.preprocess
        module, raw, channels = probe(
            trained.module.to(target, dtype),
            trained.name,
            wanted.channels,
            wanted.crop,
            dtype,
            target,
        )
        preprocess = wanted.with_channels(channels)
        notes = _check_channels(trained.name, wanted, preprocess, mean, std)
        preprocess = replace(preprocess, scale=value_range, show=_bands(show, channels))
        read = read_out(
            module, raw, trained.name, preprocess, target, dtype, output, _head(head), scores
        )
    if threshold != Head().threshold and read.head.kind is not heads.Kind.SIGMOID:
        raise UsageError(
            f"--threshold {threshold:g} is for classes on their own (--head sigmoid); the head of "
            f"{trained.name} is {read.head.name}"
        )
    names = _name_classes(given, trained.labels or read.labels, read.classes, trained.name)
    return Model(
        module=guarded(read.module, trained.name, read.classes),
        name=trained.name,
        preprocess=preprocess,
        labels=names.names,
        input_size=preprocess.crop,
        weights_sha256=trained.weights_sha256,
        device=target,
        precision=number_format,
        wnids=names.wnids,
        notes=(*trained.notes, *notes, *read.notes),
        habits=read.habits,
        head=replace(read.head, threshold=threshold),
        repeat=repeat,
        region=read.region,
    )


def _check_channels(
    name: str,
    wanted: Preprocess,
    found: Preprocess,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> list[str]:
    """A line where a network takes other channels than pictures have, and nothing is normalised.

    Raises:
        UsageError: means or deviations are given for another number of channels.
    """
    if found.channels == wanted.channels:
        return []
    if any(len(given) > 1 for given in (mean, std) if given is not None):
        raise UsageError(
            f"--mean and --std are given for {wanted.channels} channels; {name} takes "
            f"{found.channels}"
        )
    plain_values = set(found.mean) == {0.0} and set(found.std) == {1.0}
    said = "; values in 0…1 are not normalised (--mean, --std)" if plain_values else ""
    return [f"{name} takes {found.channels} channels{said}"]


def _bands(show: Sequence[int] | None, channels: int) -> tuple[int, ...] | None:
    if show is None:
        return None
    if len(show) not in (1, 3) or not all(1 <= band <= channels for band in show):
        shown = ",".join(map(str, show))
        raise UsageError(f"--show {shown}: it takes one or three of the channels 1 to {channels}")
    return tuple(band - 1 for band in show)


def _head(text: str) -> HeadChoice:
    if text not in list(HeadChoice):
        raise UsageError(f"no head '{text}'; --head takes {', '.join(HeadChoice)}")
    return HeadChoice(text)


def _precision(text: str) -> Precision:
    if text not in list(Precision):
        raise UsageError(f"no precision '{text}'; --precision takes {', '.join(Precision)}")
    return Precision(text)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds torch's generator of the CPU for a while; random weights are made nowhere else."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _name_classes(given: Labels | None, known: tuple[str, ...], classes: int, name: str) -> Labels:
    if given is not None and classes:
        if len(given.names) != classes:
            raise UsageError(
                f"'{given.path}' has {len(given.names)} labels; {name} has {classes} classes"
            )
        return given
    return Labels(known if len(known) == classes else tuple(map(str, range(classes))))
