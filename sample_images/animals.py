"""Four animals, each in its place: a robin, a stag, a frog, a horse."""

import numpy as np
from backdrops import bokeh, grass, ground, hills, sky, trees
from painting import Array, Canvas, Points, ellipse, limb, mix, moved, rgb, spline

BLACK, SPOT = rgb("15120f"), rgb("3a4f1c")

FAR_ANTLER = [
    limb([(258, 74), (268, 56), (284, 44), (290, 22)], [5, 4, 3.5, 1.5]),
    limb([(270, 54), (272, 40), (268, 30)], [3.5, 2.5, 1]),
    limb([(262, 64), (278, 60), (288, 62)], [3.5, 2.5, 1]),
    limb([(284, 42), (298, 36), (304, 26)], [3.5, 2.5, 1]),
]
NEAR_ANTLER = [
    limb([(252, 74), (244, 56), (250, 34), (242, 16)], [5.5, 4.5, 3.5, 1.5]),
    limb([(245, 58), (230, 50), (224, 40)], [3.5, 2.5, 1]),
    limb([(247, 64), (258, 52), (260, 42)], [3.5, 2.5, 1]),
    limb([(249, 38), (262, 30), (266, 18)], [3.5, 2.5, 1]),
    limb([(249, 34), (236, 26), (226, 24)], [3.5, 2.5, 1]),
]


def hair(canvas: Canvas, strength: float = 0.35) -> Array:
    """A map around 1 that roughens a coat."""
    return 1 + strength * (canvas.noise(5, stretch=2) - 0.5)


def eye(canvas: Canvas, x: float, y: float, radius: float) -> None:
    """A dark eye with a gleam."""
    canvas.fill(ellipse(x, y, radius, radius), BLACK)
    canvas.fill(
        ellipse(x - radius * 0.3, y - radius * 0.35, radius * 0.3, radius * 0.3), rgb("ffffff")
    )


def meadow(canvas: Canvas, dark: str, light: str, woods: tuple[str, str]) -> None:
    """A meadow before a wood, all out of focus."""
    sky(canvas, "8fbfe8", "eaf2f3", 130)
    hills(canvas, 128, 60, "a9c1c4", 1.1)
    trees(canvas, 150, 62, *woods)
    ground(canvas, 146, light, dark)
    canvas.soften(2.5)


def horse(canvas: Canvas) -> None:
    """A brown horse with a black mane on a meadow."""
    meadow(canvas, "5c8a36", "8db551", ("3f6336", "779a55"))
    grass(canvas, 226, 300, 16, "4c7a2c", "8db551")
    canvas.scale(0.6, 190, 250)
    canvas.shadow(ellipse(205, 248, 96, 9), 0.6, 5)
    coat, coarse = rgb("9a5526"), hair(canvas)
    far = [
        limb([(168, 160), (172, 196), (166, 218), (170, 243)], [24, 14, 10, 9]),
        limb([(240, 156), (244, 184), (252, 206), (246, 230), (248, 243)], [34, 20, 11, 9, 9]),
    ]
    canvas.fill(far[0], coat * 0.6, also=far[1:], volume=4, texture=coarse)
    tail = limb([(268, 124), (284, 138), (288, 172), (282, 212)], [8, 15, 18, 3])
    canvas.fill(tail, rgb("2a1a12"), volume=5, texture=coarse)
    body = spline(
        [(122, 66), (140, 82), (158, 103), (178, 113), (205, 118), (232, 114), (256, 116),
         (270, 130), (273, 152), (262, 172), (244, 178), (218, 185), (185, 187), (160, 183),
         (142, 172), (133, 150), (126, 128), (116, 108), (106, 96)]
    )  # fmt: skip
    head = spline(
        [(120, 64), (127, 78), (122, 96), (108, 105), (96, 118), (86, 122), (78, 116), (80, 106),
         (94, 84), (108, 67)]
    )  # fmt: skip
    legs = [
        limb([(154, 160), (152, 194), (154, 214), (150, 245)], [30, 15, 11, 10]),
        limb([(252, 152), (258, 182), (268, 204), (262, 230), (264, 246)], [44, 24, 12, 10, 10]),
    ]
    shade = mix(coat * 1.12, coat * 0.72, np.clip((canvas.y - 110) / 90, 0, 1))
    canvas.fill(body, shade, also=[head, *legs], volume=11, depth=1.1, texture=coarse)
    for x, y in ((149, 250), (264, 251), (170, 247), (248, 247)):
        hoof = [(x - 6, y - 8), (x + 5, y - 8), (x + 7, y + 2), (x - 8, y + 2)]
        canvas.fill(hoof, rgb("1f1813"))
    horse_face(canvas, coat, coarse)
    grass(canvas, 244, 262, 15, "4c7a2c", "8db551")


