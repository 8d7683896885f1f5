"""What every exercise's check must do; each chapter's tests fill it with answers."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch

from course_utils import checks
from course_utils.checks import NotYet

CONSTANTS = [None, 0, 1.0, "", [], torch.zeros(2, 3)]


def stub(*_: Any, **__: Any) -> Any:
    """An exercise as it is handed out."""
    raise NotImplementedError


class CheckContract:
    """The checks of one topic take right answers, excuse stubs, and explain wrong answers.

    right: check -> an answer that it has to take.  wrong: (check, answer, pattern of what it has to
    say).  rounds: how often each is tried, since checks draw their inputs.  stubs: for checks that
    take no function.

    Draws are the same in every run: a check's seeds count up from 0. To look for rare ones that
    mislead: CHECK_ROUNDS=500 pytest tests/test_checks_lora.py
    """

    topic: ClassVar[ModuleType]
    right: ClassVar[Mapping[str, Any]]
    wrong: ClassVar[Sequence[tuple[str, Any, str]]]
    rounds: ClassVar[int] = 5
    stubs: ClassVar[Mapping[str, Any]] = {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "attempt" in metafunc.fixturenames:
            cases = [pytest.param(*c, id=f"{c[0]}-{i}") for i, c in enumerate(self.wrong)]
            metafunc.parametrize(("name", "attempt", "said"), cases)
        elif "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.right)
        if "constant" in metafunc.fixturenames:
            metafunc.parametrize("constant", CONSTANTS, ids=repr)

    @pytest.fixture(autouse=True)
    def _seeds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seeds = itertools.count()
        monkeypatch.setattr(checks, "_new_seed", lambda: next(seeds))
        monkeypatch.setattr(type(self), "rounds", int(os.environ.get("CHECK_ROUNDS", self.rounds)))

    def check(self, name: str) -> Callable[[Any], None]:
        return getattr(self.topic, name)

    def test_all_checks_have_a_right_and_three_wrong_answers(self) -> None:
        topic = self.topic.__name__.rpartition(".")[2]
        found = {name for name in checks.all_checks() if name.startswith(f"{topic}.")}
        assert found == {f"{topic}.{name}" for name in self.right}
        wrong = Counter(name for name, _, _ in self.wrong)
        assert set(wrong) == set(self.right) and min(wrong.values()) >= 3

    def test_right_answers_pass(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        for _ in range(self.rounds):
            self.check(name)(self.right[name])
        assert capsys.readouterr().out.count("Right: ") == self.rounds

    def test_a_stub_is_not_done_yet(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.check(name)(self.stubs.get(name, stub))
        assert capsys.readouterr().out.startswith("Not done yet: ")

    def test_wrong_answers_are_explained(self, name: str, attempt: Any, said: str) -> None:
        for _ in range(self.rounds):
            with pytest.raises(NotYet, match=f"(?is){said}"):
                self.check(name)(attempt)

    def test_a_constant_is_never_right(self, name: str, constant: Any) -> None:
        with pytest.raises(NotYet):
            self.check(name)(lambda *_, **__: constant)
