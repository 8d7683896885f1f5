"""The claims ledger: every number of the guide that the course follows, beside the measured one.

    from course_utils import claims, display
    display.claims_table(claims.ledger().select("3.2"))

A row says what the guide says, what was measured (read from benchmarks/results, never typed in),
the verdict (computed from both), and why.
"""

from __future__ import annotations

from pathlib import Path

from ..results import RESULTS
from . import guide_data, guide_memory, guide_settings
from .figures import Figure, Measured, Ref
from .ledger import KINDS, Claim, Ledger, Row, build, resolve
from .rules import DEPENDS, FALSE, HOLDS, OFF, OPEN, Rule, Verdict, judge

CLAIMS: tuple[Claim, ...] = (*guide_memory.CLAIMS, *guide_data.CLAIMS, *guide_settings.CLAIMS)


def ledger(results: Path | str = RESULTS) -> Ledger:
    """All rows, with the results as they are now.  Raises CourseError."""
    return build(CLAIMS, Path(results))


__all__ = [
    "CLAIMS",
    "DEPENDS",
    "FALSE",
    "HOLDS",
    "KINDS",
    "OFF",
    "OPEN",
    "RESULTS",
    "Claim",
    "Figure",
    "Ledger",
    "Measured",
    "Ref",
    "Row",
    "Rule",
    "Verdict",
    "build",
    "judge",
    "ledger",
    "resolve",
]
