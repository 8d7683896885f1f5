"""The estimate for a CPU: resident memory of the whole process, not what a GPU would need.

Less exact than a GPU's: what the libraries keep between steps, and what the system has not yet
taken back from the process, differ from machine to machine.  Hence a wide range.
"""

from __future__ import annotations

import dataclasses

from .estimate import GIB, Estimate, parts_of, write
from .job import ACTIVATIONS, WORKSPACE, Job
from .ledger import MIB, replay

# Resident memory of Python with `course_utils.training` imported (torch 2.13, transformers,
# PEFT) and a first backward pass run: 0.47 GiB on Linux, x86.  Data, tokenizer, the Trainer and
# what the CPU's matrix library keeps add about 0.2.
BASELINE_GIB, LEAST, MOST = 0.65, 0.8, 1.35
SCORES = 2**24  # `attention.SCORES`: up to so many, the scores of all heads are kept
LIBRARIES = "python and libraries"


def estimate_cpu(job: Job) -> Estimate:
    """Resident memory; the precision that "auto" would choose on this machine is not known."""
    auto = job.recipe.precision == "auto"
    figures = {precision: _figure(job, precision) for precision in ("bf16", "fp32")}
    chosen = figures["bf16" if auto else "fp32" if job.precision == "fp32" else "bf16"]
    low = figures["bf16"] if auto else chosen
    high = figures["fp32"] if auto else chosen
    total = sum(chosen.values())
    return Estimate(
        allocated_gib=total, reserved_gib=total, process_gib=total, parts=chosen,
        moments={}, peak_at="one of all moments", device="cpu",
        range_gib=(sum(low.values()) * LEAST, sum(high.values()) * MOST),
        notes=["resident memory of the process on a CPU: not VRAM, and not what a GPU would need"],
        parameters=job.shape.parameters, trained=write(job)[1].trained_count,
    )  # fmt: skip


def _figure(job: Job, precision: str) -> dict[str, float]:
    """Parts in GiB for one precision."""
    recipe = dataclasses.replace(job.recipe, kernels=False, offload=False)
    job = dataclasses.replace(job, recipe=recipe, precision=precision)
    peaks = replay(write(job)[0])
    parts = parts_of(peaks)
    parts[WORKSPACE] = max(0.0, parts.get(WORKSPACE, 0.0) - 64 * MIB / GIB)  # no cuBLAS here
    parts[ACTIVATIONS] += _scores(job) / GIB
    return {name: gib for name, gib in parts.items() if gib > 0} | {LIBRARIES: BASELINE_GIB}


def _scores(job: Job) -> int:
    """Bytes of attention's scores that short rows keep; of one layer where checkpointing is on."""
    shape, rows = job.shape, job.recipe.batch_size
    count = rows * shape.heads * job.length**2
    if count > SCORES:
        return 0
    layers = sum(not job.checkpointed(layer) for layer in range(shape.layers))
    return count * job.width * max(1, layers)
