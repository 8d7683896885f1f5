"""Conversations to token batches: template, labels on the answers only, padding or packing."""

from __future__ import annotations

import hashlib
import random
import re
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from . import compat
from .data import Conversation, Message
from .data.problems import show
from .errors import CourseError

IGNORE = -100  # label of a token that is not scored
Span = tuple[int, int]  # characters [start, end) of a text


# ------------------------------------------------------------------------------- templates


def render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, ask: bool = False
) -> str:
    """The messages as the one string the model reads; `ask=True` ends where an answer begins.

    The tokenizer's chat template where it has one, else Alpaca's `### Instruction:` headings.
    """
    if _is_text(messages):
        return messages[0]["content"] + ("" if ask else _end(tokenizer))
    if tokenizer.chat_template:
        return compat.chat_text(tokenizer, list(messages), add_generation_prompt=ask)
    parts = []
    for message in messages:
        if message["role"] == "assistant":
            parts.append(f"### Response:\n{message['content']}{_end(tokenizer)}\n")
        elif message["role"] == "user":
            parts.append(f"### Instruction:\n{message['content']}\n")
        else:
            parts.append(f"{message['content']}\n\n")
    return "".join(parts) + ("### Response:\n" if ask else "")


def parse_prompt(text: str) -> list[Message]:
    """A plain question, or a prompt with `### Instruction:` headings, as messages.

    A heading begins a line: within one it is what the question is about.  Only the last, which
    waits for the answer, may stand behind the question.
    """
    pattern = (
        r"^[ \t]*###\s*Instruction:\s*(.*?)(?:^[ \t]*###\s*Input:\s*(.*?))?"
        r"(?:###\s*Response:\s*)?\Z"
    )
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    if not found:
        return [{"role": "user", "content": text.strip()}]
    parts = [part.strip() for part in found.groups() if part and part.strip()]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def answer_spans(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[Span]]:
    """The rendered text and where its answers stand, each with its end-of-turn token.

    An answer begins where the prompt for it ends, and ends where the conversation up to it ends:
    no template needs to be known, only that it renders a prefix as a prefix.  Answers with the
    weight 0 are left out.
    """
    text = render(messages, tokenizer)
    if _is_text(messages):
        return text, [(0, len(text))]
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        before = render(messages[:index], tokenizer, ask=True) if index else ""
        through = render(messages[: index + 1], tokenizer).rstrip()
        if not (text.startswith(through) and through.startswith(before)):
            raise CourseError(
                f"The chat template of this tokenizer changes earlier turns when turn {index + 1} "
                "is added, so the answers cannot be told from the prompt: split the conversation "
                "into rows of one answer each, or use another template."
            )
        spans.append((len(before), len(through)))
    return _ended(text, spans, tokenizer)


def _ended(
    text: str, spans: list[Span], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[Span]]:
    """Make sure that the last answer ends in a special token: else stopping is never learnt."""
    if not spans or text[: spans[-1][1]].endswith(tuple(tokenizer.all_special_tokens)):
        return text, spans
    text = text[: spans[-1][1]] + _end(tokenizer)
    return text, [*spans[:-1], (spans[-1][0], len(text))]


def _is_text(messages: Sequence[Message]) -> bool:
    return len(messages) == 1 and messages[0]["role"] == "text"


