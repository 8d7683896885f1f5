"""Pictures of quantization: the levels of a code under the numbers, and the errors it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from course_utils.errors import CourseError

from .style import COLORS, LINES, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 101


def plot_levels(
    values: Any, codes: Mapping[str, Sequence[float]], ax: Axes | None = None
) -> Figure:
    """How scaled weights (-1 to 1) are spread, and below them the levels of each code.

    Raises CourseError for values outside of -1 to 1 and where there is no code.
    """
    from .plots import _new_axes

    numbers = _numbers(values, "values")
    if np.abs(numbers).max() > 1 + 1e-6:
        raise CourseError("plot_levels shows weights divided by their block's absmax: -1 to 1.")
    if not codes:
        raise CourseError('Give the levels of one code or more, such as {"NF4": levels}.')
    with course_style():
        figure, ax = _new_axes(ax, 2.3 + 0.22 * len(codes))
        shares, edges = np.histogram(numbers, bins=BINS, range=(-1, 1))
        shares = 100 * shares / shares.sum()
        ax.stairs(shares, edges, fill=True, color=COLORS["before"])
        row = 0.13 * shares.max()
        for place, (name, levels) in enumerate(codes.items()):
            low = -row * (place + 1)
            ticks = _numbers(levels, name)
            ax.vlines(ticks, low + 0.15 * row, low + 0.85 * row, LINES[place], lw=2)
            label = {"va": "center", "fontsize": 8.5, "color": LINES[place]}
            ax.annotate(name, (1.04, low + row / 2), **label)
        ax.axhline(0, color=COLORS["ink"], lw=0.8)
        ax.set(xlabel="weight / largest absolute value of its block", xlim=(-1.02, 1.22))
        ax.set(ylabel="weights (%)", ylim=(-row * (len(codes) + 0.15), None))
        ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= shares.max() * 1.1])
    return figure


def plot_errors(errors: Mapping[str, Any], unit: str, ax: Axes | None = None) -> Figure:
    """How the errors of each code are spread; `unit` ends the label of the axis.

    Raises CourseError where there are no errors to show.
    """
    from .plots import LINE_STYLES, _new_axes

    if not errors:
        raise CourseError('Give the errors of one code or more, such as {"NF4": errors}.')
    spread = {name: _numbers(value, name) for name, value in errors.items()}
    reach = max(np.quantile(np.abs(value), 0.999) for value in spread.values())
    with course_style():
        figure, ax = _new_axes(ax, 2.7)
        looks = zip(spread.items(), LINES, LINE_STYLES, strict=False)
        for (name, value), color, style in looks:
            counts, edges = np.histogram(value, bins=BINS, range=(-reach, reach))
            ax.stairs(100 * counts / len(value), edges, color=color, ls=style, label=name)
        ax.set(xlabel=f"error of a weight ({unit})", ylabel="weights (%)")
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.legend()
    return figure


def _numbers(values: Any, name: str) -> np.ndarray:
    """A tensor, an array or a list as flat fp32 numbers."""
    if hasattr(values, "detach"):
        values = values.detach().float().cpu().numpy()
    numbers = np.asarray(values, dtype=np.float32).ravel()
    if not numbers.size or not np.isfinite(numbers).all():
        raise CourseError(f"{name} must be finite numbers, one or more.")
    return numbers
