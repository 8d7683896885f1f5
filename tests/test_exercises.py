"""Exercises are in step with their solutions, have their form, and no check is easily fooled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import torch
from notebook_rules import EXERCISE_RULES, FILE_RULES, RULES_BY_FOLDER, Notebook, Rule
from sample_solution import HINTS, NAME, TASK, TITLE, solved, write

from course_utils import checks
from tools import exercises
from tools.refresh import ROOT

SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))
CHAPTERS = sorted((ROOT / "notebooks").glob("[01]?_*.ipynb"))
WITHOUT_EXERCISES = ("00_start_here",)
CALL = re.compile(r"^checks\.(\w+\.\w+)\(", re.MULTILINE)


# ------------------------------------------------------------- the course's exercises


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_in_step(solution: Path) -> None:
    assert not exercises.out_of_step(solution)


def test_no_exercise_without_solution() -> None:
    assert not exercises.orphans()


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_exercises_and_links_to_them(chapter: Path) -> None:
    if chapter.stem in WITHOUT_EXERCISES:
        pytest.skip("the first chapter is to be run, not programmed")
    assert (ROOT / "solutions" / chapter.name).exists(), "no solutions"
    assert f"](../exercises/{chapter.name})" in chapter.read_text("utf-8"), "no link to exercises"


def _called() -> set[str]:
    """The names of the checks that solutions call."""
    sources = [
        "".join(cell.source)
        for path in SOLUTIONS
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code"
    ]
    return {name for text in sources for name in CALL.findall(text)}


@pytest.mark.parametrize("topic", checks.topics())
def test_every_check_has_an_exercise(topic: str) -> None:
    unused = {name for name in checks.all_checks() if name.startswith(f"{topic}.")} - _called()
    assert not unused, f"no exercise calls {sorted(unused)}"


def _constant(value: object) -> Callable[..., object]:
    return lambda *_, **__: value


@pytest.mark.parametrize("topic", checks.topics())
def test_no_check_is_fooled(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Constants are wrong, a stub is "not done yet", and neither is ever an error."""

    def stub(*_: object, **__: object) -> None:
        raise NotImplementedError

    for name, check in checks.all_checks().items():
        if not name.startswith(f"{topic}."):
            continue
        for value in (None, 0, 1.0, "", [], torch.zeros(())):
            try:
                check(_constant(value))
            except checks.NotYet:
                continue
            pytest.fail(f"checks.{name} takes {value!r} for right")
        capsys.readouterr()
        check(stub)
        assert capsys.readouterr().out.startswith("Not done yet: stub."), name


# ------------------------------------------------------------- the tool


def test_an_exercise_is_made_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    solution = write(solved(), tmp_path)
    assert exercises.main(["--check", str(solution)]) == 1
    assert "02_data.ipynb is missing" in capsys.readouterr().out
    assert exercises.main([str(solution)]) == 0
    made = Notebook.read(tmp_path / "exercises" / NAME)
    rules = RULES_BY_FOLDER["exercises"]
    assert [rule(made) for rule in rules] == [[]] * len(rules)
    cells = {cell.id: cell for cell in made.cells}
    assert "why-1" not in cells and cells["hints-4"].source
    first = "".join(cells["title"].source)
    assert first.startswith("# Exercises 2: sample\n") and f"/blob/main/exercises/{NAME}" in first
    assert f"(../solutions/{NAME})" in first and "Solved" not in first
    stub = "".join(cells["double-1"].source)
    assert '"""\n    raise NotImplementedError  # your code here\n\n\nchecks.sample' in stub
    line = "Not done yet: double_1. Write its body, then run this cell again.\n"
    assert "".join(cells["double-1"].outputs[0].text) == line


