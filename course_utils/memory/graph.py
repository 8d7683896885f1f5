"""A small autograd on sizes: which tensors an eager forward pass keeps, and what backward makes.

`Graph.op` records an operation the way torch does: what it saves stays alive until its backward
step has run, and that step makes one gradient for each input that needs one.  The steps run in the
reverse order of the operations; gradients that meet are added in place.  Used for layers whose
forward is transformers' own code (`stock`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .ledger import Ledger, Piece

Backward = Callable[[Piece], Sequence[Piece | None]]


class Value:
    """A tensor in the graph.  wide: bytes a number.  needs: whether a gradient is wanted."""

    __slots__ = ("grad", "leaf", "needs", "piece", "wide")

    def __init__(self, piece: Piece | None, wide: float, needs: bool, leaf: bool = False) -> None:
        self.piece, self.wide, self.needs, self.leaf = piece, wide, needs, leaf
        self.grad: Piece | None = None

    def drop(self) -> None:
        """The variable that named it goes out of use."""
        if self.piece is not None:
            self.piece.drop()

    def add(self, grad: Piece) -> None:
        """One more gradient: the first is kept, later ones are added into it."""
        if self.grad is None:
            self.grad = grad
        else:
            grad.drop()


class Node:
    """One operation's backward step."""

    __slots__ = ("backward", "out", "parents", "saved")

    def __init__(self, out: Value, parents: Sequence[Value], saved: list[Piece], backward) -> None:
        self.out, self.parents, self.saved, self.backward = out, parents, saved, backward

    def run(self) -> None:
        grad, self.out.grad = self.out.grad, None
        if grad is not None:
            for parent, made in zip(self.parents, self.backward(grad), strict=True):
                if made is not None and parent.needs:
                    parent.add(made)
                elif made is not None:
                    made.drop()
            grad.drop()
        for piece in self.saved:
            piece.drop()


class Graph:
    """Operations recorded in the order in which they ran.

    recording: False while a checkpointed layer runs, which keeps nothing but its input.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.nodes: list[Node] = []
        self.recording = True

    def op(
        self, piece: Piece, wide: float, parents: Sequence[Value], saved: Sequence[Piece | None],
        backward: Backward,
    ) -> Value:  # fmt: skip
        """The result of an operation that made `piece`.

        backward: from the gradient at the result (which it may return after `keep`) to those at the
        parents, None for a parent that needs none.
        """
        out = Value(piece, wide, any(parent.needs for parent in parents))
        if out.needs and self.recording:
            kept = [p.keep() for p in saved if p is not None]
            self.nodes.append(Node(out, parents, kept, backward))
        return out

    def backward(self, nodes: list[Node] | None = None) -> None:
        """Run the steps of all operations (or of those given) and forget them."""
        nodes = self.nodes if nodes is None else nodes
        while nodes:
            nodes.pop().run()
