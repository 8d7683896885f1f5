"""Frozen weights held and multiplied in 8 bits (float8 e4m3): half the memory, twice the rate.

Only the products with the *frozen* weights are in fp8; adapters, norms, attention and the loss stay
in bf16.  Every row of both factors has a scale of its own (its largest value becomes 448, e4m3's
largest), so one large value costs precision in its own row alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x in fp8, scale [rows, 1] in fp32), x = fp8 * scale up to rounding, for x [rows, width].

    columns: factors [width] that x's columns are multiplied by first.
    """
    wide = x.float() if columns is None else x.float() * columns
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-24) / LARGEST
    return (wide / scale).to(FP8), scale


def transpose(x: Tensor) -> Tensor:
    """x.T of bytes, laid out anew."""
    return x.t().contiguous()


class Fp8Weight:
    """A frozen matrix [outputs, inputs] in fp8 with a scale for each output.

    The weights it was made from wait in the CPU's memory until `restore`.
    """

    def __init__(self, bases: Sequence[nn.Module], steps: Any) -> None:
        self.bases, self.steps = bases, steps
        self.home = [base.weight.data.cpu() for base in bases]
        made = [quantize_rows(base.weight.data) for base in bases]
        for base in bases:
            base.weight.data = base.weight.data.new_empty(0)
        self.matrix = torch.cat([m.view(torch.uint8) for m, _ in made]).view(FP8)
        self.scale = torch.cat([scale for _, scale in made])

    def ready(self) -> Fp8Weight:
        """What to multiply by: this."""
        return self

    def restore(self) -> None:
        """Give the layers their own weights back."""
        self.matrix = self.scale = None
        for base, home in zip(self.bases, self.home, strict=True):
            base.weight.data = home.to(base.weight.device)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        """x @ W.T, plus `more` (a bias [outputs] or a residual [tokens, outputs])."""
        short, scale = self.steps.quantize_rows(x)
        y = scaled_product(short, self.matrix.t(), scale, self.scale.t(), x.dtype)
        return y if more is None else y.add_(more)

    def backward(self, grad: Tensor) -> Tensor:
        """grad @ W: the outputs' scales go into grad before it is rounded."""
        short, scale = self.steps.quantize_rows(grad, self.scale.flatten())
        turned = self.steps.transpose(self.matrix.view(torch.uint8)).view(FP8)  # [inputs, outputs]
        return scaled_product(
            short, turned.t(), scale, _ones(len(turned), scale.device), grad.dtype
        )


@functools.cache
def _ones(width: int, device: torch.device) -> Tensor:
    return torch.ones(1, width, device=device)


def native(place: torch.device) -> bool:
    """Whether this device multiplies fp8 by itself: NVIDIA GPUs from Ada (8.9) on."""
    return place.type == "cuda" and torch.cuda.get_device_capability(place) >= (8, 9)


def scaled_product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype) -> Tensor:
    """(a * a_scale) @ (b * b_scale); a [m, k] by rows, b [k, n] by columns, scales [m, 1], [1, n].

    On the matrix units where a GPU has fp8; elsewhere the same numbers from an fp32 product.
    """
    if native(a.device):
        return torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=dtype, use_fast_accum=True)
    return ((a.float() @ b.float()) * a_scale * b_scale).to(dtype)
