"""The weights of a checkpoint into a network: the right ones, under the network's names, or none.

Training scripts wrap networks (`module.`, `model.`, any other prefix), save averaged weights in
addition to the raw ones, and the parameters of the loss in addition to both. The state dict and the
prefix are taken that match most names of the network. Weights written as several tensors are
multiplied out, tensors under another of their names are found, counters are skipped. A note reports
each such decision. Anything else that does not fit is refused.
"""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, strided

from cnnviz.core.errors import CnnvizError, UsageError
from cnnviz.core.models.files.checkpoints import COUNTER, StateDict, check_finite
from cnnviz.core.models.files.kinds import first_few
from cnnviz.core.models.files.reparametrised import plain_weights, remedy

_DEEPEST = 16  # parts of a prefix
# torchvision's published DenseNets write norm.1 for what the network calls norm1.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# Weights averaged over training are the ones to evaluate.
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?)(?![a-z])", re.IGNORECASE)
_NO_LAYER = re.compile(
    r"(criterion|(\w+_)?(loss|losses|loss_fn|metrics?|acc|accuracy)|(train|val|valid|test)_\w+)\d*"
)
_NO_WEIGHT = frozenset(
    # counters of batch norm, of thop, of averaged models
    {COUNTER, "total_ops", "total_params", "n_averaged"}
    # buffers that a network computes when it is built
    | {"relative_position_index", "relative_coords_table", "attn_mask", "position_ids"}
)
"""Last parts of names that some networks save and others do not; no trained value is in them."""
_LONGEST_HEAD = 4  # layers
_HEAD_LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d)
FEATURES_ONLY = (
    "layers, filters, activations, max-patches and tsne do without it; --like REFERENCE.jpg "
    "explains a similarity, --head none the features as values"
)


@dataclass(frozen=True)
class Fitting:
    """A state dict under the names of the network, and a note on each decision."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A state dict of the file and a prefix of its names; `hits` counts the matching names."""

    state: StateDict
    prefix: str
    hits: int

    @property
    def name(self) -> str:
        return f"{self.state.key}.{self.prefix}".strip(".") or "the top"


def choose(states: Sequence[StateDict], module: nn.Module, name: str | None, path: Path) -> Fitting:
    """Choose the state dict that fits a network best (or by `name`), under the network's names."""
    shapes = {n: tuple(v.shape) for n, v in module.state_dict().items() if isinstance(v, Tensor)}
    candidates = [candidate for state in states for candidate in _candidates(state, shapes)]
    candidates = candidates or [_Candidate(state, "", 0) for state in states]
    best = max(candidate.hits for candidate in candidates)
    rivals = [candidate for candidate in candidates if 2 * candidate.hits >= best]
    taken = max(rivals, key=lambda c: (c.hits, bool(_AVERAGED.search(c.name))))
    notes = []
    if name is not None:
        named = [candidate for candidate in candidates if candidate.name == name]
        if not named:
            names = ", ".join(candidate.name for candidate in rivals)
            raise UsageError(f"no state '{name}' in '{path}'; --state takes {names}")
        taken = named[0]
    elif len(rivals) > 1:
        others = ", ".join(candidate.name for candidate in rivals if candidate is not taken)
        notes.append(
            f"'{path}' holds several sets of weights: took {taken.name} (--state takes {others})"
        )
    if omitted := taken.state.omitted:
        notes.append(f"'{path}': skipped objects other than tensors: {first_few(omitted)}")
    tensors, foreign = _split(taken, shapes)
    if foreign:
        roots = Counter(name.split(".")[0] for name in foreign)
        notes.append(f"'{path}': skipped weights that are not the network's: {_counted(roots)}")
    tensors, made = plain_weights(tensors, shapes)
    notes += [f"'{path}': {note}" for note in made]
    idle = [name for name in tensors if name not in shapes and _last(name) in _NO_WEIGHT]
    if idle:
        counts = Counter(map(_last, idle))
        del counts[COUNTER]  # not worth a note: it plays no part at evaluation
        if counts:
            notes.append(f"'{path}': skipped counters and computed buffers: {_counted(counts)}")
        tensors = {name: tensors[name] for name in tensors.keys() - idle}
    return Fitting(tensors, tuple(notes))


