"""Where a subject lies: its box, and outlines traced around its mask."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Mask = npt.NDArray[np.bool_]
Corner = tuple[int, int]

AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))
SPECK = 40


def box(mask: Mask) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the smallest box around the mask; x1 and y1 lie just outside."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def outlines(mask: Mask, tolerance: float = 1.0) -> list[list[Corner]]:
    """An outline (x, y corners) of each piece of the mask that is more than a speck, holes filled.

    Corners are left out as long as the outline stays within `tolerance` pixels (Ramer 1972;
    Douglas and Peucker 1973).
    """
    traced = []
    for piece in _pieces(mask):
        path = _walk(piece)
        far = int(np.argmax(np.abs(np.array(path) - path[0]).sum(axis=1)))
        there = _thinned(path[: far + 1], tolerance)
        back = _thinned([*path[far:], path[0]], tolerance)
        traced.append([*there[:-1], *back[:-1]])
    return traced


def _pieces(mask: Mask) -> Iterator[Mask]:
    left = Image.fromarray(mask.astype(np.uint8))
    while (rest := np.asarray(left)).any():
        row, column = np.argwhere(rest)[0]
        ImageDraw.floodfill(left, (int(column), int(row)), 2)
        piece = np.asarray(left) == 2
        left.paste(0, mask=Image.fromarray(piece))
        if piece.sum() > SPECK:
            yield piece


def _walk(piece: Mask) -> list[Corner]:
    """All corners of pixels along the piece's rim, clockwise, from its first pixel on."""
    padded = np.pad(piece, 1)
    row, column = np.argwhere(piece)[0]
    start = (int(column), int(row))
    path: list[Corner] = []
    (x, y), way = start, 0
    while not path or (x, y) != start:
        path.append((x, y))
        x, y = x + AHEAD[way][0], y + AHEAD[way][1]
        (fx, fy), (rx, ry) = AHEAD[way], AHEAD[(way + 1) % 4]
        if padded[y + 1 + (fy - ry - 1) // 2, x + 1 + (fx - rx - 1) // 2]:
            way = (way + 3) % 4
        elif not padded[y + 1 + (fy + ry - 1) // 2, x + 1 + (fx + rx - 1) // 2]:
            way = (way + 1) % 4
    return path


def _thinned(path: list[Corner], tolerance: float) -> list[Corner]:
    points = np.array(path, dtype=float)
    chord = points[-1] - points[0]
    offset = points - points[0]
    distance = np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0])
    distance /= max(float(np.hypot(*chord)), 1e-9)
    worst = int(np.argmax(distance))
    if distance[worst] <= tolerance:
        return [path[0], path[-1]]
    return _thinned(path[: worst + 1], tolerance)[:-1] + _thinned(path[worst:], tolerance)
