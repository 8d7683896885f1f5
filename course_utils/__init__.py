"""The code behind the course on fine-tuning large language models.

Data flows one way: data -> encoding -> training -> evaluation -> display; `ModelTrainer` is a face
over all of it.  Modules load when they are first used, so that importing the package is quick.
"""

from __future__ import annotations

import importlib
from typing import Any

from . import compat

compat.quiet()

_HOME = {
    "ModelTrainer": "trainer",
    "Recipe": "recipes",
    "Conversation": "data",
    "CourseError": "errors",
    "RECOMMENDED_CONFIG_SMALL": "recipes",
    "RECOMMENDED_CONFIG_MEDIUM": "recipes",
    "RECOMMENDED_CONFIG_LARGE": "recipes",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
