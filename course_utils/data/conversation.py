"""The one shape that every data set takes in this course: the conversation."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""``{"role": "system" | "user" | "assistant" | "text", "content": ...}``; see `Conversation`.

An assistant message that is read but not trained on has ``"weight": 0`` too."""

ROLES = ("system", "user", "assistant", "text")


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and what a scorer needs to know about them.

    A plain document (pretraining text) is one message of the role ``"text"``: no prompt, and the
    whole content is what the model learns.

    Attributes:
        messages: at most one system message (first), then user and assistant in turn.
        info: free-form, for example ``{"check": {"type": "exact", "value": "4"}}``; may be empty.
    """

    messages: tuple[Message, ...]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        """Whether this is a plain document, without roles."""
        return len(self.messages) == 1 and self.messages[0]["role"] == "text"

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All messages before the last assistant message; empty for a plain document."""
        return self.messages[: self._answer_index]

    @property
    def answer(self) -> str:
        """The last assistant message's content (a document's text); "" where there is none."""
        if self._answer_index == len(self.messages):
            return ""
        return self.messages[self._answer_index]["content"]

    @property
    def key(self) -> str:
        """SHA-256 (64 hex digits) of the normalized prompt; of the text itself for a document.

        Conversations with the same key ask the same thing, whatever their answers. See
        :func:`normalize` for what counts as the same.
        """
        return content_hash(self.messages if self.is_text else self.prompt)

    @property
    def group(self) -> str:
        """The key of the opening: everything up to and including the first user message.

        Equal to :attr:`key` for a single question and answer. A dialogue and its continuation
        (exports hold the same chat saved twice) share a group though their keys differ.
        """
        for index, message in enumerate(self.messages):
            if message["role"] == "user":
                return content_hash(self.messages[: index + 1])
        return self.key

    @property
    def _answer_index(self) -> int:
        """Where the last assistant message stands; the number of messages if there is none."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] in ("assistant", "text"):
                return index
        return len(self.messages)


def normalize(text: str) -> str:
    """What is left of a text when spelling variants do not matter.

    Unicode NFC, upper and lower case folded together, every run of white space one space, none at
    the ends. Punctuation stays: "1.5" is not "15".
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def content_hash(messages: Iterable[Message]) -> str:
    """SHA-256 as 64 hex digits over roles and normalized contents; the same on every machine."""
    parts = [[message["role"], normalize(message["content"])] for message in messages]
    # JSON keeps the parts apart: joined with a separator, two messages could look like one.
    encoded = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(encoded.encode("ascii")).hexdigest()
