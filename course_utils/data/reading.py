"""Read files and rows into conversations, and write them down again."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import CourseError
from .conversation import Conversation
from .files import RawRows, read_rows
from .formats import (
    EXPECTED,
    FORMATS,
    Row,
    detect,
    is_blank,
    prepared,
    to_conversation,
    used_columns,
)
from .problems import DataError, DataWarning, FileError, Problem, ReadReport, RowError, show


def read(
    path: str | Path,
    format: str = "auto",
    on_error: str = "raise",
    *,
    separator: str | None = None,
    encoding: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Conversation]:
    """Read a data file into conversations.

    JSON, JSONL, CSV, TSV, Parquet, plain text, or a folder written by ``Dataset.save_to_disk``.

    Args:
        path: the file.
        format: of its rows: "alpaca", "messages", "sharegpt", "text", or "auto" to look.
        on_error: "raise" lists all bad rows in one error; "skip" leaves them out and warns with
            their number. :func:`read_report` returns both, good and bad.
        separator: for plain text, what stands between documents, or "blank lines"; without it
            ``<文档分隔符>``, ``<|endoftext|>`` and (.txt only) lines of === or --- are looked for.
        encoding: only for files that are not Unicode, for example "gb18030".
        columns: names to read under another name, for example {"问": "question", "答": "answer"}.

    Raises:
        DataError: if the file cannot be read, a row is bad (unless skipped), or no row is good.
        CourseError: if an argument is none of those above.
    """
    report = read_report(path, format, separator=separator, encoding=encoding, columns=columns)
    return _result(report, on_error)


def read_report(
    path: str | Path,
    format: str = "auto",
    *,
    separator: str | None = None,
    encoding: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> ReadReport:
    """Read as :func:`read` does, but return what is good and what is wrong, and raise nothing.

    Raises:
        CourseError: if ``format`` is unknown.
    """
    _check_format(format)
    try:
        raw = read_rows(Path(path), separator, encoding)
    except FileError as error:
        raw = RawRows(fault=str(error))
    return _report(str(path), raw, format, columns)


def convert(
    rows: Iterable[Any],
    source: str = "rows",
    format: str = "auto",
    on_error: str = "raise",
    *,
    columns: Mapping[str, str] | None = None,
) -> list[Conversation]:
    """Turn rows in memory into conversations.

    Args:
        rows: a list of objects, a ``datasets.Dataset``, or a pandas data frame.
        source: how errors call them.
        format: as in :func:`read`.
        on_error: as in :func:`read`.
        columns: as in :func:`read`.

    Raises:
        DataError: if a row is bad (unless skipped), or no row is good.
        CourseError: if ``rows`` is not a list of rows.
    """
    _check_format(format)
    if isinstance(rows, (Mapping, str, bytes)):
        names = f" with the keys {', '.join(map(str, rows))}" if isinstance(rows, Mapping) else ""
        raise CourseError(f"{source} is one {type(rows).__name__}{names}; pass a list of rows.")
    if hasattr(rows, "iterrows") and hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    raw = RawRows(rows=list(enumerate(rows, start=1)))
    return _result(_report(source, raw, format, columns), on_error)


def save(conversations: Iterable[Conversation], path: str | Path) -> Path:
    """Write conversations as JSONL (UTF-8), in the form that :func:`read` reads back unchanged.

    Dates in a row's info become text.  A file that is there is replaced once all rows are written.
    Raises CourseError for a row that JSON cannot hold.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            for number, conversation in enumerate(conversations, 1):
                file.write(_line(conversation, number) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _line(conversation: Conversation, number: int) -> str:
    """One row as JSON."""
    row: Row = {"messages": list(conversation.messages)}
    if conversation.is_text:
        row = {"text": conversation.answer}
    if conversation.info:
        row["info"] = conversation.info
    try:
        line = json.dumps(row, ensure_ascii=False, default=_date)
        line.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair of surrogates: only an escape can say it
        return json.dumps(row, default=_date)
    except (TypeError, ValueError, RecursionError) as error:
        raise CourseError(
            f"Row {number} cannot be written as JSON ({error}): change its info. Nothing was saved."
        ) from error
    return line


def _date(value: Any) -> str:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} {value!r}")


def _check_format(format: str) -> None:
    """Raise CourseError for a form that there is not."""
    if format not in ("auto", *FORMATS):
        raise CourseError(f"format is '{format}'; it must be auto, {', '.join(FORMATS)}.")


