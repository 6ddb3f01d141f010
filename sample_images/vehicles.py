"""Four vehicles, each in its place: an airliner, a freighter, a car, a truck."""

import numpy as np
from backdrops import cloud, ground, hills, sea, sky, trees
from painting import Canvas, Points, ellipse, limb, mix, moved, rgb, spline

WHITE, GLASS, RUBBER = rgb("f4f6f8"), rgb("27333f"), rgb("1c1d20")


def airplane(canvas: Canvas) -> None:
    """A white airliner with a blue tail, climbing away over fields."""
    sky(canvas, "5f9bd8", "eef3f2", 170)
    cloud(canvas, 90, 60, 16, 0.8)
    cloud(canvas, 318, 44, 13, 0.6)
    hills(canvas, 180, 70, "8fa9ae", 1.2)
    hills(canvas, 186, 40, "6d8f6a", 2.2)
    ground(canvas, 180, "8db551", "5c8a36")
    canvas.soften(1.8)
    canvas.scale(0.6, 192, 150)

    def at(points: Points) -> Points:
        turn = np.deg2rad(-9)
        c, s = np.cos(turn), np.sin(turn)
        return [(193 + c * x - s * y, 146 + s * x + c * y) for x, y in moved(points, size=0.96)]

    canvas.fill(at([(34, -8), (-48, -62), (-62, -62), (-24, -8)]), rgb("9aa7b5"), volume=4)
    canvas.fill(at([(-100, -8), (-128, -26), (-138, -26), (-122, -6)]), rgb("96a3b1"))
    tail = at([(-74, -12), (-116, -64), (-138, -64), (-122, -8)])
    canvas.fill(tail, rgb("1f4fa3"), volume=5, depth=0.6)
    canvas.fill(at([(-90, -32), (-128, -32), (-125, -20), (-81, -20)]), rgb("e8b23a"))
    body = spline(
        [(140, 4), (128, -9), (104, -16), (20, -18), (-70, -17), (-130, -9), (-142, -5),
         (-132, 0), (-84, 15), (20, 18), (104, 17), (130, 11)]
    )  # fmt: skip
    hull = canvas.fill(at(body), WHITE, volume=7, depth=1.1)
    belly = [(150, 7), (-90, 7), (-150, 30), (150, 30)]
    canvas.fill(at(belly), rgb("93a1b3"), opacity=0.55, inside=hull)
    canvas.fill(at([(150, 3), (-150, 1), (-150, 5), (150, 6.5)]), rgb("1f4fa3"), inside=hull)
    for x in range(-88, 106, 8):
        canvas.fill(at(ellipse(x, -4, 2, 2.7)), GLASS, inside=hull)
    canvas.fill(at([(118, -12), (132, -6), (128, -2), (114, -4)]), GLASS, inside=hull)
    canvas.shadow(at([(44, 10), (-30, 30), (-44, 28), (-34, 8)]), 0.35, 3)
    canvas.fill(at([(46, 8), (-44, 74), (-64, 74), (-62, 66), (-36, 10)]), rgb("c9d2dc"), volume=5)
    canvas.fill(at([(-44, 74), (-64, 74), (-74, 62), (-68, 62)]), rgb("1f4fa3"))
    canvas.fill(at(limb([(34, 34), (20, 34), (-8, 30)], [15, 19, 10])), rgb("dfe5ec"), volume=5)
    canvas.fill(at(ellipse(33, 34, 3.5, 7.5)), rgb("39424e"))
    canvas.fill(at([(-90, 0), (-132, 20), (-146, 20), (-126, -2)]), rgb("c2ccd8"), volume=3)


