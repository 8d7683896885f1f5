"""What transformers' own layers hold: full fine-tuning, GPT-2, adapters with dropout.

Each method follows the forward pass of the stock code (transformers 5, PEFT 0.21) operation by
operation; `graph` derives the backward pass.  Attention is torch's fused one, rows have no padding.
"""

from __future__ import annotations

from .graph import Node, Value
from .job import CHUNK_BYTES, LOGITS, WEIGHTS
from .ledger import Piece
from .operations import COPY, Operations
from .shared import frozen_head_chunks


class StockLayers(Operations):
    """One model's forward and backward pass in eager PyTorch."""

    def build(self) -> None:
        """Stock layers need nothing prepared."""

    def restore(self) -> None:
        """Nor anything given back."""

    # ------------------------------------------------------------------ layers

    def block(self, x: Value, layer: int) -> Value:
        """One decoder layer; takes over x."""
        shape, gpt2 = self.shape, self.shape.family == "gpt2"
        normed = self._norm(x, (layer, "norm1"))
        q, k, v = self._heads(normed, layer)
        if not gpt2:
            q, k = self._turned(q, k, layer, x.wide)
        mixed = self.attend(q, k, v)
        for value in (q, k, v):
            value.drop()
        out = self.linear(mixed, shape.linears[1 if shape.joined else 3], (layer, "o"), "attention")
        mixed.drop(), normed.drop()
        x = self._residual(x, out, shape.dropout[2] if shape.joined else 0.0)
        normed = self._norm(x, (layer, "norm2"))
        made = self.mlp(normed, layer)
        normed.drop()
        return self._residual(x, made, shape.dropout[2] if shape.joined else 0.0)

    def _norm(self, x: Value, key: object) -> Value:
        if self.shape.family == "gpt2":
            return self.layer_norm(x, key)
        return self.rms_norm(x, self.d, key)

    def _turned(self, q: Value, k: Value, layer: int, angle: float) -> list[Value]:
        shape, made = self.shape, []
        parts = ((q, shape.q_width, shape.heads, "q"), (k, shape.kv_width, shape.kv_heads, "k"))
        for x, wide, heads, name in parts:
            if shape.head_norms:
                normed = self.rms_norm(x, wide, (layer, f"{name}_norm"), heads)
                x.drop()
                x = normed
            turned = self.turn(x, wide, angle)
            x.drop()
            made.append(turned)
        return made

    def _residual(self, x: Value, y: Value, dropout: float) -> Value:
        dropped = self.dropout(y, self.d, dropout)
        out = self.add(x, dropped, self.d, "residual stream")
        for value in (dropped, y, x):
            value.drop()
        return out

    def mlp(self, x: Value, layer: int) -> Value:
        """Gated (Llama, Gemma, Phi-3) or plain (GPT-2)."""
        shape, f = self.shape, self.f
        up_layers = shape.linears[2:-1] if shape.joined else shape.linears[4:6]
        if not shape.gated:
            wide = self.linear(x, up_layers[0], (layer, "fc"), "first MLP layer")
            made = self.gelu_new(wide) if shape.activation == "gelu_new" else self.function(
                wide, f, "activation")  # fmt: skip
            wide.drop()
        else:
            if shape.joined:
                joined = self.linear(x, up_layers[0], (layer, "gate_up"), "gate and up")
                gate, up = self._split(joined, [f, f])
                act = self.function(gate, f, "activation of gate")
            else:
                gate = self.linear(x, up_layers[0], (layer, "gate"), "gate")
                act = self.function(gate, f, "activation of gate")
                up = self.linear(x, up_layers[1], (layer, "up"), "up")
            made = self.times(act, up, f, "activation x up")
            for value in (gate, act, up):
                value.drop()
        out = self.linear(made, shape.linears[-1], (layer, "down"), "MLP output")
        made.drop()
        return out

    def gelu_new(self, x: Value) -> Value:
        """0.5 x (1 + tanh(c (x + 0.044715 x^3))), in eight steps; autocast takes the power in fp32."""
        f, width = self.f, 4 if self.job.autocast else x.wide
        half = self.elementwise(x, f, "x / 2")
        long = self.cast(x, f, width)

        def backward(grad: Piece) -> list[Piece]:
            self._short((f, width), (f, width))
            return [self._tokens("gradient of the power", f, width)]

        cube = self._tokens("x^3", f, width)
        cube = self.graph.op(cube, width, [long], [long.piece], backward)
        long.drop()
        part = self.elementwise(cube, f, "0.04 x^3")
        cube.drop()
        inside = self.add(x, part, f, "x + 0.04 x^3")
        part.drop()
        scaled = self.elementwise(inside, f, "c (x + 0.04 x^3)")
        inside.drop()
        tanh = self.function(scaled, f, "tanh", keeps="result")
        scaled.drop()
        plus = self.elementwise(tanh, f, "1 + tanh")
        tanh.drop()
        out = self.times(half, plus, f, "GELU")
        half.drop()
        plus.drop()
        return out

    # ------------------------------------------------------------ a whole pass

    def forward(self) -> None:
        """Embedding, layers, last norm."""
        job, shape, width = self.job, self.shape, self.job.held
        x = self._embedding(width)
        angles = self.n if job.recipe.packing else job.length
        self.turns = [
            self._new("cos and sin", width, angles, shape.head_dim) for _ in "cs"
            if not shape.positions
        ]  # fmt: skip
        self.inputs: dict[int, tuple[Value, Value]] = {}
        self.marks: list[int] = []
        for layer in range(shape.layers):
            self.marks.append(len(self.graph.nodes))
            run = self._checkpointed if job.checkpointed(layer) else self.block
            x = run(x, layer)
        self.marks.append(len(self.graph.nodes))
        hidden = self._norm(x, "norm")
        x.drop()
        self.hidden = hidden

    def _embedding(self, width: int) -> Value:
        shape, full = self.shape, self.job.full
        table = (shape.vocabulary, self.d)
        leaf = self._leaf("embedding", table, width) if full else Value(None, width, False)
        x = self.graph.op(
            self._tokens("embedded tokens", self.d, width), width, [leaf], [],
            lambda grad: [self._grad(table, width)],
        )  # fmt: skip
        if shape.family == "gemma":
            scaled = self.elementwise(x, self.d, "embedded tokens, scaled")
            x.drop()
            return scaled
        if not shape.positions:
            return x
        places = (shape.positions, self.d)
        other = self._leaf("positions", places, width) if full else Value(None, width, False)
        piece = self._new("embedded positions", width, self.job.length, self.d)
        y = self.graph.op(piece, width, [other], [], lambda grad: [self._grad(places, width)])
        both = self.add(x, y, self.d, "embedded tokens and positions")
        dropped = self.dropout(both, self.d, shape.dropout[0])
        for value in (x, y, both):
            value.drop()
        return dropped

    def _checkpointed(self, x: Value, layer: int) -> Value:
        """Run a layer and keep its input alone; its steps are recorded when it is made again."""
        self.graph.recording = False
        x.piece.keep()
        out = self.block(Value(x.piece, x.wide, x.needs or not self.job.full), layer)
        self.graph.recording = True
        self.inputs[layer] = (x, out)
        casts = [v for v in self.cast_cache.values() if v.needs]
        out.needs = bool(casts) or x.needs or True
        return out

    def backward(self, grad: Piece) -> None:
        """All layers, from the last to the first; then the embedding."""
        self.hidden.add(grad)
        self.ledger.now = "backward, last norm"
        self._run_from(self.marks[-1])
        for layer in reversed(range(self.shape.layers)):
            last = self.shape.layers - 1
            inside = "layers between" if 0 < layer < last else f"layer {layer}"
            self.ledger.now = f"backward, {inside}"
            if layer in self.inputs:
                self._again(layer)
            self._run_from(self.marks[layer])
        self.ledger.now = "backward, embedding"
        self.graph.backward()
        for piece in self.turns:
            piece.drop()

    def _run_from(self, mark: int) -> None:
        nodes: list[Node] = self.graph.nodes[mark:]
        del self.graph.nodes[mark:]
        self.graph.backward(nodes)

    def _again(self, layer: int) -> None:
        """Make a checkpointed layer's steps again, and hand them the gradient."""
        x, out = self.inputs.pop(layer)
        x.piece.keep()
        again = self.block(x, layer)
        again.drop()
        again.grad, out.grad = out.grad, None
        self._end_autocast()
        x.piece.drop()

    def gather_backward(self, add: bool) -> list[Piece]:
        """The gradients of the trained parameters, which stay until the optimizer's step."""
        made = [leaf.grad for leaf in self.leaves.values() if leaf.grad is not None]
        if add:  # they were added into those of the pass before
            for grad in made:
                grad.drop()
            made = []
        for leaf in self.leaves.values():
            leaf.grad = None
        return made

    # -------------------------------------------------------------------- loss

    def loss(self) -> Piece | None:
        """The chunked loss; over a trained head its chunks are made again in the backward pass."""
        job, shape = self.job, self.shape
        self.ledger.now = "loss"
        width = self.hidden.wide
        self.states = self._new("scored states [tokens x width]", width, job.scored, self.d,
                                part=LOGITS)  # fmt: skip
        self.where = self._new("positions and targets", 8, 2 * job.scored, part=LOGITS)
        if not job.full:
            grads = self._new("gradient at the states", width, job.scored, self.d, part=LOGITS)
            frozen_head_chunks(job, self.ledger)
            self.states.drop()
        else:
            grads = None
            key = "embedding" if shape.tied else "head"
            self.head = self._weight(key, (shape.vocabulary, self.d), job.held)
            rows = self._chunk_rows()
            short = self.job.autocast and self.hidden.wide == 4
            inputs = self._new("a chunk's states in bf16", 2, rows[0], self.d, part=LOGITS)
            kept = [self._chunk(rows[0])] + ([inputs] if short else [])
            if short:
                kept.append(self.head.piece.keep())
            else:
                inputs.drop()
            if len(rows) > 1:
                for piece in kept:
                    piece.drop()
                kept = []
            self.kept = kept
        self.hidden.drop()
        self._end_autocast()
        return grads

    def _chunk_rows(self) -> list[int]:
        most = max(1, CHUNK_BYTES // (4 * self.shape.vocabulary))
        whole, rest = divmod(self.job.scored, most)
        return [most] * whole + ([rest] if rest else [])

    def _chunk(self, rows: int) -> Piece:
        """Logits and loss of some rows; what stays are the logarithms of the shares."""
        vocabulary, name = self.shape.vocabulary, "logits of a chunk [tokens x vocabulary]"
        width = 2 if self.job.autocast else self.job.width
        logits = self._new(name, width, rows, vocabulary, part=LOGITS)
        long = self._new(name, 4, rows, vocabulary, part=LOGITS)
        kept = self._new(name, 4, rows, vocabulary, part=LOGITS)
        long.drop()
        logits.drop()
        return kept

    def loss_backward(self, grads: Piece | None) -> Piece:
        """The gradient at the last hidden states."""
        job, new = self.job, self._new
        width, size = self.hidden.wide, (job.scored, self.d)
        if grads is not None:
            states = new("gradient at the scored states", width, *size, part=LOGITS)
            grads.drop()
        else:
            states = self._trained_head(width, size)
        made = self._tokens("gradient at the last states", self.d, width)
        for piece in (states, self.where):
            piece.drop()
        return made

    def _chunk_again(self, count: int) -> list[Piece]:
        """A checkpointed chunk for its backward pass; autocast copies the head anew."""
        if not (self.job.autocast and self.job.held == 4):
            return [self._chunk(count)]
        copy = self._new(COPY, 2, self.shape.vocabulary, self.d, part=WEIGHTS)
        inputs = self._new("a chunk's states in bf16", 2, count, self.d, part=LOGITS)
        return [self._chunk(count), copy, inputs]

    def _trained_head(self, width: float, size: tuple[int, int]) -> Piece:
        """Chunk after chunk: logits again, their gradient, the head's and the states'."""
        new, vocabulary, rows = self._new, self.shape.vocabulary, self._chunk_rows()
        name, states, short = "gradient of a chunk's logits", None, self.job.width
        for number, count in enumerate(rows):
            logs, *others = self.kept or self._chunk_again(count)
            first = new(name, 4, count, vocabulary, part=LOGITS)
            second = new(name, 4, count, vocabulary, part=LOGITS)
            first.drop(), logs.drop()
            logits = new(name, short, count, vocabulary, part=LOGITS)
            second.drop()
            self.head.add(self._grad((vocabulary, self.d), short))
            part = new("gradient of a chunk's states", width, *size, part=LOGITS)
            if states is None:
                states = part
            else:
                part.drop()
            for piece in (logits, *others):
                piece.drop()
            if number == 0:
                self.states.drop()
        self.kept = []
        if self.head.wide == 2 and self.job.held == 4:
            grad, self.head.grad = self.head.grad, None
            leaf_key = "embedding" if self.shape.tied else "head"
            leaf = self._leaf(leaf_key, (vocabulary, self.d), 4)
            leaf.add(self._grad((vocabulary, self.d), 4))
            grad.drop()
        return states