def horse_face(canvas: Canvas, coat: Array, coarse: Array) -> None:
    """Mane, ears, muzzle and eye."""
    mane = spline(
        [(116, 62), (126, 61), (142, 75), (160, 96), (182, 112), (166, 117), (152, 114), (138, 102),
         (126, 86), (116, 74), (104, 80), (107, 70)]
    )  # fmt: skip
    canvas.fill(mane, rgb("2a1a12"), volume=4, texture=coarse, soft=0.6)
    canvas.fill([(109, 68), (110, 51), (117, 64)], coat * 0.75, volume=2)
    canvas.fill([(114, 69), (119, 49), (125, 67)], coat, volume=2)
    muzzle = spline([(88, 100), (79, 108), (79, 117), (88, 121), (95, 112)])
    canvas.fill(muzzle, rgb("4a2b18"), soft=2.5, opacity=0.8)
    canvas.fill(ellipse(83, 111, 2, 1.6, -40), BLACK)
    eye(canvas, 105, 83, 3)


def deer(canvas: Canvas) -> None:
    """A stag with his antlers on an autumn meadow."""
    meadow(canvas, "8a7f3c", "c2ac5c", ("5d5a32", "b07a38"))
    grass(canvas, 226, 300, 18, "7d7434", "cdb866")
    canvas.scale(0.72, 205, 250)
    canvas.shadow(ellipse(184, 250, 82, 8), 0.6, 5)
    coat, coarse = rgb("a06a3c"), hair(canvas)
    far = [
        limb([(212, 168), (208, 198), (212, 220), (208, 246)], [20, 10, 7, 6]),
        limb([(152, 160), (154, 186), (146, 206), (150, 228), (149, 246)], [30, 15, 8, 7, 6]),
    ]
    canvas.fill(far[0], coat * 0.6, also=far[1:], volume=3, texture=coarse)
    canvas.fill(FAR_ANTLER[0], rgb("56402a"), also=FAR_ANTLER[1:], volume=1.5)
    body = spline(
        [(244, 82), (232, 104), (216, 121), (190, 127), (160, 124), (136, 128), (126, 142),
         (127, 160), (140, 174), (166, 178), (195, 185), (218, 186), (236, 172), (247, 148),
         (256, 124), (266, 102)]
    )  # fmt: skip
    head = spline(
        [(240, 80), (252, 71), (266, 77), (284, 91), (290, 98), (285, 105), (268, 105), (252, 104),
         (242, 94)]
    )  # fmt: skip
    legs = [
        limb([(226, 166), (229, 200), (226, 222), (228, 248)], [24, 11, 7, 6]),
        limb([(140, 154), (139, 184), (128, 206), (133, 228), (131, 249)], [36, 17, 8, 7, 6]),
    ]
    shade = mix(coat * 1.1, coat * 0.75, np.clip((canvas.y - 120) / 80, 0, 1))
    hide = canvas.fill(body, shade, also=[head, *legs], volume=9, depth=1.1, texture=coarse)
    for x, y, rx, ry, tilt in ((126, 152, 9, 16, 8), (266, 108, 14, 6, 10), (180, 184, 34, 6, 0)):
        pale = ellipse(x, y, rx, ry, tilt)
        canvas.fill(pale, rgb("ead9bd"), inside=hide, soft=2, opacity=0.85)
    canvas.fill(spline([(246, 84), (236, 76), (222, 72), (226, 84), (238, 90)]), coat, volume=2.5)
    far_ear = spline([(262, 76), (272, 64), (284, 60), (280, 72), (268, 80)])
    canvas.fill(far_ear, coat * 0.8, volume=2)
    canvas.fill(NEAR_ANTLER[0], rgb("6b4a2f"), also=NEAR_ANTLER[1:], volume=1.5)
    canvas.fill(ellipse(287, 97, 4, 4), BLACK)
    eye(canvas, 261, 84, 2.8)
    for x, y in ((228, 250), (131, 251), (208, 247), (149, 247)):
        canvas.fill([(x - 4, y - 6), (x + 4, y - 6), (x + 6, y + 2), (x - 4, y + 2)], BLACK)
    grass(canvas, 246, 262, 16, "7d7434", "cdb866")


