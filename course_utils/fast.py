"""The decoder layers of a LoRA run, made fast: the same numbers in fewer passes over memory.

Most of a LoRA step should be large matrix products with the frozen weights; in stock layers half
of the rest is spent on reading and writing activations once more than needed.  What this module
does about it (benchmarks/NOTES.md has the figure that each brought):

1. q, k and v read the same input, and so do gate and up: each set is one product (`Group`).
2. An adapter's output is what the base's product starts from, or it is added by the kernel that
   reads that product next: small as it is, bf16 would round it away beside what is larger.  Its
   scale sits in B.
3. The backward pass is written by hand (`_Attention`, `_MLP`).  It keeps a layer's input, q, k, v,
   the attention's output and gate/up; norms and SwiGLU are made again from those.
4. Checkpointing keeps the inputs alone and makes again only what the backward pass reads: the two
   output projections, a third of a layer's work, are not among it.  The last layer keeps all: its
   backward pass follows at once.
5. Inputs may wait in the CPU's memory until they are needed (`Offload`).
6. Each elementwise step between the products is one kernel on a GPU (`kernels`).
7. The frozen weights may be 4-bit (dequantized a group at a time) or fp8 (`Fp8Weight`); what passes
   back through them may be in fp8 alone (`fp8.Back`).

`fast_layers(model, ...)` puts this in a model's way for as long as its block lasts.  It covers
models built like Llama (Mistral, Qwen 2 and 3, SmolLM ...); for all others the stock layers stay.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.modeling_outputs import BaseModelOutputWithPast

from . import compat, fp8
from .attention import Rows, attend
from .errors import CourseError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # config.model_type of what is known
PLACES = tuple(
    [f"self_attn.{name}_proj" for name in "qkvo"]
    + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
)

# ------------------------------------------------------------------ elementwise steps
# In plain PyTorch; `kernels` has the same for GPUs.  Sums are in fp32, as in transformers.


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normed, 1 / root mean square) of each row of x [tokens, width]."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype), scale


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor, more: Tensor | None
) -> Tensor:
    """Gradient at x of `rms_norm`, plus `more`: what reached x past the norm."""
    normed, through = x.float() * scale, grad.float() * weight.float()
    along = (through * normed).mean(-1, keepdim=True)
    made = scale * (through - normed * along)
    return (made if more is None else more.float() + made).to(x.dtype)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [..., tokens, heads, head_dim]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def rotate(
    qkv: Tensor, cos: Tensor, sin: Tensor, rotated: int, inner: Tensor | None, b: Tensor | None
) -> None:
    """Adds inner @ b.T to qkv [tokens, width], then turns its first `rotated` heads, in place.

    cos, sin: [batch or 1, tokens, 1, head_dim].
    """
    _plus(qkv, inner, _turned(b))
    _, length, _, width = cos.shape
    heads = qkv[:, : rotated * width].view(-1, length, rotated, width)
    heads.copy_(turned(heads, cos, sin))


def rotate_back(parts: Sequence[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient at qkv [tokens, width] of `rotate`, from those at q, k and v.

    parts: [batch, tokens, heads, head_dim] each; the turn is taken back in the first two.
    """
    qkv = torch.cat([part.flatten(2) for part in parts], dim=-1).flatten(0, 1)
    rotate(qkv, cos, -sin, parts[0].shape[2] + parts[1].shape[2], None, None)
    return qkv


def swiglu(gate_up: Tensor, inner: Tensor | None, b: Tensor | None, keep: bool) -> Tensor:
    """silu(gate) * up after inner @ b.T was added to gate_up [tokens, 2 * width].

    keep: whether gate_up itself must hold the sum afterwards (here it always does).
    """
    gate, up = _plus(gate_up, inner, _turned(b)).chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_backward(
    grad: Tensor, gate_up: Tensor, d_inner: Tensor | None, a_down: Tensor | None,
    inner: Tensor | None, b: Tensor | None,
) -> None:  # fmt: skip
    """Adds d_inner @ a_down to grad and inner @ b.T to gate_up; then writes the gradient at gate_up
    into gate_up, and what `swiglu` gave into grad.
    """
    _plus(grad, d_inner, a_down)
    gate, up = _plus(gate_up, inner, _turned(b)).chunk(2, dim=-1)
    silu = F.silu(gate)
    made, d_up = silu * up, grad * silu
    d_gate = torch.ops.aten.silu_backward(grad * up, gate)
    grad.copy_(made)
    gate.copy_(d_gate)
    up.copy_(d_up)


