"""How much memory a run will take, from a config and a recipe alone: no weights, no GPU.

    estimate("llama-2-7b", Recipe(method="qlora", checkpointing=True), length=1024)

Training holds different things at different moments.  The estimate writes down every tensor of a
run (loading, then two steps) in the order in which `training.run` makes and frees them, and looks
for the moment at which most are alive: `moments` shows all of them, `parts` what is alive at the
highest, `formula` the tensors of a part with their sizes.  See `ledger`, `activations`, `stock`.
"""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ..errors import CourseError
from ..recipes import Recipe
from .activations import FastLayers
from .job import (
    ACTIVATIONS,
    OPTIMIZER,
    PARTS,
    ROUNDING,
    WORKSPACE,
    Held,
    Job,
)
from .ledger import Kind, Ledger, Moment, Peaks, Piece, replay
from .shapes import shape_of
from .sharded import Replicas, ShardedHeld, shared_notes, sharing
from .stock import StockLayers

GIB = 2**30

# What the hardware and its libraries take, beside the tensors.  One NVIDIA H200 (driver 580, torch
# 2.11, CUDA 13.0): what the driver reported as used less what torch had reserved was 0.74 to 0.75
# GiB in 14 runs of a 7B model.  cuBLAS asks torch for 32 MiB on Hopper for each thread that
# multiplies: the one that runs forward and the one that runs backward
# (aten/src/ATen/cuda/CublasHandlePool.cpp).  Runs that offload took 0.07 GiB more (0.068 and 0.074
# in two rows of benchmarks/results/vram_grid.json), for a second stream and pinned memory.  In each
# of two processes on two H200s it was 0.83 GiB more (benchmarks/results/several_gpus_h200.json),
# taken for what NCCL holds to send data.
HARDWARE = {
    "context_gib": 0.745, "offload_gib": 0.07, "nccl_gib": 0.83, "workspace_mib": 32, "threads": 2,
}  # fmt: skip
PAGED_FROM = 100_000  # numbers from which bitsandbytes pages an optimizer state
EIGHT_BIT_FROM = 4096  # numbers from which it holds one in 8 bits
# Of the process total, either way.  Tensors are known within 0.5 %; how much the allocator has
# reserved beyond them depends on which free blocks it finds (4 % of it, at worst, in the grid).
LEAST_ERROR, STOCK_ERROR = 0.03, 0.05


@dataclass(frozen=True)
class Estimate:
    """What a run will take, in GiB (2^30 bytes).

    allocated_gib: `torch.cuda.max_memory_allocated` over the whole run.  reserved_gib: the same of
    `max_memory_reserved`.  process_gib: what nvidia-smi shows for the process, the CUDA context
    included.  parts: what is alive at the highest moment; they add up to allocated_gib.
    moments: the highest point of each moment of the run.  range_gib: where process_gib should lie.
    Of several GPUs that train together every figure is of one; see `sharded` for `sharding`.
    """

    allocated_gib: float
    reserved_gib: float
    process_gib: float
    parts: dict[str, float]
    moments: dict[str, float]
    peak_at: str
    range_gib: tuple[float, float]
    notes: list[str]
    parameters: int
    trained: int
    device: str = "cuda"
    gpus: int = 1
    sharding: str = "none"
    live: Counter[Kind] = field(default_factory=Counter, repr=False)

    def formula(self, part: str) -> str:
        """The tensors of a part at the highest moment, with their numbers put in."""
        if part not in self.parts:
            raise CourseError(f"There is no part {part!r}: known are {', '.join(self.parts)}.")
        kinds = [(kind, count) for kind, count in self.live.items() if kind.part == part]
        kinds.sort(key=lambda item: -item[0].size * item[1])
        lines = [f"{part}: {self.parts[part]:.3f} GiB"]
        if part == ROUNDING:
            lines.append("  torch hands out steps of 512 B, and leaves small rests unused")
        for kind, count in kinds:
            size = kind.size * count / GIB
            lines.append(f"  {kind.name}: {count:,} x {kind} = {size:.4f} GiB")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("allocated_gib", "reserved_gib", "process_gib", "parts", "moments", "peak_at",
                 "notes", "parameters", "trained", "device", "gpus", "sharding")  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"range_gib": list(self.range_gib)}

    def __str__(self) -> str:
        what = "GPU memory" if self.device == "cuda" else "resident memory of the process, not VRAM"
        what += f" on each of {self.gpus} GPUs" if self.gpus > 1 else ""
        lines = [
            f"{self.process_gib:.2f} GiB of {what} "
            f"({self.range_gib[0]:.2f} to {self.range_gib[1]:.2f}), highest at: {self.peak_at}"
        ]
        lines += [f"  {name:24} {gib:8.3f}" for name, gib in self.parts.items()]
        lines.append(f"  {'tensors together':24} {self.allocated_gib:8.3f}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def estimate(
    model: Any,
    recipe: Recipe,
    *,
    length: int | None = None,
    device: str = "cuda",
    labelled: float = 1.0,
    torch_version: str | None = None,
    gpus: int = 1,
    sharding: str | None = None,
) -> Estimate:
    """What `training.run` will take of memory, without running anything.

    model: what `shape_of` takes.  length: tokens of the longest row after padding or packing;
    default the recipe's pack_length or max_length, or less where the model reads no more.
    device: "cuda" for one NVIDIA GPU; "cpu" for the resident memory of the process.
    labelled: share of positions that are scored (answers only: less than 1).
    torch_version: of the machine that trains; default the one here.
    gpus: that share every update's rows, as `processes.shares` deals them out; figures are of one.
    sharding: "ddp" (default for several): each holds all weights, as `training.run` has it.
    "fsdp": each keeps its part of weights, gradients and optimizer states (`sharded.Units`).
    Raises CourseError for what is not known or cannot run.
    """
    job = make_job(
        model, recipe, length=length, labelled=labelled, torch_version=torch_version,
        gpus=gpus, sharding=sharding,
    )  # fmt: skip
    if device == "cpu":
        if gpus > 1:
            raise CourseError("Several GPUs are asked for, and device is 'cpu': use 'cuda'.")
        from .cpu import estimate_cpu

        return estimate_cpu(job)
    if device != "cuda":
        raise CourseError(f"device is {device!r} and must be 'cuda' or 'cpu'.")
    ledger, held = write(job)
    return _summary(job, held, replay(ledger))


