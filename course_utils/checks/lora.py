"""Checks of chapter 4: adapter size, forward, start, scale, merging, dropout, SVD, backward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import check, draw, expect, same, same_number, unchanged


def _adapter() -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """x [rows, inputs], weight [outputs, inputs], A [rank, inputs], B [outputs, rank], alpha.

    All sizes differ, and alpha, from 7 to 21, is none of them and no multiple of the rank; nor is
    rank x alpha one of them.  So no mix-up goes unseen, and none is taken for another.
    """
    rank, inputs, outputs = draw.integer(2, 4), draw.pick([12, 15, 19]), draw.integer(23, 25)
    alpha = rank * draw.integer(3, 5) + 1
    made = [draw.tensor(5, inputs), draw.tensor(outputs, inputs)]
    made += [draw.tensor(rank, inputs), draw.tensor(outputs, rank)]
    return *made, alpha


def _tensors(got: Any, count: int, names: str) -> tuple[Tensor, ...]:
    """The attempt's result as so many tensors."""
    expect(
        isinstance(got, tuple | list)
        and len(got) == count
        and all(isinstance(part, Tensor) for part in got),
        f"{count} tensors are wanted: return {names}",
    )
    return tuple(got)


def _equal(got: Any, wanted: Tensor) -> bool:
    """Whether this is that tensor, up to rounding."""
    if not isinstance(got, Tensor) or got.shape != wanted.shape:
        return False
    atol = 1e-4 * float(wanted.abs().max())
    return torch.allclose(got.detach().float(), wanted, rtol=0, atol=atol)


def _is(got: Any, value: float) -> bool:
    """Whether this is that number."""
    return isinstance(got, int | float) and math.isclose(got, value, rel_tol=1e-4)


@check("each adapted matrix adds rank x (inputs + outputs) numbers, in every layer of the model.")
def parameters(attempt: Any) -> None:
    shapes = [(draw.integer(100, 900), draw.integer(1000, 4000)) for _ in range(draw.integer(2, 4))]
    rank, layers = draw.integer(3, 64), draw.integer(65, 96)  # never the same number
    got = attempt(list(shapes), rank, layers)
    one = sum(rank * (outputs + inputs) for outputs, inputs in shapes)
    known = {
        "is that of one layer: the model has more": one,
        "is that of the matrices themselves: A and B are thin": layers
        * sum(outputs * inputs for outputs, inputs in shapes),
        "multiplies outputs with inputs: A has rank x inputs numbers, B outputs x rank": layers
        * sum(rank * outputs * inputs for outputs, inputs in shapes),
        "leaves B out": layers * sum(rank * inputs for _, inputs in shapes),
        "leaves A out": layers * sum(rank * outputs for outputs, _ in shapes),
        "counts the first matrix only": layers * rank * sum(shapes[0]),
    }
    for off, value in known.items():
        expect(got != value, f"the number {off}")
    same_number(
        got, layers * one, "the number", factors={"rank": rank, "layers": layers},
        look="the shapes of A and B",
    )  # fmt: skip


