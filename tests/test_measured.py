"""The shipped figures: each row whole, and the same as in the benchmarks' results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import vram_cases
from course_utils import memory
from course_utils.errors import CourseError
from course_utils.recipes import Recipe

GRID = Path(__file__).parents[1] / "benchmarks" / "results" / "vram_grid.json"


@pytest.fixture(scope="module")
def results():
    return json.loads(GRID.read_text(encoding="utf-8"))


@pytest.fixture
def grid(monkeypatch):
    """grid(path): read the figures from another file."""
    import sys

    module = sys.modules["course_utils.memory.measured"]
    return lambda path: monkeypatch.setattr(module, "GRID", path)


def test_every_measured_row_is_there_with_its_figures(results):
    made = {row["name"]: row for row in results["rows"] if "measured" in row}
    wanted = {name: row["measured"] for name, row in made.items()}
    rows = memory.measured_rows()
    assert {row.name for row in rows} == set(wanted) and len(rows) == len(wanted)
    for row in rows:
        for tier in ("allocated_gib", "reserved_gib", "process_gib"):
            assert getattr(row, tier) == wanted[row.name].get(tier), row.name
        when = made[row.name].get("date", results["date"])  # of the row, or of most rows
        assert (row.device, row.date) == (results["device"], when)
        assert row.versions == results["versions"]


def test_recipes_are_those_that_were_run():
    """Whole, with what the results file says once for all runs."""
    cases = {case.name: case for case in vram_cases.all_cases()}
    for row in memory.measured_rows():
        case = cases[row.name]
        assert row.recipe == case.made_recipe().replace(model=row.shape), row.name
        assert (row.shape, row.length, row.comparable) == (case.shape, case.length, case.judged)


@pytest.mark.parametrize("name", ["preset-medium", "qlora-checkpointing"])
def test_a_row_can_be_estimated_as_it_stands(name):
    row = memory.measured(name)
    found = memory.estimate(row.shape, row.recipe, length=row.length)
    assert found.allocated_gib == pytest.approx(row.allocated_gib, rel=0.03)


def test_a_row_says_where_it_was_measured(results):
    text = str(memory.measured("preset-medium"))
    torch = results["versions"]["torch"]
    assert text.startswith(f"measured on {results['device']}, {results['date']}, torch {torch}: ")
    assert "GiB allocated" in text and "held by the process" in text
    assert "shipped with the course" in text and "preset-medium" in text
    assert "base model in fp32" in str(memory.measured("lora-fp32-amp"))
    assert "no training" in str(memory.measured("weights-nf4"))
    shared = next(row for row in memory.measured_rows() if row.process_gib is None)
    assert "held by" not in str(shared)


def test_rows_by_shape_and_method():
    rows = memory.measured_rows("Llama-2-7B", "qlora")
    assert rows and all(r.shape == "llama-2-7b" and r.recipe.method == "qlora" for r in rows)
    assert (
        len(memory.measured_rows("llama-2-7b"))
        > len(rows)
        < len(memory.measured_rows(method="qlora"))
    )


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: memory.measured("preset-medum"), "did you mean 'preset-medium'"),
        (lambda: memory.measured("zzz"), r"measured_rows\(\) has all"),
        (lambda: memory.measured_rows("bert"), "shape is 'bert', and measured are gpt2-xl"),
        (lambda: memory.measured_rows(method="dora"), "method is 'dora' and must be one of full"),
    ],
)
def test_unknown_words_are_named(ask, said):
    with pytest.raises(CourseError, match=said):
        ask()


def test_a_run_without_figures_says_why(tmp_path, grid, results):
    row = {"name": "big", "shape": "smollm2", "method": "lora", "length": 8, "recipe": {},
           "what": "train", "error": "stopped after 12 s"}  # fmt: skip
    path = tmp_path / "vram_grid.json"
    path.write_text(json.dumps(results | {"rows": [row]}), encoding="utf-8")
    grid(path)
    with pytest.raises(CourseError, match=r"'big' .* not measured \(stopped after 12 s\)"):
        memory.measured("big")
    assert memory.measured_rows() == []


def test_a_changed_file_is_read_anew(tmp_path, grid, results):
    path = tmp_path / "vram_grid.json"
    rows = [row for row in results["rows"] if row["name"] == "preset-small"]
    path.write_text(json.dumps(results | {"rows": rows}), encoding="utf-8")
    grid(path)
    assert memory.measured("preset-small").process_gib == rows[0]["measured"]["process_gib"]
    rows[0]["measured"]["process_gib"] = 99.0
    path.write_text(json.dumps(results | {"rows": rows}), encoding="utf-8")
    assert memory.measured("preset-small").process_gib == 99.0


def test_an_installed_package_has_no_figures(tmp_path, grid):
    grid(tmp_path / "site-packages" / "benchmarks" / "vram_grid.json")
    with pytest.raises(CourseError, match="clone its repository"):
        memory.measured("preset-small")


def test_a_row_is_frozen_and_hashable():
    row = memory.measured("preset-small")
    assert {row: 1}[memory.measured("preset-small")] == 1 and isinstance(row.recipe, Recipe)
    with pytest.raises(AttributeError):
        row.allocated_gib = 1.0
