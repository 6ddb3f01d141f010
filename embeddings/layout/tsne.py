"""From features to a map: affinities of exact neighbours, then t-SNE.

Features are first brought down to their principal components, the neighbours are those in that
space, and the map starts from the first two components. openTSNE computes the affinities and, by
its approximations (Barnes-Hut below 10,000 points, interpolation above), the map; `tsne_torch`
computes it exactly where a GPU makes that quicker.
Settings: Kobak and Berens 2019, "The art of using t-SNE for single-cell transcriptomics".

Shapes: N points, k neighbours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE import TSNE, initialization
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.nearest_neighbors import PrecomputedNeighbors

from cnnviz.core.errors import UsageError
from cnnviz.embeddings.choices import Backend
from cnnviz.embeddings.layout.neighbors import Neighbors
from cnnviz.embeddings.layout.tsne_torch import TOLD, WATCHED, PairForces, Phase, optimise

EXAGGERATION = 12.0
EARLY_ITERATIONS = 250
ITERATIONS = 500
NEIGHBOURS_PER_PERPLEXITY = 3
INITIAL_DEVIATION = 1e-4
# Up to here `auto` gives t-SNE to torch on CUDA: the exact gradient grows with n².
LARGEST_EXACT = 50_000


@dataclass(frozen=True, eq=False)
class Map:
    """Points laid out in the plane.

    Attributes:
        places_N2: (N, 2) float32, centred.
        perplexity: about how many neighbours each point was held by; None for PCA.
        backend: who computed it; None for PCA.
        divergence: Kullback-Leibler divergence in nats, exact; None for PCA.
    """

    places_N2: NDArray[np.float32]
    perplexity: float | None = None
    backend: Backend | None = None
    divergence: float | None = None


def neighbours_needed(perplexity: float) -> int:
    """How many neighbours of each point a perplexity takes into account."""
    return int(NEIGHBOURS_PER_PERPLEXITY * perplexity)


def check_perplexity(perplexity: float, count: int) -> None:
    """Refuses a perplexity that so many points cannot have.

    Raises:
        UsageError: below 1, or each point would need more neighbours than there are.
    """
    largest = (count - 1) // NEIGHBOURS_PER_PERPLEXITY
    if largest < 1:
        raise UsageError(f"{count} images are too few for t-SNE, which needs 4; use --method pca")
    if not perplexity >= 1:  # NaN too
        raise UsageError(f"--perplexity {perplexity:g} is too small; it takes 1 to {largest}")
    if perplexity > (count - 1) / NEIGHBOURS_PER_PERPLEXITY:
        raise UsageError(
            f"--perplexity {perplexity:g} needs over {NEIGHBOURS_PER_PERPLEXITY * perplexity:g} "
            f"images, and there are {count}; the largest that works is {largest}"
        )


def choose_backend(backend: Backend, count: int, device: torch.device) -> Backend:
    """`auto` to the quicker one; the others to themselves."""
    if backend != Backend.AUTO:
        return backend
    exact = device.type == "cuda" and count <= LARGEST_EXACT
    return Backend.TORCH if exact else Backend.OPENTSNE


def starting_places(components_Nc: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """The first two components, scaled to a deviation of 1e-4, with a little seeded jitter.

    The jitter parts points that fall on one another.
    """
    places_N2 = np.zeros((len(components_Nc), 2))
    columns = min(2, components_Nc.shape[1])
    places_N2[:, :columns] = components_Nc[:, :columns]
    initialization.rescale(places_N2, inplace=True, target_std=INITIAL_DEVIATION)
    initialization.jitter(places_N2, inplace=True, random_state=seed)
    return places_N2


def phases(count: int) -> tuple[Phase, Phase]:
    """Early exaggeration, then the rest, at a learning rate of n/12."""
    rate = count / EXAGGERATION
    return Phase(EARLY_ITERATIONS, EXAGGERATION, rate), Phase(ITERATIONS, 1.0, rate)


def _affinities(neighbors: Neighbors, perplexity: float, threads: int) -> PerplexityBasedNN:
    k = neighbours_needed(perplexity)
    index = PrecomputedNeighbors(
        neighbors.indices[:, :k], neighbors.distances[:, :k].astype(np.float64)
    )
    return PerplexityBasedNN(knn_index=index, perplexity=perplexity, n_jobs=threads)


def _by_opentsne(
    affinities: PerplexityBasedNN,
    places_N2: NDArray[np.float64],
    seed: int,
    progress: Callable[[int], None],
    watch: Callable[[int, float], None],
) -> NDArray[np.float32]:
    done = 0

    def advance(_iteration: int, divergence: float, _embedding: object) -> None:
        nonlocal done
        done += WATCHED
        progress(WATCHED)
        if done % TOLD == 0:
            watch(done, float(divergence))

    early, late = phases(len(places_N2))
    solver = TSNE(
        early_exaggeration=early.exaggeration,
        early_exaggeration_iter=early.iterations,
        n_iter=late.iterations,
        learning_rate=early.learning_rate,
        initial_momentum=early.momentum,
        final_momentum=late.momentum,
        callbacks=advance,
        callbacks_every_iters=WATCHED,
        n_jobs=affinities.n_jobs,
        random_state=seed,
    )
    fitted = solver.fit(affinities=affinities, initialization=places_N2)
    return np.array(fitted, np.float32)


def tsne(
    neighbors: Neighbors,
    components_Nc: NDArray[np.float32],
    perplexity: float,
    *,
    backend: Backend = Backend.AUTO,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Callable[[int], None] = lambda _steps: None,
    watch: Callable[[int, float], None] = lambda _iteration, _divergence: None,
) -> Map:
    """Lays points out so that neighbours stay neighbours.

    Args:
        neighbors: at least `neighbours_needed(perplexity)` of each point.
        components_Nc: principal components; the map starts from the first two.
        perplexity: see `check_perplexity`.
        backend: who computes it.
        device: where torch computes.
        seed: of the jitter of the start.
        progress: called with the number of iterations just done, of `total_iterations`.
        watch: called every 250 iterations with their number and the divergence so far.

    Raises:
        UsageError: the perplexity does not fit the number of points.
    """
    count = len(components_Nc)
    check_perplexity(perplexity, count)
    chosen = choose_backend(backend, count, torch.device(device))
    affinities = _affinities(neighbors, perplexity, torch.get_num_threads())
    start_N2 = starting_places(components_Nc, seed)
    forces = PairForces(affinities.P, device)
    if chosen == Backend.TORCH:
        places_N2 = optimise(forces, start_N2, phases(count), progress=progress, watch=watch)
    else:
        places_N2 = _by_opentsne(affinities, start_N2, seed, progress, watch)
    divergence = forces.divergence(torch.from_numpy(places_N2).to(forces.device))
    return Map(places_N2, float(perplexity), chosen, divergence)


def total_iterations() -> int:
    """How many iterations one map takes."""
    return EARLY_ITERATIONS + ITERATIONS
