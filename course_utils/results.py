"""What the course's benchmarks measured, as it comes with the course: figures for the reader.

    results.read("data_needed")["enough_rows"]

Every file says on which device, when and with which versions it was made.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from .errors import CourseError

_HERE = Path(__file__).parent
# In a clone beside the package, in an installed package inside it.
BENCHMARKS = next(p for p in (_HERE.parent / "benchmarks", _HERE / "benchmarks")
                  if (p / "results").is_dir() or p.parent == _HERE)  # fmt: skip
RESULTS = BENCHMARKS / "results"


def read(name: str) -> dict[str, Any]:
    """The file of this name in `benchmarks/results`, or of inputs in `benchmarks`.

    Raises CourseError where there is none.
    """
    found = {path.stem: path for folder in ("", "results") for path in _files(folder)}
    if name in found:
        return json.loads(found[name].read_text(encoding="utf-8"))
    if not found:
        raise CourseError(
            f"There are no results here ({BENCHMARKS}): install the course again, or clone its "
            "repository."
        )
    near = difflib.get_close_matches(name, found, n=1, cutoff=0.5) or sorted(found)
    raise CourseError(f"There is no result {name!r}: did you mean {' or '.join(near)}?")


def _files(folder: str) -> list[Path]:
    return sorted((BENCHMARKS / folder).glob("*.json"))
