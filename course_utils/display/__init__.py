"""What a learner sees: the live training panel, plots, tables, quizzes and sliders.

Nothing here imports matplotlib or ipywidgets before it is needed, so that a run in a terminal does
not pay for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chat_box import ChatBox, chat
    from .kinds import plot_kinds
    from .levels import plot_errors, plot_levels
    from .lora import plot_memory_parts, plot_singular_values
    from .memory_figure import memory_bar
    from .memory_widgets import MemoryWidget, memory_widget
    from .panel import LivePanel, TerminalPanel, panel_for_here
    from .plots import plot_losses, plot_memory, plot_scores
    from .quizzes import Quiz, quiz
    from .rows import Labels, plot_by_size, plot_groups, plot_layouts, show_labels
    from .rules import plot_best_so_far, plot_curves, plot_rule
    from .study import plot_study
    from .style import COLORS, course_style
    from .tables import ClaimsTable, SideBySide, claims_table, side_by_side
    from .tokens import plot_next_tokens, plot_surprise, plot_trade_off
    from .widgets import Interactive, interactive

_HOME = {
    "ChatBox": "chat_box",
    "chat": "chat_box",
    "memory_bar": "memory_figure",
    "MemoryWidget": "memory_widgets",
    "memory_widget": "memory_widgets",
    "LivePanel": "panel",
    "TerminalPanel": "panel",
    "panel_for_here": "panel",
    "plot_kinds": "kinds",
    "plot_errors": "levels",
    "plot_levels": "levels",
    "plot_losses": "plots",
    "plot_memory": "plots",
    "plot_memory_parts": "lora",
    "plot_scores": "plots",
    "plot_singular_values": "lora",
    "Quiz": "quizzes",
    "quiz": "quizzes",
    "Labels": "rows",
    "plot_by_size": "rows",
    "plot_groups": "rows",
    "plot_layouts": "rows",
    "show_labels": "rows",
    "plot_best_so_far": "rules",
    "plot_curves": "rules",
    "plot_rule": "rules",
    "plot_study": "study",
    "COLORS": "style",
    "course_style": "style",
    "ClaimsTable": "tables",
    "SideBySide": "tables",
    "claims_table": "tables",
    "side_by_side": "tables",
    "plot_next_tokens": "tokens",
    "plot_surprise": "tokens",
    "plot_trade_off": "tokens",
    "Interactive": "widgets",
    "interactive": "widgets",
}

__all__ = [
    "COLORS",
    "ChatBox",
    "ClaimsTable",
    "Interactive",
    "Labels",
    "LivePanel",
    "MemoryWidget",
    "Quiz",
    "SideBySide",
    "TerminalPanel",
    "chat",
    "claims_table",
    "course_style",
    "interactive",
    "memory_bar",
    "memory_widget",
    "panel_for_here",
    "plot_best_so_far",
    "plot_by_size",
    "plot_curves",
    "plot_groups",
    "plot_kinds",
    "plot_layouts",
    "plot_errors",
    "plot_levels",
    "plot_losses",
    "plot_memory",
    "plot_memory_parts",
    "plot_next_tokens",
    "plot_rule",
    "plot_scores",
    "plot_singular_values",
    "plot_study",
    "plot_surprise",
    "plot_trade_off",
    "quiz",
    "show_labels",
    "side_by_side",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
