"""Labels made visible, layouts, groups and curves, with real matplotlib."""

from __future__ import annotations

import re

import numpy as np
import pytest
from test_display import _like, _pixels

from course_utils import display
from course_utils.display.rows import PARTS
from course_utils.display.style import COLORS, LINES, figure_png
from course_utils.errors import CourseError
from course_utils.padding import WAYS, layout

RUNS = [("<b>Ask</b>\n", False), ("Answer & end", True)]


def test_labels_show_both_kinds_as_text_and_never_as_html():
    shown = display.show_labels(RUNS)
    assert str(shown) == "masked  | '<b>Ask</b>\\n'\ntrained | 'Answer & end'"
    page = shown._repr_html_()
    assert "<b>Ask" not in page and "&lt;b&gt;Ask&lt;/b&gt;" in page and "Answer &amp; end" in page
    assert "↵" in page
    styles = re.findall(r'<span style="([^"]*)" title="(\w+)"', page)
    assert [word for _, word in styles] == ["masked", "trained"]
    assert styles[0][0] != styles[1][0], "told apart by color"


def test_a_layout_shows_its_padding():
    rows = [(20, 10), (5, 5), (30, 2), (8, 8)] * 4
    lengths = [sum(pair) for pair in rows]
    some, none = (layout(lengths, way, batch_size=4, max_length=64) for way in WAYS[::3])
    wasted, packed = (
        _like(_pixels(figure_png(display.plot_layouts([one], rows))), PARTS["padding"], 12).sum()
        for one in (some, none)
    )
    assert wasted > 5 * packed
    figure = display.plot_layouts([some, none], rows)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        f"{one.way}: {100 * one.padding_share:.0f} % of all positions are padding"
        for one in (some, none)
    ]
    assert "tokens" in figure.axes[-1].get_xlabel()


def test_a_layout_draws_rows_to_scale():
    one = layout([30, 10], "to the longest of a batch", batch_size=2, max_length=64)
    figure = display.plot_layouts([one], [(20, 10), (5, 5)])
    widths = sorted(round(bar.get_width()) for bar in figure.axes[0].patches)
    assert widths == [0, 5, 5, 10, 20, 20]  # prompt, answer, padding of each row


def test_groups_stand_side_by_side():
    figure = display.plot_groups({"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 4}}, "share (%)")
    ax = figure.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [1, 3, 2, 4]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["x", "y"]
    assert ax.get_xlabel() == "share (%)" and ax.get_xlim()[1] > 4
    tops = [bar.get_y() for bar in ax.patches]
    assert len(set(np.round(tops, 6))) == 4


def test_a_curve_has_a_point_for_each_seed_and_a_line_through_the_means():
    curve = {0: [0.0], 10: [10, 20], 100: [80, 90]}
    figure = display.plot_by_size({"right (%)": {"score": curve}}, "training rows")
    lines = figure.axes[0].lines
    assert list(lines[0].get_ydata()) == [0, 15, 85]
    assert sum(len(line.get_ydata()) for line in lines[1:]) == 5
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "10", "100"]
    assert _like(_pixels(figure_png(figure)), LINES[0]).any()


def test_two_lines_get_a_legend():
    panels = {"loss (nats)": {"held out": {1: [1.0]}, "training": {1: [0.5]}}}
    figure = display.plot_by_size(panels, "rows")
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["held out", "training"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: display.plot_layouts([], [(1, 1)]),
        lambda: display.plot_groups({}, "x"),
        lambda: display.plot_groups({"a": {"x": 1}, "b": {"y": 1}}, "x"),
        lambda: display.plot_by_size({}, "x"),
        lambda: display.plot_by_size({"y": {"line": {}}}, "x"),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(CourseError):
        draw()


def test_the_palette_is_the_courses():
    assert PARTS["answer"] == COLORS["after"] and PARTS["prompt"] == COLORS["before"]
