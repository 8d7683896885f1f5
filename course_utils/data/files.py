"""Files of any known kind -> rows, each with the number under which its owner finds it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .formats import RepeatedKeys, detect, prepared
from .problems import FileError, RowError, show

JSON_ENDINGS = (".json",)
LINE_ENDINGS = (".jsonl", ".ndjson")
TABLE_ENDINGS = (".csv", ".tsv")
TEXT_ENDINGS = (".txt", ".md")
ENDINGS = (*JSON_ENDINGS, *LINE_ENDINGS, *TABLE_ENDINGS, ".parquet", *TEXT_ENDINGS)

# Longest first: the UTF-32 mark begins with the UTF-16 one.
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_OTHER_KINDS = (
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"PK\x03\x04", "is a zip archive or an Excel workbook; unpack it, or save it as CSV UTF-8"),
    (b"ARROW1", "is an Arrow file; save it as Parquet"),
    (b"%PDF", "is a PDF; save its text as .txt"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the data; run git lfs pull"),
    (b"<!DOCTYPE html", "is a web page, not the data; download the raw file"),
    (b"<html", "is a web page, not the data; download the raw file"),
)
SEPARATORS = (
    ("<文档分隔符>", re.compile(r"[ \t]*<文档分隔符>[ \t]*")),
    ("<|endoftext|>", re.compile(r"<\|endoftext\|>")),
    ("lines of ===", re.compile(r"^[ \t]*={3,}[ \t]*$", re.MULTILINE)),
    ("lines of ---", re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)),
)
BLANK_LINES = "blank lines"


@dataclass
class RawRows:
    """The rows of a source before anyone has looked into them.

    Attributes:
        rows: (number as the owner counts, value).
        broken: (number, reason, row as it stands) for rows that could not even be parsed.
        notes: what was read differently from how it stands.
        fault: why the source could not be read as a whole or to its end; "" if it was.
    """

    rows: list[tuple[int, Any]] = field(default_factory=list)
    broken: list[tuple[int, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fault: str = ""


def read_rows(path: Path, separator: str | None = None, encoding: str | None = None) -> RawRows:
    """Read the rows of one file, by its ending.

    Args:
        path: a file with one of ``ENDINGS``, or a folder that ``Dataset.save_to_disk`` wrote.
        separator: for plain text, what stands between documents; "blank lines" for paragraphs.
        encoding: of a text file that is neither UTF-8 nor marked as UTF-16/32.

    Raises:
        FileError: if there is nothing to read.
    """
    if path.is_dir():
        return _saved_dataset(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        # A missing file first: its name may simply be mistyped.
        _bytes(path)
        raise FileError(f"has the ending '{path.suffix}'; known are {', '.join(ENDINGS)}")
    data = _bytes(path)
    if ending == ".parquet":
        return _parquet(data)
    text = _decoded(data, encoding)
    if not text.strip():
        raise FileError("is empty")
    if ending in JSON_ENDINGS:
        return _json(text)
    if ending in LINE_ENDINGS:
        return _json_lines(text)
    if ending in TABLE_ENDINGS:
        return _table(text, "\t" if ending == ".tsv" else ",")
    return _documents(text, separator, markdown=ending == ".md")


def _bytes(path: Path) -> bytes:
    """The content of a file that is there, readable and not empty."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        where = path.parent.resolve()
        raise FileError(f"does not exist (looked in {where}); check the name") from None
    except (OSError, ValueError) as error:
        raise FileError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not data:
        raise FileError("is empty (0 bytes)")
    return data


def _decoded(data: bytes, encoding: str | None) -> str:
    """The text of a file with line ends as ``\\n``; never a guess that may come out garbled."""
    marked = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if marked is None:
        _refuse_other_kinds(data)
    used = marked or encoding or "utf-8"
    try:
        text = data.decode(used)
    except LookupError:
        raise FileError(f"cannot be decoded: Python knows no text encoding '{used}'") from None
    except UnicodeError as error:
        raise FileError(_not_decodable(data, used, error)) from None
    if "\x00" in text[:1000]:
        raise FileError("holds zero bytes: it is binary, or UTF-16 without its mark; save as UTF-8")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _refuse_other_kinds(data: bytes) -> None:
    """Raise FileError for content that plainly is something else than text rows."""
    head = data[:64].lstrip().lower()
    if data.startswith(b"PAR1"):
        raise FileError("is a Parquet file; give it the ending .parquet")
    for mark, reason in _OTHER_KINDS:
        if head.startswith(mark.lower()):
            raise FileError(reason)


