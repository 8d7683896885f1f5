"""Set-up of pytest: `pytest` runs the tests, `pytest --nbval` the notebooks too.

nbval's options are set here and not in pyproject.toml, where they would stop pytest wherever nbval
is absent, and where the path of the sanitize file would depend on the folder pytest runs in.
"""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import pytest

from tools.refresh import kernel_environment, remember_seconds

ROOT = Path(__file__).resolve().parent
CELL_SECONDS = 600
NBVAL_DEFAULT_SECONDS = 2000
notebook_seconds: dict[str, list[float]] = defaultdict(list)
"""Seconds of each cell by notebook; infinite for a cell that failed."""


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(kernel_environment(ROOT))  # kernels inherit it
    option = config.option
    if not hasattr(option, "nbval_sanitize_with"):  # nbval is absent
        return
    if option.nbval_sanitize_with is None:
        option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")
    if not option.nbval_kernel_name:
        option.nbval_current_env = True
    if option.nbval_cell_timeout == NBVAL_DEFAULT_SECONDS:
        option.nbval_cell_timeout = CELL_SECONDS


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.partition("::")[0]
    if report.when == "call" and name.endswith(".ipynb") and (ROOT / name).is_relative_to(ROOT):
        notebook_seconds[name].append(report.duration if report.passed else float("inf"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Note how long notebooks took that ran whole; tools/notebook_report.py shows it."""
    config = session.config
    if getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput"):
        return  # two at once: neither has the machine for itself
    part = session.config.option.keyword or any("::" in name for name in session.config.args)
    sums = {name: sum(seconds) for name, seconds in notebook_seconds.items() if ".." not in name}
    whole = {name: seconds for name, seconds in sums.items() if seconds < float("inf")}
    if whole and not part:
        remember_seconds(whole)
