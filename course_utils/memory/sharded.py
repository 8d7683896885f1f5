"""Several GPUs: what one of them holds when training is shared out, by DDP or by FSDP2.

Everything here is read from torch's and accelerate's source.  tests/test_estimate_shared.py checks
it against their own tensors on the CPU.  benchmarks/several_gpus.py trained on two H200s: tensors
0.1 % off on average and 0.3 % at worst, the process 0.7 and 3.7 % (NCCL's 0.83 GiB included).
benchmarks/vram_sharded.py ran 12 cases on one H200 in the place of one GPU of 2 to 8, with nothing
sent and the loss in chunks: tensors 0.1 and 0.9 %.

DDP (`Replicas`; torch/nn/parallel/distributed.py, torch/csrc/distributed/c10d/reducer.cpp): every
GPU holds everything.  Beside the gradients there are buckets in which they travel, of the same
size: accelerate leaves `gradient_as_bucket_view` off, so a gradient is copied into its bucket and
back.  The first step has one bucket, later ones have many (a first of 1 MiB, then 25 MiB).

FSDP2 (`Units`; torch/distributed/fsdp/_fully_shard/): a unit is what is gathered at once.  Units
are those of accelerate (`fsdp2_prepare_model`): each decoder layer, the embedding, and the last
norm with the output layer; of tied weights all three last ones are one unit.  A GPU keeps 1/N of
every parameter, of its gradient and of its optimizer states, cut along the first dimension and
padded to equal parts (`FSDPParam._init_sharded_param`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..errors import CourseError
from ..recipes import Recipe
from .graph import Value
from .job import ADAPTERS, GRADIENTS, WEIGHTS, WORKSPACE, Held, Job, Whole
from .ledger import MIB, Ledger, Piece

FIRST_BUCKET, BUCKET = MIB, 25 * MIB  # `dist._DEFAULT_FIRST_BUCKET_BYTES`, bucket_cap_mb
BROADCAST = 250 * MIB  # `DistributedDataParallel.broadcast_bucket_size`
GATHER, REDUCE = "gather", "reduce"  # streams of FSDP: torch's allocator keeps their memory apart
WHOLE = "[rows x columns]"
SHARDINGS = ("none", "ddp", "fsdp")


def rows_of(recipe: Recipe, gpus: int) -> tuple[int, int]:
    """(rows in a batch, batches in an update) of one of so many GPUs."""
    from ..processes import shares  # imported late: with it comes accelerate

    return shares(recipe, gpus)


def sharing(recipe: Recipe, gpus: int, sharding: str | None) -> tuple[Recipe, str]:
    """(what one of `gpus` GPUs runs of the recipe, how weights are held), checked.

    sharding: None stands for "ddp" where there are several, since that is what training does.
    """
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1:
        raise CourseError(f"gpus is {gpus!r} and must be a whole number of at least 1.")
    if sharding is None:
        sharding = "ddp" if gpus > 1 else "none"
    if sharding not in SHARDINGS:
        raise CourseError(f"sharding is {sharding!r} and must be one of {', '.join(SHARDINGS)}.")
    if gpus == 1 and sharding != "none":
        raise CourseError(f"sharding={sharding!r} is for 2 GPUs or more, and gpus is 1.")
    if gpus > 1 and sharding == "none":
        raise CourseError(f"{gpus} GPUs share a training by sharding='ddp' or 'fsdp': name one.")
    if sharding == "fsdp" and recipe.optimizer != "adamw":
        raise CourseError(
            f"optimizer {recipe.optimizer!r} is bitsandbytes', which takes no sharded weights: "
            "use 'adamw' with FSDP, or sharding='ddp'."
        )
    if gpus == 1:
        return recipe, sharding
    size, batches = rows_of(recipe, gpus)
    return recipe.replace(batch_size=size, gradient_accumulation=batches), sharding


def shared_notes(job: Job) -> list[str]:
    """What is to be known of figures for several GPUs."""
    if job.gpus == 1:
        return []
    rows = f"{job.recipe.batch_size} x {job.recipe.gradient_accumulation} rows an update on each"
    notes = [
        f"{job.gpus} GPUs, {rows}: calculated; on two H200s such figures were right to 4 %",
        "what NCCL holds to send data (0.83 GiB there) may be more with more or other GPUs",
    ]
    if job.sharding == "fsdp":
        logits = 4 * job.recipe.batch_size * job.length * job.shape.vocabulary / 2**30
        notes.append(
            "FSDP2 in accelerate's units, and the model's own loss: all logits at once, "
            f"{logits:.2f} GiB in fp32, up to three times (elsewhere they are made in chunks)"
        )
    if job.sharding == "fsdp" and job.recipe.gradient_accumulation > 1:
        notes.append(
            "gradients stay whole on every GPU until an update's last batch (accelerate's no_sync)"
        )
    if job.sharding == "fsdp" and job.recipe.method == "qlora":
        whole = sum(prod(p.dims) * p.kept for params in units_of(job).values() for p in params
                    if p.place.startswith("4-bit")) / 2**30  # fmt: skip
        notes.append(
            "4-bit weights declared as bf16 (bnb_4bit_quant_storage), as `training.run` does; as "
            f"the usual uint8 none would be sharded, and every GPU hold all {whole:.2f} GiB"
        )
    return notes


# ----------------------------------------------------------------------------------------- DDP


class Replicas:
    """The buckets of DDP; nothing where one GPU trains alone, or weights are sharded."""

    def __init__(self, job: Job, held: Held, ledger: Ledger) -> None:
        self.on, self.job = job.sharding == "ddp", job
        self.held, self.ledger = held, ledger
        self.buckets: list[Piece] = []
        self.passes = 0

    def prepare(self) -> None:
        """The constructor: all weights are sent from the first process, then the one bucket."""
        if self.on:
            self._broadcast()
            self._new([sum(prod(dims) * width for _, dims, width in self.held.trained)])

    def before_pass(self, last: bool) -> None:
        """last: of an update's passes, the one that sends gradients."""
        if self.on and last:
            self.passes += 1
            if self.passes == 2:  # `Reducer::rebuild_buckets`, before the next forward pass
                for piece in self.buckets:
                    piece.drop()
                sizes = [prod(dims) * width for _, dims, width in reversed(self.held.trained)]
                self._new(_buckets(sizes, [FIRST_BUCKET, BUCKET]))

    def _new(self, sizes: list[int]) -> None:
        name = "DDP's buckets of gradients [bytes]"
        self.buckets = [self.ledger.new(GRADIENTS, name, size, width=1) for size in sizes]

    def _broadcast(self) -> None:
        """`_sync_module_states`: joined to 250 MiB or more of one type, at most two on their way.

        A bucket of one tensor needs no copy (`flatten_dense_tensors`).
        """
        kinds: dict[object, list[int]] = {}
        eight_bit = self.job.recipe.base_precision == "fp8"  # these are no parameters meanwhile
        for params in units_of(self.job).values():
            for p in params:
                if eight_bit and p.place == "linear layers":
                    continue
                four_bit = p.place.startswith("4-bit")
                size = prod(p.dims) * p.kept
                kinds.setdefault((p.kept, four_bit), []).append(size)
        flying: list[Piece] = []
        for sizes in kinds.values():
            for size, count in _counted(sizes, [BROADCAST]):
                if len(flying) == 2:
                    flying.pop(0).drop()
                name = "weights joined to be sent [bytes]"
                joined = size if count > 1 else 0
                flying.append(self.ledger.new(WORKSPACE, name, joined, width=1))
        for piece in flying:
            piece.drop()


