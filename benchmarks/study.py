"""Many small trainings, each in a process of its own, and their rows kept as they come."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from datetime import date
from pathlib import Path
from typing import Any

from course_utils import memory, models
from course_utils.report import versions

Row = dict[str, Any]
Measure = Callable[[Row], Row]


def run(
    path: Path, measure: Measure, cases: Sequence[Row], *, jobs: int = 1, most: int | None = None,
    until: float = math.inf, fresh: bool = True, **about: Any,
) -> list[Row]:  # fmt: skip
    """Measure those of `cases` that the file at `path` lacks, and write it after each.

    measure: the fields of a case -> these and what was found, ready for JSON.  jobs: trainings at
    once: 1 on two CPU cores; on a GPU several small models train beside each other.  most: how many
    cases this time.  until: none begins after this moment of `time.monotonic`.  fresh: see
    `in_processes`.  about: stands above the rows; a file that says otherwise is begun anew.
    Returns all rows, in the order of `cases`.
    """
    rows = known(path, about)
    for row in in_processes(measure, missing(cases, rows)[:most], jobs, until, fresh):
        rows.append(row)
        rows.sort(key=lambda row: next(i for i, case in enumerate(cases) if _of(row, case)))
        write(path, rows, **about)
        print(json.dumps(row), flush=True)
    return rows


def collected(
    path: Path, measure: Measure, cases: Sequence[Row], collect: Callable[[list[Row]], Row], *,
    jobs: int = 1, most: int | None = None,
) -> None:  # fmt: skip
    """As `run`, for a file that is made anew from all trainings after each.

    collect: the trainings -> what the file holds, with themselves as its "trainings".
    """
    made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = made.get("trainings", [])
    for row in in_processes(measure, missing(cases, rows)[:most], jobs):
        rows.append(row)
        text = json.dumps(collect(rows), indent=1) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
        print(json.dumps(row), flush=True)


def in_processes(
    measure: Measure, cases: Sequence[Row], jobs: int = 1, until: float = math.inf,
    fresh: bool = True,
) -> Iterator[Row]:  # fmt: skip
    """`measure` of each case in a process of its own, `jobs` at a time, as they come.

    fresh: in a new Python each, so that the peak memory of a row is its own; else `jobs` processes
    take one case after the other, which spares each the start.  Several GPUs are shared out.
    """
    options = {"max_tasks_per_child": 1} if fresh else {}
    start = multiprocessing.get_context("spawn")
    waiting, running = deque(cases), set()
    with ProcessPoolExecutor(jobs, start, initializer=_take_a_gpu, **options) as pool:
        while True:
            while waiting and len(running) < jobs and time.monotonic() < until:
                running.add(pool.submit(measure, waiting.popleft()))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)


def _take_a_gpu() -> None:
    """Of several, before any is used: processes start one after the other, so numbers differ."""
    import torch

    count = torch.cuda.device_count()
    if count > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(os.getpid() % count)


def missing(cases: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """The cases that no row is of."""
    return [case for case in cases if not any(_of(row, case) for row in rows)]


def known(path: Path, about: Row) -> list[Row]:
    """The rows that were measured before, if the same stands above them."""
    if not path.is_file():
        return []
    made = json.loads(path.read_text(encoding="utf-8"))
    return (
        made["rows"] if all(_same(made.get(name), value) for name, value in about.items()) else []
    )


def _same(kept: Any, now: Any) -> bool:
    """Whether what stood there says the same; a recipe may have got more fields since."""
    if isinstance(kept, dict) and isinstance(now, dict):
        return kept.items() <= now.items()
    return kept == now


def write(path: Path, rows: Sequence[Row], **about: Any) -> None:
    """The rows, and above them the device, date and versions, and `about`."""
    facts = {
        "device": memory.device_name(models.device()), "date": date.today().isoformat(),
        "versions": versions(),
    }  # fmt: skip
    text = json.dumps(facts | about | {"rows": list(rows)}, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def _of(row: Row, case: Row) -> bool:
    return case.items() <= row.items()
