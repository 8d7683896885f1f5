"""The checks of chapter 10 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
from check_contract import CheckContract
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_utils import models
from course_utils.checks import trouble

IGNORED = -100


# ------------------------------------------------------------- rates


def rates(peak, warmup, updates):
    rest = updates - warmup
    return [
        peak * (step / warmup if step < warmup else (updates - step) / rest)
        for step in range(updates)
    ]


def rates_from_one(peak, warmup, updates):
    rest = max(1, updates - warmup)
    return [
        peak * (step / warmup if step < warmup else (updates - step) / rest)
        for step in range(1, updates + 1)
    ]


def rates_without_decay(peak, warmup, updates):
    return [peak * (min(1, step / warmup) if warmup else 1) for step in range(updates)]


def rates_falling_over_all(peak, warmup, updates):
    return [peak * (s / warmup if s < warmup else 1 - s / updates) for s in range(updates)]


def rates_jumping(peak, warmup, updates):
    rest = updates - warmup
    return [peak * (s / warmup if s < warmup else 1 - s / rest) for s in range(updates)]


def rates_reaching_the_peak(peak, warmup, updates):
    return rates(peak, min(warmup, updates - 1), updates)


# ------------------------------------------------------------- rows


def row_fault(input_ids, labels, vocabulary):
    if len(input_ids) != len(labels):
        return "lengths"
    wanted = [label for label in labels if label != IGNORED]
    if any(not 0 <= token < vocabulary for token in [*input_ids, *wanted]):
        return "ids"
    return "" if any(label != IGNORED for label in labels[1:]) else "nothing to learn"


def without_shift(input_ids, labels, vocabulary):
    fault = row_fault(input_ids, labels, vocabulary)
    first_alone = fault == "nothing to learn" and any(label != IGNORED for label in labels)
    return "" if first_alone else fault


def labels_not_looked_at(input_ids, labels, vocabulary):
    if len(input_ids) == len(labels) and any(not 0 <= t < vocabulary for t in input_ids):
        return "ids"
    fault = row_fault(input_ids, labels, vocabulary)
    return "" if fault == "ids" else fault


def one_too_many(input_ids, labels, vocabulary):
    return row_fault(input_ids, labels, vocabulary + 1)


def zero_is_no_token(input_ids, labels, vocabulary):
    found = len(input_ids) == len(labels) and not all(input_ids)
    return "ids" if found else row_fault(input_ids, labels, vocabulary)


# ------------------------------------------------------------- early stopping


def when_to_stop(losses, patience, better=lambda new, best: new < best):
    best = 0
    for place, loss in enumerate(losses):
        if place and better(loss, losses[best]):
            best = place
        if place - best == patience:
            return best, place
    return best, len(losses) - 1


def best_of_all(losses, patience):
    return losses.index(min(losses)), when_to_stop(losses, patience)[1]


def counted_in_all(losses, patience):
    best = bad = 0
    for place, loss in enumerate(losses[1:], start=1):
        if loss < losses[best]:
            best = place
        else:
            bad += 1
        if bad == patience:
            return best, place
    return best, len(losses) - 1


def against_the_one_before(losses, patience):
    best = bad = 0
    for place, loss in enumerate(losses[1:], start=1):
        best = place if loss < losses[best] else best
        bad = 0 if loss < losses[place - 1] else bad + 1
        if bad == patience:
            return best, place
    return best, len(losses) - 1


# ------------------------------------------------------------- targets


def targets(model, kinds=(nn.Linear, Conv1D)):
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, kinds) and module is not head
        }
    )


def targets_by_name(model):
    names = {n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, LINEAR)}
    return sorted(names - {"lm_head"})


def targets_by_type(model):
    head = model.get_output_embeddings()
    found = {n for n, m in model.named_modules() if type(m) in LINEAR and m is not head}
    return sorted({name.rpartition(".")[2] for name in found})


def targets_in_full(model):
    return [n for n, m in model.named_modules() if isinstance(m, LINEAR)]


def targets_twice(model):
    return [name.rpartition(".")[2] for name in targets_in_full(model)]


def targets_of_anything(model):
    head = model.get_output_embeddings()
    found = {n for n, m in model.named_modules() if hasattr(m, "weight") and m is not head}
    return sorted({name.rpartition(".")[2] for name in found})


LINEAR = (nn.Linear, Conv1D)


# ------------------------------------------------------------- dead adapters


def has_gradient(parameter):
    return parameter.grad is not None and bool(parameter.grad.any())


def dead_adapters(model, alive=has_gradient, counts=lambda name, parameter: True):
    found = {}
    for name, parameter in model.named_parameters():
        layer, mark, _ = name.partition(".lora_")
        if mark and counts(name, parameter):
            found[layer] = found.get(layer, False) or alive(parameter)
    return [layer for layer, learns in found.items() if not learns]


def any_parameter_without(model):
    found = {n.partition(".lora_")[0] for n, p in model.named_parameters() if ".lora_" in n
             and not has_gradient(p)}  # fmt: skip
    return sorted(found)


def by_parameter(model):
    return [n for n, p in model.named_parameters() if ".lora_" in n and not has_gradient(p)]


def every_weight(model):
    return [n for n, p in model.named_parameters() if not has_gradient(p)]


# ------------------------------------------------------------- one update


def one_update(rows, size, backward, optimizer):
    while True:
        try:
            optimizer.zero_grad()
            for part in rows.split(size):
                backward(part, len(part) / len(rows))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        else:
            optimizer.step()
            return size
        size //= 2


def part_by_part(rows, size, backward, optimizer):
    """Right as well: keeps the gradient before each part, and goes back to it."""
    optimizer.zero_grad()
    weight, done = optimizer.param_groups[0]["params"][0], 0
    while done < len(rows):
        before = None if weight.grad is None else weight.grad.clone()
        part = rows[done : done + size]
        try:
            backward(part, len(part) / len(rows))
            done += len(part)
            continue
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size, weight.grad = size // 2, before
    optimizer.step()
    return size


def inside_except(rows, size, backward, optimizer):
    optimizer.zero_grad()
    try:
        for part in rows.split(size):
            backward(part, len(part) / len(rows))
    except torch.OutOfMemoryError:
        if size == 1:
            raise
        return inside_except(rows, size // 2, backward, optimizer)
    optimizer.step()
    return size


def with_shares(share):
    def update(rows, size, backward, optimizer):
        return one_update(rows, size, lambda p, _: backward(p, share(p, rows, size)), optimizer)

    return update


def with_cleared(first, again):
    """Gradients cleared at the start or not, and after a failure or not."""

    def update(rows, size, backward, optimizer):
        if first:
            optimizer.zero_grad()
        while True:
            try:
                for part in rows.split(size):
                    backward(part, len(part) / len(rows))
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2
            if again:
                optimizer.zero_grad()
        optimizer.step()
        return size

    return update


def without_the_rest(rows, size, backward, optimizer):
    return one_update(rows[: len(rows) // size * size], size, backward, optimizer)


def goes_on_after_failure(rows, size, backward, optimizer):
    optimizer.zero_grad()
    done = 0
    while done < len(rows):
        part = rows[done : done + size]
        try:
            backward(part, len(part) / len(rows))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            optimizer.zero_grad()
            size //= 2
            continue
        done += len(part)
    optimizer.step()
    return size


def step_by_part(rows, size, backward, optimizer):
    def with_step(part, share):
        backward(part, share)
        optimizer.step()
        optimizer.zero_grad()

    return one_update(rows, size, with_step, optimizer)


def for_ever(rows, size, backward, optimizer):
    while True:
        try:
            optimizer.zero_grad()
            for part in rows.split(max(1, size)):
                backward(part, len(part) / len(rows))
        except torch.OutOfMemoryError:
            size //= 2
            continue
        optimizer.step()
        return size


def gives_up_quietly(rows, size, backward, optimizer):
    while size:
        try:
            optimizer.zero_grad()
            for part in rows.split(size):
                backward(part, len(part) / len(rows))
        except torch.OutOfMemoryError:
            size //= 2
            continue
        optimizer.step()
        return size
    return 0


def catches_all(rows, size, backward, optimizer):
    while True:
        try:
            optimizer.zero_grad()
            for part in rows.split(size):
                backward(part, len(part) / len(rows))
            break
        except RuntimeError:  # torch.OutOfMemoryError is one
            if size == 1:
                raise
        size //= 2
    optimizer.step()
    return size


def without_step(rows, size, backward, optimizer):
    return one_update(rows, size, backward, _NoStep(optimizer))


class _NoStep:
    def __init__(self, optimizer):
        self.zero_grad = optimizer.zero_grad

    def step(self):
        pass


RIGHT = {
    "rates": rates,
    "row_fault": row_fault,
    "when_to_stop": when_to_stop,
    "targets": targets,
    "dead_adapters": dead_adapters,
    "one_update": one_update,
}
WRONG = [
    ("rates", rates_from_one, "one step too late"),
    ("rates", rates_without_decay, "stays at its peak"),
    ("rates", rates_falling_over_all, "falls over all updates"),
    ("rates", rates_jumping, "jumps at the end"),
    ("rates", rates_reaching_the_peak, "reaches its peak within the run"),
    ("rates", lambda *given: rates(*given)[1:], "each update has one"),
    ("rates", lambda peak, *given: rates(1.0, *given), "lacks the factor peak"),
    ("row_fault", without_shift, "first label alone is not masked|row of one token"),
    ("row_fault", labels_not_looked_at, "it says '' of a label"),
    ("row_fault", one_too_many, "vocabulary of that size"),
    ("row_fault", zero_is_no_token, "it says 'ids' of"),
    ("row_fault", lambda i, w, v: row_fault(i, w, v) or "fine", "one of 'lengths'"),
    ("when_to_stop", best_of_all, "after the stop"),
    ("when_to_stop", lambda w, p: (w.index(min(w)), len(w) - 1), "never stops"),
    ("when_to_stop", lambda w, p: when_to_stop(w, p)[::-1], "the wrong way round"),
    ("when_to_stop", counted_in_all, "starts the count again"),
    ("when_to_stop", against_the_one_before, "compared with the one before"),
    ("when_to_stop", lambda w, p: when_to_stop(w, p, lambda a, b: a <= b), "equal loss"),
    ("when_to_stop", lambda w, p: when_to_stop(w, p + 1), "one look too late"),
    ("when_to_stop", lambda w, p: when_to_stop(w, p - 1), "one look too early"),
    ("when_to_stop", lambda w, p: 2 * when_to_stop(w, p)[1:], "last look is returned as the best"),
    ("when_to_stop", lambda w, p: [w[i] for i in when_to_stop(w, p)], "losses are returned"),
    ("when_to_stop", lambda w, p: [i + 1 for i in when_to_stop(w, p)], "counted from 1"),
    ("targets", lambda m: targets(m, nn.Linear), "Conv1D"),
    ("targets", lambda m: ["q_proj", "v_proj"], "of GPT-2, c_attn"),
    ("targets", targets_by_name, "is the output layer"),
    ("targets", targets_by_type, "subclass of nn.Linear"),
    ("targets", targets_in_full, "full names"),
    ("targets", targets_twice, "more than once"),
    ("targets", targets_of_anything, "no linear layer"),
    ("dead_adapters", any_parameter_without, "it is 0 as long as B is"),
    ("dead_adapters", by_parameter, "name of a parameter"),
    ("dead_adapters", every_weight, "has no adapter|name of a parameter"),
    ("dead_adapters", lambda m: dead_adapters(m, lambda p: p.grad is not None), "all are 0"),
    ("dead_adapters", lambda m: dead_adapters(
        m, counts=lambda n, p: p.requires_grad), "requires_grad=False"),
    ("dead_adapters", lambda m: dead_adapters(
        m, counts=lambda n, p: p.grad is not None), "are None|requires_grad=False"),
    ("dead_adapters", lambda m: dead_adapters(m) + dead_adapters(m), "more than once"),
    ("one_update", inside_except, "keeps its frames alive"),
    ("one_update", with_shares(lambda p, r, s: 1.0), "as if it were the whole"),
    ("one_update", with_shares(lambda p, r, s: s / len(r)), "counts as a whole one"),
    ("one_update", with_shares(lambda p, r, s: 1 / math.ceil(len(r) / s)), "counts alike"),
    ("one_update", with_shares(lambda p, r, s: len(r) / len(p)), "upside down"),
    ("one_update", with_cleared(False, True), "of the update before"),
    ("one_update", with_cleared(True, False), "the failed call had added"),
    ("one_update", without_the_rest, "not in the gradient|has the share"),
    ("one_update", goes_on_after_failure, "those before a failure"),
    ("one_update", step_by_part, r"was called \d times"),
    ("one_update", for_ever, "has to come through"),
    ("one_update", gives_up_quietly, "raise.*it again"),
    ("one_update", catches_all, "only torch.OutOfMemoryError"),
    ("one_update", without_step, "nothing was updated"),
    ("one_update", lambda r, s, b, o: one_update(r, s, b, o) + 1, "size that is returned"),
    ("one_update", lambda r, s, b, o: one_update(r, s + 1, b, o), "size"),
]  # fmt: skip


class TestTrouble(CheckContract):
    topic, right, wrong = trouble, RIGHT, WRONG
    rounds = 3


def test_going_back_to_the_gradient_before_a_part_is_right_too() -> None:
    trouble.one_update(part_by_part)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "phi3", "cohere"])
def test_targets_are_what_the_course_uses(kind: str) -> None:
    model = tiny_models.model(kind, vocab_size=61)
    assert targets(model) == models.target_modules(model)


def test_an_unusable_row_makes_the_loss_nan() -> None:
    model = tiny_models.model(vocab_size=61)
    ids = torch.tensor([[3, 4, 5]])
    for labels, fault in (([3, IGNORED, IGNORED], "nothing to learn"), ([IGNORED, 4, 5], "")):
        assert row_fault(ids[0].tolist(), labels, 61) == fault
        loss = model(input_ids=ids, labels=torch.tensor([labels])).loss
        assert loss.isnan() == bool(fault)
