"""Shapley values: the score of an image, shared fairly among its parts.

A part's value is what it adds to the score as it joins the parts before it, averaged over all
orders (Shapley 1953). Of few parts all subsets are scored, and the values are exact. Of more,
random orders are drawn, each with its reverse, whose errors partly cancel (antithetic sampling,
Mitchell et al. 2022, "Sampling Permutations for Shapley Value Estimation"); the standard error is
that of the pairs' means. Either way the values sum to the score of all parts minus that of none.
Shapes: N subsets, P parts, M permutations.
"""

from collections.abc import Callable
from math import comb

import torch
from torch import Tensor

from cnnviz.reasons.results import Part, Shapley
from cnnviz.reasons.segments import Parts

EXACT = 12
"""Parts of which all subsets are scored, at most: 4,096."""
Game = Callable[[Tensor], Tensor]
"""Takes which parts are kept, (N, P) bool, to the scores (N,) float64."""


def exact_values(game: Game, parts: int) -> tuple[Tensor, Tensor]:
    """Returns the values (P,), and the scores (2^P,) of all subsets: bit p of a row is part p."""
    numbers = torch.arange(2**parts)
    bits_NP = (numbers[:, None] >> torch.arange(parts)) & 1 == 1
    scores_N, sizes_N = game(bits_NP), bits_NP.sum(1)
    weights = [1 / (parts * comb(parts - 1, size)) for size in range(parts)]
    weight_N = torch.tensor([*weights, 0.0], dtype=torch.float64)[sizes_N]
    values = []
    for part in range(parts):
        without = numbers[~bits_NP[:, part]]
        gains = scores_N[without + 2**part] - scores_N[without]
        values.append((weight_N[without] * gains).sum())
    return torch.stack(values), scores_N


def sampled_values(
    game: Game, parts: int, permutations: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the values (P,), their standard errors (P,), and the scores of none and all (2,)."""
    generator = torch.Generator().manual_seed(seed)
    pairs = permutations // 2
    orders = [torch.randperm(parts, generator=generator) for _ in range(pairs)]
    ends_2 = game(torch.tensor([[False] * parts, [True] * parts]))
    means = []
    for order_P in orders:
        gains = []
        for each_P in (order_P, order_P.flip(0)):
            joined_NP = each_P.argsort() < torch.arange(1, parts)[:, None]
            scores = torch.cat([ends_2[:1], game(joined_NP), ends_2[1:]])
            gains.append(scores.diff()[each_P.argsort()])
        means.append((gains[0] + gains[1]) / 2)
    means_MP = torch.stack(means)
    return means_MP.mean(0), means_MP.std(0) / pairs**0.5, ends_2


def shapley_of(game: Game, parts: Parts, permutations: int, seed: int) -> Shapley:
    """The Shapley values of an image's parts, exact where there are few."""
    count, errors_P = len(parts.names), None
    if count <= EXACT:
        values_P, scores_N = exact_values(game, count)
        none, every, passes, permutations = scores_N[0], scores_N[-1], len(scores_N), 0
    else:
        permutations -= permutations % 2
        values_P, errors_P, (none, every) = sampled_values(game, count, permutations, seed)
        passes = permutations * (count - 1) + 2
    shares_P = parts.labels_HW.flatten().bincount() / parts.labels_HW.numel()
    return Shapley(
        segments=parts.source,
        parts=tuple(
            Part(
                label=label,
                share=float(shares_P[place]),
                value=float(values_P[place]),
                error=None if errors_P is None else float(errors_P[place]),
            )
            for place, label in enumerate(parts.names)
        ),
        all=float(every),
        none=float(none),
        permutations=permutations,
        passes=passes,
        labels_HW=parts.labels_HW,
    )
