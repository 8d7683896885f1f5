"""The bar of a run's memory, and the calculator around it, with real matplotlib and ipywidgets."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from lab_browser import (
    browser_page,
    browser_path,
    cell,
    jupyter_lab,
    open_notebook,
    start_all,
    wait_for_all,
)
from matplotlib.colors import to_rgba
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from course_utils import display, memory
from course_utils.display.memory_figure import CONTEXT, FILLS, PAGED, UNUSED, segments, verdict
from course_utils.display.style import COLORS, figure_png
from course_utils.display.widgets import WIDGET_MIME
from course_utils.errors import CourseError
from course_utils.memory.known import KNOWN
from course_utils.memory.plan import SPARE_GIB, plan_recipe
from course_utils.recipes import Recipe
from tools.refresh import METADATA

SMALL = {"model": "smollm2", "batch": 2, "length": 128}


@pytest.fixture(scope="module")
def seven():
    """QLoRA on a 7B model: an estimate of about 6 GiB."""
    recipe = Recipe(method="qlora", batch_size=4, max_length=1024, checkpointing=True, offload=True)
    return memory.estimate("llama-2-7b", recipe)


@pytest.fixture
def small():
    return display.memory_widget(**SMALL)


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.axes[0].texts)


# ------------------------------------------------------------------------------- the bar


def test_the_bar_is_the_whole_process_part_by_part(seven):
    axes = display.memory_bar(seven, 8).axes[0]
    widths = {bar.get_label().rsplit(" ", 2)[0]: bar.patches[0].get_width()
              for bar in axes.containers}  # fmt: skip
    assert widths == pytest.approx(segments(seven))
    assert {name: widths[name] for name in seven.parts} == pytest.approx(seven.parts)
    assert sum(widths.values()) == pytest.approx(seven.process_gib)
    assert widths[UNUSED] == pytest.approx(seven.reserved_gib - seven.allocated_gib)
    assert widths[CONTEXT] == pytest.approx(seven.process_gib - seven.reserved_gib)
    lefts = [bar.patches[0].get_x() for bar in axes.containers]
    assert lefts == pytest.approx([0, *np.cumsum(list(widths.values()))[:-1]])


def test_paged_states_are_no_part_of_the_context():
    recipe = Recipe(method="full", optimizer="paged_adamw_8bit", base_precision="bf16")
    found = segments(memory.estimate("smollm2", recipe))
    assert found[PAGED] > 0.2 and 0.5 < found[CONTEXT] < 1


def test_a_cpu_has_no_context_and_nothing_reserved():
    made = memory.estimate("smollm2", Recipe(), device="cpu")
    assert segments(made) == pytest.approx({n: gib for n, gib in made.parts.items() if gib > 1e-6})
    figure = display.memory_bar(made)
    assert figure.axes[0].get_xlabel() == "resident memory of the process (GiB)"
    assert "fit" not in _texts(figure).lower()


@pytest.mark.parametrize(
    ("card", "color", "said"), [(8, "good", "✓ Fits 8 GiB"), (6, "bad", "✗ Does not fit 6 GiB")]
)
def test_the_verdict_is_in_words_and_in_color(seven, card, color, said):
    figure = display.memory_bar(seven, card)
    axes = figure.axes[0]
    assert said in _texts(figure) and f"card {card} GiB" in _texts(figure)
    line = next(line for line in axes.lines if line.get_xdata()[0] == card)
    assert to_rgba(line.get_color()) == to_rgba(COLORS[color])
    assert axes.get_xlim()[1] > max(card, seven.range_gib[1])


def test_the_verdict_counts_in_the_margin(seven):
    needs = seven.range_gib[1] + SPARE_GIB
    assert verdict(seven, needs + 1e-6)[0] and not verdict(seven, needs - 1e-6)[0]
    assert not verdict(seven, seven.process_gib)[0]
    assert verdict(seven, 5, needs_gib=4.991) == (
        True, "Fits 5 GiB: it needs 5.00 GiB, margin included.",
    )  # fmt: skip
    assert verdict(seven, 5, needs_gib=5.001)[1].startswith("Does not fit 5 GiB: it needs 5.01 GiB")


@pytest.mark.parametrize("card", [0, -8, float("nan"), "8", True])
def test_a_card_without_memory_is_named(seven, card):
    with pytest.raises(CourseError, match="card_gib is .* such as 8"):
        display.memory_bar(seven, card)


@pytest.mark.parametrize("card", [None, 2, 6, 8, 141])
def test_nothing_is_cut_off_or_overlaps(seven, card):
    figure = display.memory_bar(seven, card, title="a title 标题")
    png = figure_png(figure)
    assert len(png) <= 60_000
    box, axes = figure.bbox, figure.axes[0]
    shown = [*axes.texts, axes.xaxis.label, axes._left_title, *figure.legends[0].get_texts()]
    extents = [text.get_window_extent() for text in shown if text.get_text()]
    for extent in extents:
        assert extent.x0 >= 0 and extent.x1 <= box.x1 and extent.y0 >= 0 and extent.y1 <= box.y1
    for number, one in enumerate(extents):
        assert not any(one.overlaps(other) for other in extents[:number])
    assert len(figure.legends[0].get_texts()) == len(segments(seven))


def test_colors_are_told_apart_without_color():
    """Parts that stand side by side differ in lightness or are hatched differently."""

    def lightness(color: str) -> float:
        red, green, blue, _ = to_rgba(color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert set(memory.estimate("smollm2", Recipe()).parts) <= set(FILLS)
    looks = list(FILLS.values())
    assert len(set(looks)) == len(looks)
    for (one, hatch), (other, next_hatch) in zip(looks, looks[1:], strict=False):
        assert abs(lightness(one) - lightness(other)) > 0.05 or hatch != next_hatch


def test_the_bar_draws_into_given_axes_and_is_shown_once(seven):
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    opened = pyplot.get_fignums()
    figure = Figure()
    ax = figure.subplots()
    assert display.memory_bar(seven, 8, ax=ax) is figure and ax.get_legend() and ax.patches
    display.memory_bar(seven)
    assert pyplot.get_fignums() == opened


# ------------------------------------------------------------------------- the calculator


def test_its_recipe_is_what_the_controls_say(small):
    small.controls["method"].value = "qlora"
    small.controls["rank"].value = 8
    small.controls["checkpointing"].value = 2
    expected = Recipe(model="smollm2", method="qlora", rank=8, alpha=16, batch_size=2,
                      max_length=128, checkpointing=2, offload=True)  # fmt: skip
    assert small.recipe == expected
    assert small.choice.estimate.parts == memory.estimate("smollm2", expected).parts
    small.controls["checkpointing"].value = False
    assert small.recipe == expected.replace(checkpointing=False, offload=False)


def test_its_code_makes_the_recipe(small):
    text = repr(small).partition("from course_utils")[2]
    scope: dict = {}
    exec("from course_utils" + text, scope)
    assert scope["recipe"] == small.recipe
    assert "is a shape" not in text
    small.controls["model"].value = "llama-3.2-1b"
    assert "llama-3.2-1b is a shape: to train" in small.code.value


def test_its_verdict_is_that_of_a_plan(small):
    needs = small.choice.needs_gib
    for card in (needs - 0.05, needs + 0.01):  # a plan looks for it in steps of 32 MiB
        small.controls["card_gib"].value = card
        planned = plan_recipe(small.recipe, card, fixed=("batch_size", "checkpointing", "offload"))
        assert small.verdict.startswith("Fits") is (planned.best is not None)
        assert ("✓" in small.code.value) is (planned.best is not None)
    small.controls["card_gib"].value = 1
    assert "memory.plan('smollm2', 1, length=128, effective_batch=2)" in small.verdict


def test_moving_a_control_redraws_and_says_so(small):
    pictures = {bytes(small.image.value)}
    for name, value in (("batch", 4), ("length", 256), ("method", "lora"), ("card_gib", 24.0)):
        small.controls[name].value = value
        pictures.add(bytes(small.image.value))
    assert len(pictures) == 5 and all(len(png) <= 60_000 for png in pictures)
    assert small.problem.value == "" and "24 GiB" in small.verdict


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("batch", -1, "batch_size is -1"),
        ("rank", 0, "rank is 0"),
        ("length", 0, "max_length is 0"),
        ("length", 10_000, "smollm2 reads at most 8192 tokens"),
        ("card_gib", 0, "card_gib is 0"),
        ("other", "nowhere.json", "nowhere.json is no readable model config"),
        ("other", "./<b>", "There is no model folder ./&lt;b&gt;"),
    ],
)
def test_a_mistake_is_a_sentence_and_nothing_is_lost(small, no_hub, name, value, said):
    before = (small.recipe, small.choice, small.verdict, small.code.value, small.image.value)
    good = small.controls[name].value
    small.controls[name].value = value
    assert said in small.problem.value and "CourseError" not in small.problem.value
    assert "<b>" not in small.problem.value
    after = (small.recipe, small.choice, small.verdict, small.code.value, small.image.value)
    assert after == before and small.controls[name].value == value
    small.controls[name].value = good
    assert small.problem.value == "" and small.recipe == before[0]


def test_another_model_is_a_folder_or_a_config(small, tmp_path):
    folder = tmp_path / "a $dollar$ folder"
    folder.mkdir()
    fields = KNOWN["smollm2"] | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    small.controls["other"].value = f" {folder} "
    assert small.problem.value == "" and small.recipe.model == str(folder)
    assert small.choice.estimate.parameters < 50e6
    small.controls["other"].value = ""
    assert small.recipe.model == "smollm2"
    given = display.memory_widget(folder / "config.json", batch=2, length=128)
    assert given.recipe.model == str(folder / "config.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "nowhere.json"}, "nowhere.json"),
        ({"method": "dora"}, "method is 'dora'"),
        ({"batch": -2}, "batch_size is -2"),
        ({"rank": "x"}, "rank is 'x'"),
        ({"checkpointing": 3}, "checkpointing is 3 and must be True, 2, 4 or False here"),
        ({"card_gib": -1}, "card_gib is -1"),
    ],
)
def test_a_wrong_start_is_named(given, said):
    with pytest.raises(CourseError, match=said):
        display.memory_widget(**SMALL | given)


def test_it_is_readable_without_a_kernel(small):
    first = bytes(small.image.value)
    text = repr(small)
    small.controls["batch"].value = 8
    data, metadata = small._repr_mimebundle_()
    assert set(data) == {WIDGET_MIME, "image/png", "text/plain"}
    assert data[WIDGET_MIME]["model_id"] == small.box.model_id
    assert data["text/plain"] == text and "GiB of GPU memory" in text and "recipe = Recipe(" in text
    assert _pixels(first).shape == _pixels(base64.b64decode(data["image/png"])).shape
    assert "the largest: " in metadata["image/png"]["alt"]


def test_public_names_stay_functions(small):
    """A module of the same name would take the function's place once it is imported."""
    assert callable(display.memory_bar) and callable(display.memory_widget)
    assert isinstance(small, display.MemoryWidget)


