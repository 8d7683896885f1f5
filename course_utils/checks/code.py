"""Checks of chapter 8: code blocks, pass@k, outcomes, text against tests, tests that catch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from course_utils import sandbox
from course_utils.sandbox import Outcome

from . import check, draw, expect, same_items, same_number, short, unchanged

SECONDS = 1.0  # for one run of code in a check
CAUSES = ("passed", "wrong result", "not Python", "missing name", "too slow", "forbidden")
Function = Callable[[int], Any]


# ------------------------------------------------------------------- 1: the code in an answer


@check("the block that defines the function, closed or not, else the first; else the answer.")
def code_block(attempt: Any) -> None:
    entry, other = f"{draw.word()}_{draw.word(3)}", draw.word(8)
    code = f"def {entry}(n):\n    return n + {draw.integer(2, 99)}"
    helper = f"def {other}():\n    return '{draw.word()}'"
    prose = f"Here it is, {draw.word()}:\n\n"
    end = f"\n\nIt calls `{draw.word()}` and adds a number."
    for answer, wanted, off in (
        (f"{prose}```python\n{code}\n```{end}", code, "of a block with prose around it"),
        (f"```\n{code}\n```", code, "of a block whose fence names no language"),
        (code, code, "of an answer without any fence (it is the code)"),
        (f"{prose}```python\n{code}", code, "of a block that was cut off before its closing fence"),
        (
            f"{prose}```bash\npip install {other}\n```\nand\n```python\n{code}\n```",
            code,
            "of an answer with two blocks, of which the second defines the function",
        ),
        (
            f"```python\n{code}\n```\nUse it like this:\n```python\nprint({entry}(3))\n```",
            code,
            "of an answer with two blocks, of which the first defines the function",
        ),
        (
            f"First a test:\n```python\nassert {entry}(1) > 2\n```\nand\n```python\n{code}\n```",
            code,
            "of an answer whose first block only uses the function, and whose second defines it",
        ),
        (
            f"```python\n{helper}\n```\nor\n```python\nprint(1)\n```",
            helper,
            "of an answer in which no block defines the function (the first one is wanted)",
        ),
    ):
        _is_code(attempt(answer, entry), wanted, off)


def _is_code(got: Any, wanted: str, off: str) -> None:
    expect(isinstance(got, str), f"the result is {short(got)}, not a text: return the code")
    what = f"the code {off}"
    expect("```" not in got, f"{what} still holds a fence")
    expect(
        not got.lstrip().startswith("python\n"), f"{what} still begins with the fence's language"
    )
    expect(got.strip(), f"{what} is empty", look="how far your pattern reaches")
    expect(len(got.strip()) <= len(wanted), f"{what} holds more than the block: {short(got, 80)}")
    expect(
        got.strip() == wanted, f"{what} is {short(got.strip(), 80)}", look="which block is taken"
    )


# -------------------------------------------------------------------------------- 2: pass@k


@check("1 minus the share of choices of k that hold no right answer; with whole numbers, exact.")
def pass_at_k(attempt: Any) -> None:
    n = draw.integer(9, 11)
    k, c = draw.integer(2, 3), draw.integer(2, 4)
    marks = [True] * c + [False] * (n - c)
    choices = list(itertools.combinations(marks, k))
    wanted = sum(map(any, choices)) / len(choices)
    got = attempt(n, c, k)
    expect(isinstance(got, int | float), f"the estimate is {short(got)}, not a number")
    for off, value in {
        "is the naive estimate, too low on average": 1 - (1 - c / n) ** k,
        "is the chance that none is right: take it off 1": 1 - wanted,
        "is pass@1, whatever k is": c / n,
        "is the chance that all k are right": math.comb(c, k) / math.comb(n, k),
        "draws with the right ones left out: n - c are wrong": 1
        - math.comb(c, k) / math.comb(n, k),
    }.items():
        expect(
            not math.isclose(got, value) or math.isclose(value, wanted), f"the estimate {off}",
            look="which choices of k hold no right answer",
        )  # fmt: skip
    same_number(got, wanted, f"the estimate for {c} of {n} and k = {k}")
    same_number(
        float(attempt(n, n - 1, 2)), 1.0, "the estimate where fewer than k answers are wrong",
        look="math.comb(1, 2), which is 0",
    )  # fmt: skip
    same_number(float(attempt(n, 0, k)), 0.0, "the estimate where no answer is right")
    large = attempt(20_000, 1, 10)
    same_number(large, 10 / 20_000, "the estimate for 1 of 20,000 and k = 10")


# ----------------------------------------------------------------------- 3: what an outcome means


def _outcomes() -> list[tuple[str, str, Outcome]]:
    """(what happened, cause, outcome) of real runs, in random order."""
    name, k = draw.word(), draw.integer(3, 90)
    tests = f"assert {name}({k}) == {k + 1}"
    head = f"def {name}(n):\n    "
    cases = [
        ("the function is right", "passed", f"{head}return n + 1"),
        ("the function returns something else", "wrong result", f"{head}return n - {k}"),
        ("a bracket is missing", "not Python", f"{head}return (n + 1"),
        ("the body is not indented", "not Python", f"def {name}(n):\nreturn n"),
        ("the function has another name", "missing name", f"def {name}s(n):\n    return n + 1"),
        ("the body uses an unknown name", "missing name", f"{head}return {draw.word(9)} + 1"),
        ("the loop never ends", "too slow", f"{head}while True: n += 1"),
        ("it opens a connection", "forbidden", f"import socket\n{head}socket.socket()"),
        (
            "it deletes a file that is not its own", "forbidden",
            f"import os\n{head}os.remove(os.__file__)",
        ),
    ]  # fmt: skip
    outcomes = sandbox.run_many([(code, tests) for *_, code in cases], timeout_s=SECONDS)
    found = [(what, cause, o) for (what, cause, _), o in zip(cases, outcomes, strict=True)]
    return draw.sample(found, len(found))


@check("each outcome has its cause, and each cause another cure.", rounds=1)
def cause(attempt: Any) -> None:
    for what, wanted, outcome in _outcomes():
        got = attempt(outcome)
        expect(isinstance(got, str), f"the cause is {short(got)}, not a text")
        expect(got in CAUSES, f"{got!r} is none of the causes: {', '.join(CAUSES)}")
        if got != wanted:
            off = f"where {what}, the outcome is {outcome} and the cause {wanted!r}, not {got!r}"
            expect(False, off, look="how its reason begins")
    odd = Outcome(False, "failed: assert label('time limit') == 'PermissionError'")
    got = attempt(odd)
    expect(
        got == "wrong result",
        f"the outcome {odd} is a wrong result, not {got!r}: its test only holds such words",
        look="the beginning of the reason, not any part of it",
    )
    odd = Outcome(False, "ValueError: the list is empty")
    expect(
        attempt(odd) == "wrong result",
        f"the outcome {odd} is a wrong result too: the code ran, and gave an exception instead",
    )


# ------------------------------------------------------------------- 4: by text and by running


@check("by text, right functions written otherwise are lost; by running, none is.", rounds=1)
def judged(attempt: Any) -> None:
    name, k = draw.word(), draw.integer(3, 9)
    head = f"def {name}(xs):\n    return "
    reference = f"{head}[x for x in xs if x > {k}]"
    tests = f"assert {name}([{k}, {k + 1}]) == [{k + 1}]\nassert {name}([{k - 1}]) == []"
    codes = [
        (f"  \n{reference}\n\n".lstrip(" "), True, True),
        (f"{head}[n for n in xs if n > {k}]", False, True),
        (f"{head}list(filter(lambda n: n >= {k + 1}, xs))", False, True),
        (f"{head}[x for x in xs if x >= {k}]", False, False),
        (reference.upper(), False, False),
        (reference, True, True),
    ]
    codes = draw.sample(codes, len(codes))
    texts = [code for code, *_ in codes]
    kept = list(texts)
    got = attempt(texts, reference, tests)
    unchanged(texts, kept, "the list of codes")
    pair = isinstance(got, tuple | list) and len(got) == 2
    expect(pair and all(isinstance(part, list) for part in got), "two lists are wanted")
    by_text, by_running = [list(map(_as_bool, part)) for part in got]
    wanted = [code[1] for code in codes], [code[2] for code in codes]
    expect(
        (by_text, by_running) != wanted[::-1], "the two lists come the wrong way round: text first"
    )
    exact = [code == reference for code in texts]
    expect(
        by_text != exact or exact == wanted[0],
        "by text, white space around the code must not count",
        look="str.strip",
    )
    same_items(by_text, wanted[0], "the list by text")
    expect(by_running != wanted[0], "the list by running is the one by text: run the code")
    same_items(
        by_running, wanted[1], "the list by running", look="the code and the tests that are run"
    )


def _as_bool(value: Any) -> bool:
    expect(
        isinstance(value, bool),
        f"the lists hold {short(value)}, of type {type(value).__name__}, not True or False",
        look="an Outcome's field `passed`",
    )
    return value


# ----------------------------------------------------------------- 5: tests that catch wrong code

_CLAMP_RIGHT = (
    "return max(low, min(high, value))",
    "return low if value < low else high if value > high else value",
    "return sorted((low, value, high))[1]",
)
_CLAMP_WRONG = {
    "return value": "returns the value as it is",
    "return max(low, value)": "knows no upper limit",
    "return min(high, value)": "knows no lower limit",
    "return low": "always returns the lower limit",
    "return high": "always returns the upper limit",
    "return max(low, min(high - 1, value))": "stops one below the upper limit",
    "return max(low + 1, min(high, value))": "stops one above the lower limit",
    "return min(low, max(high, value))": "swaps min and max",
    "return max(low, min(high, abs(value)))": "loses the sign of a negative value",
    "return max(0, low, min(high, value))": "never goes below 0",
    "return None": "returns nothing",
}


@check("right functions pass, and every wrong one is caught.", rounds=1)
def tests_of_clamp(attempt: Any) -> None:
    tests = attempt()
    expect(
        isinstance(tests, str),
        f"the tests are {short(tests)}, of type {type(tests).__name__}, not a text",
    )
    head = "def clamp(value, low, high):\n    "
    right = sandbox.run_many([(head + body, tests) for body in _CLAMP_RIGHT], timeout_s=SECONDS)
    for body, outcome in zip(_CLAMP_RIGHT, right, strict=True):
        expect(
            outcome.passed,
            f"your tests reject a right function (`{body}`) with: {outcome.reason}",
            look="the expected values",
        )
    wrong = sandbox.run_many([(head + body, tests) for body in _CLAMP_WRONG], timeout_s=SECONDS)
    pairs = zip(_CLAMP_WRONG.values(), wrong, strict=True)
    missed = [what for what, outcome in pairs if outcome.passed]
    expect(
        not missed,
        f"your tests accept {len(missed)} of {len(wrong)} wrong functions, such as one that "
        f"{missed[0] if missed else ''}",
        look="an input for which it differs from a right one",
    )


# ----------------------------------------------------------------- 6: the inputs that are needed


@check("an input is kept where it exposes a function that none before it exposed.")
def needed_inputs(attempt: Any) -> None:
    k = draw.integer(5, 9)

    def right(n: int) -> int:
        return n // k

    def fails(n: int) -> int:
        if n == 2 * k:
            raise ZeroDivisionError
        return n // k

    wrong: list[Function] = [
        lambda n: n / k if n % k else n // k,  # another number wherever k does not divide n
        lambda n: -(-n // k),
        lambda n: n // k if n < 3 * k else 0,
        fails,
    ]
    inputs = [k, 4 * k, k + 1, 5 * k, 2 * k, 1, 6 * k]
    kept = list(inputs)
    got = attempt(right, wrong, inputs)
    unchanged(inputs, kept, "the list of inputs")
    wanted = [4 * k, k + 1, 2 * k]
    expect(isinstance(got, list | tuple), f"the result is {short(got)}, not a list of inputs")
    got = list(got)
    expect(got, "no input is kept: then nothing is tested", look="what counts as exposed")
    exposing = [n for n in inputs if any(_exposes(f, right, n) for f in wrong)]
    expect(
        got != exposing,
        "an input is kept whenever it exposes some function, also one that was exposed already",
        look="which functions are still unexposed",
    )
    expect(k not in got, f"{k} is kept, and exposes nothing: all functions agree on it")
    expect(2 * k in got, f"{2 * k} is not kept: there one function raises, which exposes it")
    same_items(got, wanted, "the list of kept inputs")
    again = attempt(right, [right], inputs)
    expect(list(again) == [], "where no function is wrong, no input is needed")
    hopeless: Sequence[Function] = [right, lambda n: n // k + (n == 6 * k)]
    same_items(
        list(attempt(right, hopeless, inputs)), [6 * k], "the kept inputs, where one is never wrong"
    )


def _exposes(function: Function, right: Function, value: int) -> bool:
    try:
        return bool(function(value) != right(value))
    except Exception:
        return True
