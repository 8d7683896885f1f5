"""What rounding frozen weights to fp8 for a sample of the data takes (`fp8.quantize_for`).

Before the first step `fast.fast_layers` sends the sample forward once; each group of layers is
rounded when its input arrives.  Each method follows the function of the same name in `fast` or
`fp8`; n = tokens of the sample, d = width of the model, f = width of the MLP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import fp8
from .job import ACTIVATIONS, WEIGHTS, WORKSPACE
from .ledger import Piece, drop

if TYPE_CHECKING:
    from .activations import FastLayers, Group


class Fitting:
    """One forward pass of the sample through the layers of an `activations.FastLayers`."""

    def __init__(self, layers: FastLayers) -> None:
        self.layers, self.ledger, self.n = layers, layers.ledger, fp8.SAMPLE

    def run(self) -> None:
        """All layers, and the norm after them."""
        shape, layers = self.layers.job.shape, self.layers
        for _ in range(2):
            self.ledger.new(ACTIVATIONS, "tokens and positions of the sample", self.n, width=8)
        with (
            self._short("embedded sample", shape.width),
            self._short("cos and sin", shape.head_dim),
            self._short("cos and sin", shape.head_dim),
        ):
            x = self._new("a layer's input", shape.width)
            for number in range(len(layers.held.layers)):
                x = self._attention(x)
                x = self._mlp(x, layers.job.checkpointed(number))
            x.drop()

    def _attention(self, x: Piece) -> Piece:
        layers, shape = self.layers, self.layers.job.shape
        with self._short("normed input", shape.width):
            qkv, inner = self._product(layers.qkv, "queries, keys and values")
        mixed = self._new("attention output", shape.q_width)
        made, more = self._product(layers.out, "input of the MLP half")
        drop(x, qkv, inner, mixed, more)
        return made

    def _mlp(self, x: Piece, short: bool) -> Piece:
        layers = self.layers
        with self._short("normed input", layers.d):
            gate_up, inner = self._product(layers.gate_up, "gate and up")
        act = self._new("silu(gate) x up", layers.f)
        if short:
            gate_up.drop()
        made, more = self._product(layers.down, "input of the attention half")
        drop(x, None if short else gate_up, inner, act, more)
        return made

    def _product(self, group: Group, name: str) -> tuple[Piece, Piece | None]:
        self._hold(group)
        with self._short("input in fp8", group.inputs, 1), self._short("its scales", 1, 4):
            y = self._new(name, group.outputs)
        return y, self._new("x A.T", group.rank) if group.rank else None

    def _hold(self, group: Group) -> None:
        """The group's weights fetched, joined, and rounded."""
        ledger, dims = self.ledger, (group.outputs, group.inputs)
        fetched = [
            ledger.new(WORKSPACE, "weights fetched [outputs x inputs]", one.outputs, one.inputs)
            for one in group.layers
        ]
        whole = ledger.new(WORKSPACE, "weights joined [outputs x inputs]", *dims)
        drop(*fetched)
        order = ledger.new(WORKSPACE, "order of the inputs", group.inputs, width=8)
        factor = self._inverse_factor(group.inputs)
        with ledger.short(WORKSPACE, "weights in fp32", *dims, width=4):
            rest = ledger.new(WORKSPACE, "weights in fp32, ordered", *dims, width=4)
        with ledger.short(WORKSPACE, "their size", *dims, width=4):
            ledger.new(WEIGHTS, "fp8 scales [outputs]", group.outputs, width=4)
        name = "linear layers in fp8 [outputs x inputs]"
        made = ledger.new(WEIGHTS, name, *dims, width=1)
        with (
            ledger.short(WORKSPACE, "columns in fp8", group.outputs, fp8.COLUMNS, width=1),
            ledger.short(WORKSPACE, "their errors", group.outputs, fp8.COLUMNS, width=4),
        ):
            pass
        drop(rest, factor, order, whole)
        self.layers.matrices.append((group, made))

    def _inverse_factor(self, wide: int) -> Piece:
        """Second moments of the inputs, their Cholesky factor, its inverse: three at once."""
        new = self.ledger.new
        moments = new(WORKSPACE, "moments of the inputs", wide, wide, width=4)
        with self._part(wide, 2), self._part(wide, 4):
            pass
        turned, factor = (new(WORKSPACE, "moments, turned", wide, wide, width=4) for _ in "12")
        turned.drop()
        upper = new(WORKSPACE, "their factor, turned", wide, wide, width=4)
        factor.drop()
        moments.drop()
        with self.ledger.short(WORKSPACE, "identity", wide, wide, width=4):
            made = new(WORKSPACE, "inverse factor", wide, wide, width=4)
        upper.drop()
        return made

    def _part(self, wide: int, width: int):
        return self.ledger.short(WORKSPACE, "part of the sample", 2**12, wide, width=width)

    def _new(self, name: str, wide: int, width: float = 2) -> Piece:
        name = f"{name} [sample x width]"
        return self.ledger.new(ACTIVATIONS, name, self.n, wide, width=width)

    def _short(self, name: str, wide: int, width: float = 2):
        name = f"{name} [sample x width]"
        return self.ledger.short(ACTIVATIONS, name, self.n, wide, width=width)
