"""Weights that a file holds as several tensors, multiplied into the one that a plain network takes.

Pruning keeps a weight and a mask, weight norm a direction and a length, spectral norm a weight and
its singular vectors, PEFT's LoRA a weight and a product to add, DoRA a length of the sum as well.
The first three are products that torch defines (`torch.nn.utils`), so they are computed here.
LoRA's scale is not in the file: its weight is taken only if the product is zero.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, strided

from cnnviz.core.models.files.kinds import first_few

_BASE, _LORA = "base_layer.", ("lora_A.", "lora_B.")
_TRACES = (
    ".parametrizations.", "weight_orig", "weight_g", "weight_v", "base_layer.", "lora_", "dora_",
)  # fmt: skip


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    return weight * mask


def _weight_normed(length: Tensor, direction: Tensor) -> Tensor:
    """Salimans and Kingma 2016; the length has size 1 along every axis that the norm is over."""
    over = [axis for axis in range(direction.ndim) if length.ndim == 0 or length.shape[axis] == 1]
    norm: Tensor = torch.linalg.vector_norm(direction, dim=over, keepdim=True)
    return direction * (length / norm)


def _spectral_normed(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Miyato et al. 2018; rows are the outputs: axis 0, or 1 of a transposed convolution."""
    matrices = [weight.movedim(axis, 0).flatten(1) for axis in range(min(2, weight.ndim))]
    shape = (len(left), len(right))
    # If both fit, the vectors are singular vectors of the right one, with the larger value.
    values = [torch.dot(left, matrix @ right) for matrix in matrices if matrix.shape == shape]
    return weight / max(values, key=lambda value: abs(float(value)))


_PRODUCTS: tuple[tuple[str, tuple[str, ...], Callable[..., Tensor]], ...] = (
    ("pruning", ("{0}{1}_orig", "{0}{1}_mask"), _masked),
    ("weight norm", ("{0}{1}_g", "{0}{1}_v"), _weight_normed),
    (
        "weight norm",
        ("{0}parametrizations.{1}.original0", "{0}parametrizations.{1}.original1"),
        _weight_normed,
    ),
    ("spectral norm", ("{0}{1}_orig", "{0}{1}_u", "{0}{1}_v"), _spectral_normed),
    (
        "spectral norm",
        tuple(f"{{0}}parametrizations.{{1}}.{part}" for part in ("original", "0._u", "0._v")),
        _spectral_normed,
    ),
)
"""What a weight was written by, the names of its parts by owner and name, and the product."""


def plain_weights(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], list[str]]:
    """Multiply out the weights that a network of these `shapes` takes whole; with a note each kind.

    What is not one of the known products stays as it is.
    """
    result, notes = _without_lora(tensors, shapes)
    made: dict[str, list[str]] = {}
    for name in shapes:
        if name in result:
            continue
        for kind, parts, product in _PRODUCTS:
            owner, _, leaf = name.rpartition(".")
            names = [part.format(f"{owner}." if owner else "", leaf) for part in parts]
            value = _product(product, [result.get(part) for part in names], shapes[name])
            if value is not None and not any(part in shapes for part in names):
                for part in names:
                    del result[part]
                result[name] = value
                made.setdefault(kind, []).append(f"{name} from {' and '.join(names)}")
                break
    notes += [f"multiplied out ({kind}): {first_few(which)}" for kind, which in made.items()]
    return result, notes


def _product(
    product: Callable[..., Tensor], parts: list[Tensor | None], shape: tuple[int, ...]
) -> Tensor | None:
    """The weight of that shape; None if a part is missing, odd, or does not fit."""
    given = [part for part in parts if part is not None and _is_plain(part)]
    if len(given) < len(parts) or not any(part.shape == shape for part in given):
        return None
    try:
        value = product(*given)
    except (RuntimeError, ValueError, IndexError):  # shapes, devices, formats without arithmetic
        return None
    return value if value.shape == shape else None


def _is_plain(value: Tensor) -> bool:
    plain = value.layout is strided and not (value.is_meta or value.is_nested)
    return plain and (value.is_floating_point() or value.dtype is torch.bool)


def _without_lora(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights below PEFT's layers if their adapters add nothing; else all tensors."""
    added = [name for name in tensors if any(part in name for part in _LORA)]
    if not added or any(part in name for name in shapes for part in (_BASE, *_LORA)):
        return dict(tensors), []
    ends = [name for name in added if _LORA[1] in name]
    zero = all(_is_plain(tensors[name]) and not bool(tensors[name].any()) for name in ends)
    if not ends or not zero:
        return dict(tensors), []
    kept = {k.replace(_BASE, ""): v for k, v in tensors.items() if k not in added}
    return kept, [f"skipped LoRA adapters that add nothing (B is 0): {first_few(added)}"]


def remedy(names: list[str]) -> str:
    """What to do about weights written as several tensors among these names; empty if none are."""
    if not any(trace in name for name in names for trace in _TRACES):
        return ""
    return (
        "; these weights are written as several tensors: before saving, call merge_and_unload() "
        "(LoRA, DoRA), torch.nn.utils.prune.remove or parametrize.remove_parametrizations, or name "
        "a factory that applies the same to the network"
    )
