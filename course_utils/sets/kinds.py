"""What a kind of task of the instruction set is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course_utils.sets.dice import Dice

Example = tuple[str, str, dict[str, Any]]  # input, output, check


@dataclass(frozen=True)
class Kind:
    """One kind of task.

    Attributes:
        name: stands in `info["kind"]`.
        count: rows to generate, each with an input of its own.
        phrases: ways to put the instruction.
        make: draws one example.
        language: of instruction and answer, "en" or "zh".
    """

    name: str
    count: int
    phrases: tuple[str, ...]
    make: Callable[[Dice], Example]
    language: str = "en"


def exact(value: str) -> dict[str, Any]:
    """The check for one right spelling."""
    return {"type": "exact", "value": value}


def choice(value: str) -> dict[str, Any]:
    """The check for a label."""
    return {"type": "choice", "value": value}
