"""Score one answer by the program that its conversation names in `info["check"]`.

Checks are strict: what a person would have to repair before use (a sentence around the JSON, a
label inside a phrase) scores 0. Only this is forgiven, for every type: white space around the
answer; and for code: one ``` fence that encloses the whole answer.

type          keys                 1.0 when the answer ...
----------    -----------------    -------------------------------------------------------------
exact         value                is the value
choice        value                is the value, upper/lower case and closing punctuation aside
number        value                is a number equal to the value (1,200.50 equals 1200.5)
json          value                is JSON equal to the value, types included; key order is free
lines         value                has exactly these lines (white space around each aside)
contains      values [, absent]    names every value as a whole word, and none of `absent`
token_f1      references           (0 to 1: best overlap of words, Chinese by character)
unit_tests    entry, tests         is code that passes the tests (run by `sandbox`)
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from course_utils import sandbox
from course_utils.data import Conversation
from course_utils.errors import CourseError

Check = dict[str, Any]


def grade(answer: str, conversation: Conversation) -> float:
    """Return the score, 0.0 to 1.0, of an answer to a conversation's prompt.

    Raises:
        CourseError: the conversation carries no check, or a malformed one.
    """
    check = check_of(conversation)
    if check["type"] == "unit_tests":
        return float(sandbox.run(unwrap_code(answer), check["tests"]).passed)
    return float(_GRADERS[check["type"]](answer.strip(), check))


def grade_all(answers: Sequence[str], conversations: Sequence[Conversation]) -> list[float]:
    """Grade many answers, in order; unit tests run in several processes at once.

    Raises:
        CourseError: the two sequences differ in length, or a check is malformed.
    """
    if len(answers) != len(conversations):
        raise CourseError(
            f"There are {len(answers)} answers for {len(conversations)} conversations; "
            "give one answer for each."
        )
    checks = [check_of(conversation) for conversation in conversations]
    by_tests = [i for i, check in enumerate(checks) if check["type"] == "unit_tests"]
    outcomes = sandbox.run_many([(unwrap_code(answers[i]), checks[i]["tests"]) for i in by_tests])
    scores = {i: float(outcome.passed) for i, outcome in zip(by_tests, outcomes, strict=True)}
    return [
        scores[i] if i in scores else grade(answer, conversation)
        for i, (answer, conversation) in enumerate(zip(answers, conversations, strict=True))
    ]


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of pass@k: the chance that at least one of k answers to a task is right.

    The share of all choices of k among the drawn answers that hold a right one (Chen et al. 2021,
    arXiv:2107.03374, eq. 1); average it over the tasks. 1 - (1 - correct / samples)^k instead
    would be too low on average.

    Args:
        samples: answers drawn for this task, at least k.
        correct: how many of them are right.
        k: answers that may be tried.

    Raises:
        CourseError: not 0 <= correct <= samples, or not 1 <= k <= samples.
    """
    if not 0 <= correct <= samples:
        raise CourseError(f"correct is {correct}: give a number from 0 to samples ({samples}).")
    if not 1 <= k <= samples:
        raise CourseError(f"k is {k}: give a number from 1 to samples ({samples}), or draw more.")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def check_of(conversation: Conversation) -> Check:
    """Return the conversation's check, or raise a CourseError that says what is wrong with it."""
    check = conversation.info.get("check")
    if not isinstance(check, dict) or "type" not in check:
        raise CourseError(
            'This conversation cannot be graded: info["check"] must be a dict with a "type".'
        )
    kind = check["type"]
    if not isinstance(kind, str) or kind not in _WELL_FORMED:
        raise CourseError(f"Unknown check type {kind!r}; use one of {', '.join(_WELL_FORMED)}.")
    wanted, is_right = _WELL_FORMED[kind]
    try:
        right = is_right(check)
    except KeyError:
        right = False
    if not right:
        raise CourseError(f'The check of type "{kind}" is malformed: it needs {wanted}.')
    return check


def unwrap_code(answer: str) -> str:
    """Take the code out of a ``` fence that encloses the whole answer; else return it as it is."""
    fenced = re.fullmatch(r"```[\w+-]*[ \t]*\n(.*?)\n?```", answer.strip(), flags=re.DOTALL)
    return fenced.group(1) if fenced and "```" not in fenced.group(1) else answer


