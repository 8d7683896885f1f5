"""The code set: one-function tasks with unit tests, from a seeded generator.

A family is a way to build tasks: it draws parameters, and gives the function's description, its
reference body, typical wrong bodies, and inputs. The unit tests are calls of the reference on
these inputs; inputs are drawn until the tests tell the reference from every wrong body, so a
function that returns its argument, a constant, nothing, or is off by one does not pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course_utils.sets.code_families import FAMILIES
from course_utils.sets.code_task import Task
from course_utils.sets.dice import Dice

TASKS_PER_FAMILY = 36
TESTS = (3, 6)  # fewest and most assertions of a task
_DRAWS = 60  # a family whose inputs do not tell wrong from right after these is faulty

REQUESTS = (
    "Write a Python function `{sig}` that {does}.",
    "Implement `{sig}` in Python. It {does}.",
    "# {sig} {does}\nWrite this Python function.",
    "I need a Python function `{sig}`. It {does}.",
    "Complete in Python: def {sig}, which {does}.",
)


@dataclass(frozen=True)
class CodeRow:
    """A task with its request in words and its tests."""

    task: Task
    request: str
    tests: str


def generate() -> list[dict[str, Any]]:
    """All rows (Alpaca form) in an order that is the same on every machine."""
    rows = [_as_row(name, row) for name in FAMILIES for row in tasks_of(name)]
    return Dice("code-order").sample(rows, len(rows))


def tasks_of(family: str) -> list[CodeRow]:
    """The tasks of one family; no two are the same function under other names."""
    dice, make = Dice(f"code-{family}"), FAMILIES[family]
    rows: dict[str, CodeRow] = {}
    for _ in range(50 * TASKS_PER_FAMILY):
        if len(rows) == TASKS_PER_FAMILY:
            return list(rows.values())
        task = make(dice)
        request = dice.pick(REQUESTS).format(sig=task.signature, does=task.does)
        identity = task.without_names
        if identity not in rows:
            rows[identity] = CodeRow(task, request, _tests(task, dice))
    raise AssertionError(f"the family {family} has fewer than {TASKS_PER_FAMILY} different tasks")


def _as_row(family: str, row: CodeRow) -> dict[str, Any]:
    check = {"type": "unit_tests", "entry": row.task.name, "tests": row.tests}
    info = {"set": "code", "kind": family, "check": check}
    return {
        "instruction": row.request,
        "input": "",
        "output": row.task.solution,
        "info": info,
    }


def _tests(task: Task, dice: Dice) -> str:
    """Assertions that the reference passes and no wrong body does."""
    reference = compiled(task.solution, task.name)
    wrong = [compiled(source, task.name) for source in task.wrong_solutions]
    lines: list[str] = []
    for _ in range(_DRAWS):
        arguments = task.draw(dice)
        line = _assertion(task.name, reference, arguments)
        caught = [_differs(function, reference, arguments) for function in wrong]
        if line not in lines and (any(caught) or len(lines) < TESTS[0]):
            lines.append(line)
            wrong = [f for f, is_caught in zip(wrong, caught, strict=True) if not is_caught]
        if not wrong and len(lines) >= TESTS[0]:
            return "\n".join(lines)
    raise AssertionError(f"the inputs of {task.signature} do not expose {len(wrong)} wrong bodies")


def compiled(source: str, name: str) -> Callable[..., Any]:
    """The function that this source defines. Only for the generator's own code."""
    space: dict[str, Any] = {}
    exec(source, space)
    return space[name]


def _assertion(name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    call = ", ".join(map(repr, arguments))
    return f"assert {name}({call}) == {function(*arguments)!r}"


def _differs(
    function: Callable[..., Any], reference: Callable[..., Any], arguments: tuple[Any, ...]
) -> bool:
    try:
        return bool(function(*arguments) != reference(*arguments))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return True
