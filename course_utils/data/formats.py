"""One row of any known form -> one conversation."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from .conversation import Conversation, Message
from .problems import RowError

FORMATS = ("alpaca", "messages", "sharegpt", "text")
EXPECTED = (
    "instruction and output (or prompt/response, prompt/completion, question/answer), "
    "messages or conversations (a list of turns), or text"
)

TURN_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "items")
PROMPT_COLUMNS = ("instruction", "prompt", "question", "query", "input")
CONTEXT_COLUMNS = ("input", "context")
ANSWER_COLUMNS = ("output", "response", "completion", "answer")
SYSTEM_COLUMNS = ("system", "system_prompt")
MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")

ROLE_OF = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai", "chatbot"),
        "assistant",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}
TOOL_ROLES = frozenset(
    ("tool", "tool_call", "tool_calls", "tool_response", "function", "function_call")
    + ("function_response", "function-call", "function-response", "observation", "ipython")
)
# What annotators and exporters write into an optional column to say "nothing here".
NO_INPUT = frozenset({"<noinput>", "noinput", "no input", "<no input>", "nan", "n/a", "none"})

Row = dict[str, Any]


class RepeatedKeys(dict):
    """A JSON object that names a key twice; a plain dict would silently keep the last."""

    repeated = ""


def is_missing(value: object) -> bool:
    """None, or one of the "no value" marks of floats and of data frames."""
    if isinstance(value, float):
        return value != value
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def is_blank(value: object) -> bool:
    """Missing, or an empty text or list."""
    return is_missing(value) or (isinstance(value, (str, list)) and not value)


def prepared(row: object, columns: Mapping[str, str] | None = None) -> Row:
    """A row with tidy column names: renamed by ``columns``, then lower case.

    Raises:
        RowError: if it is not an object, or names a column twice.
    """
    if isinstance(row, list) and row and all(isinstance(turn, Mapping) for turn in row):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise RowError("", f"is {kind(row)}; a row must be an object with columns")
    if isinstance(row, RepeatedKeys):
        raise RowError(row.repeated, "is there twice in this row; keep one")
    tidy: Row = {}
    for name, value in row.items():
        name = str((columns or {}).get(name, name)).strip().lower()
        if name in tidy:
            raise RowError(name, "is there twice in this row; keep one")
        tidy[name] = value
    return tidy


def detect(row: Row) -> str:
    """The form of a prepared row; "chat" for turns that do not tell, "" if it is none.

    Columns with a value decide; columns that are there but empty decide only if nothing else does.
    """
    full = {name: value for name, value in row.items() if not is_missing(value)}
    return _detect(full) or _detect(row)


def used_columns(row: Row, form: str) -> set[str]:
    """The columns of a prepared row that :func:`to_conversation` reads."""
    used = {"info", *SYSTEM_COLUMNS}
    if form == "text":
        return {"text", "info"}
    if form == "alpaca":
        prompt, context, answer = _alpaca_columns(row)
        return used | {prompt, context, answer, "history"}
    return used | {_turn_column(row)}


def to_conversation(row: Row, form: str) -> tuple[Conversation, list[str]]:
    """Turn one prepared row of a known form into a conversation.

    Returns:
        The conversation, and notes on what was read differently from how it stands.

    Raises:
        RowError: naming the field and what is wrong with it.
    """
    for name in MEDIA_COLUMNS:
        if not is_blank(row.get(name)):
            raise RowError(name, "is picture, sound or video; only text can be trained on here")
    notes: list[str] = []
    if form == "text":
        messages = [_message("text", _filled(row, "text"))]
    elif form == "alpaca":
        messages = _from_alpaca(row, notes)
    else:
        messages = _from_turns(row, form, notes)
    return Conversation(tuple(messages), _info(row)), notes


def kind(value: object) -> str:
    """What a value is, in a reader's words."""
    if is_missing(value):
        return "missing (null)"
    if isinstance(value, bool):
        return f"{str(value).lower()} (a yes/no value)"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else f"of the type {type(value).__name__}"


