"""Pictures of what a language model thinks of single tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from course_utils.errors import CourseError

from .plots import _finish_bars, _new_axes
from .style import COLORS, LINES, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def visible(token: str) -> str:
    """A token with its spaces and line ends made visible, as `·` and `↵`."""
    return token.replace(" ", "·").replace("\n", "↵")


def plot_surprise(tokens: Sequence[str], losses: Sequence[float], ax: Axes | None = None) -> Figure:
    """The loss of each token of a text (nats), in reading order.

    Raises CourseError unless there is one loss for each token.
    """
    if not tokens or len(tokens) != len(losses):
        raise CourseError(
            f"There are {len(tokens)} tokens and {len(losses)} losses: give one loss for each "
            "token; the first token of a text has none, so leave it out."
        )
    with course_style():
        figure, ax = _new_axes(ax, 2.4)
        places = range(len(tokens))
        bars = ax.bar(places, list(losses), 0.72, color=COLORS["train"])
        ax.bar_label(bars, fmt="%.1f", padding=2, fontsize=8, color=COLORS["ink"])
        ax.set_xticks(places, map(visible, tokens), rotation=35, ha="right", fontsize=9)
        ax.tick_params(axis="x", labelcolor=COLORS["ink"])
        ax.set(ylabel="loss (nats)", xlabel="token (· is a space)")
        ax.set_ylim(0, 1.15 * max(losses))
        ax.grid(axis="y")
    return figure


def plot_next_tokens(choices: Mapping[str, float], ax: Axes | None = None) -> Figure:
    """The likeliest next tokens with their probabilities (shares from 0 to 1), largest first.

    Raises CourseError where a probability is not between 0 and 1.
    """
    bad = [token for token, share in choices.items() if not 0 <= share <= 1]
    if bad or not choices:
        raise CourseError(f"No probability to plot for {bad or 'any token'}: give shares, 0 to 1.")
    with course_style():
        figure, ax = _new_axes(ax, 0.7 + 0.24 * len(choices))
        ranked = sorted(choices.items(), key=lambda choice: -choice[1])
        names = [visible(token) for token, _ in ranked]
        shares = [100 * share for _, share in ranked]
        bars = ax.barh(range(len(names)), shares, 0.7, color=COLORS["train"])
        ax.bar_label(bars, fmt="%.1f %%", padding=4, fontsize=8.5, color=COLORS["ink"])
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel="probability of being next (%)", xlim=(0, 1.14 * max(shares)))
        _finish_bars(ax)
    return figure


def plot_trade_off(
    points: Mapping[str, tuple[float, float]], *, xlabel: str, ylabel: str, ax: Axes | None = None
) -> Figure:
    """Named points: what was gained (x) against what it cost (y); the first is where all began.

    A dashed line marks the first point's y. Raises CourseError where there are fewer than two.
    """
    if len(points) < 2:
        raise CourseError("A trade-off needs two named points or more: (gain, cost) by name.")
    with course_style():
        figure, ax = _new_axes(ax, 2.9)
        colors = (COLORS["muted"], *LINES)
        for (name, (x, y)), color in zip(points.items(), colors, strict=False):
            ax.plot(x, y, "o", ms=8, color=color, clip_on=False)
            ax.annotate(
                name, (x, y), xytext=(8, 5), textcoords="offset points", color=color, fontsize=9
            )
        ax.axhline(next(iter(points.values()))[1], color=COLORS["muted"], lw=1, ls=(0, (4, 3)))
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.margins(x=0.12, y=0.22)
        ax.grid()
    return figure
