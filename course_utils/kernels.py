"""The elementwise steps between a layer's matrix products, as one GPU kernel each (Triton).

Written by hand where torch.compile could have written them, because they work in place: q, k, gate
and up are overwritten by their rotation or their gradient, which saves a tensor of their size each.
Sums are in fp32.  Without Triton `fast` uses the same steps in plain PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FP8_LARGEST = 448.0  # of float8 e4m3


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
def _norm_backward(grad, x, weight, scale, more, out, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    place, inside, rms = row * width + at, at < width, tl.load(scale + row)
    normed = tl.load(x + place, inside, 0.0).to(tl.float32) * rms
    through = tl.load(grad + place, inside, 0.0).to(tl.float32)
    through *= tl.load(weight + at, inside, 0.0).to(tl.float32)
    along = tl.sum(through * normed) / width
    past = tl.load(more + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, past + rms * (through - normed * along), inside)


@triton.jit
def _rotate(x, cos, sin, stride, heads, positions, sign,
            HALF: tl.constexpr, HEADS: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, at = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    angle = (token % positions) * 2 * HALF + at
    c, s = tl.load(cos + angle).to(tl.float32), tl.load(sin + angle).to(tl.float32) * sign
    first = x + token * stride + head * 2 * HALF + at
    a = tl.load(first, head < heads, 0.0).to(tl.float32)
    b = tl.load(first + HALF, head < heads, 0.0).to(tl.float32)
    tl.store(first, a * c - b * s, head < heads)
    tl.store(first + HALF, b * c + a * s, head < heads)


@triton.jit
def _swiglu(gate_up, out, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_up + row * 2 * width + at, at < width, 0.0)
    up = tl.load(gate_up + row * 2 * width + width + at, at < width, 0.0)
    wide = gate.to(tl.float32)
    tl.store(out + row * width + at, (wide * tl.sigmoid(wide)).to(gate.dtype) * up, at < width)


@triton.jit
def _swiglu_backward(grad, gate_up, width, BLOCK: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, place = at < width, gate_up + row * 2 * width + at
    gate = tl.load(place, inside, 0.0).to(tl.float32)
    up = tl.load(place + width, inside, 0.0).to(tl.float32)
    wide = tl.load(grad + row * width + at, inside, 0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    silu = gate * share
    tl.store(grad + row * width + at, silu * up, inside)
    tl.store(place, wide * up * share * (1 + gate - silu), inside)
    tl.store(place + width, wide * silu, inside)


@triton.jit
def _quantize(x, columns, out, scale, width, HAS_COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    row, largest = tl.program_id(0).to(tl.int64), 0.0
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * width + at, at < width, 0.0).to(tl.float32)
        if HAS_COLUMNS:
            value *= tl.load(columns + at, at < width, 0.0)
        largest = tl.maximum(largest, tl.max(tl.abs(value)))
    factor = tl.maximum(largest, 1e-24) / 448.0
    tl.store(scale + row, factor)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(x + row * width + at, at < width, 0.0).to(tl.float32)
        if HAS_COLUMNS:
            value *= tl.load(columns + at, at < width, 0.0)
        tl.store(out + row * width + at, (value / factor).to(tl.float8e4nv), at < width)


@triton.jit
def _transpose(x, out, rows, columns, TILE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(x + row[:, None] * columns + column[None, :], inside)
    inside = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(out + column[:, None] * rows + row[None, :], tl.trans(tile), inside)


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
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, more: Tensor
) -> Tensor:
    """Gradient at x of `rms_norm`, plus `more`; written into grad."""
    width = x.shape[1]
    _norm_backward[(len(x),)](grad, x, weight, scale, more, grad, width, **_block(width))
    return grad


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> None:
    """Rotary position embedding of x [batch, tokens, heads, dim], a view with one row a token."""
    batch, length, heads, width = x.shape
    cos, sin = cos.contiguous(), sin.contiguous()
    _rotate[(batch * length,)](
        x, cos, sin, x.stride(1), heads, cos.numel() // width, -1.0 if back else 1.0,
        HALF=width // 2, HEADS=triton.next_power_of_2(heads), num_warps=8,
    )  # fmt: skip


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of gate_up [tokens, 2 * width]."""
    rows, width = len(gate_up), gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    _swiglu[(rows, triton.cdiv(width, 2048))](gate_up, out, width, BLOCK=2048, num_warps=8)
    return out


def swiglu_backward(grad: Tensor, gate_up: Tensor) -> None:
    """Writes the gradient at gate_up into gate_up, and `swiglu(gate_up)` into grad."""
    rows, width = grad.shape
    grid = (rows, triton.cdiv(width, 2048))
    _swiglu_backward[grid](grad, gate_up, width, BLOCK=2048, num_warps=8)


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x in fp8 e4m3, scale [rows, 1] in fp32); columns: factors on x's columns, applied first."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(len(x), 1, dtype=torch.float32)
    _quantize[(len(x),)](
        x, x if columns is None else columns, out, scale, x.shape[1],
        HAS_COLUMNS=columns is not None, BLOCK=4096, num_warps=8,
    )  # fmt: skip
    return out, scale


def transpose(x: Tensor) -> Tensor:
    """x.T of bytes, laid out anew."""
    rows, columns = x.shape
    out = x.new_empty(columns, rows)
    grid = (triton.cdiv(rows, 128), triton.cdiv(columns, 128))
    _transpose[grid](x, out, rows, columns, TILE=128, num_warps=8)
    return out


def dequantize(packed: Tensor, state, out: Tensor) -> None:
    """bitsandbytes' NF4 weight with double quantization into out, in one pass."""
    inner = state.state2
    _dequantize[(triton.cdiv(packed.numel(), 2048),)](
        packed, state.absmax, state.code, inner.absmax, inner.code, state.offset, out,
        out.numel(), BLOCK=2048, num_warps=8,
    )  # fmt: skip
