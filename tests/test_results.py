"""Shipped results are found by name, and a wrong name is told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from course_utils import results
from course_utils.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent


def test_a_result_and_an_input_of_the_benchmarks():
    assert results.read("quickstart")["device"]
    assert len(results.read("alpaca_lengths")["pairs"]) == 153


def test_a_wrong_name_gets_the_right_one():
    with pytest.raises(CourseError, match="did you mean quickstart"):
        results.read("quick_start")
    with pytest.raises(CourseError, match="alpaca_lengths or .*vram_plans"):
        results.read("zzz")


def test_without_the_repository_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "BENCHMARKS", tmp_path)
    with pytest.raises(CourseError, match="clone"):
        results.read("quickstart")


def test_an_installed_package_brings_them_along():
    """pyproject lists every package, and the benchmarks as one of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    made = project["tool"]["setuptools"]
    folders = sorted(path.parent for path in (ROOT / "course_utils").rglob("__init__.py"))
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(made["packages"]) == names | {"course_utils.benchmarks"}
    assert made["package-dir"]["course_utils.benchmarks"] == "benchmarks"
    assert "results/*.json" in made["package-data"]["course_utils.benchmarks"]
