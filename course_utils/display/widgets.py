"""Controls that redraw a picture, built so that they work in JupyterLab, VS Code and Colab.

They use the interface of ipywidgets 7.7 (Colab's) and only ``observe`` and ``Image``. What an
``Output`` widget captures (``interact`` uses one) fails nbval and can hang nbclient.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from course_utils.errors import CourseError

from .style import course_style, figure_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


def view(box: ipywidgets.Widget, fallback: dict[str, str]) -> dict[str, Any]:
    """The output of a cell: a live widget, and what readers see where no kernel runs."""
    link = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    return {WIDGET_MIME: link, **fallback}


def control(name: str, given: Any) -> ipywidgets.Widget:
    """A control from a short form: (low, high[, step]), a list of choices, a bool, or a widget."""
    label = name.replace("_", " ")
    style = {"description_width": "initial"}
    if isinstance(given, ipywidgets.Widget):
        if not given.description:
            given.description = label
        return given
    if isinstance(given, bool):
        return ipywidgets.Checkbox(value=given, description=label, indent=False)
    if isinstance(given, list) and given:
        return ipywidgets.Dropdown(options=given, description=label, style=style)
    if isinstance(given, tuple) and len(given) in (2, 3):
        whole = all(isinstance(part, int) for part in given)
        slider = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
        low, high, step = given if len(given) == 3 else (*given, 1 if whole else 0.1)
        return slider(min=low, max=high, step=step, value=low, description=label, style=style)
    raise CourseError(
        f"Control {name!r} is {given!r}: give (low, high), (low, high, step), a list of choices, "
        "True, False or a widget."
    )


class Interactive:
    """A picture with controls. ``controls`` holds the widgets by name, ``image`` the picture."""

    def __init__(self, draw: Callable[..., Figure], **controls: Any) -> None:
        self._draw = draw
        self.controls = {name: control(name, given) for name, given in controls.items()}
        # Without align_self a VBox would stretch the picture over the whole page.
        layout = ipywidgets.Layout(align_self="flex-start", max_width="100%")
        self.image = ipywidgets.Image(format="png", layout=layout)
        self.problem = ipywidgets.HTML()
        self.image.value = self._picture()  # a mistake in draw shows here, in the cell itself
        self._first = self.image.value
        for widget in self.controls.values():
            widget.observe(self._on_change, names="value")
        row = ipywidgets.HBox(
            list(self.controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap")
        )
        self.box = ipywidgets.VBox([row, self.problem, self.image])

    @property
    def values(self) -> dict[str, Any]:
        """What the controls are set to."""
        return {name: widget.value for name, widget in self.controls.items()}

    def _picture(self) -> bytes:
        """Draw for the present values; raises CourseError where ``draw`` gives no figure."""
        from matplotlib import pyplot
        from matplotlib.figure import Figure

        with course_style():
            figure = self._draw(**self.values)
        if not isinstance(figure, Figure):
            raise CourseError(
                f"draw returned {type(figure).__name__}: let it return a matplotlib figure."
            )
        pyplot.close(figure)
        return figure_png(figure)

    def _on_change(self, _: Any) -> None:
        """Draw anew; an error is shown, since the learner does not see a callback's traceback."""
        try:
            self.image.value = self._picture()
            self.problem.value = ""
        except Exception as error:
            text = html.escape(f"{type(error).__name__}: {error}")
            self.problem.value = f'<span style="color:#c53d3d">{text}</span>'

    def __repr__(self) -> str:
        return f"<interactive picture: {', '.join(self.controls) or 'no controls'}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        still = base64.b64encode(self._first).decode("ascii")
        return view(self.box, {"text/plain": repr(self), "image/png": still})


def interactive(draw: Callable[..., Figure], **controls: Any) -> Interactive:
    """A figure that is drawn anew when a control moves; a still picture where no kernel runs.

    ``draw`` takes the controls by name and returns a matplotlib figure. A control is a tuple
    (low, high) or (low, high, step), a list of choices, a bool, or any ipywidgets control.
    """
    return Interactive(draw, **controls)
