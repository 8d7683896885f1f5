"""Pictures of single tokens, and the general texts whose loss shows what was forgotten."""

from __future__ import annotations

import pytest

from course_utils import display, sets
from course_utils.display.style import figure_png
from course_utils.errors import CourseError


def test_pictures_have_labels_with_units_and_are_small() -> None:
    figures = [
        display.plot_surprise([" a", "b"], [1.0, 2.0]),
        display.plot_next_tokens({" a": 0.3, "b": 0.6}),
        display.plot_trade_off({"a": (0, 1), "b": (5, 2)}, xlabel="x (%)", ylabel="y (nats)"),
    ]
    for figure, unit in zip(figures, ["(nats)", "(%)", "(%)"], strict=True):
        axes = figure.axes[0]
        assert unit in axes.get_xlabel() + axes.get_ylabel()
        assert len(figure_png(figure)) <= 60_000


def test_surprise_is_shown_in_reading_order_with_visible_spaces() -> None:
    axes = display.plot_surprise([" is", "\n"], [2.0, 0.5]).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [2.0, 0.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["·is", "↵"]


def test_the_likeliest_token_comes_first() -> None:
    axes = display.plot_next_tokens({" a": 0.25, "b": 0.5}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50, 25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "·a"]


def test_the_trade_off_starts_from_the_first_point() -> None:
    points = {"base": (0.0, 3.0), "tuned": (50.0, 3.5)}
    axes = display.plot_trade_off(points, xlabel="x", ylabel="y").axes[0]
    assert list(axes.lines[-1].get_ydata()) == [3.0, 3.0]
    assert [text.get_text() for text in axes.texts] == ["base", "tuned"]


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: display.plot_surprise(["a"], []), "1 tokens and 0 losses"),
        (lambda: display.plot_next_tokens({}), "any token"),
        (lambda: display.plot_next_tokens({"a": 50}), "shares, 0 to 1"),
        (lambda: display.plot_trade_off({"a": (0, 1)}, xlabel="x", ylabel="y"), "two named"),
    ],
)
def test_bad_input_is_named(draw: object, said: str) -> None:
    with pytest.raises(CourseError, match=said):
        draw()


def test_general_texts_are_documents_of_their_own() -> None:
    texts = sets.general_text()
    assert len(texts) == 12 and len({text.key for text in texts}) == 12
    assert all(text.is_text and 200 < len(text.answer) < 600 for text in texts)
    trained = {
        row.answer for name in ("instruction", "chat", "code") for row in sets.load(name).train
    }
    assert not trained & {text.answer for text in texts}
