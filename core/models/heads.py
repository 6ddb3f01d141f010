"""The meaning of a network's outputs: exclusive classes, independent classes, or values.

A head is determined once, from the network's outputs for random images, unless the user names it.
All code here handles scores as logits: softmax (the sigmoid, for independent classes) turns them
into the network's probabilities. The outputs of a regression are values and stay unchanged.

Shapes: N images, K classes or values.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cnnviz.core.choices import HeadChoice, whole_number
from cnnviz.core.device import rounding
from cnnviz.core.errors import UsageError
from cnnviz.core.graph.program import target_name
from cnnviz.core.models.labels import class_index

MAXIMUM_VALUES = 5
"""Of a regression with more values, the one to explain must be named."""
WORDS = VALUE, SCORE, SIMILARITY, FEATURE = "value", "score", "similarity", "feature"
"""What numbers are called that are not probabilities."""


class Kind(StrEnum):
    """How the classes relate to each other."""

    SOFTMAX = "softmax"
    """They exclude each other."""
    SIGMOID = "sigmoid"
    """Each is present or absent, independently of the others."""
    NONE = "none"
    """There are no classes: a regression."""


def share_text(value: float) -> str:
    """Two decimals; near 0 two digits, near 1 as many as differ from it, at most four."""
    if 0.01 <= value < 0.995 or value in (0.0, 1.0):
        return f"{value:.2f}"
    if value < 0.01:
        return f"{value:.2g}" if value >= 0.001 else "< 0.001"
    shown = f"{value:.3f}"
    return f"{value:.4f}" if shown == "1.000" else shown


@dataclass(frozen=True)
class Head:
    """The meaning of a network's outputs."""

    kind: Kind = Kind.SOFTMAX
    probabilities_given: bool = False
    """The outputs are probabilities, not logits."""
    threshold: float = 0.5
    """An independent class, or a box, is present from this probability or score on."""
    word: str = VALUE
    """What a number is called if there are no classes."""

    @property
    def name(self) -> str:
        """The head's name in summaries."""
        if not self.probabilities_given:
            return self.kind.value
        return "probabilities" if self.kind is Kind.SOFTMAX else "probabilities per class"

    @property
    def has_classes(self) -> bool:
        """Whether there are classes at all."""
        return self.kind is not Kind.NONE

    @property
    def described(self) -> str:
        """What there is in place of classes, for messages."""
        if self.word != VALUE:
            return f"here each number is a {self.word}"
        return "a regression (--head none) has values only"

    @property
    def has_shares(self) -> bool:
        """Whether a number has a natural zero, so that shares of it can be held or lost."""
        return self.has_classes or self.word == SCORE

    @property
    def reading_name(self) -> str:
        """What a number is called: probability, value, score."""
        return "probability" if self.has_classes else self.word

    def logits(self, outputs: Tensor) -> Tensor:
        """Turn outputs of any shape (…, K) into logits; values stay unchanged."""
        if not self.probabilities_given:
            return outputs
        if self.kind is Kind.SIGMOID:
            return outputs.logit(eps=torch.finfo(outputs.dtype).eps / 2)
        return log_of(outputs)

    def readings(self, logits: Tensor) -> Tensor:
        """Turn logits (…, K) into float64 probabilities; values stay unchanged."""
        exact = logits.double()
        if self.kind is Kind.NONE:
            return exact
        return exact.softmax(-1) if self.kind is Kind.SOFTMAX else exact.sigmoid()

    def text(self, reading: float) -> str:
        """Format a probability, `p = 0.123`, a value or a score, for headings."""
        shown = self.number(reading)
        if self.has_classes:
            return f"p {shown}" if shown.startswith("<") else f"p = {shown}"
        return f"= {shown}" if self.word == VALUE else f"{self.word} {shown}"

    def number(self, reading: float) -> str:
        """Format a probability, a value or a score, without its name."""
        if self.has_classes or (self.word == SCORE and 0 <= reading <= 1):
            return share_text(reading)
        return f"{reading:.4g}" if self.word == VALUE else f"{reading:.2f}"

    def change_text(self, before: float, after: float | None) -> str:
        """Format what occlusion does to a probability, `p = 0.93 → 0.21`, or to a value."""
        return self.text(before) + ("" if after is None else f" → {self.number(after)}")

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Log p of each class, in the number format of the logits."""
        if self.kind is Kind.SOFTMAX:
            return logits.log_softmax(-1)
        return functional.logsigmoid(logits)

    def own_logits(self, logits: Tensor) -> Tensor:
        """Each class's logit, float64; its log-odds if the network returns probabilities."""
        given = self.kind is Kind.SOFTMAX and self.probabilities_given
        return self.log_odds(logits) if given else logits.double()

    def log_odds(self, logits: Tensor) -> Tensor:
        """Log p/(1 − p) of each class, float64, exact near 0 and 1; values stay unchanged.

        This is the logit of an independent class. Of exclusive classes it is the logit minus the
        log of the others' summed exponentials: summed without the class itself where that is the
        most probable one, and else log Σ + log(1 − p), where p is at most 1/2.
        """
        exact = logits.double()
        if self.kind is not Kind.SOFTMAX:
            return exact
        best = exact.argmax(-1, keepdim=True)
        log_p = exact.log_softmax(-1)
        rest = log_p.scatter(-1, best, -torch.inf).logsumexp(-1, keepdim=True)
        others = torch.log1p(-log_p.exp().scatter(-1, best, 0.0)).scatter(-1, best, rest)
        return log_p - others

    def holds(self, logits: Tensor) -> Tensor:
        """Which independent classes are present, bool (…, K)."""
        return self.readings(logits) >= self.threshold


