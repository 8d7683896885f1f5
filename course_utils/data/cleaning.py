"""Cleaning that counts what it does, and a split that no duplicate crosses."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CourseError
from .conversation import Conversation, Message, normalize

NO_ANSWER = "no answer"
EMPTY_ANSWER = "empty answer"
ECHO = "answer repeats the question"
DUPLICATE = "duplicate conversation"
WHITESPACE = "white space normalized"
UNANSWERED_END = "unanswered last turn cut off"
CONFLICT = "prompts with different answers"
MARKUP = "answers with HTML markup"

_BLANK_START = re.compile(r"\A(?:[ \t]*\n)+")
_HTML = re.compile(r"<(div|p|span|br|h[1-6]|ul|ol|li|table)\b[^>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class CleaningReport:
    """What :func:`clean` did, counted by reason.

    Attributes:
        total: conversations that came in.
        kept: conversations that came out.
        removed: reason -> conversations removed; each is counted once, for its first reason.
        changed: reason -> conversations kept with a change.
        noted: reason -> count of what was left as it is but deserves a look.
        removed_conversations: those removed, as they came in, in their order.
    """

    total: int
    kept: int
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    removed_conversations: tuple[Conversation, ...] = field(default=(), repr=False)

    def require_rows(self, source: object) -> None:
        """Make sure that rows are left to train on; `source` is what the error calls them.

        Raises:
            CourseError: if not, with what was removed.
        """
        if not self.kept:
            why = "; ".join(f"{reason}: {count:,}" for reason, count in self.removed.items())
            raise CourseError(
                f"{source}: cleaning left none of {self.total:,} rows to train on "
                f"({why}); put these rows right, or add others."
            )

    def to_dict(self) -> dict[str, object]:
        """The counts as plain JSON values (without the removed conversations)."""
        return {
            "total": self.total,
            "kept": self.kept,
            "removed": dict(self.removed),
            "changed": dict(self.changed),
            "noted": dict(self.noted),
        }

    def __str__(self) -> str:
        """One line a count, fit to print."""
        lines = [f"{self.kept:,} of {self.total:,} conversations kept"]
        for title in ("removed", "changed", "noted"):
            for reason, count in sorted(getattr(self, title).items()):
                lines.append(f"  {title:<8} {count:>7,}  {reason}")
        return "\n".join(lines)


def clean(
    conversations: Iterable[Conversation],
) -> tuple[list[Conversation], CleaningReport]:
    """Remove what teaches nothing, tidy the rest, and count both.

    Removed: no or empty answer, an answer that only repeats its question (single questions only: in
    a dialogue "Bye" may well answer "Bye"), and duplicates after the first: the same normalized
    prompt with the same answer. Changed: outer blank lines, trailing spaces and Windows line ends
    go (the first line's indentation stays, since in code it has a meaning), and so does a last
    turn that nobody answers. Only counted: one prompt with several answers, HTML in an answer.

    Returns:
        The conversations kept, in their order, and the report.
    """
    given = list(conversations)
    removed, changed = Counter[str](), Counter[str]()
    kept: list[Conversation] = []
    dropped: list[Conversation] = []
    seen: set[tuple[Any, ...]] = set()
    for original in given:
        tidy, changes = _tidied(original)
        weights = tuple(message.get("weight") for message in tidy.messages)
        identity = (tidy.key, tidy.answer, weights)
        reason = _reason_to_remove(tidy) or (DUPLICATE if identity in seen else "")
        if reason:
            removed[reason] += 1
            dropped.append(original)
        else:
            seen.add(identity)
            changed.update(changes)
            kept.append(tidy)
    return kept, CleaningReport(
        len(given), len(kept), dict(removed), dict(changed), _noted(kept), tuple(dropped)
    )


def split(
    conversations: Sequence[Conversation], share: float = 0.2, salt: str = ""
) -> tuple[list[Conversation], list[Conversation]]:
    """Divide into (train, held_out) by content, so that equal prompts never cross.

    The side follows from the SHA-256 of a conversation's opening (``Conversation.group``) and the
    salt alone: the order of the rows, the machine and added rows do not change it. Only where one
    side would stay empty does the nearest opening move over; a single opening is trained on.

    Args:
        share: the part of the openings to hold out, 0 <= share < 1; met approximately.
        salt: any text; another one gives another, equally fixed, split.

    Raises:
        CourseError: if ``share`` is out of range.
    """
    if not 0 <= share < 1:
        raise CourseError(f"share is {share}; give the part to hold out, from 0 to below 1.")
    groups = [conversation.group for conversation in conversations]
    places = {group: _place(group, salt) for group in groups}
    held_groups = {group for group, place in places.items() if place < share}
    if len(places) == 1:
        held_groups = set()
    elif share > 0 and places:
        in_order = sorted(places, key=lambda group: (places[group], group))
        held_groups = (held_groups or {in_order[0]}) - (
            {in_order[-1]} if len(held_groups) == len(places) else set()
        )
    train = [c for c, g in zip(conversations, groups, strict=True) if g not in held_groups]
    held_out = [c for c, g in zip(conversations, groups, strict=True) if g in held_groups]
    return train, held_out


def leaks(train: Iterable[Conversation], held_out: Iterable[Conversation]) -> list[Conversation]:
    """The held-out conversations that training has already shown.

    A held-out conversation leaks if its prompt is one that some training conversation answers, in
    its last turn or an earlier one.
    """
    shown = {turn.key for conversation in train for turn in _answered(conversation)}
    return [conversation for conversation in held_out if conversation.key in shown]


def _place(group: str, salt: str) -> float:
    """A number in [0, 1) that is fixed by the content and the salt."""
    digest = hashlib.sha256(f"{group}{salt}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _answered(conversation: Conversation) -> Iterable[Conversation]:
    """The conversation up to each of its answers."""
    for index, message in enumerate(conversation.messages):
        if message["role"] in ("assistant", "text"):
            yield Conversation(conversation.messages[: index + 1])


def _tidied(conversation: Conversation) -> tuple[Conversation, list[str]]:
    """The conversation without stray white space and unanswered end, and what was changed."""
    messages: tuple[Message, ...] = tuple(
        {**m, "content": _tidied_text(m["content"])} for m in conversation.messages
    )
    changes = []
    if any(
        old["content"] != new["content"]
        for old, new in zip(conversation.messages, messages, strict=True)
    ):
        changes.append(WHITESPACE)
    has_answer = any(m["role"] == "assistant" for m in messages)
    if has_answer and messages[-1]["role"] != "assistant":
        messages = messages[: conversation._answer_index + 1]
        changes.append(UNANSWERED_END)
    if not changes:
        return conversation, changes
    return Conversation(messages, conversation.info), changes


def _tidied_text(text: str) -> str:
    """One kind of line end, no outer blank lines, no trailing space at the end."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    return _BLANK_START.sub("", text).rstrip()


def _reason_to_remove(conversation: Conversation) -> str:
    """Why this conversation cannot teach anything; "" if it can."""
    answers = [m["content"] for m in conversation.messages if m["role"] in ("assistant", "text")]
    if not answers:
        return NO_ANSWER
    if not all(answer.strip() for answer in answers):
        return EMPTY_ANSWER
    questions = [m["content"] for m in conversation.messages if m["role"] == "user"]
    if len(questions) == 1 and normalize(questions[0]) == normalize(answers[0]):
        return ECHO
    return ""


def _noted(conversations: Sequence[Conversation]) -> dict[str, int]:
    """Counts of what is kept but deserves a look; only those above zero."""
    answers_of: dict[str, set[str]] = defaultdict(set)
    for conversation in conversations:
        if not conversation.is_text:
            answers_of[conversation.key].add(conversation.answer)
    counts = {
        CONFLICT: sum(len(answers) > 1 for answers in answers_of.values()),
        MARKUP: sum(bool(_HTML.search(c.answer)) for c in conversations if not c.is_text),
    }
    return {reason: count for reason, count in counts.items() if count}
