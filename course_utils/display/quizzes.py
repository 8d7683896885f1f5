"""Check questions that explain every choice, the wrong ones too."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets

from course_utils.errors import CourseError

from .style import COLORS
from .widgets import view

Choice = tuple[str, bool, str]
# A widget's choices are one line high and are not wrapped; ours may be whole sentences.
STYLE = """<style>
.course-quiz .widget-html-content, .course-quiz .widget-radio-box label {
  white-space: normal; height: auto; line-height: 1.45; overflow: visible;
}
.course-quiz .widget-radio, .course-quiz .widget-radio-box { height: auto; max-width: 100%; }
.course-quiz .widget-radio-box { padding-right: 4px; }
.course-quiz .widget-radio-box label {
  display: block; padding: 2px 0 2px 24px; position: relative;
}
.course-quiz .widget-radio-box label input { position: absolute; left: 0; top: 3px; margin: 0; }
</style>"""


class Quiz:
    """A single-choice question. ``radio`` is the control, ``reply`` shows the explanation."""

    def __init__(self, question: str, choices: Sequence[Choice]) -> None:
        _check(question, choices)
        self.question, self.choices = question, [tuple(choice) for choice in choices]
        title = ipywidgets.HTML(f"{STYLE}<b>{escape(question)}</b>")
        self.radio = ipywidgets.RadioButtons(
            options=[text for text, _, _ in choices],
            value=None,  # nothing is chosen yet
            layout=ipywidgets.Layout(width="auto"),
        )
        self.reply = ipywidgets.HTML()
        self.radio.observe(self._answer, names="value")
        self.box = ipywidgets.VBox([title, self.radio, self.reply])
        self.box.add_class("course-quiz")

    def _answer(self, change: dict[str, Any]) -> None:
        chosen = [choice for choice in self.choices if choice[0] == change["new"]]
        self.reply.value = _reply(*chosen[0][1:]) if chosen else ""

    def __repr__(self) -> str:
        lines = [f"Question: {self.question}", *(f"  ( ) {text}" for text, _, _ in self.choices)]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        # Where no kernel runs (GitHub, a website), each choice unfolds to its explanation.
        folded = "".join(
            f"<details><summary>{escape(text)}</summary>{_reply(right, why)}</details>"
            for text, right, why in self.choices
        )
        page = f"<p><b>{escape(self.question)}</b></p>{folded}"
        return view(self.box, {"text/plain": repr(self), "text/html": page})


def quiz(question: str, choices: Sequence[Choice]) -> Quiz:
    """A check question; each choice is (text, whether it is right, why it is right or wrong).

    Raises CourseError unless exactly one choice is right, texts differ and all are explained.
    """
    return Quiz(question, choices)


def _reply(right: bool, why: str) -> str:
    color, word = (COLORS["good"], "Right.") if right else (COLORS["bad"], "Not quite.")
    return (
        f'<div style="border-left:3px solid {color};padding:2px 10px;margin:4px 0">'
        f'<b style="color:{color}">{word}</b> {escape(why)}</div>'
    )


def _check(question: str, choices: Sequence[Choice]) -> None:
    texts = [choice[0] for choice in choices]
    if len(texts) < 2 or len(set(texts)) < len(texts):
        raise CourseError(f"Quiz {question!r} needs two or more choices with different texts.")
    if sum(bool(right) for _, right, _ in choices) != 1:
        raise CourseError(f"Quiz {question!r} needs exactly one right choice.")
    if not all(str(why).strip() for _, _, why in choices):
        raise CourseError(f"Quiz {question!r} needs an explanation for every choice.")
