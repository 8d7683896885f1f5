"""The checks of chapter 3 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from check_contract import CheckContract

from course_utils.checks import NotYet, full


def gib(n, weights, gradients, state):
    return n * (weights + gradients + 2 * state) / 2**30


def survives(weight, update):
    return (weight.float() - update).bfloat16() != weight


def adamw(w, g, m, v, t, *, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)
    return w * (1 - lr * weight_decay) - lr * step, m, v


def adamw_uncorrected(w, g, m, v, t, *, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return w * (1 - lr * weight_decay) - lr * m / (v.sqrt() + eps), m, v


def adamw_eps_inside(w, g, m, v, t, *, lr, betas, eps, weight_decay):
    b1, b2 = betas
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / (v / (1 - b2**t) + eps).sqrt()
    return w * (1 - lr * weight_decay) - lr * step, m, v


def adamw_uphill(w, g, m, v, t, **s):
    new, m, v = adamw(w, g, m, v, t, **s)
    faded = w * (1 - s["lr"] * s["weight_decay"])
    return 2 * faded - new, m, v


def adamw_no_decay(w, g, m, v, t, **s):
    return adamw(w, g, m, v, t, **{**s, "weight_decay": 0.0})


def adamw_early(w, g, m, v, t, **s):
    return adamw(w, g, m, v, t - 1, **s)


def adamw_plain_square(w, g, m, v, t, **s):
    new, m2, _ = adamw(w, g, m, v, t, **s)
    return new, m2, s["betas"][1] * v + (1 - s["betas"][1]) * g


def adamw_swapped(w, g, m, v, t, **s):
    b1 = s["betas"][0]
    return w, (1 - b1) * m + b1 * g, v


def adamw_in_place(w, g, m, v, t, **s):
    m.mul_(s["betas"][0]).add_(g, alpha=1 - s["betas"][0])
    return w, m, v


def accumulated(weight, parts, reduction="sum", divide=None):
    count = sum(len(targets) for _, targets in parts) if divide is None else divide(parts)
    total = torch.zeros_like(weight)
    for inputs, targets in parts:
        loss = F.cross_entropy(inputs @ weight.t(), targets, reduction=reduction) / count
        total += torch.autograd.grad(loss, weight)[0]
    return total


def mean_of_means(weight, parts):
    return accumulated(weight, parts, "mean", len)


def sum_of_sums(weight, parts):
    return accumulated(weight, parts, "sum", lambda _: 1)


def by_parts(weight, parts):
    return accumulated(weight, parts, "sum", len)


def last_part(weight, parts):
    return accumulated(weight, parts[-1:])


def loop(model, batch, rate, steps, fresh=True, step=True, sign=1.0, decay=0.0):
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay), []
    for _ in range(steps):
        if fresh:
            optimizer.zero_grad()
        loss = model(**batch).loss
        (sign * loss).backward()
        if step:
            optimizer.step()
        losses.append(loss.item())
    return losses


RIGHT = {
    "training_gib": gib,
    "survives": survives,
    "adamw_step": adamw,
    "accumulated_gradient": accumulated,
    "overfit": loop,
}
WRONG: list[tuple[str, Callable[..., Any], str]] = [
    ("training_gib", lambda n, w, g, s: n * (w + g + s) / 2**30, "one optimizer state"),
    ("training_gib", lambda n, w, g, s: n * (w + 2 * s) / 2**30, "gradients"),
    ("training_gib", lambda n, w, g, s: n * (w + g + 2 * s) / 1e9, "GiB or GB"),
    ("training_gib", lambda n, w, g, s: n * w / 2**30, "weights alone"),
    ("training_gib", lambda n, w, g, s: 16.0, "The result is"),
    ("survives", lambda w, u: (w.float() - u) != w.float(), "not rounded to bf16"),
    ("survives", lambda w, u: (w.float() - u).bfloat16() == w, "wrong way round"),
    ("survives", lambda w, u: ((w.float() - u).bfloat16() != w).float().mean(), "truth values"),
    ("survives", lambda w, u: u.abs() > 1e-3, "result"),
    ("survives", lambda w, u: torch.zeros(40, dtype=torch.bool), "differs first"),
    ("adamw_step", adamw_uncorrected, "bias correction"),
    ("adamw_step", adamw_eps_inside, "eps under the root"),
    ("adamw_step", adamw_uphill, "uphill"),
    ("adamw_step", adamw_no_decay, "lacks the weight decay"),
    ("adamw_step", adamw_early, "step - 1"),
    ("adamw_step", adamw_plain_square, "not its square"),
    ("adamw_step", adamw_swapped, "swapped"),
    ("adamw_step", adamw_in_place, "changed by the function"),
    ("adamw_step", lambda w, *_, **__: w, "three tensors"),
    ("accumulated_gradient", mean_of_means, "averages the parts' means"),
    ("accumulated_gradient", sum_of_sums, "not divided"),
    ("accumulated_gradient", by_parts, "number of parts"),
    ("accumulated_gradient", last_part, "last part"),
    ("accumulated_gradient", lambda w, parts: torch.zeros_like(w), "zero everywhere"),
    ("overfit", lambda *a: loop(*a, fresh=False), "earlier steps"),
    ("overfit", lambda *a: loop(*a, step=False), "no weight"),
    ("overfit", lambda *a: loop(*a, sign=-1.0), "rises"),
    ("overfit", lambda m, b, r, n: loop(m, b, r / 50, n), "below 0.05"),
    ("overfit", lambda m, b, r, n: loop(m, b, 0.1, n), "the given learning rate"),
    ("overfit", lambda *a: loop(*a, decay=0.01), "without weight decay"),
    ("overfit", lambda *a: loop(*a)[:-1], "steps"),
    ("overfit", lambda m, b, r, n: [0.0] * n, "no weight"),
    ("overfit", lambda *a: [0.01] * len(loop(*a)), "first loss"),
]


def test_eps_has_its_place(capsys):
    """Whatever numbers are drawn, eps under the root is told from eps beside it."""
    for _ in range(100):
        full.adamw_step(adamw)
        with pytest.raises(NotYet, match="eps under the root"):
            full.adamw_step(adamw_eps_inside)
    assert capsys.readouterr().out.count("Right: ") == 100


class TestFull(CheckContract):
    topic, right, wrong = full, RIGHT, [(n, a, re.escape(said)) for n, a, said in WRONG]
    rounds = 2  # each trains a model
