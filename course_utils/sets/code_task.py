"""What a task of the code set is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course_utils.sets.dice import Dice


@dataclass(frozen=True)
class Task:
    """One function to write.

    Attributes:
        name: the function's name.
        arguments: its parameters, as in the signature.
        does: what it does, continuing "a function that ...".
        body: the reference; one expression, or statements when it holds a line break.
        wrong: bodies that look plausible and are wrong.
        draw: draws one tuple of arguments for a test.
    """

    name: str
    arguments: str
    does: str
    body: str
    wrong: tuple[str, ...]
    draw: Callable[[Dice], tuple[Any, ...]]

    @property
    def signature(self) -> str:
        return f"{self.name}({self.arguments})"

    @property
    def without_names(self) -> str:
        """The body with parameters numbered: equal for functions that differ in names only."""
        body = self.body
        for number, argument in enumerate(self.arguments.split(", ")):
            body = re.sub(rf"\b{argument}\b", f"_{number}", body)
        return body

    @property
    def solution(self) -> str:
        """The reference as source."""
        return self._source(self.body)

    @property
    def wrong_solutions(self) -> list[str]:
        """Wrong functions as source: the family's own, and those that ignore the task."""
        first = self.arguments.split(",")[0]
        return [self._source(body) for body in (*self.wrong, first, "None", "[]", "0")]

    def _source(self, body: str) -> str:
        lines = body.split("\n") if "\n" in body else [f"return {body}"]
        return "\n".join([f"def {self.signature}:", *(f"    {line}" for line in lines)])
