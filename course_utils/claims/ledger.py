"""The ledger: each claim of the guide beside what was measured, with the verdict that follows."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CourseError
from ..results import RESULTS
from .figures import Figure, Measured, files
from .rules import DEPENDS, FALSE, HOLDS, OFF, OPEN, Rule, Verdict, judge

KINDS = (HOLDS, OFF, DEPENDS, FALSE, OPEN)


@dataclass(frozen=True)
class Claim:
    """What the guide says, and how it is judged.

    id: section and a word.  sections: all places that say it.  says: in our words, with its
    figure and unit.  why: verdict kind -> one sentence; a kind without a sentence fails the tests,
    so that no explanation outlives the figures that it explained.
    awaits: the results file that will answer it, and `plan`: what will be measured there.
    """

    id: str
    sections: str
    topic: str
    says: str
    rule: Rule | None = None
    figures: tuple[Figure, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)
    awaits: str | None = None
    plan: str = ""

    def __post_init__(self) -> None:
        if bool(self.figures) == bool(self.awaits) or bool(self.figures) != bool(self.rule):
            raise CourseError(f"Claim {self.id} needs a rule and figures, or a file it awaits.")

    @property
    def sources(self) -> list[str]:
        """Results files that it is read from, or will be."""
        return [self.awaits] if self.awaits else files(self.figures)


@dataclass(frozen=True)
class Row:
    """A claim with its figures as they are measured now."""

    claim: Claim
    measured: tuple[Measured, ...]
    missing: tuple[str, ...]
    verdict: Verdict

    @property
    def why(self) -> str:
        """The sentence for this verdict; for an open row, what will be measured."""
        if self.verdict.kind == OPEN:
            return self.claim.plan or f"Waits for {', '.join(self.missing)}.json."
        return self.claim.why.get(self.verdict.kind, "")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and for the table."""
        claim = self.claim
        return {
            "id": claim.id,
            "section": claim.sections,
            "topic": claim.topic,
            "says": claim.says,
            "measured": [figure.to_dict() for figure in self.measured],
            "verdict": self.verdict.text,
            "kind": self.verdict.kind,
            "why": self.why,
            "waits_for": list(self.missing),
        }


@dataclass(frozen=True)
class Ledger:
    """Rows, to be printed, shown in a notebook (`display.claims_table`), or picked from."""

    rows: tuple[Row, ...]

    def __iter__(self):
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, id: str) -> Row:
        """The row of this id; raises CourseError if there is none."""
        for row in self.rows:
            if row.claim.id == id:
                return row
        raise CourseError(f"The ledger has no row {id!r}: `claims` lists the ids.")

    def select(
        self,
        section: str | None = None,
        *,
        topic: str | None = None,
        verdict: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> Ledger:
        """Rows of a section of the guide ("3" takes 3.1 too), a topic, a kind of verdict, or ids.

        Raises CourseError where nothing is left, naming what there is.
        """
        rows = [self[id] for id in ids] if ids is not None else list(self.rows)
        if section is not None:
            rows = [row for row in rows if _in_section(row.claim.sections, section)]
        if topic is not None:
            rows = [row for row in rows if row.claim.topic == topic]
        if verdict is not None:
            rows = [row for row in rows if row.verdict.kind == verdict]
        if not rows:
            topics = ", ".join(dict.fromkeys(row.claim.topic for row in self.rows))
            raise CourseError(
                f"No row of the ledger fits: sections are 1 to 10, topics {topics}, verdicts "
                f"{', '.join(KINDS)}."
            )
        return Ledger(tuple(rows))

    def counts(self) -> dict[str, int]:
        """Kind of verdict -> rows."""
        found = Counter(row.verdict.kind for row in self.rows)
        return {kind: found[kind] for kind in KINDS if found[kind]}

    def summary(self) -> str:
        """One sentence."""
        parts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        return f"{len(self)} claims of the guide: {parts}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"counts": self.counts(), "rows": [row.to_dict() for row in self.rows]}

    def __str__(self) -> str:
        return "\n\n".join([self.summary(), *map(_block, self.rows)])

    __repr__ = __str__


def _in_section(sections: str, wanted: str) -> bool:
    return any(s == wanted or s.startswith(f"{wanted}.") for s in sections.split(", "))


def _block(row: Row) -> str:
    """One row as lines of text."""
    lines = [f"{row.claim.id} (guide {row.claim.sections})"]
    lines += _wrapped("says", row.claim.says)
    for number, figure in enumerate(row.measured):
        lines += _wrapped("" if number else "measured", f"{figure.shown}: {figure.what}")
    for source in dict.fromkeys(figure.source for figure in row.measured):
        lines += _wrapped("", f"[{source}]")
    if row.missing:
        lines += _wrapped("to come", ", ".join(f"{name}.json" for name in row.missing))
    lines += _wrapped("verdict", row.verdict.text) + _wrapped("why", row.why)
    return "\n".join(lines)


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, 96, initial_indent=f"  {label:<10}", subsequent_indent=" " * 12
    )  # fmt: skip


def resolve(claim: Claim, results: Path = RESULTS) -> Row:
    """The claim's figures and verdict; raises CourseError for a reference that leads nowhere."""
    if claim.awaits:
        return Row(claim, (), (claim.awaits,), judge(Rule(None, None), ()))
    missing = [name for figure in claim.figures for name in figure.missing(results)]
    ready = [figure for figure in claim.figures if not figure.missing(results)]
    measured = tuple(figure.measured(results) for figure in ready)
    values = [figure.value for figure in measured if figure.judged]
    # half of the figures could give another verdict than all of them
    verdict = judge(claim.rule, [] if missing else values)
    return Row(claim, measured, tuple(dict.fromkeys(missing)), verdict)


def build(claims: Iterable[Claim], results: Path) -> Ledger:
    """The ledger of these claims, with the results of this folder.

    Raises CourseError where the folder is not there.
    """
    if not results.is_dir():
        raise CourseError(
            f"The folder {results} is not here, and the ledger reads its figures from it: install "
            "the course again, or clone its repository."
        )
    return Ledger(tuple(resolve(claim, results) for claim in claims))
