"""Checks of chapter 3: bytes of a training, rounding in bf16, AdamW, accumulation, one batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import check, draw, expect, same, same_items, same_number, unchanged

GIB = 2**30


def _is(got: Any, wanted: Tensor) -> bool:
    """Whether the attempt is this tensor."""
    alike = isinstance(got, Tensor) and got.shape == wanted.shape
    return alike and torch.allclose(got.detach().double(), wanted.detach().double(), 1e-4, 1e-7)


def _not_one_of(got: Any, known: Mapping[str, Tensor], wanted: Tensor, what: str) -> None:
    """Say which of the usual mistakes the attempt makes, if it makes one of them."""
    if _is(got, wanted):
        return
    for mistake, value in known.items():
        expect(not _is(got, value), f"{what} {mistake}")


@check("weights, gradients and two averages: bytes per parameter times parameters, over 2^30.")
def training_gib(attempt: Any) -> None:
    parameters = draw.integer(100, 9_000) * 1_000_003
    weights, gradients, state = draw.pick(
        [(4, 2, 8), (2, 4, 8), (2, 1, 8), (4, 1, 8), (4, 8, 1)]  # each mistake gives another sum
    )
    got = attempt(parameters, weights, gradients, state)
    look = "the sum: weights, gradients, and a state for each of AdamW's averages"
    known = {
        "counts one optimizer state: AdamW keeps two numbers for each parameter": (
            weights + gradients + state
        ),
        "lacks the gradients": weights + 2 * state,
        "lacks the weights": gradients + 2 * state,
        "lacks the optimizer's states": weights + gradients,
        "counts the weights alone": weights,
    }
    wanted = parameters * (weights + gradients + 2 * state) / GIB
    near = isinstance(got, int | float) and math.isclose(got, wanted, rel_tol=1e-4)
    for mistake, size in known.items():
        value = parameters * size / GIB
        same_size = isinstance(got, int | float) and math.isclose(got, value, rel_tol=1e-4)
        expect(near or not same_size, f"the result {mistake}")
    same_number(got, float(wanted), "the result", look=look)


@check("in bf16 an update survives only if it reaches half the distance to the next number.")
def survives(attempt: Any) -> None:
    weight = draw.tensor(40)
    weight = (weight + 0.05 * weight.sign()).bfloat16()
    update = weight.float() * 2.0 ** torch.randint(-12, -3, (40,)) * (0.9 + 0.2 * torch.rand(40))
    update *= torch.where(torch.rand(40) < 0.5, -1.0, 1.0)
    update[:2] = weight[:2].float() * torch.tensor([2.0**-12, 2.0**-4])  # one of each, always
    kept = weight.clone()
    got = attempt(weight, update)
    unchanged(weight, kept, "the weight")
    wanted = (weight.float() - update).bfloat16() != weight
    expect(
        isinstance(got, Tensor) and got.dtype == torch.bool,
        "the result should be a tensor of truth values, one for each weight",
        look="a comparison such as new != weight",
    )
    expect(
        not (got.shape == wanted.shape and bool(got.all())),
        "every update is said to survive: the new weight was not rounded to bf16",
        look="where you convert to torch.bfloat16: it belongs after the subtraction",
    )
    expect(
        not (got.shape == wanted.shape and torch.equal(got, ~wanted)),
        "the result is the wrong way round: it is True where the update is lost",
    )
    same_items(got, wanted.tolist(), "the result", look="how bf16 rounds: let torch do it")


def _adamw(w: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, s: Mapping[str, Any]) -> Any:
    """(new weight, new mean, new square) as torch.optim.AdamW computes them."""
    b1, b2 = s["betas"]
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    step = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + s["eps"])
    return w * (1 - s["lr"] * s["weight_decay"]) - s["lr"] * step, m, v


@check("AdamW divides a running mean of gradients by their running size, and decays apart from it.")
def adamw_step(attempt: Any) -> None:
    w, g, m = draw.tensor(4, 5), draw.tensor(4, 5), draw.tensor(4, 5)
    v, t = draw.tensor(4, 5) ** 2 + 0.1, draw.integer(2, 6)
    betas = (draw.number(0.7, 0.9), draw.number(0.9, 0.97))
    s = {"lr": 0.1, "betas": betas, "eps": 0.3, "weight_decay": 0.5}  # so that its place shows
    before = [x.clone() for x in (w, g, m, v)]
    got = attempt(w, g, m, v, t, **s)
    for now, then, name in zip((w, g, m, v), before, ("weight", "gradient", "mean", "square"),
                               strict=True):  # fmt: skip
        unchanged(now, then, f"the {name}")
    expect(
        isinstance(got, tuple | list) and len(got) == 3,
        "three tensors should be returned: the new weight, the new mean, the new square",
        look="the return line",
    )
    new, mean, square = _adamw(w, g, m, v, t, s)
    b1, b2 = betas
    swapped = {"has its two factors swapped": (1 - b1) * m + b1 * g}
    _not_one_of(got[1], swapped, mean, "the new mean")
    same(got[1], mean, "the new mean", look="b1 * mean + (1 - b1) * gradient")
    plain = {"averages the gradient, not its square": b2 * v + (1 - b2) * g}
    _not_one_of(got[2], plain, square, "the new square")
    same(got[2], square, "the new square", look="b2 * square + (1 - b2) * gradient * gradient")
    _not_one_of(got[0], _wrong_weights(w, g, m, v, t, s), new, "the new weight")
    same(got[0], new, "the new weight", look="bias correction, the root, eps, and the decay")


def _wrong_weights(w, g, m, v, t, s) -> dict[str, Tensor]:  # noqa: PLR0913
    """What the usual mistakes give for the new weight."""
    (b1, b2), lr, eps, decay = s["betas"], s["lr"], s["eps"], s["weight_decay"]
    new, mean, square = _adamw(w, g, m, v, t, s)
    faded = w * (1 - lr * decay)
    step = (faded - new) / lr
    l2 = _adamw(w, g + decay * w, m, v, t, {**s, "weight_decay": 0.0})[0]
    return {
        "moves uphill: the step has to be subtracted": faded + lr * step,
        "lacks the bias correction": faded - lr * mean / (square.sqrt() + eps),
        "lacks the weight decay": w - lr * step,
        "decays by weight_decay alone: it is lr * weight_decay": w * (1 - decay) - lr * step,
        "lacks the root of the averaged square": (
            faded - lr * (mean / (1 - b1**t)) / (square / (1 - b2**t) + eps)
        ),
        "has eps under the root: add it to the root": (
            faded - lr * (mean / (1 - b1**t)) / (square / (1 - b2**t) + eps).sqrt()
        ),
        "is corrected with step - 1: the first step is number 1": (
            _adamw(w, g, m, v, t - 1, s)[0] if t > 1 else new
        ),
        "has the decay inside the gradient (that is Adam with L2): decoupled, it acts on the "
        "weight itself": l2,
        "lacks the learning rate": faded - step,
    }


@check("summed losses over the number of all targets: parts give the gradient of the whole.")
def accumulated_gradient(attempt: Any) -> None:
    width, classes = draw.integer(4, 6), draw.integer(3, 5)
    sizes = draw.sample(range(1, 12), 3)
    parts = [(draw.tensor(n, width), torch.randint(0, classes, (n,))) for n in sizes]
    weight = draw.tensor(classes, width).requires_grad_()
    got = attempt(weight, parts)

    def gradient(part: Any, reduction: str) -> Tensor:
        loss = F.cross_entropy(part[0] @ weight.t(), part[1], reduction=reduction)
        return torch.autograd.grad(loss, weight)[0]

    summed = [gradient(part, "sum") for part in parts]
    means = [gradient(part, "mean") for part in parts]
    wanted = sum(summed) / sum(sizes)
    known = {
        "averages the parts' means: a part with few targets then counts as much as a large one": (
            sum(means) / len(parts)
        ),
        "adds the parts' means, as if each part were a step of its own": sum(means),
        "is not divided by the number of targets": sum(summed),
        "is divided by the number of parts: divide by the number of targets": (
            sum(summed) / len(parts)
        ),
        "is that of the last part: the parts' gradients have to be added": means[-1],
        "is that of the last part alone, over all targets: the parts' gradients have to be added": (
            summed[-1] / sum(sizes)
        ),
    }
    _not_one_of(got, known, wanted, "the gradient")
    same(got, wanted, "the gradient", look="the sum of losses of each part, and one divisor")


class _Tiny(nn.Module):
    """A next-token model of one table and one layer, called as the course's models are."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.head(torch.tanh(self.table(input_ids)))
        return _Output(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


class _Output:
    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


@check("a sound loop drives the loss on one batch to almost nothing.", rounds=2)
def overfit(attempt: Any) -> None:
    model, steps, rate = _Tiny(60, 24), draw.integer(70, 90), 0.05
    ids = torch.randperm(60)[:36].view(4, 9)  # no token twice, so each has one successor
    batch = {"input_ids": ids, "labels": ids}
    reference = copy.deepcopy(model)
    start = [p.detach().clone() for p in model.parameters()]
    got = attempt(model, batch, rate, steps)
    expect(
        isinstance(got, list) and all(isinstance(x, int | float) for x in got),
        "the result should be a list of numbers, one loss a step",
        look="loss.item()",
    )
    expect(len(got) == steps, f"there are {len(got)} losses for {steps} steps", look="the loop")
    moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))
    expect(moved, "no weight of the model has moved", look="optimizer.step()")
    wanted = _losses(reference, batch, rate, steps, fresh=True)
    piled = _losses(_put_back(reference, start), batch, rate, steps, fresh=False)
    right = _same_curve(got, wanted)
    expect(
        right or not _same_curve(got, piled),
        "the gradients of all earlier steps are still added in",
        look="optimizer.zero_grad(), once a step",
    )
    expect(
        math.isclose(got[0], wanted[0], rel_tol=1e-3),
        "the first loss should be that of the untouched model: note it before the step",
    )
    expect(got[-1] < got[0], "the loss rises", look="the sign of the loss")
    expect(
        got[-1] < 0.05,
        f"the loss on one batch ends at {got[-1]:.3f} and should fall below 0.05",
        look="the optimizer (AdamW with the given learning rate) and the order of its calls",
    )
    expect(
        right,
        "the losses fall, but not as AdamW's with the given learning rate and without weight decay "
        "would",
        look="the arguments of torch.optim.AdamW",
    )


def _same_curve(got: list[float], wanted: list[float]) -> bool:
    """Whether these are the same losses: the same steps give them to a few digits."""
    return all(
        math.isclose(a, b, rel_tol=5e-3, abs_tol=1e-5) for a, b in zip(got, wanted, strict=True)
    )


def _put_back(model: nn.Module, start: list[Tensor]) -> nn.Module:
    """The model put back to where it began."""
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), start, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    return model


def _losses(model: nn.Module, batch: Any, rate: float, steps: int, *, fresh: bool) -> list[float]:
    """The loop, with gradients emptied at each step or not."""
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0), []
    for _ in range(steps):
        if fresh:
            optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
