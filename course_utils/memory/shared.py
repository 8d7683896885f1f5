"""What the fast and the stock layers hold alike: attention, and the logits over a frozen head."""

from __future__ import annotations

from contextlib import ExitStack

from .job import ACTIVATIONS, CHUNK_BYTES, LOGITS, WORKSPACE, Job
from .ledger import Ledger, Piece


class Attention:
    """The memory of one attention call over q, k and v; what its backward pass needs besides.

    torch's fused kernels keep q, k, v, the output, and one fp32 number for each row of scores.  The
    backward pass sums q's gradient in fp32, and makes k's and v's for every query head before it
    adds up those that share a key head (ATen/native/transformers/cuda/flash_attn/flash_api.cpp).
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self.job, self.ledger, self.shape = job, ledger, job.shape
        packed, grouped = job.recipe.packing, job.shape.heads != job.shape.kv_heads
        self.repeats = packed and grouped and not job.varlen_gqa

    def forward(self) -> list[Piece]:
        """What is kept, the output first."""
        job, shape, new = self.job, self.shape, self.ledger.new
        kept = []
        if self.repeats:
            for name in ("keys", "values"):
                name = f"{name} for every query head [tokens x width]"
                kept.append(new(ACTIVATIONS, name, job.tokens, shape.q_width, width=job.width))
        name = "attention output [tokens x width]"
        out = new(ACTIVATIONS, name, job.tokens, shape.q_width, width=job.width)
        name = "sums of the softmax [tokens x heads]"
        return [out, new(ACTIVATIONS, name, job.tokens, shape.heads, width=4), *kept]

    def backward(self) -> list[Piece]:
        """The gradients at q, k and v."""
        job, shape, new = self.job, self.shape, self.ledger.new
        name = "gradients at q, k and v [tokens x width]"
        widths = (shape.q_width, shape.kv_width, shape.kv_width)
        if self.repeats:
            widths = (shape.q_width,) * 3
        grads = [new(ACTIVATIONS, name, job.tokens, width, width=job.width) for width in widths]
        with ExitStack() as stack:
            short = self.ledger.short
            rows = -(-job.length // 128) * 128 * job.recipe.batch_size
            name = "sums of the softmax's gradient [tokens x heads]"
            stack.enter_context(short(WORKSPACE, name, rows, shape.heads, width=4))
            padded = -(-shape.head_dim // 32) * 32
            name = "q's gradient in fp32 [tokens x heads x head_dim]"
            stack.enter_context(short(WORKSPACE, name, rows, shape.heads, padded, width=4))
            if shape.heads != shape.kv_heads and not self.repeats:
                for _ in "kv":
                    name = "a gradient for every query head [tokens x width]"
                    stack.enter_context(short(WORKSPACE, name, job.tokens, shape.q_width))
        if self.repeats:  # the copies' gradients are added up
            name = "gradients at k and v [tokens x width]"
            for at in (1, 2):
                piece = new(ACTIVATIONS, name, job.tokens, shape.kv_width, width=job.width)
                grads[at].drop()
                grads[at] = piece
        return grads


def frozen_head_chunks(job: Job, ledger: Ledger) -> None:
    """`loss._by_kernel`, a chunk after the other: the logits become their own gradient."""
    shape = job.shape
    most = max(1, CHUNK_BYTES // (4 * shape.vocabulary))
    for start in range(0, job.scored, most):
        rows = min(most, job.scored - start)
        name = "logits of a chunk [tokens x vocabulary]"
        logits = ledger.short(LOGITS, name, rows, shape.vocabulary, width=job.width)
        with logits, ledger.short(LOGITS, "losses", rows, width=4):
            part = ledger.new(LOGITS, "gradient of a chunk [tokens x width]", rows, shape.width)
        part.drop()
