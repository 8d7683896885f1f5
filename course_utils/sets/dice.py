"""Seeded choices that come out the same on every machine and in every Python version.

Of Python's generators only `random()` is promised to repeat across versions (documentation of the
`random` module, "Notes on Reproducibility"), so every choice here is made from it alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class Dice:
    """A seeded source of choices."""

    def __init__(self, seed: str | int) -> None:
        self._random = random.Random(f"course-{seed}")

    def number(self, low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def pick(self, items: Sequence[Item]) -> Item:
        """One of the items."""
        return items[self.number(0, len(items) - 1)]

    def chance(self, share: float) -> bool:
        """True in this share (0 to 1) of the calls."""
        return self._random.random() < share

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items, in random order."""
        left = list(items)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(count)]
