"""Similarity to a reference as a target: what makes an image like another one, or like a text?

The number of an image is the cosine of its features and the reference's. The features are the input
of the classifier head, the output of a network without one, or a layer's output, averaged over its
positions. The network is cut there, and ends in the cosine; so every command takes it like any
other network. Several texts are classes: a softmax over their scaled cosines, or a sigmoid of
each if the network was trained so (SigLIP).

Shapes: N images, T references, D features.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from cnnviz.core.data.images import WorkingImage, read_image
from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.graph.trace import Untraceable, trace
from cnnviz.core.models.behaviour import guarded
from cnnviz.core.models.boxes import Boxes
from cnnviz.core.models.fitting import remove_head
from cnnviz.core.models.heads import SIMILARITY, Head, Kind
from cnnviz.core.models.layers import find_layer
from cnnviz.core.models.load import Model
from cnnviz.core.models.targets import Target, with_reader
from cnnviz.core.models.zoo.towers import ImageTower
from cnnviz.embeddings.penultimate import head_input, last_linear


class Likeness(Target):
    """Reads features; once references are known, their cosines with these, times a scale."""

    name = SIMILARITY
    unjudged = "returns a similarity, not classes"

    def __init__(self, model: str) -> None:
        self._model, self._scale, self._bias = model, 1.0, 0.0
        self._references_TD: Tensor | None = None
        self._seen_ND: Tensor | None = None
        self._own_1D: Tensor | None = None
        self.reference: WorkingImage | None = None

    def rows(self, output: Tensor) -> Tensor:
        """Features (N, D), or cosines (N, T)."""
        values = output.float()
        if values.ndim > 2:  # tokens (N, T, D), maps (N, C, H, W)
            values = values.mean(1) if values.ndim == 3 else values.flatten(2).mean(2)
        values = values.flatten(1)
        self._seen_ND = values.detach()
        if self._references_TD is None:
            return values
        cosines_NT = functional.normalize(values, dim=1) @ self._references_TD.T
        return self._scale * cosines_NT + self._bias

    def settle(self, run: Callable[[], object], _inside_HW: Tensor | None) -> None:
        """Keep the image's features, for `exchanged`."""
        run()
        self._own_1D = self._seen_ND

    @contextmanager
    def exchanged(self, name: str) -> Iterator[None]:
        """Let the last settled image, of that name, be the reference for a while."""
        before = self._references_TD
        assert self._own_1D is not None  # noqa: S101 (it is settled before)
        try:
            self.freeze(self._own_1D, [name])
            yield
        finally:
            self._references_TD = before

    def freeze(
        self, features_TD: Tensor, names: Sequence[str], scale: float = 1.0, bias: float = 0.0
    ) -> None:
        """Take the features of the references; cosines are scaled, and a bias is added.

        Raises:
            CnnvizError: they have no direction.
        """
        lengths_T1 = features_TD.float().norm(dim=1, keepdim=True)
        for name, length in zip(names, lengths_T1[:, 0].tolist(), strict=True):
            if not 0 < length < float("inf"):
                raise CnnvizError(
                    f"the features of '{name}' in {self._model} are all 0 or not finite, so "
                    "nothing is like it; take another reference or --like-layer"
                )
        self._references_TD = features_TD.float() / lengths_T1
        self._scale, self._bias = scale, bias


def like(model: Model, reference: Path, layer: str | None = None) -> Model:
    """The network as one number per image: its similarity to a reference image.

    Args:
        model: not modified.
        reference: an image file.
        layer: whose output are the features; None for the input of the classifier head, or the
            output of a network whose outputs are features.

    Raises:
        UsageError: there is no such layer, no classifier head was found, or it is a detector.
        CnnvizError: the file cannot be read, or the reference has no features.
    """
    _check(model, "--like")
    target = Likeness(model.name)
    image = read_image(reference, model.preprocess)
    module = _cut(model, layer, target).eval()
    pixels = model.preprocess.normalise(image.pixels)[None].to(model.device, model.precision.dtype)
    with torch.no_grad():
        target.freeze(module(pixels), [str(reference)])
    target.reference = image
    head = Head(Kind.NONE, word=SIMILARITY)
    return _ending_in(model, module, target, head, (f"like {reference.name}",))


def describe(model: Model, texts: Sequence[str]) -> Model:
    """The network as its similarity to a text, or as probabilities of several.

    Args:
        model: of an image and a text tower; its module is taken over.
        texts: what images may show.

    Raises:
        UsageError: there is no text tower, or the texts are empty, equal or too long.
        CnnvizError: the tokenizer cannot be read.
    """
    _check(model, "--text")
    if not isinstance(model.module, ImageTower):
        raise UsageError(
            f"--text: {model.name} has no text tower; CLIP and its like have one, as --model "
            "hf:openai/clip-vit-base-patch32 or open_clip:ViT-B-32"
        )
    if not all(text.strip() for text in texts) or len(set(texts)) < len(texts):
        raise UsageError("--text takes texts that are not empty, each once")
    target, several = Likeness(model.name), len(texts) > 1
    scale, bias = model.module.scaling() if several else (1.0, None)
    target.freeze(model.module.read(texts), texts, scale, bias or 0.0)
    kind = Kind.SOFTMAX if bias is None else Kind.SIGMOID
    head = Head(kind) if several else Head(Kind.NONE, word=SIMILARITY)
    return _ending_in(model, with_reader(model.module, target.read), target, head, tuple(texts))


def _check(model: Model, option: str) -> None:
    if isinstance(model.target, Boxes):
        raise UsageError(f"{option}: {model.name} returns boxes; --box N explains one of them")


def _ending_in(
    model: Model, module: nn.Module, target: Likeness, head: Head, labels: tuple[str, ...]
) -> Model:
    """The model with a network that ends in the target."""
    return replace(
        model,
        module=guarded(module, model.name, len(labels)),
        labels=labels,
        wnids=None,
        head=head,
        target=None if head.has_classes else target,
        layout=torch.contiguous_format,
    )


def _cut(model: Model, layer: str | None, target: Likeness) -> nn.Module:
    """A copy of the network that ends where the features are, and in the target."""
    features = model.target is None and not model.head.has_classes
    if layer is None and features:
        return _without_guard(copy.deepcopy(model.module), target)
    if layer is not None:
        find_layer(model.module, layer, model.name)
    try:
        traced = trace(model.module, [layer] if layer else [])
        if layer is None:
            return _ending(traced, head_input(traced), target)
        name = traced.meta["layers"].get(layer)
        if name is None:
            raise UsageError(f"layer '{layer}' does not run in the forward pass of {model.name}")
        node = next(node for node in traced.graph.nodes if node.name == name)
        return _ending(traced, node, target)
    except (Untraceable, UsageError):
        linear = last_linear(model) if layer is None else None
        if linear is None:
            raise
        module = copy.deepcopy(model.module)
        remove_head(module, [linear])
        return _without_guard(module, target)


def _without_guard(module: nn.Module, target: Likeness) -> nn.Module:
    """The network with the target at its end, where any number of features is right."""
    return guarded(with_reader(module, target.read), target.name, 0)


def _ending(traced: fx.GraphModule, node: fx.Node, target: Likeness) -> fx.GraphModule:
    """The network up to the value of a node, which the target reads."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(traced.graph, copies)
    graph.output(graph.call_function(target.read, (copies[node],)))
    module = fx.GraphModule(traced, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()
    return module
