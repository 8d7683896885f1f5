"""The checks of chapter 4 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from check_contract import CheckContract

from course_utils.checks import lora


def size(shapes, rank, layers):
    return layers * sum(rank * (outputs + inputs) for outputs, inputs in shapes)


def forward(x, weight, a, b, alpha, factor=None):
    factor = alpha / len(a) if factor is None else factor
    return x @ weight.T + factor * x @ a.T @ b.T


def forward_in_place(x, weight, a, b, alpha):
    weight += alpha / len(a) * b @ a
    return x @ weight.T


def start(inputs, outputs, rank):
    return torch.randn(rank, inputs) / math.sqrt(inputs), torch.zeros(outputs, rank)


def seeded_start(inputs, outputs, rank):
    torch.manual_seed(0)
    return start(inputs, outputs, rank)


def repeated_start(inputs, outputs, rank):
    a, b = start(inputs, outputs, rank)
    return a[:1].repeat(rank, 1), b


def uniform_start(inputs, outputs, rank):
    bound = 1 / math.sqrt(inputs)
    return torch.empty(rank, inputs).uniform_(-bound, bound), torch.zeros(outputs, rank)


def alpha_for(alpha, rank, new_rank, rslora):
    ratio = new_rank / rank
    return alpha * (math.sqrt(ratio) if rslora else ratio)


def merged(weight, a, b, alpha, transposed, factor=None):
    update = (alpha / len(a) if factor is None else factor) * b @ a
    return weight + (update.T if transposed else update)


def merged_in_place(weight, a, b, alpha, transposed):
    update = alpha / len(a) * b @ a
    weight += update.T if transposed else update
    return weight


def merged_wrong_way_round(weight, a, b, alpha, transposed):
    update = alpha / len(a) * b @ a
    return weight + (update if transposed and weight.shape == update.shape else update.T)


def merged_never_transposed(weight, a, b, alpha, transposed):
    update = alpha / len(a) * b @ a
    return weight + (update if weight.shape == update.shape else update.T)


def repaired(x, weight, a, b, alpha, dropout, training):
    dropped = F.dropout(x, dropout, training)
    return x @ weight.T + alpha / len(a) * dropped @ a.T @ b.T


def repaired_without_scale(x, weight, a, b, alpha, dropout, training):
    return x @ weight.T + F.dropout(x, dropout, training) @ a.T @ b.T


def repaired_always_dropping(x, weight, a, b, alpha, dropout, training):
    return repaired(x, weight, a, b, alpha, dropout, True)


def repaired_dropping_all(x, weight, a, b, alpha, dropout, training):
    return forward(F.dropout(x, dropout, training), weight, a, b, alpha)


def repaired_never_dropping(x, weight, a, b, alpha, dropout, training):
    return forward(x, weight, a, b, alpha)


def repaired_by_a_mask(x, weight, a, b, alpha, dropout, training):
    kept = torch.rand_like(x) >= dropout if training else torch.ones_like(x)
    return x @ weight.T + alpha / len(a) * (x * kept) @ a.T @ b.T


def best(update, rank, power=0.5, places=None):
    u, s, vh = torch.linalg.svd(update, full_matrices=False)
    places = slice(rank) if places is None else places(rank)
    return s[places, None] ** power * vh[places], u[:, places] * s[places] ** power


def backward(grad, x, weight, a, b, scale):
    return (
        grad @ weight + scale * grad @ b @ a,
        scale * (grad @ b).T @ x,
        scale * grad.T @ (x @ a.T),
    )


def backward_with(place: int, change: Callable) -> Callable:
    """The right gradients, one of them changed: change(gradient, all arguments)."""

    def attempt(*given):
        found = list(backward(*given))
        found[place] = change(found[place], *given)
        return tuple(found)

    return attempt


RIGHT: dict[str, Callable] = {
    "parameters": size,
    "forward": forward,
    "start": start,
    "alpha_for": alpha_for,
    "merge": merged,
    "repaired": repaired,
    "best_adapter": best,
    "backward": backward,
}
WRONG: list[tuple[str, Callable, str]] = [
    ("parameters", lambda *_: 4_194_304, "the number is"),
    ("parameters", lambda s, r, n: size(s, r, 1), "of one layer"),
    ("parameters", lambda s, r, n: n * sum(o * i for o, i in s), "matrices themselves"),
    ("parameters", lambda s, r, n: n * r * sum(o * i for o, i in s), "multiplies outputs"),
    ("parameters", lambda s, r, n: n * r * sum(i for _, i in s), "leaves B out"),
    ("parameters", lambda s, r, n: n * r * sum(o for o, _ in s), "leaves A out"),
    ("parameters", lambda s, r, n: n * r * sum(s[0]), "first matrix only"),
    ("parameters", lambda s, r, n: size(s, 1, n), "lacks the factor rank"),
    ("parameters", lambda s, r, n: float(size(s, r, n)) + 0.5, "whole number|is too large"),
    ("forward", lambda x, w, a, b, alpha: torch.ones(5, len(w)), "the output is"),
    ("forward", lambda *t: forward(*t, factor=1), "alpha / rank is missing"),
    ("forward", lambda *t: forward(*t, factor=t[4]), "not divided by the rank"),
    ("forward", lambda *t: forward(*t, factor=1 / len(t[2])), "not multiplied by alpha"),
    ("forward", lambda *t: forward(*t, factor=len(t[2]) / t[4]), "upside down"),
    ("forward", lambda *t: forward(*t, factor=t[4] // len(t[2])), "alpha // rank drops"),
    ("forward", lambda *t: forward(*t, factor=-t[4] / len(t[2])), "wrong sign"),
    ("forward", lambda *t: forward(*t, factor=t[4] / len(t[1])), "by the outputs"),
    ("forward", lambda *t: forward(*t, factor=t[4] / len(t[2]) ** 0.5), "rsLoRA"),
    ("forward", lambda x, w, a, b, s: s / len(a) * x @ a.T @ b.T, "lacks the frozen layer"),
    ("forward", lambda x, w, a, b, s: forward(x, s / len(a) * w, a, b, s), "is scaled too"),
    ("forward", lambda x, w, a, b, s: x @ w.T + x @ a @ b, "your code stopped at"),
    ("forward", forward_in_place, "weight was changed"),
    ("start", lambda i, o, r: (torch.zeros(r, i), torch.zeros(o, r)), "both zero"),
    ("start", lambda i, o, r: (torch.randn(r, i), torch.randn(o, r)), "is not zero"),
    ("start", lambda i, o, r: (torch.zeros(r, i), torch.randn(o, r)), "other way round"),
    ("start", lambda i, o, r: start(i, o, r)[::-1], "wrong way round"),
    ("start", lambda i, o, r: (torch.randn(i, r), torch.zeros(r, o)), "A has the shape"),
    ("start", lambda i, o, r: (torch.randn(r, i), torch.zeros(o, r)), "sqrt\\(inputs\\)"),
    ("start", lambda i, o, r: (torch.ones(r, i), torch.zeros(o, r)), "rows of A are the same"),
    ("start", repeated_start, "rows of A are the same"),
    ("start", seeded_start, "same each time"),
    ("start", uniform_start, "sqrt\\(3\\)"),
    ("start", lambda i, o, r: torch.randn(r, i), "2 tensors are wanted"),
    ("alpha_for", lambda *_: 0.003, "alpha is 0.003"),
    ("alpha_for", lambda alpha, *_: alpha, "old alpha"),
    ("alpha_for", lambda alpha, old, new, rs: alpha * old / new, "upside down"),
    ("alpha_for", lambda alpha, old, new, rs: alpha * new / old, "roots of the ranks"),
    ("alpha_for", lambda alpha, old, new, rs: alpha * (new / old) ** 0.5, "the ranks"),
    ("alpha_for", lambda alpha, old, *_: alpha / old, "that is the scale"),
    ("alpha_for", lambda *_: None, "returns nothing"),
    ("merge", lambda w, *_: torch.ones_like(w), "the update"),
    ("merge", lambda w, *_: w, "the update is zero"),
    ("merge", lambda *t: merged(*t, factor=1), "lacks the factor alpha / rank"),
    ("merge", lambda *t: merged(*t, factor=t[3]), "factor rank .* once too often"),
    ("merge", lambda *t: merged(*t, factor=-t[3] / len(t[1])), "wrong sign"),
    ("merge", lambda *t: merged(*t) - t[0], "update alone"),
    ("merge", merged_in_place, "weight itself was changed"),
    ("merge", merged_wrong_way_round, "wrong way round"),
    ("merge", merged_never_transposed, "wrong way round"),
    ("merge", lambda w, a, b, alpha, _: w + alpha / len(a) * a @ b, "your code stopped at"),
    ("repaired", lambda x, w, *_: x @ w.T, "without dropout"),
    ("repaired", repaired_without_scale, "scale is still missing"),
    ("repaired", repaired_always_dropping, "outside of training"),
    ("repaired", repaired_dropping_all, "frozen layer's own input"),
    ("repaired", repaired_never_dropping, "nothing is dropped"),
    ("repaired", repaired_by_a_mask, "divided by 1 - dropout"),
    ("best_adapter", lambda u, r: (torch.ones(r, u.shape[1]), torch.ones(len(u), r)), "B @ A"),
    ("best_adapter", lambda u, r: best(u, r, power=0), "singular values are missing"),
    ("best_adapter", lambda u, r: best(u, r, power=1), "count twice"),
    ("best_adapter", lambda u, r: best(u, r, places=lambda n: slice(-n, None)), "smallest"),
    ("best_adapter", lambda u, r: best(u, r)[::-1], "wrong way round"),
    ("best_adapter", lambda u, r: best(u, r + 1), "A has the shape"),
    ("best_adapter", lambda u, r: (-best(u, r)[0], best(u, r)[1]), "wrong sign"),
    ("backward", lambda g, x, w, a, b, s: (x, a, b), "the gradient at x"),
    ("backward", lambda g, x, w, a, b, s: (a, b), "3 tensors"),
    ("backward", backward_with(0, lambda d, g, x, w, a, b, s: g @ w), "lacks .* the adapter"),
    ("backward", backward_with(0, lambda d, g, x, w, a, b, s: d - g @ w), "frozen weight"),
    ("backward", backward_with(0, lambda d, g, x, w, a, b, s: g @ w + g @ b @ a), "scale is miss"),
    ("backward", backward_with(1, lambda d, *t: d / t[-1]), "at A lacks the factor scale"),
    ("backward", backward_with(2, lambda d, *t: d / t[-1]), "at B lacks the factor scale"),
    ("backward", backward_with(2, lambda d, *t: d.T), "at B .*axes are swapped"),
    ("backward", backward_with(1, lambda d, *t: -d), "at A has the wrong sign"),
]


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_singular_values_may_go_to_either_side(power: float) -> None:
    def attempt(update, rank):
        u, s, vh = torch.linalg.svd(update, full_matrices=False)
        return s[:rank, None] ** power * vh[:rank], u[:, :rank] * s[:rank] ** (1 - power)

    lora.best_adapter(attempt)


class TestLora(CheckContract):
    topic, right, wrong = lora, RIGHT, WRONG
