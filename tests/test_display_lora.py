"""The pictures of chapter 4 show what they were given."""

from __future__ import annotations

import pytest

from course_utils import display, memory
from course_utils.errors import CourseError
from course_utils.recipes import Recipe


@pytest.fixture(scope="module")
def estimates():
    full = Recipe(method="full", base_precision="bf16", checkpointing=True, batch_size=4)
    ways = {"full": full, "LoRA": Recipe(rank=8, targets=("q_proj", "v_proj"), batch_size=4)}
    return {name: memory.estimate("llama-2-7b", recipe) for name, recipe in ways.items()}


def test_bars_of_parts_add_up_to_the_peak(estimates) -> None:
    ax = display.plot_memory_parts(estimates).axes[0]
    ends = [0.0, 0.0]
    for container in ax.containers:
        for place, bar in enumerate(container):
            assert bar.get_x() == pytest.approx(ends[place])
            ends[place] += bar.get_width()
    assert ends == pytest.approx([e.allocated_gib for e in estimates.values()])
    assert [text.get_text() for text in ax.texts] == [f"{end:.1f} GiB" for end in ends]
    assert "GiB" in ax.get_xlabel()


def test_a_part_has_one_color_and_small_ones_are_put_together(estimates) -> None:
    figure = display.plot_memory_parts(estimates)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels))
    assert labels[0] == "weights" and labels[-1] == "other" and "rounding" not in labels


def test_singular_values_are_drawn_largest_first_on_a_log_scale() -> None:
    ax = display.plot_singular_values({"W": [9.0, 3.0, 1.0], "update": [2.0, 1e-7, 1e-8]}).axes[0]
    assert ax.get_yscale() == "log" and ax.get_xlabel() and ax.get_ylabel()
    assert list(ax.lines[0].get_ydata()) == [9.0, 3.0, 1.0]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["W", "update"]
    ax = display.plot_singular_values({"W": list(range(99, 0, -1))}, count=32).axes[0]
    assert len(ax.lines[0].get_xdata()) == 32


@pytest.mark.parametrize("spectra", [{}, {"W": []}, {"W": [1.0, -1.0]}])
def test_what_are_no_singular_values_is_said(spectra) -> None:
    with pytest.raises(CourseError, match="singular values"):
        display.plot_singular_values(spectra)


def test_no_estimate_is_said() -> None:
    with pytest.raises(CourseError, match="no estimate"):
        display.plot_memory_parts({})
