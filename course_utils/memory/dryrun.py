"""A second opinion on `estimate`: the real training step on tensors that have no numbers.

The model, PEFT's adapters, the fast layers, the loss, autograd and AdamW run as they are, on fake
tensors (shapes and types only), and every storage is counted from the moment it is made until it
is let go.  No formula of `estimate` is used.  What a GPU does otherwise than torch's CPU code is
put in its place: fused attention, the in-place steps of `kernels`, and the operations that
autocast runs in fp32 on CUDA.  Takes seconds, and works for any causal model of transformers in
bf16 and rows without padding; fp8, 4-bit weights and 8-bit optimizers are not covered.

For several GPUs it runs what the first of them does under torch's own FSDP2, over torch's process
group for tests that sends nothing (torch.testing._internal.distributed.fake_pg).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import AutoModelForCausalLM, masking_utils

from .. import attention, fast, loss, training
from ..errors import CourseError
from ..recipes import Recipe

GIB = 2**30
_NOTHING = contextlib.nullcontext()


class StorageCounter(TorchDispatchMode):
    """Bytes of all storages that are alive, and the most there were, by phase."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peaks: dict[str, int] = {}
        self.phase = "load"
        self._seen: dict[int, weakref.ref] = {}
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, Tensor):
                self.count(getattr(tensor, "_local_tensor", tensor))  # of a DTensor
        return made

    def count(self, tensor: Tensor) -> None:
        """See its storage, or that its size has changed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512
        if key not in self._seen:
            self._seen[key] = weakref.ref(storage, lambda _: self._gone(key))
        self.alive += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.alive)

    def _gone(self, key: int) -> None:
        if self._seen.pop(key, None) is not None:
            self.alive -= self._sizes.pop(key)


def _in_fp32(function: Any) -> Any:
    """Under autocast these run in fp32 on CUDA, and in their inputs' precision on a CPU."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = [_wide(arg) for arg in args]
            kwargs = {name: _wide(value) for name, value in kwargs.items()}
        return function(*args, **kwargs)

    return run


