"""Grading: strict where the docs say strict, forgiving only where they say so."""

import itertools

import pytest

from course_utils import scoring
from course_utils.data import Conversation
from course_utils.errors import CourseError
from course_utils.scoring import grade, grade_all


def asked(check) -> Conversation:
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    return Conversation(messages, {"set": "s", "kind": "k", "check": check})


def exact(value):
    return {"type": "exact", "value": value}


TICKET = {"type": "json", "value": {"product": "lamp", "n": 1, "ok": True, "tags": ["a", "b"]}}
TESTS = {"type": "unit_tests", "entry": "twice", "tests": "assert twice(3) == 6"}
CASES = [
    (exact("2026-03-05"), "2026-03-05", 1),
    (exact("2026-03-05"), "  2026-03-05\n", 1),
    (exact("2026-03-05"), "2026-03-05.", 0),
    (exact("2026-03-05"), "The date is 2026-03-05", 0),
    (exact("ON kitchen.lamp"), "on kitchen.lamp", 0),
    ({"type": "choice", "value": "refund"}, "Refund.", 1),
    ({"type": "choice", "value": "正面"}, "正面。", 1),
    ({"type": "choice", "value": "refund"}, "refunds", 0),
    ({"type": "choice", "value": "refund"}, "track or refund", 0),
    ({"type": "choice", "value": "refund"}, "", 0),
    ({"type": "number", "value": 1200.5}, "1,200.50", 1),
    ({"type": "number", "value": 1200.5}, "1200.5 EUR", 0),
    ({"type": "number", "value": 1200.5}, "12,00.5", 0),
    ({"type": "number", "value": 0.1}, "0.10", 1),
    ({"type": "number", "value": 3}, "30", 0),
    ({"type": "number", "value": 3}, "nan", 0),
    ({"type": "number", "value": 3}, "٣", 0),
    (TICKET, '{"tags":["a","b"],"ok":true,"n":1,"product":"lamp"}', 1),
    (TICKET, '{"product": "lamp", "n": true, "ok": 1, "tags": ["a", "b"]}', 0),
    (TICKET, '{"product": "lamp", "n": "1", "ok": true, "tags": ["a", "b"]}', 0),
    (TICKET, '{"product": "lamp", "n": 1, "ok": true, "tags": ["b", "a"]}', 0),
    (TICKET, '{"product": "lamp", "n": 1, "ok": true, "tags": ["a", "b"], "x": 0}', 0),
    (TICKET, '{"product": "lamp", "n": 1, "ok": true}', 0),
    (TICKET, '{"n": 2, "product": "lamp", "n": 1, "ok": true, "tags": ["a", "b"]}', 0),
    (TICKET, 'Sure: {"product": "lamp", "n": 1, "ok": true, "tags": ["a", "b"]}', 0),
    (TICKET, '```json\n{"product": "lamp", "n": 1, "ok": true, "tags": ["a", "b"]}\n```', 0),
    (TICKET, "[" * 100_000, 0),
    ({"type": "json", "value": {"n": 1}}, '{"n": 1.0}', 1),
    ({"type": "lines", "value": ["- a", "- b"]}, "- a  \n- b\n", 1),
    ({"type": "lines", "value": ["- a", "- b"]}, "- b\n- a", 0),
    ({"type": "lines", "value": ["- a", "- b"]}, "- a\n\n- b", 0),
    ({"type": "contains", "values": ["E-50", "router"]}, "Your Router shows e-50.", 1),
    ({"type": "contains", "values": ["E-50", "router"]}, "Your router shows E-502.", 0),
    ({"type": "contains", "values": ["E-50", "router"]}, "Your router failed.", 0),
    ({"type": "contains", "values": ["路由器"]}, "已登记路由器。", 1),
    ({"type": "contains", "values": ["51"], "absent": ["15"]}, "order 51", 1),
    ({"type": "contains", "values": ["51"], "absent": ["15"]}, "order 51, not 15", 0),
    ({"type": "token_f1", "references": ["x", "Check the cable."]}, "check the cable", 1),
    ({"type": "token_f1", "references": ["a b c d"]}, "a b", 2 / 3),
    ({"type": "token_f1", "references": ["a a"]}, "a b", 0.5),
    ({"type": "token_f1", "references": ["a b"]}, "c", 0),
    ({"type": "token_f1", "references": ["a b"]}, "...", 0),
    ({"type": "token_f1", "references": ["很好，谢谢"]}, "很好", 2 / 3),
    (TESTS, "def twice(n):\n    return n * 2", 1),
    (TESTS, "```python\ndef twice(n):\n    return n * 2\n```", 1),
    (TESTS, "\n```\ndef twice(n):\n    return n * 2\n```\n", 1),
    (TESTS, "Here it is:\n```python\ndef twice(n):\n    return n * 2\n```", 0),
    (TESTS, "```python\ndef twice(n):\n    return n * 2\n```\nIt doubles n.", 0),
    (TESTS, "def twice(n):\n    return n", 0),
    (TESTS, "def other(n):\n    return n * 2", 0),
    (TESTS, "print('passed')", 0),
]