def ship(canvas: Canvas) -> None:
    """A freighter with a red and black hull and a white bridge on a grey-green sea."""
    horizon = 150.0
    sky(canvas, "6ea9dd", "e3eef5", horizon)
    cloud(canvas, 60, 70, 17, 0.8)
    cloud(canvas, 320, 50, 14, 0.7)
    sea(canvas, horizon)
    canvas.scale(0.6, 192, 212)
    deck = 160
    for x, tiers in ((146, 2), (178, 3), (210, 3), (242, 2), (274, 2)):
        for tier in range(tiers):
            tone = rgb(("c9742d", "3f6fa8", "b5b9bd", "7d2f2a", "4d7d58")[(x // 32 + 2 * tier) % 5])
            crate = [(x, deck), (x + 32, deck), (x + 32, deck - 17), (x, deck - 17)]
            ribs = 0.94 + 0.12 * (np.floor(canvas.x / 1.5) % 2)
            canvas.fill(moved(crate, dy=-17 * tier), tone, texture=ribs, volume=1.5, depth=0.8)
    bridge(canvas, deck)
    side = spline(
        [(64, 158), (66, 176), (74, 206), (90, 212), (292, 212), (306, 206), (330, 152)],
        closed=False,
    )
    hull = canvas.fill([*side, (300, 160), (64, 160)], rgb("23303f"), volume=6)
    canvas.fill([(0, 194), (384, 194), (384, 230), (0, 230)], rgb("b8342a"), inside=hull)
    canvas.fill([(0, 192), (384, 192), (384, 195), (0, 195)], WHITE, inside=hull)
    canvas.fill(limb([(64, 160), (300, 160), (330, 152)], [3, 3, 2]), rgb("dfe3e6"))
    canvas.fill([(312, 156), (313.5, 156), (313.5, 128), (312, 128)], rgb("dfe3e6"))
    reflection = limb([(70, 218), (190, 221), (306, 217)], [10, 20, 8])
    canvas.shadow(reflection, 0.45, 4)
    foam = limb([(60, 213), (150, 214.5), (250, 214), (322, 210)], [2, 6, 7, 2])
    spray = 0.6 + 0.4 * canvas.noise(5, stretch=3)
    canvas.fill(foam, rgb("eef6fa"), opacity=0.85, soft=2.5, texture=spray, subject=False)


def bridge(canvas: Canvas, deck: float) -> None:
    """The ship's white superstructure, its windows, its funnel and its mast."""
    canvas.fill([(76, 104), (96, 104), (98, 70), (80, 70)], rgb("b8342a"), volume=4)
    canvas.fill([(80, 78), (98, 78), (98, 70), (80, 70)], rgb("22272e"), volume=4)
    for left, right, top, bottom in ((70, 140, 126, deck), (78, 136, 104, 128), (90, 132, 88, 106)):
        block = [(left, bottom), (right, bottom), (right, top), (left, top)]
        canvas.fill(block, WHITE, volume=3, depth=0.8)
        for x in range(left + 6, right - 6, 8):
            pane = [(x, top + 6), (x + 4.5, top + 6), (x + 4.5, top + 11), (x, top + 11)]
            canvas.fill(pane, GLASS)
    canvas.fill([(112, 88), (114, 88), (114, 54), (112, 54)], rgb("e9ecee"))
    canvas.fill([(104, 64), (122, 64), (122, 66), (104, 66)], rgb("e9ecee"))


def wheel(canvas: Canvas, x: float, y: float, radius: float, rim: str = "c4cad1") -> None:
    """A tyre with a bright rim and five spokes."""
    canvas.fill(ellipse(x, y, radius, radius), RUBBER, volume=3, depth=0.4)
    canvas.fill(ellipse(x, y, radius * 0.64, radius * 0.64), rgb("3a3f45"))
    for turn in np.arange(5) * 2 * np.pi / 5 + 0.3:
        end = (x + radius * 0.6 * np.cos(turn), y + radius * 0.6 * np.sin(turn))
        canvas.fill(limb([(x, y), end], [radius * 0.3, radius * 0.2]), rgb(rim), volume=1.5)
    canvas.fill(ellipse(x, y, radius * 0.17, radius * 0.17), rgb("8d949c"))


def road(canvas: Canvas, top: float) -> None:
    """A country road seen from its side, fields and trees behind it."""
    sky(canvas, "7db4e6", "eef4f4", top)
    cloud(canvas, 90, 56, 14, 0.7)
    cloud(canvas, 310, 44, 12, 0.6)
    hills(canvas, top - 12, 46, "9db7b4", 1.2)
    trees(canvas, top - 4, 44, "4b6b3a", "86a557")
    canvas.lay(rgb("7f9a4f"), (canvas.y > top - 8).astype(float))
    canvas.soften(2.2)
    ground(canvas, top, "8d8f90", "6c6e72", grain=0.1)
    canvas.fill([(0, top), (384, top), (384, top + 4), (0, top + 4)], rgb("c9c6bc"), subject=False)
    for x in range(-40, 400, 110):
        dash = [(x, 268), (x + 60, 268), (x + 56, 274), (x - 6, 274)]
        canvas.fill(dash, rgb("e8e4d4"), opacity=0.8, subject=False)


def automobile(canvas: Canvas) -> None:
    """A red car on a country road."""
    road(canvas, 168)
    canvas.scale(0.6, 192, 238)
    canvas.shadow(ellipse(192, 232, 142, 10), 0.7, 5)
    body = spline(
        [(56, 208), (56, 186), (64, 170), (92, 160), (128, 150), (160, 122), (196, 113), (238, 115),
         (274, 132), (296, 152), (322, 158), (331, 174), (332, 204), (322, 219), (250, 223),
         (120, 223), (66, 220)]
    )  # fmt: skip
    paint = mix(rgb("e0362f"), rgb("8c1518"), np.clip((canvas.y - 150) / 70, 0, 1))
    hull = canvas.fill(body, paint, volume=9, depth=1.2)
    glass = spline(
        [(138, 152), (164, 129), (196, 121), (236, 123), (262, 136), (280, 153), (210, 154)],
    )
    window = canvas.fill(glass, GLASS, volume=3, depth=0.5)
    canvas.fill(
        [(150, 160), (190, 110), (210, 110), (176, 160)], rgb("9fb9cc"), opacity=0.45, inside=window
    )
    canvas.fill([(205, 118), (212, 118), (215, 158), (207, 158)], rgb("b3241f"), inside=hull)
    canvas.fill(
        limb([(78, 178), (190, 172), (326, 176)], [1.5, 1.5, 1.5]), rgb("ffb8a8"), opacity=0.5
    )
    for seam in ([(140, 156), (138, 190), (146, 214)], [(211, 156), (213, 190), (211, 216)],
                 [(284, 156), (282, 178), (270, 196)]):  # fmt: skip
        canvas.fill(limb(seam, [1.2, 1.2, 1.2]), rgb("6c0f12"))
    for x in (194, 264):
        canvas.fill(limb([(x, 167), (x + 12, 167)], [3, 3]), rgb("f3a79d"))
    canvas.fill(spline([(62, 176), (84, 166), (88, 174), (66, 184)]), rgb("fdf6d8"), volume=2)
    canvas.fill(spline([(332, 168), (318, 165), (316, 176), (332, 180)]), rgb("6d0c10"), volume=2)
    canvas.fill(
        [(60, 206), (326, 206), (326, 230), (60, 230)], rgb("2a2022"), opacity=0.75, inside=hull
    )
    canvas.fill(spline([(140, 148), (152, 144), (156, 152), (144, 156)]), rgb("c22a25"), volume=2)
    for x in (112, 276):
        canvas.fill(ellipse(x, 211, 29, 29), rgb("171213"), inside=hull)
        wheel(canvas, x, 214, 24)


def truck(canvas: Canvas) -> None:
    """A lorry with a blue cab and a white box on a country road."""
    road(canvas, 176)
    canvas.scale(0.6, 192, 244)
    canvas.shadow(ellipse(196, 240, 146, 9), 0.7, 5)
    canvas.fill([(70, 206), (328, 206), (328, 220), (70, 220)], rgb("2c2f34"), volume=2)
    box = [(140, 208), (330, 208), (330, 100), (140, 100)]
    side = mix(rgb("f6f5f0"), rgb("d3d4d3"), np.clip((canvas.y - 100) / 110, 0, 1))
    load = canvas.fill(box, side, volume=4, depth=0.8)
    for x in range(162, 326, 24):
        canvas.fill([(x, 104), (x + 1, 104), (x + 1, 205), (x, 205)], rgb("b5b8ba"))
    stripe = [(130, 168), (340, 146), (340, 164), (130, 186)]
    canvas.fill(stripe, rgb("e0792b"), inside=load)
    canvas.fill(moved(stripe, dy=24), rgb("2b5ea8"), inside=load)
    cab = [(62, 216), (62, 178), (66, 166), (76, 128), (82, 120), (90, 117), (132, 117), (134, 216)]
    canvas.fill(cab, rgb("2d62b3"), volume=6)
    canvas.fill([(76, 158), (84, 128), (118, 128), (118, 158)], GLASS, volume=2)
    canvas.fill([(90, 157), (101, 129), (109, 129), (100, 157)], rgb("9fb9cc"), opacity=0.45)
    canvas.fill(limb([(84, 168), (84, 206)], [1.2, 1.2]), rgb("173a70"))
    canvas.fill(limb([(123, 126), (123, 206)], [1.2, 1.2]), rgb("173a70"))
    canvas.fill(limb([(106, 172), (116, 172)], [3, 3]), rgb("dfe6ee"))
    canvas.fill(spline([(62, 190), (74, 188), (74, 198), (62, 200)]), rgb("fdf6d8"), volume=2)
    canvas.fill([(57, 208), (80, 208), (80, 222), (57, 222)], rgb("3a3f45"), volume=2)
    canvas.fill([(68, 142), (73, 142), (71, 160), (65, 160)], RUBBER)
    for x in (102, 256, 304):
        canvas.fill(ellipse(x, 220, 25, 25), rgb("15171a"))
        wheel(canvas, x, 222, 21)
