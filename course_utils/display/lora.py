"""Pictures of LoRA: the rank of an update, and where the memory of several runs goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

from .memory_figure import FILLS
from .plots import _finish_bars, _new_axes
from .style import COLORS, LINES, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.memory import Estimate

MARKERS = ("o", "s", "D", "^")
SMALL, OTHER = 0.005, "other"
"""Below this share of the longest bar a part has no color of its own."""


def plot_singular_values(
    spectra: Mapping[str, Sequence[float]], ax: Axes | None = None, *, count: int = 32
) -> Figure:
    """The first `count` singular values of matrices by name, the largest first, on a log scale.

    Raises CourseError where there are none, or one is negative.
    """
    values = {name: [float(v) for v in spectrum][:count] for name, spectrum in spectra.items()}
    if not values or not all(values.values()) or min(map(min, values.values())) < 0:
        raise CourseError("Give the singular values of one matrix or more; they are 0 or above.")
    with course_style():
        figure, ax = _new_axes(ax, 2.8)
        for (name, spectrum), color, marker in zip(
            values.items(), cycle(LINES), cycle(MARKERS), strict=False
        ):
            places = range(1, len(spectrum) + 1)
            ax.plot(places, spectrum, marker, color=color, ms=4.5, label=name)
        ax.set(xlabel="number of the singular value", ylabel="singular value", yscale="log")
        ax.grid(axis="y")
        ax.legend(loc="center right")
    return figure


def plot_memory_parts(estimates: Mapping[str, Estimate], ax: Axes | None = None) -> Figure:
    """The parts of several runs' peak memory (GiB of tensors, 2^30 bytes), a bar for each run.

    estimates: of `memory.estimate`, by name.  Raises CourseError where there is none.
    """
    if not estimates:
        raise CourseError("There is no estimate to draw: give a name and an estimate for each bar.")
    bars = _large_parts(estimates)
    with course_style():
        figure, ax = _new_axes(ax, 1.15 + 0.42 * len(bars))
        left = dict.fromkeys(bars, 0.0)
        for part in _in_order(bars):
            sizes = [parts.get(part, 0.0) for parts in bars.values()]
            color, hatch = FILLS.get(part, ("#cbd5e1", ""))
            ax.barh(
                list(bars), sizes, 0.62, left=list(left.values()), color=color, hatch=hatch,
                edgecolor="white", linewidth=0.7, label=part,
            )  # fmt: skip
            left = {name: left[name] + size for name, size in zip(bars, sizes, strict=True)}
        for name, total in left.items():
            ax.annotate(
                f"{total:.1f} GiB", (total, name), xytext=(5, 0), textcoords="offset points",
                va="center", fontsize=8.5, color=COLORS["ink"],
            )  # fmt: skip
        ax.set(xlabel="peak memory of all tensors (GiB)", xlim=(0, 1.13 * max(left.values())))
        _finish_bars(ax)
        figure.legend(loc="outside upper left", ncols=6, handlelength=1.2, columnspacing=1.2)
    return figure


def _large_parts(estimates: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The parts of each run; what is too small to be seen is put together."""
    least = SMALL * max(e.allocated_gib for e in estimates.values())
    bars = {}
    for name, estimate in estimates.items():
        parts = {part: gib for part, gib in estimate.parts.items() if gib >= least}
        bars[name] = parts | {OTHER: estimate.allocated_gib - sum(parts.values())}
    return bars


def _in_order(bars: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All parts that occur, in the order of every other picture, what is left over last."""
    found = {part for parts in bars.values() for part in parts} - {OTHER}
    known = [part for part in FILLS if part in found]
    return [*known, *sorted(found - set(known)), OTHER]
