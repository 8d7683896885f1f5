"""The panel, the quiz and the slider in a real JupyterLab, with a real (small) training.

Screenshots are written to $COURSE_SCREENSHOTS if it names a folder, else to the test's own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from lab_browser import (
    browser_page,
    browser_path,
    cell,
    jupyter_lab,
    move_slider,
    notebook_json,
    open_notebook,
    start_all,
    wait_for_all,
)
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.refresh import METADATA, ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser_path() is None, reason="no Chromium: install it or set $CHROMIUM"),
]
START_HERE = ROOT / "notebooks" / "00_start_here.ipynb"

CELLS = [
    "import time\nimport torch\nfrom course_utils import display",
    # A linear regression, trained for about three seconds.
    """torch.manual_seed(0)
x = torch.randn(256, 8)
y = x @ torch.arange(8.0) + 0.3 * torch.randn(256)
weights = torch.zeros(8, requires_grad=True)
optimizer = torch.optim.SGD([weights], lr=0.02)
with display.LivePanel("Linear regression 线性回归", memory_limit_gib=8) as panel:
    panel.start(120)
    for step in range(1, 121):
        rows = torch.randint(0, 192, (16,))
        loss = ((x[rows] @ weights - y[rows]) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        held_out = ((x[192:] @ weights - y[192:]) ** 2).mean().item()
        every = {"validation_loss": held_out} if step % 20 == 0 else {}
        panel.update(step, loss=loss.item(), tokens_per_second=16 / 0.025, memory_gib=1.2, **every)
        time.sleep(0.025)
assert held_out < 1""",
    """display.quiz("LoRA with rank 8 on a 1,000 x 1,000 matrix trains how many numbers?", [
    ("1,000,000: the whole matrix", False, "The matrix stays frozen; only A and B are trained."),
    ("64: an 8 x 8 matrix, since the rank is the size of the one square matrix that is put between "
     "the input and the output of the layer and trained in their place", False,
     "The rank is the inner dimension that A and B share."),
    ("16,000: A and B together", True, "A is 8 x 1,000 and B is 1,000 x 8, which is 16,000."),
])""",
    """def draw(rank, on):
    sizes = {"full": 12.0, "LoRA": 4.0 + 0.01 * rank * on}
    return display.plot_memory(sizes, limit_gib=8)

display.interactive(draw, rank=(1, 256), on=True)""",
    """rows = [
    dict(question="What is 17 + 25? Answer with the number.", expected="42",
         before="Sure! To add 17 and 25, we first add the tens ...", after="42",
         ok_before=False, ok_after=True),
    dict(question="Write a function that doubles a number.",
         expected="def double(n):\\n    return 2 * n", before="n * 2 <b>is</b> the answer",
         after="def double(n):\\n    return n + n", ok_before=False, ok_after=True),
    dict(question="把“你好”翻译成英文。", expected="Hello", before="你好！",
         after="Hi", ok_before=False, ok_after=False),
]
display.side_by_side(rows)""",
    "display.plot_scores({'add': .05, 'code': .1}, {'add': .95, 'code': .8})",
    "print('the end')",
]
CHAT = [
    "from course_utils import display, models\nmodel, tokenizer = models.load(), "
    "models.load_tokenizer()",
    "display.chat({'first': model, 'second': model}, tokenizer, max_new_tokens=300)",
]
# Keeps every picture that a cell shows, also those that are soon replaced.
WATCH_PICTURES = """index => {
  window.pictures = new Set();
  const cell = document.querySelectorAll('.jp-Notebook .jp-Cell')[index];
  const keep = () => cell.querySelectorAll('.jp-OutputArea-output img').forEach(
    image => window.pictures.add(image.src));
  new MutationObserver(keep).observe(cell, {childList: true, subtree: true, attributes: true});
}"""
PANEL, QUIZ, SLIDER, TABLE, PLOT, END = range(2, 8)


def _notebook(path: Path, code: list[str]) -> None:
    cells = [new_markdown_cell("# What display shows", id="title")]
    cells += [new_code_cell(text, id=f"step-{n}") for n, text in enumerate(code, 1)]
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What JupyterLab serves: the notebook of this test, and the course's first."""
    served = tmp_path_factory.mktemp("served")
    _notebook(served / "shown.ipynb", CELLS)
    _notebook(served / "chat.ipynb", CHAT)
    if START_HERE.exists():
        shutil.copy(START_HERE, served)
    return served


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with jupyter_lab(folder, tmp_path_factory.mktemp("home")) as url, browser_page() as opened:
        opened.base = url
        yield opened


def _screenshot(target: Page | Locator, name: str, tmp_path: Path) -> None:
    target.screenshot(path=Path(os.environ.get("COURSE_SCREENSHOTS", tmp_path)) / f"{name}.png")


def _width(image: Locator) -> int:
    """Width of a picture in its own pixels, once the browser has decoded it."""
    return image.evaluate("async i => { await i.decode(); return i.naturalWidth; }")


def test_panel_quiz_and_slider_work(page: Page, tmp_path: Path) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    open_notebook(page, page.base, "shown.ipynb")
    page.evaluate(WATCH_PICTURES, PANEL)
    start_all(page)
    _check_panel(page, tmp_path)
    sync_api.expect(cell(page, END)).to_contain_text("the end")
    _check_quiz(cell(page, QUIZ), tmp_path)
    _check_slider(cell(page, SLIDER), tmp_path)
    _check_table_and_plot(page, tmp_path)
    assert not problems, problems


def test_the_chat_box_streams_and_stops(page: Page, tmp_path: Path) -> None:
    open_notebook(page, page.base, "chat.ipynb")
    start_all(page)
    box = cell(page, len(CHAT))
    send, stop = (box.get_by_role("button", name=name) for name in ("Send", "Stop"))
    sync_api.expect(send).to_be_enabled(timeout=60_000)
    sync_api.expect(stop).to_be_disabled()
    box.locator("input[type=text]").fill("Write a <b>long</b> story about a lighthouse.")
    send.click()
    sync_api.expect(box).to_contain_text(
        "Write a <b>long</b> story"
    )  # as it was written, no markup
    for name in ("first", "second"):
        sync_api.expect(box).to_contain_text(f"{name} is writing", timeout=60_000)
        length = len(box.inner_text())
        page.wait_for_function(  # it grows while it is written
            "([box, length]) => box.innerText.length > length + 20",
            arg=[box.element_handle(), length], timeout=60_000,
        )  # fmt: skip
        _screenshot(box, f"chat_{name}", tmp_path)
        stop.click()
        sync_api.expect(box.get_by_text("stopped")).to_have_count(1 + (name == "second"))
    sync_api.expect(send).to_be_enabled(timeout=60_000)
    sync_api.expect(stop).to_be_disabled()
    _screenshot(box, "chat_end", tmp_path)


def _check_panel(page: Page, tmp_path: Path) -> None:
    """Pictures change while the training runs; one is left."""
    image = cell(page, PANEL).locator(".jp-OutputArea-output img")
    # The empty panel and the first step; how many more there are depends on how busy we are.
    page.wait_for_function("() => window.pictures.size >= 2", timeout=30_000)
    assert page.evaluate("() => window.ran") is None  # still training
    _screenshot(cell(page, PANEL), "panel_running", tmp_path)
    wait_for_all(page)
    assert page.evaluate("() => window.pictures.size") >= 3
    sync_api.expect(image).to_have_count(1)
    outputs = notebook_json(page)["cells"][PANEL]["outputs"]
    assert [set(output["data"]) for output in outputs] == [{"image/png", "text/plain"}]
    assert _width(image) == 1080 and image.bounding_box()["width"] == pytest.approx(720, abs=1)
    _screenshot(cell(page, PANEL), "panel_end", tmp_path)


def _check_quiz(quiz: Locator, tmp_path: Path) -> None:
    """Each click explains the choice, the wrong one too."""
    choices = quiz.locator("input[type=radio]")
    sync_api.expect(choices).to_have_count(3)
    assert quiz.locator("input[type=radio]:checked").count() == 0
    _screenshot(quiz, "quiz_open", tmp_path)
    choices.nth(1).click()  # below a choice of two lines nothing may be in the way
    sync_api.expect(quiz).to_contain_text("Not quite. The rank is the inner dimension")
    choices.nth(0).click()
    sync_api.expect(quiz).to_contain_text("Not quite. The matrix stays frozen")
    _screenshot(quiz, "quiz_wrong", tmp_path)
    choices.nth(2).click()
    sync_api.expect(quiz).to_contain_text("Right. A is 8 x 1,000")
    sync_api.expect(quiz).not_to_contain_text("Not quite.")
    _screenshot(quiz, "quiz_right", tmp_path)


def _check_slider(scope: Locator, tmp_path: Path) -> None:
    """Moving the slider and clearing the box each give another picture."""
    image = scope.locator("img.widget-image")
    sync_api.expect(image).to_have_count(1)
    first = image.get_attribute("src")
    move_slider(scope, +20)
    sync_api.expect(scope.locator(".widget-readout").first).to_have_text("21")
    sync_api.expect(image).not_to_have_attribute("src", first)
    assert _width(image) > 300
    second = image.get_attribute("src")
    scope.locator("input[type=checkbox]").click()
    sync_api.expect(image).not_to_have_attribute("src", second)
    _screenshot(scope, "slider", tmp_path)


def _check_table_and_plot(page: Page, tmp_path: Path) -> None:
    table = cell(page, TABLE)
    sync_api.expect(table.locator("td")).to_have_count(12)
    sync_api.expect(table).to_contain_text("n * 2 <b>is</b> the answer")
    _screenshot(table, "table", tmp_path)
    plot = cell(page, PLOT).locator(".jp-OutputArea-output img")
    sync_api.expect(plot).to_have_count(1)
    assert _width(plot) > 300
    _screenshot(cell(page, PLOT), "plot", tmp_path)


@pytest.mark.skipif(not START_HERE.exists(), reason="notebooks/00_start_here.ipynb is not there")
def test_first_notebook_shows_its_results_before_it_is_run(page: Page, tmp_path: Path) -> None:
    open_notebook(page, page.base, START_HERE.name)
    stored = nbformat.read(START_HERE, as_version=4)
    title = re.search(r"^# (.+)$", stored.cells[0].source, re.MULTILINE)[1]
    sync_api.expect(page.locator(".jp-Notebook h1").first).to_contain_text(title)
    sync_api.expect(page.locator(".jp-Notebook .jp-Cell")).to_have_count(len(stored.cells))
    images = page.locator(".jp-OutputArea-output img")
    expected = sum(
        "image/png" in o.get("data", {}) for c in stored.cells for o in c.get("outputs", [])
    )
    sync_api.expect(images).to_have_count(expected)
    assert expected >= 1 and all(_width(image) > 300 for image in images.all())
    sync_api.expect(page.locator(".jp-RenderedText[data-mime-type*=stderr]")).to_have_count(0)
    _screenshot(page, "start_here", tmp_path)
