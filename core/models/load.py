"""A trained network, ready to run: weights in place, preprocessing and class names known.

`load_model` turns what a user can name (the bundled model, a torchvision model, a factory in a
file, a checkpoint) into a `Model`. Its module is newly made and in eval mode; analyses only borrow
it.

Shapes: N images, C channels, H W rows and columns, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from cnnviz.core.choices import Decode, HeadChoice, Precision
from cnnviz.core.device import pick_device
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.behaviour import Behaviour, guarded, run_first
from cnnviz.core.models.boxes import Boxes, taken_over
from cnnviz.core.models.files.kinds import SUFFIXES, parts_of
from cnnviz.core.models.fitting import FEATURES_ONLY
from cnnviz.core.models.heads import Head, Kind
from cnnviz.core.models.inputs import Reader, with_inputs
from cnnviz.core.models.labels import Labels, class_index, imagenet_wnids, is_wnid, read_labels
from cnnviz.core.models.outputs import ReadOut, read_out
from cnnviz.core.models.preprocess import Preprocess, adjust, plain
from cnnviz.core.models.targets import Reading, Target
from cnnviz.core.models.trained import BUNDLED, Trained, find_trained
from cnnviz.core.remote import is_url, local_copy, named_by_url

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True, eq=False)
class Model:
    """A network and everything needed to feed it and to read its answer.

    Attributes:
        module: in eval mode, on `device`, in `precision`; borrowed by analyses, never changed.
        name: its name in summaries: "bundled", "resnet18", "net.py:make", "model.pt2".
        preprocess: resize, crop, mean and std.
        labels: one per class; class indices as text if the names are unknown.
        input_size: (rows, columns) of the working image.
        weights_sha256: of the state dict before any conversion; for an archive, of the file.
        device: where the module is.
        precision: the number format of its weights.
        wnids: WordNet ids per class, if a labels file gave them.
        notes: what the user should know about the loading.
        behaviour: whether answers depend on the batch or differ from pass to pass.
        head: what its numbers mean.
        repeat: passes that scores are averaged over.
        target: what makes rows of its output; None for a network that returns rows.
        layout: the memory format of its input.
        random: the seed of its weights if they are random (`--weights none`); None otherwise.
        choices: the user's options about inputs and outputs, with digests of their files, for
            journals; empty from Python.
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
    behaviour: Behaviour = field(default_factory=Behaviour)
    head: Head = field(default_factory=Head)
    repeat: int = 1
    target: Target | None = None
    layout: torch.memory_format = torch.contiguous_format
    random: int | None = None
    choices: str = ""

    @property
    def classes(self) -> int:
        """The number of classes K."""
        return len(self.labels)

    @property
    def unjudged(self) -> str | None:
        """Why its answer to an image is not one class, right or wrong; None if it is."""
        if self.target is not None:
            return f"{self.name} {self.target.unjudged}"
        if not self.classes:
            return f"{self.name} has no classifier"
        values = f"{self.name} returns values, not classes (--head none)"
        return None if self.head.has_classes else values

    def blank(self, size: tuple[int, int] | None = None) -> Tensor:
        """One image of zeros, (1, C, H, W), on the CPU."""
        return torch.zeros(1, self.preprocess.channels, *(size or self.input_size))

    def logits(self, images_NCHW: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) on any device to float32 logits (N, K) on the model's.

        For a regression (`head`) they are its values. They are the mean of `repeat` passes.
        """
        outputs = self.outputs(images_NCHW)
        for _ in range(self.repeat - 1):
            outputs = outputs + self.outputs(images_NCHW)
        return self.head.logits(outputs / self.repeat)

    def outputs(self, images_NCHW: Tensor) -> Tensor:
        """Run one pass; the outputs are float32 (N, K) if the network has scores."""
        pinned = images_NCHW.is_pinned()
        images = images_NCHW.to(self.device, self.precision.dtype, non_blocking=pinned)
        rows: Tensor = self.module(images.contiguous(memory_format=self.layout))
        return rows.float() if isinstance(rows, Tensor) else rows

    def finite(self, logits: Tensor, image: str) -> Tensor:
        """Returns the logits of an image or of parts of it; CnnvizError if any is not finite."""
        if not logits.isfinite().all():
            raise CnnvizError(
                f"{self.name} gives scores that are not finite on '{image}' or parts of it in "
                f"{self.precision.value}; use --precision fp32, or check the weights"
            )
        return logits

    def settle(self, pixels_1CHW: Tensor, inside_HW: Tensor | None) -> Reading | None:
        """Freeze what a target depends on, besides the output, by one original image.

        Args:
            pixels_1CHW: the image, normalised.
            inside_HW: the region of a dense output that the user points at, bool; None: where
                each class is predicted.
        """
        if self.target is None:
            return None
        with torch.no_grad():
            return self.target.settle(lambda: self.outputs(pixels_1CHW), inside_HW)

    def batch_size(self, requested: int | None) -> int | None:
        """The requested batch size (None: automatic), or 1 if the network mixes its batch."""
        return 1 if self.behaviour.mixes_batch else requested

    def class_index(self, text: str) -> int:
        """Return the class of that name (ignoring case, `_` for space), WordNet id or index."""
        wnids = self.wnids or (imagenet_wnids(self.labels) if is_wnid(text) else None)
        return class_index(text, self.labels, wnids)


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
    features: bool = False,
    inputs: Sequence[tuple[str, Reader]] = (),
    cover: str | None = None,
    decode: str = "exact",
) -> Model:
    """Load a network with its weights, preprocessing and class names.

    Args:
        name: "bundled", a torchvision model (classification, segmentation), `FILE.py:FACTORY` or
            `package.module:FACTORY`. A TorchScript or torch.export checkpoint needs no name.
        checkpoint: weight file (.pth .pt .th .ckpt .safetensors .pt2), recognised by content, or
            its URL.
        weights: torchvision's name of ready-made weights, or "none" for random ones (seeded).
            By default torchvision's default, unless there is a checkpoint.
        labels: file of class names (.txt, .json).
        size: side of the square input, or (rows, columns); by default that of the weights.
        mean: subtracted from pixels in [0, 1]: one number, or one per channel.
        std: divided by: one number, or one per channel.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "fp32", "bf16" or "fp16".
        seed: of random weights; torch's generator keeps its state.
        value_range: the values of arrays and TIFF files that become 0 and 1.
        show: the channels drawn as red, green and blue, counted from 1, or one drawn as grey.
        state: which of several sets of weights in the checkpoint, by key or prefix; by default the
            one that fits best, averaged weights (EMA) before raw ones.
        head: what its numbers mean: "auto" (determined from its outputs), "softmax", "sigmoid"
            (independent classes), "probabilities" or "none" (a regression).
        output: which of several outputs, by name or number, or `FILE.py:FUNCTION` that turns the
            network's output into (N,) or (N, K).
        threshold: probability from which an independent class is present.
        repeat: passes that scores are averaged over.
        scores: whether a row of numbers for each image is required; if not, a network without
            one is accepted, with no classes.
        features: whether a network is accepted whose weights hold no classifier, as features
            without classes; it is too if no scores are required.
        inputs: the other inputs of a network that takes several, and what reads each.
        cover: the input that is the image; by default the first one that is not given.
        decode: "exact", or "fast": large JPEG files are decoded at a reduced size.

    Raises:
        UsageError: a name, option or file that does not exist.
        CnnvizError: weights that cannot be fetched, read or fitted, or are not finite.
    """
    place, number_format = pick_device(device), _choice(Precision, precision, "precision")
    if place.type == "cuda":  # TF32 rounds to 10 bits: the engines would not agree
        torch.backends.cudnn.allow_tf32 = number_format is not Precision.FP32
    head_choice = _choice(HeadChoice, head, "head")

    def adjusted(base: Preprocess, published: bool) -> Preprocess:
        return adjust(base if published or size is None else plain(size), size, mean, std)

    if state is not None and checkpoint is None:
        raise UsageError(f"--state {state} names weights in a file; give it with --checkpoint")
    dtype = number_format.dtype
    given = read_labels(Path(labels)) if labels is not None else None
    with _seeded(seed), _files(name, checkpoint) as (called, file):
        count = len(given.names) if given else None
        headless = features or not scores or head_choice is HeadChoice.NONE
        trained = find_trained(called, file, weights, state, adjusted, count, headless)
        name, preprocess = trained.name, trained.preprocess
        head_choice, notes = _publishers_head(trained, head_choice)
        no_classes = bool(trained.headless) and head_choice is not HeadChoice.NONE
        if no_classes:
            if scores and not features:
                raise CnnvizError(f"{trained.headless}; {FEATURES_ONLY}")
            head_choice = HeadChoice.NONE
            notes.append(f"{trained.headless}: its outputs are features, not classes")
        module = with_inputs(trained.module, name, inputs, cover, preprocess)
        if own := taken_over(trained.module, size, mean, std):
            preprocess, trained = own, replace(trained, assumed=None)
        ran = run_first(module, name, preprocess.channels, preprocess.crop, dtype, place)
        module, channels = ran.module, ran.channels
        notes += ran.notes
        if channels != preprocess.channels:
            preprocess, note = _with_channels(preprocess, channels, name, mean, std)
            notes.append(note)
        is_fast = _choice(Decode, decode, "decode") is Decode.FAST
        preprocess = replace(
            preprocess, scale=value_range, show=_bands(show, channels), fast=is_fast
        )
        scores = scores and not no_classes
        result = read_out(
            module, ran.output, name, preprocess, place, dtype, output, head_choice, scores
        )
        preprocess, whole = _shown_whole(preprocess, result, name)
        notes += whole if size is None else []
        if trained.assumed and (note := trained.assumed.note(preprocess, size, mean, std)):
            notes.append(note)
        if no_classes:
            result = replace(result, classes=0, labels=())
    named = _name_classes(given, trained.labels or result.labels, result, name)
    _set_threshold(result, threshold, name, named)
    return Model(
        module=guarded(result.module, name, result.classes),
        name=name,
        preprocess=preprocess,
        labels=named.names,
        input_size=preprocess.crop,
        weights_sha256=trained.weights_sha256,
        device=place,
        precision=number_format,
        wnids=named.wnids,
        notes=tuple(map(named_by_url, (*notes, *result.notes))),
        behaviour=result.behaviour,
        head=replace(result.head, threshold=threshold),
        repeat=repeat,
        target=result.target,
        random=seed if weights == "none" and checkpoint is None else None,
    )


@contextmanager
def _files(name: str, checkpoint: str | Path | None) -> Iterator[tuple[str, Path | None]]:
    """The name and the weight file of a network, copied for a while if either is a URL."""
    if checkpoint is None and is_url(name):
        if Path(name).suffix.lower() not in SUFFIXES:
            raise UsageError(f"--model {name}: of URLs it takes those of {', '.join(SUFFIXES)}")
        name, checkpoint = BUNDLED, name
    elif is_url(name):
        raise UsageError(f"--model {name} and --checkpoint {checkpoint}: give one of them")
    if checkpoint is None:
        yield name, None
        return
    with local_copy(checkpoint, parts_of) as file:
        yield name, file


def _publishers_head(trained: Trained, choice: HeadChoice) -> tuple[HeadChoice, list[str]]:
    """The user's choice or else what the publisher says, and the notes so far."""
    notes = list(trained.notes)
    if choice is not HeadChoice.AUTO or trained.head is HeadChoice.AUTO:
        return choice, notes
    if trained.head is not HeadChoice.SOFTMAX:
        notes.append(
            f"{trained.name}: the head is {trained.head}, by the problem_type in its "
            "configuration (--head overrides this)"
        )
    return trained.head, notes


