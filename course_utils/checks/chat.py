"""Checks of chapter 9: where an answer ends, a prompt by hand, labels of all turns, a history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import check, draw, expect, same_items, same_number, short, unchanged

IGNORE = -100
Message = dict[str, str]


# ------------------------------------------------------------------------------- the end


@check("an answer is what stands before the first token that ends it; the rest is padding.")
def cut_at_end(attempt: Any) -> None:
    ends = set(draw.sample(range(2, 9), 2))
    said = [draw.integer(10, 999) for _ in range(draw.integer(4, 7))]
    first, other = draw.sample(sorted(ends), 2)
    rows = {
        "a row that ends": [*said, first, *[other] * draw.integer(2, 4)],
        "a row that ends in the other way": [*said, other, first, *said[:1]],
        "a row without an end": list(said),
        "a row that ends at once": [first, *said[:2]],
    }
    for which, row in rows.items():
        kept = list(row)
        got = attempt(row, set(ends))
        unchanged(row, kept, "the list tokens")
        stop = next((i for i, token in enumerate(row) if token in ends), None)
        _ending(got, row, stop, ends, which)


def _ending(got: Any, row: list[int], stop: int | None, ends: set[int], which: str) -> None:
    """Raise NotYet unless `got` is (tokens before the end, whether there was one)."""
    pair = isinstance(got, tuple) and len(got) == 2
    expect(pair, f"for {which} came {short(got)}; a pair (tokens, whether it ended) is wanted")
    tokens, ended = list(got[0]), got[1]
    wanted = row[:stop]
    if stop is not None:
        expect(
            tokens != row[: stop + 1],
            f"the tokens of {which} hold the token that ends it; it is a sign, not text",
        )
        without = [token for token in row if token not in ends]
        expect(
            tokens == wanted or tokens != without,
            f"the tokens of {which} go on behind the first end: all ends were taken out, and what "
            "stands behind one was kept",
        )
    same_items(tokens, wanted, f"the list of tokens of {which}", look="where the row is cut")
    expect(
        ended is (stop is not None),
        f"{which} is said to have ended: {ended!r}",
        look="the second value: True where a token that ends an answer was found, else False",
    )


# ------------------------------------------------------------------------------- a prompt


@check("role and content between the signs, and at the end the sign that the model is to go on.")
def chat_prompt(attempt: Any) -> None:
    start, end, default = f"<|{draw.word(4)}|>", f"<|{draw.word(4)}|>", f"You are {draw.word()}."
    turns = [
        {"role": role, "content": " ".join(draw.word() for _ in range(3))}
        for role in ("user", "assistant", "user")
    ]
    own = [{"role": "system", "content": f"Be {draw.word()}."}, *turns]
    for which, messages in (("without a system message", turns), ("with one of its own", own)):
        kept = [dict(message) for message in messages]
        got = attempt(messages, start, end, default)
        unchanged(messages, kept, "the list messages")
        _prompt(got, messages, (start, end, default), f"the prompt of a chat {which}")


def _rendered(messages: Sequence[Message], start: str, end: str) -> str:
    return "".join(f"{start}{m['role']}\n{m['content']}{end}\n" for m in messages)


def _prompt(got: Any, messages: list[Message], parts: tuple[str, str, str], which: str) -> None:
    """Raise NotYet unless `got` is the prompt, with the usual mistakes by name."""
    start, end, default = parts
    expect(isinstance(got, str), f"{which} is {short(got)}, not a text")
    above = {"role": "system", "content": default}
    has_own = messages[0]["role"] == "system"
    whole = messages if has_own else [above, *messages]
    body, ask = _rendered(whole, start, end), f"{start}assistant\n"
    known = {
        "lacks the end: the model would go on with another user message, so open an answer": body,
        "closes the answer that the model is to write": f"{body}{ask}{end}\n",
        "lacks the line break behind the last role": f"{body}{ask}".removesuffix("\n"),
        "lacks the line breaks between the messages": body.replace(f"{end}\n", end) + ask,
        "has a space behind each role where a line break belongs": "".join(
            f"{start}{m['role']} {m['content']}{end}\n" for m in whole
        )
        + ask,
        "lacks the sign that ends each message": body.replace(end, "") + ask,
        "lacks the default system message": _rendered(messages, start, end) + ask,
        "has two system messages: the default one is for chats without": (
            _rendered([above, *messages], start, end) + ask
        ),
    }
    right = body + ask
    for off, wrong in known.items():
        expect(got == right or got != wrong, f"{which} {off}")
    expect(
        got == right,
        f"{which} is {short(got, 100)}, not {short(right, 100)}",
        look="the parts of each message: start, role, line break, content, end, line break",
    )


# --------------------------------------------------------------------------------- labels


@check("every answer carries loss, its end too; questions and signs carry none.")
def mask_turns(attempt: Any) -> None:
    numbers = iter(draw.sample(range(100, 900), 90))
    header, end, newline = [next(numbers), next(numbers), 5], draw.integer(6, 9), 5
    user = [header[0], next(numbers), newline]
    ids: list[int] = []
    answers: list[tuple[int, int]] = []  # [first token, one behind its end)
    questions: list[tuple[int, int]] = []
    for _ in range(draw.integer(2, 3)):
        for opening, places in ((user, questions), (header, answers)):
            ids += opening
            first = len(ids)
            ids += [next(numbers) for _ in range(draw.integer(2, 5))]
            ids += [end, newline]
            places.append((first, len(ids) - 1))
    kept = list(ids)
    got = attempt(ids, list(header), end)
    unchanged(ids, kept, "the list ids")

    def labels(spans: Sequence[tuple[int, int]], start: int = 0, stop: int = 0) -> list[int]:
        inside = {i for a, b in spans for i in range(a + start, b + stop)}
        return [token if i in inside else IGNORE for i, token in enumerate(ids)]

    known = {
        "are those of the first answer alone": labels(answers[:1]),
        "are those of the last answer alone": labels(answers[-1:]),
        "are those of the questions": labels(questions),
        "hold questions as well as answers": labels([*questions, *answers]),
        "lack the end of each answer, so that stopping is never learnt": labels(answers, stop=-1),
        "hold the header of each answer: the program writes it, not the model": labels(
            answers, start=-len(header)
        ),
        "hold the line break behind each end: nobody asks the model for it": labels(
            answers, stop=1
        ),
        "run on from the first answer to the end of the row": labels([(answers[0][0], len(ids))]),
        "lack the first token of each answer": labels(answers, start=1),
        "are the ids themselves: nothing is masked": ids,
    }
    right = labels(answers)
    made = list(got) if isinstance(got, (list, tuple)) else got
    for off, wrong in known.items():
        expect(made != wrong, f"the labels {off}")
    same_items(made, right, "the list of labels", look="where each answer begins and ends")


# -------------------------------------------------------------------------------- history


@check("the system message and the newest whole turns stay; what is oldest goes first.")
def trim_history(attempt: Any) -> None:
    system = [{"role": "system", "content": _words(draw.integer(3, 5))}]
    for above in (system, []):
        turns = [
            [
                {"role": "user", "content": _words(draw.integer(4, 9))},
                {"role": "assistant", "content": _words(draw.integer(4, 9))},
            ]
            for _ in range(draw.integer(4, 5))
        ]
        turns.append([{"role": "user", "content": _words(draw.integer(3, 6))}])
        keep = draw.integer(2, len(turns) - 2)
        one_more = _size(turns[-keep - 1])
        for slack in (0, one_more - 1):  # what fits exactly; all but a token of one more turn
            _trimmed(attempt, above, turns, keep, slack)


def _words(count: int) -> str:
    return " ".join(draw.word() for _ in range(count))


def _size(messages: Sequence[Message]) -> int:
    """Tokens, as the exercise counts them: words, and 3 signs for each message."""
    return sum(len(message["content"].split()) + 3 for message in messages)


def _trimmed(
    attempt: Callable[..., Any],
    above: list[Message],
    turns: list[list[Message]],
    keep: int,
    slack: int,
) -> None:
    """Ask for a history into which just `keep` turns fit, with `slack` tokens to spare."""
    whole = above + [message for turn in turns for message in turn]
    right = above + [message for turn in turns[-keep:] for message in turn]
    most = _size(right) + slack
    kept = [dict(message) for message in whole]
    got = attempt(whole, most, lambda message: _size([message]))
    unchanged(whole, kept, "the list messages")
    right_form = isinstance(got, list) and all(isinstance(m, dict) for m in got)
    expect(right_form, f"{short(got)} came back; a list of messages is wanted")
    if got == right:
        return
    if above:
        expect(got[:1] == above, "the system message is gone; it stays whatever else goes")
    rest = got[len(above) :]
    expect(rest[-1:] == turns[-1], "the newest message is not the last one of the result")
    expect(
        rest[0]["role"] == "user",
        "the history begins with an answer: its question was dropped, so half a turn was kept",
    )
    size = _size(got)
    expect(size <= most, f"the result has {size} tokens where {most} are allowed")
    expect(all(message in whole for message in got), "the result holds messages that nobody wrote")
    tail = whole[len(whole) - len(rest) :]
    expect(rest == tail, "turns in the middle are gone; drop the oldest ones first")
    dropped = _size(turns[len(turns) - keep]) + size
    expect(
        dropped > most,
        f"one more turn would fit: {dropped} tokens where {most} are allowed",
        look="a history that fits exactly, and what the system message takes",
    )


# ------------------------------------------------------------------------------ repetition


@check("the share of runs of words that were there before: 0 where all differ.")
def repetition_rate(attempt: Any) -> None:
    size = draw.integer(2, 4)
    repeating, different = _repeating(size)
    cases = {
        "a text that repeats a phrase": repeating,
        "a text without repetition": different,
        "a text shorter than a run": different[: size - 1],
    }
    for which, words in cases.items():
        kept = list(words)
        got = attempt(words, size)
        unchanged(words, kept, "the list words")
        right, known = _rates(words, size)
        for off, value in known.items():
            near = isinstance(got, (int, float)) and abs(got - value) < 1e-9
            expect(not near or abs(value - right) < 1e-9, f"the rate of {which} {off}")
        same_number(got, right, f"the rate of {which}", look="how many runs there are")


def _repeating(size: int) -> tuple[list[str], list[str]]:
    """(words with repetition, on which each usual mistake gives a rate of its own; without)."""
    while True:
        phrase = [draw.word() for _ in range(size + draw.integer(1, 2))]
        extra = [draw.word() for _ in range(draw.integer(3, 5))]
        words = [*phrase, *extra, *phrase, *phrase, *draw.sample(extra, 2)]
        right, known = _rates(words, size)
        values = sorted([right, *known.values()])
        if all(b - a > 1e-6 for a, b in zip(values, values[1:], strict=False)):
            return words, [*phrase, *extra]


def _rates(words: list[str], size: int) -> tuple[float, dict[str, float]]:
    """The rate, and what usual mistakes make of it."""

    def rate(runs: list[tuple[str, ...]]) -> float:
        return 1 - len(set(runs)) / len(runs) if runs else 0.0

    def runs(of: int, step: int = 1) -> list[tuple[str, ...]]:
        return [tuple(words[i : i + of]) for i in range(0, len(words) - of + 1, step)]

    right = rate(runs(size))
    once = [run for run in runs(size) if runs(size).count(run) > 1]
    return right, {
        "is the share of runs that are new; what was there before is the rest": 1 - right,
        "is that of single words": rate(runs(1)),
        "is of runs that do not overlap; a run begins at every word": rate(runs(size, size)),
        "leaves out the last run": rate(runs(size)[:-1]),
        "counts a run's first occurrence as a repetition": len(once) / max(1, len(runs(size))),
        "is a number of runs, not a share": float(len(runs(size)) - len(set(runs(size)))),
    }


# ---------------------------------------------------------------------------- loss by turn


@check("a turn's loss is the mean over all its tokens, of all conversations that have it.")
def loss_by_turn(attempt: Any) -> None:
    losses, labels = _labelled()
    kept = losses.clone(), labels.clone()
    got = attempt(losses, labels)
    unchanged(losses, kept[0], "the tensor losses")
    unchanged(labels, kept[1], "the tensor labels")
    right, known = _by_turn(losses, labels)
    made = [float(value) for value in got] if isinstance(got, (list, tuple, Tensor)) else None
    expect(made is not None, f"{short(got)} came back; a list with a loss for each turn is wanted")
    for off, wrong in known.items():
        expect(not _alike(made, wrong), f"the losses {off}")
    expect(
        len(made) == len(right),
        f"there are {len(made)} losses, and the longest conversation has {len(right)} answers",
    )
    for turn, (value, wanted) in enumerate(zip(made, right, strict=True), start=1):
        same_number(value, wanted, f"the loss of answer {turn}", look="which tokens belong to it")


def _labelled() -> tuple[Tensor, Tensor]:
    """(losses, labels) of conversations with different numbers of answers, of different lengths."""
    while True:
        rows = []
        for answers in draw.sample([1, 2, 3, 3], 4):
            row: list[int] = []
            for _ in range(answers):
                row += [IGNORE] * draw.integer(1, 3)
                row += [draw.integer(10, 99) for _ in range(draw.integer(1, 5))]
            rows.append(row)
        width = max(map(len, rows)) + 1
        labels = torch.tensor([row + [IGNORE] * (width - len(row)) for row in rows])
        losses = torch.rand(labels.shape) + 0.1
        right, known = _by_turn(losses, labels)
        if not any(_alike(right, wrong) for wrong in known.values()):
            return losses, labels


def _alike(a: list[float], b: list[float]) -> bool:
    pairs = zip(a, b, strict=False)
    return len(a) == len(b) and all(abs(x - y) < 1e-4 for x, y in pairs)


def _by_turn(losses: Tensor, labels: Tensor) -> tuple[list[float], dict[str, list[float]]]:
    """The losses, and what usual mistakes make of them."""
    answer = labels != IGNORE
    before = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], dim=1)
    turns = (answer & ~before).cumsum(1) * answer
    count = int(turns.max())
    picked = [losses[turns == turn] for turn in range(1, count + 1)]
    means = [
        torch.stack(
            [a[t == n].mean() for a, t in zip(losses, turns, strict=True) if (t == n).any()]
        )
        for n in range(1, count + 1)
    ]
    kept = losses * answer
    return [float(one.mean()) for one in picked], {
        "are means of the conversations' means: a short answer counts for as much as a long one": [
            float(one.mean()) for one in means
        ],
        "are sums over the tokens, not means": [float(one.sum()) for one in picked],
        "are divided by all labelled tokens, not by those of the turn": [
            float(one.sum() / answer.sum()) for one in picked
        ],
        "are those of the rows: there is one for each conversation": [
            float(a.sum() / n.sum()) for a, n in zip(kept, answer, strict=True)
        ],
        "are those of the first row alone": [
            float(losses[0][turns[0] == n].mean()) for n in range(1, int(turns[0].max()) + 1)
        ],
    }