def _end(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.eos_token is None:
        raise CourseError("This tokenizer has no end-of-text token, so no answer could ever end.")
    return tokenizer.eos_token


# -------------------------------------------------------------------------------- encoding


@dataclass(frozen=True)
class EncodingReport:
    """What encoding did: counts of rows and tokens."""

    rows: int
    tokens: int
    labelled_tokens: int
    longest: int
    truncated: int
    sequences: int

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        packed = "" if self.sequences == self.rows else f" packed into {self.sequences} sequences,"
        return (
            f"{self.rows} rows,{packed} {self.tokens:,} tokens of which {self.labelled_tokens:,} "
            f"are answers; longest row {self.longest}; {self.truncated} truncated"
        )


class Encoded(Dataset):
    """Token rows: dicts of equal-length lists `input_ids`, `labels` (and `position_ids`)."""

    def __init__(self, rows: list[dict[str, list[int]]], report: EncodingReport) -> None:
        self.rows, self.report = rows, report

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"Encoded({self.report})"

    def fingerprint(self) -> str:
        """A hash of all tokens and labels in their order: other rows have another."""
        found = hashlib.blake2b(digest_size=8)
        for row in self.rows:
            found.update(array("q", [len(row["labels"]), *row["input_ids"], *row["labels"]]))
        return found.hexdigest()


def encode_one(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """Token ids and labels of one conversation, uncut: `IGNORE` on all that is not an answer.

    The first token is never labelled: no state stands before it to predict it from.
    """
    text, spans = answer_spans(messages, tokenizer)
    if not tokenizer.is_fast:
        raise CourseError("This tokenizer cannot say where its tokens stand: a fast one is needed.")
    special = _is_text(messages) or not tokenizer.chat_template  # else the template writes them
    pieces = [(0, len(text))]
    tokens = _tokens(text, pieces, tokenizer, special)
    edges = {edge for span in spans for edge in span}
    if any(a < edge < b for _, (a, b) in tokens for edge in edges):
        # A token that is half prompt, half answer will not be there when the prompt alone is
        # given: cut the text where the model will have to go on.
        cuts = sorted(edges | {0, len(text)})
        pieces = list(zip(cuts, cuts[1:], strict=False))
        tokens = _tokens(text, pieces, tokenizer, special)
    labels = [
        token if any(start <= a < b <= end for start, end in spans) else IGNORE
        for token, (a, b) in tokens
    ]
    labels[:1] = [IGNORE]
    return {"input_ids": [token for token, _ in tokens], "labels": labels}


def _tokens(
    text: str, pieces: list[Span], tokenizer: PreTrainedTokenizerBase, special: bool
) -> list[tuple[int, Span]]:
    """(token id, its characters in `text`) of the pieces, each tokenized by itself."""
    tokens = []
    for start, end in pieces:
        coded = tokenizer(
            text[start:end],
            add_special_tokens=special and start == 0,
            return_offsets_mapping=True,
        )
        places = [(start + a, start + b) for a, b in coded["offset_mapping"]]
        tokens += zip(coded["input_ids"], places, strict=True)
    return tokens


def encode(
    conversations: Sequence[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 512,
    packing: bool = False,
) -> Encoded:
    """Encode all rows; rows over `max_length` tokens are cut at the end and counted.

    A row that keeps no labelled token is an error that names it.  `packing` joins rows into
    sequences of up to `max_length` without padding, kept apart by their position ids.
    """
    if not len(conversations):
        raise CourseError("There are no rows to encode: the data set is empty.")
    rows, empty, truncated = [], [], 0
    for number, conversation in enumerate(conversations, start=1):
        row = encode_one(conversation.messages, tokenizer)
        truncated += len(row["input_ids"]) > max_length
        row = {name: values[:max_length] for name, values in row.items()}
        if all(label == IGNORE for label in row["labels"]):
            empty.append(number)
        rows.append(row)
    if empty:
        shown = ", ".join(map(str, empty[:20])) + (" ..." if len(empty) > 20 else "")
        first = conversations[empty[0] - 1]
        raise CourseError(
            f"{len(empty)} of {len(rows)} rows keep no answer token within max_length={max_length} "
            f"(row {shown} of those encoded; row {empty[0]} begins {_start(first)!r}): raise "
            "max_length, or shorten or remove these rows (chapter 10, 'loss is flat: masked "
            "labels')."
        )
    lengths = [len(row["input_ids"]) for row in rows]
    labelled = sum(label != IGNORE for row in rows for label in row["labels"])
    report = EncodingReport(
        len(rows), sum(lengths), labelled, max(lengths), truncated, sequences=len(rows)
    )
    encoded = Encoded(rows, report)
    return packed(encoded, max_length) if packing else encoded


def _start(conversation: Conversation) -> str:
    """The first words after a system message, by which the row is found in its file."""
    messages = [m for m in conversation.messages if m["role"] != "system"]
    return show(messages[0]["content"]) if messages else ""


def pack(rows: Sequence[dict[str, list[int]]], max_length: int) -> list[dict[str, list[int]]]:
    """Join rows into sequences of at most `max_length` tokens: first fit, longest rows first.

    Position ids start at 0 in every row; transformers builds from them an attention mask that
    keeps the rows apart.  First-fit decreasing needs at most 11/9 of the fewest sequences (+1).
    """
    bins: list[list[int]] = []
    room: list[int] = []
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    for index in order:
        length = len(rows[index]["input_ids"])
        place = next((b for b, free in enumerate(room) if free >= length), None)
        if place is None:
            bins.append([])
            room.append(max_length)
            place = len(bins) - 1
        bins[place].append(index)
        room[place] -= length
    return [joined([rows[i] for i in members]) for members in bins]


def packed(encoded: Encoded, max_length: int) -> Encoded:
    """The same rows, joined by `pack`; what is packed already stays as it is."""
    if "position_ids" in encoded[0]:
        return encoded
    rows = pack(encoded.rows, max_length)
    return Encoded(rows, replace(encoded.report, sequences=len(rows)))


def count_tokens(batch: dict[str, Tensor]) -> int:
    """Tokens of a batch that are not padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    # In a packed batch each row (of two tokens at least) has the position 1 once; padding has 0s.
    positions = batch["position_ids"]
    return int((positions > 0).sum() + (positions == 1).sum())


def joined(rows: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """The rows behind each other, each with its own positions from 0 on (or those it has)."""
    positions = [row.get("position_ids") or range(len(row["input_ids"])) for row in rows]
    return {
        "input_ids": [token for row in rows for token in row["input_ids"]],
        "labels": [label for row in rows for label in row["labels"]],
        "position_ids": [i for of_row in positions for i in of_row],
    }


def sample(encoded: Encoded, tokens: int) -> dict[str, Tensor]:
    """At most so many tokens of rows drawn without order, joined; the last row is cut.

    The draw is always the same.  Returns input_ids and position_ids [1, tokens].
    """
    rows, left = [], tokens
    for i in random.Random(0).sample(range(len(encoded)), len(encoded)):
        if left <= 0:
            break
        rows.append({name: values[:left] for name, values in encoded[i].items()})
        left -= len(rows[-1]["input_ids"])
    made = joined(rows)
    return {name: torch.tensor(made[name])[None] for name in ("input_ids", "position_ids")}


# -------------------------------------------------------------------------------- batches


@dataclass(frozen=True)
class Collator:
    """Rows of different length to tensors [batch, longest], padded on the right.

    Padding is told by position, never by token id: where the padding token is also the
    end-of-text token, its labels stay, and the model learns to stop.
    """

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad_id, "labels": IGNORE}
        batch = {
            name: torch.tensor([r[name] + [value] * (longest - len(r[name])) for r in rows])
            for name, value in fill.items()
        }
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        if "position_ids" in rows[0]:
            # every padding token is a row of its own: position 0, seen by nothing but itself
            batch["position_ids"] = torch.tensor(
                [r["position_ids"] + [0] * (longest - len(r["position_ids"])) for r in rows]
            )
        else:
            batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return batch


def batches(encoded: Encoded, batch_size: int, pad_id: int) -> list[dict[str, Tensor]]:
    """All rows as batches, longest first, so that little is padding; for evaluation."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
    collate = Collator(pad_id)
    return [
        collate([encoded[i] for i in order[start : start + batch_size]])
        for start in range(0, len(order), batch_size)
    ]


def show_labels(row: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """(text, is it trained on?) for each run of equal kind in an encoded row."""
    runs: list[tuple[list[int], bool]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        if not runs or runs[-1][1] != (label != IGNORE):
            runs.append(([], label != IGNORE))
        runs[-1][0].append(token)
    return [(tokenizer.decode(tokens), trained) for tokens, trained in runs]
