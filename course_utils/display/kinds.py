"""The picture of a case study: what each kind of task gained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .plots import WIDTH, _check_scores, _finish_bars
from .style import COLORS, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Shares = Mapping[str, float]


def plot_kinds(groups: Mapping[str, tuple[Shares, Shares]]) -> Figure:
    """A line from the score before to the score after for each kind of task, best first.

    groups: title -> (before, after), shares from 0 to 1 by kind; each group is a panel. Raises
    CourseError where names differ or a score is not a share.
    """
    for before, after in groups.values():
        _check_scores(before, after)
    sizes = [len(before) for before, _ in groups.values()]
    with course_style():
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(
            len(groups), 1, figsize=(WIDTH, 0.9 + 0.4 * len(groups) + 0.21 * sum(sizes)),
            sharex=True, squeeze=False, layout="constrained",
            gridspec_kw={"height_ratios": [size + 1 for size in sizes]},
        )  # fmt: skip
        plt.close(figure)
        for ax, (title, (before, after)) in zip(axes[:, 0], groups.items(), strict=True):
            _draw(ax, title, before, after)
        axes[-1, 0].set(xlabel="right answers on held-out tasks (%)", xlim=(-3, 103))
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def _draw(ax: Axes, title: str, before: Shares, after: Shares) -> None:
    names = sorted(after, key=lambda kind: (-after[kind], kind))
    places = range(len(names))
    start, end = ([100 * shares[name] for name in names] for shares in (before, after))
    ax.hlines(places, start, end, color=COLORS["after"], lw=2.5, alpha=0.35)
    ax.scatter(start, places, s=38, color=COLORS["before"], label="before", zorder=3)
    ax.scatter(end, places, s=38, color=COLORS["after"], label="after", zorder=4, marker="D")
    ax.set_yticks(places, names)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_title(title)
    _finish_bars(ax)
