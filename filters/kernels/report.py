"""What `summary.json` says of a layer's kernels: plain data, no NaN."""

from typing import Any

import numpy as np

from cnnviz.core.output.numbers import fewer_digits
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
        "largest_weight": fewer_digits(float(np.abs(found.kernels).max(initial=0))),
        "norms": [fewer_digits(float(norm)) for norm in found.norms],
        "dead": list(found.dead),
        "dead_below": DEAD_BELOW,
        "duplicates": [
            {"filters": [pair.first, pair.second], "cosine": fewer_digits(pair.cosine)}
            for pair in found.duplicates
        ],
        "duplicates_above": DUPLICATE_ABOVE,
        "chromaticity": None
        if chroma is None
        else [fewer_digits(float(value)) for value in chroma],
        "gabor": None if found.gabor is None else _gabor(found.gabor),
    }


def _gabor(gabor: GaborStats) -> dict[str, Any]:
    return {
        "like_above": GABOR_LIKE,
        "share": fewer_digits(gabor.share),
        "share_by_chance": fewer_digits(gabor.shuffled_share),
        "fits": [None if fit is None else _fit(fit) for fit in gabor.fits],
    }


def _fit(fit: GaborFit) -> dict[str, Any]:
    return {
        "r2": fewer_digits(fit.r2),
        "orientation": fewer_digits(fit.orientation),
        "wavelength": fewer_digits(fit.wavelength),
        "phase": fewer_digits(fit.phase),
        "centre": [fewer_digits(value) for value in fit.centre],
        "window": [fewer_digits(value) for value in fit.window],
        "amplitudes": [fewer_digits(value) for value in fit.amplitudes],
    }
