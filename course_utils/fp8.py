"""Products with the frozen weights in 8 bits (float8 e4m3): twice the rate of bf16.

Two ways, neither of which touches adapters, norms, attention or the loss: `Fp8Weight` also holds
the weights in 8 bits (half the memory, once they are rounded), and multiplies by them forward and
backward.  `Back` leaves the weights and the forward pass as they are, and rounds what passes back
through them alone.

Every row of both factors has a scale of its own (its largest value becomes 448, e4m3's largest), so
one large value costs precision in its own row alone.  Held weights are rounded for the data that
they will be multiplied with (`quantize_for`): each to its nearest value costs quality.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CourseError

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SAMPLE = 2**14  # tokens of a run's data that its weights are rounded for
# of `quantize_for`: added to the diagonal, as a share of its mean; columns rounded between updates
# of all that follow
DAMPING, COLUMNS = 0.01, 128


def quantize_rows(x: Tensor, columns: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x in fp8, scale [rows, 1] in fp32), x = fp8 * scale up to rounding, for x [rows, width].

    columns: factors [width] that x's columns are multiplied by first.
    """
    wide = x.float() if columns is None else x.float() * columns
    scale = wide.abs().amax(dim=-1, keepdim=True).clamp(min=1e-24) / LARGEST
    return (wide / scale).to(FP8), scale


