"""Peaks are caught, given to the right phase, and forgotten between phases."""

from __future__ import annotations

import time

import pytest
import torch

from course_utils import memory
from course_utils.memory import MemoryMeter, measure

BLOCK_GIB = 0.25


def _block() -> torch.Tensor:
    block = torch.ones(int(BLOCK_GIB * memory.GIB) // 4)
    time.sleep(0.5)  # long enough for the sampling reader too, on a busy machine as well
    return block


@pytest.fixture(params=["kernel", "sampled"])
def meter(request):
    made = MemoryMeter("cpu")
    if request.param == "sampled":
        made._process = measure._shared_sampler()
        made._take_peak()
    elif not isinstance(made._process, measure._KernelPeak):
        pytest.skip("this system's kernel keeps no peak")
    return made


def test_a_peak_goes_to_the_phase_it_happened_in(meter):
    with meter.phase("load"):
        pass
    before = memory.current_gib()
    with meter.phase("forward"):
        block = _block()
        del block
    with meter.phase("backward"):
        time.sleep(0.05)
    phases = meter.report().phases
    assert phases["forward"] == pytest.approx(before + BLOCK_GIB, abs=0.06)
    assert phases["load"] < phases["forward"] - BLOCK_GIB / 2
    assert phases["backward"] < phases["forward"] - BLOCK_GIB / 2


def test_phases_come_in_the_order_of_a_step(meter):
    for name in ("step", "evaluation", "backward", "load"):
        with meter.phase(name):
            pass
    assert list(meter.report().phases) == ["load", "backward", "step", "evaluation"]


def test_the_report_says_that_it_is_not_gpu_memory():
    report = MemoryMeter("cpu").report()
    assert "not VRAM" in report.kind and report.reserved_gib is None
    assert report.peak_gib == 0 and report.limit_gib > 0.5


def test_the_limit_is_no_more_than_the_machine():
    import psutil

    assert memory.memory_limit_gib() <= psutil.virtual_memory().total / memory.GIB
