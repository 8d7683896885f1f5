"""The checks of chapter 7 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable

import torch
from check_contract import CheckContract

from course_utils.checks import instruction


def by_kind(kinds, scores, divide=None, factor=1.0):
    total = Counter()
    for kind, score in zip(kinds, scores, strict=True):
        total[kind] += score
    number = Counter(kinds)
    return {kind: factor * total[kind] / (divide or number[kind]) for kind in number}


def last_score(kinds, scores):
    return dict(zip(kinds, scores, strict=True))


def grade(answer, wanted):
    try:
        parsed = json.loads(answer)
    except ValueError:
        return False
    return json.dumps(parsed, sort_keys=True) == json.dumps(wanted, sort_keys=True)


def grade_loosely(answer, wanted):
    try:
        return json.loads(answer) == wanted
    except ValueError:
        return False


def grade_found(answer, wanted):
    found = re.search(r"\{.*\}", answer, re.DOTALL)
    return bool(found) and grade(found[0], wanted)


def grade_keys_only(answer, wanted):
    try:
        return set(json.loads(answer)) == set(wanted)
    except (ValueError, TypeError):
        return False


def grade_subset(answer, wanted):
    try:
        parsed = json.loads(answer)
    except ValueError:
        return False
    return isinstance(parsed, dict) and all(
        grade(json.dumps(parsed.get(key)), value) for key, value in wanted.items()
    )


def grade_python(answer, wanted):
    try:
        return grade(json.dumps(ast.literal_eval(answer)), wanted) or grade(answer, wanted)
    except (ValueError, SyntaxError):
        return grade(answer, wanted)


def chosen(kinds, count, reverse=False, names=None):
    rows = {}
    for place, kind in enumerate(kinds):
        rows.setdefault(kind, []).append(place)
    taken = []
    while any(rows.values()) and len(taken) < count:
        for kind in names(rows) if names else rows:
            if rows[kind] and len(taken) < count:
                taken.append(rows[kind].pop(-1 if reverse else 0))
    return sorted(taken)


def equal_shares(kinds, count):
    share, taken, seen = count // len(set(kinds)), [], Counter()
    for place, kind in enumerate(kinds):
        seen[kind] += 1
        if seen[kind] <= share:
            taken.append(place)
    return taken


def by_size(kinds, count):
    number = Counter(kinds)
    seen, taken = Counter(), []
    for place, kind in enumerate(kinds):
        seen[kind] += 1
        if seen[kind] <= round(count * number[kind] / len(kinds)):
            taken.append(place)
    return (taken + [p for p in range(len(kinds)) if p not in taken])[:count]


def in_place(kinds, count):
    result = chosen(kinds, count)
    kinds.sort()
    return result


def cut(values, low, high):
    return tuple(torch.quantile(values, torch.tensor([low, high])).tolist())


def interval(scores, picks, level, values=None):
    means = scores[picks].mean(1) if values is None else values
    return cut(means, (1 - level) / 2, (1 + level) / 2)


def sorted_interval(scores, picks, level):
    means = sorted(scores[picks].mean(1).tolist())
    off = int((1 - level) / 2 * len(means))
    return means[off], means[-off - 1]


def bell(scores, picks, level):
    means = scores[picks].mean(1)
    z = torch.special.ndtri(torch.tensor((1 + level) / 2))
    return (means.mean() - z * means.std()).item(), (means.mean() + z * means.std()).item()


def gain(before, after, draws, level, size=None, fixed=False, apart=False):
    count = size(len(before)) if size else len(before)
    picks = torch.randint(len(before), (draws, count))
    if fixed:
        picks = torch.stack([torch.randperm(len(before)) for _ in range(draws)])
    other = torch.randint(len(before), picks.shape) if apart else picks
    means = after[picks].mean(1) - before[other].mean(1)
    return interval(None, None, level, means)


RIGHT: dict[str, Callable] = {
    "score_by_kind": by_kind,
    "grade_json": grade,
    "balanced": chosen,
    "interval": interval,
    "gain_interval": gain,
}
WRONG: list[tuple[str, Callable, str]] = [
    ("score_by_kind", lambda k, s: by_kind(k, s, divide=1), "are sums"),
    ("score_by_kind", lambda k, s: by_kind(k, s, divide=len(k)), "number of all questions"),
    ("score_by_kind", lambda k, s: by_kind(k, s, divide=len(set(k))), "number of kinds"),
    ("score_by_kind", lambda k, s: by_kind(k, s, factor=100), "per cent"),
    ("score_by_kind", lambda k, s: dict(Counter(k)), "numbers of questions"),
    ("score_by_kind", lambda k, s: dict.fromkeys(k, sum(s) / len(s)), "mean over all"),
    ("score_by_kind", last_score, "side by side"),
    ("score_by_kind", lambda k, s: list(by_kind(k, s).values()), "a dict of kind"),
    ("score_by_kind", lambda k, s: {}, "has 0 kinds"),
    ("grade_json", lambda a, w: json.loads(a) == w, "your code stopped at"),
    ("grade_json", grade_loosely, "1 is not true"),
    ("grade_json", grade_found, "text before"),
    ("grade_json", grade_keys_only, "a value differs"),
    ("grade_json", grade_subset, "a key too many"),
    ("grade_json", grade_python, "Python's way"),
    ("grade_json", lambda a, w: a == json.dumps(w), "order of keys"),
    ("grade_json", lambda a, w: json.dumps(w) in a, "order of keys"),
    ("grade_json", lambda a, w: float(grade(a, w)), "True or False is wanted"),
    ("grade_json", lambda a, w: True, "text before"),
    ("grade_json", lambda a, w: False, "it is the wanted object"),
    ("balanced", lambda k, n: list(range(min(n, len(k)))), "simply the first rows"),
    ("balanced", equal_shares, "where .* are wanted"),
    ("balanced", by_size, "the kinds get|the first rows|where .* are wanted"),
    ("balanced", lambda k, n: chosen(k, n, reverse=True), "not the first rows"),
    ("balanced", lambda k, n: chosen(k, n, names=lambda r: list(r)[::-1]), "left over"),
    ("balanced", lambda k, n: chosen(k, n)[::-1], "should rise"),
    ("balanced", lambda k, n: [k[p] for p in chosen(k, n)], "a list of places"),
    ("balanced", lambda k, n: [p + 1 for p in chosen(k, n)], "where|first rows|the kinds|places"),
    ("balanced", lambda k, n: chosen(k, n) + [0], "taken twice|where .* are wanted"),
    ("balanced", in_place, "was changed"),
    ("interval", lambda s, p, c: interval(s, p, 2 * c - 1), "cuts 1 - level off"),
    ("interval", lambda s, p, c: interval(s, p, c, s), "single scores"),
    ("interval", lambda s, p, c: interval(s, p, c, s[p].mean(0)), "wrong axis"),
    ("interval", lambda s, p, c: tuple(100 * e for e in interval(s, p, c)), "per cent"),
    ("interval", lambda s, p, c: interval(s, p, c)[::-1], "wrong way round"),
    ("interval", lambda s, p, c: interval(s, p, 1.0), "nothing is cut off"),
    ("interval", bell, "no bell curve"),
    ("interval", lambda s, p, c: interval(s, p, c)[0], "two numbers"),
    ("gain_interval", lambda b, a, n, c: gain(a, b, n, c), "wrong sign"),
    ("gain_interval", lambda b, a, n, c: gain(b, a, n, 2 * c - 1), "cuts 1 - level off"),
    ("gain_interval", lambda *t: gain(*t, apart=True), "drawn apart"),
    ("gain_interval", lambda b, a, n, c: gain(0 * a, a, n, c), "score after"),
    ("gain_interval", lambda b, a, n, c: interval(0, 0, c, a - b), "single gains"),
    ("gain_interval", lambda *t: gain(*t, fixed=True), "has no width"),
    ("gain_interval", lambda *t: gain(*t, size=lambda n: n // 2), "as many questions"),
    ("gain_interval", lambda *t: gain(*t)[::-1], "wrong way round"),
]


def test_other_ways_to_cut_are_right_too() -> None:
    for _ in range(20):
        instruction.interval(sorted_interval)


class TestInstruction(CheckContract):
    topic, right, wrong = instruction, RIGHT, WRONG
