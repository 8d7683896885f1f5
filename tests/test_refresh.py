"""Running cells of a notebook again: only theirs change, and nothing does where one fails."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools.refresh import RefreshError, refresh

SOURCES = {
    "setup-imports": "import math",
    "data": "n = 16\nprint('data again')",
    "root": "math.isqrt(n)",
    "late": "raise ValueError('not asked for')",
}


@pytest.fixture
def path(tmp_path):
    cells = [new_code_cell(text, id=name) for name, text in SOURCES.items()]
    for count, cell in enumerate(cells, 1):
        cell.execution_count = count
        cell.outputs = [new_output("stream", text=f"{cell.id} before\n")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "small.ipynb")
    return tmp_path / "small.ipynb"


def outputs(path):
    return {cell.id: cell.outputs for cell in nbformat.read(path, as_version=4).cells}


def test_only_the_named_cells_change(path):
    before = outputs(path)
    refresh(path, cells=("+data", "root"))
    after = outputs(path)
    (made,) = after.pop("root")
    assert made.data["text/plain"] == "4" and made.execution_count == 3  # its place as before
    assert after == {name: found for name, found in before.items() if name != "root"}


@pytest.mark.parametrize(
    ("cells", "said"), [(("root",), "'n' is not defined"), (("data", "nowhere"), "no cell nowhere")]
)
def test_a_notebook_stays_as_it_was_where_a_cell_fails(path, cells, said):
    before = path.read_bytes()
    with pytest.raises(RefreshError, match=said):
        refresh(path, cells=cells)
    assert path.read_bytes() == before
