"""Make the exercises from their solutions, run them, and say which are out of step.

    python tools/exercises.py solutions/04_lora.ipynb     make and run exercises/04_lora.ipynb
    python tools/exercises.py --all
    python tools/exercises.py --check                     exit code 1 where one is out of step
    python tools/exercises.py --all --nbgrader FOLDER     assignments for nbgrader, in FOLDER/source

The lines between `### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's marks) become one that
raises NotImplementedError; cells tagged `solution-only` are left out; the first cell is reworded.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, from wherever

from tools.refresh import (  # noqa: E402
    RefreshError,
    clean,
    execute,
    kernel_environment,
    written,
)

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "raise NotImplementedError  # your code here"
SOLUTION_ONLY = "solution-only"
SOLVED = "Solved: try [the exercises](../exercises/{name}) first."
OPEN = (
    "Write what is missing and run the cell: its last line checks it, and says what is off. "
    "Stuck? Unfold the hints, one at a time; [the solutions](../solutions/{name}) come last."
)
CHECK_CALL = re.compile(r"checks\.\w+\.\w+\((\w+)\)")


class ExerciseError(Exception):
    """A solution that no exercise can be made from; the message says what to change."""


@dataclass
class Exercise:
    """One exercise: its text, and the cells that end in a check."""

    title: str
    text: str = ""
    cells: list[NotebookNode] = field(default_factory=list)

    @property
    def difficulty(self) -> int | None:
        return _number(r"\*\*Difficulty\W*(\d+)\b", self.text)

    @property
    def minutes(self) -> int | None:
        return _number(r"\*\*Time\W*(\d+) minutes?\b", self.text)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def exercises_of(notebook: NotebookNode) -> list[Exercise]:
    """The parts of a notebook that begin with a heading `## Exercise ...`."""
    found: list[Exercise] = []
    inside = False
    for cell in notebook.cells:
        text = "".join(cell.source)
        if cell.cell_type == "markdown":
            if heading := re.match(r"## (.*)", text):
                inside = heading[1].startswith("Exercise")
                if inside:
                    found.append(Exercise(heading[1]))
            if inside:
                found[-1].text += text + "\n\n"
        elif inside and CHECK_CALL.fullmatch(last_line(text)):
            found[-1].cells.append(cell)
    return found


def last_line(source: str) -> str:
    return source.rstrip().rpartition("\n")[2]


# ---------------------------------------------------------------- from solution to exercise


def without_solution(source: str) -> str:
    """A cell's source with each solution replaced by the stub, as deep as the solution was."""
    kept: list[str] = []
    inside = False
    for line in source.split("\n"):
        mark = line.strip()
        if mark in (BEGIN, END):
            if (mark == BEGIN) == inside:
                raise ExerciseError(f"`{mark}` at the wrong place: marks come in pairs")
            inside = not inside
            if inside:
                kept.append(line[: len(line) - len(line.lstrip())] + STUB)
        elif not inside:
            kept.append(line)
    if inside:
        raise ExerciseError(f"`{BEGIN}` without `{END}`")
    return "\n".join(kept)


def first_cell(source: str, name: str) -> str:
    """The first cell of a solution, reworded for the exercise of the same name."""
    if not source.startswith("# Solutions "):
        raise ExerciseError("the first cell should begin with '# Solutions N: ...'")
    solved = SOLVED.format(name=name)
    if solved not in source:
        raise ExerciseError(f"the first cell should say: {solved}")
    text = source.replace("# Solutions ", "# Exercises ", 1).replace(solved, "\0")
    text = text.replace(f"solutions/{name}", f"exercises/{name}")  # the badge
    return text.replace("\0", OPEN.format(name=name))


