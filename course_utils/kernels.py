"""The steps between a layer's large matrix products, as one GPU kernel each (Triton).

Written by hand where torch.compile could have written most of them, because they work in place: q,
k, gate and up are overwritten by their rotation or their gradient, which saves a tensor of their
size each; and because they add an adapter's output (a product of two thin matrices) to what they
read anyway.  Sums are in fp32.  Without Triton `fast` does the same in plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(x, weight, out, scale, width, eps, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + at, at < width, 0.0).to(tl.float32)
    rms = tl.rsqrt(tl.sum(value * value) / width + eps)
    factor = tl.load(weight + at, at < width, 0.0)
    normed = (value * rms).to(factor.dtype) * factor
    tl.store(out + row * width + at, normed, at < width)
    tl.store(scale + row, rms)


@triton.jit
def _norm_backward(grad, x, weight, scale, more, out, width,
                   MORE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    place, inside, rms = row * width + at, at < width, tl.load(scale + row)
    normed = tl.load(x + place, inside, 0.0).to(tl.float32) * rms
    through = tl.load(grad + place, inside, 0.0).to(tl.float32)
    through *= tl.load(weight + at, inside, 0.0).to(tl.float32)
    along = tl.sum(through * normed) / width
    made = rms * (through - normed * along)
    if MORE:
        made += tl.load(more + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, made, inside)


@triton.jit
def _product(left, right, row, rows, at, width, step_k, step_n, rank, RANK: tl.constexpr):
    """left[row, :rank] @ right[:rank, at]: an adapter's output, or its gradient, for one tile."""
    k = tl.arange(0, RANK)
    a = tl.load(left + row[:, None] * rank + k[None, :], (row < rows)[:, None] & (k < rank), 0.0)
    places = right + k[:, None] * step_k + at[None, :] * step_n
    b = tl.load(places, (k < rank)[:, None] & (at < width), 0.0)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _rotate(x, inner, b, cos, sin, rows, stride, rotated, positions, rank,
            HALF: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HALF)
    row, inside, head = row.to(tl.int64), (row < rows)[:, None], tl.program_id(1)
    place = x + row[:, None] * stride + head * 2 * HALF + at[None, :]
    first = tl.load(place, inside, 0.0).to(tl.float32)
    second = tl.load(place + HALF, inside, 0.0).to(tl.float32)
    if RANK:
        b += head * 2 * HALF * rank
        first += _product(inner, b, row, rows, at, HALF, 1, rank, rank, RANK)
        second += _product(inner, b + HALF * rank, row, rows, at, HALF, 1, rank, rank, RANK)
    if head < rotated:
        angle = (row % positions)[:, None] * 2 * HALF + at[None, :]
        c = tl.load(cos + angle, inside, 0.0).to(tl.float32)
        s = tl.load(sin + angle, inside, 0.0).to(tl.float32)
        first, second = first * c - second * s, second * c + first * s
    tl.store(place, first, inside)
    tl.store(place + HALF, second, inside)


@triton.jit
def _rotate_back(dq, dk, dv, cos, sin, out, rows, row_q, row_k, row_v, head_q, head_k, head_v,
                 of_q, of_k, stride, positions,
                 HALF: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, HALF)
    row, inside, head = row.to(tl.int64), (row < rows)[:, None], tl.program_id(1)
    if head < of_q:
        source = dq + row[:, None] * row_q + head * head_q + at[None, :]
    elif head < of_q + of_k:
        source = dk + row[:, None] * row_k + (head - of_q) * head_k + at[None, :]
    else:
        source = dv + row[:, None] * row_v + (head - of_q - of_k) * head_v + at[None, :]
    first, second = tl.load(source, inside, 0.0), tl.load(source + HALF, inside, 0.0)
    if head < of_q + of_k:
        angle = (row % positions)[:, None] * 2 * HALF + at[None, :]
        c = tl.load(cos + angle, inside, 0.0).to(tl.float32)
        s = tl.load(sin + angle, inside, 0.0).to(tl.float32)
        x, y = first.to(tl.float32), second.to(tl.float32)
        first, second = (x * c + y * s).to(first.dtype), (y * c - x * s).to(first.dtype)
    place = out + row[:, None] * stride + head * 2 * HALF + at[None, :]
    tl.store(place, first, inside)
    tl.store(place + HALF, second, inside)