def _wide(value: Any) -> Any:
    short = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if short else value


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As on CUDA: what it keeps is one byte for each number."""
    return torch.native_dropout(x, p, True)[0] if p and training else x


class _Fused(torch.autograd.Function):
    """Fused attention's tensors: the output, a sum for each row; in backward q's gradient twice."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = _like(q)
        sums = torch.empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, _, sums = ctx.saved_tensors
        made = _like(q), _like(k), _like(v)
        rows = -(-q.shape[2] // 128) * 128
        long = torch.empty(*q.shape[:2], rows, -(-q.shape[3] // 32) * 32, dtype=torch.float32)
        more = torch.empty(*q.shape[:2], rows, dtype=torch.float32)
        heads = (_like(q), _like(q)) if k.shape[1] != q.shape[1] else ()
        del long, more, heads, sums
        return made


def _like(x: Tensor) -> Tensor:
    """As x [batch, heads, tokens, dim], each token's heads side by side in memory."""
    batch, heads, length, width = x.shape
    return torch.empty(batch, length, heads, width, dtype=x.dtype).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    return _Fused.apply(q, k, v)


def _in_place_steps() -> fast.Steps:
    """What each kernel of `kernels` makes; what it works on in place is left alone."""
    return fast.Steps(
        adds=True,
        norm=lambda x, w, eps: (torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)),
        norm_backward=lambda grad, x, w, scale, more: grad,
        rotate=lambda *args: None,
        rotate_back=lambda parts, cos, sin: parts[0].new_empty(
            parts[0].shape[0] * parts[0].shape[1], sum(p.shape[2] * p.shape[3] for p in parts)
        ),
        swiglu=lambda y, inner, b, keep: y.new_empty(len(y), y.shape[1] // 2),
        swiglu_backward=lambda *args: None,
        residual=lambda made, *args: made,
    )


def _chunk(head: nn.Module):
    """`loss._by_kernel` without its kernel."""

    def make(summed: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        weight = head.weight
        logits = states.to(weight.dtype) @ weight.t()
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        return losses.sum(), logits @ weight

    return make


def _all_labelled(labels: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Every position but a row's last: which ones cannot be asked of a tensor without numbers."""
    count = labels.shape[0] * (labels.shape[1] - 1)
    return torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)


@contextlib.contextmanager
def _as_on_a_gpu(model: nn.Module) -> Iterator[None]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = loss.output_layer(base)
    loss._KNOWN[base] = True
    frozen = not head.weight.requires_grad
    F = nn.functional
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context
        patch(mock.patch.object(F, "scaled_dot_product_attention", _attend))
        patch(mock.patch.object(F, "dropout", _dropout))
        # without numbers transformers cannot see that no rows are packed, and would make a mask
        patch(mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda _: None))
        for place, name in ((torch, "pow"), (Tensor, "pow"), (torch, "rsqrt"), (F, "layer_norm")):
            patch(mock.patch.object(place, name, _in_fp32(getattr(place, name))))
        patch(mock.patch.object(attention, "SCORES", -1))
        patch(mock.patch.object(fast, "_check_same", lambda *args: None))
        steps = _in_place_steps()
        patch(mock.patch.object(fast, "Steps", lambda: steps))
        patch(mock.patch.object(loss, "labelled", _all_labelled))
        if frozen:
            patch(mock.patch.object(loss, "_by_autograd", _chunk(head)))
        yield


def dry_run(
    config: Any, recipe: Recipe, length: int, *, steps: int = 2, gpus: int = 1
) -> dict[str, float]:
    """Peak GiB of each phase (load, forward, backward, step) of `steps` steps.

    config: of transformers.  length: tokens of a row.  gpus: that weights are sharded over; the
    recipe is what one of them runs.
    """
    in_fp8 = "fp8" in (recipe.base_precision, recipe.gradient_precision)
    if recipe.method == "qlora" or in_fp8 or recipe.optimizer != "adamw":
        raise CourseError("The dry run covers bf16 and fp32 weights with AdamW; use `estimate`.")
    short = recipe.method != "full" or recipe.base_precision == "bf16"
    dtype = torch.bfloat16 if short else torch.float32
    with torch.device("meta"):
        model = _prepared(AutoModelForCausalLM.from_config(config, dtype=dtype), recipe)
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(_mesh(gpus)) if gpus > 1 else None
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        counter = stack.enter_context(StorageCounter())
        _fill(model)
        stack.enter_context(_as_on_a_gpu(model))
        stack.enter_context(loss.answers_only(model, stock=gpus > 1))
        if mesh is None:
            stack.enter_context(_layers(model, recipe))
        else:
            stack.enter_context(_resizes_counted(counter))
            shard(model, mesh, recipe)
        stack.enter_context(_casting(model))
        _steps(model, recipe, length, counter, steps)
    return {name: size / GIB for name, size in counter.peaks.items()}


@contextlib.contextmanager
def _mesh(gpus: int) -> Iterator[Any]:
    """A mesh of processes of which this is the first, and the others are not there."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    try:
        yield init_device_mesh("cpu", (gpus,))
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def _resizes_counted(counter: StorageCounter) -> Iterator[None]:
    """FSDP frees gathered parameters by resizing their storage, which no operation shows."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param

    with contextlib.ExitStack() as stack:
        for name in ("alloc_storage", "free_storage"):
            plain = getattr(_fsdp_param, name)

            def resize(tensor: Tensor, plain=plain) -> None:
                plain(tensor)
                counter.count(tensor)

            stack.enter_context(mock.patch.object(_fsdp_param, name, resize))
        yield


def shard(model: nn.Module, mesh: Any, recipe: Recipe) -> None:
    """FSDP2 in the units of accelerate's `fsdp2_prepare_model`, mixed precision as it sets it."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder, short = fast.decoder_of(model), torch.bfloat16
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    norm = decoder.ln_f if hasattr(decoder, "ln_f") else decoder.norm
    pure = recipe.base_precision == "bf16"
    policy = MixedPrecisionPolicy() if pure else MixedPrecisionPolicy(short, short, short)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    tied = embedding.weight is head.weight
    if not tied:
        fully_shard(embedding, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    tail = [norm, embedding, head] if tied else [norm, head]
    fully_shard(tail, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def _prepared(model: nn.Module, recipe: Recipe) -> nn.Module:
    if recipe.method != "full":
        return training.prepare(model, recipe).train()
    if recipe.checkpointing:
        training.compat.enable_checkpointing(model)
    return model.requires_grad_(True).train()


def _fill(model: nn.Module) -> None:
    """Fake tensors for the parameters and buffers, shared ones still shared."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None and id(old) not in made:
                empty = torch.empty(old.shape, dtype=old.dtype)
                made[id(old)] = nn.Parameter(empty, requires_grad=old.requires_grad)
            module._parameters[name] = None if old is None else made[id(old)]
        for name, old in list(module._buffers.items()):
            if old is not None:
                module._buffers[name] = torch.empty(old.shape, dtype=old.dtype)


def _layers(model: nn.Module, recipe: Recipe) -> Any:
    longest = 1
    if recipe.method == "full" or not recipe.fast or fast.why_not(model, torch.bfloat16, longest):
        return contextlib.nullcontext()
    return fast.fast_layers(model, dtype=torch.bfloat16, checkpointing=recipe.checkpointing)


def _casting(model: nn.Module) -> Any:
    """As `loop` does it: autocast casts, so PEFT need not."""
    return disable_input_dtype_casting(model) if hasattr(model, "peft_config") else _NOTHING


def _steps(model: nn.Module, recipe: Recipe, length: int, counter: StorageCounter, steps: int):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    pure = recipe.base_precision == "bf16"  # as in `loop`: no autocast over weights in bf16
    parts = min(2, recipe.gradient_accumulation)
    for number in range(steps * parts):
        last = number % parts == parts - 1
        if hasattr(model, "set_requires_gradient_sync"):  # as accelerate's `no_sync`
            model.set_requires_gradient_sync(last)
        tokens = torch.zeros(recipe.batch_size, length, dtype=torch.int64)
        counter.phase = "forward"
        with torch.autocast("cpu", torch.bfloat16, enabled=not pure):
            value = model(input_ids=tokens, labels=tokens).loss
        counter.phase = "backward"
        value.backward()
        del value  # as in the Trainer: with it goes the graph
        if not last:
            continue
        counter.phase = "step"
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