def bird(canvas: Canvas) -> None:
    """A robin on a branch before green leaves."""
    bokeh(canvas, ("6f8f4a", "8fae62", "aec57c"), 60)
    canvas.soften(6)
    branch(canvas)
    canvas.scale(0.6, 185, 236)
    down = 1 + 0.3 * (canvas.noise(4) - 0.5)
    tail = [(128, 172), (76, 226), (86, 234), (98, 236), (146, 202)]
    canvas.fill(tail, rgb("5a4630"), volume=3, texture=down)
    body = spline(
        [(240, 98), (231, 80), (210, 71), (188, 79), (172, 104), (150, 132), (128, 166), (116, 192),
         (138, 206), (168, 209), (198, 200), (224, 176), (238, 146), (242, 118)]
    )  # fmt: skip
    shade = mix(rgb("7b6242"), rgb("6a5338"), np.clip((canvas.y - 80) / 110, 0, 1))
    plumage = canvas.fill(body, shade, volume=13, depth=1.1, texture=down)
    canvas.fill(ellipse(190, 200, 62, 30, -32), rgb("e9e4d8"), inside=plumage, soft=4, opacity=0.95)
    bib = spline([(232, 80), (214, 92), (206, 120), (208, 150), (222, 172), (246, 150), (250, 104)])
    canvas.fill(bib, rgb("d8612a"), inside=plumage, soft=2.5, texture=down)
    wing = spline(
        [(176, 116), (196, 126), (202, 146), (190, 170), (160, 190), (112, 212), (120, 190),
         (148, 152)]
    )  # fmt: skip
    canvas.fill(wing, rgb("5f4a31"), volume=6, texture=down)
    for step in range(5):
        tip = (124 - 2 * step, 204 + step)
        quill = [(188 - 5 * step, 142 + 8 * step), (160 - 8 * step, 176 + 5 * step), tip]
        canvas.fill(limb(quill, [2, 1.6, 1]), rgb("3c2e1e"), soft=0.4)
    canvas.fill([(238, 94), (262, 103), (239, 108)], rgb("4a4036"), volume=2)
    eye(canvas, 223, 94, 5)
    for x in (176, 194):
        shin = limb([(x, 200), (x + 4, 216), (x + 2, 230)], [5, 3.5, 3.5])
        claws = [limb([(x + 2, 229), (x + 2 + toe, 236)], [3.5, 2.5]) for toe in (-8, 0, 9)]
        canvas.fill(shin, rgb("6a4a34"), also=claws, volume=1.5)


def branch(canvas: Canvas) -> None:
    """A mossy branch across the picture."""
    bark = 1 + 0.7 * (canvas.noise(4, stretch=6) - 0.5)
    wood = limb([(-20, 258), (90, 244), (190, 238), (300, 240), (410, 222)], [22, 20, 18, 16, 14])
    twig = limb([(286, 238), (316, 212), (336, 172), (344, 150)], [10, 8, 6, 3])
    canvas.fill(wood, rgb("6f5a44"), also=[twig], volume=5, texture=bark, subject=False)
    for x, y, tilt in ((343, 152, -50), (340, 164, 205), (334, 178, 5), (318, 208, 215)):
        turn = np.deg2rad(tilt)
        tip = (x + 32 * np.cos(turn), y + 32 * np.sin(turn))
        leaf = limb([(x, y), ((x + tip[0]) / 2, (y + tip[1]) / 2), tip], [1.5, 17, 0.5])
        canvas.fill(leaf, rgb("7fae3c"), volume=3, subject=False)


