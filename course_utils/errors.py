"""The one error a learner is meant to read."""

from __future__ import annotations


class CourseError(ValueError):
    """Something the reader can put right; the message says what is wrong and what to do."""
