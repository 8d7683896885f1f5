"""What a claim says, as a rule that figures keep or break; the verdict follows from it.

    holds                  all judged figures are within the rule and its tolerance
    off by a factor x      none is; x is how far beyond the stated bound
    depends                some are: on the case that the figure names
    does not hold          none is, and no factor would say more (yes or no; 0 of something)
    not measured yet       there is no figure

Memory: the guide writes GB, and we measure GiB (2^30 bytes). Its figures are read as GiB, which is
the kinder reading (28 GB are 26.1 GiB) and lies within the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

HOLDS, OFF, DEPENDS, FALSE, OPEN = "holds", "off", "depends", "does not hold", "not measured yet"
ABOUT, BOUND = 0.25, 0.10  # tolerances: of a figure the guide calls rough, of a stated bound


@dataclass(frozen=True)
class Rule:
    """Values from low to high, each allowed to be `tolerance` (a share) beyond it.

    implied: the guide does not write the bound, it follows from what it says.
    """

    low: float | None
    high: float | None
    tolerance: float = BOUND
    implied: bool = False

    def factor(self, value: float | bool) -> float:
        """1 if the value is within; else how many times it is beyond the bound."""
        if isinstance(value, bool):
            return 1.0 if value else math.inf
        slack = 1 + self.tolerance
        if self.high is not None and value > self.high * slack:
            return value / self.high if self.high > 0 else math.inf
        if self.low is not None and value < self.low / slack:
            return self.low / value if value > 0 else math.inf
        return 1.0

    @property
    def bounds(self) -> list[float]:
        """The figures that the guide states."""
        found = [] if self.implied else [self.low, self.high]
        return [bound for bound in dict.fromkeys(found) if bound is not None]


@dataclass(frozen=True)
class Verdict:
    """kind: one of the five words above; text: with the factor."""

    kind: str
    text: str
    factors: tuple[float, ...] = ()


def judge(rule: Rule, values: Sequence[float | bool]) -> Verdict:
    """The verdict that the figures give."""
    if not values:
        return Verdict(OPEN, OPEN)
    factors = tuple(rule.factor(value) for value in values)
    kept = [factor == 1.0 for factor in factors]
    if all(kept):
        return Verdict(HOLDS, HOLDS, factors)
    if any(kept):
        return Verdict(DEPENDS, DEPENDS, factors)
    if math.inf in factors:
        return Verdict(FALSE, FALSE, factors)
    shown = list(dict.fromkeys(_factor(f) for f in (min(factors), max(factors))))
    return Verdict(OFF, f"off by a factor {' to '.join(shown)}", factors)


def _factor(value: float) -> str:
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def between(low: float, high: float) -> Rule:
    """ "4 to 6 GB"."""
    return Rule(low, high)


def about(value: float, tolerance: float = ABOUT) -> Rule:
    """ "about 28 GB"."""
    return Rule(value, value, tolerance)


def at_least(value: float, *, tolerance: float = BOUND, implied: bool = False) -> Rule:
    """ "1,000 samples or more are needed"; a relation such as "saves memory" implies its bound."""
    return Rule(value, None, tolerance, implied)


def at_most(value: float, *, tolerance: float = BOUND, implied: bool = False) -> Rule:
    """ "fits 10 GB"."""
    return Rule(None, value, tolerance, implied)


def so() -> Rule:
    """A statement that is true or false."""
    return Rule(None, None)
