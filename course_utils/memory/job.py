"""What one estimate is about: a shape, a recipe, and the sizes that follow from both."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..errors import CourseError
from ..recipes import Recipe
from .ledger import Ledger, Piece
from .shapes import FAST_FAMILIES, Linear, Shape

CHUNK_BYTES = 2**27  # `loss.CHUNK_BYTES`: the largest fp32 logits held at once
WEIGHTS, CONSTANTS, ADAPTERS = "weights", "quantization constants", "adapters"
GRADIENTS, OPTIMIZER, ACTIVATIONS = "gradients", "optimizer", "activations"
LOGITS, WORKSPACE, ROUNDING = "logits", "workspace", "rounding"
PARTS = (
    WEIGHTS, CONSTANTS, ADAPTERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, WORKSPACE, ROUNDING,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One training run to estimate.

    length: tokens of a row, padding or packing included.  labelled: share of positions that are
    scored.  varlen_gqa: whether attention over packed rows takes fewer key heads (torch 2.13 on).
    gpus: that train together; recipe: what one of them runs.  sharding: "none", "ddp" or "fsdp".
    own_loss: the model's own loss instead of `course_utils.loss`, as in a training under FSDP.
    """

    shape: Shape
    recipe: Recipe
    length: int
    labelled: float = 1.0
    varlen_gqa: bool = False
    precision: str = "bf16"
    gpus: int = 1
    sharding: str = "none"
    own_loss: bool = False

    @property
    def tokens(self) -> int:
        """Positions of a batch."""
        return self.recipe.batch_size * self.length

    @property
    def scored(self) -> int:
        """Positions with a loss: the last of a row has no next token."""
        return max(1, int(self.recipe.batch_size * (self.length - 1) * self.labelled))

    @property
    def width(self) -> int:
        """Bytes of a number that is computed with."""
        return 4 if self.precision == "fp32" else 2

    @property
    def full(self) -> bool:
        """Whether every weight is trained."""
        return self.recipe.method == "full"

    @property
    def kept(self) -> int:
        """Bytes of a base weight that is not quantized, as it is kept between steps."""
        if self.full and self.recipe.base_precision != "bf16":
            return 4
        return self.width if not self.full else 2

    @property
    def held(self) -> int:
        """The same of a weight as a step finds it: FSDP gathers it in what is computed in."""
        return min(self.kept, self.width) if self.sharding == "fsdp" else self.kept

    @property
    def adapter(self) -> int:
        """Bytes of an adapter's weight as a step finds it."""
        return self.width if self.sharding == "fsdp" else 4

    @property
    def autocast(self) -> bool:
        """Whether products run in a shorter type than what they are given."""
        return self.width == 2 and self.recipe.base_precision != "bf16"  # pure bf16 is short itself

    @property
    def every(self) -> int:
        """Of how many layers one is checkpointed; 0: none."""
        return int(self.recipe.checkpointing)

    def checkpointed(self, layer: int) -> bool:
        """Whether this layer keeps its input alone."""
        last = layer == self.shape.layers - 1 and self.fast
        return bool(self.every) and layer % self.every == 0 and not last

    @property
    def fast(self) -> bool:
        """Whether the layers run through `course_utils.fast`."""
        return not self.why_stock()

    def why_stock(self) -> str:
        """Why the stock layers run; empty where the fast ones do."""
        shape, recipe = self.shape, self.recipe
        if self.full:
            return "full fine-tuning runs the stock layers"
        if self.sharding == "fsdp":
            return "FSDP gathers one stock layer after the other"
        if not recipe.fast:
            return "fast=False"
        if shape.family not in FAST_FAMILIES:
            return f"{shape.family} layers are not built like Llama's"
        if recipe.dropout > 0:
            return "adapter dropout is on (dropout=0 allows the fast layers)"
        if shape.window and shape.window < self.length:
            return f"rows are longer than the attention window of {shape.window}"
        return ""

    def adapted(self, linear: Linear) -> bool:
        """Whether an adapter sits on this layer."""
        if self.full:
            return False
        targets = self.recipe.targets
        if targets == "all-linear":
            return True
        if targets == "attention":
            return linear.block == "attention"
        return linear.name in ([targets] if isinstance(targets, str) else targets)

    def check(self) -> None:
        """Raise CourseError for what cannot run."""
        names = {linear.name for linear in self.shape.linears}
        wanted = self.recipe.targets
        listed = [wanted] if isinstance(wanted, str) else list(wanted)
        missing = [n for n in listed if n not in names | {"all-linear", "attention"}]
        if missing and not self.full:
            raise CourseError(
                f"targets: {self.shape.name} has no layer called {', '.join(missing)}; its linear "
                f"layers are {', '.join(sorted(names))}."
            )
        if self.shape.longest and self.length > self.shape.longest:
            raise CourseError(
                f"length is {self.length} and {self.shape.name} reads at most "
                f"{self.shape.longest} tokens: lower max_length (or pack_length)."
            )
        if not 0 < self.labelled <= 1:
            raise CourseError(f"labelled is {self.labelled!r} and must be above 0 and at most 1.")
        if self.recipe.base_precision == "fp8" and not self.fast:
            raise CourseError(f"base_precision='fp8' needs the fast layers: {self.why_stock()}.")


