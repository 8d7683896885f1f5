"""Checks of chapter 10: warm-up, unusable rows, early stopping, targets, dead adapters, memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import check, draw, expect, same, same_items, same_number, short

IGNORED = -100
MOST_CALLS = 60  # far more than any right answer makes
RATE = 0.1
TOKENS = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


# --------------------------------------------------------------- 1: the rates of a short run


@check("a warm-up longer than the run never ends: the rate of the recipe is never reached.")
def rates(attempt: Any) -> None:
    peak = 10 ** draw.number(-5, -3)
    for warmup, updates in (
        (draw.integer(3, 6), draw.integer(12, 20)),
        (draw.integer(60, 100), draw.integer(10, 40)),
        (0, draw.integer(5, 9)),
    ):
        got = attempt(peak, warmup, updates)
        case = f"with {warmup} updates of warm-up in a run of {updates}"
        expect(
            isinstance(got, Sequence) and not isinstance(got, str),
            f"a list of rates is wanted, and it returned {short(got)}",
        )
        expect(
            len(got) == updates,
            f"{case}, {len(got)} rates came out: each update has one of its own",
        )
        values = torch.tensor([float(rate) for rate in got], dtype=torch.float64)
        right = _linear_schedule(peak, warmup, updates)
        for off, wrong in _wrong_rates(peak, warmup, updates).items():
            expect(_near(right, wrong) or not _near(values, wrong), f"{case}, the rate {off}")
        same(
            values, right, f"{case}, the list of rates", factors={"peak": peak},
            look="step 0, and the last step",
        )  # fmt: skip


def _linear_schedule(peak: float, warmup: int, updates: int) -> Tensor:
    """What transformers' own schedule gives each update."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, updates)
    found = []
    for _ in range(updates):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return torch.tensor(found, dtype=torch.float64)


def _wrong_rates(peak: float, warmup: int, updates: int) -> dict[str, Tensor]:
    """Usual mistakes and the rates that they lead to."""

    def by_step(rate: Callable[[int], float]) -> Tensor:
        return torch.tensor([rate(step) for step in range(updates)], dtype=torch.float64)

    warm, rest = max(1, warmup), max(1, updates - warmup)
    return {
        "begins one step too late: the first update is step 0": by_step(
            lambda s: peak * ((s + 1) / warm if s + 1 < warmup else (updates - s - 1) / rest)
        ),
        "stays at its peak after the warm-up: it falls to 0 over the rest of the run": by_step(
            lambda s: peak * min(1, s / warm) if warmup else peak
        ),
        "falls over all updates: it falls over those that the warm-up leaves": by_step(
            lambda s: peak * (s / warm if s < warmup else 1 - s / updates)
        ),
        "jumps at the end of the warm-up: `s - warmup` updates have passed since": by_step(
            lambda s: peak * (s / warm if s < warmup else 1 - s / rest)
        ),
        "reaches its peak within the run: a warm-up longer than the run does not": by_step(
            lambda s: peak * s / max(1, min(warm, updates - 1))
        ),
    }


def _near(got: Tensor, value: Tensor) -> bool:
    return torch.allclose(got, value, rtol=1e-6, atol=0)


# --------------------------------------------------------------- 2: rows that cannot be used

FAULTS = ("lengths", "ids", "nothing to learn", "")