@pytest.mark.parametrize("part", ["source", "id", "cell"])
def test_stale_exercises_are_noticed(part: str, tmp_path: Path) -> None:
    solution = write(solved(), tmp_path)
    made = exercises.made_from(solved(), NAME)
    path = write(made, tmp_path, "exercises")
    assert not exercises.out_of_step(solution)
    for cell in made.cells:
        if cell.cell_type == "code":  # outputs do not count
            cell.update(execution_count=1, outputs=[nbformat.v4.new_output("stream", text="x")])
    write(made, tmp_path, "exercises")
    assert not exercises.out_of_step(solution)
    if part == "cell":
        del made.cells[-1]
    else:
        made.cells[3][part] += "-changed"
    write(made, tmp_path, "exercises")
    assert "is not what its solution makes" in exercises.out_of_step(solution)
    solution.unlink()
    assert exercises.orphans(tmp_path) == [f"exercises/{path.name} has no solution: delete it"]


def test_solutions_are_taken_out_where_they_stand() -> None:
    source = (
        "class A:\n    def f(self) -> int:\n        n = 1\n        ### BEGIN SOLUTION\n"
        "        return n\n        ### END SOLUTION\n\n    def g(self) -> int:\n"
        "        ### BEGIN SOLUTION\n        if 1:\n            return 2\n"
        "        ### END SOLUTION\n\n\nA()"
    )
    assert exercises.without_solution(source) == (
        "class A:\n    def f(self) -> int:\n        n = 1\n"
        "        raise NotImplementedError  # your code here\n\n    def g(self) -> int:\n"
        "        raise NotImplementedError  # your code here\n\n\nA()"
    )


@pytest.mark.parametrize(
    "source",
    [
        "    ### BEGIN SOLUTION\n1",
        "1\n### END SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
    ],
)
def test_marks_come_in_pairs(source: str) -> None:
    with pytest.raises(exercises.ExerciseError, match="SOLUTION"):
        exercises.without_solution(source)


