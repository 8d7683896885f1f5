"""What is wrong with a file or a row, said so that its owner can put it right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import CourseError
from .conversation import Conversation

SHOWN_LENGTH = 120
LISTED = 20


class DataWarning(UserWarning):
    """Rows were left out on request; the text counts them."""


class RowError(Exception):
    """Inside this package: why one row cannot become a conversation."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(reason)
        self.field = field
        self.reason = reason


class FileError(Exception):
    """Inside this package: why a file as a whole, or from some place on, cannot be read."""


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a file or a row from being used.

    Attributes:
        file: the file as it was named, or the name given to rows in memory.
        row: counted from 1 as its owner sees it: the line of a JSONL file, the spreadsheet row of a
            CSV file (its header is row 1), else the place in the list; None for a whole file.
        field: the column, or a place such as ``conversations[3].value`` (turns counted from 1);
            "" if it is the row as a whole.
        reason: what is wrong, as the rest of a sentence about the row or the field.
        shown: the row itself on one line, shortened; "" for a whole file.
    """

    file: str
    row: int | None
    field: str
    reason: str
    shown: str = ""

    def __str__(self) -> str:
        """File, row, field, reason and the row, on one line."""
        return f"{self.file}{', ' if self.row else ': '}{self.in_file()}"

    def in_file(self) -> str:
        """The same without the file's name, for a list under that name."""
        place = f"row {self.row}" if self.row else ""
        if self.field:
            place += f", field '{self.field}'"
        shown = f" | {self.shown}" if self.shown else ""
        return f"{place}{': ' if place else ''}{self.reason}{shown}"

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


class DataError(CourseError):
    """All that is wrong with one file; the message lists the first 20 problems.

    Attributes:
        problems: every problem, in the order of the file.
    """

    def __init__(self, problems: Sequence[Problem], total: int = 0) -> None:
        """Collect ``problems`` of a file with ``total`` rows."""
        self.problems = list(problems)
        super().__init__(_message(self.problems, total))


@dataclass(frozen=True)
class ReadReport:
    """What came out of a file, and what did not.

    Attributes:
        file: the file as it was named.
        format: "alpaca", "messages", "sharegpt", "text", or "" where none was found.
        total: rows seen.
        conversations: the good rows, in order.
        problems: the bad ones, and what is wrong with the file as a whole.
        notes: what was read differently from how it stands, or deserves a look.
    """

    file: str
    format: str
    total: int
    conversations: list[Conversation] = field(repr=False)
    problems: list[Problem]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Counts, problems and notes as plain JSON values (without the conversations)."""
        return {
            "file": self.file,
            "format": self.format,
            "total": self.total,
            "good": len(self.conversations),
            "bad": len(self.problems),
            "problems": [problem.to_dict() for problem in self.problems],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """A summary line, the notes, and the first problems."""
        form = f" in the {self.format} form" if self.format else ""
        lines = [f"{self.file}: {len(self.conversations):,} of {self.total:,} rows are good{form}"]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines + _listed(self.problems))


def show(row: object) -> str:
    """A row on one line of at most 120 characters."""
    if isinstance(row, str):
        text = row
    else:
        try:
            text = json.dumps(row, ensure_ascii=False, default=repr)
        except (TypeError, ValueError, RecursionError):
            # Keys that are no text, a value that holds itself: still worth showing.
            text = f"<{type(row).__name__}>"
    # A lone surrogate would make the message itself impossible to print.
    text = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 1] + "…"


def _message(problems: Sequence[Problem], total: int) -> str:
    """The text of a DataError."""
    hint = ""
    if total > len(problems):
        hint = "on_error='skip' (train --skip-bad on the command line) leaves bad rows out"
    if len(problems) == 1:
        return f"{problems[0]}{f' ({hint})' if hint else ''}"
    count = f"{len(problems):,} problems" + (f" in {total:,} rows" if total else "")
    lines = [f"{problems[0].file}: {count}:", *_listed(problems)]
    return "\n".join([*lines, f"Put these rows right; {hint}."] if hint else lines)


def _listed(problems: Sequence[Problem]) -> list[str]:
    """The first 20 problems, a line each, and how many more there are."""
    lines = [f"  {problem.in_file()}" for problem in problems[:LISTED]]
    if len(problems) > LISTED:
        lines.append(f"  ... and {len(problems) - LISTED:,} more")
    return lines