@triton.jit
def _swiglu(gate_up, inner, b, out, rows, width, rank,
            KEEP: tl.constexpr, RANK: tl.constexpr,
            ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * BLOCK
    row, at = row.to(tl.int64), at + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < width)
    place = gate_up + row[:, None] * 2 * width + at[None, :]
    gate, up = tl.load(place, inside, 0.0), tl.load(place + width, inside, 0.0)
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    if RANK:
        gate += _product(inner, b, row, rows, at, width, 1, rank, rank, RANK)
        up += _product(inner, b + width * rank, row, rows, at, width, 1, rank, rank, RANK)
        if KEEP:
            tl.store(place, gate, inside)
            tl.store(place + width, up, inside)
    made = gate * tl.sigmoid(gate) * up
    tl.store(out + row[:, None] * width + at[None, :], made, inside)


@triton.jit
def _swiglu_backward(grad, gate_up, d_inner, a_down, inner, b, rows, width, rank_down, rank,
                     DOWN: tl.constexpr, RANK: tl.constexpr,
                     ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * BLOCK
    row, at = row.to(tl.int64), at + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < width)
    place, source = gate_up + row[:, None] * 2 * width + at, grad + row[:, None] * width + at
    gate = tl.load(place, inside, 0.0).to(tl.float32)
    up = tl.load(place + width, inside, 0.0).to(tl.float32)
    wide = tl.load(source, inside, 0.0).to(tl.float32)
    if DOWN:
        wide += _product(d_inner, a_down, row, rows, at, width, width, 1, rank_down, DOWN)
    if RANK:
        gate += _product(inner, b, row, rows, at, width, 1, rank, rank, RANK)
        up += _product(inner, b + width * rank, row, rows, at, width, 1, rank, rank, RANK)
    share = tl.sigmoid(gate)
    silu = gate * share
    tl.store(source, silu * up, inside)
    tl.store(place, wide * up * share * (1 + gate - silu), inside)
    tl.store(place + width, wide * silu, inside)


@triton.jit
def _residual(made, x, inner, b, rows, width, rank,
              RANK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * BLOCK
    row, at = row.to(tl.int64), at + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < width)
    place = row[:, None] * width + at[None, :]
    value = tl.load(made + place, inside, 0.0).to(tl.float32)
    if RANK:
        value += _product(inner, b, row, rows, at, width, 1, rank, rank, RANK)
    value += tl.load(x + place, inside, 0.0).to(tl.float32)
    tl.store(made + place, value, inside)


@triton.jit
def _quantize(x, columns, out, scale, width, HAS_COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + at, at < width, 0.0).to(tl.float32)
    if HAS_COLUMNS:
        value *= tl.load(columns + at, at < width, 0.0)
    factor = tl.maximum(tl.max(tl.abs(value)), 1e-24) / 448.0
    tl.store(scale + row, factor)
    tl.store(out + row * width + at, (value / factor).to(tl.float8e4nv), at < width)