def round_columns(rest: Tensor, scale: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """(rest [outputs, n] in fp8, each column's error over its diagonal); rest is written over."""
    made, errors = torch.empty_like(rest, dtype=FP8), torch.empty_like(rest)
    for i in range(rest.shape[1]):
        column = rest[:, i : i + 1]
        made[:, i : i + 1] = (column / scale).clamp(-LARGEST, LARGEST).to(FP8)
        errors[:, i : i + 1] = (column - made[:, i : i + 1].float() * scale) / factor[i, i]
        rest[:, i:].addmm_(errors[:, i : i + 1], factor[i : i + 1, i:], alpha=-1)
    return made, errors


def quantize_for(
    matrix: Tensor, x: Tensor, round_columns: Callable = round_columns
) -> tuple[Tensor, Tensor]:
    """As `quantize_rows`, of a matrix [outputs, inputs] that is to multiply inputs like x.

    GPTQ (Frantar et al. 2023, arXiv:2210.17323, sections 3 and 4): one column is rounded after the
    other, those of the largest inputs first; the columns still to come take up its error, as far as
    in x [tokens, inputs] they go along with it.
    Raises CourseError where x holds infinite values or none at all (NaN).
    """
    order = torch.linalg.vector_norm(x, dim=0, dtype=torch.float32).argsort(descending=True)
    factor = _inverse_factor(_moments(x, order))
    rest = matrix.float()[:, order]
    scale = rest.abs().amax(dim=1, keepdim=True).clamp(min=1e-24) / LARGEST
    made = torch.empty_like(rest, dtype=torch.uint8)  # fp8's bytes: few things work on fp8
    for start in range(0, len(order), COLUMNS):
        now, later = slice(start, start + COLUMNS), slice(start + COLUMNS, None)
        short, errors = round_columns(rest[:, now], scale, factor[now, now])
        made[:, order[now]] = short.view(torch.uint8)
        rest[:, later].addmm_(errors, factor[now, later], alpha=-1)
    return made.view(FP8), scale


def _moments(x: Tensor, order: Tensor) -> Tensor:
    """x.T @ x in fp32 with x's columns in this order; its diagonal a little raised (damped)."""
    made = torch.zeros(len(order), len(order), device=x.device)
    for part in x.split(2**12):  # a copy of all of x in fp32 would be as large as the result
        wide = part[:, order].float()
        made.addmm_(wide.t(), wide)
    made.diagonal().add_(DAMPING * made.diagonal().mean().clamp(min=1e-24))
    return made


def _inverse_factor(moments: Tensor) -> Tensor:
    """Upper U with U.T @ U = inverse of moments [n, n], by one Cholesky decomposition.

    With rows and columns in the opposite order, the lower factor of moments becomes an upper one,
    whose inverse U is.
    """
    if not bool(moments.isfinite().all()):
        raise CourseError(
            "The weights cannot be rounded to fp8: what they multiply is not finite (inf or NaN). "
            "Set base_precision='auto', and see chapter 10, 'loss is NaN'."
        )
    moments = torch.linalg.cholesky(moments.flip(0, 1)).flip(0, 1)
    one = torch.eye(len(moments), device=moments.device)
    return torch.linalg.solve_triangular(moments, one, upper=True)


def transpose(x: Tensor) -> Tensor:
    """x.T of bytes, laid out anew."""
    return x.t().contiguous()


def turn(matrix: Tensor, scale: Tensor) -> Tensor:
    """(matrix / scale).T in fp8, laid out anew, for matrix [outputs, inputs], scale [outputs]."""
    return (matrix.float() * (1 / scale)[:, None]).to(FP8).t().contiguous()


def row_scales(matrix: Tensor) -> Tensor:
    """The scale [rows] of each row of matrix, as in `quantize_rows`; makes no copy of it."""
    low, high = torch.aminmax(matrix, dim=1)
    return torch.maximum(high, -low).float().clamp(min=1e-24) / LARGEST


@dataclass
class Back:
    """grad @ W in fp8, for a W [outputs, inputs] that is held in another precision.

    scale: that of each output.  turned: makes (W / scale).T in fp8, anew for each product, since a
    copy kept beside W would be half as large as a W in bf16.
    """

    scale: Tensor
    turned: Callable[[Tensor], Tensor]
    quantize_rows: Callable = quantize_rows

    def __call__(self, grad: Tensor) -> Tensor:
        """The gradient [tokens, inputs] for grad [tokens, outputs]."""
        return back_product(grad, self.scale, self.turned(self.scale), self.quantize_rows)


def back_product(grad: Tensor, scale: Tensor, turned: Tensor, quantize_rows: Callable) -> Tensor:
    """grad @ W from turned = (W / scale).T: the scales go into grad before it is rounded."""
    short, of_rows = quantize_rows(grad, scale)
    ones = _ones(len(turned), grad.device)
    return scaled_product(short, turned.t(), of_rows, ones, grad.dtype)


class Fp8Weight:
    """A frozen matrix [outputs, inputs] in fp8 with a scale for each output.

    The weights it was made from wait in the CPU's memory until `restore`.  fit: they come back to
    be rounded when the first forward pass needs them, for what it multiplies them with; else each
    is rounded to its nearest value, at once.
    """

    def __init__(self, bases: Sequence[nn.Module], steps: Any, fit: bool = False) -> None:
        self.bases, self.steps = bases, steps
        self.home = [base.weight.data.cpu() for base in bases]
        self.matrix = self.scale = None
        if not fit:
            self._hold(quantize_rows)
        for base in bases:
            base.weight.data = base.weight.data.new_empty(0)

    def _hold(self, quantize: Callable) -> None:
        place = self.bases[0].weight.device
        self.matrix, self.scale = quantize(torch.cat([home.to(place) for home in self.home]))

    def ready(self, forward: bool = True) -> Fp8Weight:
        """What to multiply by: this."""
        return self

    def restore(self) -> None:
        """Give the layers their own weights back."""
        self.matrix = self.scale = None
        for base, home in zip(self.bases, self.home, strict=True):
            base.weight.data = home.to(base.weight.device)

    def forward(
        self, x: Tensor, bias: Tensor | None = None,
        left: Tensor | None = None, right: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x @ W.T, plus the bias [outputs] and left @ right."""
        if self.matrix is None:
            self._hold(lambda matrix: quantize_for(matrix, x, self.steps.round_columns))
        short, scale = self.steps.quantize_rows(x)
        y = scaled_product(short, self.matrix.t(), scale, self.scale.t(), x.dtype)
        y = y if bias is None else y.add_(bias)
        return y if left is None else y.addmm_(left, right)

    def backward(
        self, grad: Tensor, left: Tensor | None = None, right: Tensor | None = None
    ) -> Tensor:
        """grad @ W, plus left @ right."""
        turned = self.steps.transpose(self.matrix.view(torch.uint8)).view(FP8)  # [inputs, outputs]
        dx = back_product(grad, self.scale.flatten(), turned, self.steps.quantize_rows)
        return dx if left is None else dx.addmm_(left, right)


@functools.cache
def _ones(width: int, device: torch.device) -> Tensor:
    return torch.ones(1, width, device=device)


def native(place: torch.device) -> bool:
    """Whether this device multiplies fp8 by itself: NVIDIA GPUs from Ada (8.9) on."""
    return place.type == "cuda" and torch.cuda.get_device_capability(place) >= (8, 9)


def scaled_product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype) -> Tensor:
    """(a * a_scale) @ (b * b_scale); a [m, k] by rows, b [k, n] by columns, scales [m, 1], [1, n].

    On the matrix units where a GPU has fp8; elsewhere the same numbers from an fp32 product.  So
    too for a result that is not bf16, which few of them give, and sides that are no multiples of
    16, which none takes.
    """
    sides = (*b.shape, a.shape[1])
    if native(a.device) and dtype == torch.bfloat16 and all(side % 16 == 0 for side in sides):
        return torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=dtype, use_fast_accum=True)
    return ((a.float() @ b.float()) * a_scale * b_scale).to(dtype)
