"""The checks of the exercises: each runs a learner's function on fresh inputs and says what is off.

An exercise ends in a call such as ``checks.lora.forward(lora_forward)``. There are three outcomes:

- an untouched stub (it raises ``NotImplementedError``): one fixed line, ``Not done yet: ...``, is
  printed and nothing is raised, so the exercises pass nbval as they are shipped (while nbgrader
  grades, ``NotYet`` is raised instead: it counts a cell that raises nothing as solved);
- a right answer: one fixed line, ``Right: ...``, is printed;
- a wrong answer: ``NotYet`` is raised. Its message says what is off and what to look at; Jupyter
  shows it without a traceback. nbval fails on it, as it should on a wrong solution.

A topic is a module of this package, found by its name (``checks.lora`` is ``checks/lora.py``), and
loaded when it is first used. Such a module looks like this::

    from . import check, draw, expect, same

    @check("the low-rank path is added, scaled by alpha / rank.")
    def forward(attempt):
        x, rank, alpha = draw.tensor(5, 8), draw.integer(2, 4), draw.integer(5, 9)
        ...
        same(attempt(x, ...), wanted, "the output", factors={"alpha / rank": alpha / rank},
             look="how often the scale occurs")

The function under ``@check`` takes the attempt alone (a function or a class) and makes the rest
itself, so that any attempt can be tested on any check. It runs ``rounds`` times; the random numbers
of torch, numpy and ``random`` are seeded anew for each round, and put back afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import linecache
import os
import pkgutil
import random
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import torch

from . import draw
from .compare import expect, same, same_items, same_number, unchanged
from .outcome import NotYet, short

__all__ = [
    "NotYet",
    "all_checks",
    "check",
    "draw",
    "expect",
    "same",
    "same_items",
    "same_number",
    "short",
    "topics",
    "unchanged",
]
Check = Callable[[Any], None]
"""What an exercise calls with the learner's function."""
_TOOLS = ("compare", "draw", "outcome")
_REGISTER: dict[str, Check] = {}


def check(right: str, *, rounds: int = 3) -> Callable[[Callable[[Any], None]], Check]:
    """Make a check of a function that takes an attempt and raises ``NotYet`` if it is wrong.

    ``right`` is the sentence behind "Right: "; it says what the learner now knows. Whatever else
    the attempt, or the work with what it returned, raises becomes a ``NotYet`` too.
    """

    def decorate(body: Callable[[Any], None]) -> Check:
        @functools.wraps(body)
        def run(attempt: Any) -> None:
            if not callable(attempt):
                raise NotYet(
                    f"the check got {short(attempt)}, not a function. "
                    "Look at the last line: it hands over the function itself, without ()"
                )
            for _ in range(rounds):
                with _fresh_random_numbers():
                    if not _one_round(body, attempt):
                        _say_not_done(
                            f"{_name(attempt)}. Write its body, then run this cell again."
                        )
                        return
            print(f"Right: {right}")

        if body.__module__.startswith(f"{__name__}."):
            _REGISTER[f"{body.__module__.removeprefix(f'{__name__}.')}.{body.__name__}"] = run
        return run

    return decorate


def _say_not_done(what: str) -> None:
    if os.environ.get("NBGRADER_EXECUTION"):
        raise NotYet(f"not done: {what}")
    print(f"Not done yet: {what}")


def _one_round(body: Callable[[Any], None], attempt: Any) -> bool:
    """Whether the attempt was right; False for an untouched stub. Raises NotYet otherwise."""
    try:
        body(attempt)
    except NotYet:
        raise
    except NotImplementedError as error:
        if not error.args:  # the stub's; torch's own come with a message
            return False
        raise _explained(error, attempt) from error
    except Exception as error:
        raise _explained(error, attempt) from error
    return True


def _explained(error: Exception, attempt: Any) -> NotYet:
    """The error as a sentence that points at the learner's line, if one was running."""
    said = f"{type(error).__name__}: {short(error, 200)}" if str(error) else type(error).__name__
    own = _file_of(attempt)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == own:
            line = (frame.line or linecache.getline(own, frame.lineno or 0)).strip()
            return NotYet(f"your code stopped at `{line}` with {said}. Look at that line")
    return NotYet(
        f"what {_name(attempt)} returned cannot be used ({said}). Look at what it returns"
    )


def _name(attempt: Any) -> str:
    name = getattr(attempt, "__name__", "<lambda>")
    return "your function" if name == "<lambda>" else name


def _file_of(attempt: Any) -> str:
    """The file, or the notebook cell, in which a function or class was written."""
    for part in (attempt, *vars(attempt).values()) if isinstance(attempt, type) else (attempt,):
        if code := getattr(part, "__code__", None):
            return code.co_filename
    return ""


def _new_seed() -> int:
    return int.from_bytes(os.urandom(4), "little")


@contextlib.contextmanager
def _fresh_random_numbers() -> Iterator[None]:
    """New seeds within, the old states behind: a check changes nobody's sequence of numbers."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = _new_seed()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def topics() -> list[str]:
    """The names of the modules that hold checks."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name not in _TOOLS)


def all_checks() -> dict[str, Check]:
    """Every check by its name, such as ``lora.forward``."""
    for topic in topics():
        importlib.import_module(f".{topic}", __name__)
    return dict(sorted(_REGISTER.items()))


def __getattr__(name: str) -> ModuleType:
    if not name.startswith("_") and importlib.util.find_spec(f".{name}", __name__):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"no checks about {name!r}; there are {', '.join(topics()) or 'none'}")


def __dir__() -> list[str]:
    return sorted([*globals(), *topics()])
