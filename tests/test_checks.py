"""What all checks share: the three outcomes, and sentences that say how an answer differs."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch

from course_utils import checks
from course_utils.checks import NotYet, draw


@checks.check("twice the input.")
def doubled(attempt):
    x = draw.tensor(3, 4)
    checks.same(attempt(x), 2 * x, "the output", factors={"two": 2.0}, look="the factor")


def said(attempt, check=doubled) -> str:
    with pytest.raises(NotYet) as caught:
        check(attempt)
    return str(caught.value)


# ------------------------------------------------------------- outcomes


def test_a_right_answer(capsys):
    doubled(lambda x: x + x)
    assert capsys.readouterr().out == "Right: twice the input.\n"


def test_an_untouched_stub(capsys):
    def twice(x):
        raise NotImplementedError  # your code here

    doubled(twice)
    line = "Not done yet: twice. Write its body, then run this cell again.\n"
    assert capsys.readouterr().out == line


def test_an_untouched_method(capsys):
    class Twice:
        def __init__(self, x):
            raise NotImplementedError()

    doubled(Twice)
    assert capsys.readouterr().out.startswith("Not done yet: Twice.")


def test_nbgrader_counts_what_does_not_raise_as_solved(monkeypatch):
    def twice(x):
        raise NotImplementedError

    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert said(twice).startswith("Not done: twice")


def test_a_wrong_answer():
    assert said(lambda x: x) == "The output lacks the factor two (2). Look at the factor."


def test_jupyter_shows_the_sentence_alone():
    with pytest.raises(NotYet) as caught:
        doubled(lambda x: -2 * x)
    shown = caught.value._render_traceback_()
    assert shown == ["Not yet: The output has the wrong sign. Look at the factor."]


def test_an_error_names_the_learners_line():
    def twice(x):
        return x @ x

    text = said(twice)
    assert "`return x @ x`" in text and "RuntimeError" in text and "mat1" in text


def test_an_error_in_a_class_names_its_line():
    class Twice:
        def __init__(self, x):
            self.scale = x.no_such_thing

    assert "`self.scale = x.no_such_thing`" in said(Twice)


def test_torchs_own_not_implemented_is_an_error():
    def twice(x):
        raise NotImplementedError("Could not run 'aten::x' with arguments from 'Meta'")

    assert "Could not run" in said(twice)


def test_what_cannot_be_used():
    @checks.check("it is.")
    def halved(attempt):
        checks.expect(attempt(4).upper() == "2", "no")

    half = eval("lambda n: None")  # in a file of its own, like a learner's cell
    text = said(half, halved)
    assert text.startswith("What your function returned cannot be used (AttributeError: 'NoneType'")
    assert "test_checks.halved" not in checks.all_checks()


def test_a_called_function_is_no_function():
    assert "without ()" in said(torch.zeros(3))
    assert "the check got 3.142" in said(3.14159).lower()


def test_inputs_are_fresh_and_the_learners_sequence_is_kept():
    seen = []

    def twice(x):
        seen.append(x[0, 0].item())
        random.random(), np.random.rand(), torch.rand(1)
        return 2 * x

    def states():
        return random.random(), np.random.rand(), torch.rand(1).item()

    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    expected = states()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    doubled(twice)
    doubled(twice)
    assert states() == expected
    assert len(seen) == len(set(seen)) == 6


def test_topics_are_found_by_name():
    assert set(checks.topics()).isdisjoint({"compare", "draw", "outcome"})
    with pytest.raises(AttributeError, match="no checks about 'nothing'"):
        _ = checks.nothing
    assert set(checks.topics()) <= set(dir(checks))


# ------------------------------------------------------------- tensors

W = torch.arange(20, dtype=torch.float32).reshape(5, 4).cos() + 0.1
SQUARE = W[:4]
MASK = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
SCALE = {"alpha / rank": 2.5}
IDS = torch.tensor([150_001, 7, 8, 9, 10])
SPOILT = W.index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(9.0))


@pytest.mark.parametrize(
    ("got", "wanted", "words"),
    [
        (None, W, "is None: the function returns nothing"),
        (0, W, "is 0, of type int, not a tensor"),
        (W.T, W, r"the shape \(4, 5\), not \(5, 4\): axes are swapped"),
        (W.flatten(), W, "an axis is missing or too much"),
        (W[:3], W, r"has the shape \(3, 4\), not \(5, 4\)$"),
        (W.double(), W, "has the dtype float64, not float32"),
        (W / 0, W, "contains an infinite value"),
        (W * float("nan"), W, "contains nan"),
        (W * 0, W, "is zero everywhere"),
        (-W, W, "has the wrong sign$"),
        (W / 2.5, W, r"lacks the factor alpha / rank \(2.5\)"),
        (W * 2.5, W, "has the factor alpha / rank .* once too often"),
        (W / 6.25, W, "is divided by alpha / rank"),
        (-W / 2.5, W, "has the wrong sign and lacks the factor"),
        (W * 3, W, "is 3 times as large as it should be"),
        (SQUARE.T.contiguous(), SQUARE, "axes 0 and 1 swapped"),
        (W.flip(1), W, "in reverse order along axis 1"),
        (1 - MASK, MASK, "ones where zeros belong"),
        (~MASK.bool(), MASK.bool(), "ones where zeros belong"),
        (W + 1, W, r"off by the same amount everywhere \(\+1\)"),
        (W.roll(1, 1), W, "shifted by one place along axis 1, too far towards the end"),
        (W.roll(-1, 0), W, "shifted by one place along axis 0, too far towards the start"),
        (SPOILT, W, r"wrong at 1 of 20 places; at \[2, 1\] it is 9 instead of"),
        (torch.tensor([150_002, 7, 8, 9, 10]), IDS, r"at \[0\] it is 1.5e\+05"),
        (torch.tensor([1.0, 2.0]), torch.tensor([float("-inf"), 2.0]), "wrong at 1 of 2"),
    ],
)
def test_how_tensors_differ(got, wanted, words):
    with pytest.raises(NotYet) as caught:
        checks.same(got, wanted, "the output", factors=SCALE)
    assert re.search(words, str(caught.value).removesuffix(".")), str(caught.value)


@pytest.mark.parametrize("wanted", [W, IDS, MASK.bool(), torch.zeros(3), torch.tensor(2.0)])
def test_equal_tensors(wanted):
    checks.same(wanted.clone(), wanted, "the output")
    checks.same(wanted.double(), wanted, "the output", dtype=False)


def test_masks_of_infinities_are_equal():
    mask = torch.full((3, 3), float("-inf")).triu(1)
    checks.same(mask.clone(), mask, "the mask")


# ------------------------------------------------------------- numbers, lists, inputs


@pytest.mark.parametrize(
    ("got", "wanted", "words"),
    [
        (None, 3, "is None: the function returns nothing"),
        (True, 1, "is True, not a number"),
        ("x", 1, "is 'x', not a number"),
        (6, 5, "it is off by one"),
        (5.01, 5, "should be a whole number"),
        (0.5, 50.0, "per cent or a share"),
        (1.0, 1.073742, "GiB or GB"),
        (-3.0, 3.0, "has the wrong sign"),
        (0.25, 4.0, "one divided by the right number"),
        (36.0, 3.0, r"has the factor layers \(12\) once too often"),
        (7, 30, "is too small"),
        (float("nan"), 3.0, "should be finite"),
        (torch.zeros(()), 5, "is too small"),
    ],
)
def test_how_numbers_differ(got, wanted, words):
    with pytest.raises(NotYet, match=words):
        checks.same_number(got, wanted, "the share", factors={"layers": 12})


def test_equal_numbers():
    for got, wanted in ((5, 5), (torch.tensor(5), 5), (np.float64(0.1), 0.1), (0.10000001, 0.1)):
        checks.same_number(got, wanted, "the share")


@pytest.mark.parametrize(
    ("got", "wanted", "words"),
    [
        (None, [1], "is None"),
        (0, [1], "is 0, not a list"),
        ({"a": 1}, [1], "of type dict, not a list"),
        ([2, 1, 0], [0, 1, 2], "reverse order"),
        ([1, 0, 2], [0, 1, 2], "another order"),
        ([0, 1], [0, 1, 2], "lacks the last item"),
        ([1, 2], [0, 1, 2], "lacks the first item"),
        ([0, 1, 2, 3], [0, 1, 2], "one item too many at the end"),
        ([9, 0, 1], [0, 1], "one item too many at the start"),
        ("abc", "abd", "differs first at place 2: 'c' instead of 'd'"),
        ([1, 2, 3, 4], [1, 5], "has 4 items, not 2; it differs first at place 1"),
        (["a"], "a", "is of type list, not str"),
        ([{"role": "a"}], [{"role": "b"}], "differs first at place 0"),
    ],
)
def test_how_lists_differ(got, wanted, words):
    with pytest.raises(NotYet, match=words):
        checks.same_items(got, wanted, "the list of ids")


def test_equal_lists():
    checks.same_items((1, 2), [1, 2], "the list")
    checks.same_items(torch.tensor([1, 2]), [1, 2], "the list")


def test_changed_inputs_are_noticed():
    x = torch.ones(3)
    checks.unchanged(x, x.clone(), "the input")
    with pytest.raises(NotYet, match="input was changed by the function"):
        checks.unchanged(x.mul_(2), torch.ones(3), "the input")


def test_drawn_inputs():
    assert {draw.integer(1, 4, besides=[2]) for _ in range(99)} == {1, 3, 4}
    assert draw.tokens(50, vocabulary=3).unique().tolist() == [1, 2]
    assert sorted(draw.sample("abc", 3)) == ["a", "b", "c"] and draw.pick("a") == "a"
    assert draw.word(9).isalpha() and 2 <= draw.number(2, 3) <= 3
    assert draw.linear(3, 2, bias=False).weight.shape == draw.tensor(2, 3).shape
