"""t-SNE by openTSNE: from exact neighbors of the features' principal components to a map.

The map starts from the first two components. openTSNE computes the affinities and, by its
approximations (Barnes-Hut below 10,000 points, interpolation above), the map.
Settings: Kobak and Berens 2019, "The art of using t-SNE for single-cell transcriptomics"; schedule:
Belkina et al. 2019, "Automated optimized parameters for t-SNE".

Shapes: N points, k neighbors, c components, E pairs of neighbors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE import TSNE, initialization
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import PrecomputedNeighbors

from cnnviz.core.errors import UsageError
from cnnviz.embeddings.neighbors import DistanceTiles, Neighbors, row_tiles

EXAGGERATION = 12.0
EARLY_ITERATIONS, ITERATIONS = 250, 500
TOTAL_ITERATIONS = EARLY_ITERATIONS + ITERATIONS
NEIGHBORS_PER_PERPLEXITY = 3
INITIAL_DEVIATION = 1e-4
PROGRESS_EVERY, WATCH_EVERY = 50, 250
"""Iterations between two calls."""


def neighbors_needed(perplexity: float) -> int:
    """How many neighbors of each point a perplexity takes into account."""
    return int(NEIGHBORS_PER_PERPLEXITY * perplexity)


def check_perplexity(perplexity: float, count: int) -> None:
    """Raises a UsageError for a perplexity that does not fit the number of points."""
    largest = (count - 1) // NEIGHBORS_PER_PERPLEXITY
    if largest < 1:
        raise UsageError(f"{count} images are too few for t-SNE, which needs 4; use --method pca")
    if not perplexity >= 1:  # NaN too
        raise UsageError(f"--perplexity {perplexity:g} is too small; it takes 1 to {largest}")
    if perplexity > (count - 1) / NEIGHBORS_PER_PERPLEXITY:
        raise UsageError(
            f"--perplexity {perplexity:g} needs over {NEIGHBORS_PER_PERPLEXITY * perplexity:g} "
            f"images, and there are {count}; the largest that works is {largest}"
        )


def starting_places(components_Nc: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """The first two components, scaled to a deviation of 1e-4, with a little seeded jitter.

    The jitter separates points that coincide.
    """
    places_N2 = np.zeros((len(components_Nc), 2))
    columns = min(2, components_Nc.shape[1])
    places_N2[:, :columns] = components_Nc[:, :columns]
    initialization.rescale(places_N2, inplace=True, target_std=INITIAL_DEVIATION)
    initialization.jitter(places_N2, inplace=True, random_state=seed)
    return places_N2


def affinities(neighbors: Neighbors, perplexity: float) -> PerplexityBasedNN:
    """How strongly each point is tied to its neighbors."""
    k = neighbors_needed(perplexity)
    index = PrecomputedNeighbors(
        neighbors.indices[:, :k], neighbors.distances[:, :k].astype(np.float64)
    )
    threads = torch.get_num_threads()
    return PerplexityBasedNN(knn_index=index, perplexity=perplexity, n_jobs=threads)


def divergence(pairs: Any, places_N2: NDArray[np.float32], device: torch.device | str) -> float:
    """The exact Kullback-Leibler divergence of a map from affinities (a CSR matrix), in nats."""
    tiles = DistanceTiles(places_N2, device)
    total = sum(
        float((1 + tile_RC).reciprocal_().sum())
        for rows in row_tiles(len(places_N2))
        for _, tile_RC in tiles.of(rows)
    )
    known = pairs.tocoo()
    present = known.data > 0
    p_E, first, second = known.data[present], known.row[present], known.col[present]
    squares_E = np.square(places_N2[first].astype(np.float64) - places_N2[second]).sum(1)
    return float((p_E * (np.log(p_E) + np.log1p(squares_E))).sum() + p_E.sum() * np.log(total))


def tsne(
    neighbors: Neighbors,
    components_Nc: NDArray[np.float32],
    perplexity: float,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Callable[[int], None] = lambda _steps: None,
    watch: Callable[[int, float], None] = lambda _iteration, _divergence: None,
) -> tuple[NDArray[np.float32], float]:
    """Lays points out so that neighbors stay neighbors; returns the map and its divergence.

    `progress` is called with the number of iterations just done, of `TOTAL_ITERATIONS`, and `watch`
    every 250 iterations with their number and the divergence so far.
    """
    check_perplexity(perplexity, len(components_Nc))
    ties = affinities(neighbors, perplexity)
    done = 0

    def advance(_iteration: int, error: float, _embedding: object) -> None:
        nonlocal done
        done += PROGRESS_EVERY
        progress(PROGRESS_EVERY)
        if done % WATCH_EVERY == 0:
            watch(done, float(error))

    solver = TSNE(
        early_exaggeration=EXAGGERATION,
        early_exaggeration_iter=EARLY_ITERATIONS,
        n_iter=ITERATIONS,
        learning_rate=len(components_Nc) / EXAGGERATION,
        initial_momentum=0.8,
        final_momentum=0.8,
        callbacks=advance,
        callbacks_every_iters=PROGRESS_EVERY,
        n_jobs=ties.n_jobs,
        random_state=seed,
    )
    start_N2 = starting_places(components_Nc, seed)
    places_N2 = np.array(solver.fit(affinities=ties, initialization=start_N2), np.float32)
    return places_N2, divergence(ties.P, places_N2, device)
