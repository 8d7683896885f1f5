"""Peak memory by phase: what training really holds, and when.

On a GPU three figures nest: what tensors hold (allocated), what PyTorch's allocator keeps for them
(reserved), and what the driver counts for the whole process, which has CUDA's context and libraries
in it too: the one that must fit the card.  On the CPU the peak of the process's resident memory is
read, which holds Python and the libraries and is *not* what a GPU would need.
All figures are GiB (2^30 bytes).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch

from ..errors import CourseError

GIB = 2**30
PHASES = ("load", "forward", "backward", "step")
CONTEXT_GIB = 0.6  # taken for CUDA's context and libraries where the driver tells nothing
WORTH_A_NOTE_GIB = 0.1  # less than this on a card is a driver's own


@dataclass
class MemoryReport:
    """Peaks of one run, in GiB.

    phases: phase -> allocated on the GPU, or resident on the CPU.  reserved_phases, reserved_gib:
    what PyTorch's allocator kept for it (GPU).  process_gib: the whole process on the card, None
    on the CPU and where the driver does not tell.  limit_gib: the card's or machine's memory.
    """

    device: str
    kind: str
    phases: dict[str, float] = field(default_factory=dict)
    reserved_gib: float | None = None
    limit_gib: float = 0.0
    reserved_phases: dict[str, float] = field(default_factory=dict)
    process_gib: float | None = None

    @property
    def peak_gib(self) -> float:
        """The highest of all phases."""
        return max(self.phases.values(), default=0.0)

    def by_phase(self) -> list[dict[str, str | float | None]]:
        """One row a phase: its allocated (or resident), reserved and process peak.

        Context and libraries are counted in every phase as they stood at the end of the run.
        """
        beside = None
        if self.process_gib is not None and self.reserved_gib is not None:
            beside = self.process_gib - self.reserved_gib
        rows = []
        for name, peak in self.phases.items():
            reserved = self.reserved_phases.get(name)
            known = beside is not None and reserved is not None
            process = round(reserved + beside, 3) if known else None
            rows.append({"phase": name, "peak": peak, "reserved": reserved, "process": process})
        return rows

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return {**asdict(self), "peak_gib": self.peak_gib}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib:.2f}" for name, gib in self.phases.items())
        for name, gib in (("reserved", self.reserved_gib), ("whole process", self.process_gib)):
            parts += f"; {name} {gib:.2f}" if gib is not None else ""
        return f"peak {self.peak_gib:.2f} GiB of {self.limit_gib:.1f} ({self.kind}; {parts})"


class MemoryMeter:
    """Attributes the peak since the last mark to the phase that mark opened.

    meter = MemoryMeter(device); meter.mark("forward"); ...; meter.mark("backward"); ...;
    report = meter.report()

    A new meter begins a run: what earlier ones left behind is freed first, and peaks are forgotten.
    notes: sentences on what else holds memory.  empty: whether nothing of this process should be
    on the card yet (no model was handed over).
    """

    def __init__(self, device: torch.device | str = "cpu", *, empty: bool = False) -> None:
        self.device = torch.device(device)
        self.notes: list[str] = []
        self._phase: str | None = None
        self._phases: dict[str, float] = {}
        self._reserved: dict[str, float] = {}
        free_memory(self.device)
        self._process = _peak_reader() if self.device.type == "cpu" else None
        if self.device.type == "cuda":
            self._look_around(empty)
        self._take_peak()  # and forget what was before

    def _look_around(self, empty: bool) -> None:
        """Note who else holds memory on the card."""
        held = current_gib(self.device)
        if empty and held > WORTH_A_NOTE_GIB:
            self.notes.append(
                f"{held:.1f} GiB of GPU memory were held by this kernel before the run: delete "
                "what earlier cells left (del model), or restart it"
            )
        others = others_on_card_gib(self.device)
        if others > WORTH_A_NOTE_GIB:
            self.notes.append(
                f"someone else holds {others:.1f} GiB of this GPU: times are not the card's own, "
                "and that much less fits"
            )

    def mark(self, phase: str | None) -> None:
        """Close the running phase and open `phase` (None: stop attributing)."""
        peak, reserved = self._take_peak()
        if self._phase is not None:
            for peaks, gib in ((self._phases, peak), (self._reserved, reserved)):
                peaks[self._phase] = max(gib, peaks.get(self._phase, 0.0))
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
        made = MemoryReport(
            device=device_name(self.device),
            kind="resident memory of the process, not VRAM",
            phases={name: round(self._phases[name], 3) for name in order},
            limit_gib=round(memory_limit_gib(self.device), 2),
        )
        if self.device.type == "cuda":
            made.kind = "GPU memory allocated"
            made.reserved_phases = {name: round(self._reserved[name], 3) for name in order}
            made.reserved_gib = max(made.reserved_phases.values(), default=0.0)
            beside = _beside_allocator_gib(self.device)
            if beside is not None:
                made.process_gib = round(made.reserved_gib + beside, 3)
        return made

    def _take_peak(self) -> tuple[float, float]:
        """(peak, reserved peak) since the last call; on the CPU nothing is reserved."""
        if self._process is not None:
            return self._process.take() / GIB, 0.0
        # One look for both: torch's own two functions take a millisecond of a short step.
        found = torch.cuda.memory_stats_as_nested_dict(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        kinds = ("allocated_bytes", "reserved_bytes")
        peak, reserved = (found[kind]["all"]["peak"] / GIB for kind in kinds)
        return peak, reserved


def free_memory(device: torch.device | str = "cpu") -> None:
    """Give back what nobody refers to any more, such as an earlier run's model and gradients."""
    gc.collect()  # the Trainer and its callbacks refer to each other
    if torch.device(device).type == "cuda":
        _remember_others()
        torch.cuda.init()
        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps freed memory resident
        ctypes.CDLL(None).malloc_trim(0)


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
    """The card's memory (that of `limit_memory` while it is set), or the machine's.

    In a container with a limit of its own, that.
    """
    device = torch.device(device)
    if device.type == "cuda":
        _remember_others()
        total = torch.cuda.get_device_properties(device).total_memory / GIB
        return _caps.get(_index(device), total)
    total = psutil.virtual_memory().total
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        total = min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        pass  # no control groups here: the machine's memory is the limit
    return total / GIB


