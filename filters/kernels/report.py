"""What `summary.json` says of a layer's kernels: plain data, no NaN."""

from typing import Any

import numpy as np

from cnnviz.filters.kernels.gabor import GABOR_LIKE, GaborFit
from cnnviz.filters.kernels.weights import DEAD_BELOW, DUPLICATE_ABOVE, GaborStats, KernelStats


def report(found: KernelStats) -> dict[str, Any]:
    """One entry of `results.layers`."""
    count, channels, height, width = found.kernels.shape
    chroma = found.chromaticity
    return {
        "layer": found.layer,
        "type": found.kind,
        "filters": count,
        "channels": channels,
        "kernel": [height, width],
        "groups": found.groups,
        "largest_weight": _digits(float(np.abs(found.kernels).max(initial=0))),
        "norms": [_digits(float(norm)) for norm in found.norms],
        "dead": list(found.dead),
        "dead_below": DEAD_BELOW,
        "duplicates": [
            {"filters": [pair.first, pair.second], "cosine": _digits(pair.cosine)}
            for pair in found.duplicates
        ],
        "duplicates_above": DUPLICATE_ABOVE,
        "chromaticity": None if chroma is None else [_digits(float(value)) for value in chroma],
        "gabor": None if found.gabor is None else _gabor(found.gabor),
    }


def _gabor(gabor: GaborStats) -> dict[str, Any]:
    return {
        "like_above": GABOR_LIKE,
        "share": _digits(gabor.share),
        "share_by_chance": _digits(gabor.shuffled_share),
        "fits": [None if fit is None else _fit(fit) for fit in gabor.fits],
    }


def _fit(fit: GaborFit) -> dict[str, Any]:
    return {
        "r2": _digits(fit.r2),
        "orientation": _digits(fit.orientation),
        "wavelength": _digits(fit.wavelength),
        "phase": _digits(fit.phase),
        "centre": [_digits(value) for value in fit.centre],
        "window": [_digits(value) for value in fit.window],
        "amplitudes": [_digits(value) for value in fit.amplitudes],
    }


def _digits(value: float) -> float:
    """Six significant digits: what a fit in float32 weights is good for."""
    return float(f"{value:.6g}")
