"""Measured figures, read from the benchmarks' results: none is ever typed in.

A reference names a file of benchmarks/results, a row of it by what that row says of itself, and a
field.  Beside the figure come the device, the versions and the date that the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import CourseError

SHOWN_VERSIONS = ("torch", "transformers")


@dataclass(frozen=True)
class Ref:
    """One figure of a results file.

    file: its name without .json.  field: a name, or names joined by dots.
    where: what the row says, field by field (None: the field stands at the top of the file);
    exactly one row without an error must say so.
    """

    file: str
    field: str
    where: Mapping[str, Any] | None = None

    def read(self, results: Path) -> tuple[Any, dict[str, Any]]:
        """(value, source): source has file, device, date and versions.

        Raises FileNotFoundError while the file is not there, CourseError where it lacks the field.
        """
        made = _load(results / f"{self.file}.json")
        row = made if self.where is None else self._row(made)
        value: Any = row
        for name in self.field.split("."):
            if not isinstance(value, dict) or name not in value:
                raise CourseError(f"{self}: there is no {name!r}; correct the field, or measure.")
            value = value[name]
        if not isinstance(value, bool | int | float):
            raise CourseError(f"{self} is {value!r} and must be a number or true or false.")
        return value, {"file": self.file} | {key: _fact(key, row, made, self) for key in FACTS}

    def is_open(self, results: Path) -> bool:
        """Whether it is still to be measured: no file, or one that says this row was not run."""
        path = results / f"{self.file}.json"
        return not path.is_file() or (self.where or {}).get("name") in _load(path).get(
            "not_run", []
        )

    def _row(self, made: dict[str, Any]) -> dict[str, Any]:
        rows = [r for r in made.get("rows", []) if "error" not in r]
        found = [r for r in rows if all(r.get(k) == v for k, v in self.where.items())]
        if len(found) != 1:
            raise CourseError(f"{self}: {len(found)} rows say so, and it must be one.")
        return found[0]

    def __str__(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in (self.where or {}).items())
        return f"{self.file}.json {f'row {said}, ' if said else ''}field {self.field}"


FACTS = ("device", "date", "versions")


def _load(path: Path) -> dict[str, Any]:
    return _parsed(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=32)
def _parsed(path: Path, _changed: int) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _fact(key: str, row: dict[str, Any], made: dict[str, Any], ref: Ref) -> Any:
    """The row's own word for it, else the file's."""
    value = row.get(key, made.get(key))
    if not value:
        raise CourseError(f"{ref}: the file does not say its {key}; write it beside the rows.")
    return ", ".join(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Figure:
    """What was measured, for one claim.

    what: in a few words.  combine: makes one value of several references (a ratio, a saving).
    judged: counts for the verdict; else it stands beside it.
    """

    what: str
    refs: tuple[Ref, ...]
    unit: str = ""
    combine: Callable[..., float] | None = None
    judged: bool = True

    def measured(self, results: Path) -> Measured:
        """The value with its sources; raises as `Ref.read` does."""
        values, sources = zip(*(ref.read(results) for ref in self.refs), strict=True)
        value = self.combine(*values) if self.combine else values[0]
        different = {source["file"]: source for source in sources}
        return Measured(self.what, value, self.unit, tuple(different.values()), self.judged)

    def missing(self, results: Path) -> list[str]:
        """Files it waits for."""
        return [ref.file for ref in self.refs if ref.is_open(results)]


@dataclass(frozen=True)
class Measured:
    """A figure with its unit, and where and when it was measured."""

    what: str
    value: float | bool
    unit: str
    sources: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    judged: bool = True

    @property
    def shown(self) -> str:
        """The value as text, with its unit."""
        return f"{number(self.value)} {self.unit}".strip()

    @property
    def source(self) -> str:
        """Device, versions and date as text."""
        return "; ".join(dict.fromkeys(map(_source, self.sources)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {"what": self.what, "value": self.value, "unit": self.unit}
        return named | {"shown": self.shown, "source": self.source, "sources": list(self.sources)}


def _source(source: dict[str, Any]) -> str:
    versions = [f"{name} {source['versions'].get(name, '?')}" for name in SHOWN_VERSIONS]
    return ", ".join([source["device"], *versions, source["date"]])


def number(value: float | bool) -> str:
    """Three digits, or more where a whole number or a share near 100 % has more to say."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 99 else f"{value:.3g}"


# ------------------------------------------------------------------- short words for the rows


def cpu(name: str, key: str) -> Ref:
    """A field of `benchmarks/claims_cpu.py`'s row of this name."""
    return Ref("claims_cpu", key, {"name": name})


def grid(name: str, key: str = "measured.allocated_gib") -> Ref:
    """A field of `benchmarks/vram_grid.py`'s case of this name; the peak of training's tensors."""
    return Ref("vram_grid", key, {"name": name})


def peers(method: str, checkpointing: bool, key: str, system: str = "ours") -> Ref:
    """A field of `benchmarks/peers_gpu.py`'s row: a 7B, 4 x 1,024 tokens, r16 on all layers."""
    said = {"system": system, "method": method, "checkpointing": checkpointing}
    return Ref("peers_h200", key, said)


def packing(key: str) -> Ref:
    """A field of our row of `benchmarks/packing_gpu.py`: LoRA of a 7B, Alpaca's lengths.

    Of its two that of one packed sequence a step.
    """
    return Ref("packing_h200", key, {"system": "ours", "sequences": 1})


def needed(key: str, name: str | None = None) -> Ref:
    """A field of `benchmarks/data_needed.py`'s result, or of its row of this name."""
    return Ref("data_needed", key, {"name": name} if name else None)


def gib(what: str, *refs: Ref, **more: Any) -> Figure:
    """A figure in GiB."""
    return Figure(what, refs, "GiB", **more)


def percent(what: str, *refs: Ref, **more: Any) -> Figure:
    """A figure in %."""
    return Figure(what, refs, "%", **more)


def mixed(name: str, rows: int) -> Ref:
    """The peak of `benchmarks/cures.py`'s memory row: in which precision, rows a step."""
    return Ref("cures_memory", "peak_gib", {"name": name, "rows": rows})


def saving(what: str, smaller: Ref, larger: Ref, **more: Any) -> Figure:
    """By how many % `smaller` is below `larger`."""
    return percent(what, smaller, larger, combine=lambda a, b: 100 * (1 - a / b), **more)


def times(what: str, dividend: Ref, divisor: Ref, **more: Any) -> Figure:
    """How many times as much the first is as the second."""
    return Figure(what, (dividend, divisor), "x", combine=lambda a, b: a / b, **more)


def yes(what: str, *refs: Ref, **more: Any) -> Figure:
    """Whether something is so."""
    return Figure(what, refs, **more)


def files(figures: Iterable[Figure]) -> list[str]:
    """The results files that these figures are read from, each once."""
    return list(dict.fromkeys(ref.file for figure in figures for ref in figure.refs))