def residual(made: Tensor, x: Tensor, inner: Tensor | None, b: Tensor | None) -> Tensor:
    """x + made + inner @ b.T, in the place of made [tokens, width]; x, the largest, last."""
    return _plus(made, inner, _turned(b)).add_(x)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor], scales: Sequence[float]) -> None:
    """Each source [rows, columns], times its scale, into its target, whatever their precisions."""
    torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, scales)


@dataclass(frozen=True)
class Steps:
    """The elementwise steps: in plain PyTorch, or `kernels`' own.

    adds: they add an adapter's output on their way, in fp32; else the product before them starts
    from it.
    """

    adds: bool = False
    norm: Callable = rms_norm
    norm_backward: Callable = rms_norm_backward
    rotate: Callable = rotate
    rotate_back: Callable = rotate_back
    swiglu: Callable = swiglu
    swiglu_backward: Callable = swiglu_backward
    residual: Callable = residual
    copy_all: Callable = copy_all
    quantize_rows: Callable = fp8.quantize_rows
    transpose: Callable = fp8.transpose
    turn: Callable = fp8.turn
    round_columns: Callable = fp8.round_columns
    dequantize: Callable | None = None
    turn_four_bit: Callable | None = None


def gpu_steps() -> Steps:
    """The steps as Triton kernels."""
    from . import kernels

    return Steps(
        True,
        kernels.rms_norm,
        kernels.rms_norm_backward,
        kernels.rotate,
        kernels.rotate_back,
        kernels.swiglu,
        kernels.swiglu_backward,
        kernels.residual,
        kernels.copy_all,
        kernels.quantize_rows,
        kernels.transpose,
        kernels.turn,
        kernels.round_columns,
        kernels.dequantize,
        kernels.turn_four_bit,
    )


def steps_for(place: torch.device) -> Steps:
    """Kernels where there is a GPU for them; Triton writes fp8 only where the GPU has it."""
    if place.type != "cuda" or not compat.has_triton():
        return Steps()
    if fp8.native(place):
        return gpu_steps()
    plain = Steps()
    return replace(
        gpu_steps(), quantize_rows=plain.quantize_rows, turn=plain.turn,
        round_columns=plain.round_columns, turn_four_bit=None,
    )  # fmt: skip


# --------------------------------------------------------------------- frozen weights


