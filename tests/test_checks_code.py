"""The checks of chapter 8 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import ClassVar

from check_contract import CheckContract

from course_utils import sandbox
from course_utils.checks import code


def block(answer, entry):
    blocks = re.findall(r"```\w*\n(.*?)(?:```|\Z)", answer, flags=re.DOTALL)
    fitting = [block for block in blocks if f"def {entry}(" in block]
    return (fitting or blocks or [answer])[0]


def first_block(answer, entry):
    found = re.search(r"```\w*\n(.*?)(?:```|\Z)", answer, flags=re.DOTALL)
    return found[1] if found else answer


def last_block(answer, entry):
    return (re.findall(r"```\w*\n(.*?)(?:```|\Z)", answer, flags=re.DOTALL) or [answer])[-1]


def closed_block(answer, entry):
    found = re.search(r"```\w*\n(.*?)```", answer, flags=re.DOTALL)
    return found[1] if found else answer


def python_block(answer, entry):
    found = re.search(r"```python\n(.*?)(?:```|\Z)", answer, flags=re.DOTALL)
    return found[1] if found else answer


def greedy_block(answer, entry):
    found = re.search(r"```\w*\n(.*)(?:\n```|\Z)", answer, flags=re.DOTALL)
    return found[1].replace("```", "") if found else answer


def mentioning_block(answer, entry):
    blocks = re.findall(r"```\w*\n(.*?)(?:```|\Z)", answer, flags=re.DOTALL)
    fitting = [block for block in blocks if f"{entry}(" in block]
    return (fitting or blocks or [answer])[0]


def keeps_language(answer, entry):
    return answer.split("```")[1] if "```" in answer else answer


def only_fenced(answer, entry):
    return block(answer, entry) if "```" in answer else ""


def estimate(n, c, k):
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def overflowing(n, c, k):
    if n - c < k:
        return 1.0
    f = math.factorial
    none = float(f(n - c)) / f(n - c - k) * f(n - k) / float(f(n))
    return 1 - none


def cause(outcome):
    reason = outcome.reason
    if outcome.passed:
        return "passed"
    for starts, named in {
        "SyntaxError": "not Python",
        "IndentationError": "not Python",
        "NameError": "missing name",
        "time limit": "too slow",
        "PermissionError": "forbidden",
    }.items():
        if reason.startswith(starts):
            return named
    return "wrong result"


def cause_anywhere(outcome):
    for word in ("time limit", "PermissionError"):
        if not outcome.passed and word in outcome.reason:
            return "too slow" if word == "time limit" else "forbidden"
    return cause(outcome)


def without(named: str, instead: str) -> Callable:
    return lambda outcome: instead if cause(outcome) == named else cause(outcome)


def cause_of_assertions(outcome):
    failed = outcome.reason.startswith("failed")
    return cause(outcome) if failed or cause(outcome) != "wrong result" else "forbidden"


def judged(codes, reference, tests):
    outcomes = sandbox.run_many([(code, tests) for code in codes])
    by_text = [code.strip() == reference.strip() for code in codes]
    return by_text, [outcome.passed for outcome in outcomes]


def judged_swapping(codes, reference, tests):
    outcomes = sandbox.run_many([(tests, code) for code in codes])
    return judged(codes, reference, tests)[0], [outcome.passed for outcome in outcomes]


CLAMP = """
assert clamp(5, 0, 10) == 5
assert clamp(-8, -5, 10) == -5
assert clamp(-2, -5, 10) == -2
assert clamp(12, 0, 10) == 10
"""


def needed(right, wrong, inputs):
    left, kept = list(wrong), []
    for value in inputs:
        exposed = [f for f in left if code._exposes(f, right, value)]
        if exposed:
            kept.append(value)
            left = [f for f in left if f not in exposed]
    return kept


def needed_without_errors(right, wrong, inputs):
    def differs(f, value):
        try:
            return f(value) != right(value)
        except Exception:
            return False

    left, kept = list(wrong), []
    for value in inputs:
        exposed = [f for f in left if differs(f, value)]
        kept += [value] if exposed else []
        left = [f for f in left if f not in exposed]
    return kept


def needed_uncaught(right, wrong, inputs):
    return [n for n in inputs if any(f(n) != right(n) for f in wrong)]


def needed_often(right, wrong, inputs):
    return [n for n in inputs if any(code._exposes(f, right, n) for f in wrong)]


RIGHT: dict[str, Callable] = {
    "code_block": block,
    "pass_at_k": estimate,
    "cause": cause,
    "judged": judged,
    "tests_of_clamp": lambda: CLAMP,
    "needed_inputs": needed,
}
WRONG: list[tuple[str, Callable, str]] = [
    ("code_block", lambda answer, entry: answer, "still holds a fence"),
    ("code_block", first_block, "second defines the function"),
    ("code_block", last_block, "first defines the function"),
    ("code_block", mentioning_block, "first block only uses the function"),
    ("code_block", closed_block, "cut off"),
    ("code_block", python_block, "names no language"),
    ("code_block", greedy_block, "holds more|prose around"),
    ("code_block", keeps_language, "fence's language"),
    ("code_block", only_fenced, "without any fence.*is empty"),
    ("code_block", lambda answer, entry: block(answer, entry).split("\n"), "not a text"),
    ("pass_at_k", lambda n, c, k: 1 - (1 - c / n) ** k, "naive estimate"),
    ("pass_at_k", lambda n, c, k: 1 - estimate(n, c, k), "take it off 1"),
    ("pass_at_k", lambda n, c, k: c / n, "pass@1"),
    ("pass_at_k", lambda n, c, k: math.comb(c, k) / math.comb(n, k), "all k are right"),
    ("pass_at_k", lambda n, c, k: 1 - math.comb(c, k) / math.comb(n, k), "n - c are wrong"),
    ("pass_at_k", overflowing, "your code stopped at"),
    ("pass_at_k", lambda n, c, k: 100 * estimate(n, c, k), "100|too large"),
    ("cause", lambda outcome: "passed", "not 'passed'"),
    ("cause", lambda outcome: outcome.reason, "none of the causes"),
    ("cause", lambda outcome: outcome.passed, "not a text"),
    ("cause", cause_anywhere, "only holds such words"),
    ("cause", cause_of_assertions, "gave an exception"),
    ("cause", without("forbidden", "wrong result"), "'forbidden', not 'wrong result'"),
    ("cause", without("missing name", "not Python"), "'missing name', not 'not Python'"),
    ("cause", without("too slow", "wrong result"), "never ends"),
    ("judged", lambda *t: judged(*t)[::-1], "wrong way round"),
    ("judged", lambda *t: (judged(*t)[0],) * 2, "run the code"),
    ("judged", lambda c, r, t: ([x == r for x in c], judged(c, r, t)[1]), "white space"),
    ("judged", judged_swapping, "by running"),
    ("judged", lambda c, r, t: ([1] * len(c), judged(c, r, t)[1]), "not True or False"),
    ("judged", lambda *t: judged(*t)[1], "two lists"),
    ("tests_of_clamp", lambda: CLAMP.replace("== 10", "== 9"), "reject a right function"),
    ("tests_of_clamp", lambda: "assert clamp(5, 0, 10) == 5", "as it is"),
    (
        "tests_of_clamp",
        lambda: (
            CLAMP.replace("(-8, -5", "(2, 4")
            .replace("== -5", "== 4")
            .replace("(-2, -5", "(4, 0")
            .replace("== -2", "== 4")
        ),
        "sign",
    ),
    ("tests_of_clamp", lambda: CLAMP.rpartition("assert")[0], "no upper limit"),
    ("tests_of_clamp", lambda: CLAMP.replace("assert", "assrt"), "reject a right function"),
    ("tests_of_clamp", lambda: CLAMP.splitlines(), "not a text"),
    ("needed_inputs", needed_often, "exposed already"),
    ("needed_inputs", needed_without_errors, "one function raises"),
    ("needed_inputs", needed_uncaught, "your code stopped at|cannot be used"),
    ("needed_inputs", lambda r, w, i: list(i), "exposes nothing"),
    ("needed_inputs", lambda r, w, i: needed(r, w, i[::-1])[::-1], "list of kept inputs|not kept"),
]


class TestCode(CheckContract):
    topic, right, wrong = code, RIGHT, WRONG
    rounds: ClassVar[int] = 2