def _with_channels(
    preprocess: Preprocess,
    channels: int,
    name: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Preprocess, str]:
    """The preprocessing for a network of so many channels, and a note."""
    if any(len(given) > 1 for given in (mean, std) if given is not None):
        raise UsageError(
            f"--mean and --std are given for {preprocess.channels} channels; {name} takes "
            f"{channels}"
        )
    changed = preprocess.with_channels(channels)
    plain_values = set(changed.mean) == {0.0} and set(changed.std) == {1.0}
    unchanged = "; values in 0…1 are not normalised (--mean, --std)" if plain_values else ""
    return changed, f"{name} takes {channels} channels{unchanged}"


def _shown_whole(
    preprocess: Preprocess, result: ReadOut, name: str
) -> tuple[Preprocess, list[str]]:
    """Fit images of detectors into the working image, without a crop; and a note."""
    if not isinstance(result.target, Boxes) or preprocess.squash:
        return preprocess, []
    fitted = preprocess.fitted()
    return fitted, [f"{name} sees whole images, {fitted.geometry} (--size HxW for another)"]


def _bands(show: Sequence[int] | None, channels: int) -> tuple[int, ...] | None:
    if show is None:
        return None
    if len(show) not in (1, 3) or not all(1 <= band <= channels for band in show):
        shown = ",".join(map(str, show))
        raise UsageError(f"--show {shown}: it takes one or three of the channels 1 to {channels}")
    return tuple(band - 1 for band in show)