@triton.jit
def _cross_entropy(logits, targets, losses, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row, target = tl.program_id(0).to(tl.int64), tl.load(targets + tl.program_id(0))
    place, peak, total = logits + row * WIDTH, -float("inf"), 0.0
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(place + at, at < WIDTH, -float("inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(value))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(value - higher))
        peak = higher
    tl.store(losses + row, tl.log(total) + peak - tl.load(place + target).to(tl.float32))
    tl.debug_barrier()  # all have read the target's logit before one overwrites it
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(place + at, at < WIDTH, -float("inf")).to(tl.float32)
        grad = tl.exp(value - peak) / total - tl.where(at == target, 1.0, 0.0)
        tl.store(place + at, grad, at < WIDTH)


@triton.jit
def _transpose(x, out, rows, columns, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x + row[:, None] * columns + column[None, :], inside)
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(out + column[:, None] * rows + row[None, :], tl.trans(tile), inside)


@triton.jit
def _round_columns(rest, scale, factor, made, errors, rows, width, rest_row, rest_column,
                   ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    row, at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (at < width)[None, :]
    tile = tl.load(rest + row[:, None] * rest_row + at[None, :] * rest_column, inside, 0.0)
    size, apart = tl.load(scale + row, row < rows, 1.0), tl.zeros_like(tile)
    for i in range(width):
        here = (at == i)[None, :]
        column = tl.sum(tl.where(here, tile, 0.0), axis=1)
        short = (column / size).to(tl.float8e4nv).to(tl.float32)
        error = (column - short * size) / tl.load(factor + i * width + i)
        later = tl.load(factor + i * width + at, (at > i) & (at < width), 0.0)
        tile = tl.where(here, (short * size)[:, None], tile - error[:, None] * later[None, :])
        apart = tl.where(here, error[:, None], apart)
    place = row[:, None] * width + at[None, :]
    tl.store(made + place, (tile / size[:, None]).to(tl.float8e4nv), inside)
    tl.store(errors + place, apart, inside)


@triton.jit
def _store_turned(out, tile, row, column, rows, columns, stride):
    """tile [row, column], in fp8, into out [columns, stride], turned."""
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    short = tl.trans(tile.to(tl.float8e4nv).to(tl.uint8, bitcast=True))
    tl.store(out + column[:, None] * stride + row[None, :], short, inside)


@triton.jit
def _turn(x, scale, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x + row[:, None] * columns + column[None, :], inside, 0.0).to(tl.float32)
    factor = 1 / tl.load(scale + row, row < rows, 1.0)
    _store_turned(out, tile * factor[:, None], row, column, rows, columns, rows)


@triton.jit
def _copy_all(table, scales, SOURCE: tl.constexpr, TARGET: tl.constexpr, BLOCK: tl.constexpr):
    job = tl.program_id(0)
    line = table + job * 6
    source = tl.load(line).to(tl.pointer_type(SOURCE))
    target = tl.load(line + 1).to(tl.pointer_type(TARGET))
    count, width = tl.load(line + 2), tl.load(line + 3)
    source_row, target_row, scale = tl.load(line + 4), tl.load(line + 5), tl.load(scales + job)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row, column, inside = at // width, at % width, at < count
    value = tl.load(source + row * source_row + column, inside, 0.0).to(tl.float32) * scale
    tl.store(target + row * target_row + column, value, inside)


@triton.jit
def _dequantize(packed, absmax, code, inner_absmax, inner_code, offset, out, count,
                BLOCK: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # bytes: two values each
    inside = at < count // 2
    byte = tl.load(packed + at, inside, 0).to(tl.int32)
    block = at // 32  # 64 values share a scale; 256 scales share one of their own
    level = tl.load(absmax + block, inside, 0).to(tl.int32)
    scale = tl.load(inner_code + level) * tl.load(inner_absmax + block // 256, inside, 0.0)
    scale += tl.load(offset)
    high, low = tl.load(code + (byte >> 4)) * scale, tl.load(code + (byte & 15)) * scale
    place = tl.program_id(0).to(tl.int64) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    tl.store(out + place, tl.interleave(high, low), place < count)


@triton.jit
def _turn_four_bit(packed, absmax, code, inner_absmax, inner_code, offset, scale, out,
                   rows, columns, stride, ROWS: tl.constexpr, BYTES: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1).to(tl.int64) * BYTES + tl.arange(0, BYTES)  # two values each
    place, inside = row[:, None] * (columns // 2) + at[None, :], at < columns // 2
    inside = (row < rows)[:, None] & inside[None, :]
    byte = tl.load(packed + place, inside, 0).to(tl.int32)
    block = place // 32
    level = tl.load(absmax + block, inside, 0).to(tl.int32)
    size = tl.load(inner_code + level) * tl.load(inner_absmax + block // 256, inside, 0.0)
    size = (size + tl.load(offset)) / tl.load(scale + row, row < rows, 1.0)[:, None]
    high, low = tl.load(code + (byte >> 4)) * size, tl.load(code + (byte & 15)) * size
    _store_turned(out, high, row, 2 * at, rows, columns, stride)
    _store_turned(out, low, row, 2 * at + 1, rows, columns, stride)


def _block(width: int) -> dict[str, int]:
    """One program for a whole row."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(16, max(4, block // 512))}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, 1 / root mean square) of each row of x [tokens, width]."""
    out, scale = torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)
    _norm[(len(x),)](x, weight, out, scale, x.shape[1], eps, **_block(x.shape[1]))
    return out, scale


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, more: Tensor | None
) -> Tensor:
    """Gradient at x of `rms_norm`, plus `more`; written into grad."""
    width, past = x.shape[1], grad if more is None else more
    _norm_backward[(len(x),)](
        grad, x, weight, scale, past, grad, width, MORE=more is not None, **_block(width)
    )
    return grad


def _rank(left: Tensor | None, y: Tensor, right: Tensor | None) -> int:
    """The constant that a kernel adds `left @ right` with; 0 where there is nothing (left) to add.

    A high rank would not fit into a tile: there torch adds it first.
    """
    if left is None:
        return 0
    if left.shape[1] > 128:
        y.addmm_(left, right)
        return 0
    return max(16, triton.next_power_of_2(left.shape[1]))


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, rotated: int, inner: Tensor | None, b: Tensor | None
) -> None:
    """Adds inner @ b.T to qkv [tokens, width], then rotates its first `rotated` heads, in place.

    cos, sin: [batch or 1, tokens, 1, head_dim].
    """
    width, (rows, total) = cos.shape[-1], qkv.shape
    rank = _rank(inner, qkv, None if b is None else b.t())
    block = 64 if rank else 16
    _rotate[(triton.cdiv(rows, block), total // width if rank else rotated)](
        qkv, inner, b, cos.contiguous(), sin.contiguous(), rows, total, rotated,
        cos.numel() // width, 0 if inner is None else inner.shape[1],
        HALF=width // 2, RANK=rank, BLOCK=block, num_warps=4,
    )  # fmt: skip


def rotate_back(parts: Sequence[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient at qkv [tokens, width] of `rotate`, from those at q, k and v.

    parts: [batch, tokens, heads, head_dim] each; the turn is taken back in the first two.
    """
    # a batch's tokens follow each other, whichever way attention laid its gradients out
    parts = [p if p.stride(0) == p.shape[1] * p.stride(1) else p.contiguous() for p in parts]
    parts = [p if p.stride(3) == 1 else p.contiguous() for p in parts]
    width, heads = cos.shape[-1], [part.shape[2] for part in parts]
    rows = parts[0].shape[0] * parts[0].shape[1]
    out = parts[0].new_empty(rows, sum(heads) * width)
    _rotate_back[(triton.cdiv(rows, 16), sum(heads))](
        *parts, cos.contiguous(), sin.contiguous(), out, rows,
        *(part.stride(1) for part in parts), *(part.stride(2) for part in parts),
        heads[0], heads[1], out.shape[1], cos.numel() // width,
        HALF=width // 2, BLOCK=16, num_warps=4,
    )  # fmt: skip
    return out


def swiglu(gate_up: Tensor, inner: Tensor | None, b: Tensor | None, keep: bool) -> Tensor:
    """silu(gate) * up after inner @ b.T was added to gate_up [tokens, 2 * width].

    keep: whether gate_up itself must hold the sum afterwards.
    """
    rows, width = len(gate_up), gate_up.shape[1] // 2
    out, rank = gate_up.new_empty(rows, width), _rank(inner, gate_up, None if b is None else b.t())
    _swiglu[(triton.cdiv(width, 64), triton.cdiv(rows, 64))](
        gate_up, inner, b, out, rows, width, 0 if inner is None else inner.shape[1],
        KEEP=keep, RANK=rank, ROWS=64, BLOCK=64, num_warps=8,
    )  # fmt: skip
    return out


def swiglu_backward(
    grad: Tensor, gate_up: Tensor, d_inner: Tensor | None, a_down: Tensor | None,
    inner: Tensor | None, b: Tensor | None,
) -> None:  # fmt: skip
    """Adds d_inner @ a_down to grad and inner @ b.T to gate_up; then writes the gradient at gate_up
    into gate_up, and what `swiglu` gave into grad.
    """
    rows, width = grad.shape
    down = _rank(d_inner, grad, a_down)
    rank = _rank(inner, gate_up, None if b is None else b.t())
    tile = (64, 64) if rank else (16, 128)  # the fastest on an H200
    _swiglu_backward[(triton.cdiv(width, tile[1]), triton.cdiv(rows, tile[0]))](
        grad, gate_up, d_inner, a_down, inner, b, rows, width,
        0 if d_inner is None else d_inner.shape[1], 0 if inner is None else inner.shape[1],
        DOWN=down, RANK=rank, ROWS=tile[0], BLOCK=tile[1], num_warps=4,
    )  # fmt: skip


def residual(made: Tensor, x: Tensor, inner: Tensor | None, b: Tensor | None) -> Tensor:
    """x + made + inner @ b.T, summed in fp32, in the place of made [tokens, width]."""
    rows, width = made.shape
    rank = _rank(inner, made, None if b is None else b.t())
    _residual[(triton.cdiv(width, 64), triton.cdiv(rows, 64))](
        made, x.contiguous(), inner, b, rows, width, 0 if inner is None else inner.shape[1],
        RANK=rank, ROWS=64, BLOCK=64, num_warps=4,
    )  # fmt: skip
    return made


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x in fp8 e4m3, scale [rows, 1] in fp32); columns: factors on x's columns, applied first."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(len(x), 1, dtype=torch.float32)
    _quantize[(len(x),)](
        x, x if columns is None else columns, out, scale, x.shape[1],
        HAS_COLUMNS=columns is not None, **_block(x.shape[1]),
    )  # fmt: skip
    return out, scale


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The loss [rows] of each row of logits [rows, vocabulary]; logits become their gradient."""
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    width = logits.shape[1]
    _cross_entropy[(len(logits),)](logits, targets, losses, WIDTH=width, BLOCK=8192, num_warps=16)
    return losses


def transpose(x: Tensor) -> Tensor:
    """x.T of bytes, laid out anew."""
    rows, columns = x.shape
    out = x.new_empty(columns, rows)
    grid = (triton.cdiv(rows, 128), triton.cdiv(columns, 128))
    _transpose[grid](x, out, rows, columns, TILE=128, num_warps=8)
    return out


def round_columns(rest: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """(rest [outputs, n] in fp8, each column's error over its diagonal), as `fp8.round_columns`."""
    rows, width = rest.shape
    made = torch.empty_like(rest, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    errors = torch.empty_like(rest, memory_format=torch.contiguous_format)
    _round_columns[(triton.cdiv(rows, 16),)](
        rest, scale, factor.contiguous(), made, errors, rows, width, *rest.stride(),
        ROWS=16, BLOCK=triton.next_power_of_2(width), num_warps=4,
    )  # fmt: skip
    return made, errors


def turn(matrix: Tensor, scale: Tensor) -> Tensor:
    """(matrix / scale).T in fp8, laid out anew, for matrix [outputs, inputs], scale [outputs]."""
    rows, columns = matrix.shape
    out = matrix.new_empty(columns, rows, dtype=torch.float8_e4m3fn)
    grid = (triton.cdiv(rows, 64), triton.cdiv(columns, 128))
    _turn[grid](
        matrix, scale, out.view(torch.uint8), rows, columns, ROWS=64, COLUMNS=128, num_warps=4
    )
    return out


TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor], scales: Sequence[float]) -> None:
    """Each source [rows, columns], times its scale, into its target; one kernel for all."""
    jobs = [
        (s.data_ptr(), t.data_ptr(), t.numel(), t.shape[1], s.stride(0), t.stride(0))
        for s, t in zip(sources, targets, strict=True)
    ]
    table = torch.tensor(jobs, dtype=torch.int64)
    factors, place = torch.tensor(scales, dtype=torch.float32), targets[0].device
    if place.type == "cuda":  # from pinned memory the copy does not wait for what runs
        table, factors = table.pin_memory(), factors.pin_memory()
    largest = max(target.numel() for target in targets)
    _copy_all[(len(jobs), triton.cdiv(largest, 4096))](
        table.to(place, non_blocking=True), factors.to(place, non_blocking=True),
        SOURCE=TYPES[sources[0].dtype], TARGET=TYPES[targets[0].dtype], BLOCK=4096,
    )  # fmt: skip


def dequantize(packed: Tensor, state, out: Tensor) -> None:
    """bitsandbytes' NF4 weight with double quantization into out, in one pass."""
    inner = state.state2
    _dequantize[(triton.cdiv(packed.numel(), 2048),)](
        packed, state.absmax, state.code, inner.absmax, inner.code, state.offset, out,
        out.numel(), BLOCK=2048, num_warps=8,
    )  # fmt: skip


def turn_four_bit(packed: Tensor, state, scale: Tensor, out: Tensor) -> None:
    """bitsandbytes' NF4 weight with double quantization, over scale [outputs], into out in fp8.

    out: [inputs, outputs], columns of a wider tensor.
    """
    inner, (columns, rows) = state.state2, out.shape
    grid = (triton.cdiv(rows, 128), triton.cdiv(columns // 2, 64))
    _turn_four_bit[grid](
        packed, state.absmax, state.code, inner.absmax, inner.code, state.offset, scale,
        out.view(torch.uint8), rows, columns, out.stride(0), ROWS=128, BYTES=64, num_warps=4,
    )  # fmt: skip
