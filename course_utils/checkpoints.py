"""The checkpoints of a run: what they tell a run that goes on from one, and which are kept.

transformers' Trainer writes them; what it does not count goes into a file beside its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .errors import CourseError
from .report import RunReport

SO_FAR = "so_far.json"
FIGURES = ("began", "seconds", "tokens", "answer_tokens", "validation_losses")


def note_figures(report: RunReport, checkpoint: Path, rows: str, **now: Any) -> None:
    """Write into a checkpoint what a resumed run cannot count again.

    rows: the fingerprint of those that are trained on.  now: newer values.
    """
    kept = {name: now.get(name, getattr(report, name)) for name in FIGURES} | {"rows": rows}
    (checkpoint / SO_FAR).write_text(json.dumps(kept), encoding="utf-8")


def go_on_from(report: RunReport, checkpoint: Path, step: int, main: bool = True) -> None:
    """Let a report begin with what had been counted at this checkpoint, which is of `step`.

    main: whether this is the process whose tokens stand for all.
    """
    kept = _figures(checkpoint)
    if not kept:
        return
    report.began = kept["began"]
    report.seconds += kept["seconds"]
    if main:
        report.tokens += kept["tokens"]
        report.answer_tokens += kept["answer_tokens"]
    looks = [(at, loss) for at, loss in kept["validation_losses"] if at < step]
    report.validation_losses = looks + report.validation_losses


def check_rows(checkpoint: Path, rows: str) -> None:
    """Raise CourseError where a checkpoint says that its run trained on other rows than these."""
    if _figures(checkpoint).get("rows", rows) != rows:
        raise CourseError(
            f"{checkpoint} is of a run on other rows, or on these in another order: go on with the "
            "rows that it was trained on, or start anew without resume."
        )


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a run's folder by their steps; those of the newest run come last."""
    found = [
        path for path in Path(folder).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdecimal()
        and (path / "trainer_state.json").is_file()
    ]  # fmt: skip
    return sorted(found, key=lambda p: (_began(p), int(p.name.removeprefix("checkpoint-"))))


def remove_older(folder: Path, began: str, keep: int = 2) -> None:
    """Keep the newest checkpoints of the run that began then; an earlier run's stay as they are.

    The Trainer's own limit goes by names or times of files, and may take another run's for newer.
    """
    for old in [path for path in checkpoints(folder) if _began(path) == began][:-keep]:
        shutil.rmtree(old, ignore_errors=True)


def _began(checkpoint: Path) -> str:
    """When the run of a checkpoint began, as text that sorts; "" where it does not say."""
    return _figures(checkpoint).get("began", "")


def _figures(checkpoint: Path) -> dict[str, Any]:
    try:
        kept = json.loads((checkpoint / SO_FAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # of an older version, or not written to its end
        return {}
    return kept if isinstance(kept, dict) and kept.keys() >= set(FIGURES) else {}
