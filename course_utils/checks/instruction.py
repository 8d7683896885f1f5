"""Checks of chapter 7: scores by kind, a grader of JSON, a balanced subset, two intervals."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import check, draw, expect, short, unchanged

Interval = tuple[float, float]

# -------------------------------------------------------------------------------- by kind


@check("the mean of each kind over its own questions.")
def score_by_kind(attempt: Any) -> None:
    names = draw.sample([draw.word() for _ in range(20)], 4)
    counts = draw.sample(range(2, 9), 4)
    kinds = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    random.shuffle(kinds)
    scores = [draw.number(0.1, 0.9) for _ in kinds]
    kept = list(kinds), list(scores)
    got = attempt(kinds, scores)
    unchanged((kinds, scores), kept, "a list")
    expect(isinstance(got, Mapping), f"{short(got)} came back; a dict of kind -> mean is wanted")
    expect(
        set(got) == set(names),
        f"the dict has {len(got)} kinds ({short(sorted(map(str, got)))}), not the {len(names)} "
        "that occur",
    )
    total = dict.fromkeys(names, 0.0)
    for kind, score in zip(kinds, scores, strict=True):
        total[kind] += score
    number = Counter(kinds)
    wrong = {
        "are sums; a mean divides by the number of questions": total,
        "divide by the number of all questions; each kind has its own number": {
            name: total[name] / len(kinds) for name in names
        },
        "divide by the number of kinds; the questions of each kind are what counts": {
            name: total[name] / len(names) for name in names
        },
        "are per cent; shares from 0 to 1 are wanted": {
            name: 100 * total[name] / number[name] for name in names
        },
        "are the numbers of questions": dict(number),
        "are all the mean over all questions": dict.fromkeys(names, sum(scores) / len(scores)),
    }
    for off, values in wrong.items():
        expect(not _near(got, values), f"the values {off}")
    right = {name: total[name] / number[name] for name in names}
    expect(
        _near(got, right),
        f"of the kind {names[0]!r} came {short(got[names[0]])}, and it should be "
        f"{short(right[names[0]])}",
        look="which scores belong to a kind: the two lists run side by side",
    )


def _near(got: Mapping[str, Any], wanted: Mapping[str, float]) -> bool:
    return all(
        isinstance(got[name], int | float | Tensor)
        and math.isclose(float(got[name]), value, rel_tol=1e-5)
        for name, value in wanted.items()
    )


# ------------------------------------------------------------------------------------ JSON


@check("parsed and compared with types: nothing around it, and no answer stops the program.")
def grade_json(attempt: Any) -> None:
    wanted = {"product": draw.word(), "count": 1, "late": True, "note": draw.word()}
    for answer, right, why in _answers(wanted):
        kept = dict(wanted)
        got = attempt(answer, wanted)
        unchanged(wanted, kept, "the dict wanted")
        expect(got is not None, "the function returns nothing for some answers")
        expect(isinstance(got, bool), f"{short(got)} came back; True or False is wanted")
        verdict = "passes, and it should not" if got else "does not pass, and it should"
        expect(got == right, f"the answer {short(answer)} {verdict}: {why}")


def _answers(wanted: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """(answer, whether it is right, why)."""
    text = json.dumps(wanted)
    turned = dict(reversed(wanted.items()))
    short_of = {key: value for key, value in wanted.items() if key != "note"}
    return [
        (text, True, "it is the wanted object"),
        (json.dumps(turned), True, "the order of keys does not count"),
        (f"\n {json.dumps(wanted, indent=2)}\n", True, "white space does not count"),
        (f"Here is the JSON: {text}", False, "there is text before the object"),
        (f"{text}\nI hope this helps.", False, "there is text behind the object"),
        (f"```json\n{text}\n```", False, "the program behind it cannot read a fence"),
        (text[:-4], False, "it is cut off"),
        ("", False, "it is empty"),
        (str(wanted), False, "that is Python's way to write it, not JSON"),
        (json.dumps(short_of), False, "a key is missing"),
        (json.dumps(wanted | {draw.word(): 2}), False, "there is a key too many"),
        (json.dumps(wanted | {"note": draw.word(7)}), False, "a value differs"),
        (json.dumps(wanted | {"count": "1"}), False, 'the text "1" is not the number 1'),
        (json.dumps(wanted | {"late": 1}), False, "1 is not true, though Python's == takes it"),
        (json.dumps(wanted | {"count": True}), False, "true is not 1, though Python's == takes it"),
        (json.dumps([wanted]), False, "it is a list"),
        (json.dumps(list(wanted)), False, "it is a list of the keys"),
        ("3", False, "it is a number"),
    ]


# ------------------------------------------------------------------------------- balanced


@check("kinds take turns; a small one gives all it has, and the others go on.")
def balanced(attempt: Any) -> None:
    names = [draw.word() for _ in range(4)]
    sizes = [draw.integer(12, 15), draw.integer(12, 15), draw.integer(4, 5), 2]
    kinds = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    # 2 of the smallest, all 4 or 5 of the next, and an odd number left for the two large ones
    count = 2 + sizes[2] + 2 * draw.integer(7, 8) + 1
    even = sorted(Counter(kinds[place] for place in _turns(kinds, count)).values())
    while True:  # until the first rows are not balanced by chance
        random.shuffle(kinds)
        if sorted(Counter(kinds[:count]).values()) != even:
            break
    _balanced(attempt, kinds, count)
    _balanced(attempt, kinds, len(kinds) + 3)


def _balanced(attempt: Any, kinds: list[str], count: int) -> None:
    kept = list(kinds)
    got = attempt(kinds, count)
    unchanged(kinds, kept, "the list kinds")
    whole = isinstance(got, Sequence) and not isinstance(got, str)
    expect(
        whole and all(type(place) is int for place in got),
        f"{short(got)} came back; a list of places (whole numbers) is wanted",
    )
    places, most = list(got), min(count, len(kinds))
    expect(
        not places or (min(places) >= 0 and max(places) < len(kinds)),
        f"places run from 0 to {len(kinds) - 1}, and {short(places)} has others",
    )
    expect(len(set(places)) == len(places), "a row is taken twice")
    wanted = _turns(kinds, most)
    number, right = (Counter(kinds[p] for p in chosen) for chosen in (places, wanted))
    expect(
        sorted(places) != list(range(most)) or sorted(places) == sorted(wanted),
        "these are simply the first rows: the kinds with many rows get most of them",
    )
    expect(
        len(places) == most,
        f"{len(places)} rows came back where {most} are wanted and there are {len(kinds)}",
        look="kinds that have fewer rows than their share: the others go on without them",
    )
    expect(
        sorted(number.values()) == sorted(right.values()),
        f"the kinds get {sorted(number.values(), reverse=True)} rows, and it should be "
        f"{sorted(right.values(), reverse=True)}",
        look="whose turn it is when a kind has run out",
    )
    expect(
        number == right,
        "the row left over at the end went to another kind: turns go in the order in which the "
        "kinds first occur",
    )
    expect(
        sorted(places) == sorted(wanted),
        "of some kind not the first rows were taken",
        look="the order of rows within a kind",
    )
    expect(places == sorted(places), "the places are right, and should rise")


def _turns(kinds: list[str], count: int) -> list[int]:
    rows: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        rows.setdefault(kind, []).append(place)
    chosen: list[int] = []
    while len(chosen) < count:
        for left in rows.values():
            if left and len(chosen) < count:
                chosen.append(left.pop(0))
    return sorted(chosen)


# ------------------------------------------------------------------------------ intervals


@check("the mean of each draw, and what lies between the two cuts.")
def interval(attempt: Any) -> None:
    level, draws, size = draw.pick((0.8, 0.9)), 1000, draw.integer(8, 10)
    picks = torch.randint(size, (draws, size))
    while True:  # few and skewed, so that the bell curve is another interval
        scores = torch.rand(size) ** 3
        means = scores[picks].mean(1)
        spread = torch.std(means).item()
        right, known = _cuts(means, level), _mistaken(scores, picks, means, level)
        if all(_apart(right, other, 0.15 * spread) for other in known.values()):
            break
    kept = scores.clone(), picks.clone()
    got = _pair(attempt(scores, picks, level))
    unchanged(scores, kept[0], "the tensor scores")
    unchanged(picks, kept[1], "the tensor picks")
    if not _between_neighbors(got, means, level):
        _explained(got, right, known, 0.05 * spread)


def _between_neighbors(got: Interval, means: Tensor, level: float) -> bool:
    """Whether both ends are at the cuts, whichever of the means beside a cut is taken."""
    ranked, cuts = means.sort().values, ((1 - level) / 2, (1 + level) / 2)
    ranks = [cut * (len(ranked) - 1) for cut in cuts]
    return all(
        ranked[math.floor(rank) - 1] <= end <= ranked[math.ceil(rank) + 1]
        for rank, end in zip(ranks, got, strict=True)
    )


def _mistaken(scores: Tensor, picks: Tensor, means: Tensor, level: float) -> dict[str, Interval]:
    """What goes wrong -> the interval that it gives."""
    low, high = _cuts(means, level)
    middle, spread = means.mean().item(), means.std().item()
    z = torch.special.ndtri(torch.tensor((1 + level) / 2)).item()
    return {
        "cuts 1 - level off at each end; both ends together are 1 - level": _cuts(
            means, 2 * level - 1
        ),
        "is between quantiles of the single scores; take the mean of each draw first": _cuts(
            scores, level
        ),
        "takes the mean along the wrong axis: a row of picks is one draw": _cuts(
            scores[picks].mean(0), level
        ),
        "is in per cent; shares are wanted": (100 * low, 100 * high),
        "has its ends the wrong way round": (high, low),
        "is from the lowest to the highest mean: nothing is cut off": (
            means.min().item(),
            means.max().item(),
        ),
        "is the middle and z standard deviations: these means are skewed, and no bell curve": (
            middle - z * spread,
            middle + z * spread,
        ),
    }


@check("both answers to a question are drawn together, as often as there are questions.")
def gain_interval(attempt: Any) -> None:
    level, draws, size = draw.pick((0.8, 0.9)), 4000, draw.integer(60, 70)
    before = torch.rand(size) * 0.6
    after = before + 0.4 * torch.rand(size) ** 3
    gains, picks = after - before, torch.randint(size, (draws, size))
    means = gains[picks].mean(1)
    spread, middle = means.std().item(), gains.mean().item()
    right = _cuts(means, level)
    apart = after[picks].mean(1) - before[torch.randint(size, (draws, size))].mean(1)
    half = gains[picks[:, : size // 2]].mean(1)
    known = {
        "has the wrong sign: the gain is after less before": (-right[1], -right[0]),
        "cuts 1 - level off at each end; both ends together are 1 - level": _cuts(
            means, 2 * level - 1
        ),
        "is too wide: before and after are drawn apart. A drawn question brings both its "
        "scores along": _cuts(apart, level),
        "is that of the score after, not of the gain": _cuts(after[picks].mean(1), level),
        "is between quantiles of the single gains; take the mean of each draw first": _cuts(
            gains, level
        ),
        "has no width: every draw holds the same questions. Draw with repeats, and anew each "
        "time": (middle, middle),
        "is too wide: each draw must hold as many questions as there are": _cuts(half, level),
        "has its ends the wrong way round": right[::-1],
        "is in per cent; shares are wanted": (100 * right[0], 100 * right[1]),
    }
    kept = before.clone(), after.clone()
    got = _pair(attempt(before, after, draws, level))
    unchanged(before, kept[0], "the tensor before")
    unchanged(after, kept[1], "the tensor after")
    _explained(got, right, known, 0.17 * spread)


def _cuts(values: Tensor, level: float) -> Interval:
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2])
    low, high = torch.quantile(values, ends).tolist()
    return low, high


def _apart(one: Interval, other: Interval, by: float) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) > by


def _pair(got: Any) -> Interval:
    """The two ends as numbers."""
    expect(got is not None, "the function returns nothing")
    ends = got.tolist() if isinstance(got, Tensor) else got
    expect(
        isinstance(ends, Sequence) and len(ends) == 2,
        f"{short(got)} came back; two numbers (low, high) are wanted",
    )
    low, high = (float(end) for end in ends)
    expect(math.isfinite(low) and math.isfinite(high), "an end is not finite")
    return low, high


def _explained(
    got: Interval, right: Interval, known: Mapping[str, Interval], tolerance: float
) -> None:
    if not _apart(got, right, tolerance):
        return
    # the nearest explanation, where one is near
    distance = {
        off: max(abs(a - b) for a, b in zip(got, wrong, strict=True))
        for off, wrong in known.items()
    }
    off = min(distance, key=lambda name: distance[name])
    wider = max(1.0, (known[off][1] - known[off][0]) / (right[1] - right[0]))  # so is its chance
    expect(distance[off] > 2 * tolerance * wider, f"the interval {off}")
    ends = " to ".join(f"{end:.3f}" for end in got)
    wanted = " to ".join(f"{end:.3f}" for end in right)
    expect(False, f"the interval is {ends}, and should be about {wanted}", look="each of the steps")