def frog(canvas: Canvas) -> None:
    """A green frog on sandy ground."""
    ground(canvas, -40, "8a7450", "9a8460", grain=0.3)
    canvas.scale(0.8, 192, 246)
    canvas.shadow(ellipse(188, 244, 112, 10), 0.6, 5)
    skin = 1 + 0.4 * (canvas.noise(10, octaves=4) - 0.5)
    green = rgb("84a836")
    body = spline(
        [(293, 168), (284, 143), (262, 129), (236, 124), (204, 123), (168, 133), (134, 157),
         (104, 190), (92, 213), (100, 230), (140, 238), (200, 238), (242, 230), (270, 208),
         (288, 186)]
    )  # fmt: skip
    under = np.clip((canvas.y + 0.25 * canvas.x - 246) / 26, 0, 1)
    bump = ellipse(251, 127, 18, 17)
    whole = canvas.fill(
        body, mix(green, rgb("e6e2b4"), under), also=[bump], volume=13, depth=1.1, texture=skin
    )
    fold = limb([(236, 143), (196, 148), (148, 172), (112, 206)], [3, 4, 4, 2])
    canvas.fill(fold, rgb("c6cf6a"), soft=1, opacity=0.7, inside=whole)
    for x, y, r in ((206, 134, 7), (180, 142, 8), (156, 154, 8), (132, 174, 7), (226, 156, 6),
                    (196, 164, 8), (206, 184, 6), (276, 152, 5)):  # fmt: skip
        canvas.fill(ellipse(x, y, r, r * 0.7, -30), SPOT, inside=whole, soft=1, opacity=0.75)
    canvas.fill(ellipse(232, 152, 7, 7), rgb("8a8038"), volume=2, inside=whole)
    mouth = limb([(293, 166), (268, 173), (238, 168)], [1.6, 2, 1])
    canvas.fill(mouth, rgb("4a5a1f"), inside=whole)
    canvas.fill(ellipse(255, 125, 12, 11), rgb("d8a931"), volume=2)
    canvas.fill(ellipse(257, 125, 8, 5.5), BLACK)
    canvas.fill(ellipse(253, 121, 2, 2), rgb("ffffff"))
    frog_legs(canvas, green, skin)


def frog_legs(canvas: Canvas, green: Array, skin: Array) -> None:
    """The near foreleg and the folded hind leg."""
    arm = limb([(240, 198), (238, 210), (224, 224), (238, 244)], [22, 20, 14, 10])
    canvas.fill(arm, green * 0.95, also=toes(238, 244, 1.0), volume=4, texture=skin)
    thigh = spline(
        [(92, 208), (112, 180), (144, 169), (176, 178), (191, 198), (180, 220), (140, 234),
         (100, 232)]
    )  # fmt: skip
    canvas.fill(thigh, green, volume=8, texture=skin)
    shank = limb([(182, 204), (152, 228), (116, 238)], [20, 18, 12])
    foot = [limb([(116, 239), (158, 246)], [10, 8]), *toes(158, 246, 1.3)]
    canvas.fill(shank, green * 0.92, also=foot, volume=4, texture=skin)
    for x, y in ((126, 192), (150, 186), (148, 206), (122, 212)):
        canvas.fill(ellipse(x, y, 8, 5, -30), SPOT, soft=1, opacity=0.75)


def toes(x: float, y: float, size: float) -> list[Points]:
    """Three toes that point to the right from (x, y)."""
    ends = moved([(23, -3), (21, 5), (12, 9)], size=size)
    return [limb([(x, y), (x + dx, y + dy)], [7, 4]) for dx, dy in ends]
