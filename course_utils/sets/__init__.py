"""The three embedded data sets: `load("instruction")`, `load("code")`, `load("chat")`.

Every conversation says in `info` which set and kind it belongs to and how its answer is checked
(`course_utils.scoring`). The split into training and held-out rows follows from the prompts alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from course_utils.data import CleaningReport, Conversation, clean, convert, split
from course_utils.errors import CourseError
from course_utils.sets import chat

HELD_OUT_SHARE = 0.2
PART = "A part of: "
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class DataCard:
    """What a user of the set must know.

    Attributes:
        title: the set's name in words.
        rows: conversations after cleaning, training and held-out together.
        held_out: how many of these are held out.
        source: where the texts come from.
        license: under which license they may be used.
        kinds: kind of task -> number of conversations, largest first.
        text: what the set is good for, and what not.
    """

    title: str
    rows: int
    held_out: int
    source: str
    license: str
    kinds: dict[str, int]
    text: str

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.items())
        return (
            f"{self.title}: {self.rows:,} conversations, {self.held_out:,} of them held out\n"
            f"{self.text}\n"
            f"Source: {self.source}\nLicense: {self.license}\nKinds: {kinds}"
        )


Counted = Callable[[list[Conversation], int], DataCard]  # conversations, how many are held out


@dataclass(frozen=True)
class DataSet:
    """An embedded set, cleaned and split.

    Attributes:
        name: as given to `load`.
        train: conversations to learn from.
        held_out: conversations to score with; no prompt of theirs is in `train`.
        card: source, license and contents.
        cleaning: what was removed on loading, counted.
    """

    name: str
    train: list[Conversation]
    held_out: list[Conversation]
    card: DataCard
    cleaning: CleaningReport

    def only(self, *kinds: str, text: str | None = None) -> DataSet:
        """The same set with these kinds of task alone.

        Args:
            kinds: names of kinds, as on the card.
            text: what the part's card says; by default the whole's text, marked as the whole's.

        Raises:
            CourseError: the set has no such kind.
        """
        unknown = [kind for kind in kinds if kind not in self.card.kinds]
        if unknown or not kinds:
            raise CourseError(
                f"The set {self.name!r} has no kind {', '.join(unknown) or 'without a name'}; "
                f"choose from {', '.join(self.card.kinds)}."
            )
        train = [c for c in self.train if c.info["kind"] in kinds]
        held_out = [c for c in self.held_out if c.info["kind"] in kinds]
        if text is None:
            part = set(kinds) < set(self.card.kinds) and not self.card.text.startswith(PART)
            text = PART + self.card.text if part else self.card.text
        counted = _card(self.card.title, self.card.source, self.card.license, text)
        card = counted(train + held_out, len(held_out))
        return DataSet(self.name, train, held_out, card, self.cleaning)


def load(name: str) -> DataSet:
    """Load an embedded set: "instruction", "code" or "chat".

    Raises:
        CourseError: there is no set of this name.
    """
    if name not in _SETS:
        raise CourseError(f"There is no data set {name!r}; choose from {', '.join(_SETS)}.")
    rows, card = _SETS[name]
    conversations, cleaning = clean(convert(rows(), source=name))
    train, held_out = split(conversations, share=HELD_OUT_SHARE)
    return DataSet(name, train, held_out, card(conversations, len(held_out)), cleaning)


def general_text() -> list[Conversation]:
    """A dozen short English texts on everyday and school subjects, one document each.

    Written for this course (Apache-2.0), so no model was trained on them. Not to be trained on
    either: the loss on them, before and after a fine-tuning, shows what a model has forgotten.
    """
    texts = _read("general.txt").strip().split("\n\n")
    return [Conversation(({"role": "text", "content": text},)) for text in texts]


def _card(title: str, source: str, license: str, text: str) -> Counted:
    """A card that still lacks the counts, which come from the conversations."""

    def counted(conversations: list[Conversation], held_out: int) -> DataCard:
        kinds = dict(Counter(c.info["kind"] for c in conversations).most_common())
        return DataCard(title, len(conversations), held_out, source, license, kinds, text)

    return counted


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json_lines(name: str) -> Rows:
    return [json.loads(line) for line in _read(name).splitlines()]


_SETS: dict[str, tuple[Callable[[], Rows], Counted]] = {
    "instruction": (
        lambda: json.loads(_read("instruction.json")),
        _card(
            "Checked instructions",
            "made for this course by the seeded generator course_utils/sets/instruction.py",
            "Apache-2.0, as the course",
            "Short office tasks whose answer a program checks: tickets as JSON, labels, dates, "
            "extraction, naming; about a fifth is Chinese. Invented people and orders. Good for "
            "learning a format; not a measure of general knowledge.",
        ),
    ),
    "code": (
        lambda: _json_lines("code.jsonl"),
        _card(
            "One-function tasks in Python",
            "made for this course by the seeded generator course_utils/sets/code.py",
            "Apache-2.0, as the course",
            "A sentence asks for a short function; hidden unit tests decide. Each task's tests "
            "reject several plausible wrong functions. The tasks are narrow: a high score does not "
            "mean that a model can program.",
        ),
    ),
    "chat": (
        lambda: chat.corpus() + _json_lines("chat.jsonl"),
        _card(
            "Technical support chats",
            "English tech support and Chinese greetings of chatterbot-corpus 1.3.3 (Gunther Cox "
            "and contributors); rewordings of its questions and multi-turn dialogues made for "
            "this course by course_utils/sets/chat.py",
            "BSD-3-Clause for the texts of chatterbot-corpus (CHATTERBOT_LICENSE.md), Apache-2.0 "
            "for the rest",
            "Of the corpus's 1,050 support pairs only 10 differ; cleaning removes the copies. In "
            "the dialogues the last answer needs facts from earlier turns.",
        ),
    ),
}
