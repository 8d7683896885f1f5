"""Pictures of what settings do: a rule tested with several seeds, learning curves, a search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

from .plots import LINE_STYLES, WIDTH, _new_axes, plot_losses
from .style import LINES, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "D", "^", "v", "P")
LABELS = {
    "loss": "held-out loss (nats per answer token)",
    "general": "loss on general text (nats per token)",
    "score": "right answers on held-out tasks (%)",
    "rank": "rank r",
    "alpha": "alpha",
    "alpha_per_rank": "alpha / r",
    "learning_rate": "learning rate (largest of the schedule)",
    "batch_size": "batch size (rows)",
    "effective_batch": "rows per update",
    "gradient_accumulation": "gradient accumulation (batches per update)",
    "epochs": "passes over the rows (epochs)",
    "dropout": "adapter dropout (share)",
    "trial": "trial",
    "seconds": "training time (s)",
}
NAMES = {
    ("rslora", True): "rsLoRA", ("rslora", False): "LoRA", ("method", "full"): "full",
    ("method", "lora"): "LoRA", ("method", "qlora"): "QLoRA",
}  # fmt: skip
LOGS = ("", "x", "y", "xy")
Row = Mapping[str, Any]


def plot_rule(
    rows: Sequence[Row], x: str, y: str = "loss", by: str | None = None, log: str = "",
    ax: Axes | None = None,
) -> Figure:  # fmt: skip
    """What a setting does: a dot for each run (each seed), a line through their means.

    rows: a dict a run.  x: the field that is varied.  y: "loss" (nats per answer token), "score"
    (a share, drawn in per cent) or another field.  by: a field with a line for each of its values.
    log: the axes with a logarithmic scale, "x", "y" or "xy".
    A run whose y is no number, or None, failed: it is a cross at the upper edge.  Raises
    CourseError where there is nothing to draw, and for a field that a row lacks.
    """
    _check_rule(rows, [x, y, *([by] if by else [])], y, log)
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[by] if by else None, []).append(row)
    with course_style():
        figure, ax = _new_axes(ax, 2.9)
        for place, (value, runs) in enumerate(groups.items()):
            label = _name(by, value) if by else None
            _draw_runs(ax, runs, x, y, place, label)
        ax.set(xlabel=_label(x), ylabel=_label(y))
        if "x" in log:
            ax.set_xscale("log")
        if "y" in log:
            _log_losses(ax)
        ax.yaxis.label.set_size(8)
        _mark_values(ax, sorted({row[x] for row in rows}), "x" in log)
        ax.grid(axis="y")
        if by:
            ax.legend()
    return figure


def _check_rule(rows: Sequence[Row], fields: Sequence[str], y: str, log: str) -> None:
    """Raise CourseError for what cannot be drawn."""
    if log not in LOGS:
        raise CourseError(f"log is {log!r} and must be one of {', '.join(map(repr, LOGS))}.")
    for row in rows:
        lacks = [field for field in fields if field not in row]
        if lacks:
            raise CourseError(f"A row lacks {', '.join(lacks)}; it has {', '.join(row)}.")
    if not any(_finite(row[y]) for row in rows):
        raise CourseError(f"There is no {y} to plot: give rows of which one at least has one.")


def _draw_runs(ax: Axes, runs: Sequence[Row], x: str, y: str, place: int, label: str | None):
    """One line: the means over runs with the same x, and every run as a dot."""
    color, factor = LINES[place % len(LINES)], 100 if y == "score" else 1
    marker = MARKERS[place % len(MARKERS)]
    at: dict[Any, list[float]] = {}
    for row in runs:
        if _finite(row[y]):
            at.setdefault(row[x], []).append(factor * row[y])
    means = [(value, statistics.mean(at[value])) for value in sorted(at)]
    style = LINE_STYLES[place % len(LINE_STYLES)]
    ax.plot(*zip(*means, strict=True), color=color, ls=style, label=label) if means else None
    dots = [(value, found) for value, all_found in at.items() for found in all_found]
    if dots:
        ax.plot(*zip(*dots, strict=True), marker, color=color, ms=4.5, alpha=0.55, mec="none")
    failed = [row[x] for row in runs if not _finite(row[y])]
    if failed:
        top = ax.get_xaxis_transform()  # x in data, y as a share of the axes' height
        ax.plot(failed, [0.97] * len(failed), "x", color=color, ms=7, mew=2, transform=top)


def _mark_values(ax: Axes, values: Sequence[Any], log: bool) -> None:
    """A tick at each value that was tried, where there is room for that."""
    if not all(isinstance(value, int | float) for value in values):
        return
    if len(values) > 9 or not (log or len(values) < 7):
        return
    from matplotlib.ticker import NullLocator

    ax.set_xticks(values, [_tick(value) for value in values])
    ax.xaxis.set_minor_locator(NullLocator())


def _log_losses(ax: Axes) -> None:
    """A logarithmic y axis marked 0.05, 0.1, 0.2 ... instead of by powers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    few = high < 5 * low  # 1, 2 and 5 would mark a place or none
    ax.yaxis.set_major_locator(MaxNLocator(5) if few else LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    if 0 < abs(value) < 0.01:
        digits, _, exponent = f"{value:.0e}".partition("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:g}"


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _label(field: str) -> str:
    return LABELS.get(field, field.replace("_", " "))


def _name(field: str, value: Any) -> str:
    """A line's name in the legend."""
    if (field, value) in NAMES:
        return NAMES[field, value]
    if isinstance(value, str):
        return f"{value} {field}" if field == "task" else value
    return f"{field.replace('_', ' ')} {value:g}" if isinstance(value, int | float) else str(value)


def plot_curves(runs: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Training and validation loss of several runs side by side, on one logarithmic scale.

    runs: name -> {"losses": ..., "validation_losses": ...}, as `plot_losses` takes them.
    Raises CourseError where there is none.
    """
    if not runs:
        raise CourseError("There is no run to draw: give a name and its losses for each curve.")
    import matplotlib.pyplot as plt

    with course_style():
        figure, axes = plt.subplots(
            1, len(runs), figsize=(WIDTH, 2.5), sharey=True, squeeze=False, layout="constrained"
        )
        plt.close(figure)
        for place, (ax, (name, run)) in enumerate(zip(axes[0], runs.items(), strict=True)):
            plot_losses(run, ax)
            ax.set(title=name, xlabel="step", ylabel="" if place else "loss (nats per token)")
            _log_losses(ax)
            if ax.get_legend():
                ax.get_legend().remove()
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure


def plot_best_so_far(
    searches: Mapping[str, Sequence[Sequence[float | None]]], ax: Axes | None = None
) -> Figure:
    """The lowest loss that a search has found after each of its trials (nats per answer token).

    searches: name -> for each seed, the losses of the trials in their order; None where a trial
    failed or was stopped.  A thin line is a search, a thick one the mean of several.  Raises
    CourseError where there is no loss.
    """
    found = {name: [_lowest(losses) for losses in runs] for name, runs in searches.items()}
    if not found or not all(runs and all(map(any, runs)) for runs in found.values()):
        raise CourseError("There is no loss to plot: each search needs one complete trial or more.")
    with course_style():
        figure, ax = _new_axes(ax, 2.8)
        for place, (name, runs) in enumerate(found.items()):
            look = {"color": LINES[place % len(LINES)], "drawstyle": "steps-post"}
            style = LINE_STYLES[place % len(LINE_STYLES)]
            for run in runs:
                thin = {"lw": 0.9, "alpha": 0.5} if len(runs) > 1 else {"ls": style, "label": name}
                ax.plot(range(1, len(run) + 1), run, **look, **thin)
            if len(runs) > 1:
                length = min(map(len, runs))
                mean = [statistics.mean(run[i] for run in runs) for i in range(length)]
                ax.plot(range(1, length + 1), mean, ls=style, lw=2.4, label=name, **look)
        ax.set(xlabel="trials so far", ylabel=f"lowest {LABELS['loss']}")
        _log_losses(ax)
        ax.yaxis.label.set_size(8)
        ax.grid(axis="y")
        ax.legend()
    return figure


def _lowest(losses: Sequence[float | None]) -> list[float]:
    """The minimum up to each place; not a number until there is one."""
    lowest, best = [], math.nan
    for loss in losses:
        if _finite(loss):
            best = loss if math.isnan(best) else min(best, loss)
        lowest.append(best)
    return lowest if _finite(best) else []
