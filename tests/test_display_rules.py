"""The pictures of chapter 6 show what they were given."""

from __future__ import annotations

import math

import pytest

from course_utils import display
from course_utils.errors import CourseError


def run(rank: int, loss: float | None, seed: int = 0, task: str = "easy", **more) -> dict:
    return {"rank": rank, "loss": loss, "seed": seed, "task": task} | more


ROWS = [run(4, 0.2), run(4, 0.4, 1), run(16, 0.1), run(16, 0.1, 1), run(4, 0.8, task="hard")]


def drawn(ax) -> list[tuple[list, list]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines]


def test_a_rule_has_a_line_of_means_and_every_run_as_a_dot() -> None:
    ax = display.plot_rule(ROWS[:4], x="rank", log="x").axes[0]
    (line_x, line_y), dots = drawn(ax)
    assert line_x == [4, 16] and line_y == pytest.approx([0.3, 0.1])
    assert sorted(zip(*dots, strict=True)) == [(4, 0.2), (4, 0.4), (16, 0.1), (16, 0.1)]
    assert ax.get_xscale() == "log" and ax.get_yscale() == "linear" and ax.get_legend() is None
    assert ax.get_xlabel() == "rank r" and "nats" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["4", "16"]


def test_a_rule_has_a_line_for_each_value_of_a_field() -> None:
    ax = display.plot_rule(ROWS, x="rank", by="task", log="y").axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["easy task", "hard task"]
    assert len(ax.lines) == 4 and ax.get_yscale() == "log"
    rows = [run(4, 0.2, rslora=False, learning_rate=1e-3), run(4, 0.1, rslora=True)]
    rows[1]["learning_rate"] = 3e-3
    for by, names in (
        ("rslora", ["LoRA", "rsLoRA"]),
        ("learning_rate", ["learning rate 0.001", "learning rate 0.003"]),
    ):
        legend = display.plot_rule(rows, x="rank", by=by).axes[0].get_legend()
        assert [text.get_text() for text in legend.get_texts()] == names


def test_scores_are_in_per_cent_and_small_rates_have_short_names() -> None:
    rows = [{"learning_rate": rate, "score": 0.25} for rate in (1e-5, 3e-4, 0.02)]
    ax = display.plot_rule(rows, x="learning_rate", y="score", log="x").axes[0]
    assert list(ax.lines[0].get_ydata()) == [25] * 3 and "(%)" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1e-5", "3e-4", "0.02"]


def test_a_failed_run_is_a_cross_and_in_no_mean() -> None:
    ax = display.plot_rule([*ROWS[:4], run(16, math.nan, 2), run(64, None)], x="rank").axes[0]
    assert drawn(ax)[0][1] == pytest.approx([0.3, 0.1])
    cross = ax.lines[-1]
    assert cross.get_marker() == "x" and list(cross.get_xdata()) == [16, 64]


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([], {"x": "rank"}, "no loss to plot"),
        ([run(4, None)], {"x": "rank"}, "no loss to plot"),
        (ROWS, {"x": "alpha"}, "lacks alpha"),
        (ROWS, {"x": "rank", "by": "method"}, "lacks method"),
        (ROWS, {"x": "rank", "log": "z"}, "log is 'z'"),
    ],
)
def test_what_is_no_rule_is_said(rows, options, says) -> None:
    with pytest.raises(CourseError, match=says):
        display.plot_rule(rows, **options)


def test_curves_stand_side_by_side_on_one_scale() -> None:
    one = {"losses": [(1, 2.0), (2, 1.0)], "validation_losses": [(0, 2.5), (2, 1.2)]}
    two = {"losses": [(1, 2.0), (2, 4.0)], "validation_losses": [(0, 2.5), (2, 9.0)]}
    axes = display.plot_curves({"right": one, "too high": two}).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["right", "too high"]
    assert axes[0].get_ylim() == axes[1].get_ylim() and axes[0].get_yscale() == "log"
    assert "nats" in axes[0].get_ylabel() and all(ax.get_xlabel() == "step" for ax in axes)
    assert list(axes[1].lines[0].get_ydata()) == [2, 4]
    with pytest.raises(CourseError, match="no run"):
        display.plot_curves({})


def test_the_best_so_far_never_rises_and_failures_change_nothing() -> None:
    searches = {"random": [[None, 0.5, 0.9, 0.2]], "TPE": [[0.4, 0.1], [0.2, None]]}
    ax = display.plot_best_so_far(searches).axes[0]
    random, first, second, mean = (list(line.get_ydata()) for line in ax.lines)
    assert math.isnan(random[0]) and random[1:] == [0.5, 0.5, 0.2]
    assert (first, second) == ([0.4, 0.1], [0.2, 0.2]) and mean == pytest.approx([0.3, 0.15])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["random", "TPE"]
    with pytest.raises(CourseError, match="no loss"):
        display.plot_best_so_far({"random": [[None]]})