@pytest.mark.parametrize(("check", "answer", "score"), CASES)
def test_grade(check, answer, score):
    result = grade(answer, asked(check))
    assert isinstance(result, float)
    assert result == pytest.approx(score)


def test_every_type_of_check_is_tried():
    assert {check["type"] for check, _, _ in CASES} == set(scoring._WELL_FORMED)
    for kind in scoring._WELL_FORMED:
        scores = {score for check, _, score in CASES if check["type"] == kind}
        assert {0, 1} <= scores


def test_grade_all_agrees_with_grade():
    conversations = [asked(check) for check, _, _ in CASES]
    scores = grade_all([answer for _, answer, _ in CASES], conversations)
    assert scores == pytest.approx([score for _, _, score in CASES])
    assert grade_all([], []) == []


def test_grade_all_needs_an_answer_for_each():
    with pytest.raises(CourseError, match="2 answers for 1"):
        grade_all(["a", "b"], [asked(exact("a"))])


@pytest.mark.parametrize(
    "check",
    [
        None,
        "exact",
        {},
        {"type": "vibes"},
        {"type": ["exact"]},
        {"type": "exact"},
        {"type": "exact", "value": 3},
        {"type": "exact", "value": ""},
        {"type": "choice", "value": None},
        {"type": "number", "value": "3"},
        {"type": "number", "value": True},
        {"type": "number", "value": float("nan")},
        {"type": "number", "value": float("inf")},
        {"type": "json", "value": "{}"},
        {"type": "lines", "value": "a"},
        {"type": "lines", "value": []},
        {"type": "contains", "values": []},
        {"type": "contains", "values": [1]},
        {"type": "contains", "values": ["a"], "absent": "b"},
        {"type": "token_f1", "references": []},
        {"type": "unit_tests", "entry": "f"},
        {"type": "unit_tests", "entry": "not a name", "tests": "assert f() == 1"},
        {"type": "unit_tests", "entry": "f", "tests": "assert g() == 1"},
        {"type": "unit_tests", "entry": "f", "tests": None},
    ],
)
def test_a_malformed_check_is_an_error_in_one_sentence(check):
    with pytest.raises(CourseError) as caught:
        grade("a", asked(check))
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message


def test_a_conversation_without_a_check_is_an_error():
    with pytest.raises(CourseError, match="cannot be graded"):
        grade("a", Conversation(asked(exact("a")).messages))


def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_answer():
    for samples in range(1, 8):
        for correct in range(samples + 1):
            right = [True] * correct + [False] * (samples - correct)
            for k in range(1, samples + 1):
                choices = list(itertools.combinations(right, k))
                share = sum(map(any, choices)) / len(choices)
                assert scoring.pass_at_k(samples, correct, k) == pytest.approx(share)


def test_pass_at_k_is_unbiased():
    """Its mean over all outcomes of n draws is the true chance 1 - (1 - p)^k."""
    p, n, k = 0.2, 6, 3
    mean = sum(
        p ** sum(drawn) * (1 - p) ** (n - sum(drawn)) * scoring.pass_at_k(n, sum(drawn), k)
        for drawn in itertools.product((0, 1), repeat=n)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k)


def test_pass_at_k_copes_with_many_samples():
    assert scoring.pass_at_k(100_000, 1, 10) == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("numbers", "wrong"),
    [((3, 4, 1), "correct"), ((3, -1, 1), "correct"), ((3, 1, 4), "k is"), ((3, 1, 0), "k is")],
)
def test_pass_at_k_names_the_wrong_number(numbers, wrong):
    with pytest.raises(CourseError, match=wrong):
        scoring.pass_at_k(*numbers)


FENCE = "```"


@pytest.mark.parametrize(
    "answer",
    [
        "def f(): 1",
        f"{FENCE}\ndef f(): 1\n{FENCE}",
        f"Here:\n{FENCE}python\ndef f(): 1\n{FENCE}\nIt returns nothing.",
        f"Here:\n{FENCE}python\ndef f(): 1",
        f"{FENCE}bash\nls\n{FENCE}\n{FENCE}python\ndef f(): 1\n{FENCE}",
        f"{FENCE}\ndef f(): 1\n{FENCE}\n{FENCE}\nf()\n{FENCE}",
    ],
)
def test_the_code_of_an_answer(answer):
    assert scoring.extract_code(answer, "f").strip() == "def f(): 1"


def test_the_first_block_where_none_defines_the_function():
    answer = f"{FENCE}\ng()\n{FENCE}\n{FENCE}\ndef ff(): 1\n{FENCE}"
    assert scoring.extract_code(answer, "f").strip() == "g()"
