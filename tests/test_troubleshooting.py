"""Chapter 10: its table names cells that exist, and the library's errors name its symptoms."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import torch

from course_utils import trouble

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / f"{trouble.CHAPTER}.ipynb"
NAMED = re.compile(r"\(chapter 10(?:, '([^']+)')?\)")


@pytest.fixture(scope="module")
def cells() -> dict[str, str]:
    """The chapter's sources by cell id."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}


def sentences() -> list[tuple[str, str]]:
    """(module, text) of every text in the library, as Python joins its parts."""
    found = []
    for path in (ROOT / "course_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [p.value for p in parts if isinstance(p, ast.Constant)]
            text = "".join(t for t in texts if isinstance(t, str))
            if "(chapter 10" in text:
                found.append((path.name, text))
    return found


def test_the_chapter_shows_this_table(cells):
    assert trouble.table() in cells["table"]


@pytest.mark.parametrize("name", trouble.SYMPTOMS)
def test_each_symptom_has_its_cells_and_they_assert(cells, name):
    symptom = trouble.SYMPTOMS[name]
    assert set(symptom.cells) <= set(cells)
    for cell in symptom.cells:
        assert "assert " in cells[cell] or "trouble.provoked(" in cells[cell]
        assert "except Exception" not in cells[cell]


def test_each_failure_takes_three_cells_at_most(cells):
    topics = [symptom.topic for symptom in trouble.SYMPTOMS.values()]
    assert len(topics) == len(set(topics)) >= 13
    for topic in topics:
        code = [i for i in cells if i.split("-")[0] == topic and not i.endswith(("expect", "read"))]
        assert 1 <= len(code) <= 3


def test_errors_that_name_the_chapter_name_a_symptom_of_its_table():
    found = sentences()
    modules = {module for module, _ in found}
    assert {"loop.py", "oom.py", "models.py", "encoding.py", "training.py"} <= modules
    for module, text in found:
        named = NAMED.findall(text)
        assert named, f"{module}: {text}"
        assert set(named) <= set(trouble.SYMPTOMS), f"{module}: {named}"


@pytest.mark.parametrize("name", trouble.SYMPTOMS)
def test_what_the_table_quotes_of_our_errors_is_what_they_say(name):
    """Where our errors name a symptom, one of them has the words that the table quotes."""
    ours = [text for _, text in sentences() if name in NAMED.findall(text)]
    quoted = re.findall(r"`([^`]+)`", trouble.SYMPTOMS[name].seen)
    words = [part.removesuffix(" nan") for part in quoted]
    assert not (ours and quoted) or any(word in text for word in words for text in ours)


def test_a_failure_that_no_longer_happens_is_an_error(capsys):
    failing = pytest.raises(AssertionError, match="no longer happens")
    with failing, trouble.provoked(ValueError, "words"):
        pass
    with trouble.provoked(ValueError, "words", happens=False):
        pass
    assert "Not on this machine" in capsys.readouterr().out


def test_another_failure_is_let_through():
    with pytest.raises(ValueError, match="other"), trouble.provoked(ValueError, "words"):
        raise ValueError("other")
    with pytest.raises(KeyError), trouble.provoked(ValueError, "words"):
        raise KeyError("words")


def test_what_a_provoked_error_held_is_let_go(capsys):
    with trouble.provoked(ValueError, "the words"):
        raise ValueError("these are\nthe words")
    assert capsys.readouterr().out == "ValueError: these are the words\n"


@pytest.mark.skipif(not trouble.can_cap(), reason="this system cannot cap a process's memory")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the cap is on the GPU's memory there")
def test_a_cap_holds_and_ends():
    with trouble.capped(0.1), pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        torch.empty(2**28)  # 1 GiB
    assert torch.empty(2**28).numel() == 2**28
