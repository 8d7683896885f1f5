"""What this machine brings to a training, in lines that each say what they mean."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from . import fetch, memory, models, precision
from .recipes import Recipe
from .report import versions

NEEDED_GIB = 4.0  # the most that a chapter takes, with the operating system's share


@dataclass(frozen=True)
class Environment:
    """Name, value and meaning of each line."""

    lines: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        return "\n".join(
            f"{name:11} {value}\n{'':11} {meaning}" for name, value, meaning in self.lines
        )

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Name -> value."""
        return {name: value for name, value, _ in self.lines}


def check() -> Environment:
    """Look at this machine; every line ends in what follows from it."""
    return Environment((_python(), _device(), _precision(), _memory(), _disk(), _model()))


def _python() -> tuple[str, str, str]:
    found = versions()
    value = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "peft"))
    return "versions", f"Python {platform.python_version()}, {value}", "figures depend on these"


def _device() -> tuple[str, str, str]:
    if torch.cuda.is_available():
        return "device", memory.device_name("cuda"), "the same cells run here, only faster"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    meaning = "no GPU is needed: the course is measured on two such cores"
    return "device", f"CPU with {cores} cores, no NVIDIA GPU", meaning


def _precision() -> tuple[str, str, str]:
    chosen, why = precision.choose_precision(Recipe(), models.device())
    bits = "16-bit" if chosen != "fp32" else "32-bit"
    return "precision", f"{chosen}: {why}", f"the model computes in {bits} numbers"


def _memory() -> tuple[str, str, str]:
    free = psutil.virtual_memory().available / memory.GIB
    if free < NEEDED_GIB:
        meaning = f"less than the {NEEDED_GIB:.0f} GiB this needs: close other programs first"
    else:
        meaning = f"enough: the chapters need at most {NEEDED_GIB:.0f} GiB each"
    return "memory", f"{free:.1f} GiB free of {memory.memory_limit_gib():.1f} GiB", meaning


def _disk() -> tuple[str, str, str]:
    free = shutil.disk_usage(os.getcwd()).free / memory.GIB
    meaning = "enough for checkpoints" if free > 1 else "less than 1 GiB: make room first"
    return "disk", f"{free:.1f} GiB free", meaning


def _model() -> tuple[str, str, str]:
    if fetch.is_complete(fetch.cache_dir() / fetch.FOLDER):
        return "model", "SmolLM2-135M-Instruct, in the cache", "no network is needed from here on"
    return "model", "not in the cache yet", "it is downloaded once (93 MB) when it is first used"
