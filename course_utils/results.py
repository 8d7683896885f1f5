"""What the course's benchmarks measured, as it comes with the repository: figures for the reader.

    results.read("data_needed")["enough_rows"]

Every file says on which device, when and with which versions it was made.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from .errors import CourseError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def read(name: str) -> dict[str, Any]:
    """The file of this name in `benchmarks/results`, or of inputs in `benchmarks`.

    Raises CourseError where there is none: an installed package comes without these folders.
    """
    found = {path.stem: path for folder in ("", "results") for path in _files(folder)}
    if name in found:
        return json.loads(found[name].read_text(encoding="utf-8"))
    if not found:
        raise CourseError(
            f"There are no results here ({BENCHMARKS}): they come with a clone of the course's "
            "repository, not with the installed package."
        )
    near = difflib.get_close_matches(name, found, n=1, cutoff=0.5) or sorted(found)
    raise CourseError(f"There is no result {name!r}: did you mean {' or '.join(near)}?")


def _files(folder: str) -> list[Path]:
    return sorted((BENCHMARKS / folder).glob("*.json"))
