"""Regions and arcs on a page: what can be switched, and where it is."""

import numpy as np
from bokeh.models import HoverTool, Legend, MultiLine, Quad

from cnnviz.report.regions import Arc, Layer, Regions, bytes_of, regions


def image(arcs: list[Arc]) -> Regions:
    layers = [
        Layer("reason 1", "#CC79A7", [(0, 0, 4, 4), (4, 8, 8, 12)]),
        Layer("necessary", "#D55E00", [(0, 0, 4, 4)], shown=False),
    ]
    return Regions(np.zeros((10, 12, 3), np.uint8), (10, 12), layers, arcs)


ARCS = [
    Arc(((2, 2), (6, 10)), "either would do", "red", 2.0, "cells 0 and 5"),
    Arc(((6, 2), (2, 2)), "both are needed", "blue", 1.0, "cells 0 and 3"),
    Arc(((2, 6), (6, 6)), "either would do", "red", 3.0, "cells 1 and 4"),
]


def test_each_region_and_each_kind_of_arcs_is_switched_by_its_name() -> None:
    figure = regions(image(ARCS))
    (legend,) = figure.select(Legend)
    assert legend.click_policy == "hide"
    names = [item.label.value for item in legend.items]
    assert names == ["reason 1", "necessary", "either would do", "both are needed"]
    assert [item.renderers[0].visible for item in legend.items] == [True, False, True, True]
    quads = [r for r in figure.renderers if isinstance(r.glyph, Quad)]
    source = quads[0].data_source.data
    left, right, top, bottom = (list(source[n]) for n in ("left", "right", "top", "bottom"))
    assert (top, left, bottom, right) == ([0, 4], [0, 8], [4, 8], [4, 12])


def test_an_arc_goes_from_cell_to_cell_and_shows_its_text() -> None:
    figure = regions(image(ARCS))
    red, _blue = (r for r in figure.renderers if isinstance(r.glyph, MultiLine))
    data = red.data_source.data
    assert [
        (xs[0], ys[0], xs[-1], ys[-1]) for xs, ys in zip(data["xs"], data["ys"], strict=True)
    ] == [
        (2, 2, 10, 6),
        (6, 2, 6, 6),
    ]
    assert data["text"] == ["cells 0 and 5", "cells 1 and 4"]
    assert {tool.tooltips for tool in figure.select(HoverTool)} == {"@text"}


def test_an_image_without_pairs_has_no_arcs() -> None:
    figure = regions(image([]))
    assert not list(figure.select(HoverTool))
    assert bytes_of(image([])) < bytes_of(image(ARCS))
