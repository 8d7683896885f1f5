"""The loss of fine-tuning, computed only where there is a label.

A causal language model turns every hidden state into `vocabulary` logits, and the usual loss then
throws away those at prompt and padding positions.  With a 49,152-word vocabulary that is the
largest product and the largest tensor of a small model's step.  Here the hidden states are
gathered first: logits are made for answer tokens alone, and in chunks, so that their memory does
not grow with the batch.  The value and the gradients are those of the plain loss.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import CausalLMOutput

from . import compat
from .errors import CourseError
from .models import output_layer

IGNORE = -100  # the label that stands for "no loss here", as in torch's cross_entropy
CHUNK_BYTES = 2**27  # the largest fp32 logits held at once: 128 MiB


def labelled(labels: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(which of the batch's states are scored, as indices into all of them; against which tokens).

    Made before the forward pass, and better still on the CPU (positions: what was found there): a
    GPU has to be waited for to know how many there are.
    """
    wanted = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
    if positions is None:
        positions = (wanted != IGNORE).nonzero().flatten()
    return positions, wanted[positions]


def answer_loss(
    hidden: Tensor,
    labels: Tensor,
    head: nn.Module,
    *,
    count: Tensor | int | None = None,
    finish: Any = None,
    where: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean cross-entropy of the next token over labelled positions, in nats.

    hidden: [batch, length, width], the decoder's last hidden states.
    labels: [batch, length], `IGNORE` where no loss is wanted; shifted here, so that the state at
    position i is scored against the label at i + 1.
    head: the output layer.  count: labels to divide by (a whole accumulated batch's, so that
    accumulation equals the large batch); default those seen here.
    finish: what the model does to its logits after the head (soft-capping, scaling), or None.
    where: `labelled(labels)`, if it is known already.
    """
    positions, targets = where or labelled(labels)
    states = hidden.flatten(0, 1)[positions]
    divisor = targets.numel() if count is None else count

    def summed(states: Tensor, targets: Tensor) -> Tensor:
        logits = head(states)
        logits = logits if finish is None else finish(logits)
        return F.cross_entropy(logits.float(), targets, reduction="sum")

    rows = max(1, CHUNK_BYTES // (4 * _vocabulary(head)))
    if torch.is_grad_enabled() and not any(p.requires_grad for p in head.parameters()):
        make = functools.partial(_by_autograd, summed)
        plain = type(head) is nn.Linear and head.bias is None and finish is None
        if plain and states.is_cuda and compat.has_triton():
            make = functools.partial(_by_kernel, head.weight)
        return _SumOverFrozenHead.apply(states, targets, make, rows) / divisor
    if len(targets) <= rows:
        return summed(states, targets) / divisor
    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(targets), rows):
        part = slice(start, start + rows)
        # checkpoint: a chunk's logits are made again in the backward pass instead of kept
        total = total + checkpoint(summed, states[part], targets[part], use_reentrant=False)
    return total / divisor


class _SumOverFrozenHead(torch.autograd.Function):
    """The loss summed over chunks of rows, each chunk's gradient made while its logits are there.

    A head that is not trained needs none in the backward pass then: nothing is made twice, and no
    logits are kept.  make: (states, targets) -> (sum of their losses, its gradient at the states).
    """

    @staticmethod
    def forward(ctx, states: Tensor, targets: Tensor, make: Callable, rows: int) -> Tensor:
        total, grads = states.new_zeros((), dtype=torch.float32), torch.empty_like(states)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            loss, grads[part] = make(states[part], targets[part])
            total += loss
        ctx.save_for_backward(grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (grads,) = ctx.saved_tensors
        return grads * grad, None, None, None


def _by_autograd(summed: Callable, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradient at states) of any head."""
    with torch.enable_grad():
        states = states.detach().requires_grad_()
        loss = summed(states, targets)
    return loss.detach(), torch.autograd.grad(loss, states)[0]


def _by_kernel(weight: Tensor, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same for a plain linear head on a GPU: no fp32 copy of the logits is made."""
    from .kernels import cross_entropy

    logits = states.to(weight.dtype) @ weight.t()
    losses = cross_entropy(logits, targets)  # and logits have become their gradient
    return losses.sum(), logits @ weight


def _vocabulary(head: nn.Module) -> int:
    return int(getattr(head, "out_features", 0) or head.weight.shape[0])


def logits_finish(config: Any) -> Any:
    """What some families do to the logits after the head, as a function, or None.

    Gemma soft-caps them, Cohere multiplies and Granite divides them by a constant.
    """
    cap = getattr(config, "final_logit_softcapping", None)
    factor = getattr(config, "logit_scale", None) or 1.0
    factor = factor / (getattr(config, "logits_scaling", None) or 1.0)
    if cap:
        return lambda logits: torch.tanh(logits / cap) * cap
    return None if factor == 1.0 else (lambda logits: logits * factor)


@contextlib.contextmanager
def answers_only(model: nn.Module, stock: bool = False) -> Iterator[None]:
    """Inside the block, the model's forward with `labels` uses `answer_loss`.

    `model` is a causal language model or a PEFT model around one.  The method sits on the base
    model itself, so that wrappers (PEFT, DDP) stay in the path; calls without labels
    (generation) run as before.  A model that makes its logits in a way unknown here keeps its own
    loss: right, though slower; with `stock` every model does (FSDP gathers an output layer's weight
    when that layer is called, and `answer_loss` reads it without a call).
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, getattr(base, "base_model_prefix", ""), None)
    if decoder is None or decoder is base or output_layer(base) is None:
        raise CourseError(
            f"{type(base).__name__} is no causal language model with an output layer."
        )
    plain, finish = base.forward, logits_finish(base.config)
    known = not stock and _makes_its_logits_so(base, decoder, finish)

    def forward(
        self, *args: Any, labels=None, num_items_in_batch=None, label_positions=None, **inputs: Any
    ):
        if labels is None:
            return plain(*args, **inputs)
        inputs |= {"use_cache": False}  # with a cache, packed rows would not be kept apart
        if not known:
            return plain(*args, labels=labels, num_items_in_batch=num_items_in_batch, **inputs)
        inputs.pop("return_dict", None)
        where = labelled(labels, label_positions)
        hidden = decoder(*args, **inputs)[0]
        loss = answer_loss(
            hidden, labels, output_layer(self), count=num_items_in_batch, finish=finish, where=where
        )
        return CausalLMOutput(loss=loss)

    before = base.__dict__.get("forward")  # blocks may be nested
    base.forward = types.MethodType(forward, base)
    try:
        yield
    finally:
        if before is None:
            del base.forward  # the class's own method shows again
        else:
            base.forward = before


_KNOWN: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _makes_its_logits_so(base: nn.Module, decoder: nn.Module, finish: Any) -> bool:
    """Whether the model's own logits are `finish(head(decoder(tokens)))`; tried once, on 2 tokens.

    Some families transform the states before the head, or the logits in their own way.
    """
    if base not in _KNOWN:
        was_training, place = base.training, next(base.parameters()).device
        tokens = torch.tensor([[1, 2]], device=place)
        base.eval()
        try:
            ours = output_layer(base)(decoder(tokens, use_cache=False)[0])
            ours = ours if finish is None else finish(ours)
            own = base(tokens, use_cache=False).logits
        finally:
            base.train(was_training)
        same = ours.shape == own.shape and torch.allclose(ours.float(), own.float(), 1e-3, 1e-4)
        # a mixture of experts may add a loss of its router to that of the answers
        _KNOWN[base] = same and not getattr(base.config, "output_router_logits", False)
    return _KNOWN[base]


def mean_loss(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], *, autocast: Any = None
) -> float:
    """Loss per labelled token over all batches, in nats; every token weighs the same.

    Averaging the batches' means instead would favour the tokens of short answers.
    """
    total, count = summed_loss(model, batches, autocast=autocast)
    if not count:
        raise CourseError("There is no labelled token to evaluate on: check the data's answers.")
    return total / count


@torch.no_grad()
def summed_loss(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], *, autocast: Any = None,
    stock: bool = False,
) -> tuple[float, int]:  # fmt: skip
    """(loss summed over all labelled tokens, in nats; their number).  stock: see `answers_only`."""
    was_training, place = model.training, next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    try:
        with answers_only(model, stock):
            for batch in batches:
                batch = {name: value.to(place) for name, value in batch.items()}
                labels = int((batch["labels"][:, 1:] != IGNORE).sum())
                if labels:
                    with autocast() if autocast else contextlib.nullcontext():
                        total += float(model(**batch).loss) * labels
                    count += labels
    finally:
        model.train(was_training)
    return total, count
