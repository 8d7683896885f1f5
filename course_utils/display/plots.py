"""Plots of what was measured. Each returns its figure, which a notebook then shows once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

from .progress import RunningAverage, smoothing_span
from .style import COLORS, LINES, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0
"""Width of a plot in inches; at 100 dots per inch it fits a notebook cell."""
LINE_STYLES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)))
MANY = 30
"""From this many losses on a curve is drawn smoothed, over the raw values in a light color."""
Point = tuple[float, float]


def _new_axes(ax: Axes | None, height: float) -> tuple[Figure, Axes]:
    """The given axes, or new ones that pyplot forgets, so that the figure is not shown twice."""
    if ax is not None:
        return ax.figure, ax
    import matplotlib.pyplot as plt  # makes the kernel able to show figures

    figure, ax = plt.subplots(figsize=(WIDTH, height), layout="constrained")
    plt.close(figure)
    return figure, ax


def _points(values: Sequence[Any], name: str) -> list[Point]:
    """Losses as (step, loss): given as pairs, as dicts, or as one loss per step."""
    points: list[Point] = []
    for number, value in enumerate(values, 1):
        if isinstance(value, Mapping):
            value = (value.get("step"), value.get("loss"))
        pair = (number, value) if isinstance(value, int | float) else tuple(value)
        if len(pair) != 2 or not all(isinstance(part, int | float) for part in pair):
            raise CourseError(
                f"Entry {number} of {name} is {value!r}: give a loss, or a pair (step, loss)."
            )
        points.append(pair)
    return points


def plot_losses(report: Mapping[str, Any], ax: Axes | None = None) -> Figure:
    """Loss by optimizer step (nats per token): of one training, or of several to compare.

    ``report`` holds "losses" and, if there was a validation set, "validation_losses": lists of
    (step, loss). To compare trainings give a dict of such reports by name. Raises CourseError where
    there are no losses.
    """
    runs = {"": report} if "losses" in report else report
    if not runs or not all(isinstance(r, Mapping) and r.get("losses") for r in runs.values()):
        raise CourseError('There is no loss to plot: give a report with a non-empty "losses".')
    with course_style():
        figure, ax = _new_axes(ax, 3.0)
        for (name, run), color, style in zip(
            runs.items(), cycle(LINES), cycle(LINE_STYLES), strict=False
        ):
            _plot_run(ax, name, run, color if name else COLORS["train"], style)
        ax.set(xlabel="optimizer step", ylabel="loss (nats per token)")
        ax.set_xlim(left=0)
        ax.grid(axis="y")
        if len(ax.get_legend_handles_labels()[1]) > 1:
            ax.legend()
    return figure


def _plot_run(ax: Axes, name: str, run: Mapping[str, Any], color: str, style: Any) -> None:
    steps, losses = zip(*_points(run["losses"], "losses"), strict=True)
    if len(losses) >= MANY:
        ax.plot(steps, losses, color=color, lw=1, alpha=0.3)
        average = RunningAverage(smoothing_span(len(losses)))
        losses = [average.add(loss) for loss in losses]
    ax.plot(steps, losses, color=color, ls=style, label=f"{name} (train)" if name else "train")
    held_out = _points(run.get("validation_losses") or [], "validation_losses")
    if held_out:
        label = f"{name} (validation)" if name else "validation"
        marks = {"marker": "D", "ms": 5, "mec": "white", "mew": 0.8, "ls": (0, (3, 2)), "lw": 1.2}
        own = color if name else COLORS["validation"]
        ax.plot(*zip(*held_out, strict=True), color=own, label=label, zorder=3, **marks)


def plot_scores(
    before: Mapping[str, float], after: Mapping[str, float], ax: Axes | None = None
) -> Figure:
    """Scores before and after training, one pair of bars per kind of task.

    Both dicts hold shares from 0 to 1 under the same names, for example ``{"overall": 0.05}``.
    Raises CourseError where names differ or a score is not a share.
    """
    _check_scores(before, after)
    with course_style():
        figure, ax = _new_axes(ax, 0.85 + 0.5 * len(before))
        places = range(len(before))
        for offset, name, scores in ((-0.2, "before", before), (0.2, "after", after)):
            shares = [100 * scores[kind] for kind in before]
            bars = ax.barh(
                [place + offset for place in places], shares, 0.36, color=COLORS[name], label=name
            )
            ax.bar_label(bars, fmt="%.0f %%", padding=4, fontsize=8.5, color=COLORS["ink"])
        ax.set_yticks(places, list(before))
        ax.set(xlabel="right answers on held-out tasks (%)", xlim=(0, 109))
        ax.set_xticks(range(0, 101, 20))
        _finish_bars(ax)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return figure


def _check_scores(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    if not before or set(before) != set(after):
        raise CourseError(
            f"Scores before are of {sorted(before)}, after of {sorted(after)}: give the same names."
        )
    for kind, score in [*before.items(), *after.items()]:
        if not 0 <= score <= 1:
            raise CourseError(f"The score of {kind!r} is {score}: give a share from 0 to 1.")


def _finish_bars(ax: Axes) -> None:
    """Names read downwards; lines only where a value is read off."""
    ax.invert_yaxis()
    ax.grid(axis="x")
    ax.tick_params(axis="y", labelcolor=COLORS["ink"], labelsize=9)
    ax.spines["bottom"].set_visible(False)


def plot_memory(
    phases: Mapping[str, float], limit_gib: float | None = None, ax: Axes | None = None
) -> Figure:
    """Peak memory in GiB (2**30 bytes) by phase or by method, against the memory there is.

    Raises CourseError where a value is missing or negative.
    """
    bad = [name for name, gib in phases.items() if not gib >= 0]
    if bad or not phases:
        raise CourseError(f"No memory to plot for {bad or 'any phase'}: give GiB per phase.")
    with course_style():
        figure, ax = _new_axes(ax, 0.8 + 0.36 * len(phases))
        over = [limit_gib is not None and gib > limit_gib for gib in phases.values()]
        colors = [COLORS["bad" if too_much else "memory"] for too_much in over]
        bars = ax.barh(list(phases), list(phases.values()), 0.62, color=colors)
        ax.bar_label(
            bars, fmt="%.2f GiB", padding=4, fontsize=8.5, color=COLORS["ink"], zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the limit's line
        )  # fmt: skip
        ax.set(xlabel="peak memory (GiB)")
        ax.set_xlim(0, 1.17 * max([*phases.values(), limit_gib or 0, 1e-3]))
        _finish_bars(ax)
        if limit_gib is not None:
            ax.axvline(limit_gib, color=COLORS["ink"], lw=1.4, ls=(0, (4, 3)))
            ax.annotate(
                f"limit {limit_gib:.1f} GiB", (limit_gib, 1), xycoords=("data", "axes fraction"),
                xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5,
                color=COLORS["ink"],
            )  # fmt: skip
    return figure