def make_job(
    model: Any, recipe: Recipe, *, length: int | None = None, labelled: float = 1.0,
    torch_version: str | None = None, gpus: int = 1, sharding: str | None = None,
) -> Job:  # fmt: skip
    """Shape, recipe and length, checked."""
    shape = shape_of(model)
    if length is None:
        length = recipe.pack_length or recipe.max_length if recipe.packing else recipe.max_length
        length = min(length, shape.longest or length)
    if not isinstance(length, int) or isinstance(length, bool) or length < 2:
        raise CourseError(f"length is {length!r} and must be a whole number of at least 2 tokens.")
    precision = "bf16" if recipe.precision == "auto" else recipe.precision
    varlen_gqa = _torch_at_least(torch_version, 2, 13)
    recipe, sharding = sharing(recipe, gpus, sharding)
    own_loss = sharding == "fsdp"  # as `loop` has it
    job = Job(shape, recipe, length, labelled, varlen_gqa, precision, gpus, sharding, own_loss)
    job.check()
    return job


def _torch_at_least(version: str | None, *wanted: int) -> bool:
    try:
        found = version or importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in found.split("+")[0].split(".")[:2]) >= wanted


# ----------------------------------------------------------------------- the run, written down


def write(job: Job) -> tuple[Ledger, Held]:
    """All events of a run: loading, then two optimizer steps (the second finds the states)."""
    ledger = Ledger()
    held = (ShardedHeld if job.sharding == "fsdp" else Held)(job, ledger)
    held.load()
    held.add_adapters()
    ledger.now = "preparation"
    workspace = HARDWARE["workspace_mib"] * 2**20
    ledger.new(WORKSPACE, "cuBLAS, forward thread", workspace, width=1)
    layers = (FastLayers if job.fast else StockLayers)(job, ledger, held)
    layers.build()
    ledger.empty_cache()  # the Trainer does so before its first step
    replicas = Replicas(job, held, ledger)
    replicas.prepare()
    states: list[Piece] = []
    parts = min(2, job.recipe.gradient_accumulation)
    for step in range(2):
        grads: list[Piece] = []
        for part in range(parts):
            held.units.sends = part == parts - 1
            replicas.before_pass(last=part == parts - 1)
            _pass(job, ledger, layers, grads, workspace if step == part == 0 else 0)
        ledger.now = "optimizer step"
        if not states:
            states = optimizer_states(job, held, ledger)
        for grad in grads:
            grad.drop()
    ledger.now = "end"
    layers.restore()
    return ledger, held


def _pass(job: Job, ledger: Ledger, layers: Any, grads: list[Piece], workspace: int) -> None:
    """One forward and backward pass.  grads: of the passes before, to which it adds."""
    ledger.now = "forward"
    batch = ledger.new(ACTIVATIONS, "token ids, labels, mask", job.tokens, 3, width=8)
    layers.forward()
    loss = layers.loss()
    ledger.now = "backward, loss"
    if workspace:
        ledger.new(WORKSPACE, "cuBLAS, backward thread", workspace, width=1)
    grad = layers.loss_backward(loss)
    layers.backward(grad)
    grads += layers.gather_backward(add=bool(grads))
    batch.drop()