# ------------------------------------------------------------------------- in JupyterLab


@pytest.mark.browser
@pytest.mark.skipif(browser_path() is None, reason="no Chromium: install it or set $CHROMIUM")
def test_it_works_in_jupyterlab(tmp_path: Path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    (tmp_path / "served").mkdir()
    code = "from course_utils import display\ndisplay.memory_widget()"
    notebook = new_notebook(cells=[new_code_cell(code, id="calculator")], metadata=METADATA)
    nbformat.write(notebook, tmp_path / "served" / "memory.ipynb")
    with jupyter_lab(tmp_path / "served", tmp_path) as url, browser_page() as page:
        open_notebook(page, url, "memory.ipynb")
        start_all(page)
        wait_for_all(page)
        _calculate(cell(page, 0), sync_api.expect)
        shots = Path(os.environ.get("COURSE_SCREENSHOTS", tmp_path))
        cell(page, 0).screenshot(path=shots / "memory_widget.png")


def _calculate(scope, expect) -> None:
    """A choice, a mistake, its cure: as a learner does them."""
    image = scope.locator("img.widget-image")
    expect(image).to_have_count(1)
    expect(scope).to_contain_text("Fits 8 GiB")
    first = image.get_attribute("src")
    scope.locator("select").nth(1).select_option("lora")
    expect(scope).to_contain_text("Does not fit 8 GiB")
    expect(scope).to_contain_text("method='lora'")
    expect(image).not_to_have_attribute("src", first)
    batch = scope.locator("input[type=number]").nth(1)
    batch.fill("-1")
    batch.press("Enter")
    expect(scope).to_contain_text("batch_size is -1 and must be")
    expect(scope).to_contain_text("method='lora'")
    batch.fill("1")
    batch.press("Enter")
    expect(scope).to_contain_text("batch_size=1")
    expect(scope).not_to_contain_text("must be")