@check("a batch of rows that ask nothing has the loss nan; an id too high ends a run on a GPU.")
def row_fault(attempt: Any) -> None:
    vocabulary, n = draw.integer(50, 90), draw.integer(6, 9)

    def ids(count: int) -> list[int]:
        return [draw.integer(0, vocabulary - 1) for _ in range(count)]

    masked, row = [IGNORED] * n, ids(n)
    half = masked[: n // 2] + row[n // 2 :]
    cases = [
        (row, half, "", "a sound row"),
        ([0, *row[1:]], half, "", "a sound row with the token 0"),
        ([*row[:-1], vocabulary - 1], [*half[:-1], vocabulary - 1], "", "the last id there is"),
        (row, masked[:-1] + row[-1:], "", "a row whose last token alone is labelled"),
        (row, [*half, IGNORED], "lengths", "a row with one label too many"),
        (row, half[1:], "lengths", "a row with one label too few"),
        ([*row[:-1], vocabulary], half, "ids", f"an id {vocabulary} in a vocabulary of that size"),
        ([-1, *row[1:]], half, "ids", "the id -1"),
        (row, [*half[:-1], vocabulary + 3], "ids", "a label beyond the vocabulary"),
        (row, [-1, *half[1:]], "ids", "a label of -1 (it masks nothing: -100 does)"),
        (row, masked, "nothing to learn", "a row whose labels are all masked"),
        (row, row[:1] + masked[1:], "nothing to learn", "a row whose first label alone is not "
         "masked: no token stands before it that could predict it"),
        ([], [], "nothing to learn", "an empty row"),
        (row[:1], row[:1], "nothing to learn", "a row of one token, which no other predicts"),
    ]  # fmt: skip
    for tokens, labels, wanted, what in draw.sample(cases, len(cases)):
        got = attempt(list(tokens), list(labels), vocabulary)
        expect(
            isinstance(got, str) and got in FAULTS,
            f"the result is {short(got)}: one of {', '.join(map(repr, FAULTS))} is wanted",
        )
        expect(got == wanted, f"it says {got!r} of {what}: {wanted!r} is right")


# --------------------------------------------------------------- 3: early stopping


@check("counted from the best look so far; what comes after the stop is never seen.")
def when_to_stop(attempt: Any) -> None:
    for kind in ("stops", "stops", "runs to the end"):
        losses, patience = _losses(kind == "stops")
        got = attempt(list(losses), patience)
        expect(
            isinstance(got, tuple | list) and len(got) == 2,
            f"two places are wanted, and it returned {short(got)}: return best, last",
        )
        right = _stop(losses, patience)
        case = f"for the losses {losses} and a patience of {patience}"
        for off, wrong in _wrong_stops(losses, patience).items():
            expect(wrong == right or tuple(got) != wrong, f"{case}, {off}")
        same_number(got[0], right[0], f"{case}, the place of the best look")
        same_number(got[1], right[1], f"{case}, the place of the last look")


def _stop(
    losses: Sequence[float],
    patience: int,
    *,
    in_a_row: bool = True,
    ties: bool = False,
    previous: bool = False,
) -> tuple[int, int]:
    """(best, last) of early stopping, or of one of the ways to get it wrong."""
    best, bad = 0, 0
    for place, loss in enumerate(losses[1:], start=1):
        better = loss < losses[best] or (ties and loss == losses[best])
        if better:
            best = place
        if loss < losses[place - 1] if previous else better:
            bad = 0 if in_a_row else bad
        else:
            bad += 1
        if bad == patience:
            return best, place
    return best, len(losses) - 1


def _wrong_stops(losses: Sequence[float], patience: int) -> dict[str, tuple[int, int]]:
    """Usual mistakes and what they return."""
    best, last = _stop(losses, patience)
    overall = min(range(len(losses)), key=losses.__getitem__)
    return {
        "it looks at what comes after the stop: the run ends there, and sees no more": (
            overall, last
        ),
        "it never stops": (overall, len(losses) - 1),
        "the two places come the wrong way round: the best look first": (last, best),
        "looks without a new best are counted in all: a new best starts the count again": _stop(
            losses, patience, in_a_row=False
        ),
        "each look is compared with the one before: compare it with the best so far": _stop(
            losses, patience, previous=True
        ),
        "an equal loss counts as a new best: it has to be lower": _stop(
            losses, patience, ties=True
        ),
        "it stops one look too late: `patience` looks without a new best are enough": _stop(
            losses, patience + 1
        ),
        "it stops one look too early: `patience` looks without a new best are allowed": _stop(
            losses, patience - 1
        ) if patience > 1 else (0, 0),
        "the last look is returned as the best": (last, last),
        "losses are returned: the places of the looks are wanted": (losses[best], losses[last]),
        "places are counted from 1: the first is 0": (best + 1, last + 1),
    }  # fmt: skip


def _losses(stops: bool) -> tuple[list[float], int]:
    """Losses on which every usual mistake shows, if the run is to stop early; and a patience."""
    while True:
        patience = draw.integer(2, 3)
        losses = [round(draw.number(1, 3), 1) for _ in range(12)]
        best, last = _stop(losses, patience)
        if not stops:
            if last == len(losses) - 1 and 0 < best < last - 1:
                return losses, patience
            continue
        wrong = _wrong_stops(losses, patience)
        if best > 0 and len({*wrong.values(), (best, last)}) == len(wrong) + 1:
            return losses, patience


# --------------------------------------------------------------- 4: targets


class _Packed(nn.Linear):
    """Stands for the 4-bit and 8-bit forms of a linear layer, which are subclasses of it."""


def _home_made() -> tuple[nn.Module, set[str]]:
    """A model with names that nobody knows: (model, the names of its layers for an adapter)."""
    words = [f"{draw.word(4)}_{letter}" for letter in "abcdef"]
    first, second, third, head, norm, embedding = words

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(first, nn.Linear(4, 12))
            self.add_module(second, _Packed(4, 4))
            self.add_module(norm, nn.LayerNorm(4))
            self.add_module(third, nn.Linear(4, 4, bias=False))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(embedding, nn.Embedding(7, 4))
            self.blocks = nn.ModuleList([Block(), Block()])
            self.add_module(head, nn.Linear(4, 7))

        def get_output_embeddings(self) -> nn.Module:
            return getattr(self, head)

    return Model(), {first, second, third}


def _tiny(kind: str) -> tuple[nn.Module, set[str]]:
    """A real architecture with random weights: (model, names of its layers for an adapter)."""
    import transformers as hf

    common = {**TOKENS, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    common |= {"num_attention_heads": 2}
    attention, glu = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    if kind == "GPT-2":
        config = hf.GPT2Config(**TOKENS, n_embd=8, n_layer=2, n_head=2, n_positions=16)
        return hf.GPT2LMHeadModel(config), {"c_attn", "c_proj", "c_fc"}
    if kind == "BERT":
        model = hf.BertForMaskedLM(hf.BertConfig(**common))
        return model, {"query", "key", "value", "dense"}
    if kind == "Phi-3":
        model = hf.Phi3ForCausalLM(hf.Phi3Config(**common))
        return model, {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**common)), {*attention, *glu}


@check("read from the model, so they fit any architecture, also one that nobody has heard of.")
def targets(attempt: Any) -> None:
    made = {kind: _tiny(kind) for kind in ("GPT-2", "Llama", "BERT", draw.pick(("Phi-3", "Llama")))}
    made["an unknown model"] = _home_made()
    for kind, (model, wanted) in made.items():
        got = attempt(model)
        expect(
            isinstance(got, list | tuple) and all(isinstance(name, str) for name in got),
            f"a list of names is wanted, and it returned {short(got)}",
        )
        _explain_targets(list(got), wanted, model, kind)


def _explain_targets(got: list[str], wanted: set[str], model: nn.Module, kind: str) -> None:
    """NotYet where the names found are not those wanted."""
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    outputs = head.rpartition(".")[2]
    expect(
        not any("." in name for name in got),
        f"full names came out for {kind}, such as {short(next(iter(got), ''))}: take what stands "
        "behind the last point",
    )
    expect(len(got) == len(set(got)), f"names of {kind} come more than once: each once")
    missing, extra = sorted(wanted - set(got)), sorted(set(got) - wanted)
    expect(
        not (kind == "GPT-2" and missing),
        f"of GPT-2, {', '.join(missing)} is missing: its layers are transformers' `Conv1D`, which "
        "is no nn.Linear",
    )
    types = {n.rpartition(".")[2]: type(m) for n, m in model.named_modules()}
    packed = [name for name in missing if types[name] is _Packed]
    expect(
        not packed,
        f"of {kind}, {', '.join(packed)} is missing: its class is a subclass of nn.Linear, as that "
        "of a 4-bit layer is; isinstance finds it, a comparison of types does not",
    )
    expect(
        outputs not in extra,
        f"of {kind}, {outputs!r} is the output layer: ask model.get_output_embeddings() for it, "
        "since its name differs from model to model",
    )
    expect(not missing, f"of {kind}, {', '.join(missing)} is missing")
    expect(not extra, f"of {kind}, {', '.join(extra)} is no linear layer")


# --------------------------------------------------------------- 5: adapters that learn nothing


@check(
    "of a fresh adapter A's gradient is 0 because B is; B's tells whether it is alive.", rounds=1
)
def dead_adapters(attempt: Any) -> None:
    for fault in draw.sample(list(_FAULTS), len(_FAULTS)):
        model = _adapted()
        dead = _FAULTS[fault](model)
        _backward(model)
        got = attempt(model)
        expect(
            isinstance(got, list | tuple | set) and all(isinstance(name, str) for name in got),
            f"a list of layer names is wanted, and it returned {short(got)}",
        )
        _explain_dead([*got], set(dead), model, fault)


def _adapted() -> nn.Module:
    """A tiny Llama with LoRA on q_proj and v_proj, as fresh as it is or with a B that has moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **TOKENS, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, initializer_range=0.3,
    )  # fmt: skip
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    return get_peft_model(LlamaForCausalLM(config), lora).train()


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> module of the layers that an adapter sits on."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def _sound(model: nn.Module) -> list[str]:
    """Nothing is wrong; B is 0."""
    return []


def _moved(model: nn.Module) -> list[str]:
    """Nothing is wrong; B is no longer 0."""
    for layer in _layers(model).values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return []


def _frozen(model: nn.Module) -> list[str]:
    """One adapter does not ask for gradients, as after loading without is_trainable=True."""
    name, layer = draw.pick(list(_layers(model).items()))
    layer.lora_A.requires_grad_(False)
    layer.lora_B.requires_grad_(False)
    return [name]


def _switched_off(model: nn.Module) -> list[str]:
    """The forward pass goes round one adapter, whose parameters ask for gradients still."""
    name, layer = draw.pick(list(_layers(model).items()))
    layer._disable_adapters = True
    return [name]


def _scaled_to_zero(model: nn.Module) -> list[str]:
    """The scale of one adapter is 0, as alpha // rank is for a small alpha: all gradients are 0."""
    name, layer = draw.pick(list(_layers(model).items()))
    layer.scaling["default"] = 0.0
    return [name]


def _cut_off(model: nn.Module) -> list[str]:
    """Gradients end at a layer whose inputs are detached: all adapters below get none."""
    place = draw.integer(1, 2)
    blocks = model.get_base_model().model.layers
    blocks[place].register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
    return [name for name in _layers(model) if int(name.split(".layers.")[1][0]) < place]


_FAULTS: dict[str, Callable[[nn.Module], list[str]]] = {
    "nothing is wrong and B is 0": _sound,
    "nothing is wrong and B is not 0": _moved,
    "an adapter is frozen": _frozen,
    "an adapter is switched off": _switched_off,
    "the scale of an adapter is 0": _scaled_to_zero,
    "inputs are detached halfway": _cut_off,
}


def _backward(model: nn.Module) -> None:
    tokens = draw.tokens(2, 6, vocabulary=31)
    model(input_ids=tokens, labels=tokens).loss.backward()


def _explain_dead(got: list[str], dead: set[str], model: nn.Module, fault: str) -> None:
    """NotYet where the layers named are not the dead ones."""
    layers = _layers(model)
    parts = [name for name in got if ".lora_" in name]
    expect(
        not parts,
        f"{short(parts[:1])} is the name of a parameter: the layer's is what stands before .lora_",
    )
    strange = [name for name in got if name not in layers]
    expect(
        not strange,
        f"{short(strange[:1])} has no adapter: frozen weights of the base model get no gradient, "
        "as they should",
        look="the parameters with .lora_ in their names",
    )
    healthy = sorted(set(got) - dead)
    case = f"where {fault}"
    expect(
        not healthy,
        f"{case}, {_some(healthy)} called dead, and B has a gradient there. A's alone says "
        "nothing: it is 0 as long as B is",
    )
    missing = sorted(dead - set(got))
    expect(not missing, f"{case}, {_some(missing)} missing: {_why_missed(fault)}")
    expect(len(got) == len(set(got)), "a layer comes more than once: name each once")


def _some(names: list[str]) -> str:
    """One name, and how many more there are, with the verb."""
    more = len(names) - 1
    first = "".join(names[:1])
    return f"{first} and {more} more layers are" if more > 0 else f"{first} is"


def _why_missed(fault: str) -> str:
    if fault == "an adapter is frozen":
        return "an adapter that was meant to learn may have requires_grad=False"
    if fault == "the scale of an adapter is 0":
        return "there are gradients, and all are 0"
    return "gradients are None where the loss does not reach a parameter"


# --------------------------------------------------------------- 6: a batch that fits


class _Endless(BaseException):
    """Ends an attempt that calls for ever; no `except Exception` takes it for something else."""


@dataclass
class _Call:
    """One call of `backward`: which rows it was given, and what it added to the gradient."""

    rows: list[int]
    share: float
    fits: bool
    added: Tensor


class _Machine:
    """A model with one weight, and a memory that holds only so many rows at once.

    most: rows that fit, for each call; the last number holds for all further calls.
    """

    def __init__(self, rows: Tensor, most: Sequence[int], error: Exception | None = None) -> None:
        self.rows, self.most, self.error = rows, list(most), error
        self.weight = nn.Parameter(draw.tensor(rows.shape[1]).double())
        self.start = self.weight.detach().clone()
        self.stale = draw.tensor(rows.shape[1]).double()  # of the update before
        self.weight.grad = self.stale.clone()
        self.optimizer = torch.optim.SGD([self.weight], lr=RATE)
        self.steps = 0
        self.optimizer.register_step_post_hook(self._count)
        self.calls: list[_Call] = []
        self.held: weakref.ref[Tensor] | None = None
        self.kept_alive = False

    def _count(self, *_: Any) -> None:
        self.steps += 1

    def backward(self, part: Tensor, share: float) -> None:
        if len(self.calls) >= MOST_CALLS:
            raise _Endless
        if self.held is not None and self.held() is not None:
            self.kept_alive = True
        fits = len(part) <= self.most[min(len(self.calls), len(self.most) - 1)]
        loss = float(share) * ((part @ self.weight - 1) ** 2).mean()
        added = torch.autograd.grad(loss if fits else 0.5 * loss, self.weight)[0]
        self.calls.append(_Call(self._places(part), float(share), fits, added))
        if self.error is not None:
            raise self.error
        self.weight.grad = added + (0 if self.weight.grad is None else self.weight.grad)
        if not fits:  # halfway through its backward pass
            activations = torch.zeros(len(part), 4)
            self.held = weakref.ref(activations)
            raise torch.OutOfMemoryError(f"out of memory at {len(part)} rows, in this check")

    def _places(self, part: Tensor) -> list[int]:
        equal = (part[:, None] == self.rows[None]).all(-1)
        return equal.int().argmax(1).tolist()

    @property
    def sizes(self) -> list[int]:
        return [len(call.rows) for call in self.calls]

    def after(self, *gradients: Tensor) -> Tensor:
        """The weight after one update with the sum of these gradients."""
        return self.start - RATE * sum(gradients, torch.zeros_like(self.start))

    def right(self) -> Tensor:
        weight = self.start.clone().requires_grad_()
        loss = ((self.rows @ weight - 1) ** 2).mean()
        return self.after(torch.autograd.grad(loss, weight)[0])


@check("the same update in smaller parts, from clean gradients, after the failure is let go of.")
def one_update(attempt: Any) -> None:
    for size, count, most in (
        (4, 11, [9]),  # fits, with a smaller part at the end
        (draw.integer(8, 9), 11, [2]),  # halved twice
        (5, 9, [1]),  # halved to 2 and to 1
        (4, 10, [4, 2]),  # fails at the second part
    ):
        _one_case(attempt, size, count, most)
    _gives_up(attempt)
    _lets_bugs_through(attempt)


def _run(attempt: Any, machine: _Machine, size: int) -> Any:
    """What the attempt returns; NotYet where it would go on for ever."""
    try:
        return attempt(machine.rows, size, machine.backward, machine.optimizer)
    except _Endless:
        expect(
            False,
            f"it goes on for ever: {MOST_CALLS} calls of backward, the last one with "
            f"{machine.sizes[-1]} rows. Where a single row does not fit, the error has to come "
            "through",
        )


def _one_case(attempt: Any, size: int, count: int, most: list[int]) -> None:
    machine = _Machine(draw.tensor(count, 3).double(), most)
    fits = size
    while fits > most[-1]:
        fits //= 2
    case = f"with {count} rows in parts of {size}, where {most[-1]} at a time fit"
    if len(most) > 1:
        case = f"with {count} rows in parts of {size}, which fit at first and fail at the second"
    try:
        got = _run(attempt, machine, size)
    except torch.OutOfMemoryError:
        expect(False, f"{case}, the error comes through: halve the size and try again")
    expect(
        bool(machine.sizes), f"{case}, backward was never called", look="what `backward` is given"
    )
    expect(
        not machine.kept_alive,
        f"{case}, what the failed call held is still in memory at the next one: inside `except` "
        "the exception keeps its frames alive; try again after the block",
    )
    _explain_update(machine, fits, case)
    same_number(got, fits, f"{case}, the size that is returned", look="the size that worked")


def _explain_update(machine: _Machine, fits: int, case: str) -> None:
    """NotYet where the weight is not what one update with all rows makes of it."""
    expect(machine.steps > 0, f"{case}, nothing was updated: optimizer.step() comes at the end")
    expect(
        machine.steps == 1,
        f"{case}, optimizer.step() was called {machine.steps} times: once, after the last part",
    )
    now, added = machine.weight.detach(), [call.added for call in machine.calls]
    if torch.allclose(now, machine.right()):
        return
    expect(
        not torch.allclose(now, machine.after(machine.stale, *added)),
        f"{case}, the gradient of the update before is still in it: optimizer.zero_grad() first",
    )
    expect(
        len(added) == 1
        or not torch.allclose(now, machine.after(*added))
        or all(call.fits for call in machine.calls),
        f"{case}, what the failed call had added is still in the gradient: it stopped halfway, so "
        "clear the gradients and take all rows again",
    )
    for call in machine.calls:
        _explain_share(call, len(machine.rows), fits, case)
    last_failure = max((i for i, call in enumerate(machine.calls) if not call.fits), default=-1)
    seen = [row for call in machine.calls[last_failure + 1 :] for row in call.rows]
    missing, twice = set(range(len(machine.rows))) - set(seen), len(seen) - len(set(seen))
    expect(
        not missing,
        f"{case}, {len(missing)} of the rows are not in the gradient of the update: every row "
        "belongs to it, also those of a smaller part at the end and those before a failure",
    )
    expect(not twice, f"{case}, {twice} rows are in the gradient more than once")
    expect(False, f"{case}, the weight is not that of one update with every row once")


def _explain_share(call: _Call, rows: int, fits: int, case: str) -> None:
    """NotYet where a part does not count as much as it has rows."""
    part = len(call.rows)
    if math.isclose(call.share, part / rows, rel_tol=1e-6):
        return
    known = {
        1.0: "each part counts as if it were the whole batch",
        1 / math.ceil(rows / fits): "each part counts alike, and the last one has fewer rows",
        fits / rows: "the last part counts as a whole one, and has fewer rows",
        rows / part: "the share is upside down",
    }
    why = next((text for v, text in known.items() if math.isclose(v, call.share)), "")
    expect(
        False,
        f"{case}, a part of {part} rows has the share {call.share:.3g}"
        f"{f': {why}' if why else ''}. Its share is its part of all rows",
    )


def _gives_up(attempt: Any) -> None:
    """Where one row alone does not fit, the error has to come through, and nothing is updated."""
    machine = _Machine(draw.tensor(6, 3).double(), [0])
    try:
        _run(attempt, machine, 4)
    except torch.OutOfMemoryError:
        same_items(
            machine.sizes, [4, 2, 1], "the list of sizes that were tried until even one row failed"
        )
    else:
        expect(False, "not even one row fits, and no error comes through: `raise` it again")
    expect(
        torch.equal(machine.weight.detach(), machine.start),
        "the weight was updated although not all rows went through",
    )


def _lets_bugs_through(attempt: Any) -> None:
    """Any other error is a bug."""
    said = f"shapes {draw.word()} and {draw.word()} do not fit"
    machine = _Machine(draw.tensor(6, 3).double(), [9], RuntimeError(said))
    try:
        _run(attempt, machine, 4)
    except RuntimeError as error:
        expect(
            said in str(error), f"another RuntimeError comes out as {short(error)}: let it through"
        )
        expect(
            len(machine.sizes) == 1,
            "after another RuntimeError it tries again: only torch.OutOfMemoryError is met by "
            "smaller parts",
        )
    else:
        expect(False, "another RuntimeError is swallowed: catch torch.OutOfMemoryError alone")