def _not_decodable(data: bytes, used: str, error: UnicodeError) -> str:
    """Why these bytes are no text in the encoding used, and what they may be."""
    start = getattr(error, "start", 0)
    place = f"byte {start + 1:,}, line {data.count(bytes([10]), 0, start) + 1:,}"
    reason = f"is not {used.upper()} text ({place})"
    with suppress(UnicodeDecodeError):
        begin = data.rfind(b"\n", 0, start) + 1
        line = data[begin:].split(b"\n", 1)[0].decode("gb18030")
        return (
            f"{reason}; as GB18030 that line reads '{show(line)}': if that is right, "
            "save the file as UTF-8 or pass encoding='gb18030' "
            "(--encoding gb18030 on the command line)"
        )
    return f"{reason}; save it as UTF-8, or pass its encoding (--encoding on the command line)"


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that remembers if it names a key twice."""
    result = dict(pairs)
    if len(result) == len(pairs):
        return result
    marked = RepeatedKeys(result)
    names = [name for name, _ in pairs]
    marked.repeated = next(name for name in names if names.count(name) > 1)
    return marked


def _loads(text: str) -> Any:
    """Parse JSON.

    Raises:
        json.JSONDecodeError: if it is none.
        FileError: for what Python's parser refuses though it may be JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise FileError("is nested too deeply to be read") from None
    except ValueError:
        raise FileError("holds a number with more digits than Python reads") from None


def _syntax(text: str, error: json.JSONDecodeError, in_line: bool = False) -> str:
    """Where JSON breaks and what stands there."""
    around = show(text[max(0, error.pos - 30) : error.pos + 30])
    place = f"column {error.colno}" if in_line else f"line {error.lineno}, column {error.colno}"
    reason = f"is broken JSON at {place}: {error.msg}, near '{around}'"
    rest = text[error.pos :].strip()
    if not rest or error.msg.startswith("Unterminated string"):
        return f"{reason}; it seems cut off there, as by an interrupted download"
    if rest[0] in "“”，：｛｝［］":
        return f"{reason}; '{rest[0]}' is a full-width sign, JSON needs the plain one"
    if rest[0] == "'":
        return f"{reason}; JSON needs double quotes"
    return reason


def _json(text: str) -> RawRows:
    """A .json file: an array, an object with an array, one object, or lines of objects."""
    try:
        return _unwrapped(_loads(text))
    except json.JSONDecodeError as error:
        first = text.strip().split("\n", 1)[0]
        if not _is_object(first):
            raise FileError(_syntax(text, error)) from None
    raw = _json_lines(text)
    raw.notes.append("holds one JSON object a line (JSONL), and was read so in spite of its ending")
    return raw


def _is_object(line: str) -> bool:
    """Whether a line by itself is a JSON object."""
    try:
        return isinstance(_loads(line), dict)
    except (json.JSONDecodeError, FileError):
        return False


def _json_lines(text: str) -> RawRows:
    """A .jsonl file; one that holds a single array or object over many lines is read as JSON."""
    if text.lstrip()[0] == "[" or not _is_object(text.strip().split("\n", 1)[0]):
        with suppress(json.JSONDecodeError):
            raw = _unwrapped(_loads(text))
            raw.notes.append("holds one JSON value, and was read as .json in spite of its ending")
            return raw
    raw = RawRows()
    # Not splitlines(): it would also split at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw.rows.append((number, _loads(line)))
        except json.JSONDecodeError as error:
            raw.broken.append((number, _syntax(line, error, in_line=True), show(line)))
        except FileError as error:
            raw.broken.append((number, str(error), show(line)))
    return raw


def _unwrapped(value: Any) -> RawRows:
    """The rows in a parsed JSON file."""
    notes: list[str] = []
    if isinstance(value, dict) and not _is_row(value):
        name = _row_list(value)
        if name:
            others = [key for key, rows in value.items() if key != name and isinstance(rows, list)]
            notes.append(f"the rows are those under '{name}'")
            if others:
                notes.append(f"not read: the lists under {', '.join(map(repr, others))}")
            value = value[name]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise FileError(f"holds {show(value)!r}, not a list of rows")
    if not value:
        raise FileError("holds an empty list: there are no rows")
    if all(isinstance(row, dict) and row.keys() >= {"row_idx", "row"} for row in value):
        value = [row["row"] for row in value]
    return RawRows(rows=list(enumerate(value, start=1)), notes=notes)


def _is_row(value: dict[str, Any]) -> bool:
    """Whether an object is itself a row of a known form."""
    try:
        return detect(prepared(value)) != ""
    except RowError:
        return False