def optimizer_states(job: Job, held: Held, ledger: Ledger) -> list[Piece]:
    """AdamW's two averages of each trained number: fp32 (bf16 with bf16 weights), or 8 bits."""
    made, kind = [], job.recipe.optimizer
    for place, dims, width in held.trained:
        count = _count(dims)
        if kind == "adamw":
            for name in ("mean of gradients", "mean of squares"):
                made.append(ledger.new(OPTIMIZER, f"{name} [{place}]", *dims, width=width))
            made.append(ledger.new(OPTIMIZER, "number of steps", 1, width=4))
        elif count < EIGHT_BIT_FROM or place in ("embedding", "positions"):
            for name in ("mean of gradients in 32 bits", "mean of squares in 32 bits"):
                if not _paged(kind, count):
                    made.append(ledger.new(OPTIMIZER, name, *dims, width=4))
        else:
            for name in ("mean of gradients", "mean of squares"):
                if not _paged(kind, count):
                    made.append(ledger.new(OPTIMIZER, f"{name} in 8 bits", *dims, width=1))
            blocks = -(-count // 256)
            for _ in range(2):
                made.append(ledger.new(OPTIMIZER, "a scale for 256 of them", blocks, width=4))
    return made


def _paged(kind: str, count: int) -> bool:
    return kind == "paged_adamw_8bit" and count >= PAGED_FROM


def _count(dims: tuple[int, ...]) -> int:
    return dims[0] * (dims[1] if len(dims) == 2 else 1)


def paged_bytes(job: Job, held: Held) -> int:
    """Optimizer states in unified memory: not torch's, yet on the card while there is room."""
    total = 0
    for place, dims, _ in held.trained:
        count = _count(dims)
        if _paged(job.recipe.optimizer, count):
            total += count * (8 if place in ("embedding", "positions") else 2)
    return total


# ------------------------------------------------------------------------------------- summary


def _summary(job: Job, held: Held, peaks: Peaks) -> Estimate:
    top = peaks.highest()
    paged = paged_bytes(job, held) / GIB
    process = peaks.reserved / GIB + paged + HARDWARE["context_gib"]
    if job.fast and job.every and job.recipe.offload:
        process += HARDWARE["offload_gib"]
    if job.gpus > 1:
        process += HARDWARE["nccl_gib"]
    error = LEAST_ERROR if job.fast else STOCK_ERROR
    return Estimate(
        allocated_gib=top.allocated / GIB,
        reserved_gib=peaks.reserved / GIB,
        process_gib=process,
        parts=parts_of(peaks),
        moments={name: moment.allocated / GIB for name, moment in peaks.moments.items()},
        peak_at=top.name,
        range_gib=(process * (1 - error), process * (1 + error)),
        notes=_notes(job, paged),
        parameters=job.shape.parameters,
        trained=held.trained_count,
        gpus=job.gpus,
        sharding=job.sharding,
        live=peaks.live(top.at),
    )


def parts_of(peaks: Peaks) -> dict[str, float]:
    """GiB of each part at the highest moment."""
    top, parts = peaks.highest(), dict.fromkeys(PARTS, 0.0)
    for kind, count in peaks.live(top.at).items():
        parts[kind.part] += kind.size * count / GIB
    parts[ROUNDING] = max(0.0, top.allocated / GIB - sum(parts.values()))
    return {name: gib for name, gib in parts.items() if gib > 0}


def _notes(job: Job, paged: float) -> list[str]:
    notes = shared_notes(job)
    if not job.fast:
        notes.append(f"stock layers: {job.why_stock()}")
        notes.append("rows without padding: a mask over padded rows would take more")
    if paged:
        notes.append(
            f"{paged:.2f} GiB of optimizer states are paged: on the card while there is room, in "
            "the machine's memory where there is none"
        )
    if job.fast and not job.recipe.kernels:
        notes.append("kernels=False: the steps between products hold more, known less exactly")
    if job.precision == "fp32":
        notes.append("fp32: which attention kernel a GPU takes is not known, so neither its memory")
    return notes


def debug_table(model: Any, recipe: Recipe, **options: Any) -> str:
    """Every moment of a run: its highest allocated and reserved GiB, its largest tensors."""
    ledger, _ = write(make_job(model, recipe, **options))
    peaks = replay(ledger)
    return "\n".join(_row(peaks, moment) for moment in peaks.moments.values())


def _row(peaks: Peaks, moment: Moment) -> str:
    live = peaks.live(moment.at)
    largest = sorted(live.items(), key=lambda item: -item[0].size * item[1])[:6]
    named = "; ".join(f"{k.name} {k.size * c / GIB:.3f}" for k, c in largest)
    head = f"{moment.name:24} {moment.allocated / GIB:8.3f} {moment.reserved / GIB:8.3f}"
    return f"{head}  {named}"