SOFTMAX = Head()


class LastSigmoid(TorchFunctionMode):
    """Takes the input of a network's last sigmoid instead of its output, if `removed`.

    A probability near 1 is rounded, which leaves few digits of its logit. `seen` records whether
    the output is that of a sigmoid.
    """

    def __init__(self) -> None:
        super().__init__()
        self.removed = self.seen = False
        self._made: dict[int, tuple[Any, Any]] = {}

    def __deepcopy__(self, _memo: object) -> "LastSigmoid":
        return self

    def watched(self) -> AbstractContextManager[object]:
        """The context in which the network runs."""
        return self if self.removed else nullcontext()

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in ("sigmoid", "expit", "special_expit") and args:
            self._made[id(output)] = output, args[0]  # an output that is kept keeps its id
        return output

    def logits(self, output: Any) -> Any:
        """The logits of a network's output; of what no sigmoid made, by their formula."""
        if not self.removed:
            return output
        if isinstance(output, fx.Proxy):
            node, tracer = output.node, output.tracer
            assert isinstance(tracer, fx.Tracer)  # noqa: S101 (a module is traced)
            layer = (
                tracer.root.get_submodule(str(node.target)) if node.op == "call_module" else None
            )
            sigmoid = isinstance(layer, nn.Sigmoid) or target_name(node.target) == "sigmoid"
            first = node.args[0] if sigmoid and node.args else None
            before = tracer.proxy(first) if isinstance(first, fx.Node) else None
        else:
            before = self._made.get(id(output), (None, None))[1]
        self._made.clear()
        self.seen = before is not None
        return Head(Kind.SIGMOID, True).logits(output) if before is None else before


def log_of(positive: Tensor) -> Tensor:
    """The logarithm, finite at 0."""
    return positive.clamp_min(torch.finfo(positive.dtype).tiny).log()


def _range(outputs_NK: Tensor, dtype: torch.dtype) -> str | None:
    """`distributions` (rows in [0, 1] that sum to 1), `shares` (in [0, 1]), or None."""
    exact = outputs_NK.double()
    if not bool(((exact >= 0) & (exact <= 1)).all()):
        return None
    sums_to_1 = float((exact.sum(1) - 1).abs().max()) < rounding(dtype)
    return "distributions" if sums_to_1 and exact.shape[1] > 1 else "shares"


