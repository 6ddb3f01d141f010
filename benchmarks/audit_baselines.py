"""Two other ways to find a class that hangs on a shortcut, to be held beside the audit.

`by_statistics`: does one number of an image (brightness, contrast, a colour, sharpness, …) tell the
class from the others, as data checkers ask (cleanvision, cleanlab's spurious correlations)? They
never see the network. `by_clusters`: do the gradient maps of a class fall apart into clusters, by
the eigengap of their spectral clustering (SpRAy, Lapuschkin et al. 2019)?
Shapes: N images, H W rows and columns, S statistics, V values of a map.
"""

from pathlib import Path

import numpy as np
import planted
import torch
import train_bundled as recipe
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from scipy.linalg import eigh
from scipy.ndimage import laplace
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import kneighbors_graph
from torch.nn.functional import adaptive_avg_pool2d

NEIGHBOURS, EIGENVALUES, CELLS, FEWEST = 10, 10, 8, 20


def read(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, H, W, 3) and labels of a folder of test images."""
    found = [(p, k) for k, c in enumerate(recipe.CLASSES) for p in sorted((folder / c).iterdir())]
    pixels = np.stack([np.asarray(Image.open(path)) for path, _ in found])
    return pixels, np.array([label for _, label in found])


def statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Numbers that data checkers look at."""
    values = pixels / 255
    grey = values @ np.array([0.299, 0.587, 0.114])
    spread = values.max(3) - values.min(3)
    columns = [grey.mean((1, 2)), grey.std((1, 2)), spread.mean((1, 2))]
    columns += [values[..., c].mean((1, 2)) for c in range(3)]
    columns.append(np.array([laplace(image).var() for image in grey]))
    columns.append(np.array([np.unique(image, axis=0).shape[0] for image in
                             pixels.reshape(len(pixels), -1, 3)]))  # fmt: skip
    return np.stack(columns, 1)


def by_statistics(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, float]:
    """Of each class how well its best statistic tells it from the others: |2 AUC - 1|."""
    values = statistics(pixels)
    return {
        name: max(abs(2 * roc_auc_score(labels == k, column) - 1) for column in values.T)
        for k, name in enumerate(recipe.CLASSES)
    }


def by_clusters(folder: Path, name: str, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """Of each predicted class the largest gap between neighbouring eigenvalues after the first."""
    model = planted.network()
    model.load_state_dict(load_file(folder / f"{name}.safetensors"))
    model.eval()
    shown = recipe.normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)).requires_grad_()
    logits = model(shown)
    best = logits.max(1)
    (gradient,) = torch.autograd.grad(best.values.sum(), shown)
    maps = (gradient * shown).abs().sum(1).detach()
    pooled = adaptive_avg_pool2d(maps[:, None], CELLS).flatten(1).numpy()
    pooled = pooled / np.maximum(pooled.sum(1, keepdims=True), 1e-12)
    found = dict.fromkeys(recipe.CLASSES, 0.0)
    for k, label in enumerate(recipe.CLASSES):
        members = pooled[best.indices.numpy() == k]
        if len(members) < FEWEST:
            continue
        graph = kneighbors_graph(members, NEIGHBOURS).toarray()
        graph = np.maximum(graph, graph.T)
        root = 1 / np.sqrt(graph.sum(1))
        laplacian = np.eye(len(graph)) - root[:, None] * graph * root
        values = eigh(laplacian, eigvals_only=True, subset_by_index=[0, EIGENVALUES])
        found[label] = float(np.diff(values)[1:].max())
    return found
