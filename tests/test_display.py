"""Panels, plots, tables, quizzes and sliders, with real matplotlib and ipywidgets."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from course_utils import display
from course_utils.display import style
from course_utils.display.panel_figure import BAR, SCALE, WIDTH, PanelFigure
from course_utils.display.progress import Progress, RunningAverage, duration, lines_of
from course_utils.display.style import COLORS, figure_png
from course_utils.display.widgets import WIDGET_MIME
from course_utils.errors import CourseError


def _run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, encoding="utf-8")


def _pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _like(pixels: np.ndarray, color: str, tolerance: int = 30) -> np.ndarray:
    """Which pixels have a color of the palette."""
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (abs(pixels - wanted) <= tolerance).all(axis=-1)


# ------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("seconds", "said"), [(7.6, "8 s"), (185, "3 min 05 s"), (3600 * 1.5, "1 h 30 min")]
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_average_of_a_constant_is_the_constant() -> None:
    average = RunningAverage(span=20)
    assert [average.add(3.0) for _ in range(50)] == pytest.approx([3.0] * 50)


def test_average_follows_a_change() -> None:
    average = RunningAverage(span=5)
    values = [average.add(value) for value in [1.0] * 20 + [0.0] * 20]
    assert values[19] == pytest.approx(1.0) and 0.5 < values[20] < 0.9 and values[-1] < 0.01


def test_time_left_follows_the_pace_of_late() -> None:
    progress = Progress("", total_steps=100, started=0.0)
    assert progress.seconds_left is None and progress.clock_text() == "starting"
    for step in range(1, 51):  # the first step waits for the model, as it does
        progress.record(step, now=30.0 + 2 * step)
    assert progress.seconds_left == pytest.approx(100)
    assert progress.clock_text() == "1 min 40 s left"


def test_time_left_after_a_resume_counts_only_new_steps() -> None:
    progress = Progress("", total_steps=100, started=0.0)
    for step in (60, 61, 62):
        progress.record(step, now=float(step - 60))
    assert progress.seconds_left == pytest.approx(38)


def test_a_loss_that_is_not_a_number_is_shown_but_not_drawn() -> None:
    progress = Progress("", total_steps=10, started=0.0)
    progress.record(1, 1.0, loss=2.0)
    progress.record(2, 2.0, loss=math.nan, validation_loss=math.inf)
    assert progress.losses == [2.0] and progress.validation == []
    assert "loss nan" in progress.numbers_text()
    PanelFigure(progress).png(progress)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_is_an_error(steps: int) -> None:
    with pytest.raises(CourseError, match="at least 1 step"):
        display.TerminalPanel().start(steps)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("two words here", ["two words", "here"]),
        ("one two three four five", ["one two", "three four…"]),
        ("unbreakablywide", ["unbreakabl", "ywide"]),
        ("微调大模型很有趣", ["微调大模型", "很有趣"]),
    ],
)
def test_lines_are_broken_between_words(text: str, lines: list[str]) -> None:
    assert lines_of(text, 10, most=2) == lines


# ------------------------------------------------------------- the picture


def _trained(steps: int, total: int = 100, **last: object) -> Progress:
    progress = Progress("LoRA", total, started=0.0, memory_limit_gib=8.0)
    for step in range(1, steps + 1):
        progress.record(step, step * 1.0, loss=3 / math.sqrt(step), memory_gib=2.0)
    progress.record(steps, steps * 1.0, **last)
    return progress


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_bar_is_as_long_as_the_training(share: float) -> None:
    progress = _trained(int(100 * share))
    pixels = _pixels(PanelFigure(progress).png(progress))
    row = pixels[round(pixels.shape[0] * (1 - 0.868))]
    track = (BAR[1] - BAR[0]) * WIDTH * SCALE
    assert _like(row, COLORS["train"]).sum() / track == pytest.approx(share, abs=0.015)


def test_curve_and_validation_points_appear() -> None:
    progress = _trained(60)
    figure = PanelFigure(progress)
    plot = np.s_[100:360, 100:740]
    before = _pixels(figure.png(progress))[plot]
    progress.record(60, 60.0, validation_loss=1.0)
    after = _pixels(figure.png(progress))[plot]
    assert _like(before, COLORS["train"]).sum() > 500
    assert not _like(before, COLORS["validation"]).any()
    assert _like(after, COLORS["validation"]).sum() > 30


def test_frames_leave_no_trace_of_earlier_ones() -> None:
    """Drawing only the moving parts gives the same pixels as drawing everything."""
    progress = _trained(2)
    figure = PanelFigure(progress)
    for step in range(3, 80):
        progress.record(step, step * 1.0, loss=3 / math.sqrt(step), tokens_per_second=700.0 + step)
        if step % 10 == 0:
            progress.record(step, step * 1.0, validation_loss=2.0, message=f"evaluated {step}")
            figure.png(progress)
    progress.end(90.0)
    figure.png(progress)
    limits = figure._axes.get_ylim()
    fresh = PanelFigure(progress)
    fresh.png(progress)
    fresh._axes.set_ylim(*limits)  # its margin depends on when a point fell outside
    fresh._background = None
    assert (_pixels(figure.png(progress)) == _pixels(fresh.png(progress))).all()


def test_losses_beyond_the_axes_are_not_cut_off() -> None:
    progress = _trained(5)
    figure = PanelFigure(progress)
    figure.png(progress)
    for step, loss in ((6, 9.0), (7, 0.01), (130, 2.0)):
        progress.record(step, step * 1.0, loss=loss)
        figure.png(progress)
        assert figure._axes.get_ylim()[0] <= loss <= figure._axes.get_ylim()[1]
        assert figure._axes.get_xlim()[1] >= step


@pytest.mark.parametrize(
    ("steps", "failed", "color"), [(100, False, "good"), (40, False, "warn"), (40, True, "bad")]
)
def test_end_is_seen_in_the_color(steps: int, failed: bool, color: str) -> None:
    progress = _trained(steps)
    progress.end(100.0, failed=failed)
    png = PanelFigure(progress).png(progress, final=True)
    assert len(png) <= 60_000
    assert _like(_pixels(png), COLORS[color]).sum() > 1000


@pytest.mark.parametrize("words", ["Kept a checkpoint in a folder. ", "训练已停止，检查点已保存。"])
def test_nothing_is_cut_off_with_long_texts(words: str) -> None:
    progress = _trained(100, tokens_per_second=123_456.0, memory_gib=119.87, message="x")
    progress.title, progress.memory_limit_gib = words * 9, 139.8
    progress.end(36_000.0, words * 9)
    figure = PanelFigure(progress)
    figure.png(progress)
    box = figure.figure.bbox
    for text in figure.figure.texts:
        extent = text.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= box.x1 and extent.y0 >= 0 and extent.y1 <= box.y1
    title, clock = figure.figure.texts[0], figure._clock
    assert title.get_window_extent().x1 < clock.get_window_extent().x0
    status, axis = figure._status.get_window_extent(), figure._axes.xaxis.label
    assert status.y1 < axis.get_window_extent().y0
    label = next(t for t in figure.figure.texts if t.get_text() == "memory").get_window_extent()
    assert label.x1 < figure._numbers["memory"].get_window_extent().x0


# ------------------------------------------------------------- panels


class _CountingPanel(display.LivePanel):
    """A LivePanel that keeps its frames instead of sending them to Jupyter."""

    def _open(self) -> None:
        self._figure = PanelFigure(self.progress)
        self.frames = [self._frame()]
        self._next = 0.0

    def _update_display(self, frame: object) -> None:
        self.frames.append(frame)


def test_drawing_is_throttled() -> None:
    panel = _CountingPanel("Fast", memory_limit_gib=8)
    panel.start(100_000)
    began, step = time.monotonic(), 0
    while time.monotonic() - began < 1.0:
        step += 1
        panel.update(step, loss=1.0)
        time.sleep(0.001)
    assert step > 100
    assert 2 <= len(panel.frames) <= 5  # the first, then three a second at most


def test_a_frame_is_cheap() -> None:
    progress = _trained(90)
    figure = PanelFigure(progress)
    figure.png(progress)
    times = []
    for step in range(91, 111):
        progress.record(step, step * 1.0, loss=1.0, tokens_per_second=float(step))
        began = time.process_time()
        figure.png(progress)
        times.append(time.process_time() - began)
    assert sorted(times)[10] < 0.1  # 0.02 s here; 0.05 s would be 5 % of a one-second step


def test_frames_have_one_text_and_an_alternative_text() -> None:
    panel = _CountingPanel("LoRA on 300 rows", memory_limit_gib=8)
    with panel:
        panel.start(2)
        panel.update(1, loss=1.0)
    assert {repr(frame) for frame in panel.frames} == {"<training panel: LoRA on 300 rows>"}
    data, metadata = panel.frames[-1]._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"}
    assert "LoRA on 300 rows" in metadata["image/png"]["alt"]


@pytest.mark.parametrize(
    ("error", "said", "failed"),
    [
        (KeyboardInterrupt(), "Interrupted at step 3 of 9.", False),
        (ValueError("loss is NaN"), "ValueError at step 3 of 9: loss is NaN", True),
    ],
)
def test_an_exception_leaves_a_finished_panel(
    error: BaseException, said: str, failed: bool
) -> None:
    panel = _CountingPanel(memory_limit_gib=8)
    with pytest.raises(type(error)), panel:
        panel.start(9)
        panel.update(3, loss=1.0)
        raise error
    assert panel.progress.message == said and panel.progress.failed is failed
    assert panel.progress.ended is not None
    frames = len(panel.frames)
    panel.update(4, loss=1.0)
    panel.finish("again")
    assert len(panel.frames) == frames and panel.progress.message == said


def test_update_before_start_is_an_error() -> None:
    with pytest.raises(CourseError, match=r"panel\.start"):
        display.LivePanel().update(1, loss=1.0)


def test_memory_is_shown_against_this_machine() -> None:
    psutil = pytest.importorskip("psutil")
    panel = _CountingPanel()
    panel.start(1)
    assert panel.memory_limit_gib > 0
    if not _cuda():
        assert panel.memory_limit_gib <= psutil.virtual_memory().total / 2**30 + 1e-6


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def test_a_font_installed_after_matplotlibs_first_start_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from matplotlib import font_manager

    mono = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSansMono.ttf")
    odd = tmp_path / "odd.ttf"
    odd.write_bytes(b"no font")
    fonts = font_manager.fontManager
    before = [font for font in fonts.ttflist if font.name != "DejaVu Sans Mono"]
    monkeypatch.setattr(fonts, "ttflist", before)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(odd), str(mono)])
    monkeypatch.setattr(style, "CJK_FONTS", ("None Such", "DejaVu Sans Mono"))
    style._font_families.cache_clear()
    try:
        assert style._font_families() == ["DejaVu Sans", "DejaVu Sans Mono"]
        monkeypatch.setattr(style, "CJK_FONTS", ("None Such",))
        style._font_families.cache_clear()
        assert style._font_families() == ["DejaVu Sans"]
    finally:
        style._font_families.cache_clear()


def test_the_learners_settings_stay() -> None:
    before = dict(matplotlib.rcParams)
    progress = _trained(9)
    PanelFigure(progress).png(progress)
    figure_png(display.plot_scores({"all": 0.1}, {"all": 0.9}))
    assert dict(matplotlib.rcParams) == before


TERMINAL = """
from course_utils.display import panel_for_here
with panel_for_here("LoRA", memory_limit_gib=8) as panel:
    panel.start(50)
    for step in range(1, 51):
        panel.update(step, loss=2.0, tokens_per_second=812.3, memory_gib=1.5)
