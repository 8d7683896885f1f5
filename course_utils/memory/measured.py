"""What training took on a real GPU, as shipped with the course: figures for who has no such GPU.

    print(measured("preset-medium"))
    for row in measured_rows("llama-2-7b", "qlora"): ...

Read from benchmarks/results/vram_grid.json, which `python -m benchmarks.vram_grid` makes; no
figure is typed in here.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import recipes
from ..errors import CourseError
from ..recipes import METHODS, Recipe
from ..results import RESULTS

GRID = RESULTS / "vram_grid.json"
MADE_BY = {
    "train": "training.run",
    "plain": "transformers' Trainer",
    "weights": "the weights alone, no training",
}


@dataclass(frozen=True)
class Measured:
    """One measured run: peaks in GiB (2^30 bytes), and on what they were measured.

    shape: short name, as `shape_of` takes it.  length: tokens of each row.  allocated_gib,
    reserved_gib: PyTorch's peaks over the whole run.  process_gib: what nvidia-smi showed; None
    where other processes were on the card.  what: "train" (`training.run`), "plain"
    (transformers' Trainer and PEFT, of which `estimate` does not speak) or "weights" (loaded, not
    trained).  dtype: of the base model, where the recipe has no word for it.
    """

    name: str
    shape: str
    recipe: Recipe
    length: int
    allocated_gib: float
    reserved_gib: float
    process_gib: float | None
    device: str
    date: str
    versions: dict[str, str] = field(repr=False, hash=False)
    what: str = "train"
    dtype: str | None = None

    @property
    def comparable(self) -> bool:
        """Whether `estimate(row.shape, row.recipe, length=row.length)` is about the same run."""
        return self.what == "train" and self.dtype is None

    def __str__(self) -> str:
        where = f"measured on {self.device}, {self.date}, torch {self.versions['torch']}"
        peaks = f"{self.allocated_gib:.2f} GiB allocated, {self.reserved_gib:.2f} reserved"
        if self.process_gib is not None:
            peaks += f", {self.process_gib:.2f} held by the process"
        made_by = "" if self.what == "train" else f", {MADE_BY[self.what]}"
        dtype = f", base model in {self.dtype}" if self.dtype else ""
        return f"{where}: {peaks} ({self.name}{made_by}{dtype}; shipped with the course)"


def measured(name: str) -> Measured:
    """The shipped figures of one run, by its name in the results, such as "preset-medium".

    Raises CourseError for a name that is not there, or whose run gave no figures.
    """
    rows = {row["name"]: row for row in _read()["rows"]}
    if name not in rows:
        near = difflib.get_close_matches(str(name), rows, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "measured_rows() has all of them."
        raise CourseError(f"name is {name!r}, and no run of that name was measured: {hint}")
    if "measured" not in rows[name]:
        why = rows[name].get("error", "no figures in its row")
        raise CourseError(f"The run {name!r} was started and not measured ({why}).")
    return _measured(rows[name])


def measured_rows(shape: str | None = None, method: str | None = None) -> list[Measured]:
    """All shipped figures, or those of a shape ("llama-2-7b"), of a method, or of both.

    Raises CourseError for a shape or a method of which nothing was measured.
    """
    rows = [_measured(row) for row in _read()["rows"] if "measured" in row]
    shapes = sorted({row.shape for row in rows})
    if shape is not None and shape.lower() not in shapes:
        raise CourseError(f"shape is {shape!r}, and measured are {', '.join(shapes)}.")
    if method is not None and method not in METHODS:
        raise CourseError(f"method is {method!r} and must be one of {', '.join(METHODS)}.")
    if shape is not None:
        rows = [row for row in rows if row.shape == shape.lower()]
    return [row for row in rows if method is None or row.recipe.method == method]


def _read() -> dict[str, Any]:
    """The results file, as it is now."""
    if not GRID.is_file():
        raise CourseError(
            f"The measured figures are not here ({GRID}): install the course again, or clone its "
            "repository."
        )
    return _parsed(GRID, GRID.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _parsed(path: Path, _changed: int) -> dict[str, Any]:
    made = json.loads(path.read_text(encoding="utf-8"))
    shared = {name: made[name] for name in ("device", "date", "versions", "all_recipes")}
    return {"rows": [{**shared, **row} for row in made["rows"]]}


def _measured(row: dict[str, Any]) -> Measured:
    peaks = row["measured"]
    return Measured(
        name=row["name"],
        shape=row["shape"],
        recipe=_recipe(row),
        length=row["length"],
        allocated_gib=peaks["allocated_gib"],
        reserved_gib=peaks["reserved_gib"],
        process_gib=peaks.get("process_gib"),
        device=row["device"],
        date=row["date"],
        versions=row["versions"],
        what=row["what"],
        dtype=row.get("dtype"),
    )


def _recipe(row: dict[str, Any]) -> Recipe:
    """The run's recipe, whole: what all runs share, then its own fields."""
    fields = dict(row["all_recipes"])
    steps, steps_alone = fields.pop("steps"), fields.pop("steps_alone")
    fields["max_steps"] = steps_alone if row.get("alone") else steps
    fields |= {"model": row["shape"], "method": row["method"], "max_length": row["length"]}
    return recipes.from_dict(fields | row["recipe"])
