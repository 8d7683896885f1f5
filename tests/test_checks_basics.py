"""The checks of chapter 1 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from check_contract import CheckContract

from course_utils.checks import basics


def greedy(model, ids, stop, limit):
    ids, answer = list(ids), []
    for _ in range(limit):
        token = model(ids)[-1].argmax().item()
        if token == stop:
            break
        ids.append(token)
        answer.append(token)
    return answer


def greedy_with_prompt(model, ids, stop, limit):
    return list(ids) + greedy(model, ids, stop, limit)


def greedy_first_row(model, ids, stop, limit):
    return [model(ids)[0].argmax().item()] * limit


def greedy_not_fed_back(model, ids, stop, limit):
    return [model(ids)[-1].argmax().item() for _ in range(limit)]


def greedy_past_stop(model, ids, stop, limit):
    return greedy(model, ids, -1, limit)


def greedy_with_stop(model, ids, stop, limit):
    answer = greedy(model, ids, stop, limit)
    return answer if len(answer) == limit else [*answer, stop]


def greedy_one_too_many(model, ids, stop, limit):
    return greedy(model, ids, stop, limit + 1)


def greedy_one_too_few(model, ids, stop, limit):
    return greedy(model, ids, stop, limit - 1)


def greedy_in_place(model, ids, stop, limit):
    answer = greedy(model, ids, stop, limit)
    ids += answer
    return answer


def weighted(losses, tokens):
    return sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)


def share(model):
    some = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return some / sum(p.numel() for p in model.parameters())


def share_of_tensors(model):
    flags = [p.requires_grad for p in model.parameters()]
    return sum(flags) / len(flags)


def share_of_frozen(model):
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return share(model) * sum(p.numel() for p in model.parameters()) / frozen


def picked(logits, targets):
    return logits[torch.arange(len(targets)), targets]


def naive(logits, targets):
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -picked(shares, targets).log().mean()


RIGHT: dict[str, Callable] = {
    "random_loss": math.log,
    "cross_entropy": lambda logits, targets: -picked(logits.log_softmax(1), targets).mean(),
    "next_token_pairs": lambda ids: (ids[:, :-1], ids[:, 1:]),
    "perplexity": lambda losses, tokens: math.exp(weighted(losses, tokens)),
    "trained_share": share,
    "greedy": greedy,
}
WRONG: list[tuple[str, Callable, str]] = [
    ("random_loss", lambda v: 7.5, "the loss is 7.5"),
    ("random_loss", math.log2, "in bits"),
    ("random_loss", math.log10, "base 10"),
    ("random_loss", lambda v: -math.log(v), "wrong sign"),
    ("random_loss", lambda v: 1 / v, "probability of each token"),
    ("cross_entropy", lambda a, t: torch.tensor(2.0), "the loss is"),
    ("cross_entropy", lambda a, t: -RIGHT["cross_entropy"](a, t), "wrong sign"),
    ("cross_entropy", lambda a, t: -picked(a, t).mean(), "softmax is missing"),
    ("cross_entropy", lambda a, t: -picked(a.log_softmax(0), t).mean(), "last axis"),
    ("cross_entropy", lambda a, t: picked(a.softmax(1), t).mean(), "logarithm is missing"),
    ("cross_entropy", lambda a, t: -a.log_softmax(1).mean(), "whole vocabulary"),
    ("cross_entropy", lambda a, t: F.cross_entropy(a, t, reduction="sum"), "number of tokens"),
    ("cross_entropy", lambda a, t: F.cross_entropy(a, t, reduction="none"), "shape"),
    ("cross_entropy", naive, "exp\\(1000\\) overflows"),
    ("next_token_pairs", lambda ids: (ids, ids), "are the same"),
    ("next_token_pairs", lambda ids: (ids[:, 1:], ids[:, :-1]), "wrong way round"),
    ("next_token_pairs", lambda ids: (ids, ids.roll(-1, 1)), "first token of the row"),
    ("next_token_pairs", lambda ids: (ids[:-1], ids[1:]), "axis 1"),
    ("next_token_pairs", lambda ids: (ids[:, :-2], ids[:, 2:]), "inputs"),
    ("next_token_pairs", lambda ids: (ids[:, :-1], ids[:, -1:]), "targets"),
    ("next_token_pairs", lambda ids: ids[:, 1:], "a pair is wanted"),
    ("perplexity", lambda a, n: 10.0, "the perplexity is 10"),
    ("perplexity", lambda a, n: math.exp(sum(a) / len(a)), "mean of the texts' means"),
    ("perplexity", lambda a, n: sum(map(math.exp, a)) / len(a), "texts' perplexities"),
    ("perplexity", weighted, "exp is missing"),
    ("perplexity", lambda a, n: 2 ** weighted(a, n), "power of 2"),
    ("perplexity", lambda a, n: math.exp(-weighted(a, n)), "sign is wrong"),
    ("trained_share", lambda model: 0.25, "the share is"),
    ("trained_share", lambda model: 100 * share(model), "per cent"),
    ("trained_share", share_of_tensors, "numel"),
    ("trained_share", lambda model: 1 - share(model), "frozen"),
    ("trained_share", share_of_frozen, "divide by all"),
    ("greedy", lambda *_: [1, 2, 3], "answer|first new token"),
    ("greedy", greedy_with_prompt, "begins with the prompt"),
    ("greedy", greedy_first_row, "first token of the prompt"),
    ("greedy", greedy_not_fed_back, "same token comes each time"),
    ("greedy", greedy_past_stop, "behind the stop token"),
    ("greedy", greedy_with_stop, "stop token is part"),
    ("greedy", greedy_one_too_many, "limit was"),
    ("greedy", greedy_one_too_few, "lacks the last item"),
    ("greedy", greedy_in_place, "was changed"),
]


def test_torchs_own_cross_entropy_passes() -> None:
    basics.cross_entropy(F.cross_entropy)


class TestBasics(CheckContract):
    topic, right, wrong = basics, RIGHT, WRONG
