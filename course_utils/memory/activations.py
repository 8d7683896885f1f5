"""What the fast layers (`course_utils.fast`) hold, line by line: forward, loss and backward.

Each method follows the function of the same name there and writes down every tensor that is made
and the moment at which it is let go.  n = tokens of the batch, d = width of the model, f = width of
the MLP; sizes are numbers x bytes a number.
"""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from .fitting import Fitting
from .job import (
    ACTIVATIONS,
    ADAPTERS,
    GRADIENTS,
    LOGITS,
    WEIGHTS,
    WORKSPACE,
    Held,
    Job,
)
from .ledger import Ledger, Piece, drop
from .shapes import Linear
from .shared import Attention, frozen_head_chunks


@dataclass
class Group:
    """Linear layers that read the same input, run as one product, and their adapters."""

    job: Job
    layers: tuple[Linear, ...]

    @property
    def outputs(self) -> int:
        return sum(linear.outputs for linear in self.layers)

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def rank(self) -> int:
        """Columns of B: the rank once for each adapted layer."""
        return self.job.recipe.rank * sum(self.job.adapted(linear) for linear in self.layers)


@dataclass
class Saved:
    """What a half layer keeps for its backward pass.  x: None where it waits in the CPU's memory"""

    x: Piece | None
    inner: Piece | None = None
    inner_out: Piece | None = None
    wide: Piece | None = None  # q, k, v or gate and up
    mixed: list[Piece] = field(default_factory=list)  # what attention keeps