class Weight:
    """A frozen matrix [outputs, inputs] in the precision that is computed in.

    bases: layers whose weights are views of it meanwhile, so that none is held twice.
    back: how a gradient passes through it, if not by a product in its own precision.
    """

    def __init__(
        self, matrix: Tensor | None, bases: Sequence[nn.Module] = (), back: fp8.Back | None = None
    ) -> None:
        self.matrix, self.bases, self.back = matrix, bases, back

    @classmethod
    def joined(cls, bases: Sequence[nn.Module], dtype: torch.dtype) -> Weight:
        """The layers' weights one below the other."""
        if len(bases) == 1:
            return cls(bases[0].weight.detach().to(dtype))
        matrix = torch.cat([base.weight.detach() for base in bases]).to(dtype)
        if bases[0].weight.dtype != dtype:
            return cls(matrix)
        sizes = [base.out_features for base in bases]
        for base, rows in zip(bases, matrix.split(sizes), strict=True):
            base.weight.data = rows
        return cls(matrix, bases)

    def back_in_fp8(self, steps: Steps) -> Weight:
        """This, with gradients passing through it in fp8."""
        turned = functools.partial(steps.turn, self.matrix)
        self.back = fp8.Back(fp8.row_scales(self.matrix), turned, steps.quantize_rows)
        return self

    def ready(self, forward: bool = True) -> Weight:
        """What to multiply by: this, or its dequantized copy.

        forward: whether `forward` is among what it is made for.
        """
        return self

    def restore(self) -> None:
        """Give the layers weights of their own again."""
        for base in self.bases:
            base.weight.data = base.weight.data.clone()
        self.matrix = self.back = None

    def forward(
        self, x: Tensor, bias: Tensor | None = None,
        left: Tensor | None = None, right: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """x @ W.T, plus the bias [outputs] and left @ right (from which the product starts)."""
        wide = self.matrix.t()
        if left is None:
            return x @ wide if bias is None else torch.addmm(bias, x, wide)
        start = left @ right if bias is None else torch.addmm(bias, left, right)
        return start.addmm_(x, wide)

    def backward(
        self, grad: Tensor, left: Tensor | None = None, right: Tensor | None = None
    ) -> Tensor:
        """grad @ W, plus left @ right."""
        if self.back:
            return _plus(self.back(grad), left, right)
        return grad @ self.matrix if left is None else (left @ right).addmm_(grad, self.matrix)


class FourBitWeight(Weight):
    """bitsandbytes' 4-bit matrices, one below the other; dequantized for each use."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, steps: Steps) -> None:
        super().__init__(None)
        self.parts = [layer.weight for layer in layers]
        self.dtype, self.steps = dtype, steps
        self.sizes = [layer.out_features for layer in layers]
        self.inputs = layers[0].in_features

    def back_in_fp8(self, steps: Steps) -> Weight:
        scale = fp8.row_scales(self._dequantized())
        self.back = fp8.Back(scale, self._turned, steps.quantize_rows)
        return self

    def ready(self, forward: bool = True) -> Weight:
        return _Copy(self._dequantized() if forward or not self.back else None, back=self.back)

    def _dequantized(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        place = self.parts[0].device
        matrix = torch.empty(sum(self.sizes), self.inputs, dtype=self.dtype, device=place)
        for part, rows in zip(self.parts, matrix.split(self.sizes), strict=True):
            if self.steps.dequantize and _usual(part.quant_state):
                self.steps.dequantize(part.data, part.quant_state, rows)
            else:
                rows.copy_(dequantize_4bit(part.data, part.quant_state))
        return matrix

    def _turned(self, scale: Tensor) -> Tensor:
        """(the matrix / scale).T in fp8, without the matrix on the way where a kernel can."""
        steps, states = self.steps, [part.quant_state for part in self.parts]
        if not (steps.turn_four_bit and all(map(_usual, states)) and self.inputs % 2 == 0):
            return steps.turn(self._dequantized(), scale)
        made = torch.empty(self.inputs, sum(self.sizes), dtype=fp8.FP8, device=scale.device)
        places = zip(self.parts, scale.split(self.sizes), made.split(self.sizes, 1), strict=True)
        for part, scales, columns in places:
            steps.turn_four_bit(part.data, part.quant_state, scales, columns)
        return made


def _usual(state: Any) -> bool:
    """Whether `kernels` can read this 4-bit weight: double quantization in blocks of 64."""
    return state.nested and state.blocksize == 64


class _Copy(Weight):
    """A dequantized copy, for one half layer's use."""

    def backward(
        self, grad: Tensor, left: Tensor | None = None, right: Tensor | None = None
    ) -> Tensor:
        if self.back:
            self.matrix = None  # the forward product is done, and this one reads another copy
        return super().backward(grad, left, right)


# ------------------------------------------------------------------ layers as groups


class Group:
    """Linear layers that read the same input, run as one product, with their adapters.

    With m adapted layers of rank r, A is [m r, inputs]: theirs one below the other; B is
    [all outputs, m r]: theirs times alpha / r on the diagonal, and zeros.
    """

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, make_weight) -> None:
        self.layers = list(layers)
        self.bases = [getattr(layer, "base_layer", layer) for layer in layers]
        self.sizes = [base.out_features for base in self.bases]
        biases = [base.bias for base in self.bases]
        self.bias = None if biases[0] is None else torch.cat(biases).detach().to(dtype)
        self.weight = make_weight(self.bases)
        self.A, self.B, self.slots = self._slots(dtype)

    def _slots(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None, list[Slot]]:
        """A and B (`Adapters.gather` fills them), and where each adapter's weights stand."""
        adapted = [_adapter(layer) for layer in self.layers]
        rank = sum(a.weight.shape[0] for a, _, _ in filter(None, adapted))
        if not rank:
            return None, None, []
        place = self.bases[0].weight.device
        A = torch.zeros(rank, self.bases[0].in_features, dtype=dtype, device=place)
        B = torch.zeros(sum(self.sizes), rank, dtype=dtype, device=place)
        slots, row, column = [], 0, 0
        for size, adapter in zip(self.sizes, adapted, strict=True):
            if adapter is not None:
                a, b, scale = adapter
                columns = slice(column, column + a.weight.shape[0])
                slots.append(Slot(a.weight, b.weight, scale, columns, slice(row, row + size)))
                column = columns.stop
            row += size
        return A, B, slots

    def forward(self, weight: Weight, x: Tensor, A: Tensor | None, B: Tensor | None):
        """(x W.T with bias and adapter, x A.T) for x [tokens, inputs]; B None: without adapter."""
        inner = None if A is None else x @ A.t()
        left, right = (None, None) if B is None else (inner, B.t())
        return weight.forward(x, self.bias, left, right), inner

    @staticmethod
    def gradients(grad: Tensor, x: Tensor, inner: Tensor | None, d_inner: Tensor | None):
        """The gradients at A and B, from those at the output and at inner = x A.T."""
        if inner is None:
            return None, None
        return d_inner.t() @ x, grad.t() @ inner