import sys
assert "matplotlib" not in sys.modules and "ipywidgets" not in sys.modules
"""


def test_a_pipe_gets_a_line_every_tenth_and_no_picture() -> None:
    run = _run(TERMINAL)
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert len(lines) == 11 and lines[0].startswith("LoRA:  10 % (step 5 of 50), loss 2.000")
    assert "812 tokens/s, 1.50 / 8.0 GiB" in lines[0]
    assert re.fullmatch(r"LoRA: Finished 50 steps in \d+ s\.", lines[-1])


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals in Python")
def test_a_terminal_gets_one_line_that_is_rewritten() -> None:
    import pty

    main_end, other_end = pty.openpty()
    command = [sys.executable, "-c", TERMINAL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=other_end) as process:
        os.close(other_end)
        assert process.communicate(timeout=60)[0] == b""
    with os.fdopen(main_end, "rb", closefd=True) as terminal:
        said = b""
        try:
            while part := os.read(terminal.fileno(), 65536):
                said += part
        except OSError:
            pass  # how Linux says that the other end is closed
    text = said.decode("utf-8")
    assert "\r" in text and "50/50" in text and "loss 2.000" in text and "812 tokens/s" in text
    assert text.count("\n") == 2  # the bar, and how it ended


def test_display_imports_only_what_is_used() -> None:
    program = (
        "import sys, course_utils.display as d\n"
        "d.panel_for_here, d.side_by_side, dir(d)\n"
        "assert not {'matplotlib', 'ipywidgets', 'torch', 'IPython'} & set(sys.modules)"
    )
    assert _run(program).stderr == ""
    with pytest.raises(AttributeError, match="no attribute 'plot_everything'"):
        display.plot_everything  # noqa: B018 (the attribute is the test)
    assert all(getattr(display, name) for name in display.__all__)


# ------------------------------------------------------------- plots


def test_plots_have_labels_with_units_and_are_shown_once() -> None:
    from matplotlib import pyplot

    opened = pyplot.get_fignums()
    figures = [
        display.plot_losses({"losses": [(1, 2.0), (2, 1.0)], "validation_losses": [(2, 1.5)]}),
        display.plot_scores({"sum": 0.05, "sort": 0.5}, {"sum": 0.9, "sort": 1.0}),
        display.plot_memory({"load": 0.3, "step": 2.1}, limit_gib=4.0),
    ]
    units = ["(nats per token)", "(%)", "(GiB)"]
    for figure, unit in zip(figures, units, strict=True):
        axes = figure.axes[0]
        assert unit in axes.get_xlabel() + axes.get_ylabel()
        assert len(figure_png(figure)) <= 60_000
    assert pyplot.get_fignums() == opened


def test_plots_draw_into_given_axes() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert display.plot_losses({"losses": [2.0, 1.0]}, ax=left) is figure
    assert display.plot_memory({"load": 1.0}, ax=right) is figure
    assert left.lines and right.patches


def test_bars_are_the_scores() -> None:
    axes = display.plot_scores({"sum": 0.05, "sort": 0.5}, {"sum": 0.9, "sort": 1.0}).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([5, 50, 90, 100])
    assert [text.get_text() for text in axes.texts] == ["5 %", "50 %", "90 %", "100 %"]


def test_memory_over_the_limit_is_red() -> None:
    axes = display.plot_memory({"load": 1.0, "step": 5.0}, limit_gib=4.0).axes[0]
    red = matplotlib.colors.to_rgba(COLORS["bad"])
    assert [bar.get_facecolor() == red for bar in axes.patches] == [False, True]
    assert axes.texts[-1].get_text() == "limit 4.0 GiB"


def test_many_losses_are_smoothed_over_the_raw_ones() -> None:
    losses = [(step, 2 + (-1) ** step) for step in range(1, 61)]
    raw, smooth = display.plot_losses({"losses": losses}).axes[0].lines
    assert list(raw.get_ydata()) == [loss for _, loss in losses]
    assert np.ptp(smooth.get_ydata()[20:]) < 1


def test_runs_are_compared_by_name() -> None:
    runs = {"full": {"losses": [2.0, 1.0]}, "LoRA": {"losses": [{"step": 1, "loss": 2.0}]}}
    axes = display.plot_losses(runs).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "full (train)",
        "LoRA (train)",
    ]


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: display.plot_losses({}), "no loss to plot"),
        (lambda: display.plot_losses({"losses": []}), "no loss to plot"),
        (lambda: display.plot_losses({"losses": [(1, 2.0), "x"]}), "Entry 2 of losses is 'x'"),
        (lambda: display.plot_scores({"a": 0.1}, {"b": 0.2}), "the same names"),
        (lambda: display.plot_scores({"a": 5}, {"a": 0.2}), "share from 0 to 1"),
        (lambda: display.plot_memory({}), "GiB per phase"),
        (lambda: display.plot_memory({"load": math.nan}), r"\['load'\]"),
        (lambda: display.side_by_side([{"question": "?"}]), "Row 1 has no expected"),
        (lambda: display.interactive(lambda k: None, k="x"), "'k' is 'x'"),
        (lambda: display.interactive(lambda k: None, k=(1, 5)), "returned NoneType"),
        (lambda: display.quiz("?", [("a", True, "x")]), "two or more choices"),
        (lambda: display.quiz("?", [("a", True, "x"), ("a", False, "y")]), "different texts"),
        (lambda: display.quiz("?", [("a", True, "x"), ("b", True, "y")]), "exactly one right"),
        (lambda: display.quiz("?", [("a", True, "x"), ("b", False, " ")]), "explanation"),
    ],
)
def test_bad_input_is_named(draw: object, said: str) -> None:
    with pytest.raises(CourseError, match=said):
        draw()


# ------------------------------------------------------------- tables, quizzes, sliders

ROWS = [
    {"question": "<b>1 + 1</b>?", "expected": "2", "before": "def f():\n    return 3",
     "after": "2", "ok_before": False, "ok_after": True},
    {"question": "把“你好”翻译成英文", "expected": "Hello", "before": "你好", "after": "Hello",
     "ok_before": False, "ok_after": True},
]  # fmt: skip


def test_table_shows_answers_as_text() -> None:
    page = display.side_by_side(ROWS)._repr_html_()
    assert "<b>" not in page and "&lt;b&gt;1 + 1&lt;/b&gt;?" in page
    assert "把“你好”翻译成英文" in page and page.count("✗") == 2 and page.count("✓") == 2
    assert "Right before training: 0 of 2. After: 2 of 2." in page


def test_table_reads_well_as_text() -> None:
    table = display.side_by_side(ROWS)
    assert str(table) == repr(table)
    assert str(table).splitlines()[2:7] == [
        "1. <b>1 + 1</b>?",
        "   expected:      2",
        "   before, wrong: def f():",
        "                      return 3",
        "   after, right:  2",
    ]
    assert "2. 把“你好”翻译成英文" in str(table)


CHOICES = [("More", False, "It only <adds>."), ("Fewer", True, "Two small matrices.")]


def test_quiz_explains_what_is_chosen() -> None:
    question = display.quiz("How many parameters?", CHOICES)
    assert question.radio.value is None and question.reply.value == ""
    question.radio.value = "More"
    assert "Not quite." in question.reply.value and "It only &lt;adds&gt;." in question.reply.value
    question.radio.value = "Fewer"
    assert "Right." in question.reply.value and "Two small matrices." in question.reply.value


def test_quiz_is_readable_without_a_kernel() -> None:
    question = display.quiz("How many parameters?", CHOICES)
    data = question._repr_mimebundle_()
    assert data[WIDGET_MIME]["model_id"] == question.box.model_id
    assert data["text/plain"] == "Question: How many parameters?\n  ( ) More\n  ( ) Fewer"
    assert data["text/html"].count("<details>") == 2 and "Two small" in data["text/html"]
    assert sum(len(str(value)) for value in data.values()) < 2000


def test_slider_redraws_the_picture() -> None:
    shown = display.interactive(
        lambda rank, kind: display.plot_memory({kind: rank}), rank=(1, 8), kind=["load", "step"]
    )
    first = bytes(shown.image.value)
    assert shown.values == {"rank": 1, "kind": "load"}
    shown.controls["rank"].value = 5
    second = bytes(shown.image.value)
    shown.controls["kind"].value = "step"
    assert len({first, second, bytes(shown.image.value)}) == 3
    data = shown._repr_mimebundle_()
    assert data["text/plain"] == "<interactive picture: rank, kind>"
    assert data["image/png"].startswith("iVBOR")


def test_an_error_while_drawing_is_seen() -> None:
    shown = display.interactive(lambda k: display.plot_memory({"<load>": 2 - k}), k=(1, 3))
    first = bytes(shown.image.value)
    shown.controls["k"].value = 3
    assert "CourseError" in shown.problem.value and "&lt;load&gt;" in shown.problem.value
    shown.controls["k"].value = 2
    assert shown.problem.value == "" and bytes(shown.image.value) != first


def test_controls_have_short_forms() -> None:
    figure = display.plot_memory({"load": 1.0})
    shown = display.interactive(
        lambda **_: figure, whole=(1, 9, 2), real=(0.0, 1.0), pick=["a", "b"], on=True
    )
    kinds = {name: type(widget).__name__ for name, widget in shown.controls.items()}
    expected = {"whole": "IntSlider", "real": "FloatSlider", "pick": "Dropdown", "on": "Checkbox"}
    assert kinds == expected
    assert shown.controls["whole"].step == 2