def _counted(sizes: list[int], limits: list[int]) -> list[tuple[int, int]]:
    """(bytes, tensors) of each bucket: closed by the tensor that reaches its limit."""
    made, size, count = [], 0, 0
    for each in sizes:
        size, count = size + each, count + 1
        if size >= limits[min(len(made), len(limits) - 1)]:
            made.append((size, count))
            size = count = 0
    return [*made, (size, count)] if count else made


def _buckets(sizes: list[int], limits: list[int]) -> list[int]:
    """Bytes of each bucket."""
    return [size for size, _ in _counted(sizes, limits)]


# ---------------------------------------------------------------------------------------- FSDP


@dataclass(frozen=True)
class Param:
    """One parameter of a unit: its dimensions as stored, and bytes a number kept and gathered."""

    place: str
    part: str
    dims: tuple[int, ...]
    kept: int
    gathered: int
    trained: bool

    def shard(self, gpus: int) -> tuple[int, ...]:
        """Dimensions of one GPU's part, as padded; the first GPU's has no padding in it."""
        return (-(-self.dims[0] // gpus), *self.dims[1:])

    def padded(self, gpus: int) -> int:
        """Numbers of all GPUs' parts together."""
        return gpus * prod(self.shard(gpus))


class Units(Whole):
    """The units of a model that `fully_shard` cut up, and what is gathered of each at a moment.

    Peak moments follow from the order in which the CPU makes and frees tensors:

    forward (`FSDPParamGroup.pre_forward`): the gathered buffer of a unit is made (on a stream of
    its own) while that of the unit before is still held ("overlap of this copy-out with next
    all-gather"); then that one is let go, and the parameters are copied out of the buffer.  So a
    layer computes with its parameters and their buffer: twice its size.  The last buffer stays to
    the end of the root's forward pass, the loss included.
    backward (`pre_backward`): copied out, buffer let go, then the buffer of the unit before is
    made: again two units.  `post_backward`: parameters are freed, gradients copied into one flat
    tensor, and only when they have been is the one of the layer after it let go.
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self.job, self.ledger, self.gpus = job, ledger, job.gpus
        self.units = units_of(job)
        self.names = {"norm": "tail", "head": "tail", "positions": "root"}
        if job.shape.tied:
            self.names["embedding"] = "tail"
        self.sends = True  # whether this pass is the update's last, which sends gradients
        self.open: dict[object, list[Piece]] = {}  # unit -> its gathered parameters
        self.coming: dict[object, Piece] = {}  # unit -> its buffer, not yet copied out
        self.before: Piece | None = None  # the buffer of the unit before, in a forward pass
        self.order: list[object] = []
        self.sending: Piece | None = None  # the flat gradients of the unit before
        self.begun: set[object] = set()  # units that this backward pass has reached
        self.done_with: set[object] = set()  # and those that it has left
        self.gradients: dict[object, Piece] = {}  # unit -> its part of them

    def unit(self, name: object) -> object:
        """The unit that a layer (by number), or a weight outside the layers, belongs to."""
        return self.names.get(name, name)

    # ---------------------------------------------------------------- gathering

    def _gather(self, unit: object) -> None:
        """`foreach_all_gather`; parameters kept longer than they are used are cut down first."""
        params = self.units.get(unit)
        if not params or unit in self.open or unit in self.coming:
            return
        with self.ledger.on_stream(GATHER):
            cast = sum(p.padded(self.gpus) // self.gpus for p in params if p.kept != p.gathered)
            name = "own part in 16 bits [numbers]"
            flat = self.ledger.new(WORKSPACE, name, cast, width=2) if cast else None
            size = sum(p.padded(self.gpus) * p.gathered for p in params)
            name = "buffer of gathered weights [bytes]"
            self.coming[unit] = self.ledger.new(WORKSPACE, name, size, width=1)
            if flat:
                flat.drop()

    def _copy_out(self, unit: object, forward: bool) -> None:
        """`wait_for_unshard`."""
        if unit not in self.coming:
            return
        if forward:
            self._end_before()
        self.open[unit] = [
            self.ledger.new(p.part, f"gathered {p.place} [numbers]", p.padded(self.gpus),
                            width=p.gathered)
            for p in self.units[unit]
        ]  # fmt: skip
        buffer = self.coming.pop(unit)
        if forward:
            self.before = buffer
        else:
            buffer.drop()

    def _end_before(self) -> None:
        if self.before:
            self.before.drop()
        self.before = None

    def _free(self, unit: object) -> None:
        for piece in self.open.pop(unit, []):
            piece.drop()

    # ------------------------------------------------------------- forward pass

    def enter(self, name: object) -> None:
        """Before a module runs forward."""
        unit = self.unit(name)
        self._gather(unit)
        self._copy_out(unit, forward=True)

    def leave(self, name: object) -> None:
        """After it; what outlives this pass is not given back (`reshard_after_forward` False)."""
        unit = self.unit(name)
        if unit not in ("tail", "root"):
            self._free(unit)
            self.order.append(unit)

    def end_forward(self) -> None:
        """After the root's own."""
        self._end_before()
        self.order += [unit for unit in ("root", "tail") if self.units.get(unit)]

    # ------------------------------------------------------------ backward pass

    def back_to(self, name: object) -> None:
        """The gradient has reached a unit's output: it is gathered, and the one before it begun."""
        unit = self.unit(name)
        if unit in self.begun:  # one that several modules share
            return
        self.begun.add(unit)
        self._gather(unit)
        self._copy_out(unit, forward=False)
        if unit in self.order:
            at = self.order.index(unit)
            if at > 0:
                self._gather(self.order[at - 1])

    def start_backward(self) -> None:
        """The hooks on the loss, or on the logits where the head made them all at once."""
        for unit in ("root", "tail"):
            self.back_to(unit)

    def done(self, name: object, leaves: Mapping[object, Value], needs: bool = True) -> None:
        """`post_backward`.  needs: whether the unit's input has a gradient; if not, at the end."""
        unit = self.unit(name)
        if not needs or unit in self.done_with or (unit == "tail" and self.job.shape.tied):
            return
        self._post_backward(unit, leaves)

    def end_backward(self, leaves: Mapping[object, Value]) -> list[Piece]:
        """`_root_post_backward_final_callback`; gives the gradients, once they are sent."""
        left = [unit for unit in ("root", "embedding", "tail", *self.order) if unit in self.units]
        for unit in dict.fromkeys(left):
            if unit not in self.done_with:
                self._post_backward(unit, leaves)
        for buffer in self.coming.values():  # begun, and never needed
            buffer.drop()
        if self.sending:
            self.sending.drop()
        self.coming.clear(), self.order.clear(), self.begun.clear(), self.done_with.clear()
        self.sending = None
        made = list(self.gradients.values()) if self.sends else []
        if self.sends:
            self.gradients.clear()
        return made

    def _post_backward(self, unit: object, leaves: Mapping[object, Value]) -> None:
        self.done_with.add(unit)
        self._free(unit)
        mine = [leaf for key, leaf in leaves.items() if self.unit(_owner(key)) == unit]
        grads = [leaf.total for leaf in mine if leaf.total is not None and leaf.total.uses]
        if not (self.sends and grads):
            return  # accelerate's `no_sync`: they stay whole, until the update's last pass
        if self.sending:
            self.sending.drop()
        trained = [p for p in self.units[unit] if p.trained]
        numbers, kept = sum(p.padded(self.gpus) for p in trained), trained[0].kept
        width = trained[0].gathered  # accelerate adds up in what is computed in
        name = "flat gradients to be added up [numbers]"
        self.sending = self.ledger.new(GRADIENTS, name, numbers, width=width)
        for grad in grads:
            grad.drop()
        with self.ledger.on_stream(REDUCE):
            name, own = "own part of the gradients [numbers]", numbers // self.gpus
            part = self.ledger.new(GRADIENTS, name, own, width=width)
            if kept != width:
                longer = self.ledger.new(GRADIENTS, name, own, width=kept)
                part.drop()
                part = longer
        self.gradients[unit] = part


def _owner(key: object) -> object:
    """The layer's number, or the name of a weight outside the layers, of a key of a leaf."""
    while isinstance(key, tuple):
        key = key[0]
    return key


def units_of(job: Job) -> dict[object, list[Param]]:
    """The parameters of every unit, in the order in which the model has them."""
    shape, units = job.shape, {}
    linears = {linear.name for linear in shape.linears}
    four_bit, turned = job.recipe.method == "qlora", shape.family == "gpt2"
    for matrix in shape.matrices():
        dims, inside = matrix.dims, matrix.name.startswith("layers.")
        place = "linear layers" if matrix.place in linears else matrix.place
        kept = job.kept
        if four_bit and matrix.place in linears:  # four in each number of 16 bits
            place, dims, kept = "4-bit linear layers", (-(-matrix.count // 4), 1), 2
        elif turned and matrix.place in linears:
            dims = dims[::-1]  # GPT-2's Conv1D holds [inputs, outputs]
        unit = int(matrix.name.split(".")[1]) if inside else matrix.place
        if unit in ("norm", "head") or (unit == "embedding" and shape.tied):
            unit = "tail"
        elif unit == "positions":
            unit = "root"
        gathered = kept if place.startswith("4-bit") else job.held
        param = Param(place, WEIGHTS, dims, kept, gathered, job.full)
        units.setdefault(unit, []).append(param)
    for layer in range(shape.layers):
        units[layer] += _adapters(job)
    return units


def _adapters(job: Job) -> list[Param]:
    rank, made = job.recipe.rank, []
    for linear in job.shape.linears:
        if job.adapted(linear):
            for name, dims in (("A", (rank, linear.inputs)), ("B", (linear.outputs, rank))):
                made.append(Param(name, ADAPTERS, dims, 4, job.adapter, True))
    return made


class ShardedHeld(Held):
    """What one of several GPUs keeps under FSDP2.

    The model is taken to start in the CPU's memory, adapters on it: `fully_shard` brings one unit
    after the other to the GPU whole, and lets it go when it is cut up (`_move_states_to_device`).
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        super().__init__(job, ledger)
        self.units = Units(job, ledger)
        self.numbers = 0

    @property
    def trained_count(self) -> int:
        """Trained parameters, on all GPUs together."""
        return self.numbers

    def load(self) -> None:
        """Unit after unit."""
        job, new = self.job, self.ledger.new
        if job.recipe.method == "qlora":
            self._all_constants()
        for params in self.units.units.values():
            whole = [new(p.part, f"{p.place}, whole {WHOLE}", *p.dims, width=p.kept)
                     for p in params]  # fmt: skip
            for p in params:
                new(p.part, f"1/{job.gpus} of {p.place} {WHOLE}", *p.shard(job.gpus), width=p.kept)
                if p.trained:
                    self.trained.append((p.place, p.shard(job.gpus), p.kept))
                    self.numbers += prod(p.dims)
            for piece in whole:
                piece.drop()

    def add_adapters(self) -> None:
        """They are among the units."""

    def _all_constants(self) -> None:
        """bitsandbytes' scales are no parameters: every GPU has them all."""
        linears = {linear.name for linear in self.job.shape.linears}
        for matrix in self.job.shape.matrices():
            if matrix.place in linears:
                self._constants(-(-matrix.count // 64))