def _plus(y: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """y + left @ right, in place; y where there is no adapter, or it is added already."""
    return y if left is None or right is None else y.addmm_(left, right)


def _through(grad: Tensor, B: Tensor | None) -> Tensor | None:
    """The gradient at inner = x A.T."""
    return None if B is None else grad @ B


def _turned(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.t()


@dataclass
class Slot:
    """One adapter's own weights, its scale, and its columns and rows in the group's B."""

    a: Tensor
    b: Tensor
    scale: float
    columns: slice
    rows: slice


def _adapter(layer: nn.Module) -> tuple[nn.Module, nn.Module, float] | None:
    """(A, B, scale) of the layer's active adapter; None without one."""
    if not hasattr(layer, "lora_A") or not len(layer.lora_A):
        return None
    (name,) = layer.active_adapters
    return layer.lora_A[name], layer.lora_B[name], layer.scaling[name]


class Adapters:
    """All adapters' own (fp32) weights, and their places in the groups' A and B."""

    def __init__(self, groups: Sequence[Group], copy_all: Callable = copy_all) -> None:
        self.groups = [group for group in groups if group.slots]
        self.copy_all = copy_all
        slots = [slot for group in self.groups for slot in group.slots]
        self.weights = [slot.a for slot in slots] + [slot.b for slot in slots]
        self.scales = [1.0 for _ in slots] + [slot.scale for slot in slots]
        self.views = self.places([t for group in self.groups for t in (group.A, group.B)])

    def places(self, pairs: Sequence[Tensor]) -> list[Tensor]:
        """Of A, B of each group: the part that belongs to each of `weights`, as views."""
        in_a, in_b = [], []
        for group, a, b in zip(self.groups, pairs[::2], pairs[1::2], strict=True):
            in_a += [a[slot.columns] for slot in group.slots]
            in_b += [b[slot.rows, slot.columns] for slot in group.slots]
        return in_a + in_b

    def gather(self) -> dict[int, tuple[Tensor, Tensor]]:
        """id of a group -> its (A, B), connected to the adapters' weights."""
        made = _Gather.apply(self, *self.weights)
        pairs = zip(made[::2], made[1::2], strict=True)
        return {id(group): pair for group, pair in zip(self.groups, pairs, strict=True)}


class _Gather(torch.autograd.Function):
    """Copies all weights into the groups' A and B, and their gradients back.

    Once a forward pass, in a few kernels for the whole model.
    """

    @staticmethod
    def forward(ctx, adapters: Adapters, *weights: Tensor):
        ctx.adapters = adapters
        adapters.copy_all(adapters.views, [w.detach() for w in weights], adapters.scales)
        return tuple(t.view_as(t) for group in adapters.groups for t in (group.A, group.B))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        adapters = ctx.adapters
        full = [torch.empty_like(weight) for weight in adapters.weights]
        adapters.copy_all(full, adapters.places(grads), adapters.scales)
        return None, *full


# ------------------------------------------------------------------ one decoder layer


@dataclass
class Layer:
    """The parts of one decoder layer."""

    qkv: Group
    out: Group
    gate_up: Group
    down: Group
    norms: tuple[nn.Module, nn.Module]
    head_norms: tuple[nn.Module, nn.Module] | None  # Qwen 3 norms each head of q and of k
    head_dim: int
    checkpointing: bool = False  # keep its inputs alone

    @property
    def groups(self) -> tuple[Group, Group, Group, Group]:
        """All its groups, in the order of use."""
        return self.qkv, self.out, self.gate_up, self.down

    @property
    def rotated(self) -> int:
        """How many heads the position turns: those of q and of k."""
        return sum(self.qkv.sizes[:2]) // self.head_dim

    def heads(self, qkv: Tensor, rows: Rows) -> list[Tensor]:
        """q, k, v as [batch, tokens, heads, head_dim], views of qkv."""
        parts = qkv.view(*rows.shape, -1).split(self.qkv.sizes, dim=-1)
        return [part.unflatten(-1, (-1, self.head_dim)) for part in parts]


@dataclass
class Pass:
    """What all layers of one forward pass share."""

    rows: Rows  # which tokens see which
    cos: Tensor  # [batch or 1, tokens, 1, head_dim]
    sin: Tensor
    steps: Steps
    offload: Offload | None = None

    def adding(self, b: Tensor | None, step: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """(B for a product, B for the step after it): one of them adds the adapter's output.

        step: whether what comes after it is one of `steps`.
        """
        return (None, b) if step and self.steps.adds else (b, None)


def _mix(layer: Layer, qkv: Tensor, inner, b, run: Pass) -> tuple[list[Tensor], Tensor]:
    """Attention over qkv, as a little graph of its own: (its leaves, its output [tokens, width]).

    Without norms on the heads the rotation happens in qkv itself, and q, k and v are the leaves.
    """
    if layer.head_norms is None:
        run.steps.rotate(qkv, run.cos, run.sin, layer.rotated, inner, b)
        leaves = [part.detach().requires_grad_() for part in layer.heads(qkv, run.rows)]
        q, k, v = leaves
    else:
        leaves = [qkv.detach().requires_grad_()]
        q, k, v = layer.heads(leaves[0], run.rows)
        q, k = (norm(x) for norm, x in zip(layer.head_norms, (q, k), strict=True))
        q, k = (turned(x, run.cos, run.sin) for x in (q, k))
    return leaves, attend(q, k, v, run.rows).flatten(0, 1).flatten(1)


def _unmix(layer: Layer, leaves: list[Tensor], mixed: Tensor, grad: Tensor, run: Pass) -> Tensor:
    """The gradient at qkv [tokens, outputs] for the gradient at the attention's output."""
    grads = torch.autograd.grad(mixed, leaves, grad)
    if layer.head_norms is not None:
        return grads[0]
    return run.steps.rotate_back(grads, run.cos, run.sin)


class _Attention(torch.autograd.Function):
    """x + output projection of attention of the normed x; x [tokens, width]."""

    @staticmethod
    def forward(ctx, x, a_qkv, b_qkv, a_out, b_out, layer: Layer, run: Pass):
        norm = layer.norms[0]
        normed, _ = run.steps.norm(x, norm.weight, norm.variance_epsilon)
        early, late = run.adding(b_qkv, layer.head_norms is None)
        qkv, inner = layer.qkv.forward(layer.qkv.weight.ready(), normed, a_qkv, early)
        del normed
        keep = any(ctx.needs_input_grad) and not layer.checkpointing
        with torch.set_grad_enabled(keep):
            leaves, mixed = _mix(layer, qkv, inner, late, run)
        early, late = run.adding(b_out)
        made, inner_out = layer.out.forward(layer.out.weight.ready(), mixed.detach(), a_out, early)
        ctx.graph = (leaves, mixed) if keep else None
        more = () if layer.checkpointing else (inner, inner_out)
        _keep(ctx, layer, run, x, (a_qkv, b_qkv, a_out, b_out), more)
        return run.steps.residual(made, x, inner_out, late)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layer, run = ctx.layer, ctx.run
        weight = layer.qkv.weight.ready(forward=layer.checkpointing)
        x, a_qkv, b_qkv, a_out, b_out, *inners = _kept(ctx)
        norm = layer.norms[0]
        normed, scale = run.steps.norm(x, norm.weight, norm.variance_epsilon)
        if ctx.graph:
            (leaves, mixed), (inner, inner_out) = ctx.graph, inners
        else:
            early, late = run.adding(b_qkv, layer.head_norms is None)
            qkv, inner = layer.qkv.forward(weight, normed, a_qkv, early)
            with torch.enable_grad():
                leaves, mixed = _mix(layer, qkv, inner, late, run)
            del qkv
            inner_out = None if a_out is None else mixed.detach() @ a_out.t()
        ctx.graph = None
        d_inner = _through(grad, b_out)
        dmixed = layer.out.weight.ready(forward=False).backward(grad, d_inner, a_out)
        d_out = Group.gradients(grad, mixed.detach(), inner_out, d_inner)
        dqkv = _unmix(layer, leaves, mixed, dmixed, run)
        del leaves, mixed, dmixed
        d_inner = _through(dqkv, b_qkv)
        d_qkv = Group.gradients(dqkv, normed, inner, d_inner)
        if not ctx.needs_input_grad[0]:  # the first layer: below it nothing is trained
            return None, *d_qkv, *d_out, None, None
        del normed
        dx = weight.backward(dqkv, d_inner, a_qkv)
        dx = run.steps.norm_backward(dx, x, norm.weight, scale, grad)
        return dx, *d_qkv, *d_out, None, None


class _MLP(torch.autograd.Function):
    """x + down(silu(gate) * up) of the normed x; x [tokens, width]."""

    @staticmethod
    def forward(ctx, x, a_up, b_up, a_down, b_down, layer: Layer, run: Pass):
        norm = layer.norms[1]
        normed, _ = run.steps.norm(x, norm.weight, norm.variance_epsilon)
        early, late = run.adding(b_up)
        gate_up, inner = layer.gate_up.forward(layer.gate_up.weight.ready(), normed, a_up, early)
        del normed
        act = run.steps.swiglu(gate_up, inner, late, keep=not layer.checkpointing)
        if layer.checkpointing:
            del gate_up
        early, late = run.adding(b_down)
        made, inner_down = layer.down.forward(layer.down.weight.ready(), act, a_down, early)
        more = () if layer.checkpointing else (inner, gate_up, inner_down)
        _keep(ctx, layer, run, x, (a_up, b_up, a_down, b_down), more)
        return run.steps.residual(made, x, inner_down, late)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        layer, run = ctx.layer, ctx.run
        weight = layer.gate_up.weight.ready(forward=layer.checkpointing)
        x, a_up, b_up, a_down, b_down, *kept = _kept(ctx)
        norm = layer.norms[1]
        normed, scale = run.steps.norm(x, norm.weight, norm.variance_epsilon)
        inner_down = late = None
        if kept:
            inner, gate_up, inner_down = kept
        else:
            early, late = run.adding(b_up)
            gate_up, inner = layer.gate_up.forward(weight, normed, a_up, early)
        d_inner = _through(grad, b_down)
        act = layer.down.weight.ready(forward=False).backward(grad)
        # the last use of both: they take their gradients, after what is still to be added
        missing = None if late is None else inner
        run.steps.swiglu_backward(act, gate_up, d_inner, a_down, missing, late)
        if inner_down is None and a_down is not None:
            inner_down = act @ a_down.t()
        d_down = Group.gradients(grad, act, inner_down, d_inner)
        del act
        d_inner = _through(gate_up, b_up)
        d_up = Group.gradients(gate_up, normed, inner, d_inner)
        del normed
        dx = weight.backward(gate_up, d_inner, a_up)
        dx = run.steps.norm_backward(dx, x, norm.weight, scale, grad)
        return dx, *d_up, *d_down, None, None


class _Norm(torch.autograd.Function):
    """The norm after the last layer; x [tokens, width]."""

    @staticmethod
    def forward(ctx, x, norm: nn.Module, steps: Steps):
        normed, scale = steps.norm(x, norm.weight, norm.variance_epsilon)
        ctx.save_for_backward(x, scale)
        ctx.norm, ctx.steps = norm, steps
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        # a kernel writes its result over the gradient, and this one may be others' too
        return ctx.steps.norm_backward(grad.clone(), x, ctx.norm.weight, scale, None), None, None


def _keep(ctx, layer: Layer, run: Pass, x: Tensor, adapters: tuple, more: tuple) -> None:
    """Save a half layer's input (here or in the CPU's memory), its adapters, and `more`."""
    ctx.layer, ctx.run = layer, run
    offload = run.offload if layer.checkpointing and any(ctx.needs_input_grad) else None
    ctx.ticket = offload.put(x) if offload else None
    ctx.save_for_backward(None if offload else x, *adapters, *more)


def _kept(ctx) -> list[Tensor | None]:
    x, *others = ctx.saved_tensors
    return [ctx.run.offload.take(ctx.ticket) if ctx.ticket is not None else x, *others]


class Offload:
    """Layer inputs wait in page-locked CPU memory; copies run beside the computation.

    Copies go over a stream of their own.  An input stays referenced on the card until the stream
    of the computation has waited for its copy, so that its memory cannot be used again too early.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.away: list[Tensor | None] = []  # by ticket
        self.leaving: deque[tuple[int, Tensor, torch.cuda.Event]] = deque()
        self.coming: dict[int, tuple[Tensor, torch.cuda.Event]] = {}

    def put(self, x: Tensor) -> int:
        """Start the copy of x to the CPU; the ticket to ask for it again."""
        if self.coming:  # a backward pass that did not run to its end
            self.coming.clear()
        home = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        done = self._copy(home, x)
        self.away.append(home)
        self.leaving.append((len(self.away) - 1, x, done))
        if len(self.leaving) > 2:
            _, _, done = self.leaving.popleft()
            torch.cuda.current_stream().wait_event(done)
        return len(self.away) - 1

    def take(self, ticket: int) -> Tensor:
        """The input of that ticket, on the card; the copy of the one before it is started."""
        here = [x for number, x, _ in self.leaving if number == ticket]
        self.leaving.clear()
        if here:
            (x,) = here
        else:
            x, done = self.coming.pop(ticket, None) or self._fetch(ticket)
            torch.cuda.current_stream().wait_event(done)
        if ticket:
            self.coming[ticket - 1] = self._fetch(ticket - 1)
        del self.away[ticket:]
        return x

    def _fetch(self, ticket: int) -> tuple[Tensor, torch.cuda.Event]:
        home = self.away[ticket]
        x = torch.empty(home.shape, dtype=home.dtype, device=self.stream.device)
        return x, self._copy(x, home)

    def _copy(self, to: Tensor, source: Tensor) -> torch.cuda.Event:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            to.copy_(source, non_blocking=True)
            return self.stream.record_event()


# ---------------------------------------------------------------------- a whole model


@dataclass
class FastDecoder:
    """A decoder's embedding, layers and last norm, run by this module."""

    decoder: nn.Module
    layers: list[Layer]
    steps: Steps
    offload: Offload | None = None
    groups: list[Group] = field(init=False)
    adapters: Adapters = field(init=False)

    def __post_init__(self) -> None:
        self.groups = [group for layer in self.layers for group in layer.groups]
        self.adapters = Adapters(self.groups, self.steps.copy_all)

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rows: Rows | None = None,
    ) -> Tensor:
        """Last hidden states [batch, tokens, width].

        Rows are told apart by position ids (packed) or the mask; without either, one a line.  What
        the mask leaves out is not computed at all: its states are 0.  rows: the packed ones, if
        they are known already; else a GPU is waited for.
        """
        if position_ids is None and attention_mask is not None and not bool(attention_mask.all()):
            real = attention_mask.flatten().nonzero().flatten()
            positions = (attention_mask.cumsum(dim=1) - 1).flatten()[real]
            found = self(input_ids.flatten()[real][None], positions[None])[0]
            all_states = found.new_zeros(input_ids.numel(), found.shape[1])
            return all_states.index_copy(0, real, found).view(*input_ids.shape, -1)
        packed = position_ids is not None
        rows = rows or (Rows.packed(position_ids) if packed else Rows.lines(input_ids))
        if not packed:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return self._states(input_ids, position_ids, rows)

    def _states(self, input_ids: Tensor, position_ids: Tensor, rows: Rows) -> Tensor:
        embedded = self.decoder.embed_tokens(input_ids).detach()  # frozen: no gradient goes below
        cos, sin = self.decoder.rotary_emb(embedded, position_ids=position_ids)
        run = Pass(
            rows, cos.unsqueeze(2), sin.unsqueeze(2), self.steps,
            self.offload if torch.is_grad_enabled() else None,
        )  # fmt: skip
        pairs, none = self.adapters.gather(), (None, None)
        x = embedded.flatten(0, 1)
        for layer in self.layers:
            q, o, g, d = (pairs.get(id(group), none) for group in layer.groups)
            x = _Attention.apply(x, *q, *o, layer, run)
            x = _MLP.apply(x, *g, *d, layer, run)
        return _Norm.apply(x, self.decoder.norm, self.steps).view_as(embedded)


def decoder_of(model: nn.Module) -> nn.Module:
    """The decoder inside a causal language model, or inside PEFT's wrapper around one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(base, base.base_model_prefix)


def why_not(model: nn.Module, dtype: torch.dtype | None = None, longest: int = 0) -> str | None:
    """Why this module cannot run the model's layers; None if it can.

    dtype: the precision to compute in.  longest: tokens of the longest row.
    """
    config = decoder_of(model).config
    if config.model_type not in FAMILIES:
        return f"{config.model_type} layers are not built like Llama's"
    if getattr(config, "attention_dropout", 0):
        return "the model has dropout in its attention"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < longest:
        return f"rows of {longest} tokens are longer than the attention window of {window}"
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if not trained or not all(".lora_A." in name or ".lora_B." in name for name in trained):
        return "weights other than LoRA matrices are trained"
    held = {p.dtype for n, p in model.named_parameters() if "lora_" not in n} - {dtype}
    if dtype and any(other.is_floating_point for other in held):  # 4-bit weights are no floats
        names = " and ".join(str(d).removeprefix("torch.") for d in held if d.is_floating_point)
        return f"the model is loaded in {names}, and computing is in {str(dtype)[6:]}"
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and (reason := _odd_adapter(layer)):
            return reason
        if hasattr(layer, "lora_A") and not name.endswith(PLACES):
            return f"an adapter sits on {name}, which is none of a Llama layer's"
    return None


def _odd_adapter(layer: nn.Module) -> str | None:
    if len(layer.active_adapters) != 1 or layer.merged or layer.disable_adapters:
        return "an adapter is merged, switched off, or one of several"
    if getattr(layer, "lora_variant", None) or any(
        b.bias is not None for b in layer.lora_B.values()
    ):
        return "the adapter is a variant of LoRA"
    dropout = layer.lora_dropout[layer.active_adapters[0]]
    if getattr(dropout, "p", 0.0) > 0:
        return "adapter dropout is on (dropout=0 allows it)"
    return None


def _weight_maker(
    dtype: torch.dtype, base_precision: str, gradient_precision: str, fit: bool, steps: Steps,
    taken: list[Weight | fp8.Fp8Weight],
) -> Callable:  # fmt: skip
    """How the frozen weights of a group's layers are held, and gradients pass through them.

    taken: gets each weight that is made, so that all are given back, however many there were.
    """

    def make(bases: Sequence[nn.Module]) -> Weight | fp8.Fp8Weight:
        if base_precision == "fp8":
            made = fp8.Fp8Weight(bases, steps, fit)
        elif hasattr(bases[0].weight, "quant_state"):
            made = FourBitWeight(bases, dtype, steps)
        else:
            made = Weight.joined(bases, dtype)
        taken.append(made)
        back_in_fp8 = gradient_precision == "fp8" and base_precision != "fp8"
        return made.back_in_fp8(steps) if back_in_fp8 else made

    return make


def _layers(decoder: nn.Module, every: int, dtype: torch.dtype, make_weight) -> list[Layer]:
    """every: checkpoint each such layer, from the first on; 0 none.  The last one never is."""
    make = functools.partial(Group, dtype=dtype, make_weight=make_weight)
    made, last = [], len(decoder.layers) - 1
    for number, block in enumerate(decoder.layers):
        attention, mlp = block.self_attn, block.mlp
        head_norms = None
        if hasattr(attention, "q_norm"):
            head_norms = (attention.q_norm, attention.k_norm)
        made.append(
            Layer(
                make([attention.q_proj, attention.k_proj, attention.v_proj]),
                make([attention.o_proj]),
                make([mlp.gate_proj, mlp.up_proj]),
                make([mlp.down_proj]),
                (block.input_layernorm, block.post_attention_layernorm),
                head_norms,
                attention.head_dim,
                checkpointing=bool(every) and number % every == 0 and number < last,
            )
        )
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # else what was joined stays reserved, in pieces too small
    return made


@contextlib.contextmanager
def fast_layers(
    model: nn.Module,
    *,
    dtype: torch.dtype,
    base_precision: str = "auto",
    gradient_precision: str = "auto",
    sample: Mapping[str, Tensor] | None = None,
    checkpointing: bool | int = False,
    offload: bool = False,
    kernels: bool = False,
) -> Iterator[FastDecoder]:
    """Inside the block, `model`'s decoder layers are run by this module.

    dtype: the precision computed in.  base_precision: "fp8" holds and multiplies the frozen
    weights in 8 bits, rounded for what they meet with `sample` (input_ids and position_ids).
    gradient_precision: "fp8" multiplies what passes back through them in 8 bits.  checkpointing:
    of every layer, or of each n-th.  offload, kernels: see the module's text; they need a GPU.
    Raises CourseError where `why_not` gives a reason, or where the result is not the model's own.
    """
    if reason := why_not(model, dtype):
        raise CourseError(f"The fast layers cannot run this model: {reason}.")
    decoder = decoder_of(model)
    place = next(model.parameters()).device
    steps = steps_for(place) if kernels else Steps()
    fit = sample is not None
    taken: list[Weight | fp8.Fp8Weight] = []
    make_weight = _weight_maker(dtype, base_precision, gradient_precision, fit, steps, taken)
    plain = decoder.forward

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, row_starts=None,
        longest_row=0, **others: Any,
    ):  # fmt: skip
        if input_ids is None or others.get("past_key_values") is not None:
            return plain(input_ids, attention_mask, position_ids, **others)
        rows = None
        if row_starts is not None:  # see ahead.CountedBatches
            rows = Rows(tuple(input_ids.shape), row_starts, longest_row)
        with torch.autocast(input_ids.device.type, enabled=False):
            return BaseModelOutputWithPast(
                last_hidden_state=fast(input_ids, position_ids, attention_mask, rows)
            )

    try:
        fast = FastDecoder(
            decoder,
            _layers(decoder, int(checkpointing), dtype, make_weight),
            steps,
            Offload(place) if offload and place.type == "cuda" else None,
        )
        if base_precision != "fp8":
            _check_same(decoder, fast)
        elif sample is not None:
            with torch.no_grad():
                fast(**{name: tokens.to(place) for name, tokens in sample.items()})
        decoder.forward = types.MethodType(forward, decoder)
        yield fast
    finally:
        decoder.__dict__.pop("forward", None)
        for weight in taken:
            weight.restore()


@torch.no_grad()
def _check_same(decoder: nn.Module, fast: FastDecoder) -> None:
    """Raise CourseError unless both give the same hidden states for a few tokens."""
    place, was_training = next(decoder.parameters()).device, decoder.training
    tokens = torch.arange(16, device=place).view(2, 8) * 31 + 100
    tokens %= decoder.config.vocab_size
    decoder.eval()
    try:
        own, ours = decoder(tokens, use_cache=False)[0].float(), fast(tokens).float()
    finally:
        decoder.train(was_training)
    # The typical token: bf16's rounding makes 3 % in a deep model, and far more at odd tokens.
    apart = float(((own - ours).norm(dim=-1) / own.norm(dim=-1)).median())
    if bool(own.isfinite().all()) and not apart < 0.1:
        raise CourseError(
            f"The fast layers do not give this model's own hidden states (off by {apart:.1%}): "
            "set fast=False."
        )
