"""The picture of the live panel: drawn once, then only its moving parts."""

from __future__ import annotations

import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from .progress import Progress, lines_of
from .style import COLORS, course_style, encode_png

WIDTH, HEIGHT = 720, 310
"""Shown size in CSS pixels; drawn with ``SCALE`` times as many, to be sharp on dense screens."""
SCALE = 1.5
BAR = (0.022, 0.902)  # left and right end of the progress bar, as shares of the width
COLUMN = (0.735, 0.978)  # left and right end of the numbers
ROWS = {"train": 0.70, "validation": 0.555, "speed": 0.41, "memory": 0.265}


class PanelFigure:
    """One figure whose axes are drawn once; a frame restores them and draws bar, lines, numbers.

    It is made without pyplot, so the learner's own figures and settings stay as they are.
    """

    def __init__(self, progress: Progress) -> None:
        self._background = None
        self._limits = (math.inf, -math.inf)
        self._moving: list = []
        with course_style():
            size = (WIDTH / 100, HEIGHT / 100)
            self.figure = Figure(figsize=size, dpi=100 * SCALE)
            self._canvas = FigureCanvasAgg(self.figure)
            self._add_header(progress)
            self._add_curve(progress)
            self._add_numbers()
            self._status = self._text(BAR[0] - 0.005, 0.03, "", size=8.5, color=COLORS["muted"])

    def png(self, progress: Progress, *, final: bool = False) -> bytes:
        """The panel as it stands, as PNG bytes: a fast frame, or a small final picture."""
        self._fit(progress)
        self._move(progress)
        with course_style():
            if self._background is None:
                self._canvas.draw()  # leaves the moving parts out: they are marked as animated
                self._background = self._canvas.copy_from_bbox(self.figure.bbox)
            self._canvas.restore_region(self._background)
            for artist in self._moving:
                self.figure.draw_artist(artist)
            return encode_png(self._canvas.buffer_rgba(), colors=96 if final else None)

    # ------------------------------------------------------------------ built once

    def _text(self, x: float, y: float, text: str, *, size: float, color: str, **more):
        """A text in figure coordinates that changes from frame to frame."""
        artist = self.figure.text(x, y, text, fontsize=size, color=color, animated=True, **more)
        self._moving.append(artist)
        return artist

    def _bar(self, left: float, right: float, y: float, width: float, color: str) -> Line2D:
        """A bar with round ends: a grey track and, returned, the line that grows on it."""
        style = {"transform": self.figure.transFigure, "solid_capstyle": "round", "lw": width}
        self.figure.add_artist(Line2D([left, right], [y, y], color=COLORS["track"], **style))
        line = Line2D([], [], color=color, animated=True, **style)
        self.figure.add_artist(line)
        self._moving.append(line)
        return line

    def _add_header(self, progress: Progress) -> None:
        title = lines_of(progress.title or "Training", 44)[0]
        self.figure.text(BAR[0] - 0.005, 0.925, title, fontsize=11, weight="bold")
        self._clock = self._text(COLUMN[1], 0.925, "", size=9, color=COLORS["muted"], ha="right")
        self._progress = self._bar(*BAR, 0.868, 6, COLORS["train"])
        self._percent = self._text(
            COLUMN[1], 0.868, "", size=9, color=COLORS["ink"], ha="right", va="center_baseline"
        )

    def _add_curve(self, progress: Progress) -> None:
        axes = self.figure.add_axes((0.085, 0.25, 0.605, 0.53))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats per token)")
        axes.yaxis.set_label_coords(-0.09, 0.5)
        axes.set_xlim(0, progress.total_steps)
        axes.set_ylim(0, 1)
        axes.tick_params(labelleft=False)  # until there is a loss to measure
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y")
        self._raw = axes.plot([], [], lw=1, alpha=0.35, color=COLORS["train"], animated=True)[0]
        self._smooth = axes.plot([], [], lw=2.2, color=COLORS["train"], animated=True)[0]
        self._validation = axes.plot(
            [], [], color=COLORS["validation"], lw=1.2, ls=(0, (3, 2)), marker="D", ms=5,
            mec="white", mew=0.8, animated=True, clip_on=False, zorder=3,
        )[0]  # fmt: skip
        self._axes = axes
        self._moving += [self._raw, self._smooth, self._validation]

    def _add_numbers(self) -> None:
        """The column at the right; its line and its diamond are the legend of the curve."""
        names = {"train": "train loss", "validation": "validation loss"}
        names |= {"speed": "speed", "memory": "memory"}
        self._numbers = {}
        for name, y in ROWS.items():
            indent = 0.035 if name in ("train", "validation") else 0
            self.figure.text(
                COLUMN[0] + indent, y, names[name], fontsize=8.5, color=COLORS["muted"]
            )
            self._numbers[name] = self._text(
                COLUMN[1], y, "–", size=9, color=COLORS["ink"], weight="bold", ha="right"
            )
        self._legend_key("train", lw=2.2)
        self._legend_key("validation", lw=1.2, ls=(0, (3, 2)), marker="D")
        self._memory = self._bar(COLUMN[0] + 0.006, COLUMN[1] - 0.006, 0.205, 5, COLORS["memory"])

    def _legend_key(self, name: str, marker: str = "", **line) -> None:
        xs = [COLUMN[0], COLUMN[0] + 0.013, COLUMN[0] + 0.026]
        self.figure.add_artist(
            Line2D(
                xs, [ROWS[name] + 0.013] * 3, color=COLORS[name], transform=self.figure.transFigure,
                marker=marker, markevery=[1], ms=5, mec="white", mew=0.8, **line,
            )
        )  # fmt: skip

    # ------------------------------------------------------------------ changed in each frame

    def _fit(self, progress: Progress) -> None:
        """Widen the axes where a point would fall outside; only then are they drawn anew."""
        if progress.step > self._axes.get_xlim()[1]:
            self._axes.set_xlim(0, progress.step)
            self._background = None
        low, high = progress.loss_range
        if low >= self._limits[0] and high <= self._limits[1] or low > high:
            return
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 0.1
        # Losses are not negative, so neither is the axis; room below spares the next few redraws.
        self._limits = (max(min(0.0, low), low - 2 * margin), high + margin / 2)
        self._axes.set_ylim(*self._limits)
        self._axes.tick_params(labelleft=True)
        self._background = None

    def _move(self, progress: Progress) -> None:
        self._raw.set_data(progress.steps, progress.losses)
        self._smooth.set_data(progress.steps, progress.smoothed)
        self._validation.set_data(
            [step for step, _ in progress.validation], [loss for _, loss in progress.validation]
        )
        self._move_bar(progress)
        self._write_numbers(progress)
        self._status.set_text(_status(progress))

    def _move_bar(self, progress: Progress) -> None:
        end = BAR[0] + (BAR[1] - BAR[0]) * progress.share
        self._progress.set_data([BAR[0], end], [0.868, 0.868])
        self._progress.set_visible(progress.step > 0)
        color = COLORS["train"]
        if progress.ended is not None:
            color = COLORS["good"] if progress.complete else COLORS["warn"]
        if progress.failed:
            color = COLORS["bad"]
        self._progress.set_color(color)
        self._status.set_color(COLORS["muted"] if progress.ended is None else color)
        self._percent.set_text(f"{100 * progress.share:.0f} %")
        self._clock.set_text(
            f"step {progress.step:,} of {progress.total_steps:,}  ·  {progress.clock_text()}"
        )

    def _write_numbers(self, progress: Progress) -> None:
        numbers = self._numbers
        if progress.loss is not None:
            finite = math.isfinite(progress.loss)
            shown = progress.smoothed[-1] if finite else progress.loss
            numbers["train"].set_text(f"{shown:.3f}")
            numbers["train"].set_color(COLORS["train"] if finite else COLORS["bad"])
        if progress.validation:
            numbers["validation"].set_text(f"{progress.validation[-1][1]:.3f}")
            numbers["validation"].set_color(COLORS["validation"])
        if progress.tokens_per_second is not None:
            numbers["speed"].set_text(f"{progress.tokens_per_second:,.0f} tokens/s")
        if progress.memory_gib is not None:
            numbers["memory"].set_text(progress.memory_text())
            self._move_memory(progress)

    def _move_memory(self, progress: Progress) -> None:
        if not progress.memory_limit_gib:
            return
        share = min(1.0, progress.memory_gib / progress.memory_limit_gib)
        left, right = COLUMN[0] + 0.006, COLUMN[1] - 0.006
        self._memory.set_data([left, left + (right - left) * share], [0.205, 0.205])
        self._memory.set_color(COLORS["bad"] if share > 0.9 else COLORS["memory"])


def _status(progress: Progress) -> str:
    """The line at the bottom: the caller's message, else the pace."""
    if progress.message:
        return "\n".join(lines_of(progress.message, 104, most=2))
    pace = progress.seconds_per_step
    return "" if pace is None else f"{pace:.2f} s per step"
