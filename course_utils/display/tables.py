"""Answers before and after training, and the claims ledger: HTML in a notebook, text elsewhere."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from course_utils.errors import CourseError

FIELDS = ("question", "expected", "before", "after", "ok_before", "ok_after")
_CELL = "text-align:left;vertical-align:top;padding:6px 10px;white-space:pre-wrap"
_RULE = "border-top:1px solid rgba(128,128,128,.3)"
_VERDICTS = {"holds": "#15935f", "depends": "#b7791f", "not measured yet": "#64748b"}
_MARKS = {True: ("✓", "#15935f", "right"), False: ("✗", "#c53d3d", "wrong")}


class SideBySide:
    """Questions with the expected answer and the model's answers before and after training."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for number, row in enumerate(rows, 1):
            missing = [name for name in FIELDS if name not in row]
            if missing:
                raise CourseError(f"Row {number} has no {', '.join(missing)}: give {FIELDS}.")
        self.rows = [dict(row) for row in rows]

    def summary(self) -> str:
        """How many answers are right, as one sentence."""
        before = sum(bool(row["ok_before"]) for row in self.rows)
        after = sum(bool(row["ok_after"]) for row in self.rows)
        total = len(self.rows)
        return f"Right before training: {before} of {total}. After: {after} of {total}."

    def __str__(self) -> str:
        return "\n\n".join([self.summary(), *map(_block, range(1, len(self.rows) + 1), self.rows)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = ("Question", "Expected", "Before training", "After training")
        top = "".join(f'<th style="{_CELL}">{head}</th>' for head in heads)
        body = "".join(map(_html_row, self.rows))
        return (
            f'<table style="width:100%;table-layout:fixed;border-collapse:collapse">'
            f"<caption style='text-align:left;padding:4px 10px'>{self.summary()}</caption>"
            f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
        )


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> SideBySide:
    """A table of answers; each row is a dict with the keys of ``FIELDS``.

    Everything in it is shown as text, never as HTML. Raises CourseError for a row without a field.
    """
    return SideBySide(rows)


def _block(number: int, row: Mapping[str, Any]) -> str:
    """One question as lines of text: answers may be code, so each stands on lines of its own."""
    parts = [
        (f"{number}.", "", row["question"]),
        ("", "expected", row["expected"]),
        ("", f"before, {_MARKS[bool(row['ok_before'])][2]}", row["before"]),
        ("", f"after, {_MARKS[bool(row['ok_after'])][2]}", row["after"]),
    ]
    lines = []
    for mark, label, value in parts:
        head = f"{mark:<3}{label + ':' if label else '':<15}" if label else f"{mark:<3}"
        lines.append(head + textwrap.indent(str(value).strip(), " " * len(head)).lstrip())
    return "\n".join(line.rstrip() for line in lines)


def _html_row(row: Mapping[str, Any]) -> str:
    plain = [_html_cell(_html_text(row[name])) for name in FIELDS[:2]]
    judged = [_html_answer(row[name], bool(row[f"ok_{name}"])) for name in ("before", "after")]
    return f"<tr>{''.join(plain + judged)}</tr>"


def _html_cell(content: str) -> str:
    return f'<td style="{_CELL};{_RULE};overflow-wrap:anywhere">{content}</td>'


def _html_text(value: Any, style: str = "") -> str:
    """A value as escaped text; several lines are likely code, so their letters stand in columns."""
    text = str(value).strip()
    font = "font-family:monospace;" if "\n" in text else ""
    return f'<div style="{font}{style}">{escape(text)}</div>'


def _html_answer(answer: Any, ok: bool) -> str:
    mark, color, word = _MARKS[ok]
    style = f"float:left;color:{color};font-weight:bold"
    judged = f'<span style="{style}" title="{word}">{mark}</span>'
    return _html_cell(judged + _html_text(answer, "margin-left:1.5em"))


class ClaimsTable:
    """Rows of the claims ledger: what the guide says, what was measured, the verdict, and why."""

    def __init__(self, ledger: Any) -> None:
        self.rows = [row.to_dict() for row in ledger]
        self._text = str(ledger)

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = ("Guide", "It says", "Measured", "Verdict", "Why")
        top = "".join(f'<th style="{_CELL}">{head}</th>' for head in heads)
        body = "".join(map(_claim_row, self.rows))
        style = "width:100%;border-collapse:collapse"
        return f'<table style="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def claims_table(ledger: Any) -> ClaimsTable:
    """A table of `claims.ledger()`, or of what its `select` leaves."""
    return ClaimsTable(ledger)


def _claim_row(row: Mapping[str, Any]) -> str:
    lines = [f"<b>{escape(f['shown'])}</b> {escape(f['what'])}" for f in row["measured"]]
    sources = dict.fromkeys(figure["source"] for figure in row["measured"])
    lines += [f'<span style="opacity:.65">{escape(source)}</span>' for source in sources]
    lines += [escape(f"to come: {name}.json") for name in row["waits_for"]]
    color = _VERDICTS.get(row["kind"], "#c53d3d")
    verdict = f'<b style="color:{color}">{escape(row["verdict"])}</b>'
    cells = (escape(row["section"]), escape(row["says"]), "<br>".join(lines), verdict)
    return f"<tr>{''.join(map(_html_cell, (*cells, escape(row['why']))))}</tr>"