def text_of(value: object, field: str) -> str:
    """The text of a field: a string, or a list of text parts (joined by a line break).

    Raises:
        RowError: for anything else, and for text that no encoding can write.
    """
    if isinstance(value, list) and value:
        return "\n".join(_part(part, field) for part in value)
    if is_missing(value):
        raise RowError(field, "is missing (null)")
    if not isinstance(value, str):
        raise RowError(field, f"is {kind(value)}; it must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        half = value[error.start].encode("ascii", "backslashreplace").decode("ascii")
        raise RowError(field, f"holds half a character ({half}), often a cut emoji") from None
    return value


def _detect(row: Row) -> str:
    """The form that the columns of a row make."""
    turns = _turn_column(row)
    if turns and _like_list(row[turns]):
        return _turn_form(row[turns])
    prompt, _, answer = _alpaca_columns(row)
    if prompt and answer:
        return "alpaca"
    if "text" in row:
        return "text"
    return "chat" if turns else ""


def _turn_column(row: Row) -> str:
    """The column of turns: one that holds a list, else one that at least has such a name."""
    lists = [name for name in TURN_COLUMNS if name in row and _like_list(row[name])]
    return lists[0] if lists else _first(row, TURN_COLUMNS)


def _like_list(value: object) -> bool:
    """Whether a value may be meant as a list of turns."""
    if isinstance(value, str):
        return value.lstrip()[:1] in ("[", "{")
    return isinstance(value, (list, tuple, Mapping)) or hasattr(value, "tolist")


def _turn_form(value: object) -> str:
    """Whether turns say role/content ("messages"), from/value ("sharegpt") or nothing ("chat")."""
    try:
        turns = as_list(value, "")
    except RowError:
        return "chat"
    first = next((turn for turn in turns if isinstance(turn, Mapping)), {})
    if "role" in first:
        return "messages"
    return "sharegpt" if "from" in first else "chat"


def as_list(value: object, field: str) -> list[Any]:
    """A list, from whatever the exporters of this world make of one.

    JSON or Python text in a CSV cell, an array, or an object of lists (how older versions of
    ``datasets`` store a list of objects).
    """
    if isinstance(value, str):
        value = _parsed(value, field)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping) and value and all(isinstance(v, list) for v in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) == 1:
            names = list(value)
            value = [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise RowError(field, f"is {kind(value)}; it must be a list")


def _parsed(text: str, field: str) -> object:
    """The value that a cell's text writes down, in JSON or as Python prints it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass  # not JSON; data frames write lists to CSV as Python prints them
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise RowError(field, "is text that is no JSON list; it must be a list") from None


def _from_turns(row: Row, form: str, notes: list[str]) -> list[Message]:
    """A row of the messages or ShareGPT form."""
    column = _turn_column(row)
    if is_missing(row[column]):
        raise RowError(column, "is missing (null)")
    turns = as_list(row[column], column)
    if not turns:
        raise RowError(column, "is empty; it must hold at least a question and an answer")
    messages = [
        _turn(turn, f"{column}[{place}]", form) for place, turn in enumerate(turns, start=1)
    ]
    if any("weight" in message for message in messages):
        notes.append("answers with the weight 0 are read and not trained on")
    return _with_system(row, _checked(messages, column, notes))


def _turn(turn: object, field: str, form: str) -> Message:
    """One turn, with its role in this course's words."""
    if not isinstance(turn, Mapping):
        raise RowError(field, f"is {kind(turn)}; a turn must be an object with role and content")
    if isinstance(turn, RepeatedKeys):
        raise RowError(f"{field}.{turn.repeated}", "is there twice in this turn; keep one")
    role_key, content_key = ("from", "value") if "from" in turn else ("role", "content")
    if content_key not in turn:
        content_key = next((k for k in ("content", "value", "text") if k in turn), content_key)
    if role_key != {"messages": "role", "sharegpt": "from"}.get(form, role_key):
        raise RowError(field, f"has '{role_key}', which is not the {form} form")
    role = _role(turn, role_key, field)
    if any(turn.get(name) for name in ("tool_calls", "function_call")):
        raise RowError(field, "calls a tool; only text turns can be trained on here")
    if content_key not in turn:
        raise RowError(f"{field}.{content_key}", "is missing")
    message = _message(role, text_of(turn[content_key], f"{field}.{content_key}"))
    return message | (_weight(turn, field) if role == "assistant" else {})


def _weight(turn: Mapping[str, Any], field: str) -> dict[str, int]:
    """{"weight": 0} for an answer that is not to be trained on (as OpenAI's files mark it)."""
    weight = turn.get("weight")
    if is_missing(weight) or weight == 1:
        return {}
    if weight != 0:
        raise RowError(f"{field}.weight", f"is {weight!r:.40}; it must be the number 0 or 1")
    return {"weight": 0}


def _role(turn: Mapping[str, Any], key: str, field: str) -> str:
    """The role of a turn: user, assistant or system."""
    if key not in turn:
        raise RowError(f"{field}.{key}", "is missing; a turn must say whose it is")
    name = text_of(turn[key], f"{field}.{key}").strip().lower()
    if name in TOOL_ROLES:
        raise RowError(f"{field}.{key}", f"is a tool's turn ('{name}'); only text can be used")
    if name not in ROLE_OF:
        raise RowError(f"{field}.{key}", f"is '{name[:40]}'; known are {', '.join(ROLE_OF)}")
    return ROLE_OF[name]


def _from_alpaca(row: Row, notes: list[str]) -> list[Message]:
    """A row of the Alpaca form: earlier turns, then the instruction with its input, the answer."""
    prompt, context, answer = _alpaca_columns(row)
    if isinstance(row[prompt], list) and isinstance(row[answer], list):
        joined = {**row, "messages": [*row[prompt], *row[answer]]}
        return _from_turns(joined, "messages", notes)
    asked = "" if is_missing(row[prompt]) else text_of(row[prompt], prompt)
    given = _optional_input(row, context, notes) if context else ""
    parts = [part for part in (asked, given) if part.strip()]
    if not parts:
        raise RowError(prompt, "is empty; without a question there is nothing to answer")
    answered = _filled(row, answer)
    if answered == "nan":
        raise RowError(answer, "is 'nan', a missing value that was written as text")
    last = [_message("user", "\n\n".join(parts)), _message("assistant", answered)]
    return _with_system(row, [*_history(row), *last])


def _optional_input(row: Row, column: str, notes: list[str]) -> str:
    """The input of an instruction; "" where it is missing or only says that it is."""
    if is_missing(row.get(column)):
        return ""
    given = text_of(row[column], column)
    if given.strip().strip(".").lower() in NO_INPUT:
        notes.append(f"'{column}' only says that there is none ('<noinput>' and the like)")
        return ""
    return given


def _history(row: Row) -> list[Message]:
    """The earlier turns that an Alpaca row may carry as [[question, answer], ...]."""
    if is_blank(row.get("history")):
        return []
    messages: list[Message] = []
    for place, pair in enumerate(as_list(row["history"], "history"), start=1):
        field = f"history[{place}]"
        pair = as_list(pair, field)
        if len(pair) != 2:
            raise RowError(field, f"has {len(pair)} parts; it must be [question, answer]")
        for role, value in zip(("user", "assistant"), pair, strict=True):
            messages.append(_message(role, text_of(value, field)))
            if not messages[-1]["content"].strip():
                raise RowError(field, "has an empty question or answer")
    return messages


def _with_system(row: Row, messages: list[Message]) -> list[Message]:
    """The messages with the system column put first, if there is one."""
    column = _first(row, SYSTEM_COLUMNS)
    if not column or is_missing(row[column]):
        return messages
    text = text_of(row[column], column)
    if not text.strip():
        return messages
    own = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if own is None:
        return [_message("system", text), *messages]
    if own.strip() and own.strip() != text.strip():
        raise RowError(column, "differs from the system turn in the same row; keep one")
    return [_message("system", text), *messages[1:]]


def _checked(messages: list[Message], column: str, notes: list[str]) -> list[Message]:
    """The messages, if their order and contents make a conversation.

    An empty system turn is left out, with a note. A last question without an answer stays: it is
    harmless, and `clean` cuts it off and counts it.
    """
    expected = "user"
    for place, message in enumerate(messages, start=1):
        role, field = message["role"], f"{column}[{place}]"
        if role == "system" and place == 1:
            continue
        if role != expected:
            raise RowError(field, _out_of_order(role, expected))
        if not message["content"].strip():
            raise RowError(field, "is an empty answer" if role == "assistant" else "is empty")
        expected = "assistant" if role == "user" else "user"
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(column, "has no assistant turn; there is no answer to learn")
    if not any(message["role"] == "assistant" and "weight" not in message for message in messages):
        raise RowError(column, "has no answer to learn: all have the weight 0; drop the row")
    if messages[-1]["role"] == "user":
        notes.append("the last turn is a question without an answer: nothing is learnt from it")
    if messages[0]["role"] == "system" and not messages[0]["content"].strip():
        notes.append("an empty system turn was left out")
        return messages[1:]
    return messages


def _out_of_order(role: str, expected: str) -> str:
    """Why this role cannot stand here."""
    if role == "system":
        return "is a system turn; it can only stand first"
    return f"is the {role}'s turn; the {expected}'s must come here (first the user, then in turn)"


def _alpaca_columns(row: Row) -> tuple[str, str, str]:
    """The names of the prompt, context and answer columns; "" for each that is not there."""
    prompt = _first(row, PROMPT_COLUMNS)
    context = next((n for n in CONTEXT_COLUMNS if n in row and n != prompt), "")
    return prompt, context, _first(row, ANSWER_COLUMNS)


def _filled(row: Row, column: str) -> str:
    """The text of a column that must not be empty."""
    text = text_of(row[column], column)
    if not text.strip():
        raise RowError(column, "is empty" if column == "text" else "is an empty answer")
    return text


def _part(part: object, field: str) -> str:
    """One part of a content list; only text parts are known."""
    if isinstance(part, Mapping) and part.get("type") == "text" and "text" in part:
        return text_of(part["text"], f"{field}.text")
    if isinstance(part, Mapping):
        found = str(part.get("type", "?"))[:40]
        raise RowError(field, f"holds a part of the type '{found}'; only text parts can be used")
    raise RowError(field, f"is a list that holds {kind(part)}; it must be text")


def _info(row: Row) -> dict[str, Any]:
    """The info column, as an object or as JSON text; {} for anything else."""
    info = row.get("info")
    if isinstance(info, str):
        try:
            info = json.loads(info)
        except (ValueError, RecursionError):
            return {}
    return dict(info) if isinstance(info, Mapping) else {}


def _first(row: Row, names: Sequence[str]) -> str:
    """The first of these columns that the row has; "" if none. One with a value comes first."""
    present = [name for name in names if name in row]
    return next((name for name in present if not is_missing(row[name])), (present or [""])[0])


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}
