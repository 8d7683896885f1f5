"""The numbers of a running training: what both panels show, computed in one place."""

from __future__ import annotations

import math
import unicodedata
from collections import deque
from dataclasses import dataclass, field

from ..errors import CourseError


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``8 s``, ``3 min 05 s``, ``1 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def lines_of(text: str, width: int, most: int = 1) -> list[str]:
    """Text in at most ``most`` lines of ``width`` Latin letters; Chinese ones count as two."""
    lines, used = [""], 0
    for letter in " ".join(text.split()):
        size = 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if used + size > width:
            if len(lines) == most:
                return [*lines[:-1], lines[-1].rstrip() + "…"]
            head, space, word = lines[-1].rpartition(" ")  # move a word that is begun
            lines[-1:] = [head, word] if space and letter != " " else [lines[-1], ""]
            used = len(lines[-1])
        lines[-1] += letter
        used += size
    return [line.strip() for line in lines]


class RunningAverage:
    """An exponential average over about ``span`` values, corrected for its start (as in Adam)."""

    def __init__(self, span: float) -> None:
        self._keep = 1 - 2 / (1 + span)
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> float:
        """Take in a value and return the average so far."""
        self._count += 1
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        return self._sum / (1 - self._keep**self._count)


def smoothing_span(total_steps: int) -> float:
    """Over how many losses a curve is smoothed: a twelfth of it, but 5 at least."""
    return max(5.0, total_steps / 12)


@dataclass
class Progress:
    """A training so far. Times are seconds of one monotonic clock, given by the caller.

    ``step`` counts finished optimizer steps; memory is in GiB (2**30 bytes).
    """

    title: str
    total_steps: int
    started: float
    memory_limit_gib: float | None = None
    step: int = 0
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    loss: float | None = None
    tokens_per_second: float | None = None
    memory_gib: float | None = None
    message: str = ""
    loss_range: tuple[float, float] = (math.inf, -math.inf)
    ended: float | None = None
    failed: bool = False
    _recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=30))

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise CourseError(
                f"A training of {self.total_steps} steps cannot be shown: give at least 1 step."
            )
        self._average = RunningAverage(smoothing_span(self.total_steps))

    def record(
        self,
        step: int,
        now: float,
        *,
        loss: float | None = None,
        validation_loss: float | None = None,
        tokens_per_second: float | None = None,
        memory_gib: float | None = None,
        message: str | None = None,
    ) -> None:
        """Take in one report; what is None keeps its last value."""
        if step > self.step or not self._recent:
            self._recent.append((now, step))
        self.step = step
        if loss is not None:
            self._add_loss(step, float(loss))
        if validation_loss is not None and math.isfinite(validation_loss):
            self.validation.append((step, float(validation_loss)))
            self._widen(float(validation_loss))
        if tokens_per_second is not None:
            self.tokens_per_second = float(tokens_per_second)
        if memory_gib is not None:
            self.memory_gib = float(memory_gib)
        if message is not None:
            self.message = message

    def _add_loss(self, step: int, loss: float) -> None:
        """Keep a loss and the average at it."""
        self.loss = loss
        if not math.isfinite(loss):  # shown as a number, but it has no place on a curve
            return
        self.steps.append(step)
        self.losses.append(loss)
        self.smoothed.append(self._average.add(loss))
        self._widen(loss)

    def _widen(self, loss: float) -> None:
        low, high = self.loss_range
        self.loss_range = (min(low, loss), max(high, loss))

    @property
    def share(self) -> float:
        """Finished part, from 0 to 1."""
        return min(1.0, max(0.0, self.step / self.total_steps))

    @property
    def complete(self) -> bool:
        return self.step >= self.total_steps and not self.failed

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds a step took of late; None before a step can be timed."""
        if len(self._recent) < 2:
            return None
        (first, low), (last, high) = self._recent[0], self._recent[-1]
        return (last - first) / (high - low) if high > low else None

    @property
    def seconds_left(self) -> float | None:
        pace = self.seconds_per_step
        return None if pace is None else pace * max(0, self.total_steps - self.step)

    def end(self, now: float, message: str = "", *, failed: bool = False) -> None:
        """Close the books; without a message, say how it ended."""
        self.ended, self.failed = now, failed
        took = duration(now - self.started)
        if self.complete:
            ending = f"Finished {self.total_steps:,} steps in {took}."
        else:
            ending = f"Stopped at step {self.step:,} of {self.total_steps:,} after {took}."
        self.message = message or ending

    def clock_text(self) -> str:
        """Time left while running, time taken afterwards."""
        if self.ended is not None:
            return f"took {duration(self.ended - self.started)}"
        left = self.seconds_left
        return "starting" if left is None else f"{duration(left)} left"

    def memory_text(self) -> str:
        if self.memory_gib is None:
            return ""
        used = f"{self.memory_gib:.{2 if self.memory_gib < 10 else 1}f}"
        if self.memory_limit_gib is None:
            return f"{used} GiB"
        return f"{used} / {self.memory_limit_gib:.{1 if self.memory_limit_gib < 100 else 0}f} GiB"

    def numbers_text(self) -> str:
        """Loss, speed and memory in one line, for a terminal."""
        parts = []
        if self.loss is not None:
            shown = self.smoothed[-1] if self.smoothed and math.isfinite(self.loss) else self.loss
            parts.append(f"loss {shown:.3f}")
        if self.validation:
            parts.append(f"validation {self.validation[-1][1]:.3f}")
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:,.0f} tokens/s")
        if self.memory_gib is not None:
            parts.append(self.memory_text())
        return ", ".join(parts)
