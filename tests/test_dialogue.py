"""Chats of several turns: losses by turn, labels without ends, repetition, a history that fits."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from course_utils import dialogue, encoding, evaluation
from course_utils.data import Conversation
from course_utils.encoding import IGNORE
from course_utils.errors import CourseError


def talk(*turns: str, system: str = "") -> list[dict[str, str]]:
    above = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return above + [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]


TALKS = [
    Conversation(tuple(talk("Hi.", "Hello there.", "My order?", "It is 4815.", "Thanks.", "Bye."))),
    Conversation(tuple(talk("My printer beeps.", "Which error code do you see?"))),
]


def test_each_label_knows_its_answer():
    labels = torch.tensor([[-100, 5, 6, -100, -100, 7, -100], [3, -100, 4, 4, 4, -100, 9]])
    wanted = [[0, 1, 1, 0, 0, 2, 0], [1, 0, 2, 2, 2, 0, 3]]
    assert dialogue.turns_of(labels).tolist() == wanted


def test_tokens_by_turn_count_all_answers(tokenizer):
    encoded = encoding.encode(TALKS, tokenizer)
    counts = dialogue.tokens_by_turn(encoded)
    assert list(counts) == [1, 2, 3] and sum(counts.values()) == encoded.report.labelled_tokens
    firsts = [Conversation(c.messages[:2]) for c in TALKS]
    assert counts[1] == encoding.encode(firsts, tokenizer).report.labelled_tokens


def test_losses_by_turn_add_up(tokenizer):
    model = tiny_models.model().train()
    losses = dialogue.loss_by_turn(model, tokenizer, TALKS, batch_size=1)
    assert model.training and list(losses) == [0, 1, 2, 3]
    assert losses == pytest.approx(dialogue.loss_by_turn(model, tokenizer, TALKS), rel=1e-4)
    assert losses[0] == pytest.approx(evaluation.held_out_loss(model, tokenizer, TALKS), rel=1e-4)
    firsts = [Conversation(c.messages[:2]) for c in TALKS]
    alone = evaluation.held_out_loss(model, tokenizer, firsts)
    assert losses[1] == pytest.approx(alone, rel=1e-4) and losses[1] != pytest.approx(losses[2])


def test_without_ends_masks_the_end_alone(tokenizer):
    encoded = encoding.encode(TALKS, tokenizer)
    cut = dialogue.without_ends(encoded, tokenizer.eos_token_id)
    answers = sum(m["role"] == "assistant" for c in TALKS for m in c.messages)
    assert encoded.report.labelled_tokens - cut.report.labelled_tokens == answers
    for old, new in zip(encoded, cut, strict=True):
        assert old["input_ids"] == new["input_ids"]
        changed = {a for a, b in zip(old["labels"], new["labels"], strict=True) if a != b}
        assert changed == {tokenizer.eos_token_id} and tokenizer.eos_token_id not in new["labels"]
    assert IGNORE in cut[0]["labels"]


@pytest.mark.parametrize(
    ("text", "size", "rate"),
    [
        ("a b c d", 3, 0.0),
        ("A b. a B! a b", 2, 1 - 2 / 5),
        ("no no no no no", 1, 1 - 1 / 5),
        ("two words", 3, 0.0),
        ("", 3, 0.0),
        ("你好你好", 2, 1 - 2 / 3),
    ],
)
def test_repetition(text, size, rate):
    assert dialogue.repetition(text, size) == pytest.approx(rate)


def test_repetition_needs_a_size():
    with pytest.raises(CourseError, match="at least 1"):
        dialogue.repetition("a b", 0)


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_history_keeps_whole_turns(tokenizer, system):
    messages = talk("One one one.", "Two.", "Three three.", "Four.", "Five?", system=system)

    def size(some):
        return len(tokenizer(encoding.render(some, tokenizer, ask=True))["input_ids"])

    above = messages[:1] if system else []
    without = messages[len(above) :]
    assert dialogue.fit_history(messages, tokenizer, size(messages)) == messages
    assert dialogue.fit_history(messages, tokenizer, size(messages) - 1) == above + without[2:]
    least = size(above + without[4:])
    assert dialogue.fit_history(messages, tokenizer, least) == above + without[4:]
    with pytest.raises(CourseError, match="shorten it"):
        dialogue.fit_history(messages, tokenizer, least - 1)
