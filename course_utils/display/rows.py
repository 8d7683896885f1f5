"""Rows of training data as a learner sees them: labels, layouts of batches, scores by size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from course_utils.errors import CourseError

from .plots import WIDTH, _finish_bars, _new_axes
from .style import COLORS, LINES, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {"padding": "#f0c9a6", "prompt": "#a3afbf", "answer": "#15935f"}
"""The parts of a batch and their colors: of what is computed, only the answers are learnt."""
_ALIKE, _EDGE = ("#7f8ea3", "#0f7a4e"), "#ffffff"
_CHIP = "border-radius:3px;padding:1px 3px;white-space:pre-wrap"
_STYLES = {
    False: f"{_CHIP};background:rgba(128,140,160,.16);opacity:.75",
    True: f"{_CHIP};background:rgba(21,147,95,.28)",
}
_WORDS = {False: "masked ", True: "trained"}


class Labels:
    """An encoded row with its labels made visible: what is trained on, and what is masked."""

    def __init__(self, runs: Sequence[tuple[str, bool]]) -> None:
        self.runs = [(str(text), bool(trained)) for text, trained in runs]

    def __str__(self) -> str:
        return "\n".join(f"{_WORDS[trained]} | {text!r}" for text, trained in self.runs)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        legend = "".join(
            f'<span style="{_STYLES[kind]}">{word}</span> '
            for kind, word in ((False, "masked: read, not learnt"), (True, "trained on"))
        )
        row = "".join(
            f'<span style="{_STYLES[trained]}" title="{_WORDS[trained].strip()}">'
            f"{_shown(text)}</span>"
            for text, trained in self.runs
        )
        return (
            f'<div style="font-size:85%">{legend}</div>'
            f'<div style="font-family:monospace;line-height:1.7;margin-top:4px">{row}</div>'
        )


def show_labels(runs: Sequence[tuple[str, bool]]) -> Labels:
    """Color the runs that `encoding.show_labels` gives: (text, whether it is trained on).

    Everything is shown as text, never as HTML; a line break also as a sign.
    """
    return Labels(runs)


def _shown(text: str) -> str:
    return escape(text).replace("\n", '<span style="opacity:.5">↵</span><br>')


def plot_groups(
    values: Mapping[str, Mapping[str, float]],
    label: str,
    number: str = "%.1f",
    ax: Axes | None = None,
) -> Figure:
    """Grouped horizontal bars: `values` holds, for each name on the axis, a value per series.

    label: of the axis, with its unit.  number: how a value is written at its bar.  Raises
    CourseError where a name lacks a series.
    """
    series = list(next(iter(values.values()), {}))
    if not series or any(list(row) != series for row in values.values()):
        raise CourseError(f"Every name needs a value for each of {series or 'some series'}.")
    with course_style():
        figure, ax = _new_axes(ax, 0.75 + len(values) * (0.12 + 0.17 * len(series)))
        height = 0.8 / len(series)
        for place, name in enumerate(series):
            ys = [i + (place - (len(series) - 1) / 2) * height for i in range(len(values))]
            bars = ax.barh(
                ys, [row[name] for row in values.values()], 0.9 * height,
                color=LINES[place % len(LINES)], label=name,
            )  # fmt: skip
            ax.bar_label(bars, fmt=number, padding=3, fontsize=8, color=COLORS["ink"])
        ax.set_yticks(range(len(values)), list(values))
        ax.set(
            xlabel=label, xlim=(0, 1.12 * max(v for row in values.values() for v in row.values()))
        )
        _finish_bars(ax)
        ax.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=len(series), borderaxespad=0.2
        )  # fmt: skip
    return figure


def plot_layouts(
    layouts: Sequence[Any], rows: Sequence[tuple[int, int]], sequences: int = 8
) -> Figure:
    """The first `sequences` of each layout as bars of prompt, answer and padding.

    layouts: as `padding.layout` gives them.  rows: (prompt, answer) tokens of each row, by index.
    """
    if not layouts or not rows:
        raise CourseError("There is nothing to draw: give layouts, and the rows' token counts.")
    with course_style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            len(layouts), 1, figsize=(WIDTH, 0.6 + 1.05 * len(layouts)), sharex=True,
            layout="constrained", squeeze=False,
        )  # fmt: skip
        plt.close(figure)
        for ax, one in zip(axes[:, 0], layouts, strict=True):
            _draw_layout(ax, one, rows, sequences)
        width = max(width for one in layouts for _, width in one.sequences[:sequences])
        axes[-1, 0].set(xlabel="position in the sequence (tokens)", xlim=(0, width))
        _legend(figure)
    return figure


def _draw_layout(ax: Axes, one: Any, rows: Sequence[tuple[int, int]], sequences: int) -> None:
    for line, (members, width) in enumerate(one.sequences[:sequences]):
        left = 0
        for number, index in enumerate(members):
            room = width - left
            prompt = min(rows[index][0], room)
            answer = min(rows[index][1], room - prompt)
            for part, size in (("prompt", prompt), ("answer", answer)):
                color = PARTS[part] if number % 2 == 0 else _ALIKE[part == "answer"]
                ax.barh(line, size, 0.86, left=left, color=color)
                left += size
        ax.barh(line, width - left, 0.86, left=left, color=PARTS["padding"])
    share = f"{one.way}: {100 * one.padding_share:.0f} % of all positions are padding"
    ax.set_title(share, fontsize=9, fontweight="normal")
    ax.set(yticks=[], ylim=(sequences - 0.4, -0.6))
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(color=PARTS[name], label=name) for name in ("prompt", "answer", "padding")]
    figure.legend(handles=patches, loc="outside upper right", ncols=3)


def plot_by_size(
    panels: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], xlabel: str
) -> Figure:
    """Values against a size, one panel beside the other: a point a seed, a line through the means.

    panels: axis label -> name of the line -> size -> values, one for each seed.  The sizes stand at
    equal distances.  Raises CourseError where there is nothing to draw.
    """
    if not panels or not all(lines and all(lines.values()) for lines in panels.values()):
        raise CourseError("There is nothing to draw: give each panel a line with sizes and values.")
    with course_style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            1, len(panels), figsize=(WIDTH, 2.8), layout="constrained", squeeze=False
        )  # fmt: skip
        plt.close(figure)
        for ax, (label, lines) in zip(axes[0], panels.items(), strict=True):
            _draw_sizes(ax, lines)
            ax.set(xlabel=xlabel, ylabel=label, ylim=(0, None))
            ax.grid(axis="y")
            if len(lines) > 1:
                ax.legend()
    return figure


def _draw_sizes(ax: Axes, lines: Mapping[str, Mapping[int, Sequence[float]]]) -> None:
    sizes = sorted({size for line in lines.values() for size in line})
    place = {size: number for number, size in enumerate(sizes)}
    styles = zip(LINES, ("-", (0, (5, 2)), (0, (1, 1.2))), strict=False)
    for (name, line), (color, style) in zip(lines.items(), styles, strict=False):
        ordered = sorted(line)
        means = [sum(line[size]) / len(line[size]) for size in ordered]
        ax.plot([place[s] for s in ordered], means, color=color, ls=style, label=name)
        for size in ordered:
            values = list(line[size])
            ax.plot([place[size]] * len(values), values, "o", color=color, ms=4, alpha=0.55, mew=0)
    ax.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
