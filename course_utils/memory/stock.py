"""What transformers' own layers hold: full fine-tuning, GPT-2, adapters with dropout.

Each method follows the forward pass of the stock code (transformers 5, PEFT 0.21) operation by
operation; `graph` derives the backward pass.  Attention is torch's fused one, rows have no padding.
"""

from __future__ import annotations

from .graph import Node, Value, convert
from .job import CHUNK_BYTES, LOGITS, WEIGHTS, WORKSPACE
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
        """One decoder layer; takes over x, which the decoder's loop holds until it is done."""
        shape, gpt2, given = self.shape, self.shape.family == "gpt2", x.piece.keep()
        normed = self._norm(x, (layer, "norm1"))
        q, k, v = self._heads(normed, layer)
        if not gpt2:
            q, k = self._turned(q, k, layer, x.wide)
        mixed = self.attend(q, k, v)
        out = self.linear(mixed, shape.linears[1 if shape.joined else 3], (layer, "o"), "attention")
        for value in (mixed, q, k, v):
            value.drop()
        x, out = self._residual(x, out, normed)
        if not gpt2:  # whose code keeps a name for the attention's output
            out.drop()
        normed = self._norm(x, (layer, "norm2"))
        x, made = self._residual(x, self.mlp(normed, layer), normed)
        made.drop()
        if gpt2:
            out.drop()
        given.drop()
        return x

    def _norm(self, x: Value, key: object) -> Value:
        if self.shape.family == "gpt2":
            return self.layer_norm(x, key)
        return self.rms_norm(x, self.d, key)

    def _turned(self, q: Value, k: Value, layer: int, angle: float) -> list[Value]:
        shape, given = self.shape, [q, k]
        widths, heads = (shape.q_width, shape.kv_width), (shape.heads, shape.kv_heads)
        if shape.head_norms:
            for at, x in enumerate((q, k)):
                given[at] = self.rms_norm(x, widths[at], (layer, "qk"[at], "norm"), heads[at])
                x.drop()
        made = [self.turn(x, wide, angle) for x, wide in zip(given, widths, strict=True)]
        for x in given:
            x.drop()
        return made

    def _residual(self, x: Value, y: Value, normed: Value) -> tuple[Value, Value]:
        """(x + y, y), with the dropout that GPT-2 and Phi-3 may have on y."""
        gpt2 = self.shape.family == "gpt2"
        if not gpt2:
            normed.drop()
        dropped = self.dropout(y, self.d, self.shape.dropout[2] if self.shape.joined else 0.0)
        y.drop()
        out = self.add(x, dropped, self.d, "residual stream")
        if gpt2:
            normed.drop()
        x.drop()
        return out, dropped

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
        """0.5 x (1 + tanh(c (x + 0.044715 x^3))) in eight steps; autocast's power is in fp32."""
        f, width = self.f, 4 if self.job.autocast else x.wide
        half = self.elementwise(x, f, "x / 2")
        long = self.cast(x, f, width)

        def backward(grad: Piece) -> list[Piece]:
            steps = [self._tokens("x^2, scaled", f, width) for _ in "12"]
            made = self._tokens("gradient of the power", f, width)
            for piece in steps:
                piece.drop()
            return [made]

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
        plus = self.elementwise(tanh, f, "1 + tanh", factor=False)
        tanh.drop()
        out = self.times(half, plus, f, "GELU")
        half.drop()
        plus.drop()
        return out

    # ------------------------------------------------------------ a whole pass

    def forward(self) -> None:
        """Embedding, layers, last norm."""
        job, shape, width = self.job, self.shape, self.job.held
        self.units.enter("positions")
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
            self.units.enter(layer)
            x = run(x, layer)
            self.units.leave(layer)
        self.marks.append(len(self.graph.nodes))
        self.units.enter("norm")
        self.hidden = self._norm(x, "norm")
        x.drop()
        for piece in self.embedded:
            piece.drop()

    def _embedding(self, width: int) -> Value:
        """The embedded tokens; the decoder's code keeps a name for them to its end."""
        shape, full = self.shape, self.job.full
        table = (shape.vocabulary, self.d)
        leaf = self._leaf("embedding", table, width) if full else Value(None, width, False)
        self.units.enter("embedding")
        x = self._tokens("embedded tokens", self.d, width)
        x = self.graph.op(x, width, [leaf], [], lambda grad: [self._embedding_grad(table, width)])
        self.units.leave("embedding")
        x.needs = full or bool(self.job.every)  # PEFT asks for it where layers are checkpointed
        self.first, self.embedded = x, [x.piece.keep()]
        if x.needs and not full:
            x.piece.keep()  # by the autograd node that takes its gradient
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
        self.embedded.append(piece.keep())
        both = self.add(x, y, self.d, "embedded tokens and positions")
        dropped = self.dropout(both, self.d, shape.dropout[0])
        for value in (x, y, both):
            value.drop()
        return dropped

    def _embedding_grad(self, table: tuple[int, int], width: float) -> Piece:
        """Above 3,072 tokens they are sorted first, and summed in parts of at most 10 in fp32.

        (aten/src/ATen/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu)
        """
        grad = self._grad(table, width)
        if self.n > 3072:
            parts = self.n // 10 + min(self.n, table[0])
            name = "sums of the embeddings' gradients [parts x width]"
            with self.ledger.short(WORKSPACE, name, parts, self.d, width=4):
                pass
        return grad

    def _checkpointed(self, x: Value, layer: int) -> Value:
        """Run a layer and keep its input alone; its steps are recorded when it is made again."""
        self.graph.recording = False
        x.piece.keep()
        out = self.block(x, layer)
        self.graph.recording = True
        self.inputs[layer] = (x, out)
        return out

    def backward(self, grad: Piece) -> None:
        """All layers, from the last to the first; then the embedding."""
        self.hidden.add(grad)
        self.ledger.now = "backward, last norm"
        self._run_from(self.marks[-1])
        self.units.done("norm", self.leaves)
        for layer in reversed(range(self.shape.layers)):
            last = self.shape.layers - 1
            inside = "layers between" if 0 < layer < last else f"layer {layer}"
            self.ledger.now = f"backward, {inside}"
            self.units.back_to(layer)
            again = self._again(layer) if layer in self.inputs else None
            self._run_from(self.marks[layer])
            if again:  # what it was made from goes with the last step of its backward pass
                again.drop()
            self.units.done(layer, self.leaves, needs=layer > 0 or self.first.needs)
        self.ledger.now = "backward, embedding"
        if self.first.needs:
            self.units.back_to("embedding")
        self.graph.backward()
        for piece in self.turns:
            piece.drop()
        if self.first.grad:  # of frozen embeddings: nobody takes it
            self.first.grad.drop()
            self.first.grad = None
        if self.first.needs and not self.job.full:
            self.first.drop()

    def _run_from(self, mark: int) -> None:
        nodes: list[Node] = self.graph.nodes[mark:]
        del self.graph.nodes[mark:]
        self.graph.backward(nodes)
        for key, leaf in self.leaves.items():
            if key != "embedding":  # which may be the output layer's too, and comes last
                leaf.settle()

    def _again(self, layer: int) -> Piece:
        """Make a checkpointed layer's steps again from its input, and hand them the gradient."""
        x, out = self.inputs.pop(layer)
        x.piece.keep()
        self.graph.again = True
        again = self.block(x, layer)
        self.graph.again = False
        again.drop()
        again.grad, out.grad = out.grad, None
        self._end_autocast()
        return x.piece

    def gather_backward(self, add: bool) -> list[Piece]:
        """The gradients of the trained parameters, which stay until the optimizer's step."""
        for leaf in self.leaves.values():
            leaf.settle()
        sharded = self.units.end_backward(self.leaves)
        if sharded is not None:
            return sharded
        return [] if add else [leaf.total for leaf in self.leaves.values() if leaf.total]

    # -------------------------------------------------------------------- loss

    def loss(self) -> Piece | None:
        """The chunked loss; over a trained head its chunks are made again in the backward pass."""
        job, shape = self.job, self.shape
        self.ledger.now = "loss"
        if job.own_loss:
            self._own_loss()
            return None
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
            self.kept = self._chunks()
        self.hidden.drop()
        self._end_autocast()
        self.units.end_forward()
        return grads

    def _own_loss(self) -> None:
        """transformers' `ForCausalLMLoss`: the logits of all positions at once, labelled or not."""
        job, shape = self.job, self.shape
        self.where = self._new("shifted labels", 8, job.tokens, part=LOGITS)
        key = "embedding" if shape.tied else "head"
        self.head = self._weight(key, (shape.vocabulary, self.d), job.held)
        copy = [self.head.piece.keep()] if self.head.piece else []
        inputs = self._inputs(job.tokens) or [self.hidden.piece.keep()]
        (logs,) = self._chunk(job.tokens, keep=True)
        if not job.full:  # a product with frozen weights keeps no inputs
            inputs.pop().drop()
        self.kept = [*copy, *inputs, logs]
        self.hidden.drop()
        self._end_autocast()
        self.units.end_forward()

    def _own_loss_backward(self) -> Piece:
        """The gradient at the last hidden states, and of the head where that is trained."""
        *others, logs = self.kept
        grad, states = self._product_backward(self.job.tokens, others, logs)
        if grad:
            self.head.add(grad, view=True)
            self._head_done()
        self.where.drop()
        return convert(states, self.hidden.wide)

    def _chunk_rows(self) -> list[int]:
        most = max(1, CHUNK_BYTES // (4 * self.shape.vocabulary))
        whole, rest = divmod(self.job.scored, most)
        return [most] * whole + ([rest] if rest else [])

    def _chunks(self) -> list[Piece]:
        """Chunk after chunk; of several nothing is kept, of a single one what backward takes."""
        rows = self._chunk_rows()
        if len(rows) == 1:
            copy = [self.head.piece.keep()] if self.head.piece else []
            return [*copy, *self._inputs(rows[0]), *self._chunk(rows[0], keep=True)]
        for count in rows:
            for piece in self._inputs(count) + self._chunk(count, keep=False):
                piece.drop()
        return []

    def _inputs(self, rows: int) -> list[Piece]:
        """A chunk's states as the product takes them, where that is another precision."""
        if self.hidden.wide == self.job.width:
            return []
        return [self._new("a chunk's states in bf16", 2, rows, self.d, part=LOGITS)]

    def _chunk(self, rows: int, keep: bool) -> list[Piece]:
        """Logits and loss of some rows; what stays are the logarithms of the shares."""
        name = "logits of a chunk [tokens x vocabulary]"
        logits, long, kept = (
            self._new(name, width, rows, self.shape.vocabulary, part=LOGITS)
            for width in (self.job.width, 4, 4)
        )
        if not keep:
            kept.drop()
        long.drop(), logits.drop()
        return [kept] if keep else []

    def loss_backward(self, grads: Piece | None) -> Piece:
        """The gradient at the last hidden states."""
        job, new = self.job, self._new
        if job.own_loss:
            return self._own_loss_backward()
        width, size = self.hidden.wide, (job.scored, self.d)
        if grads is not None or not self.kept:
            self.units.start_backward()
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
        made = []
        if self.job.autocast and self.job.held == 4:
            made = [self._new(COPY, 2, self.shape.vocabulary, self.d, part=WEIGHTS)]
        made += self._inputs(count)
        return [*made, *self._chunk(count, keep=True)]

    def _trained_head(self, width: float, size: tuple[int, int]) -> Piece:
        """The gradient at the states, and the head's: chunk after chunk, the last one first."""
        rows, total = self._chunk_rows(), None
        while rows:
            count = rows.pop()
            *others, logs = self.kept or self._chunk_again(count)
            grad, chunk = self._product_backward(count, others, logs)
            if not rows:
                self.states.drop()
            self.head.add(grad, view=True)
            if not rows:
                self._head_done()
            chunk = convert(chunk, width)
            if count == size[0]:  # the only chunk: nothing was cut out of the states
                return chunk
            part = self._new("gradient at the scored states", width, *size, part=LOGITS)
            chunk.drop()
            if total is None:
                total = part
            else:
                part.drop()
        return total

    def _product_backward(
        self, count: int, others: list[Piece], logs: Piece
    ) -> tuple[Piece | None, Piece]:
        """Back through a chunk's loss and logits: the gradients of the head and at the states.

        A frozen head has none.
        """
        vocabulary, short = self.shape.vocabulary, self.job.width
        name = "gradient of a chunk's logits [tokens x vocabulary]"
        first, second = (self._new(name, 4, count, vocabulary, part=LOGITS) for _ in "12")
        first.drop(), logs.drop()
        logits = self._new(name, short, count, vocabulary, part=LOGITS)
        second.drop()
        self.units.start_backward()  # a single chunk's logits come straight out of the head
        grad = self._grad((vocabulary, self.d), short) if self.job.full else None
        chunk = self._new("gradient of a chunk's states", short, count, self.d, part=LOGITS)
        for piece in (*others, logits):
            piece.drop()
        return grad, chunk

    def _head_done(self) -> None:
        """The sum over all chunks goes on to the head itself, from autocast's copy in fp32."""
        leaf = self._leaf("embedding" if self.shape.tied else "head", (), self.job.held)
        if self.head is not leaf:
            leaf.add(convert(self.head.grad, leaf.wide))
            self.head.grad = None
