"""The pictures of quantization show the numbers they are given, and refuse what they cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from course_utils import display
from course_utils.display.style import figure_png
from course_utils.errors import CourseError

CODES = {"NF4": [-1.0, -0.5, 0.0, 1.0], "int4": torch.tensor([-1.0, 0.0, 0.5, 1.0])}


def test_levels_stand_below_the_numbers():
    values = torch.tensor([-1.0] + [0.25] * 3)
    ax = display.plot_levels(values, CODES).axes[0]
    filled = ax.patches[0].get_data()
    heights = dict(zip(filled.edges[:-1].round(2), filled.values, strict=True))
    assert filled.values.sum() == pytest.approx(100)
    assert heights[-1.0] == 25 and max(filled.values) == 75
    for lines, levels in zip(ax.collections, CODES.values(), strict=True):
        at = [segment[0][0] for segment in lines.get_segments()]
        assert at == pytest.approx(list(map(float, levels)))
        assert max(segment[1][1] for segment in lines.get_segments()) < 0
    assert [text.get_text() for text in ax.texts] == list(CODES)
    assert ax.get_xlabel() and ax.get_ylabel() == "weights (%)"


def test_errors_are_shares_of_all_numbers():
    errors = {"a": np.array([-0.2, 0.0, 0.2, 0.2]), "b": torch.zeros(8)}
    figure = display.plot_errors(errors, "in steps")
    ax = figure.axes[0]
    assert ax.get_xlabel() == "error of a weight (in steps)"
    assert [patch.get_data().values.max() for patch in ax.patches] == [50, 100]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    assert len(figure_png(figure)) < 60_000


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: display.plot_levels([0.0, 1.5], CODES), "-1 to 1"),
        (lambda: display.plot_levels([0.0], {}), "levels of one code"),
        (lambda: display.plot_levels([], CODES), "values must be finite numbers"),
        (lambda: display.plot_errors({}, "x"), "errors of one code"),
        (lambda: display.plot_errors({"a": [float("nan")]}, "x"), "a must be finite numbers"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, said):
    with pytest.raises(CourseError, match=said):
        draw()