@check("the frozen layer's output, plus (alpha / rank) times what the input gives through A and B.")
def forward(attempt: Any) -> None:
    x, weight, a, b, alpha = _adapter()
    rank, kept = len(a), [t.clone() for t in (x, weight, a, b)]
    base, added = x @ weight.T, x @ a.T @ b.T
    got = attempt(x, weight, a, b, alpha)
    for name, now, before in zip(("x", "weight", "a", "b"), (x, weight, a, b), kept, strict=True):
        unchanged(now, before, name)
    expect(
        not _equal(got, alpha / rank * added),
        "the output lacks the frozen layer: the adapter is added to it",
    )
    for factor, off in (
        (1, "the scale alpha / rank is missing"),
        (alpha, "the low-rank path is multiplied by alpha and not divided by the rank"),
        (1 / rank, "the low-rank path is divided by the rank and not multiplied by alpha"),
        (rank / alpha, "the scale is upside down: alpha / rank is wanted"),
        (alpha // rank, "alpha // rank drops what is behind the point, and is 0 for a small alpha"),
        (-alpha / rank, "the low-rank path is taken off: it has the wrong sign"),
        (alpha / len(weight), "alpha is divided by the outputs, not by the rank"),
        (alpha / x.shape[1], "alpha is divided by the inputs, not by the rank"),
        (alpha / math.sqrt(rank), "alpha is divided by the root of the rank: that is rsLoRA"),
    ):
        expect(not _equal(got, base + factor * added), off, look="the second term of the formula")
    expect(
        not _equal(got, alpha / rank * (base + added)),
        "the frozen layer's output is scaled too: only the low-rank path is",
    )
    same(got, base + alpha / rank * added, "the output", look="shapes: A is [rank, inputs]")


@check("one of the two is zero, so nothing changes; the other is not, so a gradient comes through.")
def start(attempt: Any) -> None:
    inputs, outputs, rank = draw.integer(300, 500), draw.integer(100, 200), draw.integer(8, 12)
    a, b = _tensors(attempt(inputs, outputs, rank), 2, "A and B")
    right = ((rank, inputs), (outputs, rank))
    expect(
        (tuple(b.shape), tuple(a.shape)) != right, "A and B come the wrong way round: A is first"
    )
    for name, got, shape in zip("AB", (a, b), right, strict=True):
        expect(
            tuple(got.shape) == shape,
            f"{name} has the shape {tuple(got.shape)}, not {shape}",
            look="A is [rank, inputs], B is [outputs, rank]",
        )
    expect(
        a.any() or b.any(),
        "A and B are both zero: the gradient of each is a product with the other, so neither would "
        "ever move",
    )
    expect(not (b @ a).any(), "B @ A is not zero: the first output is not the base model's")
    expect(not b.any(), "B is to be zero and A random, as in PEFT; here it is the other way round")
    expect(
        a.std() > 0 and not torch.equal(a[0], a[1]),
        "all rows of A are the same, so all columns of B would learn the same: rank 1, whatever r",
        look="torch.randn",
    )
    again, _ = _tensors(attempt(inputs, outputs, rank), 2, "A and B")
    expect(not torch.equal(a, again), "A is the same each time: draw it at random, without a seed")
    _deviation(a.std().item(), inputs)


def _deviation(got: float, inputs: int) -> None:
    """Whether A's entries have the standard deviation 1 / sqrt(inputs), by a sample of them."""
    wanted = 1 / math.sqrt(inputs)
    known = {
        "it lacks the factor 1 / sqrt(inputs)": 1.0,
        "a uniform distribution between -w and w has the deviation w / sqrt(3)": wanted
        / math.sqrt(3),
        "it is divided by the inputs, not by their root": 1 / inputs,
    }
    for off, value in known.items():
        expect(
            not math.isclose(got, value, rel_tol=0.15),
            f"the standard deviation of A is {got:.3g}: {off}",
        )
    same_number(
        got, wanted, "the standard deviation of A", tolerance=0.15,
        look="what makes x @ A.T as large as x, however many inputs there are",
    )  # fmt: skip


@check("alpha grows with the rank (with its root in rsLoRA), and the scale stays what it was.")
def alpha_for(attempt: Any) -> None:
    alpha, rank = draw.integer(9, 40), draw.integer(12, 16)
    new_rank = draw.integer(20, 128)  # not rank ** 2, where two wrong answers are the same number
    ratio = new_rank / rank
    for rslora, right, other in ((False, ratio, math.sqrt(ratio)), (True, math.sqrt(ratio), ratio)):
        got = attempt(alpha, rank, new_rank, rslora)
        kind = "rsLoRA" if rslora else "plain LoRA"
        case = f"for {kind}, from rank {rank} to {new_rank},"
        divisors = "the roots of the ranks" if rslora else "the ranks"
        known = {
            "the old alpha is given: at another rank it makes another scale": alpha,
            "that is the scale, not alpha": alpha * right / (new_rank**0.5 if rslora else new_rank),
            "it is upside down: at a higher rank alpha has to be larger": alpha / right,
            f"the scale divides by {divisors}, so alpha grows with those": alpha * other,
        }
        for off, value in known.items():
            expect(not _is(got, value), f"{case} {off}")
        same_number(got, float(alpha * right), f"{case} alpha", look="the scale before and after")


@check("one matrix of the old size says the same as the frozen layer with its adapter.")
def merge(attempt: Any) -> None:
    rank, width = draw.integer(2, 4), draw.integer(6, 9)
    alpha = 3 * rank + 1
    for transposed in (False, True):
        for outputs in (width, width + 3):  # a square matrix hides swapped axes from PyTorch
            a, b = draw.tensor(rank, width), draw.tensor(outputs, rank)
            shape = (width, outputs) if transposed else (outputs, width)
            weight = draw.tensor(*shape)
            kept = weight.clone()
            got = attempt(weight, a, b, alpha, transposed)
            expect(
                torch.equal(weight, kept),
                "the frozen weight itself was changed, and could not be had back",
                look="operations that work in place, such as +=",
            )
            update = (b @ a).T if transposed else b @ a
            _merged(got, kept, update, alpha, rank, transposed)


def _merged(
    got: Any, weight: Tensor, update: Tensor, alpha: int, rank: int, transposed: bool
) -> None:
    """Whether this is weight + (alpha / rank) x update, both as the layer holds its weight."""
    kind = f"for a weight [{'inputs, outputs' if transposed else 'outputs, inputs'}]"
    scale = alpha / rank
    expect(
        not _equal(got, scale * update) and not _equal(got, update),
        "that is the update alone: add it to the weight",
    )
    if update.shape == update.T.shape:
        expect(
            not _equal(got, weight + scale * update.T),
            f"{kind} the update is added the wrong way round: transpose it",
        )
    expect(
        isinstance(got, Tensor) and got.shape == weight.shape,
        f"{kind} of shape {tuple(weight.shape)} the result has another shape",
        look="B @ A, which is [outputs, inputs], and when to transpose it",
    )
    factors = {"alpha / rank": scale, "alpha": alpha, "rank": rank}
    same(got - weight, scale * update, f"{kind} the update", factors=factors,
         look="the scale, and the order of B and A")  # fmt: skip


@check("dropout is for the low-rank path alone, and for training alone; the scale is back.")
def repaired(attempt: Any) -> None:
    x, weight, a, b, alpha = _adapter()
    rank, share = len(a), 0.5
    scale = alpha / rank
    wanted = x @ weight.T + scale * x @ a.T @ b.T
    quiet = attempt(x, weight, a, b, alpha, 0.0, True)
    expect(
        not _equal(quiet, x @ weight.T + x @ a.T @ b.T),
        "the scale is still missing",
    )
    same(quiet, wanted, "the output without dropout", look="(alpha / rank)")
    expect(
        _equal(attempt(x, weight, a, b, alpha, share, False), wanted),
        "outside of training inputs are dropped too, so that answers differ from call to call",
        look="the argument `training` of F.dropout, which is True if it is not given",
    )
    zero = torch.zeros_like(b)
    expect(
        _equal(attempt(x, weight, a, zero, alpha, share, True), x @ weight.T),
        "in training the frozen layer's own input is dropped as well",
        look="which of the two paths gets the dropped input",
    )
    _drops(attempt, draw.integer(200, 300), share)


def _drops(attempt: Any, width: int, share: float) -> None:
    """With A, B = 1, weight = 0 and alpha = rank the low-rank path is seen by itself."""
    one, nothing = torch.eye(width), torch.zeros(width, width)
    got = attempt(torch.ones(1, width), nothing, one, one, width, share, True)
    same(got * 0, torch.zeros(1, width), "the output in training")
    expect(
        not _equal(got, torch.ones(1, width)),
        "in training nothing is dropped from the low-rank path",
        look="F.dropout(x, dropout, training)",
    )
    rest = got[got != 0]
    expect(
        0.2 * width < len(rest) < 0.8 * width
        and torch.allclose(rest, torch.full_like(rest, 1 / (1 - share))),
        "what is left after dropout should be divided by 1 - dropout, half of it zero here",
        look="F.dropout, which does both, on the input of A",
    )


@check("the largest singular values, cut after r: no adapter of that rank comes closer.")
def best_adapter(attempt: Any) -> None:
    outputs, inputs, rank = draw.integer(9, 12), draw.integer(6, 8), draw.integer(2, 4)
    update = draw.tensor(outputs, inputs)
    kept = update.clone()
    a, b = _tensors(attempt(update, rank), 2, "A and B")
    unchanged(update, kept, "the update")
    expect(
        (tuple(a.shape), tuple(b.shape)) != ((outputs, rank), (rank, inputs)),
        "A and B come the wrong way round: A is first",
    )
    for name, got, shape in (("A", a, (rank, inputs)), ("B", b, (outputs, rank))):
        expect(
            tuple(got.shape) == shape,
            f"{name} has the shape {tuple(got.shape)}, not {shape}",
            look="which rows of Vh and which columns of U are kept",
        )
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    product, top = b @ a, slice(rank)
    known = {
        "the singular values are missing: B @ A is U Vh": u[:, top] @ vh[top],
        "the singular values are in both A and B, so that they count twice": u[:, top]
        @ torch.diag(s[top] ** 2)
        @ vh[top],
        "the smallest singular values are kept: they come last": u[:, -rank:]
        @ torch.diag(s[-rank:])
        @ vh[-rank:],
    }
    for off, value in known.items():
        expect(not _equal(product, value), off)
    same(
        product, u[:, top] @ torch.diag(s[top]) @ vh[top], "B @ A",
        look="U, S and Vh of the singular value decomposition",
    )  # fmt: skip


@check(
    "three gradients, by products with thin matrices; the frozen weight only passes the gradient "
    "on."
)
def backward(attempt: Any) -> None:
    x, weight, a, b, alpha = _adapter()
    scale = alpha / len(a)
    grad = draw.tensor(len(x), len(weight))
    got = _tensors(attempt(grad, x, weight, a, b, scale), 3, "the gradients at x, A and B")
    inputs = [t.clone().requires_grad_() for t in (x, a, b)]
    y = inputs[0] @ weight.T + scale * inputs[0] @ inputs[1].T @ inputs[2].T
    right = torch.autograd.grad(y, inputs, grad)
    path = scale * grad @ b @ a
    expect(
        not _equal(got[0], grad @ weight),
        "the gradient at x lacks the part that comes through the adapter",
    )
    expect(
        not _equal(got[0], path),
        "the gradient at x lacks the part that comes through the frozen weight: it is not trained, "
        "but the layers below need it",
    )
    expect(
        not _equal(got[0], grad @ weight + path / scale),
        "the scale is missing in the gradient at x",
    )
    for name, value, wanted, look in zip(
        ("the gradient at x", "the gradient at A", "the gradient at B"), got, right,
        ("y = x W^T + s x A^T B^T, by x", "s (grad B)^T x", "s grad^T (x A^T)"), strict=True,
    ):  # fmt: skip
        same(value, wanted, name, factors={"scale": scale}, look=look)