def _choice(kind: type[Choice], text: str, option: str) -> Choice:
    if text not in list(kind):
        raise UsageError(f"invalid {option} '{text}'; --{option} takes {', '.join(kind)}")
    return kind(text)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator for a while; random weights are made nowhere else."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _set_threshold(result: ReadOut, threshold: float, name: str, named: Labels) -> None:
    """Give a detector its threshold and names; refuse one where the outputs have none."""
    if isinstance(result.target, Boxes):
        result.target.names, result.target.threshold = named.names, threshold
    elif threshold != Head().threshold and result.head.kind is not Kind.SIGMOID:
        raise UsageError(
            f"--threshold {threshold:g} is for independent classes (--head sigmoid) and boxes; "
            f"the head of {name} is {result.head.name}"
        )


def _name_classes(
    given: Labels | None, known: tuple[str, ...], result: ReadOut, name: str
) -> Labels:
    """The class names; those of boxes are taken as they are, as their number is not known."""
    classes = result.classes
    if isinstance(result.target, Boxes):
        return given or Labels(known)
    if given is not None and classes:
        if len(given.names) != classes:
            raise UsageError(
                f"'{given.path}' has {len(given.names)} labels; {name} has {classes} classes"
            )
        return given
    return Labels(known if len(known) == classes else tuple(map(str, range(classes))))
