"""A small autograd on sizes: which tensors an eager forward pass keeps, and what backward makes.

`Graph.op` records an operation the way torch does: what it saves stays alive until its backward
step has run, and that step makes one gradient for each input that needs one.  The steps run in the
reverse order of the operations.  Gradients that meet are added into the first, unless someone else
holds its memory too (torch/csrc/autograd/input_buffer.cpp): then their sum is a third tensor.  Used
for layers whose forward is transformers' own code (`stock`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .ledger import Ledger, Piece

Backward = Callable[[Piece], Sequence[Piece | None]]


class Value:
    """A tensor in the graph.

    wide: bytes a number.  needs: whether a gradient is wanted.  grad: the sum of those that arrived
    in this backward pass.  view: whether that is a view of a product's result.  total: a trained
    parameter's gradient, over all passes since the optimizer's last step.
    """

    __slots__ = ("grad", "needs", "piece", "total", "view", "wide")

    def __init__(self, piece: Piece | None, wide: float, needs: bool) -> None:
        self.piece, self.wide, self.needs = piece, wide, needs
        self.grad: Piece | None = None
        self.total: Piece | None = None
        self.view = False

    def drop(self) -> None:
        """The variable that named it goes out of use."""
        if self.piece is not None:
            self.piece.drop()

    def add(self, grad: Piece, view: bool = False) -> None:
        """One more gradient: the first is kept, later ones are added to it."""
        if self.grad is None:
            self.grad, self.view = grad, view
            return
        if self.view or self.grad.uses > 1:  # its memory is not to be written to
            kind = grad.kind
            total = grad.ledger.new(kind.part, kind.name, *kind.dims, width=kind.width)
            self.grad.drop()
            self.grad, self.view = total, False
        grad.drop()

    def settle(self) -> None:
        """A parameter's gradient of this pass is complete: it becomes `.grad` or is added to it."""
        if self.grad is None:
            return
        if self.total is None or self.total.uses == 0:  # none yet, or an optimizer step freed it
            self.total = self.grad
        else:
            self.grad.drop()
        self.grad = None


class Node:
    """One operation's backward step.

    views: whether the gradients it makes are views.  again: whether a checkpointed layer's, whose
    saved tensors are its own alone and go with its last use of them.
    """

    __slots__ = ("again", "backward", "out", "parents", "saved", "views")

    def __init__(
        self, out: Value, parents: Sequence[Value], saved: list[Piece], backward: Backward,
        views: bool, again: bool,
    ) -> None:  # fmt: skip
        self.out, self.parents, self.saved, self.backward = out, parents, saved, backward
        self.views, self.again = views, again

    def run(self) -> None:
        grad, self.out.grad = self.out.grad, None
        made = list(self.backward(grad)) if grad is not None else []
        if self.again:
            self._release()
        for at, piece in enumerate(made):
            if piece is not None and self.parents[at].needs:
                made[at] = convert(piece, self.parents[at].wide)
        if grad is not None:
            grad.drop()
        self._release()
        for parent, piece in zip(self.parents, made, strict=False):
            if piece is not None and parent.needs:
                parent.add(piece, self.views)
            elif piece is not None:
                piece.drop()

    def _release(self) -> None:
        while self.saved:
            self.saved.pop().drop()


def convert(piece: Piece, width: float) -> Piece:
    """A gradient in its tensor's own precision, as the engine hands it on; takes over piece."""
    kind = piece.kind
    if kind.width == width:
        return piece
    short = piece.ledger.new(kind.part, kind.name, *kind.dims, width=width)
    piece.drop()
    return short


class Graph:
    """Operations recorded in the order in which they ran.

    recording: False while a checkpointed layer runs, which keeps nothing but its input; again: True
    while it is made a second time, for its backward pass.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.nodes: list[Node] = []
        self.recording, self.again = True, False

    def op(
        self, piece: Piece, wide: float, parents: Sequence[Value], saved: Sequence[Piece | None],
        backward: Backward, views: bool = False,
    ) -> Value:  # fmt: skip
        """The result of an operation that made `piece`.

        backward: from the gradient at the result (which it may return after `keep`) to those at the
        parents, None for a parent that needs none.
        """
        out = Value(piece, wide, any(parent.needs for parent in parents))
        if out.needs and self.recording:
            kept = [p.keep() for p in saved if p is not None]
            self.nodes.append(Node(out, parents, kept, backward, views, self.again))
        return out

    def backward(self, nodes: list[Node] | None = None) -> None:
        """Run the steps of all operations (or of those given) and forget them."""
        nodes = self.nodes if nodes is None else nodes
        while nodes:
            nodes.pop().run()
