"""Compare an answer with the right one, and say *how* it differs.

Each function raises ``NotYet`` with a sentence: wrong type, shape or dtype, a sign, a factor, axes
swapped, shifted by one, off by a constant ... The first explanation that fits is taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .outcome import NotYet, short

Factors = Mapping[str, float]
"""Names and values of factors that are easily forgotten, such as ``{"alpha / rank": 2.0}``."""


def expect(condition: Any, off: str, *, look: str = "") -> None:
    """Raise NotYet(``off``), with what to look at, unless ``condition`` holds."""
    if not condition:
        raise NotYet(f"{off.rstrip('. ')}. Look at {look}" if look else off)


def same(
    got: Any,
    wanted: torch.Tensor,
    what: str,
    *,
    factors: Factors | None = None,
    look: str = "",
    tolerance: float = 1e-4,
    dtype: bool = True,
) -> None:
    """``got`` is the tensor ``wanted``, up to ``tolerance`` of the largest right value.

    Whole numbers and truth values are compared exactly. ``what`` names the quantity ("the
    output"); ``dtype=False`` accepts other number types.
    """
    off = _form_off(got, wanted, dtype)
    if not off:
        tolerance = tolerance if wanted.is_floating_point() else 0.0
        a, b = got.detach().cpu().double(), wanted.detach().cpu().double()
        if not _close(a, b, tolerance):
            off = _values_off(a, b, factors or {}, tolerance)
    expect(not off, f"{what} {off}", look=look)


def _form_off(got: Any, wanted: torch.Tensor, dtype: bool) -> str:
    """What is wrong with type, shape or dtype; empty where nothing is."""
    if got is None:
        return "is None: the function returns nothing"
    if not isinstance(got, torch.Tensor):
        return f"is {short(got)}, of type {type(got).__name__}, not a tensor"
    shape, right = tuple(got.shape), tuple(wanted.shape)
    if shape != right:
        has = f"has the shape {shape}, not {right}"
        if len(shape) > 1 and sorted(shape) == sorted(right):
            return f"{has}: axes are swapped"
        if math.prod(shape) == math.prod(right):
            return f"{has}: the numbers are as many, an axis is missing or too much"
        return has
    if dtype and got.dtype != wanted.dtype:
        names = [str(t.dtype).removeprefix("torch.") for t in (got, wanted)]
        return f"has the dtype {names[0]}, not {names[1]}"
    return ""


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    """Equal up to ``tolerance`` of the largest finite value; infinities at the same places."""
    finite = b[b.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 1.0
    return torch.allclose(a, b, rtol=0, atol=tolerance * (largest or 1.0), equal_nan=True)


def _values_off(a: torch.Tensor, b: torch.Tensor, factors: Factors, tolerance: float) -> str:
    """How values of the right form differ."""

    def fits(other: torch.Tensor) -> bool:
        return other.shape == b.shape and _close(other, b, tolerance)

    if a.isnan().any() and not b.isnan().any():
        return "contains nan"
    if a.isinf().any() and not b.isinf().any():
        return "contains an infinite value"
    if fits(1 - a) and not (b * (1 - b)).any():
        return "has ones where zeros belong, and zeros where ones belong"
    if not a.any():
        return "is zero everywhere"
    if (factor := _factor(a, b, tolerance)) is not None:
        return _factor_off(factor, factors)
    moved = (text for text, other in _rearranged(a) if fits(other))
    return next(moved, "") or _shift_off(a, b, tolerance) or _places_off(a, b, tolerance)


def _factor(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> float | None:
    """The number k with a = k b, if there is one."""
    if b.numel() < 2 and b.ndim or not b.any() or not b.isfinite().all():
        return None
    k = ((a * b).sum() / (b * b).sum()).item()
    return k if k and _close(a / k, b, tolerance) else None


def _factor_off(k: float, factors: Factors) -> str:
    """A factor in words, by its name where it is one of those that are easily forgotten."""
    sign = "has the wrong sign" if k < 0 else ""
    size = abs(k)
    if sign and math.isclose(size, 1, rel_tol=1e-3):
        return sign
    join = f"{sign} and " if sign else ""
    for name, value in factors.items():
        if math.isclose(value, 1, rel_tol=1e-3) or value <= 0:
            continue
        if math.isclose(size * value, 1, rel_tol=1e-3):
            return f"{join}lacks the factor {name} ({value:.4g})"
        if math.isclose(size, value, rel_tol=1e-3):
            return f"{join}has the factor {name} ({value:.4g}) once too often"
        if math.isclose(size * value**2, 1, rel_tol=1e-3):
            return f"{join}is divided by {name} ({value:.4g}) where it should be multiplied"
    return f"{join}is {size:.4g} times as large as it should be"


def _rearranged(a: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The answer with axes swapped, or turned round."""
    for i, j in itertools.combinations(range(a.ndim), 2):
        yield f"has axes {i} and {j} swapped (it is transposed)", a.transpose(i, j)
    for axis in range(a.ndim):
        yield f"is in reverse order along axis {axis}", a.flip(axis)


def _shift_off(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> str:
    """Whether all is off by a constant, or moved by one place."""
    difference = a - b
    if b.isfinite().all() and _close(difference, difference.mean().expand_as(b), tolerance):
        return f"is off by the same amount everywhere ({difference.mean().item():+.4g})"
    for axis in reversed(range(a.ndim)):
        n = a.shape[axis] - 1
        if n < 2:
            continue
        if _close(a.narrow(axis, 1, n), b.narrow(axis, 0, n), tolerance):
            return f"is shifted by one place along axis {axis}, too far towards the end"
        if _close(a.narrow(axis, 0, n), b.narrow(axis, 1, n), tolerance):
            return f"is shifted by one place along axis {axis}, too far towards the start"
    return ""


def _places_off(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> str:
    """The share of values that are wrong, and the first of them."""
    scale = b[b.isfinite()].abs().max().item() if b.isfinite().any() else 1.0
    wrong = ~torch.isclose(a, b, rtol=0, atol=tolerance * (scale or 1.0), equal_nan=True)
    place = tuple(wrong.nonzero()[0].tolist())
    pair = f"{a[place].item():.4g} instead of {b[place].item():.4g}"
    if not place:
        return f"is {pair}"
    where = ", ".join(map(str, place))
    return f"is wrong at {int(wrong.sum())} of {wrong.numel()} places; at [{where}] it is {pair}"


def same_number(
    got: Any,
    wanted: float,
    what: str,
    *,
    factors: Factors | None = None,
    look: str = "",
    tolerance: float = 1e-4,
) -> None:
    """``got`` is the number ``wanted``; an integer is compared exactly.

    Besides ``factors``, the usual ones are known: per cent, GB for GiB, kilo, mega, giga.
    """
    value = got.item() if hasattr(got, "item") and getattr(got, "ndim", 0) == 0 else got
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        expect(False, f"{what} is {_not_a('number', got)}", look=look)
    exact = isinstance(wanted, int)
    if value == wanted or not exact and math.isclose(value, wanted, rel_tol=tolerance):
        return
    off = _number_off(value, wanted, factors or {}, tolerance)
    expect(False, f"{what} is {short(value)}: it {off}", look=look)


def _not_a(kind: str, got: Any) -> str:
    return "None: the function returns nothing" if got is None else f"{short(got)}, not a {kind}"


_USUAL = {
    "100 (per cent or a share?)": 100.0,
    "2^30 / 10^9 (GiB or GB?)": 2**30 / 1e9,
    "1024": 1024.0,
    "1000": 1000.0,
    "2^20": 2.0**20,
    "10^6": 1e6,
    "2^30": 2.0**30,
    "10^9": 1e9,
    "8 (bits or bytes?)": 8.0,
}


def _number_off(value: float, wanted: float, factors: Factors, tolerance: float) -> str:
    """How a number differs, without giving the right one away."""
    if not math.isfinite(value):
        return "should be finite"
    if isinstance(wanted, int) and abs(value - wanted) == 1:
        return "is off by one"
    whole = isinstance(wanted, int)
    if whole and value != int(value) and math.isclose(value, wanted, rel_tol=0.01):
        return "should be a whole number"
    if value and wanted:
        named = _factor_off(value / wanted, {**factors, **_USUAL})
        if "times as large" not in named:
            return named
        if math.isclose(value * wanted, 1, rel_tol=tolerance):
            return "is one divided by the right number"
    return "is too large" if value > wanted else "is too small"


def same_items(got: Any, wanted: Sequence[Any], what: str, *, look: str = "") -> None:
    """``got`` is a list (tuple, string, 1-d tensor) of the same items in the same order."""
    if got is None or isinstance(got, (int, float)):
        expect(False, f"{what} is {_not_a('list', got)}", look=look)
    expect(
        isinstance(got, str) == isinstance(wanted, str),
        f"{what} is of type {type(got).__name__}, not {type(wanted).__name__}",
        look=look,
    )
    items = got.tolist() if hasattr(got, "tolist") else got
    off = _items_off(list(items) if isinstance(items, Sequence) else items, list(wanted))
    expect(not off, f"{what} {off}", look=look)


def _items_off(got: Any, wanted: list[Any]) -> str:
    """How two lists differ; empty if they do not."""
    if not isinstance(got, list):
        return f"is {short(got)}, of type {type(got).__name__}, not a list"
    if got == wanted:
        return ""
    known: list[tuple[str, Callable[[], Any]]] = [
        ("has the right items in reverse order", lambda: got[::-1] == wanted),
        ("has the right items in another order", lambda: sorted(got) == sorted(wanted)),
        ("lacks the last item", lambda: got == wanted[:-1]),
        ("lacks the first item", lambda: got == wanted[1:]),
        ("has one item too many at the end", lambda: got[:-1] == wanted),
        ("has one item too many at the start", lambda: got[1:] == wanted),
    ]
    for text, holds in known:
        try:
            if holds():
                return text
        except TypeError:  # items that cannot be ordered
            continue
    return _first_difference(got, wanted)


def _first_difference(got: list[Any], wanted: list[Any]) -> str:
    pairs = zip(got, wanted, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    length = f"has {len(got)} items, not {len(wanted)}" if len(got) != len(wanted) else ""
    if place is None:
        return length
    there = f"differs first at place {place}: {short(got[place])} instead of {short(wanted[place])}"
    return f"{length}; it {there}" if length else there


def unchanged(now: Any, before: Any, what: str) -> None:
    """An input is what it was: the function works on a copy and changes nothing in place."""
    equal = torch.equal(now, before) if isinstance(now, torch.Tensor) else now == before
    expect(
        equal, f"{what} was changed by the function", look="operations that work in place, or .data"
    )