def _unit_length(outputs_NK: Tensor, dtype: torch.dtype) -> bool:
    """Whether every row is a vector of length 1, for every image."""
    lengths = outputs_NK.double().norm(dim=1)
    return outputs_NK.shape[1] > 1 and bool(((lengths - 1).abs() < rounding(dtype)).all())


def determine_head(
    outputs_NK: Tensor,
    outputs_far_away: Callable[[], Tensor | None],
    choice: HeadChoice,
    dtype: torch.dtype,
    name: str,
) -> tuple[Head, list[str]]:
    """Determine a network's head, and a note if it is neither plain logits nor the user's choice.

    `outputs_far_away` returns outputs (N, K) for images of extreme contrast, or None. It is called
    if the outputs for random images are between 0 and 1 or of length 1, since logits can be so by
    chance. Equal outputs for all images (a head of zeros) do not show what they mean.
    """
    if choice in (HeadChoice.SOFTMAX, HeadChoice.SIGMOID, HeadChoice.NONE):
        return Head(Kind(choice.value)), []
    kind, automatic = _range(outputs_NK, dtype), choice is HeadChoice.AUTO
    undecided = kind == "shares" or (kind is None and _unit_length(outputs_NK, dtype))
    if undecided and automatic:
        far_NK = outputs_far_away()
        all_NK = outputs_NK if far_NK is None else torch.cat([outputs_NK, far_NK])
        if _unit_length(all_NK, dtype):
            return Head(Kind.NONE, word=FEATURE), [
                f"{name} returns vectors of length 1, features of an embedding and not classes "
                "(--head overrides this)"
            ]
        if bool((all_NK == all_NK[0]).all()):
            return Head(), [
                f"{name} returns the same numbers for every trial image, which do not show what "
                "they mean: they are taken as logits of exclusive classes (--head overrides this)"
            ]
        kind = _range(all_NK, dtype)
    if not automatic and kind is None:
        raise UsageError(f"--head probabilities: {name} returns numbers outside 0 to 1")
    if kind is None:
        return Head(), []
    if kind == "distributions" or outputs_NK.shape[1] == 1:
        head, what = Head(Kind.SOFTMAX, True), "probabilities"
    else:
        head, what = Head(Kind.SIGMOID, True), "an independent probability for each class"
    note = (
        f"{name} returns {what}: they are used unchanged, and the logit of a class is its "
        "log-odds (--head overrides this)"
    )
    return head, [note] if automatic else []


def resolve_targets(
    targets: Sequence[str], base_logits_K: Tensor, labels: Sequence[str], head: Head
) -> tuple[int, ...]:
    """Return the requested classes' indices in the order of the request, each once.

    Args:
        targets: `predicted`, `topK` (the K most probable), class names or indices; for a
            regression of few values, `predicted` means every value.
        base_logits_K: scores of the original image.
        labels: class names.
        head: whether there are classes.
    """
    ranked = base_logits_K.argsort(descending=True, stable=True).tolist()
    indices: list[int] = []
    for target in targets:
        top = re.fullmatch(r"top(\d+)", target)
        if not head.has_classes and (target == "predicted" or top):
            indices += _values(target, labels, head.word)
        elif target == "predicted":
            indices.append(ranked[0])
        elif top:
            count = whole_number(top[1])
            if count is None or not 1 <= count <= len(labels):
                raise UsageError(f"'{target[:40]}' asks for {top[1][:40]} of {len(labels)} classes")
            indices += ranked[:count]
        else:
            indices.append(class_index(target, labels))
    return tuple(dict.fromkeys(indices))


def _values(target: str, labels: Sequence[str], word: str) -> list[int]:
    if word == FEATURE:
        raise UsageError(
            "the outputs are features of an embedding, not classes: --like REFERENCE.jpg explains "
            "what makes an image similar to another one, and --target an index from 0 to "
            f"{len(labels) - 1} one feature"
        )
    if target != "predicted" or len(labels) > MAXIMUM_VALUES:
        raise UsageError(
            f"'{target}': {len(labels)} values (a regression, or features of an embedding) have no "
            f"ranking; --target takes a value's name or an index from 0 to {len(labels) - 1}"
        )
    return list(range(len(labels)))
