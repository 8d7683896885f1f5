"""Peak memory by phase: what training really holds, and when.

On a GPU the peak of the CUDA allocator is read (exact); on the CPU the peak of the process's
resident memory, which holds Python and the libraries too and is *not* what a GPU would need.
All figures are GiB (2^30 bytes).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch

GIB = 2**30
PHASES = ("load", "forward", "backward", "step")


@dataclass
class MemoryReport:
    """Peaks of one run.  `phases`: phase -> GiB.  `limit_gib`: the card's or machine's memory."""

    device: str
    kind: str
    phases: dict[str, float] = field(default_factory=dict)
    reserved_gib: float | None = None
    limit_gib: float = 0.0

    @property
    def peak_gib(self) -> float:
        """The highest of all phases."""
        return max(self.phases.values(), default=0.0)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {**asdict(self), "peak_gib": self.peak_gib}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib:.2f}" for name, gib in self.phases.items())
        return f"peak {self.peak_gib:.2f} GiB of {self.limit_gib:.1f} ({self.kind}; {parts})"


class MemoryMeter:
    """Attributes the peak since the last mark to the phase that mark opened.

    meter = MemoryMeter(device); meter.mark("forward"); ...; meter.mark("backward"); ...;
    report = meter.report()
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._phase: str | None = None
        self._phases: dict[str, float] = {}
        self._reserved = 0.0
        self._process = _peak_reader() if self.device.type == "cpu" else None

    def mark(self, phase: str | None) -> None:
        """Close the running phase and open `phase` (None: stop attributing)."""
        peak = self._take_peak()
        if self._phase is not None:
            self._phases[self._phase] = max(peak, self._phases.get(self._phase, 0.0))
        self._phase = phase

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the block to phase `name`."""
        self.mark(name)
        try:
            yield
        finally:
            self.mark(None)

    def report(self) -> MemoryReport:
        """Close the running phase and return the peaks so far."""
        self.mark(None)
        order = [p for p in PHASES if p in self._phases]
        order += [p for p in self._phases if p not in PHASES]
        cuda = self.device.type == "cuda"
        return MemoryReport(
            device=device_name(self.device),
            kind="GPU memory allocated" if cuda else "resident memory of the process, not VRAM",
            phases={name: round(self._phases[name], 3) for name in order},
            reserved_gib=round(self._reserved, 3) if cuda else None,
            limit_gib=round(memory_limit_gib(self.device), 2),
        )

    def _take_peak(self) -> float:
        if self._process is not None:
            return self._process.take() / GIB
        peak = torch.cuda.max_memory_allocated(self.device) / GIB
        reserved = torch.cuda.max_memory_reserved(self.device) / GIB
        self._reserved = max(self._reserved, reserved)
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak


class _KernelPeak:
    """Linux: the kernel keeps the peak of resident memory and forgets it when asked."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM

    def take(self) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = int(line.split()[1]) * 1024
                self._reset()
                return peak
        raise OSError("/proc/self/status has no VmHWM line")


class _SampledPeak:
    """Elsewhere: a thread looks every 5 ms, so a very short peak can be missed."""

    _interval = 0.005

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._interval):
            self._peak = max(self._peak, self._process.memory_info().rss)

    def take(self) -> int:
        now = self._process.memory_info().rss
        peak, self._peak = max(self._peak, now), now
        return peak


def _peak_reader() -> _KernelPeak | _SampledPeak:
    try:
        reader = _KernelPeak()
        reader.take()
        return reader
    except OSError:  # not Linux, or a container that forbids it
        return _shared_sampler()


_sampler: _SampledPeak | None = None


def _shared_sampler() -> _SampledPeak:
    global _sampler
    _sampler = _sampler or _SampledPeak()
    return _sampler


def current_gib(device: torch.device | str = "cpu") -> float:
    """Memory in use now: allocated on the GPU, or the process's resident memory."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / GIB
    return psutil.Process().memory_info().rss / GIB


def memory_limit_gib(device: torch.device | str = "cpu") -> float:
    """The card's memory, or the machine's (a container's limit where one is set)."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / GIB
    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        pass  # no control groups here: the machine's memory is the limit
    return total / GIB


def device_name(device: torch.device | str = "cpu") -> str:
    """The card's name, or the processor's with the cores this process may use."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({_processor()}, {torch.get_num_threads()} threads)"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass  # not Linux
    import platform

    return platform.processor() or platform.machine() or os.name