def extract_code(answer: str, entry: str) -> str:
    """The code in an answer that may hold prose too: its ``` block that defines `entry`.

    Else its first block, and an answer without one as it is.  The last block may lack its closing
    fence, since answers are cut at a limit.  Grading does not do this: it is for a kinder look at
    a model that was never told to answer with code alone.
    """
    blocks = re.findall(r"```[\w+-]*[ \t]*\n(.*?)(?:```|\Z)", answer, flags=re.DOTALL)
    fitting = [block for block in blocks if re.search(rf"\bdef {re.escape(entry)}\b", block)]
    return (fitting or blocks or [answer])[0]


def _exact(answer: str, check: Check) -> bool:
    return answer == check["value"].strip()


def _choice(answer: str, check: Check) -> bool:
    def plain(text: str) -> str:
        return text.strip().rstrip(".!。！").strip().casefold()

    return plain(answer) == plain(check["value"])


def _number(answer: str, check: Check) -> bool:
    if not re.fullmatch(r"[+-]?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", answer, flags=re.ASCII):
        return False
    return Decimal(answer.replace(",", "")) == Decimal(str(check["value"]))


def _json(answer: str, check: Check) -> bool:
    try:
        parsed = json.loads(answer, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError):
        return False
    return _same_json(parsed, check["value"])


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _same_json(left: Any, right: Any) -> bool:
    """Equality that tells true from 1 and "1" from 1 (Python's == takes True for 1)."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same_json(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same_json, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return left == right


def _lines(answer: str, check: Check) -> bool:
    return [line.strip() for line in answer.splitlines()] == check["value"]


def _contains(answer: str, check: Check) -> bool:
    named = all(_names(answer, value) for value in check["values"])
    return named and not any(_names(answer, value) for value in check.get("absent", []))


def _names(answer: str, value: str) -> bool:
    """Whether the value stands in the answer, not as a part of a longer word or number."""
    before = r"(?<![A-Za-z0-9])" if re.match(r"[A-Za-z0-9]", value) else ""
    after = r"(?![A-Za-z0-9])" if re.search(r"[A-Za-z0-9]$", value) else ""
    return re.search(before + re.escape(value) + after, answer, flags=re.IGNORECASE) is not None


def _token_f1(answer: str, check: Check) -> float:
    return max(_f1(words(answer), words(reference)) for reference in check["references"])


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; each Chinese character is a word."""
    return re.findall(r"[\u4e00-\u9fff]|[^\W_\u4e00-\u9fff]+", text.casefold())


def _f1(answer: list[str], reference: list[str]) -> float:
    """Harmonic mean of precision and recall over the words (as in SQuAD, Rajpurkar et al. 2016)."""
    common = sum((Counter(answer) & Counter(reference)).values())
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and values != [] and all(map(_is_text, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


_GRADERS: dict[str, Callable[[str, Check], float]] = {
    "exact": _exact,
    "choice": _choice,
    "number": _number,
    "json": _json,
    "lines": _lines,
    "contains": _contains,
    "token_f1": _token_f1,
}
_WELL_FORMED: dict[str, tuple[str, Callable[[Check], bool]]] = {
    "exact": ('"value", a text', lambda c: _is_text(c["value"])),
    "choice": ('"value", a text', lambda c: _is_text(c["value"])),
    "number": ('"value", a number', lambda c: _is_number(c["value"])),
    "json": ('"value", an object or a list', lambda c: isinstance(c["value"], dict | list)),
    "lines": ('"value", a list of texts', lambda c: _are_texts(c["value"])),
    "contains": (
        '"values", a list of texts ("absent", another, is optional)',
        lambda c: _are_texts(c["values"]) and ("absent" not in c or _are_texts(c["absent"])),
    ),
    "token_f1": ('"references", a list of texts', lambda c: _are_texts(c["references"])),
    "unit_tests": (
        '"entry", a function\'s name, and "tests" that call it',
        lambda c: (
            _is_text(c["entry"])
            and c["entry"].isidentifier()
            and _is_text(c["tests"])
            and f"{c['entry']}(" in c["tests"]
        ),
    ),
}