# ------------------------------------------------------------------ the process on its card

_before: dict[str, float] = {}  # card -> GiB in use before this process had a context on it
_caps: dict[int, float] = {}  # card -> GiB that `limit_memory` simulates


def process_memory_gib(device: torch.device | str = "cuda") -> float | None:
    """What the driver counts for this process on the card: context, libraries and all reserved.

    Read from nvidia-smi's list of processes; where that does not name this one (containers and
    virtual machines), the card's memory in use less what was in use before this process began.
    None on the CPU, and where neither is known.
    """
    if torch.device(device).type != "cuda":
        return None
    used, mine = _on_card(torch.device(device))
    return mine


def others_on_card_gib(device: torch.device | str = "cuda") -> float:
    """What other processes hold on the card; 0 on the CPU, and where the driver does not tell."""
    if torch.device(device).type != "cuda":
        return 0.0
    used, mine = _on_card(torch.device(device))
    return 0.0 if mine is None else max(0.0, used - mine)


def limit_memory(gib: float | None, device: torch.device | str = "cuda") -> None:
    """Hold this process to a card of `gib` GiB from here on; None lifts the limit.

    What passes it raises torch.OutOfMemoryError, as on such a card.  CUDA's context and libraries
    are counted in: PyTorch's allocator gets what they leave.
    Raises CourseError for a size that is no card's, or where there is no GPU.
    """
    device = torch.device(device)
    if gib is not None and not gib > 0:
        raise CourseError(f"gib is {gib:g}, and a card has more than 0 GiB: name its size.")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise CourseError(
            "Only a GPU's memory can be limited, and there is none here: on the CPU compare "
            "memory.estimate(model, recipe, device='cpu') with what you have."
        )
    total = torch.cuda.get_device_properties(device).total_memory / GIB
    if gib is None:
        _caps.pop(_index(device), None)
        torch.cuda.set_per_process_memory_fraction(1.0, _index(device))
        return
    if gib > total:
        raise CourseError(f"gib is {gib:g}, and this card has {total:.1f}: name a smaller size.")
    free_memory(device)
    beside = _context_gib(device)
    if gib <= beside:
        raise CourseError(
            f"gib is {gib:g}, and CUDA itself takes {beside:.2f} on this card: name a larger size."
        )
    torch.cuda.set_per_process_memory_fraction((gib - beside) / total, _index(device))
    _caps[_index(device)] = gib


@contextlib.contextmanager
def limited_memory(gib: float | None, device: torch.device | str = "cuda") -> Iterator[None]:
    """`limit_memory` inside the block alone; None changes nothing."""
    if gib is None:
        yield
        return
    before = _caps.get(_index(torch.device(device))) if torch.cuda.is_available() else None
    limit_memory(gib, device)
    try:
        yield
    finally:
        limit_memory(before, device)


def _context_gib(device: torch.device) -> float:
    """CUDA's context with the libraries of a training; `CONTEXT_GIB` where it is not known."""
    square = torch.ones(256, 256, device=device, dtype=torch.float16)
    torch.cuda.synchronize((square @ square).device)  # loads cuBLAS
    del square
    torch.cuda.empty_cache()
    beside = _beside_allocator_gib(device)
    return CONTEXT_GIB if beside is None else beside


def _beside_allocator_gib(device: torch.device) -> float | None:
    """What this process holds on the card besides what PyTorch's allocator reserved."""
    mine = process_memory_gib(device)
    return None if mine is None else max(0.0, mine - torch.cuda.memory_reserved(device) / GIB)


def _on_card(device: torch.device) -> tuple[float, float | None]:
    """(in use on the card, of which this process), GiB; None where that is not known."""
    _remember_others()
    card = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-")
    free, total = torch.cuda.mem_get_info(device)
    used = _used_by_card().get(card, (total - free) / GIB)
    for uuid, number, held in _nvidia_smi("--query-compute-apps=gpu_uuid,pid,used_memory"):
        if uuid == card and number == str(os.getpid()) and held.isdigit():
            return used, int(held) / 1024
    return used, max(0.0, used - _before[card]) if card in _before else None


def _remember_others() -> None:
    """Note what is in use on the cards, if this process has not yet a context on any."""
    if not torch.cuda.is_initialized():
        _before.update(_used_by_card())


def _used_by_card() -> dict[str, float]:
    rows = _nvidia_smi("--query-gpu=uuid,memory.used")
    return {uuid: int(used) / 1024 for uuid, used in rows if used.isdigit()}


def _nvidia_smi(query: str) -> list[list[str]]:
    """The rows that nvidia-smi answers with (MiB), cards by their plain number; none without it."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return [[row[0].removeprefix("GPU-"), *row[1:]] for row in rows]


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


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
