"""Causal attention for training: rows of one length, or rows packed behind each other.

Neither needs a mask: packed rows are handed over as so many sequences of their own.  So the kernels
made for plain causal attention serve for both, and no tokens x tokens mask is ever made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import compat

# Up to this size of all scores, a CPU is faster with plain products than with torch's own kernel
# (benchmarks/NOTES.md); beyond it their memory, which grows with the square of
# the length, would count.
SCORES = 2**24


@dataclass(frozen=True)
class Rows:
    """Which tokens of a batch belong together.

    shape: (batch, tokens).  starts: for packed rows, where each begins among all tokens of the
    batch, and at the end their number [rows + 1]; longest: tokens of the longest row.
    """

    shape: tuple[int, int]
    starts: Tensor | None = None
    longest: int = 0

    @classmethod
    def lines(cls, input_ids: Tensor) -> Rows:
        """One row a line, all of the same length."""
        return cls(tuple(input_ids.shape), None, input_ids.shape[1])

    @classmethod
    def packed(cls, position_ids: Tensor) -> Rows:
        """Rows told apart by their positions, each of which begins at 0."""
        positions = position_ids.flatten()
        positions = torch.cat([positions, positions.new_zeros(1)])
        starts = (positions == 0).nonzero().flatten()
        return cls(tuple(position_ids.shape), starts.int(), int(starts.diff().max()))


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
    """Causal attention within each row: [batch, tokens, heads, head_dim], as q.

    k and v may have fewer heads than q, each of them shared by as many of q's in turn.
    """
    if rows.starts is None:
        return _causal(q, k, v)
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    if q.is_cuda and compat.has_varlen_attention(q.dtype):
        return compat.varlen_attention(*flat, rows.starts, rows.longest).view_as(q)
    return _row_by_row(*flat, rows.starts.tolist()).view_as(q)


def _row_by_row(q: Tensor, k: Tensor, v: Tensor, starts: list[int]) -> Tensor:
    """Each row by itself; a row of one token (all padding is such) sees its own value alone."""
    shared, made, start = q.shape[1] // k.shape[1], [], 0
    lonely = [a for a, b in zip(starts, starts[1:], strict=False) if b - a == 1]
    alone = set(lonely)
    while start < len(starts) - 1:
        stop = start + 1
        if starts[start] in alone:
            while stop < len(starts) - 1 and starts[stop] in alone:
                stop += 1
            part = slice(starts[start], starts[stop])
            made.append(v[part].repeat_interleave(shared, dim=1))
        else:
            part = slice(starts[start], starts[stop])
            made.append(_causal(q[None, part], k[None, part], v[None, part])[0])
        start = stop
    return torch.cat(made)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, length, heads, _ = q.shape
    if not q.is_cuda and batch * heads * length * length <= SCORES:
        return _Products.apply(q, k, v)
    if _takes_no_shared_heads(q, k):
        k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    made = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        is_causal=True, enable_gqa=q.shape[2] != k.shape[2],
    )  # fmt: skip
    return made.transpose(1, 2)


def _takes_no_shared_heads(q: Tensor, k: Tensor) -> bool:
    """Whether k and v must be repeated for each head of q, lest all scores be kept.

    Of torch's fused kernels flash attention alone takes fewer heads of k and v; where it does not
    run (fp32, GPUs before Ampere) torch would silently take plain products, whose memory grows with
    the square of the length.
    """
    return q.shape[2] != k.shape[2] and q.is_cuda and not compat.has_flash_attention(q.dtype)


class _Products(torch.autograd.Function):
    """softmax(q k.T / sqrt(head_dim)) v by four batched products; the scores are kept."""

    @staticmethod
    def forward(ctx, q, k, v):
        batch, length, heads, width = q.shape
        shared, scale = heads // k.shape[2], width**-0.5
        q2, k2, v2 = _by_head(q, shared), _by_head(k, 1), _by_head(v, 1)
        hidden = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
        scores = torch.baddbmm(hidden.repeat(shared, 1), q2, k2.mT, alpha=scale)
        shares = torch.softmax(scores, dim=-1)
        ctx.save_for_backward(q2, k2, v2, shares)
        ctx.of, ctx.scale = (batch, shared), scale
        return _by_token(shares @ v2, batch, shared)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q2, k2, v2, shares = ctx.saved_tensors
        batch, shared = ctx.of
        grad = _by_head(grad, shared)
        dshares = grad @ v2.mT
        dscores = torch._softmax_backward_data(dshares, shares, -1, shares.dtype).mul_(ctx.scale)
        return (
            _by_token(dscores @ k2, batch, shared),
            _by_token(dscores.mT @ q2, batch, 1),
            _by_token(shares.mT @ grad, batch, 1),
        )


def _by_head(x: Tensor, shared: int) -> Tensor:
    """[batch, tokens, heads, dim] -> [batch * heads / shared, shared * tokens, dim]."""
    batch, length, heads, width = x.shape
    x = x.view(batch, length, heads // shared, shared, width).permute(0, 2, 3, 1, 4)
    return x.reshape(batch * heads // shared, shared * length, width)


def _by_token(x: Tensor, batch: int, shared: int) -> Tensor:
    """The inverse of `_by_head`."""
    groups, length, width = x.shape
    x = x.view(batch, groups // batch, shared, length // shared, width).permute(0, 3, 1, 2, 4)
    return x.reshape(batch, length // shared, groups // batch * shared, width)
