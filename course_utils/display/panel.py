"""A training as it happens: one picture in a notebook, one line in a terminal.

Both panels have the same five methods (``start``, ``update``, ``finish`` and the two of a context
manager), which is all that a training needs to know of them.
"""

from __future__ import annotations

import base64
import os
import sys
import time
from types import TracebackType
from typing import Any

from course_utils.errors import CourseError

from .progress import Progress

FRAMES_PER_SECOND = 3.0
DRAWING_SHARE = 0.03
"""At most this share of the time goes into drawing, however fast the steps are."""

BAR_FORMAT = "{desc}: {percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


class Panel:
    """What the two panels share: the numbers, and an end in every case.

    ``memory_limit_gib`` is what memory is shown against, in GiB; None takes the CUDA card's or the
    machine's own.
    """

    def __init__(self, title: str = "", memory_limit_gib: float | None = None) -> None:
        self.title = title
        self.memory_limit_gib = memory_limit_gib
        self.progress: Progress | None = None

    def start(self, total_steps: int) -> None:
        """Show an empty panel for a training of ``total_steps`` optimizer steps.

        Raises CourseError where there is no step to take.
        """
        if self.memory_limit_gib is None:
            self.memory_limit_gib = _memory_here_gib()
        self.progress = Progress(
            self.title, total_steps, time.monotonic(), memory_limit_gib=self.memory_limit_gib
        )
        self._open()

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        validation_loss: float | None = None,
        tokens_per_second: float | None = None,
        memory_gib: float | None = None,
        message: str | None = None,
    ) -> None:
        """Report that ``step`` optimizer steps are done; losses in nats per token, memory in GiB.

        What is left out keeps its last value. Raises CourseError before ``start``.
        """
        if self.progress is None:
            raise CourseError("The panel was not started: call panel.start(total_steps) first.")
        if self.progress.ended is not None:
            return
        self.progress.record(
            step,
            time.monotonic(),
            loss=loss,
            validation_loss=validation_loss,
            tokens_per_second=tokens_per_second,
            memory_gib=memory_gib,
            message=message,
        )
        self._show()

    def finish(self, message: str = "") -> None:
        """Show the last state and stop; a second call does nothing."""
        self._end(message, failed=False)

    def _end(self, message: str, *, failed: bool) -> None:
        if self.progress is not None and self.progress.ended is None:
            self.progress.end(time.monotonic(), message, failed=failed)
            self._close()

    def __enter__(self) -> Panel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the panel whatever happened; the exception itself goes on to the caller."""
        if kind is None or self.progress is None:
            self.finish()
            return
        interrupted = issubclass(kind, KeyboardInterrupt)
        reason = "Interrupted" if interrupted else kind.__name__
        where = f"at step {self.progress.step:,} of {self.progress.total_steps:,}"
        detail = f": {error}" if str(error) else "."
        self._end(f"{reason} {where}{detail}", failed=not interrupted)

    def _open(self) -> None:
        raise NotImplementedError

    def _show(self) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class _Frame:
    """One picture of a panel for Jupyter; its text is the same for every frame, as nbval needs."""

    def __init__(self, title: str, png: bytes) -> None:
        self._text = f"<training panel: {title or 'Training'}>"
        self._png = png

    def __repr__(self) -> str:
        return self._text

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        from .panel_figure import HEIGHT, WIDTH

        picture = base64.b64encode(self._png).decode("ascii")
        alt = f"{self._text[1:-1]}. Progress, loss by step, speed and memory."
        shown = {"width": WIDTH, "height": HEIGHT, "alt": alt}
        return {"text/plain": self._text, "image/png": picture}, {"image/png": shown}


class LivePanel(Panel):
    """A panel for Jupyter kernels (JupyterLab, VS Code, Colab): one picture that is redrawn.

    It is an image output with an id, so it needs no widget, and the saved notebook keeps the last
    picture alone.
    """

    def _open(self) -> None:
        from IPython.display import display

        from .panel_figure import PanelFigure

        self._figure = PanelFigure(self.progress)
        self._handle = display(self._frame(), display_id=True)
        self._next = 0.0  # the first frame also draws the axes: it is no measure of the others

    def _frame(self, *, final: bool = False) -> _Frame:
        """Draw, and set when the next frame may be drawn."""
        began = time.monotonic()
        frame = _Frame(self.title, self._figure.png(self.progress, final=final))
        took = time.monotonic() - began
        self._next = began + max(1 / FRAMES_PER_SECOND, took / DRAWING_SHARE)
        return frame

    def _show(self) -> None:
        if time.monotonic() >= self._next:
            self._update_display(self._frame())

    def _close(self) -> None:
        self._update_display(self._frame(final=True))

    def _update_display(self, frame: _Frame) -> None:
        if self._handle is not None:  # display() gives no handle outside a kernel
            self._handle.update(frame)


class TerminalPanel(Panel):
    """A panel for terminals: one line on standard error that is rewritten.

    Where standard error is a file or a pipe it writes a plain line every tenth of the way. Nothing
    goes to standard output.
    """

    def _open(self) -> None:
        self._bar = None
        self._tenth = 0
        if sys.stderr.isatty():
            from tqdm import tqdm

            size = os.get_terminal_size(sys.stderr.fileno())
            self._bar = tqdm(
                total=self.progress.total_steps,
                desc=self.title or "Training",
                unit="step",
                file=sys.stderr,
                ncols=size.columns or 80,  # some terminals say 0
                nrows=size.lines or 24,
                bar_format=BAR_FORMAT,
            )

    def _show(self) -> None:
        progress = self.progress
        if self._bar is not None:
            self._bar.n = progress.step
            self._bar.set_postfix_str(self._details(), refresh=False)
            self._bar.update(0)
            return
        tenth = int(10 * progress.share)
        if tenth > self._tenth:
            self._tenth = tenth
            self._say(
                f"{100 * progress.share:3.0f} % (step {progress.step:,} of "
                f"{progress.total_steps:,}), {self._details()}, {progress.clock_text()}"
            )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.n = self.progress.step
            self._bar.set_postfix_str(self.progress.numbers_text(), refresh=True)
            self._bar.close()
        self._say(self.progress.message)

    def _details(self) -> str:
        parts = (self.progress.numbers_text(), self.progress.message)
        return ", ".join(part for part in parts if part)

    def _say(self, text: str) -> None:
        print(f"{self.title or 'Training'}: {text}", file=sys.stderr, flush=True)


def _memory_here_gib() -> float:
    """Memory of the CUDA card in use, or else of the machine, in GiB."""
    import torch  # here, so that a program that only prints help does not wait for it

    from course_utils.memory import memory_limit_gib

    return memory_limit_gib("cuda" if torch.cuda.is_available() else "cpu")


def in_notebook() -> bool:
    """Whether this code runs in a Jupyter kernel (JupyterLab, VS Code, Colab, nbval)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def panel_for_here(title: str = "", memory_limit_gib: float | None = None) -> Panel:
    """The panel that suits the place: a picture in a notebook, a line in a terminal."""
    kind = LivePanel if in_notebook() else TerminalPanel
    return kind(title, memory_limit_gib)
