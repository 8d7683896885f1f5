"""Each part of the guide has cells that show it, and they are there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from course_utils import cli, coverage
from course_utils.coverage import Part
from course_utils.errors import CourseError

SECTIONS = [  # of the guide
    "1.1-1.2", "1.3", "2.1-2.2", "2.3", "2.4", "3.1", "3.2", "3.3", "4.1", "5.1", "5.2", "5.3",
    "5.4", "6.1", "6.2", "6.3", "7.1", "7.2", "8", "9", "10",
]  # fmt: skip


def test_every_part_of_the_guide_is_shown():
    assert [part.id for part in coverage.PARTS] == SECTIONS
    assert coverage.gaps() == []


@pytest.mark.parametrize("part", coverage.PARTS, ids=lambda part: part.id)
def test_some_cell_of_each_part_runs(part):
    code = 0
    for cell in part.cells:
        chapter, _, name = cell.partition(":")
        (file,) = coverage.NOTEBOOKS.glob(f"{chapter}_*.ipynb")
        (found,) = [c for c in nbformat.read(file, 4).cells if c.id == name]
        code += found.cell_type == "code"
    assert code >= 1 and len(set(part.cells)) == len(part.cells)


def test_a_part_without_a_cell_and_a_cell_that_is_gone_are_told():
    parts = [Part("1", "this", ()), Part("2", "that", ("00:train", "00:no-such", "77:train"))]
    told = coverage.gaps(parts)
    assert len(told) == 3 and "Part 1 of the guide (this) has no cell" in told[0]
    assert "00:no-such" in told[1] and "77:train" in told[2]


def test_the_command_lists_all_and_fails_on_a_gap(capsys, monkeypatch):
    assert cli.main(["coverage"]) == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)} ", text, re.MULTILINE) for name in SECTIONS)
    assert "10:oom-provoke" in text and "21 parts" in text
    monkeypatch.setattr(coverage, "PARTS", (Part("1", "this", ()),))
    assert cli.main(["coverage", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False and len(said["gaps"]) == 1


def test_without_notebooks_it_says_where_to_run_it(tmp_path):
    with pytest.raises(CourseError, match="clone of the course"):
        coverage.known_cells(Path(tmp_path))