def _result(report: ReadReport, on_error: str) -> list[Conversation]:
    """The good conversations of a report, unless its problems forbid it."""
    if on_error not in ("raise", "skip"):
        raise CourseError(f"on_error is '{on_error}'; it must be raise or skip.")
    if report.problems and (on_error == "raise" or not report.conversations):
        raise DataError(report.problems, report.total)
    if report.problems:
        first = report.problems[0]
        text = f"{report.file}: {len(report.problems):,} problems left out, first {first.in_file()}"
        # 3: the line that called read() or convert().
        warnings.warn(text, DataWarning, stacklevel=3)
    return report.conversations


def _report(
    source: str, raw: RawRows, format: str, columns: Mapping[str, str] | None
) -> ReadReport:
    """Convert all rows; collect every problem."""
    problems = [Problem(source, n, "", reason, shown) for n, reason, shown in raw.broken]
    rows: list[tuple[int, Row]] = []
    for number, value in raw.rows:
        try:
            rows.append((number, prepared(value, columns)))
        except RowError as error:
            problems.append(Problem(source, number, error.field, error.reason, show(value)))
    total = len(raw.rows) + len(raw.broken)
    form = format if format != "auto" else _common_form(rows)
    notes = list(raw.notes)
    conversations: list[Conversation] = []
    if rows and not form:
        problems.append(Problem(source, None, "", _unknown(rows), show(rows[0][1])))
    elif rows:
        conversations = _converted(source, rows, form, problems, notes)
    if raw.fault or not total:
        problems.append(Problem(source, None, "", raw.fault or "has no rows"))
    problems.sort(key=lambda problem: problem.row or 0)  # what concerns the whole file first
    return ReadReport(source, form, total, conversations, problems, notes)


def _common_form(rows: Iterable[tuple[int, Row]]) -> str:
    """The form that most rows have; "" if none has a known one."""
    counts = Counter(detect(row) for _, row in rows)
    counts.pop("", None)
    if set(counts) == {"chat"}:
        return "messages"
    counts.pop("chat", None)
    return counts.most_common(1)[0][0] if counts else ""


def _converted(
    source: str,
    rows: Iterable[tuple[int, Row]],
    form: str,
    problems: list[Problem],
    notes: list[str],
) -> list[Conversation]:
    """The good rows as conversations; adds to ``problems`` and, counted, to ``notes``."""
    conversations = []
    noted, unused = Counter[str](), Counter[str]()
    for number, row in rows:
        try:
            _check_form(row, form)
            conversation, remarks = to_conversation(row, form)
        except RowError as error:
            problems.append(Problem(source, number, error.field, error.reason, show(row)))
            continue
        conversations.append(conversation)
        noted.update(dict.fromkeys(remarks, 1))
        blank = {name for name, value in row.items() if is_blank(value)}
        unused.update(set(row) - used_columns(row, form) - blank)
        if any("\ufffd" in message["content"] for message in conversation.messages):
            noted["U+FFFD stands where a character was lost in an earlier conversion"] += 1
    notes += [f"{text} (rows: {count:,})" for text, count in noted.most_common()]
    if unused:
        notes.append(f"columns not used: {', '.join(sorted(unused))}")
    return conversations


def _check_form(row: Row, form: str) -> None:
    """Raise RowError if a row is not in the form of its file."""
    own = detect(row)
    if own == form or (own == "chat" and form in ("messages", "sharegpt")):
        return
    if form == "text" and "text" in row:
        return  # "text" was asked for, though other columns are there too
    seen = ", ".join(list(row)[:10]) or "none"
    if own:
        raise RowError("", f"is in the {own} form, the file in the {form} form; keep one a file")
    raise RowError("", f"lacks what the {form} form needs; its columns are: {seen}")


def _unknown(rows: list[tuple[int, Row]]) -> str:
    """Why no row is in a known form."""
    row = rows[0][1]
    seen = ", ".join(str(name) for name in list(row)[:10]) or "none"
    hint = "rename them, in the file or with columns={'<yours>': 'instruction', ...} in Python"
    if {"chosen", "rejected"} <= row.keys():
        hint = "chosen and rejected are preference data, for another kind of training"
    elif {"role", "content"} <= row.keys() or {"from", "value"} <= row.keys():
        hint = "single turns: put the turns of a conversation into one list under 'messages'"
    return f"has the columns {seen}; expected are {EXPECTED}; {hint}"