def made_from(solution: NotebookNode, name: str) -> NotebookNode:
    """The exercise notebook, without outputs. Raises ExerciseError."""
    notebook = copy.deepcopy(solution)
    kept = [c for c in notebook.cells if SOLUTION_ONLY not in c.metadata.get("tags", [])]
    notebook.cells = kept
    for cell in kept:
        if cell.cell_type == "code":
            cell.source = without_solution(cell.source)
    kept[0].source = first_cell(kept[0].source, name)
    return without_outputs(notebook)


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """A clean copy as if it had never been run."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    clean(notebook)
    return notebook


# ---------------------------------------------------------------- files


def exercise_path(solution: Path) -> Path:
    """Where the exercise of a solution is: in the folder beside it."""
    return solution.resolve().parent.parent / "exercises" / solution.name


def make(solution: Path) -> Path:
    """Write the exercise notebook, executed; raises ExerciseError or RefreshError."""
    notebook = made_from(nbformat.read(solution, as_version=4), solution.name)
    path = exercise_path(solution)
    path.parent.mkdir(exist_ok=True)
    execute(notebook, path.parent)
    clean(notebook)
    nbformat.validate(notebook)
    path.write_text(written(notebook), encoding="utf-8", newline="\n")
    return path


def out_of_step(solution: Path) -> str:
    """What is wrong with the exercise of a solution; empty where they are in step."""
    path, command = exercise_path(solution), f"python tools/exercises.py solutions/{solution.name}"
    try:
        wanted = written(made_from(nbformat.read(solution, as_version=4), solution.name))
    except ExerciseError as error:
        return f"solutions/{solution.name}: {error}"
    if not path.exists():
        return f"exercises/{path.name} is missing: {command}"
    if written(without_outputs(nbformat.read(path, as_version=4))) != wanted:
        return f"exercises/{path.name} is not what its solution makes: {command}"
    return ""


def orphans(root: Path = ROOT) -> list[str]:
    """Exercises whose solution is gone."""
    names = {path.name for path in (root / "solutions").glob("*.ipynb")}
    return [
        f"exercises/{path.name} has no solution: delete it"
        for path in sorted((root / "exercises").glob("*.ipynb"))
        if path.name not in names
    ]


# ---------------------------------------------------------------- nbgrader


def assignment(solution: NotebookNode) -> NotebookNode:
    """The solution with nbgrader's metadata; each check in a locked cell of its own.

    nbgrader takes the solutions out itself, and gives as many points as an exercise is difficult.
    """
    notebook = without_outputs(solution)
    points = {c.id: e.difficulty or 1 for e in exercises_of(solution) for c in e.cells}
    cells: list[NotebookNode] = []
    for cell in notebook.cells:
        if SOLUTION_ONLY in cell.metadata.get("tags", []):
            continue
        cells.append(cell)
        if cell.id not in points:
            continue
        cell.source, _, call = cell.source.rstrip().rpartition("\n")
        test = nbformat.v4.new_code_cell(call, id=f"{cell.id}-check")
        cell.metadata["nbgrader"] = _grading(cell.id, solution=True)
        test.metadata["nbgrader"] = _grading(test.id, grade=True, points=points[cell.id])
        cells.append(test)
    notebook.cells = cells
    return notebook


def _grading(grade_id: str, *, points: int | None = None, **kind: bool) -> dict[str, object]:
    """Version 3 of nbgrader's cell metadata."""
    grade, solution = kind.get("grade", False), kind.get("solution", False)
    found = {"grade": grade, "solution": solution, "locked": grade, "task": False}
    found |= {"grade_id": grade_id, "schema_version": 3}
    return found | ({"points": points} if points is not None else {})


def write_assignment(solution: Path, folder: Path) -> Path:
    """Write the assignment to ``folder``/source/NN_name/NN_name.ipynb, where nbgrader looks."""
    path = folder / "source" / solution.stem / solution.name
    path.parent.mkdir(parents=True, exist_ok=True)
    notebook = assignment(nbformat.read(solution, as_version=4))
    first = notebook.cells[0]
    first.source = first_cell(first.source, solution.name)
    path.write_text(written(notebook), encoding="utf-8", newline="\n")
    return path


# ---------------------------------------------------------------- command line


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when all went well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("solutions", nargs="*", type=Path, help="solved notebooks")
    parser.add_argument("--all", action="store_true", help="every solved notebook")
    parser.add_argument("--check", action="store_true", help="write nothing, say what is stale")
    parser.add_argument("--nbgrader", type=Path, metavar="FOLDER", help="write assignments there")
    given = parser.parse_args(arguments)
    every = sorted((ROOT / "solutions").glob("*.ipynb"))
    paths = given.solutions or (every if given.all or given.check else [])
    if not paths and not (given.all or given.check):
        parser.error("name solved notebooks, or give --all or --check")
    if given.check:
        wrong = [*filter(None, map(out_of_step, paths)), *orphans()]
        print("\n".join(wrong) or "all exercises are in step with their solutions")
        return 1 if wrong else 0
    os.environ.update(kernel_environment())
    failed = [path for path in paths if not _made(path, given.nbgrader)]
    return 1 if failed else 0


def _made(solution: Path, nbgrader: Path | None) -> bool:
    try:
        path = write_assignment(solution, nbgrader) if nbgrader else make(solution)
    except (ExerciseError, RefreshError, FileNotFoundError) as error:
        print(f"{solution}: no exercise made: {error}", file=sys.stderr)
        return False
    print(f"{path} made")
    return True


if __name__ == "__main__":
    sys.exit(main())