class Whole:
    """Nothing is sharded: what `sharded.Units` does at each of these moments is not done."""

    sends = True

    def enter(self, name: object) -> None:
        """Before a module runs forward."""

    def leave(self, name: object) -> None:
        """After it."""

    def end_forward(self) -> None:
        """After the whole model."""

    def start_backward(self) -> None:
        """At the loss."""

    def back_to(self, name: object) -> None:
        """Before a module's backward pass."""

    def done(self, name: object, leaves: object, needs: bool = True) -> None:
        """After it."""

    def end_backward(self, leaves: object) -> list[Piece] | None:
        """After the whole; None: gradients stay where they are."""


class Held:
    """What stays on the card from loading to the end, and the trained weights among it."""

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self.trained: list[tuple[str, tuple[int, ...], int]] = []  # place, dims, bytes a number
        self.layers: list[dict[str, Piece]] = [{} for _ in range(job.shape.layers)]
        self.units = Whole()

    @property
    def trained_count(self) -> int:
        """Trained parameters."""
        return sum(prod(dims) for _, dims, _ in self.trained)

    def load(self) -> None:
        """The base model's parameters, one after the other, as `models.load` puts them there."""
        job, new = self.job, self.ledger.new
        quantized = job.recipe.method == "qlora"
        names = {linear.name for linear in job.shape.linears}
        for matrix in job.shape.matrices():
            if quantized and matrix.place in names:
                self._quantize(matrix.dims)
                continue
            label = "linear layers" if matrix.place in names else matrix.place
            label = f"{label} [{'outputs x inputs' if len(matrix.dims) == 2 else 'width'}]"
            piece = new(WEIGHTS, label, *matrix.dims, width=job.held)
            if matrix.name.startswith("layers.") and matrix.place in names:
                self.layers[int(matrix.name.split(".")[1])].setdefault(
                    matrix.name.split(".", 2)[2], piece
                )
            if job.full:
                self.trained.append((matrix.place, matrix.dims, job.held))

    def _quantize(self, dims: tuple[int, ...]) -> None:
        """A bf16 matrix becomes NF4 with double quantization (arXiv:2305.14314, section 3)."""
        new, count = self.ledger.new, dims[0] * dims[1]
        blocks = -(-count // 64)
        with self.ledger.short(WEIGHTS, "being quantized [outputs x inputs]", *dims):
            new(WEIGHTS, "4-bit linear layers [outputs x inputs]", *dims, width=0.5)
            with self.ledger.short(WORKSPACE, "scales in fp32", blocks, width=4):
                self._constants(blocks)

    def _constants(self, blocks: int) -> None:
        """What bitsandbytes keeps to read a matrix of so many blocks of 64."""
        new = self.ledger.new
        new(CONSTANTS, "a scale of 1 B for 64 weights", blocks, width=1)
        new(CONSTANTS, "a scale of 4 B for 256 scales", -(-blocks // 256), width=4)
        new(CONSTANTS, "code of 16 levels", 16, width=4)
        new(CONSTANTS, "code of 256 levels", 256, width=4)
        new(CONSTANTS, "offset", 1, width=4)

    def add_adapters(self) -> None:
        """LoRA's A and B in fp32, as PEFT holds them."""
        job, rank = self.job, self.job.recipe.rank
        for _ in range(job.shape.layers):
            for linear in job.shape.linears:
                if job.adapted(linear):
                    for name, dims in (
                        ("A [rank x inputs]", (rank, linear.inputs)),
                        ("B [outputs x rank]", (linear.outputs, rank)),
                    ):
                        self.ledger.new(ADAPTERS, name, *dims, width=4)
                        self.trained.append((name, dims, 4))