def _counted(names: Counter[str]) -> str:
    return first_few(f"{name} ({count})" for name, count in names.items())


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _candidates(state: StateDict, shapes: Mapping[str, tuple[int, ...]]) -> list[_Candidate]:
    """The prefixes under which a state dict has names of the network, the empty one first."""
    hits: Counter[str] = Counter()
    for name, value in _renamed(state.tensors, shapes).items():
        parts = name.split(".", _DEEPEST)
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            if rest in shapes and len(shapes[rest]) == value.ndim:
                hits[name.removesuffix(rest)] += 1
    return [_Candidate(state, prefix, hits[prefix]) for prefix in sorted(hits, key=bool)]


def _renamed(tensors: Mapping[str, Tensor], required: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the names that they have in a network that is not compiled."""
    tensors = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}
    if not any(".denselayer" in name for name in required):
        return tensors
    return {_DENSE_LAYER.sub(r"\1\2.", name): value for name, value in tensors.items()}


def _split(
    candidate: _Candidate, required: Mapping[str, object]
) -> tuple[dict[str, Tensor], list[str]]:
    """The network's tensors under its names, and the names of the others."""
    tensors, prefix = _renamed(candidate.state.tensors, required), candidate.prefix
    foreign = [
        name
        for name in tensors
        if not name.startswith(prefix)
        or (name not in required and not prefix and _NO_LAYER.fullmatch(name.split(".")[0]))
    ]
    left = set(foreign)
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n not in left}, foreign


