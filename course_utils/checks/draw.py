"""Fresh inputs for checks: small, random, and without the values that hide mistakes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normally distributed numbers on the CPU."""
    return torch.randn(*shape, dtype=torch.float32).to(dtype)


def tokens(*shape: int, vocabulary: int = 1000) -> torch.Tensor:
    """Token ids, from 1 up to ``vocabulary`` - 1."""
    return torch.randint(1, vocabulary, shape)


def integer(low: int, high: int, *, besides: Sequence[int] = ()) -> int:
    """A whole number from ``low`` to ``high``, both possible, except those in ``besides``."""
    return random.choice([n for n in range(low, high + 1) if n not in besides])


def number(low: float, high: float) -> float:
    """A real number between ``low`` and ``high``."""
    return random.uniform(low, high)


def pick(items: Sequence[Item]) -> Item:
    """One of the items."""
    return random.choice(items)


def sample(items: Sequence[Item], count: int) -> list[Item]:
    """``count`` different ones of the items, in random order."""
    return random.sample(list(items), count)


def word(letters: int = 6) -> str:
    """A word that no solution can have foreseen."""
    return "".join(random.choices("abcdefghijklmnoprstuvwz", k=letters))


def linear(inputs: int, outputs: int, **options: Any) -> torch.nn.Linear:
    """A linear layer, its weights not near zero."""
    layer = torch.nn.Linear(inputs, outputs, **options)
    torch.nn.init.normal_(layer.weight)
    return layer
