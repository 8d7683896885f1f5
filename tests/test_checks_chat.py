"""The checks of chapter 9 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from check_contract import CheckContract

from course_utils.checks import chat

# ------------------------------------------------------------- answers, right and wrong


def cut_at_end(tokens, ends, extra=0):
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + extra], True
    return tokens, False


def filtered(tokens, ends):
    kept = [token for token in tokens if token not in ends]
    return kept, len(kept) < len(tokens)


def last_end(tokens, ends):
    places = [i for i, token in enumerate(tokens) if token in ends]
    return (tokens[: places[-1]], True) if places else (tokens, False)


def empties(tokens, ends):
    found = cut_at_end(list(tokens), ends)
    tokens.clear()
    return found


def prompt(messages, start, end, default, *, ask=True, line="\n", close=None, above=True):
    if above and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": default}, *messages]
    close = end if close is None else close
    parts = [f"{start}{m['role']}{line}{m['content']}{close}\n" for m in messages]
    return "".join(parts) + (f"{start}assistant\n" if ask else "")


def two_systems(messages, *parts):
    return prompt([{"role": "system", "content": parts[2]}, *messages], *parts, above=False)


def changes_messages(messages, start, end, default):
    if messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": default})
    return prompt(messages, start, end, default)


def spans(ids, opening, end):
    """(first token, place of the end) of each turn that `opening` begins."""
    found, width = [], len(opening)
    for i in range(len(ids) - width + 1):
        if ids[i : i + width] == opening:
            found.append((i + width, ids.index(end, i + width)))
    return found


def mask(ids, header, end, start=0, stop=1, of=slice(None)):
    labels = [-100] * len(ids)
    for first, last in spans(ids, header, end)[of]:
        labels[first + start : last + stop] = ids[first + start : last + stop]
    return labels


def questions(ids, header, end):
    """The labels of what the user wrote: turns that open otherwise."""
    labels, begin = [-100] * len(ids), 3
    answers = spans(ids, header, end)
    for _, last in answers:
        stop = ids.index(end, begin)
        labels[begin : stop + 1] = ids[begin : stop + 1]
        begin = last + 5
    return labels


def both(ids, header, end):
    pairs = zip(mask(ids, header, end), questions(ids, header, end), strict=True)
    return [max(pair) for pair in pairs]


def from_first(ids, header, end):
    first = spans(ids, header, end)[0][0]
    return [-100] * first + ids[first:]


def trim(messages, most, count, *, system=True, whole=True, strict=False):
    above = [m for m in messages[:1] if m["role"] == "system"] if system else []
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    for start in range(len(rest)):
        if whole and rest[start]["role"] != "user":
            continue
        kept = above + rest[start:]
        size = sum(map(count, kept))
        if size < most or (size == most and not strict):
            return kept
    return above + rest[-1:]


def forgets_to_count_system(messages, most, count):
    above = [m for m in messages[:1] if m["role"] == "system"]
    extra = sum(map(count, above))
    return trim(messages, most + extra, count) if above else trim(messages, most, count)


def oldest_kept(messages, most, count):
    kept = list(messages)
    while sum(map(count, kept)) > most:
        del kept[-3:-1]
    return kept


def one_turn_less(messages, most, count):
    made = trim(messages, most, count)
    above = 1 if made[0]["role"] == "system" else 0
    return made[:above] + made[above + 2 :]


def in_place(messages, most, count):
    messages[:] = trim(messages, most, count)
    return messages


def rate(words, size, *, step=1, last=True):
    runs = [tuple(words[i : i + size]) for i in range(0, len(words) - size + 1, step)]
    runs = runs if last else runs[:-1]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def divides_by_zero(words, size):
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(runs)) / len(runs)


def turns_of(labels):
    """[rows, length]: which answer each place belongs to, 0 for none."""
    found = torch.zeros_like(labels)
    for row in range(labels.shape[0]):
        turn = 0
        for place in range(labels.shape[1]):
            if labels[row, place] != -100:
                turn += place == 0 or labels[row, place - 1] == -100
                found[row, place] = turn
    return found


def by_turn(losses, labels):
    turns = turns_of(labels)
    return [losses[turns == n].mean().item() for n in range(1, int(turns.max()) + 1)]


def by_means(losses, labels):
    turns, made = turns_of(labels), []
    for n in range(1, int(turns.max()) + 1):
        rows = [a[t == n].mean() for a, t in zip(losses, turns, strict=True) if (t == n).any()]
        made.append((sum(rows) / len(rows)).item())
    return made


def by_sum(losses, labels):
    turns = turns_of(labels)
    return [losses[turns == n].sum().item() for n in range(1, int(turns.max()) + 1)]


def by_row(losses, labels):
    answer = labels != -100
    return ((losses * answer).sum(1) / answer.sum(1)).tolist()


def with_questions(losses, labels):
    """Counts every token from an answer's start to the next one's."""
    turns = turns_of(labels)
    return [losses[turns.cummax(1).values == n].mean().item() for n in range(1, 4)]


RIGHT = {
    "cut_at_end": cut_at_end,
    "chat_prompt": prompt,
    "mask_turns": mask,
    "trim_history": trim,
    "repetition_rate": rate,
    "loss_by_turn": by_turn,
}

WRONG: dict[str, list[tuple[Callable[..., Any], str]]] = {
    "cut_at_end": [
        (lambda t, e: cut_at_end(t, e, extra=1), "hold the token that ends it"),
        (filtered, "go on behind the first end"),
        (last_end, "one item too many|items, not|differs"),
        (lambda t, e: (cut_at_end(t, e)[0], True), "is said to have ended: True"),
        (lambda t, e: (cut_at_end(t, e)[0], not cut_at_end(t, e)[1]), "is said to have ended"),
        (lambda t, e: cut_at_end(t, e)[0], "a pair"),
        (lambda t, e: cut_at_end(t, {min(e)}), "tokens|ended"),
        (empties, "was changed"),
    ],
    "chat_prompt": [
        (lambda *a: prompt(*a, ask=False), "lacks the end"),
        (lambda *a: f"{prompt(*a)}{a[2]}\n", "closes the answer"),
        (lambda *a: prompt(*a).removesuffix("\n"), "line break behind the last role"),
        (lambda *a: prompt(*a, line=" "), "a space behind each role"),
        (lambda *a: prompt(*a, close=""), "lacks the sign that ends each message"),
        (lambda *a: prompt(*a, above=False), "lacks the default system message"),
        (two_systems, "two system messages"),
        (changes_messages, "was changed"),
        (lambda *a: None, "not a text"),
    ],
    "mask_turns": [
        (lambda *a: mask(*a, of=slice(1)), "the first answer alone"),
        (lambda *a: mask(*a, of=slice(-1, None)), "the last answer alone"),
        (lambda *a: mask(*a, stop=0), "lack the end of each answer"),
        (lambda *a: mask(*a, start=-3), "the header of each answer"),
        (lambda *a: mask(*a, stop=2), "the line break behind each end"),
        (lambda *a: mask(*a, start=1), "lack the first token"),
        (questions, "those of the questions"),
        (both, "questions as well as answers"),
        (from_first, "run on from the first answer"),
        (lambda ids, header, end: list(ids), "nothing is masked"),
        (lambda ids, header, end: [-100] * len(ids), "the list of labels"),
    ],
    "trim_history": [
        (lambda *a: trim(*a, system=False), "the system message is gone"),
        (lambda *a: trim(*a, whole=False), "half a turn|begins with an answer"),
        (lambda *a: trim(*a, strict=True), "one more turn would fit"),
        (one_turn_less, "one more turn would fit"),
        (forgets_to_count_system, "tokens where"),
        (oldest_kept, "drop the oldest|are allowed|would fit"),
        (lambda messages, most, count: list(messages), "tokens where"),
        (lambda *a: trim(*a)[:-1], "the newest message is not the last"),
        (in_place, "was changed"),
    ],
    "repetition_rate": [
        (lambda w, n: 1 - rate(w, n), "what was there before is the rest"),
        (lambda w, n: rate(w, 1), "that of single words"),
        (lambda w, n: rate(w, n, step=n), "do not overlap"),
        (lambda w, n: 100 * rate(w, n), "per cent|percent|too large|factor"),
        (divides_by_zero, "zerodivisionerror"),
        (lambda w, n: 0.0, "the rate of a text that repeats"),
    ],
    "loss_by_turn": [
        (by_means, "means of the conversations' means"),
        (by_sum, "sums over the tokens"),
        (by_row, "one for each conversation"),
        (with_questions, "the loss of answer"),
        (lambda a, b: by_turn(a, b)[:-1], "the longest conversation has 3"),
        (lambda a, b: by_turn(a, b)[::-1], "the loss of answer"),
        (lambda a, b: sum(by_turn(a, b)), "a list with a loss for each turn"),
        (lambda a, b: by_turn(a.mul_(2), b), "was changed"),
    ],
}  # fmt: skip

CASES = [
    (name, attempt, text if "|" in text else re.escape(text))
    for name, cases in WRONG.items()
    for attempt, text in cases
]


class TestChat(CheckContract):
    topic, right, wrong = chat, RIGHT, CASES
