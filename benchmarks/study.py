"""Many small trainings, each in a process of its own, and their rows kept as they come."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

Row = dict[str, Any]


def run(
    measure: Callable[..., Row], cases: Iterable[tuple], jobs: int, keep: Callable[[Row], None]
) -> None:
    """`keep(measure(*case))` for all cases, `jobs` at a time, each in a fresh Python.

    jobs: 1 on two CPU cores; on a GPU several small models train beside each other.
    """
    fresh = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
    with ProcessPoolExecutor(jobs, **fresh) as pool:
        for done in as_completed([pool.submit(measure, *case) for case in cases]):
            keep(done.result())
