"""What a check raises when an answer is not right yet."""

from __future__ import annotations

from typing import Any


class NotYet(AssertionError):
    """A wrong answer; the message says what is off and what to look at.

    Where it is raised in Jupyter, the message alone is shown, without a traceback: the learner's
    mistake is not in the lines of the check.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message[:1].upper() + message[1:].rstrip(". ") + ".")

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [f"Not yet: {self}"]


def short(value: Any, characters: int = 60) -> str:
    """A value in one line of about ``characters``; numbers with four digits, tensors by shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0):
        return f"an array of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    text = f"{value:.4g}" if isinstance(value, float) else None
    text = text or " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= characters else f"{text[: characters - 4]} ..."
