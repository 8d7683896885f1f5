"""Set-up of pytest: `pytest` runs the tests, `pytest --nbval` the notebooks too.

nbval's options are set here and not in pyproject.toml, where they would stop pytest wherever nbval
is absent, and where the path of the sanitize file would depend on the folder pytest runs in.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.refresh import kernel_environment

ROOT = Path(__file__).resolve().parent
CELL_SECONDS = 600
NBVAL_DEFAULT_SECONDS = 2000


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
