"""What stands behind the subjects: skies, sea, meadows, roads, leaves out of focus."""

import numpy as np
from painting import Array, Canvas, blur, ellipse, mix, rgb


def sky(canvas: Canvas, top: str, bottom: str, horizon: float) -> None:
    """A clear sky, paler towards the horizon (a row of the picture)."""
    canvas.lay(mix(rgb(top), rgb(bottom), np.clip(canvas.y / horizon, 0, 1)))


def cloud(canvas: Canvas, x: float, y: float, size: float, opacity: float = 1.0) -> None:
    """A heap of cloud whose flat base lies on row `y`, about five times `size` wide."""
    puffs = np.zeros(canvas.shape)
    for _ in range(16):
        across = canvas.uniform(-2.2, 2.2)
        radius = size * canvas.uniform(0.45, 0.95) * (1.1 - abs(across) / 3)
        puff = ellipse(x + across * size, y - radius * canvas.uniform(0.2, 0.9), radius, radius)
        puffs = np.maximum(puffs, canvas.mask(puff))
    body = blur(puffs, size / 5) * np.clip((y - canvas.y) / (size * 0.35) + 0.6, 0, 1)
    body = np.clip(body * (0.65 + 0.7 * canvas.noise(size, stretch=1.4)), 0, 1)
    shade = np.clip((y - canvas.y) / (size * 1.6), 0, 1)
    canvas.lay(mix(rgb("c3cedb"), rgb("ffffff"), shade), body * opacity)


def hills(canvas: Canvas, base: float, height: float, colour: str, waves: float = 1.5) -> None:
    """A soft ridge that stands on row `base` and is up to `height` high."""
    turns = canvas.x / canvas.width * 2 * np.pi * waves
    first, second = canvas.uniform(0, 6), canvas.uniform(0, 6)
    ridge = 0.55 + 0.3 * np.sin(turns + first) + 0.15 * np.sin(2.7 * turns + second)
    canvas.lay(rgb(colour), blur((canvas.y > base - height * ridge).astype(float), 0.7))


def trees(canvas: Canvas, base: float, height: float, dark: str, light: str) -> None:
    """A row of round tree tops in front of what has been painted so far, down to row `base`."""
    leaves = 0.75 + 0.5 * canvas.noise(height / 5)
    for share in (1.0, 0.7):
        x = -height
        while x < canvas.width + height:
            radius = share * height * canvas.uniform(0.3, 0.5)
            middle = base - share * height * canvas.uniform(0.45, 0.62)
            tone = mix(rgb(dark), rgb(light), canvas.uniform(0.1, 0.9))
            crown = ellipse(x, middle, radius, radius * 1.1)
            canvas.fill(crown, tone, volume=radius / 2, depth=0.5, texture=leaves, subject=False)
            x += radius * canvas.uniform(0.7, 1.1)
    canvas.lay(rgb(dark), blur((canvas.y > base - height * 0.3).astype(float), height / 12))


def ground(canvas: Canvas, horizon: float, far: str, near: str, *, grain: float = 0.25) -> None:
    """Flat ground below the horizon, its blotches flattened by distance."""
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 0, 1)
    blotches = canvas.noise(9, stretch=5) * (1 - depth) + canvas.noise(22, stretch=3) * depth
    field = mix(rgb(far), rgb(near), depth) * (1 + grain * 2 * (blotches - 0.5))[..., None]
    canvas.lay(np.clip(field, 0, 1), blur((canvas.y > horizon).astype(float), 0.6))


def grass(canvas: Canvas, low: float, high: float, length: float, dark: str, light: str) -> None:
    """Blades of grass rooted between two rows, longer towards the viewer."""
    count = int(canvas.width * (high - low) / 26)
    for root in np.sort([canvas.uniform(low, high) for _ in range(count)]):
        x = canvas.uniform(-5, canvas.width + 5)
        near = 0.45 + 0.55 * (root - low) / (high - low)
        tip = (x + canvas.uniform(-0.5, 0.5) * length * near, root - length * near)
        tone = mix(rgb(dark), rgb(light), canvas.uniform(0, 1))
        blade(canvas, (x, float(root)), tip, 1.5 * near, tone)


def blade(
    canvas: Canvas,
    root: tuple[float, float],
    tip: tuple[float, float],
    width: float,
    tone: Array,
) -> None:
    """One blade of grass, quickly: only the rows and columns around it are touched."""
    window = canvas.window((root, tip), width)
    x, y = canvas.x[window], canvas.y[window]
    share = np.clip((root[1] - y) / max(root[1] - tip[1], 1e-6), 0, 1)
    middle = root[0] + (tip[0] - root[0]) * share**1.6
    inside = np.abs(x - middle) < width * (1 - share) / 1.6
    canvas.pixels[window][inside] = tone


def bokeh(canvas: Canvas, tones: tuple[str, str, str], size: float) -> None:
    """Foliage far out of focus: blotches between three tones, darkest first."""
    dark, middle, light = (rgb(tone) for tone in tones)
    share = blur(canvas.noise(size), 3)
    share = np.clip((share - 0.5) * 1.5 + 0.5, 0, 1)
    field = np.where(
        share[..., None] < 0.5, mix(dark, middle, share * 2), mix(middle, light, share * 2 - 1)
    )
    canvas.lay(field)


def sea(canvas: Canvas, horizon: float) -> None:
    """A grey-green sea with waves that grow towards the viewer."""
    depth = np.clip((canvas.y - horizon) / (canvas.height - horizon), 0, 1)
    ripple = canvas.noise(4, stretch=7) * (1 - depth) + canvas.noise(13, stretch=5) * depth
    field = mix(rgb("8a9a86"), rgb("5f7460"), depth**0.7) + (ripple - 0.5)[..., None] * 0.12
    canvas.lay(np.clip(field, 0, 1), (canvas.y > horizon).astype(float))
