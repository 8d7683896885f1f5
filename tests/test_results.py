"""Shipped results are found by name, and a wrong name is told."""

from __future__ import annotations

import pytest

from course_utils import results
from course_utils.errors import CourseError


def test_a_result_and_an_input_of_the_benchmarks():
    assert results.read("quickstart")["device"]
    assert len(results.read("alpaca_lengths")["pairs"]) == 153


def test_a_wrong_name_gets_the_right_one():
    with pytest.raises(CourseError, match="did you mean quickstart"):
        results.read("quick_start")
    with pytest.raises(CourseError, match="alpaca_lengths or claims_cpu"):
        results.read("zzz")


def test_without_the_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    with pytest.raises(CourseError, match="clone"):
        results.read("quickstart")
