"""The estimate for a CPU: resident memory of the whole process, not what a GPU would need.

Less exact than a GPU's: what the libraries keep between steps, and what the system has not yet
taken back from the process, differ from machine to machine.  Hence a wide range.  Its two constants
were fitted to 12 of the runs in benchmarks/results/cpu_memory.json.  Of the 8 made afterwards two
took more than the range says, 1.4 and 1.6 times the estimate: both with checkpointing (`LOOSE`).
"""

from __future__ import annotations

import dataclasses

from .estimate import GIB, Estimate, parts_of, write
from .job import ACTIVATIONS, CHUNK_BYTES, LOGITS, WORKSPACE, Job
from .ledger import MIB, replay

# GiB of Python with torch 2.13, transformers, PEFT, the Trainer, data and tokenizer (Linux, x86),
# and what stays resident beyond the activations, as a share of them: freed, in pieces too small.
BASELINE_GIB, PIECES, LEAST, MOST = 0.74, 0.3, 0.85, 1.2
SCORES = 2**24  # `attention.SCORES`: up to so many, the scores of all heads are kept
LIBRARIES, FREED = "python and libraries", "freed, not yet given back"
NO_VRAM = "resident memory of the process on a CPU: not VRAM, and not what a GPU would need"
LOOSE = "with checkpointing, runs on a CPU took up to 1.6 times this: the system takes back late"


def estimate_cpu(job: Job) -> Estimate:
    """Resident memory; the precision that "auto" would choose on this machine is not known."""
    auto = job.recipe.precision == "auto"
    figures = {precision: _figure(job, precision) for precision in ("bf16", "fp32")}
    chosen = figures["bf16" if auto else "fp32" if job.precision == "fp32" else "bf16"]
    low = figures["bf16"] if auto else chosen
    high = figures["fp32"] if auto else chosen
    total, notes = sum(chosen.values()), [NO_VRAM] + [LOOSE] * bool(job.every)
    return Estimate(
        allocated_gib=total, reserved_gib=total, process_gib=total, parts=chosen,
        moments={}, peak_at="one of all moments", device="cpu",
        range_gib=(sum(low.values()) * LEAST, sum(high.values()) * MOST),
        notes=notes,
        parameters=job.shape.parameters, trained=write(job)[1].trained_count,
    )  # fmt: skip


def _figure(job: Job, precision: str) -> dict[str, float]:
    """Parts in GiB for one precision."""
    recipe = dataclasses.replace(job.recipe, kernels=False, offload=False)
    job = dataclasses.replace(job, recipe=recipe, precision=precision)
    peaks = replay(write(job)[0])
    parts = parts_of(peaks)
    parts[WORKSPACE] = max(0.0, parts.get(WORKSPACE, 0.0) - 64 * MIB / GIB)  # no cuBLAS here
    parts[ACTIVATIONS] += _attention(job) / GIB
    parts[LOGITS] = max(parts.get(LOGITS, 0.0), _loss_chunk(job) / GIB)
    parts[FREED] = PIECES * parts[ACTIVATIONS]
    return {name: gib for name, gib in parts.items() if gib > 0} | {LIBRARIES: BASELINE_GIB}


def _attention(job: Job) -> int:
    """Bytes that `attention._Products` keeps for short rows: the scores, and q, k and v by head.

    Of one layer where checkpointing is on; stock layers call torch's own kernel, which keeps none.
    """
    shape, rows = job.shape, job.recipe.batch_size
    count = rows * shape.heads * job.length**2
    if count > SCORES or not job.fast:
        return 0
    layers = sum(not job.checkpointed(layer) for layer in range(shape.layers))
    return (count + job.tokens * shape.qkv_width) * job.width * max(1, layers)


def _loss_chunk(job: Job) -> int:
    """Bytes of `loss._by_autograd` on a chunk of a frozen head: the logits' log-softmax, and two
    gradients of it, in fp32; in bf16 one more of the logits.
    """
    if job.full:
        return 0
    vocabulary = job.shape.vocabulary
    rows = min(job.scored, max(1, CHUNK_BYTES // (4 * vocabulary)))
    return rows * vocabulary * (12 + (job.width if job.width < 4 else 0))
