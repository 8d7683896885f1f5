"""Checks of chapter 1: loss, perplexity, next-token pairs, trained share, greedy decoding."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import check, draw, expect, same, same_items, same_number, unchanged


def _near(got: Any, value: float) -> bool:
    """Whether a number, or a tensor of one, is this value."""
    try:
        return math.isclose(float(got), value, rel_tol=1e-4)
    except (TypeError, ValueError):
        return False


@check("a model that knows nothing is off by ln(vocabulary) nats at every token.")
def random_loss(attempt: Any) -> None:
    vocabulary = draw.integer(50, 60_000)
    got = attempt(vocabulary)
    expect(
        not _near(got, math.log2(vocabulary)),
        "the loss is in bits: it is the logarithm to base 2",
        look="math.log, which is the natural logarithm",
    )
    expect(
        not _near(got, math.log10(vocabulary)),
        "the loss is the logarithm to base 10",
        look="math.log, which is the natural logarithm",
    )
    expect(
        not _near(got, 1 / vocabulary),
        "that is the probability of each token; the loss is its negative logarithm",
    )
    same_number(got, math.log(vocabulary), "the loss", look="minus the logarithm of 1 / vocabulary")


@check("cross-entropy is the negative log-probability of the right token, averaged over tokens.")
def cross_entropy(attempt: Any) -> None:
    tokens, vocabulary = draw.integer(4, 7), draw.integer(9, 15)
    logits, targets = 3 * draw.tensor(tokens, vocabulary), draw.tokens(tokens, vocabulary=9)
    kept = logits.clone()
    got = attempt(logits, targets)
    unchanged(logits, kept, "the tensor of logits")
    known = {
        "is the negative logit of the target: the softmax is missing": -logits[
            torch.arange(tokens), targets
        ].mean(),
        "is the mean probability of the targets: the logarithm is missing": logits.softmax(1)[
            torch.arange(tokens), targets
        ].mean(),
        "takes the softmax over the tokens: it belongs over the vocabulary, the last axis": (
            -logits.log_softmax(0)[torch.arange(tokens), targets].mean()
        ),
        "averages over the whole vocabulary, not over the target tokens alone": (
            -logits.log_softmax(1).mean()
        ),
    }
    for off, value in known.items():
        expect(not _near(got, value.item()), f"the loss {off}")
    same(got, F.cross_entropy(logits, targets), "the loss", factors={"number of tokens": tokens})
    large = attempt(logits + 1000, targets)
    expect(
        isinstance(large, Tensor) and large.isfinite(),
        "with logits near 1000 the loss is not finite: exp(1000) overflows",
        look="log_softmax, or take the largest logit off all of them first",
    )


@check("each token is predicted from the ones before it: the targets are the inputs, one later.")
def next_token_pairs(attempt: Any) -> None:
    ids = draw.tokens(draw.integer(2, 3), draw.integer(5, 8))
    got = attempt(ids)
    expect(isinstance(got, tuple) and len(got) == 2, "a pair is wanted: return inputs and targets")
    inputs, targets = got
    expect(
        all(isinstance(part, Tensor) and part.ndim == 2 for part in got),
        "inputs and targets should be tensors of two axes, like ids",
        look="slices such as ids[:, 1:], which keep both axes",
    )
    expect(
        not (torch.equal(inputs, ids[:, 1:]) and torch.equal(targets, ids[:, :-1])),
        "inputs and targets are the wrong way round: this model would predict the past",
    )
    expect(
        not torch.equal(targets, inputs),
        "inputs and targets are the same: a model that copies its input would have no loss",
        look="which token comes after each input",
    )
    expect(
        not torch.equal(targets, ids.roll(-1, 1)),
        "the last target is the first token of the row: nothing follows the last token, so it is "
        "no input",
    )
    expect(
        len(inputs) == len(targets) == len(ids),
        f"{len(ids)} rows went in, {len(inputs)} inputs and {len(targets)} targets came out: "
        "shift along the tokens (axis 1), not along the rows",
    )
    same(inputs, ids[:, :-1], "the tensor of inputs", look="where each row of inputs ends")
    same(targets, ids[:, 1:], "the tensor of targets", look="where each row of targets begins")


@check("perplexity is exp of the mean loss per token, so long texts count for more.")
def perplexity(attempt: Any) -> None:
    texts = draw.integer(3, 5)
    losses = [draw.number(0.5, 4) for _ in range(texts)]
    tokens = [draw.integer(2, 20) * 10 ** (i % 2) for i in range(texts)]
    mean = sum(map(float.__mul__, losses, map(float, tokens))) / sum(tokens)
    got = attempt(list(losses), list(tokens))
    known = {
        "is of the mean of the texts' means: a text of 200 tokens counts as one of 2": math.exp(
            sum(losses) / texts
        ),
        "is the mean of the texts' perplexities: average the losses first, exp comes last": (
            sum(math.exp(loss) * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
        ),
        "is the mean of the texts' perplexities, each counted once": (
            sum(map(math.exp, losses)) / texts
        ),
        "is still the loss in nats: exp is missing": mean,
        "is a power of 2: losses in nats belong to exp": 2**mean,
        "is exp of minus the loss, a mean probability: the sign is wrong": math.exp(-mean),
    }
    for off, value in known.items():
        if not _near(value, math.exp(mean)):  # one long text can make a wrong way right
            expect(not _near(got, value), f"the perplexity {off}")
    same_number(got, math.exp(mean), "the perplexity", look="what you divide by")


@check("the trained share counts numbers, not tensors, and only those that may change.")
def trained_share(attempt: Any) -> None:
    model, share = _half_frozen()
    trained = [p.requires_grad for p in model.parameters()]
    got = attempt(model)
    now = [p.requires_grad for p in model.parameters()]
    unchanged(now, trained, "which parameters are trained")
    expect(
        not _near(got, sum(trained) / len(trained)),
        "the share is one of tensors: a large matrix counts as much as a bias",
        look="numel(), the numbers in a tensor",
    )
    expect(
        not _near(got, 1 - share),
        "that is the share that is frozen: requires_grad is True for what is trained",
    )
    expect(
        not _near(got, share / (1 - share)),
        "the trained parameters are divided by the frozen ones: divide by all of them",
    )
    same_number(got, share, "the share", look="the sums over model.parameters()")


def _half_frozen() -> tuple[nn.Module, float]:
    """Four layers, two of them frozen, and the share of numbers that are trained.

    At 1/2, 1/3 and 0.382 two mistakes, or one and the right answer, would give one number.
    """
    while True:
        layers = [draw.linear(draw.integer(3, 9), draw.integer(3, 9)) for _ in range(4)]
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in layers]
        share = sum(sizes[2:]) / sum(sizes)
        if all(abs(share - same) > 0.01 for same in (1 / 2, 1 / 3, 0.382)):
            break
    for layer in layers[:2]:
        layer.requires_grad_(False)
    return nn.Sequential(*draw.sample(layers, 4)), share


class _Chain:
    """A model of few words that follow each other in one circle, `order`.

    Called with token ids it gives logits [length, vocabulary], the next word's being the largest.
    """

    def __init__(self, vocabulary: int) -> None:
        self.order = torch.randperm(vocabulary).tolist()
        self.after = dict(zip(self.order, [*self.order[1:], self.order[0]], strict=True))
        self.noise = torch.rand(vocabulary, vocabulary)

    def __call__(self, ids: list[int]) -> Tensor:
        logits = self.noise[torch.tensor(ids)].clone()
        for place, token in enumerate(ids):
            logits[place, self.after[token]] = 2.0
        return logits


@check("greedy decoding appends the likeliest token, again and again, until the stop token.")
def greedy(attempt: Any) -> None:
    vocabulary = draw.integer(12, 20)
    model = _Chain(vocabulary)
    prompt = [model.order[3], model.order[0]]
    given, room = list(prompt), draw.integer(3, 5)
    endless = attempt(model, prompt, vocabulary + 1, room)
    unchanged(prompt, given, "the list ids")
    wanted = model.order[1 : room + 1]
    expect(isinstance(endless, list), "the answer should be a list of token ids")
    expect(
        endless[: len(given)] != given,
        "the answer begins with the prompt: return the new tokens alone",
    )
    expect(
        endless[:1] != [model.order[4]],
        "the first new token follows the first token of the prompt, not the last",
        look="which row of the logits belongs to the last token",
    )
    expect(
        len(endless) < 2 or len(set(endless)) > 1,
        "the same token comes each time: append it to the ids before you ask the model again",
    )
    expect(
        len(endless) <= room, f"{len(endless)} tokens came, and limit was {room}", look="the loop"
    )
    same_items(endless, wanted, "the answer without a stop token")
    stop = model.order[room]
    stopped = attempt(model, list(prompt), stop, room + 4)
    expect(
        stopped != model.order[1 : room + 1],
        "the stop token is part of the answer: leave the loop before you append it",
    )
    expect(
        len(stopped) < room + 4, "it goes on behind the stop token", look="where the loop is left"
    )
    same_items(stopped, model.order[1:room], "the answer up to the stop token")