def head_classes(module: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """The class count of a state dict whose only misfit is the first axis of the head.

    Heads of detectors have rows for each class and corner, or each class and anchor.
    """
    counts, shares = set(), set()
    for name, value in module.state_dict().items():
        if name in state and state[name].shape != value.shape:
            if not state[name].shape or state[name].shape[1:] != value.shape[1:]:
                return None
            counts.add(len(state[name]))
            shares.add(Fraction(len(state[name]), len(value)))
    known = _detector_classes(module)
    if known and len(shares) == 1:
        classes = shares.pop() * known
        return int(classes) if classes.denominator == 1 else None
    return counts.pop() if len(counts) == 1 else None


def _detector_classes(module: Any) -> int | None:
    """The number of classes of one of torchvision's detectors; None for any other network."""
    paths = ("roi_heads.box_predictor.cls_score", "head.classification_head")
    for owner in (reduce(lambda x, k: getattr(x, k, None), p.split("."), module) for p in paths):
        for name in ("out_features", "num_classes", "num_columns"):
            if isinstance(count := getattr(owner, name, None), int):
                return count
    return None


def matches(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has a network's names and shapes, apart from the number of classes."""
    required = module.state_dict()
    names = {name for name in required if _last(name) not in _NO_WEIGHT}
    if not names <= state.keys() or not state.keys() <= required.keys():
        return False
    same = all(state[name].shape == required[name].shape for name in state)
    return same or head_classes(module, state) is not None


def _misfits(module: nn.Module, state: Mapping[str, Tensor]) -> str:
    required = {name: v for name, v in module.state_dict().items() if isinstance(v, Tensor)}
    missing = [n for n in required if n not in state and _last(n) not in _NO_WEIGHT]
    unexpected = [name for name in state if name not in required]
    shapes = [
        f"{name} (file {tuple(state[name].shape)}, model {tuple(value.shape)})"
        for name, value in required.items()
        if name in state and state[name].shape != value.shape
    ]
    parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    return "; ".join(f"{what}: {first_few(names)}" for what, names in parts if names) + remedy(
        unexpected
    )


def _check_types(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that the network's cannot be set to without another meaning or a loss."""
    required = module.state_dict()
    weights = dict(module.named_parameters(remove_duplicate=False))
    for name, value in state.items():
        target = required.get(name)
        odd = value.is_quantized or value.is_nested or value.is_meta or value.layout is not strided
        odd = odd or value.dtype is getattr(torch, "float4_e2m1fn_x2", None)  # two in a byte
        if odd or (name in required and not _is_like(value, target, name in weights)):
            kind = "without values" if value.is_meta else str(value.dtype).removeprefix("torch.")
            layout = "" if value.layout is strided else f", {value.layout}".replace("torch.", "")
            raise CnnvizError(
                f"'{path}' holds {name} as {kind}{layout}, which no network here takes: save the "
                "weights of the network before it was quantised, pruned or converted"
            )


def _is_like(value: Tensor, target: object, is_weight: bool) -> bool:
    """Whether a tensor can be copied into the network's, by number format."""
    if not isinstance(target, Tensor):
        return False
    if value.is_complex() or target.is_complex():
        return value.is_complex() and target.is_complex()
    if target.is_floating_point():
        return value.is_floating_point() or (value.dtype is torch.bool and not is_weight)
    if value.shape != target.shape:
        return not value.is_floating_point()
    # Whole numbers and masks: also from another format, if none of them changes.
    return bool(torch.equal(value.to(target.dtype).to(value.dtype), value))


def fit(
    module: nn.Module, state: Mapping[str, Tensor], path: Path, name: str, features: bool = False
) -> str:
    """Copy a state dict into a network; raise if names, shapes or types differ, or for NaN.

    With `features`, a classifier that is not in the file is removed; returns a sentence about that,
    or nothing.
    """
    state = _with_shared(module, state)
    counters = {key: v for key, v in state.items() if _last(key) == COUNTER}
    state = {key: v for key, v in state.items() if key not in counters}
    _check_types(module, state, path)
    check_finite(state, module, path)
    entries: OrderedDict[str, Tensor] = OrderedDict(state)
    # Layers that changed their layout over time look up the version here.
    entries._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    try:
        # torch decides on names: layers know what they were called in earlier versions.
        left = module.load_state_dict(entries, strict=False)
        missing = [key for key in left.missing_keys if _last(key) not in _NO_WEIGHT]
        fits = not missing and not left.unexpected_keys
    except RuntimeError:  # a shape differs
        missing, fits = [], False
    if fits:
        return ""
    misfits = _misfits(module, state)
    head = untrained_head(module, missing) if missing and not left.unexpected_keys else ()
    if head and features:
        remove_head(module, head)
        return f"'{path}' holds no classifier for {name} ({misfits})"
    hint = f" (it holds no classifier; {FEATURES_ONLY})" if head else ""
    raise CnnvizError(f"'{path}' does not fit the model {name}; {misfits}{hint}")


def _with_shared(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under all names that the network has for them: files may hold one of several."""
    shared: dict[int, list[str]] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        shared.setdefault(id(value), []).append(name)
    known = {
        name: state[first]
        for names in shared.values()
        if (first := next((name for name in names if name in state), None)) is not None
        for name in names
    }
    return {**known, **state}


def untrained_head(module: nn.Module, missing: Sequence[str]) -> tuple[str, ...]:
    """The last layers of a network, if the missing tensors are all of theirs and no others."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in missing)
    layers = {n: m for n, m in module.named_modules() if [*m.parameters(recurse=False)]}
    last = list(layers)[-len(owners) :]
    tensors = {f"{n}.{k}" for n in last for k in layers[n].state_dict() if k != COUNTER}
    kinds = all(isinstance(layers[name], _HEAD_LAYERS) for name in last)
    fits = len(owners) <= _LONGEST_HEAD and set(last) == set(owners) and tensors == set(missing)
    return tuple(last) if fits and kinds else ()


def remove_head(module: nn.Module, layers: Sequence[str]) -> None:
    """Replace layers by identities, so that the network returns what they would have read."""
    for name in layers:
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Identity())
