"""The picture of gains by kind of task shows what it was given."""

from __future__ import annotations

import pytest

from course_utils import display
from course_utils.errors import CourseError

ENGLISH = ({"date": 0.1, "slug": 0.0, "log": 0.5}, {"date": 0.6, "slug": 0.2, "log": 0.9})
CHINESE = ({"zh_time": 0.0}, {"zh_time": 0.4})


def test_a_panel_for_each_group_with_the_best_kind_first() -> None:
    figure = display.plot_kinds({"English": ENGLISH, "Chinese": CHINESE})
    first, second = figure.axes
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["English", "Chinese"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["log", "date", "slug"]
    before, after = (dots.get_offsets()[:, 0].tolist() for dots in first.collections[1:])
    assert before == pytest.approx([50, 10, 0]) and after == pytest.approx([90, 60, 20])
    assert "%" in second.get_xlabel() and first.yaxis_inverted()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]


def test_scores_must_be_of_the_same_kinds() -> None:
    with pytest.raises(CourseError, match="same names"):
        display.plot_kinds({"x": ({"date": 0.1}, {"slug": 0.1})})
    with pytest.raises(CourseError, match="share from 0 to 1"):
        display.plot_kinds({"x": ({"date": 10}, {"date": 0.1})})