class FastLayers:
    """The layers of one model under `fast.fast_layers`, on a GPU with Triton."""

    def __init__(self, job: Job, ledger: Ledger, held: Held) -> None:
        self.job, self.ledger, self.held = job, ledger, held
        self.n, self.d, self.f = job.tokens, job.shape.width, job.shape.mlp_width
        self.attention = Attention(job, ledger)
        q, k, v, o, gate, up, down = job.shape.linears
        self.qkv, self.out = Group(job, (q, k, v)), Group(job, (o,))
        self.gate_up, self.down = Group(job, (gate, up)), Group(job, (down,))
        self.groups = (self.qkv, self.out, self.gate_up, self.down)
        self.fp8 = job.recipe.base_precision == "fp8"
        self.four_bit = job.recipe.method == "qlora"
        self.back_in_fp8 = job.recipe.gradient_precision == "fp8" and not self.fp8
        self.triton = job.recipe.kernels
        self.leaving: deque[Piece] = deque()  # on their way to the CPU's memory
        self.coming: list[Piece] = []
        self.saved: list[Saved] = []  # by half layer
        self.grads: list[Piece] = []  # of all A and B
        self.matrices: list[tuple[Group, Piece]] = []  # joined, to be given back at the end

    # ---------------------------------------------------------------- building

    def build(self) -> None:
        """The groups' weights joined, and their A and B."""
        for pieces in self.held.layers:
            for group in self.groups:
                self._join(group, pieces)
                if group.rank:
                    name = "joined A in bf16 [ranks x inputs]"
                    self._new(ADAPTERS, name, group.rank, group.inputs)
                    name = "joined B in bf16 [outputs x ranks]"
                    self._new(ADAPTERS, name, group.outputs, group.rank)
            self.ledger.empty_cache()
        if self.fp8:
            Fitting(self).run()

    def restore(self) -> None:
        """After training the stock layers get weights of their own again, group by group."""
        for group, matrix in self.matrices:
            if self.fp8:
                matrix.drop()
            for linear in group.layers:
                name = "linear layers [outputs x inputs]"
                self._new(WEIGHTS, name, linear.outputs, linear.inputs)
            if not self.fp8:
                matrix.drop()

    def _join(self, group: Group, pieces: dict[str, Piece]) -> None:
        if any(linear.bias for linear in group.layers):
            self._new(WEIGHTS, "joined biases [outputs]", group.outputs)
        if self.fp8:  # they wait in the CPU's memory
            drop(*(pieces.pop(linear.name) for linear in group.layers))
        elif len(group.layers) > 1 and not self.four_bit:
            name = "linear layers, joined [outputs x inputs]"
            matrix = self._new(WEIGHTS, name, group.outputs, group.inputs)
            self.matrices.append((group, matrix))
            for linear in group.layers:
                pieces.pop(linear.name).drop()
        if self.back_in_fp8:
            with self._ready(group):
                self._new(WEIGHTS, "fp8 scales [outputs]", group.outputs, width=4)

    # ----------------------------------------------------------------- helpers

    def _new(self, part: str, name: str, *dims: int, width: float | None = None) -> Piece:
        return self.ledger.new(part, name, *dims, width=self.job.width if width is None else width)

    def _short(self, part: str, name: str, *dims: int, width: float | None = None):
        width = self.job.width if width is None else width
        return self.ledger.short(part, name, *dims, width=width)

    def _tokens(self, name: str, wide: int, width: float | None = None) -> Piece:
        return self._new(ACTIVATIONS, f"{name} [tokens x width]", self.n, wide, width=width)

    @contextmanager
    def _ready(self, group: Group, forward: bool = True):
        """The weight to multiply by: in 4 bits, a dequantized copy for as long as the block."""
        if not self.four_bit or (self.back_in_fp8 and not forward):
            yield None
            return
        name = "dequantized copy [outputs x inputs]"
        with self._short(WORKSPACE, name, group.outputs, group.inputs) as copy:
            yield copy

    def _forward(self, group: Group, name: str) -> tuple[Piece, Piece | None]:
        """(x W.T, x A.T)"""
        with ExitStack() as stack:
            if self.fp8:
                stack.enter_context(self._in_fp8(group.inputs))
            y = self._tokens(name, group.outputs)
        return y, self._inner(group)

    def _inner(self, group: Group) -> Piece | None:
        return self._tokens("x A.T", group.rank) if group.rank else None

    @contextmanager
    def _in_fp8(self, wide: int):
        short = self._short(WORKSPACE, "input in fp8 [tokens x width]", self.n, wide, width=1)
        with short, self._short(WORKSPACE, "its scales [tokens]", self.n, width=4):
            yield

    def _back(self, group: Group, name: str, copy: Piece | None = None) -> Piece:
        """grad W; copy: of the weight, dequantized, which only a product in bf16 still needs."""
        if not (self.fp8 or self.back_in_fp8):
            return self._tokens(name, group.inputs)
        if self.back_in_fp8:
            drop(copy)
        dims = (group.inputs, group.outputs)
        turned = self._short(WORKSPACE, "weight turned [inputs x outputs]", *dims, width=1)
        with turned, self._in_fp8(group.outputs):
            return self._tokens(name, group.inputs)

    def _adapter_grads(self, group: Group) -> None:
        if group.rank:
            name = "of joined A in bf16 [ranks x inputs]"
            self.grads.append(self._new(GRADIENTS, name, group.rank, group.inputs))
            name = "of joined B in bf16 [outputs x ranks]"
            self.grads.append(self._new(GRADIENTS, name, group.outputs, group.rank))

    def _plain(self, *wide: int, width: float | None = None) -> None:
        """Without Triton: what the elementwise steps make on their way, all at once."""
        if not self.triton:
            pieces = [self._tokens("an elementwise step in parts", w, width) for w in wide]
            for piece in pieces:
                piece.drop()

    def _norm(self) -> tuple[Piece, Piece]:
        """(normed x, 1 / root mean square)"""
        self._plain(self.d, self.d, self.d, width=4)
        normed = self._tokens("normed input", self.d)
        return normed, self._tokens("1 / root mean square", 1, width=4)

    # ----------------------------------------------------------------- forward

    def forward(self) -> None:
        """Embedding, all layers, last norm; leaves the hidden states in self.hidden."""
        shape = self.job.shape
        self.embedded = self._tokens("embedded tokens", self.d)
        angles = self.n if self.job.recipe.packing else self.job.length
        self.turns = [self._new(ACTIVATIONS, "cos and sin", angles, shape.head_dim) for _ in "cs"]
        x = self.embedded.keep()
        for layer in range(shape.layers):
            x = self._attention_forward(x, self.job.checkpointed(layer))
            x = self._mlp_forward(x, self.job.checkpointed(layer))
        self._last_norm(x)
        self.embedded.drop()

    def _keep(self, x: Piece, short: bool) -> Saved:
        """A half layer's input, kept here or sent to the CPU's memory."""
        if not (short and self.job.recipe.offload):
            return Saved(x.keep())
        self.leaving.append(x.keep())
        if len(self.leaving) > 2:
            self.leaving.popleft().drop()
        return Saved(None)

    def _mix(self, qkv: Piece) -> list[Piece]:
        """Attention over qkv; what it keeps, its output first."""
        shape = self.job.shape
        if not shape.head_norms:
            self._plain(*[shape.q_width + shape.kv_width] * 4)
            return self.attention.forward()
        kept, turned = [], []
        for width, heads in ((shape.q_width, shape.heads), (shape.kv_width, shape.kv_heads)):
            wide = self._tokens("heads in fp32", width, 4)  # the norm is the stock one
            kept += [wide, self._new(ACTIVATIONS, "1 / rms of heads", self.n, heads, width=4)]
            turned.append(self._stock_norm(width))
        for at, width in enumerate((shape.q_width, shape.kv_width)):
            turned[at] = self._turn(turned[at], width)
        return [*self.attention.forward(), *kept, *turned]

    def _stock_norm(self, wide: int) -> Piece:
        """x / rms in fp32, rounded, times the norm's weight."""
        long = self._short(ACTIVATIONS, "normed in fp32", self.n, wide, width=4)
        with long, self._short(ACTIVATIONS, "normed, rounded", self.n, wide):
            return self._tokens("normed", wide)

    def _turn(self, x: Piece, wide: int) -> Piece:
        """x cos + rotated x sin"""
        with self._short(ACTIVATIONS, "x cos", self.n, wide):
            with self._short(ACTIVATIONS, "half turned", self.n, wide):
                product = self._tokens("half turned x sin", wide)
            turned = self._tokens("turned queries or keys", wide)
        product.drop()
        x.drop()
        return turned

    def _attention_forward(self, x: Piece, short: bool) -> Piece:
        normed, scale = self._norm()
        with self._ready(self.qkv):
            qkv, inner = self._forward(self.qkv, "queries, keys and values")
        normed.drop()
        mixed = self._mix(qkv)
        with self._ready(self.out):
            made, inner_out = self._forward(self.out, "input of the MLP half")
        saved = self._keep(x, short)
        if short:
            drop(qkv, inner, inner_out, *mixed)
        else:
            saved.wide, saved.inner, saved.inner_out, saved.mixed = qkv, inner, inner_out, mixed
        self.saved.append(saved)
        drop(scale, x)
        return made

    def _mlp_forward(self, x: Piece, short: bool) -> Piece:
        normed, scale = self._norm()
        with self._ready(self.gate_up):
            gate_up, inner = self._forward(self.gate_up, "gate and up")
        normed.drop()
        self._plain(self.f)
        act = self._tokens("silu(gate) x up", self.f)
        if short:
            gate_up.drop()
        with self._ready(self.down):
            made, inner_down = self._forward(self.down, "input of the attention half")
        saved = self._keep(x, short)
        if short:
            drop(inner, inner_down)
        else:
            saved.wide, saved.inner, saved.inner_out = gate_up, inner, inner_down
        self.saved.append(saved)
        drop(act, scale, x)
        return made

    def _last_norm(self, x: Piece) -> None:
        """The norm after the last layer keeps its input."""
        self.last, self.last_rms = x, self._tokens("last norm's 1 / rms", 1, width=4)
        self.hidden = self._tokens("last hidden states", self.d)

    # ---------------------------------------------------------------- backward

    def backward(self, grad: Piece) -> None:
        """From the gradient at the last hidden states to those of the adapters' own weights."""
        grad = self._last_norm_backward(grad)
        for layer in reversed(range(self.job.shape.layers)):
            if layer in (self.job.shape.layers - 1, 0):
                self.ledger.now = f"backward, layer {layer}"
            else:
                self.ledger.now = "backward, layers between"
            grad = self._mlp_backward(grad, 2 * layer + 1)
            grad = self._attention_backward(grad, 2 * layer)
        self.ledger.now = "backward, adapters"
        drop(*self.turns, *self.coming, *self.leaving)
        self.coming.clear(), self.leaving.clear()

    def gather_backward(self, add: bool) -> list[Piece]:
        """The adapters' fp32 gradients from those of the joined A and B; add: onto older ones."""
        made = [
            self.ledger.new(GRADIENTS, f"of {name}", *dims, width=4)
            for name, dims, _ in self.held.trained
        ]
        drop(*self.grads)
        self.grads.clear()
        if add:
            drop(*made)
            return []
        return made

    def _last_norm_backward(self, grad: Piece) -> Piece:
        self.ledger.now = "backward, last norm"
        made = self._tokens("gradient at a layer's output", self.d)
        drop(grad, self.last, self.last_rms)
        return made

    def _take(self, at: int) -> tuple[Saved, Piece]:
        """What half layer `at` kept, its input back on the card."""
        saved = self.saved.pop()
        if saved.x is not None:
            return saved, saved.x
        if self.leaving:  # the newest are still here
            x = self.leaving.pop()
            drop(*self.leaving)
            self.leaving.clear()
        else:
            x = self.coming.pop() if self.coming else self._tokens("input, back", self.d)
        if any(left.x is None for left in self.saved):
            self.coming.append(self._tokens("next input, back", self.d))
        return saved, x

    def _mlp_backward(self, grad: Piece, at: int) -> Piece:
        with self._ready(self.gate_up, self.job.checkpointed(at // 2)) as copy:
            saved, x = self._take(at)
            normed, scale = self._norm()
            gate_up, inner, inner_down = saved.wide, saved.inner, saved.inner_out
            if gate_up is None:
                gate_up, inner = self._forward(self.gate_up, "gate and up, made again")
            d_down = self._inner(self.down)
            with self._ready(self.down, forward=False):
                act = self._back(self.down, "gradient at the MLP's product")
            self._plain(*[self.f] * 5)
            if inner_down is None:
                inner_down = self._inner(self.down)
            self._adapter_grads(self.down)
            act.drop()
            d_inner = self._inner(self.gate_up)
            drop(d_down)
            self._adapter_grads(self.gate_up)
            normed.drop()
            dx = self._back(self.gate_up, "gradient at a layer's input", copy)
            self._plain(self.d, self.d, self.d, width=4)
        drop(gate_up, inner, inner_down, d_inner, scale, x, grad)
        return dx

    def _attention_backward(self, grad: Piece, at: int) -> Piece | None:
        with self._ready(self.qkv, self.job.checkpointed(at // 2)) as copy:
            saved, x = self._take(at)
            normed, scale = self._norm()
            qkv, inner, inner_out, mixed = saved.wide, saved.inner, saved.inner_out, saved.mixed
            if qkv is None:
                qkv, inner = self._forward(self.qkv, "q, k and v, made again")
                mixed = self._mix(qkv)
                inner_out = self._inner(self.out)
            d_out = self._inner(self.out)
            with self._ready(self.out, forward=False):
                dmixed = self._back(self.out, "gradient at attention's output")
            self._adapter_grads(self.out)
            dqkv = self._unmix(mixed)
            drop(dmixed, qkv, *mixed)
            d_inner = self._inner(self.qkv)
            drop(d_out)
            self._adapter_grads(self.qkv)
            dx = None
            normed.drop()
            if at:
                dx = self._back(self.qkv, "gradient at a layer's input", copy)
                self._plain(self.d, self.d, self.d, width=4)
        drop(dqkv, inner, inner_out, d_inner, scale, x, grad)
        return dx

    def _unmix(self, mixed: list[Piece]) -> Piece:
        """The gradient at q, k and v together, from that at attention's output."""
        shape, grads = self.job.shape, self.attention.backward()
        if shape.head_norms:
            return self._unmix_normed(grads, mixed)
        made = self._tokens("gradient at q, k and v", shape.qkv_width)
        self._plain(*[shape.q_width + shape.kv_width] * 4)
        drop(*grads)
        return made

    def _unmix_normed(self, grads: list[Piece], mixed: list[Piece]) -> Piece:
        """Back through rotation and norm of the heads, by torch's own steps.

        mixed: what `_mix` kept; the parts that only these steps use are taken out and let go.
        """
        shape = self.job.shape
        widths = (shape.q_width, shape.kv_width)
        drop(mixed.pop(), mixed.pop())  # turned k and q
        for at in (1, 0):
            with self._short(ACTIVATIONS, "gradient through the turn", self.n, widths[at]):
                turned = self._tokens("gradient at the normed heads", widths[at])
            grads[at].drop()
            grads[at] = turned
        for at in (1, 0):
            grads[at] = self._stock_norm_backward(grads[at], widths[at], mixed.pop(), mixed.pop())
        parts = [self._tokens("gradient at q, k and v, one of them", shape.qkv_width)
                 for _ in range(2)]  # fmt: skip
        drop(*grads, parts[1])
        return parts[0]

    def _stock_norm_backward(self, grad: Piece, wide: int, *kept: Piece) -> Piece:
        """Back through `_stock_norm`; takes over the gradient and what the norm kept."""
        scaled = self._tokens("gradient x weight", wide)
        grad.drop()
        long, through, along = (self._tokens("norm's backward, fp32", wide, 4) for _ in "123")
        drop(scaled, long, along)
        drop(*[self._tokens("steps of the heads' norm, fp32", wide, 4) for _ in range(4)])
        drop(*kept)
        made = self._tokens("gradient at the heads", wide)
        through.drop()
        return made

    # -------------------------------------------------------------------- loss

    def loss(self) -> Piece:
        """The chunked loss over a frozen head; what is kept is the gradient at its states."""
        job = self.job
        self.ledger.now = "loss"
        states = self._new(LOGITS, "scored states [tokens x width]", job.scored, self.d)
        self.where = self._new(LOGITS, "positions and targets", 2 * job.scored, width=8)
        grads = self._new(LOGITS, "gradient at the states [tokens x width]", job.scored, self.d)
        frozen_head_chunks(job, self.ledger)
        states.drop()
        self.hidden.drop()
        return grads

    def loss_backward(self, grads: Piece) -> Piece:
        """The gradient at the last hidden states."""
        self.ledger.now = "backward, loss"
        times = self._new(LOGITS, "gradient at the scored states", self.job.scored, self.d)
        grads.drop()
        made = self._tokens("gradient at the last states", self.d)
        drop(times, self.where)
        return made