@pytest.mark.parametrize("old", ["# Solutions", "Solved: try"])
def test_the_first_cell_has_its_form(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = solved()
    notebook.cells[0].source = TITLE.replace(old, "Sol")
    solution = write(notebook, tmp_path)
    assert "first cell should" in exercises.out_of_step(solution)
    assert exercises.main([str(solution)]) == 1
    assert "no exercise made: the first cell should" in capsys.readouterr().err


def test_assignments_for_nbgrader(tmp_path: Path) -> None:
    solution = write(solved(), tmp_path)
    assert exercises.main([str(solution), "--nbgrader", str(tmp_path / "class")]) == 0
    path = tmp_path / "class" / "source" / "02_data" / NAME
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    graded = {c.id: c for c in notebook.cells if "nbgrader" in c.metadata}
    assert len(graded) == 8
    answer, test = graded["double-4"], graded["double-4-check"]
    assert exercises.BEGIN in answer.source and "checks." not in answer.source
    assert test.source == "checks.sample.twice(double_4)"
    assert answer.metadata.nbgrader.solution and not answer.metadata.nbgrader.locked
    graded_as = test.metadata.nbgrader
    assert graded_as.grade and graded_as.locked and not graded_as.solution
    assert (graded_as.points, graded_as.schema_version) == (4, 3)


# ------------------------------------------------------------- the rules are tested


def _cell(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == name)


def _replace(cell: str, old: str, new: str) -> Callable[[nbformat.NotebookNode], None]:
    def fault(notebook: nbformat.NotebookNode) -> None:
        assert old in _cell(notebook, cell).source
        _cell(notebook, cell).source = _cell(notebook, cell).source.replace(old, new)

    return fault


def _no_outputs(notebook: nbformat.NotebookNode) -> None:
    _cell(notebook, "double-2").outputs = []


TASK_1 = TASK.format(n=1, level=1)
FAULTS = {
    "has_exercises": [_replace("task-2", "## Exercise", "## Task")],
    "states_each_task": [
        _replace("task-1", "**Goal", "**Aim"),
        _replace("task-1", "1 of 5", "6 of 5"),
        _replace("task-1", "10 minutes", "a while"),
    ],
    "adds_up_minutes": [
        _replace("title", "40 minutes", "30 minutes"),
        _replace("task-1", "10 minutes", "11 minutes"),
    ],
    "rises_in_difficulty": [_replace("task-4", "4 of 5", "3 of 5")],
    "has_hints": [
        _replace("hints-3", HINTS, "No hints."),
        _replace("hints-3", "<summary>Hint 2</summary>", ""),
    ],
    "ends_in_its_check": [
        _replace("double-1", "checks.sample.twice(double_1)", "double_1(3)"),
        _replace("double-1", "twice(double_1)", "twice(double_2)"),
        _replace("double-1", "twice(double_1)", "twice(double_1(3))"),
    ],
    "has_typed_stubs": [
        _replace("double-1", "number: int", "number"),
        _replace("double-1", " -> int", ""),
        _replace("double-1", '"""Twice ``number``."""', "pass"),
    ],
    "stands_alone": [_replace("double-2", "checks.sample", "double_1(1)\nchecks.sample")],
    "says_not_done": [_no_outputs],
    "says_right": [_no_outputs],
    "solves_each": [_replace("double-2", exercises.BEGIN, "#")],
    "opens_with_title": [_replace("title", "# ", "## "), _replace("title", "blob/main", "blob/x")],
    "has_working_links": [_replace("title", "(../exercises/02_data.ipynb)", "(../nowhere.ipynb)")],
    "is_written_in_english": [_replace("task-1", "Double", "双")],
}
OWN_RULES = list(dict.fromkeys(rule for rules in RULES_BY_FOLDER.values() for rule in rules))
OWN_RULES = [rule for rule in OWN_RULES if rule not in FILE_RULES]


def _with_outputs(folder: str) -> nbformat.NotebookNode:
    """The sample as an executed solution or exercise."""
    notebook = solved()
    if folder == "exercises":
        notebook = exercises.made_from(notebook, NAME)
        for count, cell in enumerate((c for c in notebook.cells if "outputs" in c), 1):
            cell.execution_count = count
            text = "Not done yet: it.\n" if count > 1 else ""
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    return notebook


def test_every_rule_is_tested() -> None:
    assert set(FAULTS) == {rule.__name__ for rule in OWN_RULES}
    assert set(EXERCISE_RULES) < set(OWN_RULES)


@pytest.mark.parametrize("folder", RULES_BY_FOLDER)
def test_a_good_notebook_passes(folder: str, tmp_path: Path) -> None:
    notebook = Notebook.read(write(_with_outputs(folder), tmp_path, folder))
    assert {rule.__name__: rule(notebook) for rule in RULES_BY_FOLDER[folder]} == {
        rule.__name__: [] for rule in RULES_BY_FOLDER[folder]
    }


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        pytest.param(rule, fault, id=f"{rule.__name__}-{number}")
        for rule in OWN_RULES
        for number, fault in enumerate(FAULTS.get(rule.__name__, []), 1)
    ],
)
def test_a_bad_notebook_fails(
    rule: Rule, fault: Callable[[nbformat.NotebookNode], object], tmp_path: Path
) -> None:
    only = [folder for folder, rules in RULES_BY_FOLDER.items() if rule in rules]
    folder = "solutions" if "solutions" in only else "exercises"
    notebook = _with_outputs(folder)
    fault(notebook)
    assert rule(Notebook.read(write(notebook, tmp_path, folder))), f"{rule.__name__} missed it"


def test_outputs_are_compared_as_stored(tmp_path: Path) -> None:
    """What the tool writes is what git stores: one newline at the end, ids kept."""
    text = write(exercises.made_from(solved(), NAME), tmp_path, "exercises").read_text("utf-8")
    assert text.endswith("}\n") and not text.endswith("\n\n")
    assert [cell["id"] for cell in json.loads(text)["cells"]][:3] == ["title", "setup", "task-1"]
