"""Every notebook has the form of the course; and the rules notice a notebook that has not."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import (
    CHAPTER_RULES,
    COLAB,
    ENGLISH_RULES,
    FILE_RULES,
    Notebook,
    Rule,
    rules_for,
)
from PIL import Image

from tools import notebook_report
from tools.refresh import (
    METADATA,
    ROOT,
    RefreshError,
    all_notebooks,
    main,
    refresh,
    remember_seconds,
    small_png,
)

RULES = FILE_RULES + CHAPTER_RULES + ENGLISH_RULES
CASES = [
    pytest.param(path, rule, id=f"{path.relative_to(ROOT).as_posix()}-{rule.__name__}")
    for path in all_notebooks()
    for rule in rules_for(path)
]


def test_there_are_notebooks() -> None:
    assert ROOT / "notebooks" / "00_start_here.ipynb" in all_notebooks()


@pytest.mark.parametrize(("path", "rule"), CASES)
def test_form_of(path: Path, rule: Rule) -> None:
    complaints = rule(Notebook.read(path))
    assert not complaints, "\n".join(complaints)


# ------------------------------------------------------------- the tester is tested

TITLE = f"""# A chapter

[![Open in Colab](https://example.org/colab-badge.svg)]({COLAB}/blob/main/notebooks/02_data.ipynb)

10 minutes · 2 GiB"""
ENDING = "On to [the next chapter](01_basics.ipynb), also in [中文](https://example.org/zh)."


def _picture(size: int) -> str:
    return base64.b64encode(b"\x89PNG" + bytes(size)).decode("ascii")


def good_notebook() -> nbformat.NotebookNode:
    """A chapter of 45 cells that follows every rule."""
    heads = ["What you will be able to do", "What it cost", "Pitfalls", "Recap"]
    texts = [TITLE, *(f"## {head}" for head in [*heads, "Check your understanding"])]
    cells = [new_markdown_cell(text, id=f"head-{i}") for i, text in enumerate(texts)]
    for n in range(1, 20):
        cell = new_code_cell(f"print({n})", id=f"show-{n}", execution_count=n)
        cell.outputs = [new_output("stream", name="stdout", text=f"{n}\n")]
        cells += [cell, new_markdown_cell(f"The cell prints `{n}`.", id=f"read-{n}")]
    data = {"image/png": _picture(100), "text/plain": "<Figure>"}
    cells[6].outputs.append(new_output("display_data", data=data))
    cells.append(new_markdown_cell(ENDING, id="next"))
    return new_notebook(cells=cells, metadata=METADATA)


def _write(notebook: nbformat.NotebookNode, folder: Path) -> Notebook:
    path = folder / "02_data.ipynb"
    path.write_text(nbformat.v4.writes(notebook), encoding="utf-8")
    return Notebook.read(path)


def _first_code(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    return notebook.cells[6]


def _set_source(text: str) -> Callable[[nbformat.NotebookNode], None]:
    return lambda nb: _first_code(nb).update(source=text)


def _add_output(kind: str, **content: object) -> Callable[[nbformat.NotebookNode], None]:
    return lambda nb: _first_code(nb).outputs.append(new_output(kind, **content))


def _set_title(text: str) -> Callable[[nbformat.NotebookNode], None]:
    return lambda nb: nb.cells[0].update(source=text)


FAULTS = {
    "is_valid_notebook": [lambda nb: _first_code(nb).outputs[0].update(output_type="guess")],
    "has_stable_ids": [
        lambda nb: nb.cells[7].update(id="show-1"),
        lambda nb: nb.cells[7].update(id="3fa1b20c"),
        lambda nb: nb.cells[7].update(id="Read_1"),
    ],
    "was_run_top_to_bottom": [
        lambda nb: _first_code(nb).update(execution_count=None),
        lambda nb: _first_code(nb).update(execution_count=40),
    ],
    "has_no_stray_error": [_add_output("error", ename="ValueError", evalue="no", traceback=[])],
    "has_no_stderr": [_add_output("stream", name="stderr", text="UserWarning: x")],
    "has_clean_metadata": [
        lambda nb: nb.metadata.update(widgets={"state": {}}),
        lambda nb: nb.metadata.update(kernelspec={"name": "my-env", "display_name": "x"}),
        lambda nb: _first_code(nb).metadata.update(execution={"iopub.status.busy": "now"}),
    ],
    "has_no_svg": [_add_output("display_data", data={"image/svg+xml": "<svg/>"})],
    "has_no_local_path": [
        _add_output("stream", name="stdout", text="saved in /home/ada/runs"),
        _add_output("execute_result", data={"text/plain": "WindowsPath('C:\\\\Users\\\\ada')"}),
        _set_source("folder = '/tmp/x'"),
    ],
    "has_no_trailing_semicolon": [_set_source("ax.plot(x);")],
    "is_small": [
        _add_output("display_data", data={"image/png": _picture(61_000)}),
        _add_output("stream", name="stdout", text="x" * 1_100_000),
    ],
    "has_short_code_cells": [
        _set_source("\n".join(["print(1)"] * 26)),
        lambda nb: [c.update(source="\n".join(["1"] * 9)) for c in nb.cells if "outputs" in c],
    ],
    "has_chapter_length": [lambda nb: nb.cells.__delitem__(slice(20, 30))],
    "is_mostly_prose": [
        lambda nb: [nb.cells.insert(7, new_code_cell("1", id=f"more-{i}")) for i in range(9)]
    ],
    "reads_each_figure": [
        lambda nb: nb.cells[7].update(source="## Another subject"),
        lambda nb: nb.cells.__delitem__(7),
    ],
    "defines_only_concepts": [
        _set_source("%time 1\ndef helper():\n    return 1"),
        _set_source("if x:\n    !ls\nclass Helper:\n    pass"),
    ],
    "opens_with_title": [
        _set_title(TITLE.replace("# A", "A")),
        _set_title(TITLE.replace("colab-badge", "badge")),
        _set_title(TITLE.replace("02_data", "03_full_finetuning")),
        _set_title(TITLE.replace("10 minutes", "soon")),
        _set_title(TITLE.replace("2 GiB", "2 GB")),
    ],
    "links_onward": [lambda nb: nb.cells[-1].update(source="The end.")],
    "has_working_links": [_set_title(f"{TITLE} [here](nowhere.ipynb)")],
    "has_chapter_headings": [lambda nb: nb.cells[2].update(source="## Costs")],
    "is_written_in_english": [lambda nb: nb.cells[7].update(source="The 模型 answers.")],
}


def test_every_rule_is_tested() -> None:
    assert set(FAULTS) == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_notebook_passes(rule: Rule, tmp_path: Path) -> None:
    assert rule(_write(good_notebook(), tmp_path)) == []


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        pytest.param(rule, fault, id=f"{rule.__name__}-{number}")
        for rule in RULES
        for number, fault in enumerate(FAULTS.get(rule.__name__, []), 1)
    ],
)
def test_a_bad_notebook_fails(
    rule: Rule, fault: Callable[[nbformat.NotebookNode], object], tmp_path: Path
) -> None:
    notebook = good_notebook()
    fault(notebook)
    assert rule(_write(notebook, tmp_path)), f"{rule.__name__} did not notice"


def test_tags_excuse() -> None:
    notebook = good_notebook()
    cell = _first_code(notebook)
    cell.source = "class Lora:\n    pass"
    cell.outputs = [new_output("error", ename="ValueError", evalue="meant", traceback=[])]
    cell.metadata["tags"] = ["concept", "raises-exception"]
    written = Notebook(Path("02_data.ipynb"), notebook)
    names = ("defines_only_concepts", "has_no_stray_error")
    assert [rule(written) for rule in RULES if rule.__name__ in names] == [[], []]


def test_each_folder_has_its_rules() -> None:
    for folder in ("exercises", "solutions"):
        rules = rules_for(Path(folder) / "01_basics.ipynb")
        assert set(FILE_RULES) < set(rules) and CHAPTER_RULES[0] not in rules
    assert ENGLISH_RULES[0] not in rules_for(Path("notebooks/zh/01_basics.ipynb"))
    assert ENGLISH_RULES[0] in rules_for(Path("notebooks/01_basics.ipynb"))


# ------------------------------------------------------------- the refresh command


def _to_refresh(folder: Path, *sources: str) -> Path:
    cells = [new_code_cell(text, id=f"step-{n}") for n, text in enumerate(sources, 1)]
    cells[0].metadata.update(tags=["keep-me"], execution={"iopub.status.busy": "then"})
    path = folder / "lesson.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"widgets": {}}), path)
    return path


def test_refresh_leaves_a_clean_executed_notebook(tmp_path: Path) -> None:
    path = _to_refresh(
        tmp_path,
        "from course_utils.display import quiz\nprint(1 + 1)",
        "quiz('Sum?', [('3', False, 'One too many.'), ('2', True, 'Yes.')])",
    )
    assert main([str(path)]) == 0
    lesson = Notebook.read(path)
    assert [rule(lesson) for rule in FILE_RULES] == [[]] * len(FILE_RULES)
    assert lesson.cells[0].metadata == {"tags": ["keep-me"]}
    assert lesson.cells[0].outputs[0].text == ["2\n"]
    assert set(lesson.cells[1].outputs[0].data) == {"text/plain", "text/html"}


def test_refresh_leaves_a_failing_notebook_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _to_refresh(tmp_path, "print(1)", "1 / 0")
    stored = path.read_bytes()
    assert main([str(path), str(tmp_path / "absent.ipynb")]) == 1
    assert path.read_bytes() == stored
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said and "absent.ipynb" in said


def test_refresh_ends_an_endless_cell(tmp_path: Path) -> None:
    path = _to_refresh(tmp_path, "while True: pass")
    with pytest.raises(RefreshError, match="more than 1 s"):
        refresh(path, cell_seconds=1)


# ------------------------------------------------------------- nbval, as conftest.py sets it up

SHOWN = """\
from course_utils import display
with display.LivePanel("Demo", memory_limit_gib=8) as panel:
    panel.start(40)
    for step in range(1, 41):
        panel.update(step, loss=2 / step, tokens_per_second=900 + step, memory_gib=1.5)
"""
SHOWN_TOO = (
    "display.plot_scores({'overall': 0.05}, {'overall': 0.9})",
    "display.quiz('Sum?', [('3', False, 'One too many.'), ('2', True, 'Yes.')])",
    "display.interactive(lambda k: display.plot_memory({'load': k}), k=(1, 5))",
    "import time\ntime.sleep(0.1)\nprint('took 0.10 s at', object())",
)


def _nbval(path: Path) -> subprocess.CompletedProcess[str]:
    """Check a notebook outside the repository with the repository's own set-up."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "--nbval", str(path)]
    command += ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_what_display_shows_passes_nbval(tmp_path: Path) -> None:
    path = _to_refresh(tmp_path, SHOWN, *SHOWN_TOO)
    assert main([str(path)]) == 0
    run = _nbval(path)
    assert run.returncode == 0 and "5 passed" in run.stdout, run.stdout
    panel = nbformat.read(path, as_version=4).cells[0]
    assert len(panel.outputs) == 1  # one picture, whatever the number of steps
    assert len(base64.b64decode(panel.outputs[0].data["image/png"])) <= 60_000

    stale = path.read_text(encoding="utf-8").replace("<training panel: Demo>", "<other>")
    path.write_text(stale, encoding="utf-8")
    assert "1 failed, 4 passed" in _nbval(path).stdout


def test_big_pictures_are_reduced() -> None:
    ramp = np.add.outer(np.arange(600), np.arange(900)) % 256
    noisy = np.stack([ramp, ramp.T[:600, :600].repeat(2, 1)[:, :900], ramp[::-1]], axis=2)
    noisy = (noisy + np.random.default_rng(0).integers(0, 9, noisy.shape)).clip(0, 255)
    out = io.BytesIO()
    Image.fromarray(noisy.astype("uint8")).save(out, format="png")
    assert len(out.getvalue()) > 300_000
    small = base64.b64decode(small_png(base64.b64encode(out.getvalue()).decode(), limit=200_000))
    assert len(small) <= 200_000
    assert Image.open(io.BytesIO(small)).size == (900, 600)


# ------------------------------------------------------------- the report


def test_the_report_measures_a_notebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    _write(good_notebook(), folder)
    assert notebook_report.main([], tmp_path) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    shown = dict(zip(notebook_report.HEAD, row, strict=True))
    figures = {"cells": "45", "prose": "58%", "median": "1", "longest": "1", "figures": "1"}
    assert figures.items() <= shown.items()
    assert shown["min"] == "10" and shown["s"] == "-" and 90 < int(shown["words"]) < 130


def test_the_report_complains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    notebook = good_notebook()
    del notebook.cells[20:30]
    _write(notebook, folder)
    remember_seconds({"notebooks/02_data.ipynb": 700.2}, tmp_path / "runs/notebook_seconds.json")
    assert notebook_report.main([], tmp_path) == 1
    said = capsys.readouterr().out
    assert "35 cells: a chapter has 40 to 75" in said
    assert "took 700 s, but says 10 minutes" in said


def test_every_notebook_is_in_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    notebook_report.main([])
    said = capsys.readouterr().out
    assert all(path.relative_to(ROOT).as_posix() in said for path in all_notebooks())
