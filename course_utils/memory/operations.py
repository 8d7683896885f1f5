"""The operations of stock layers in eager PyTorch, each with what it keeps for its backward step.

Under torch.autocast's rules for CUDA: products run in 16 bits (and copy fp32 weights for it, once a
forward pass), powers and layer norms in fp32.
"""

from __future__ import annotations

from .graph import Graph, Value
from .job import ACTIVATIONS, GRADIENTS, WEIGHTS, WORKSPACE, Held, Job
from .ledger import Ledger, Piece
from .shapes import Linear
from .shared import Attention

COPY = "bf16 copies for autocast [outputs x inputs]"


class Operations:
    """Operations on a batch of one model, recorded in `self.graph`."""

    def __init__(self, job: Job, ledger: Ledger, held: Held) -> None:
        self.job, self.ledger, self.held, self.shape = job, ledger, held, job.shape
        self.units = held.units
        self.n, self.d, self.f = job.tokens, job.shape.width, job.shape.mlp_width
        self.attention = Attention(job, ledger)
        self.graph = Graph(ledger)
        self.cast_cache: dict[object, Value] = {}  # autocast's copies of fp32 weights
        self.leaves: dict[object, Value] = {}  # trained parameters
        self.four_bit = job.recipe.method == "qlora"

    # ------------------------------------------------------------------ pieces

    def _new(self, name: str, width: float, *dims: int, part: str = ACTIVATIONS) -> Piece:
        return self.ledger.new(part, name, *dims, width=width)

    def _tokens(self, name: str, wide: int, width: float) -> Piece:
        return self._new(f"{name} [tokens x width]", width, self.n, wide)

    def _short(self, *sizes: tuple[int, float], name: str = "steps in between") -> None:
        """Tensors that are alive together for a moment."""
        pieces = [self._tokens(name, wide, width) for wide, width in sizes]
        for piece in pieces:
            piece.drop()

    # -------------------------------------------------------------- parameters

    def _leaf(self, key: object, dims: tuple[int, ...], held: int) -> Value:
        if key not in self.leaves:
            self.leaves[key] = Value(None, held, True)
        return self.leaves[key]

    def _grad(self, dims: tuple[int, ...], width: float) -> Piece:
        return self.ledger.new(GRADIENTS, "of weights [outputs x inputs]", *dims, width=width)

    def _weight(self, key: object, dims: tuple[int, ...], held: int, short: bool = True) -> Value:
        """A trained weight as a product takes it: under autocast its copy in 16 bits, made once."""
        leaf = self._leaf(key, dims, held)
        if not (short and self.job.autocast and held == 4):
            return leaf
        if key not in self.cast_cache:
            piece = self.ledger.new(WEIGHTS, COPY, *dims, width=2)
            self.cast_cache[key] = self.graph.op(
                piece, 2, [leaf], [], lambda grad: [self._grad(dims, 4)]
            )
        return self.cast_cache[key]

    def _end_autocast(self) -> None:
        for value in self.cast_cache.values():
            value.drop()
        self.cast_cache.clear()

    # -------------------------------------------------------------- operations

    def cast(self, x: Value, wide: int, width: float) -> Value:
        """x in another precision; x itself where it has that already."""
        if x.wide == width:
            x.piece.keep()
            return x
        name = "copy in fp32" if width == 4 else "copy in bf16"

        def backward(grad: Piece) -> list[Piece]:
            return [self._tokens("gradient, cast", wide, x.wide)]

        return self.graph.op(self._tokens(name, wide, width), width, [x], [], backward)

    def linear(self, x: Value, layer: Linear, key: object, name: str) -> Value:
        """A linear layer and the adapter on it, as PEFT runs it."""
        base = self.product(x, (layer.outputs, layer.inputs), key, name, layer.bias)
        if not self.job.adapted(layer):
            return base
        if self.four_bit:  # PEFT copies what a 4-bit layer gave
            copy = self._tokens(name, layer.outputs, base.wide)
            clone = self.graph.op(copy, base.wide, [base], [], lambda grad: [grad.keep()])
            base.drop()
            base = clone
        rank = self.job.recipe.rank
        dropped = self.dropout(x, layer.inputs, self.job.recipe.dropout)
        a = self.product(dropped, (rank, layer.inputs), (key, "A"), "x A.T", held=self.job.adapter)
        b = self.product(
            a, (layer.outputs, rank), (key, "B"), "adapter's output", held=self.job.adapter
        )
        dropped.drop(), a.drop()
        scaled = self.elementwise(b, layer.outputs, "adapter's output, scaled")
        b.drop()
        out = self.add(base, scaled, layer.outputs, name)
        scaled.drop(), base.drop()
        return out

    def product(self, x: Value, dims: tuple[int, int], key: object, name: str,
                bias: bool = False, held: int | None = None) -> Value:  # fmt: skip
        """x W.T, with a trained W (held: its bytes a number) or a frozen one."""
        job, (outputs, inputs) = self.job, dims
        trained = job.full or held is not None
        width = 2 if job.autocast else job.width
        if bias and trained:
            self._weight((key, "bias"), (outputs,), job.held)
        weight = self._weight(key, dims, held or job.held) if trained else None
        short = self.cast(x, inputs, width)
        dequantize = self.four_bit and not trained

        def copy() -> None:
            if dequantize:
                name = "dequantized copy [outputs x inputs]"
                with self.ledger.short(WORKSPACE, name, *dims):
                    pass

        def backward(grad: Piece) -> list[Piece | None]:
            copy()
            grads = [self._grad(dims, width)] if trained else []  # the weight's is made first
            name = "gradient at a layer's input"
            return [self._tokens(name, inputs, width) if short.needs else None, *grads]

        copy()
        saved = [short.piece if trained else None, weight.piece if trained and short.needs else 0]
        parents = [short] if weight is None else [short, weight]
        out = self._tokens(name, outputs, width)
        saved = [piece or None for piece in saved]
        out = self.graph.op(out, width, parents, saved, backward, views=True)
        short.drop()
        return out

    def elementwise(self, x: Value, wide: int, name: str, *, factor: bool = True) -> Value:
        """x times a constant, or plus one (factor=False): nothing is saved."""

        def backward(grad: Piece) -> list[Piece]:
            return [self._tokens("gradient, scaled", wide, x.wide) if factor else grad.keep()]

        return self.graph.op(self._tokens(name, wide, x.wide), x.wide, [x], [], backward)

    def dropout(self, x: Value, wide: int, share: float) -> Value:
        """Keeps one byte a number: which were kept."""
        if not share:
            x.piece.keep()
            return x
        out = self._tokens("after dropout", wide, x.wide)
        mask = self._tokens("dropout mask", wide, 1)

        def backward(grad: Piece) -> list[Piece]:
            return [self._tokens("gradient before dropout", wide, x.wide)]

        value = self.graph.op(out, x.wide, [x], [mask], backward)
        mask.drop()
        return value

    def add(self, x: Value, y: Value, wide: int, name: str) -> Value:
        """x + y in the longer precision; both get the same gradient."""
        width = max(x.wide, y.wide)

        def backward(grad: Piece) -> list[Piece]:
            return [grad.keep(), grad.keep()]

        return self.graph.op(self._tokens(name, wide, width), width, [x, y], [], backward)

    def times(self, x: Value, y: Value, wide: int, name: str) -> Value:
        """x * y: both are saved."""
        width = max(x.wide, y.wide)

        def backward(grad: Piece) -> list[Piece]:
            return [self._tokens("gradient at a factor", wide, width) for _ in (x, y)]

        saved = [x.piece, y.piece]
        return self.graph.op(self._tokens(name, wide, width), width, [x, y], saved, backward)

    def function(self, x: Value, wide: int, name: str, *, keeps: str = "input") -> Value:
        """A function of each number, that saves its input or its result."""
        out = self._tokens(name, wide, x.wide)

        def backward(grad: Piece) -> list[Piece]:
            return [self._tokens("gradient at a function's input", wide, x.wide)]

        return self.graph.op(out, x.wide, [x], [x.piece if keeps == "input" else out], backward)

    # ------------------------------------------------------------------- norms

    def rms_norm(self, x: Value, wide: int, key: object, groups: int = 1) -> Value:
        """x / rms in fp32, rounded to x's precision, times the weight.

        groups: norms over parts of the width (heads).
        """
        gemma = self.shape.family == "gemma"
        long = self.cast(x, wide, 4)
        square = self._tokens("square", wide, 4)
        mean = [self._tokens("mean and 1 / rms", groups, 4) for _ in range(3)]
        square.drop()
        for piece in mean[:2]:
            piece.drop()

        def backward(grad: Piece) -> list[Piece]:
            through = self._tokens("gradient past the mean", wide, 4)
            self._short((wide, 4))
            self._short((wide, 4), (wide, 4), (wide, 4), (wide, 4))  # mean, and the square's steps
            return [through]

        saved = [long.piece, mean[2]]
        normed = self.graph.op(self._tokens("normed in fp32", wide, 4), 4, [long], saved, backward)
        mean[2].drop(), long.drop()
        rounded = normed if gemma else self.cast(normed, wide, x.wide)
        out = self._times_weight(rounded, wide, key, groups)
        if gemma:
            back = self.cast(out, wide, x.wide)
            out.drop()
            out = back
        if not gemma:
            rounded.drop()
        normed.drop()
        return out

    def _times_weight(self, x: Value, wide: int, key: object, groups: int) -> Value:
        job, size = self.job, wide // groups
        held = 4 if self.shape.family == "gemma" else job.held
        width = max(x.wide, held)
        leaf = self._leaf(key, (size,), job.held) if job.full else None

        def backward(grad: Piece) -> list[Piece | None]:
            made = self._tokens("gradient at the normed input", wide, x.wide)
            if leaf is None:
                return [made]
            self._short((wide, width), name="gradient x input")
            return [made, self._grad((size,), job.held)]

        parents = [x] if leaf is None else [x, leaf]
        saved = [x.piece] if leaf else []
        out = self._tokens("normed input", wide, width)
        return self.graph.op(out, width, parents, saved, backward)

    def layer_norm(self, x: Value, key: object) -> Value:
        """torch's own, which autocast runs in fp32."""
        wide, job = self.d, self.job
        long = self.cast(x, wide, 4 if job.autocast else x.wide)
        sums = [self._tokens("mean and 1 / deviation", 1, 4) for _ in range(2)]
        leaves = [self._leaf((key, part), (wide,), job.held) for part in "wb"] if job.full else []

        def backward(grad: Piece) -> list[Piece]:
            made = self._tokens("gradient before the norm", wide, long.wide)
            return [made, *(self._grad((wide,), job.held) for _ in leaves)]

        out = self._tokens("normed input", wide, long.wide)
        saved = [long.piece, *sums]
        value = self.graph.op(out, long.wide, [long, *leaves], saved, backward)
        for piece in (*sums, long):
            piece.drop()
        return value

    # --------------------------------------------------------------- attention

    def turn(self, x: Value, wide: int, width: float) -> Value:
        """Rotary position embedding; width: bytes a number of cos and sin."""
        width = max(width, x.wide)
        product = self._tokens("x cos", wide, width)
        half = self._tokens("a half, negated", wide // 2, x.wide)
        turned = self._tokens("half turned", wide, x.wide)
        half.drop()
        other = self._tokens("half turned x sin", wide, width)
        turned.drop()
        out = self._tokens("turned queries or keys", wide, width)
        product.drop()
        other.drop()

        def backward(grad: Piece) -> list[Piece]:
            self._short((wide, width), (wide, x.wide), (wide, x.wide))
            made = self._tokens("gradient before the turn", wide, x.wide)
            self._short((wide, width))
            return [made]

        return self.graph.op(out, width, [x], [], backward)

    def attend(self, q: Value, k: Value, v: Value) -> Value:
        """torch's fused attention."""
        shape, width = self.shape, 2 if self.job.autocast else self.job.width
        widths = (shape.q_width, shape.kv_width, shape.kv_width)
        parts = [self.cast(x, w, width) for x, w in zip((q, k, v), widths, strict=True)]
        out, *kept = self.attention.forward()
        saved = [out, *kept, *(part.piece for part in parts)]
        value = self.graph.op(out, width, parts, saved, lambda grad: self.attention.backward())
        for piece in (*kept, *parts):
            piece.drop()
        return value

    def _heads(self, x: Value, layer: int) -> tuple[Value, Value, Value]:
        """q, k and v before rotation; a joined layer's are views of one tensor."""
        shape = self.shape
        if not shape.joined:
            names = ("queries", "keys", "values")
            return tuple(
                self.linear(x, linear, (layer, linear.name), name)
                for linear, name in zip(shape.linears, names, strict=False)
            )
        joined = self.linear(x, shape.linears[0], (layer, "qkv"), "queries, keys and values")
        return self._split(joined, [shape.q_width, shape.kv_width, shape.kv_width])

    def _split(self, joined: Value, widths: list[int]) -> tuple[Value, ...]:
        """Views of one tensor; their gradients are joined again, once all are there."""
        views, waiting = [], []

        def backward(grad: Piece) -> list[Piece | None]:
            waiting.append(grad.keep())
            if len(waiting) < len(widths):
                return [None]
            made = self._tokens("gradient at the joined layer", sum(widths), joined.wide)
            while waiting:
                waiting.pop().drop()
            return [made]

        for _ in widths:
            joined.piece.keep()
            views.append(self.graph.op(joined.piece, joined.wide, [joined], [], backward))
        joined.drop()
        return tuple(views)
