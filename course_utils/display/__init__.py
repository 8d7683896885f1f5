"""What a learner sees: the live training panel, plots, tables, quizzes and sliders.

Nothing here imports matplotlib or ipywidgets before it is needed, so that a run in a terminal does
not pay for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .panel import LivePanel, TerminalPanel, panel_for_here
    from .plots import plot_losses, plot_memory, plot_scores
    from .quizzes import Quiz, quiz
    from .style import COLORS, course_style
    from .tables import ClaimsTable, SideBySide, claims_table, side_by_side
    from .widgets import Interactive, interactive

_HOME = {
    "LivePanel": "panel",
    "TerminalPanel": "panel",
    "panel_for_here": "panel",
    "plot_losses": "plots",
    "plot_memory": "plots",
    "plot_scores": "plots",
    "Quiz": "quizzes",
    "quiz": "quizzes",
    "COLORS": "style",
    "course_style": "style",
    "ClaimsTable": "tables",
    "SideBySide": "tables",
    "claims_table": "tables",
    "side_by_side": "tables",
    "Interactive": "widgets",
    "interactive": "widgets",
}

__all__ = [
    "COLORS",
    "ClaimsTable",
    "Interactive",
    "LivePanel",
    "Quiz",
    "SideBySide",
    "TerminalPanel",
    "claims_table",
    "course_style",
    "interactive",
    "panel_for_here",
    "plot_losses",
    "plot_memory",
    "plot_scores",
    "quiz",
    "side_by_side",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