def _row_list(value: dict[str, Any]) -> str:
    """The key under which an object keeps its rows; "" if there is no telling."""
    lists = [key for key, rows in value.items() if isinstance(rows, list) and rows]
    known = [key for key in ("data", "train", "rows") if key in lists]
    if known:
        return known[0]
    return lists[0] if len(lists) == 1 and isinstance(value[lists[0]][0], dict) else ""


def _table(text: str, delimiter: str) -> RawRows:
    """A CSV or TSV file. Rows are numbered as a spreadsheet does: the header is row 1."""
    # The limit is global to the csv module, and its 128 KiB is less than a long document.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return _table_rows(text, _delimiter(text, delimiter))
    finally:
        csv.field_size_limit(limit)


def _table_rows(text: str, delimiter: str) -> RawRows:
    """The rows of a table, up to the place where its quoting breaks."""
    raw = RawRows()
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells)
            elif len(cells) != len(header):
                reason = f"has {len(cells)} cells where the header has {len(header)}"
                raw.broken.append((number, reason, show(delimiter.join(cells))))
            else:
                raw.rows.append((number, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raw.fault = (
            f"cannot be read from row {number + 1} on (line {reader.line_num}: {error}); "
            'a quote may be open, or stand inside a cell without being doubled ("")'
        )
    return raw


def _header(cells: list[str]) -> list[str]:
    """The column names of a table.

    Raises:
        FileError: if a name is there twice, since one column would hide the other.
    """
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise FileError(f"names the column '{twice[0]}' twice in its header; keep one")
    # Nameless columns (a data frame's index, trailing commas) must not hide each other.
    return [name or f"column {place}" for place, name in enumerate(names, start=1)]


def _delimiter(text: str, default: str) -> str:
    """The sign between cells: the one that makes known columns of the header."""
    line = text.lstrip().split("\n", 1)[0]
    for delimiter in (default, ",", ";", "\t", "|"):
        with suppress(csv.Error, StopIteration, RowError):
            names = next(csv.reader([line], delimiter=delimiter))
            if detect(prepared(dict.fromkeys(names, "x"))):
                return delimiter
    return default


def _parquet(data: bytes) -> RawRows:
    """A Parquet file."""
    # Slow to import, and only this kind of file needs it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        first = str(error).strip().split("\n", 1)[0]
        raise FileError(f"is no Parquet file that can be read ({show(first)})") from None
    if not rows:
        raise FileError("holds no rows")
    return RawRows(rows=list(enumerate(rows, start=1)))


def _saved_dataset(path: Path) -> RawRows:
    """A folder that ``datasets.Dataset.save_to_disk`` wrote."""
    if not (path / "state.json").is_file():
        splits = " (it holds several splits: name one of its folders)"
        hint = splits if (path / "dataset_dict.json").is_file() else ""
        raise FileError(f"is a folder; name a file in it{hint}")
    import pyarrow as pa
    from datasets import Dataset

    try:
        rows: Iterable[Any] = list(Dataset.load_from_disk(str(path)))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"is a saved data set that cannot be read ({show(str(error))})") from None
    return RawRows(rows=list(enumerate(rows, start=1)))


def _documents(text: str, separator: str | None, markdown: bool) -> RawRows:
    """A plain text file, cut into documents at its separator."""
    name, pattern = _separator(text, separator, markdown)
    parts = [text] if pattern is None else pattern.split(text)
    documents = [part.strip("\n").rstrip() for part in parts]
    full = [document for document in documents if document.strip()]
    how = f"cut at {name}" if pattern else "no separator found: the file is one document"
    notes = [f"{how}; documents: {len(full):,}"]
    # One empty piece after the last separator is how such files end.
    empty = len(documents) - len(full) - (not documents[-1].strip() and len(documents) > 1)
    if empty:
        notes.append(f"empty documents left out: {empty:,}")
    if not full:
        raise FileError("holds separators but no documents")
    return RawRows(rows=[(n, {"text": part}) for n, part in enumerate(full, 1)], notes=notes)


def _separator(
    text: str, separator: str | None, markdown: bool
) -> tuple[str, re.Pattern[str] | None]:
    """The name and pattern of what stands between documents; no pattern if nothing does."""
    if separator == BLANK_LINES:
        return BLANK_LINES, re.compile(r"\n[ \t]*\n\s*")
    if separator:
        found = re.compile(re.escape(separator))
        if not found.search(text):
            raise FileError(f"does not hold the separator '{separator}'")
        return f"'{separator}'", found
    # In Markdown, lines of --- and === are rules and headings.
    for name, pattern in SEPARATORS[:2] if markdown else SEPARATORS:
        if pattern.search(text):
            return name, pattern
    return "", None
