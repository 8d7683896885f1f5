"""README says what the benchmarks measured, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("readme_tool", ROOT / "tools" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_measured_figures_are_those_of_the_results(tool):
    assert tool.filled(TEXT) == TEXT, "run: python tools/readme.py"


def test_the_check_notices_another_figure(tool):
    figure = re.search(r"\| training \| (\d+) s \|", TEXT)
    assert figure, "README has no training time"
    changed = TEXT.replace(figure[0], "| training | 1 s |")
    assert tool.filled(changed) == TEXT != changed


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)\s#]+)", TEXT)
    missing = [link for link in links if ":" not in link and not (ROOT / link).exists()]
    assert not missing, f"README links to {missing}"


def test_every_notebook_is_on_the_map():
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    missing = [name for name in notebooks if f"(notebooks/{name})" not in TEXT]
    assert not missing, f"README's map lacks {missing}"
