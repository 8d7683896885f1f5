"""The instruction set: rows of the Alpaca form whose answers a program checks.

Written for this course by a seeded generator; English and, for a fifth of the rows, Chinese. No
input appears twice within a kind, so a held-out row is not a training row in other words.
"""

from __future__ import annotations

from typing import Any

from course_utils.data import normalize
from course_utils.sets.dice import Dice
from course_utils.sets.instruction_en import KINDS as ENGLISH
from course_utils.sets.instruction_zh import KINDS as CHINESE
from course_utils.sets.kinds import Kind

KINDS = ENGLISH + CHINESE


def generate() -> list[dict[str, Any]]:
    """All rows, kinds mixed, in an order that is the same on every machine."""
    rows = [row for kind in KINDS for row in rows_of(kind)]
    return Dice("instruction-order").sample(rows, len(rows))


def rows_of(kind: Kind) -> list[dict[str, Any]]:
    """The rows of one kind, each with another input."""
    dice = Dice(f"instruction-{kind.name}")
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < kind.count:
        text, output, check = kind.make(dice)
        row = {"instruction": dice.pick(kind.phrases), "input": text, "output": output}
        info = {"set": "instruction", "kind": kind.name, "language": kind.language, "check": check}
        rows.setdefault(normalize(text), row | {"info": info})
    return list(rows.values())
