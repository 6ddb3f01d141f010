"""Which classes are asked about: the predicted one, the best few, or some by name or index."""

import re
from collections.abc import Sequence

from torch import Tensor

from cnnviz.core.errors import UsageError
from cnnviz.core.models.labels import class_index


def resolve_targets(
    targets: Sequence[str], base_logits_K: Tensor, labels: Sequence[str]
) -> tuple[int, ...]:
    """Class indices in the order asked for, each once.

    Args:
        targets: `predicted`, `topK` (the K most probable), class names or indices.
        base_logits_K: scores of the untouched image.
        labels: class names.

    Raises:
        UsageError: no such class, or K is not between 1 and the number of classes.
    """
    ranked = base_logits_K.argsort(descending=True, stable=True).tolist()
    found: list[int] = []
    for target in targets:
        top = re.fullmatch(r"top(\d+)", target)
        if target == "predicted":
            found.append(ranked[0])
        elif top:
            count = int(top[1])
            if not 1 <= count <= len(labels):
                raise UsageError(f"'{target}' asks for {count} of {len(labels)} classes")
            found += ranked[:count]
        else:
            found.append(class_index(target, labels))
    return tuple(dict.fromkeys(found))
