"""The checks of chapter 2 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from check_contract import CheckContract

from course_utils.checks import data

# ------------------------------------------------------------- answers, right and wrong


def to_messages(row):
    parts = [row["instruction"], row.get("input") or ""]
    question = "\n\n".join(part for part in parts if part)
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row["output"]},
    ]


def with_empty_input(row):
    question = f"{row['instruction']}\n\n{row.get('input', '')}"
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row["output"]},
    ]


def with_none(row):
    question = f"{row['instruction']}\n\n{row.get('input')}" if row.get("input") != "" else None
    question = question or row["instruction"]
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row["output"]},
    ]


def without_input(row):
    return to_messages({**row, "input": ""})


def one_line_break(row):
    made = to_messages(row)
    made[0]["content"] = made[0]["content"].replace("\n\n", "\n")
    return made


def sharegpt(row):
    made = to_messages(row)
    return [{"from": m["role"], "value": m["content"]} for m in made]


def human(row):
    made = to_messages(row)
    made[0]["role"], made[1]["role"] = "human", "gpt"
    return made


def swapped(row):
    made = to_messages(row)
    made[0]["content"], made[1]["content"] = made[1]["content"], made[0]["content"]
    return made


def needs_input(row):
    made = to_messages(row)
    row["input"]
    return made


def changes_row(row):
    made = to_messages(row)
    row.pop("input", None)
    return made


def waste(lengths, size, *, divide_by_positions=True, mean=False, last=True, widest=False):
    groups = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    groups = groups if last else [g for g in groups if len(g) == size]
    widths = [max(lengths) if widest else max(g) for g in groups]
    if mean:
        return sum(1 - sum(g) / (len(g) * max(g)) for g in groups) / len(groups)
    tokens = sum(map(sum, groups))
    positions = sum(len(g) * w for g, w in zip(groups, widths, strict=True))
    return (positions - tokens) / (positions if divide_by_positions else tokens)


def filled_up(lengths, size):
    groups = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    return 1 - sum(lengths) / sum(size * max(g) for g in groups)


def positions_only(lengths, size):
    groups = [lengths[i : i + size] for i in range(0, len(lengths), size)]
    return sum(len(g) * max(g) for g in groups) - sum(lengths)


def sorts_in_place(lengths, size):
    lengths.sort()
    return waste(lengths, size)


def labels(ids, prompts, lengths, start=0, stop=0, fill=-100):
    made = torch.full_like(ids, fill)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        made[row, prompt + start : length + stop] = ids[row, prompt + start : length + stop]
    return made


def by_token(ids, prompts, lengths):
    made = labels(ids, prompts, lengths)
    return made.masked_fill(made == ids[0, -1], -100)  # the padding token: also the end


def padding_kept(ids, prompts, lengths):
    return labels(ids, prompts, [ids.shape[1]] * len(lengths))


def prompt_kept(ids, prompts, lengths):
    return labels(ids, [0] * len(prompts), lengths)


def inverted(ids, prompts, lengths):
    return torch.where(labels(ids, prompts, lengths) == -100, ids, -100)


def in_place(ids, prompts, lengths):
    made = labels(ids, prompts, lengths)
    return ids.copy_(made)


def pack(rows, room, slack=0):
    made: list[tuple[list[int], list[int]]] = []
    for row in rows:
        fitting = (pair for pair in made if len(pair[0]) + len(row) <= room - slack)
        pair = next(fitting, None)
        if pair is None:
            pair = ([], [])
            made.append(pair)
        pair[0].extend(row)
        pair[1].extend(range(len(row)))
    return made


def next_fit(rows, room):
    made: list[tuple[list[int], list[int]]] = []
    for row in rows:
        if not made or len(made[-1][0]) + len(row) > room:
            made.append(([], []))
        made[-1][0].extend(row)
        made[-1][1].extend(range(len(row)))
    return made


def longest_first(rows, room):
    return pack(sorted(rows, key=len, reverse=True), room)


def running_on(rows, room):
    return [(tokens, list(range(len(tokens)))) for tokens, _ in pack(rows, room)]


def from_one(rows, room):
    return [(tokens, [p + 1 for p in places]) for tokens, places in pack(rows, room)]


def cut_in_two(rows, room):
    joined = [token for row in rows for token in row]
    parts = [joined[i : i + room] for i in range(0, len(joined), room)]
    return [(part, list(range(len(part)))) for part in parts]


def too_long(rows, room):
    return pack(rows, room, slack=-1)


def one_each(rows, room):
    return [(row, list(range(len(row)))) for row in rows]


def loses_rows(rows, room):
    made: list[tuple[list[int], list[int]]] = [([], [])]
    for row in rows:
        if len(made[-1][0]) + len(row) > room:
            made.append(([], []))  # and forgets the row that did not fit
        else:
            made[-1][0].extend(row)
            made[-1][1].extend(range(len(row)))
    return made


def leaked(train, held_out, change=lambda text: " ".join(text.split()).casefold()):
    seen = {change(text) for text in train}
    return [place for place, text in enumerate(held_out) if change(text) in seen]


def without_punctuation(text):
    return "".join(c for c in " ".join(text.split()).casefold() if c.isalnum() or c == " ")


def as_part(train, held_out):
    whole = [" ".join(text.split()).casefold() for text in train]
    asked = [" ".join(text.split()).casefold() for text in held_out]
    return [i for i, text in enumerate(asked) if any(text in one for one in whole)]


RIGHT = {
    "to_messages": to_messages,
    "padding_waste": waste,
    "answer_labels": labels,
    "pack": pack,
    "leaked": leaked,
}

WRONG: dict[str, list[tuple[Callable[..., Any], str]]] = {
    "to_messages": [
        (with_empty_input, "ends in white space"),
        (with_none, "a missing input is no text"),
        (without_input, "look at the input"),
        (one_line_break, "two line breaks"),
        (sharegpt, "have the keys from, value"),
        (human, "the roles of the row are 'human', 'gpt'"),
        (swapped, "the wrong way round"),
        (needs_input, "keyerror: 'input'"),
        (changes_row, "was changed by the function"),
        (lambda row: to_messages(row)[0], "a list of messages"),
        (lambda row: to_messages(row)[:1], "wanted are 'user', then 'assistant'"),
        (lambda row: None, "none"),
    ],
    "padding_waste": [
        (lambda lengths, size: 1 - waste(lengths, size), "is the share of tokens"),
        (lambda lengths, size: waste(lengths, size, divide_by_positions=False), "over tokens"),
        (lambda lengths, size: waste(lengths, size, widest=True), "the longest row of all"),
        (lambda lengths, size: waste(lengths, size, mean=True), "mean of the batches' shares"),
        (lambda lengths, size: waste(lengths, size, last=False), "leaves the last batch out"),
        (filled_up, "fewer rows"),
        (positions_only, "not their share"),
        (lambda lengths, size: waste(sorted(lengths), size), "sorted by length"),
        (lambda lengths, size: 100 * waste(lengths, size), "per cent"),
        (sorts_in_place, "was changed"),
        (lambda lengths, size: 0.3, "the share of padding is 0.3"),
    ],
    "answer_labels": [
        (by_token, "lose the end of each answer"),
        (padding_kept, "keep the padding"),
        (prompt_kept, "keep the prompt"),
        (lambda ids, p, n: ids.clone(), "nothing is masked"),
        (lambda ids, p, n: labels(ids, p, n, start=1), "lose the first token"),
        (lambda ids, p, n: labels(ids, p, n, start=-1), "keep the last token of each prompt"),
        (lambda ids, p, n: labels(ids, p, n, stop=-1), "lose the end of each answer"),
        (lambda ids, p, n: labels(ids, p, n, stop=1), "keep one padding token"),
        (lambda ids, p, n: labels(ids, p, n, fill=0), "0 is a token"),
        (lambda ids, p, n: labels(ids, p, n).roll(-1, 1), "shifted by one place"),
        (inverted, "the wrong way round"),
        (in_place, "was changed"),
        (lambda ids, p, n: labels(ids, p, n).tolist(), "not a tensor"),
        (lambda ids, p, n: torch.full_like(ids, -100), "the labels"),
    ],
    "pack": [
        (next_fit, "may fit into an earlier one"),
        (lambda rows, room: pack(rows, room, slack=1), "a row that fits exactly"),
        (longest_first, "sorted by length"),
        (running_on, "run on through the sequence"),
        (from_one, "start at 1"),
        (cut_in_two, "cut rows in two"),
        (too_long, "more than max_length"),
        (one_each, "nothing is joined"),
        (loses_rows, "tokens are in no sequence"),
        (lambda rows, room: [tokens for tokens, _ in pack(rows, room)], "a list of pairs"),
        (lambda rows, room: [], "tokens are in no sequence"),
    ],
    "leaked": [
        (lambda a, b: leaked(a, b, str), "letter by letter"),
        (lambda a, b: leaked(a, b, lambda t: " ".join(t.split())), "upper and lower case"),
        (lambda a, b: leaked(a, b, str.casefold), "white space as it stands"),
        (lambda a, b: leaked(a, b, lambda t: t.strip().casefold()), "several inside are one"),
        (lambda a, b: leaked(a, b, without_punctuation), "takes 1.5 for 15"),
        (lambda a, b: leaked(b, a), "places in train"),
        (lambda a, b: [b[i] for i in leaked(a, b)], "the questions came back"),
        (lambda a, b: [i for i in range(len(b)) if i not in leaked(a, b)], "did not leak"),
        (lambda a, b: [i + 1 for i in leaked(a, b)], "counts from 1"),
        (as_part, "only a part"),
        (lambda a, b: len(leaked(a, b)), "a list of places"),
        (lambda a, b: [], "the list"),
    ],
}  # fmt: skip

CASES = [(name, a, re.escape(text)) for name, cases in WRONG.items() for a, text in cases]


class TestData(CheckContract):
    topic, right, wrong = data, RIGHT, CASES
