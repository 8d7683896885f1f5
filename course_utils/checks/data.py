"""Checks of chapter 2: a row as messages, padding, labels, packing, leaked rows."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import check, draw, expect, same, same_items, same_number, short, unchanged

IGNORE = -100


# ------------------------------------------------------------------------------- messages


@check("instruction and input are the user's turn, the output is the assistant's.")
def to_messages(attempt: Any) -> None:
    asked, given, answer = (" ".join(draw.word() for _ in range(3)) for _ in range(3))
    full = {"instruction": asked, "input": given, "output": answer}
    rows = [full, full | {"input": ""}, {"instruction": asked, "output": answer}]
    questions = [f"{asked}\n\n{given}", asked, asked]
    names = ("the row", "the row whose input is empty", "the row without the key input")
    for row, question, which in zip(rows, questions, names, strict=True):
        kept = dict(row)
        got = attempt(row)
        unchanged(row, kept, which)
        _messages(got, question, answer, which)


def _messages(got: Any, question: str, answer: str, which: str) -> None:
    """Raise NotYet unless `got` is [user: question, assistant: answer]."""
    right = isinstance(got, list) and all(isinstance(m, dict) for m in got)
    expect(right, f"for {which} came {short(got)}; a list of messages (dicts) is wanted")
    keys = sorted({key for message in got for key in message})
    expect(
        keys == ["content", "role"],
        f"the messages of {which} have the keys {', '.join(map(str, keys))}; each has two: role "
        "and content",
    )
    roles = [message["role"] for message in got]
    expect(
        roles == ["user", "assistant"],
        f"the roles of {which} are {', '.join(map(repr, roles)) or 'missing'}; wanted are 'user', "
        "then 'assistant'",
    )
    asked, said = (message["content"] for message in got)
    expect(
        asked != answer and said != question,
        f"question and answer of {which} are the wrong way round",
    )
    expect(
        isinstance(asked, str) and asked.strip() == asked,
        f"the question of {which} is {asked!r}: it ends in white space (or is no text), so what "
        "stands between instruction and input is there without an input",
        look="the case that there is nothing in input",
    )
    expect("None" not in asked, f"the question of {which} is {asked!r}: a missing input is no text")
    expect(
        asked == question,
        f"the question of {which} is {asked!r}, not {question!r}",
        look="the input, and the two line breaks before it",
    )
    expect(said == answer, f"the answer of {which} is {said!r}, not {answer!r}")


# -------------------------------------------------------------------------------- padding


@check("each batch is as wide as its longest row; what no token fills is padding.")
def padding_waste(attempt: Any) -> None:
    lengths, size, share, known = _lengths_to_pad()
    kept = list(lengths)
    got = attempt(lengths, size)
    unchanged(lengths, kept, "the list lengths")
    for off, value in known.items():
        expect(not _near(got, value), f"the result {off}")
    same_number(got, share, "the share of padding", look="the positions of each batch")


def _lengths_to_pad() -> tuple[list[int], int, float, dict[str, float]]:
    """(lengths, batch size, the share, what goes wrong -> what it gives), all values different."""
    size = draw.integer(3, 5)
    while True:
        # the last batch is not full, and short and long rows stand side by side
        count = draw.integer(3, 4) * size + draw.integer(1, size - 1)
        lengths = [draw.integer(5, 20) + draw.integer(0, 80) * (i % 2) for i in range(count)]
        share, known = _shares(lengths, size)
        values = sorted([share, *known.values()])
        if all(b - a > 1e-3 for a, b in zip(values, values[1:], strict=False)):
            return lengths, size, share, known


def _shares(lengths: list[int], size: int) -> tuple[float, dict[str, float]]:
    """The share of padding, and what usual mistakes make of it."""

    def of(groups: list[list[int]], width: int = 0, rows: int = 0) -> float:
        positions = sum((rows or len(g)) * (width or max(g)) for g in groups)
        return 1 - sum(map(sum, groups)) / positions

    def batched(rows: list[int]) -> list[list[int]]:
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    batches = batched(lengths)
    share = of(batches)
    return share, {
        "is the share of tokens; padding is the rest": 1 - share,
        "is padding over tokens; the share is over all positions, padding included": (
            share / (1 - share)
        ),
        "is the number of padding positions, not their share": (sum(lengths) * share / (1 - share)),
        "pads every row to the longest row of all; each batch has a longest row of its own": of(
            batches, width=max(lengths)
        ),
        "is the mean of the batches' shares: a wide batch counts for as much as a narrow one": (
            sum(of([b]) for b in batches) / len(batches)
        ),
        "leaves the last batch out; it is not full, but it is computed": of(batches[:-1]),
        "fills the last batch up with empty rows; it just has fewer rows": of(batches, rows=size),
        "is that of rows sorted by length; the rows come in the order given": of(
            batched(sorted(lengths))
        ),
    }


def _near(got: Any, value: float) -> bool:
    try:
        return abs(float(got) - value) <= 1e-6 * max(1.0, abs(value))
    except (TypeError, ValueError):
        return False


# --------------------------------------------------------------------------------- labels


@check("the answer and its end are learnt; prompt and padding are told apart by their place.")
def answer_labels(attempt: Any) -> None:
    rows, width = draw.integer(3, 4), draw.integer(12, 15)
    end = draw.integer(2, 9)  # also the padding token, as in many models
    prompts = [draw.integer(2, 4) for _ in range(rows)]
    lengths = [width, *(draw.integer(7, width - 2) for _ in range(rows - 1))]
    ids = torch.full((rows, width), end)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = draw.tokens(length - 1) + 10
        if prompts[row] > 2:  # a prompt holds ends too: that of an earlier turn
            ids[row, 1] = end
    places = torch.arange(width).expand(rows, width)
    start, stop = (torch.tensor(values)[:, None] for values in (prompts, lengths))

    def masked(keep: Tensor) -> Tensor:
        return torch.where(keep, ids, IGNORE)

    answer, padding = (places >= start) & (places < stop), places >= stop
    kept = ids.clone()
    got = attempt(ids, list(prompts), list(lengths))
    unchanged(ids, kept, "the tensor input_ids")
    known: dict[str, Tensor] = {
        "keep the padding: the model would learn to write the end again and again": masked(
            places >= start
        ),
        "keep the prompt: the model would learn to write questions": masked(places < stop),
        "keep prompt and padding: nothing is masked": ids,
        "lose the end of each answer, so that stopping is never learnt: it is the same token as "
        "the padding, but stands inside the row": masked(answer & (ids != end)),
        "lose the first token of each answer": masked(answer & (places > start)),
        "keep the last token of each prompt": masked((places >= start - 1) & ~padding),
        "keep one padding token of each row": masked((places >= start) & (places <= stop)),
        "are those of prompt and padding: the mask is the wrong way round": masked(~answer),
        "have 0 where nothing is learnt; 0 is a token, the sign for `no loss here` is -100": (
            ids * answer
        ),
        "are shifted by one place; the loss shifts them itself, labels stand where their tokens "
        "stand": masked(answer).roll(-1, 1),
    }
    if isinstance(got, Tensor) and got.shape == ids.shape and not torch.equal(got, masked(answer)):
        for off, wrong in known.items():
            expect(not torch.equal(got, wrong), f"the labels {off}")
    same(got, masked(answer), "the labels", look="where prompt and row end, row by row")


# -------------------------------------------------------------------------------- packing


@check("rows stay whole and apart: every row starts at position 0.")
def pack(attempt: Any) -> None:
    room = draw.integer(20, 30)
    rows = _rows_to_pack(room)
    kept = [list(row) for row in rows]
    got = attempt(rows, room)
    unchanged(rows, kept, "the list rows")
    whole = isinstance(got, list) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in got
    )
    expect(whole, f"{short(got)} came back; a list of pairs (tokens, positions) is wanted")
    tokens, positions = [list(p[0]) for p in got], [list(p[1]) for p in got]
    _same_packing(tokens, rows, room)
    for sequence, places in zip(tokens, positions, strict=True):
        _positions(sequence, places, rows)


def _rows_to_pack(room: int) -> list[list[int]]:
    """Rows of different tokens, on which each usual mistake gives a result of its own."""
    while True:
        sizes = [draw.integer(3, room) for _ in range(draw.integer(7, 9))]
        numbers = iter(draw.sample(range(10, 60_000), sum(sizes)))
        rows = [[next(numbers) for _ in range(size)] for size in sizes]
        made = [_first_fit(rows, room), *_other_fits(rows, room).values()]
        made.append(_first_fit(rows, room + 1))  # one token too many
        if all(one not in made[:i] for i, one in enumerate(made)):
            return rows


def _fit(
    rows: list[list[int]], choose: Callable[[list[list[int]], list[int]], int | None]
) -> list[list[int]]:
    """The sequences where `choose(sequences, row)` says into which one a row goes."""
    sequences: list[list[int]] = []
    for row in rows:
        place = choose(sequences, row)
        if place is None:
            sequences.append([])
            place = len(sequences) - 1
        sequences[place] = sequences[place] + row
    return sequences


def _first_fit(rows: list[list[int]], room: int) -> list[list[int]]:
    """Each row into the first sequence that has room for it."""

    def first(made: list[list[int]], row: list[int]) -> int | None:
        return next((i for i, s in enumerate(made) if len(s) + len(row) <= room), None)

    return _fit(rows, first)


def _other_fits(rows: list[list[int]], room: int) -> dict[str, list[list[int]]]:
    """What usual mistakes make of the same rows."""

    def last(made: list[list[int]], row: list[int]) -> int | None:
        return len(made) - 1 if made and len(made[-1]) + len(row) <= room else None

    def fullest(made: list[list[int]], row: list[int]) -> int | None:
        fitting = [i for i, s in enumerate(made) if len(s) + len(row) <= room]
        return max(fitting, key=lambda i: len(made[i])) if fitting else None

    joined = [token for row in rows for token in row]
    return {
        "join only with the last sequence; a row may fit into an earlier one": _fit(rows, last),
        "do not use the last free place: a row that fits exactly belongs in": _first_fit(
            rows, room - 1
        ),
        "are those of rows sorted by length; first fit takes them in the order given": _first_fit(
            sorted(rows, key=len, reverse=True), room
        ),
        "take the fullest sequence with room (best fit); first fit takes the first": _fit(
            rows, fullest
        ),
        "hold one row each: nothing is joined": rows,
        "cut rows in two at the end of a sequence; a row stays whole": [
            joined[i : i + room] for i in range(0, len(joined), room)
        ],
    }


def _same_packing(got: list[list[int]], rows: list[list[int]], room: int) -> None:
    """Raise NotYet unless the sequences are those of first fit."""
    wanted = _first_fit(rows, room)
    if got == wanted:
        return
    long = max(map(len, got), default=0)
    expect(long <= room, f"a sequence has {long} tokens, more than max_length ({room})")
    for off, wrong in _other_fits(rows, room).items():
        expect(got != wrong, f"the sequences {off}")
    lost = {t for row in rows for t in row} - {t for s in got for t in s}
    expect(not lost, f"{len(lost)} tokens are in no sequence", look="the rows that open a new one")
    same_items(got, wanted, "the list of sequences", look="which sequences have room for a row")


def _positions(sequence: list[int], got: list[int], rows: list[list[int]]) -> None:
    """Raise NotYet unless the positions start anew with each row."""
    wanted: list[int] = []
    starts = {row[0] for row in rows}
    for token in sequence:
        wanted.append(0 if token in starts else wanted[-1] + 1)
    expect(
        got != list(range(len(sequence))) or got == wanted,
        "the positions run on through the sequence; they start at 0 in every row, which is what "
        "keeps the rows apart",
    )
    expect(
        got != [place + 1 for place in wanted],
        "the positions start at 1; the first token of a row has the position 0",
    )
    numbers = [sum(1 for p in wanted[: i + 1] if p == 0) - 1 for i in range(len(wanted))]
    expect(
        got != numbers or got == wanted,
        "the positions say which row a token is of; they should say its place within that row",
    )
    same_items(got, wanted, "the list of positions", look="where a row begins")


# -------------------------------------------------------------------------------- leakage


@check("a question counts as seen however its letters and spaces are written.")
def leaked(attempt: Any) -> None:
    same_words, spread, exact, lower, edge, new = (_question() for _ in range(6))
    amount = draw.integer(2, 8)
    train = [same_words, exact, spread, edge, lower.upper(), f"Pay {amount}.5 dollars", _question()]
    held_out = [
        exact,
        new,
        f"  {spread.replace(' ', '   ')}\n",
        lower,
        f"Pay {amount}5 dollars",
        same_words.title().replace(" ", "\t", 1),
        " ".join(exact.split()[:2]),
        f" {edge}\n",
    ]
    order = list(range(len(held_out)))
    random.shuffle(order)
    random.shuffle(train)
    held_out = [held_out[i] for i in order]
    seen = sorted(order.index(i) for i in (0, 2, 3, 5, 7))
    kept = list(train), list(held_out)
    got = attempt(train, held_out)
    unchanged((train, held_out), kept, "one of the lists")
    _leaks(got, seen, train, held_out)


def _question() -> str:
    return " ".join(draw.word() for _ in range(4)).capitalize()


def _leaks(got: Any, seen: list[int], train: list[str], held_out: list[str]) -> None:
    """Raise NotYet unless `got` is `seen`, the places of the leaked questions."""

    def found(change: Callable[[str], str]) -> list[int]:
        known = {change(text) for text in train}
        return [i for i, text in enumerate(held_out) if change(text) in known]

    def words(text: str) -> str:
        return " ".join(text.split())

    def letters(text: str) -> str:
        return "".join(c for c in words(text).casefold() if c.isalnum() or c == " ")

    items = list(got) if isinstance(got, (list, tuple, set)) else got
    expect(isinstance(items, list), f"{short(got)} came back; a list of places is wanted")
    expect(
        not any(isinstance(item, str) for item in items),
        "the questions came back; wanted are their places in held_out (0 for the first)",
    )
    clean = {words(t).casefold() for t in held_out}
    known = {
        "takes only questions that are the same letter by letter": found(str),
        "does not fold upper and lower case together": found(words),
        "takes white space as it stands": found(str.casefold),
        "treats only the spaces at the ends; several inside are one, too": found(
            lambda text: text.strip().casefold()
        ),
        "drops punctuation, and takes 1.5 for 15": found(letters),
        "holds places in train; wanted are those in held_out": [
            i for i, text in enumerate(train) if words(text).casefold() in clean
        ],
        "holds the questions that did not leak": [i for i in range(len(held_out)) if i not in seen],
        "counts from 1; the first place is 0": [i + 1 for i in seen],
    }
    if items != seen:
        for off, wrong in known.items():
            expect(items != wrong, f"the list {off}")
        whole = [words(t).casefold() for t in train]
        parts = [
            i for i, t in enumerate(held_out) if any(words(t).casefold() in text for text in whole)
        ]
        expect(items != parts, "a question counts as leaked that is only a part of a training one")
    same_items(items, seen, "the list", look="what is done to both sides before they are compared")
