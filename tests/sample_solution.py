"""A solved notebook with four small exercises that follows every rule, for tests of the tools."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell
from notebook_rules import COLAB

from tools.exercises import SOLVED
from tools.refresh import METADATA, written

NAME = "02_data.ipynb"
TITLE = f"""# Solutions 2: sample

[![Open in Colab](https://example.org/colab-badge.svg)]({COLAB}/blob/main/solutions/{NAME})

**Takes** about 40 minutes and at most 1 GiB of memory.

{SOLVED.format(name=NAME)}"""
SETUP = """\
import types

from course_utils import checks


@checks.check("twice the number.")
def twice(attempt):
    n = checks.draw.integer(3, 9)
    checks.same_number(attempt(n), 2 * n, "the result", look="the factor")


checks.sample = types.SimpleNamespace(twice=twice)"""
TASK = """## Exercise {n}: twice

**Goal.** Double a number. **Difficulty** {level} of 5 · **Time** 10 minutes"""
SOLVED_CELL = '''\
def double_{n}(number: int) -> int:
    """Twice ``number``."""
    ### BEGIN SOLUTION
    return 2 * number
    ### END SOLUTION


checks.sample.twice(double_{n})'''
HINTS = """<details><summary>Hint 1</summary>

Multiply.

</details>
<details><summary>Hint 2</summary>

By two.

</details>"""
WHY = "Adding the number to itself does as well."
RIGHT = "Right: twice the number.\n"


def solved() -> nbformat.NotebookNode:
    """The notebook as if it had been run."""
    setup = new_code_cell(SETUP, id="setup", execution_count=1)
    cells = [new_markdown_cell(TITLE, id="title"), setup]
    for n, level in enumerate((1, 2, 3, 4), 1):
        cell = new_code_cell(SOLVED_CELL.format(n=n), id=f"double-{n}", execution_count=n + 1)
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=RIGHT)]
        cells += [
            new_markdown_cell(TASK.format(n=n, level=level), id=f"task-{n}"),
            cell,
            new_markdown_cell(HINTS, id=f"hints-{n}"),
            new_markdown_cell(WHY, id=f"why-{n}", metadata={"tags": ["solution-only"]}),
        ]
    cells.append(new_markdown_cell("## Next\n\n[Chapter](../notebooks/03_x.ipynb)", id="next"))
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA)


def write(notebook: nbformat.NotebookNode, root: Path, folder: str = "solutions") -> Path:
    """Write it to a folder of an otherwise empty course in ``root``."""
    path = root / folder / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_text(written(notebook), encoding="utf-8")
    return path
