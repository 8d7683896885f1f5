"""What fits a card: the recipe that trains fastest there, what it gives up, and what else would do.

    print(plan("llama-2-7b", 8, length=1024))

Memory is calculated (`estimate`).  Speed is not: choices are ranked by what was measured of one
model on one card (`SECONDS`), so the order carries over to others, and the figures do not.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CourseError
from ..recipes import METHODS, Recipe
from .card import least_reserved, passes
from .estimate import GIB, Estimate, estimate, make_job, write
from .known import KNOWN
from .ledger import Ledger
from .shapes import Shape, shape_of
from .sharded import rows_of, sharing

SPARE_GIB = 0.25  # beside the estimate's own error: what a display or the driver takes of a card
GPU_COUNTS = (2, 4, 8, 16)  # cards that are looked at where one does not do
CARDS = (6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180)  # GiB that cards are sold with

# Seconds of a step of 4 x 1024 tokens on one H200: Llama-2-7B's shape with 49,152 words (6.88e9
# parameters, 32 layers), by (method, checkpointing).  From benchmarks/results/peers_h200.json, to
# 5 %: the rows of "ours" for the fast layers, those of TRL for the stock ones.
SECONDS = {
    "fast": {("lora", False): 0.2136, ("lora", True): 0.2753,
             ("qlora", False): 0.2207, ("qlora", True): 0.2834},
    "stock": {("lora", False): 0.4089, ("lora", True): 0.5703,
              ("qlora", False): 0.3773, ("qlora", True): 0.5596},
}  # fmt: skip
TOKENS, PARAMETERS, LAYERS = 4096, 6.88e9, 32  # of that step and that model
# What the CPU needs to start a step's kernels, however short they are (benchmarks/NOTES.md)
LAUNCH_SECONDS = {False: 0.100, True: 0.140}
# Full fine-tuning over LoRA in the stock layers, both in bf16 with checkpointing (measured there
# alone): a third more arithmetic, but no adapters to pass through, which takes longer.
FULL_FACTOR = 0.91
SAME_SPEED = 0.01  # differences below this are none: less memory decides
MARGIN = f"needs count in the estimate's error (3 % or more) and {SPARE_GIB} GiB to spare"
RANKED_BY = (
    "speeds are ranked by measurements of a 7B model on one NVIDIA H200: the order should hold on "
    "other cards, the factors need not"
)

SENDING = (
    "several GPUs: NCCL is counted as on two H200s (0.83 GiB each), and may hold more elsewhere; "
    "what sending takes of time is in no figure here: those two trained a 7B at 0.92 to 0.95 of "
    "the speed planned, and at 0.77 to 0.86 with its weights sharded"
)


@dataclass(frozen=True)
class Choice:
    """One way to train: its recipe, its memory, its time per token, and what it gives up.

    needs_gib: the smallest card that it should pass on, the estimate's error and `SPARE_GIB`
    counted in.  estimate: on a card with more room, where PyTorch reserves more than it must.
    """

    recipe: Recipe
    estimate: Estimate
    needs_gib: float
    length: int  # tokens of the longest row or pack
    seconds: float = 0.0
    traded: tuple[str, ...] = ()

    def __str__(self) -> str:
        r, gpus = self.recipe, self.estimate.gpus
        size, batches = (r.batch_size, r.gradient_accumulation) if gpus == 1 else rows_of(r, gpus)
        rows = f"{size} x {batches} rows of {self.length:,} tokens"
        parts = [r.method, rows if gpus == 1 else f"{rows} on each GPU"]
        if gpus > 1:
            parts.append(self.estimate.sharding.upper())
        if r.checkpointing:
            every = "" if r.checkpointing == 1 else f" of every {r.checkpointing}nd layer"
            every = every.replace("3nd", "3rd").replace("4nd", "4th")
            parts.append(f"checkpointing{every}" + (" with offload" if r.offload else ""))
        cards = f"{gpus} x " if gpus > 1 else ""
        return ", ".join(parts) + f": from {cards}{self.needs_gib:.1f} GiB"


@dataclass(frozen=True)
class Plan:
    """What to do on `gpus` cards of `vram_gib` each; `recipe` is None where nothing fits.

    traded: what the recipe gives up against LoRA without checkpointing.  alternatives: the next
    best that fit, fastest first.  nearest: where nothing fits, what would, closest to the wish.
    """

    vram_gib: float
    model: str
    best: Choice | None
    alternatives: tuple[Choice, ...] = ()
    nearest: tuple[Choice, ...] = ()
    smallest: Choice | None = None
    notes: tuple[str, ...] = (MARGIN, RANKED_BY)
    gpus: int = 1

    @property
    def sharding(self) -> str | None:
        """How the best one holds its weights: "none", "ddp" or "fsdp"."""
        return self.best.estimate.sharding if self.best else None

    @property
    def recipe(self) -> Recipe | None:
        """The fastest recipe that fits."""
        return self.best.recipe if self.best else None

    @property
    def estimate(self) -> Estimate | None:
        """Its memory."""
        return self.best.estimate if self.best else None

    @property
    def traded(self) -> tuple[str, ...]:
        """What it gives up."""
        return self.best.traded if self.best else ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "vram_gib": self.vram_gib,
            "gpus": self.gpus,
            "sharding": self.sharding,
            "model": self.model,
            "best": _plain(self.best),
            "alternatives": [_plain(choice) for choice in self.alternatives],
            "nearest": [_plain(choice) for choice in self.nearest],
            "smallest": _plain(self.smallest),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        cards = "a card" if self.gpus == 1 else f"{self.gpus} cards"
        head = f"{self.model} on {cards} of {self.vram_gib:g} GiB"
        if self.best is None:
            lines = [f"{head}: nothing asked for fits"]
            if self.smallest:
                lines.append(f"  the least  {self.smallest}")
            lines += [f"  possible   {', '.join(c.traded)}: {c}" for c in self.nearest]
        else:
            lines = [f"{head}: {self.best}"]
            lines += [f"  traded     {trade}" for trade in self.traded or ["nothing"]]
            for choice in self.alternatives:
                factor = self.best.seconds / choice.seconds
                lines.append(f"  or         {choice}; {factor:.2f}x the speed")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def _plain(choice: Choice | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    return {
        "recipe": choice.recipe.to_dict(),
        "estimate": choice.estimate.to_dict(),
        "needs_gib": choice.needs_gib,
        "length": choice.length,
        "seconds_per_token": choice.seconds,
        "traded": list(choice.traded),
    }


# ---------------------------------------------------------------------------------- planning


def plan(
    model: Any,
    vram_gib: float,
    *,
    length: int | None = None,
    lengths: Sequence[int] | None = None,
    effective_batch: int = 16,
    rank: int = 16,
    targets: str | Sequence[str] = "all-linear",
    methods: Sequence[str] = ("lora", "qlora"),
    pure_bf16: bool = False,
    gpus: int = 1,
) -> Plan:
    """The recipe for a card of `vram_gib` GiB that trains fastest.

    model: what `memory.shape_of` takes; give training the name of the weights.  length: tokens of
    the longest row (default 512); or lengths: of all rows, for a ranking by what they really hold.
    effective_batch: rows per update, which every choice keeps.  methods: which may be chosen.
    pure_bf16: let "full" hold its weights in bf16, where small updates are lost (see `Recipe`).
    gpus: so many such cards.  What fits with all weights on each (DDP) is preferred; where nothing
    does, weights are sharded over them (FSDP, on stock layers).
    Raises CourseError for values that cannot be.
    """
    shape = shape_of(model)
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise CourseError(f"methods is {methods!r}: name some of {', '.join(METHODS)}.")
    base = Recipe(
        model=model if isinstance(model, str) else shape.name,
        method=methods[0],
        rank=rank,
        alpha=2 * rank,
        targets=targets if isinstance(targets, str) else tuple(targets),
        batch_size=effective_batch,
        max_length=max(lengths or [512]) if length is None else length,
        dropout=0.0,  # the fast layers know no dropout
        base_precision="bf16" if pure_bf16 and tuple(methods) == ("full",) else "auto",
    )
    return plan_recipe(base, vram_gib, model=shape, lengths=lengths, methods=methods, gpus=gpus)


def plan_recipe(
    recipe: Recipe,
    vram_gib: float,
    *,
    model: Any = None,
    lengths: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    fixed: Sequence[str] = (),
    device: str = "cuda",
    gpus: int = 1,
) -> Plan:
    """The same for a recipe of one's own: only what memory depends on and results do not is chosen.

    That is batch_size against gradient_accumulation, checkpointing with offload, and the method
    where `methods` allows others.  fixed: fields that must stay as they are.
    """
    if not isinstance(vram_gib, int | float) or isinstance(vram_gib, bool) or not vram_gib > 0:
        raise CourseError(f"vram_gib is {vram_gib!r}: give the card's memory in GiB, such as 8.")
    wish = _Wish(recipe, shape_of(recipe.model if model is None else model), lengths, device)
    jobs, methods, held = _shared(wish, gpus), methods or (recipe.method,), set(fixed)
    notes = (MARGIN, RANKED_BY) if gpus == 1 else (MARGIN, RANKED_BY, SENDING)
    for job in jobs:
        found = _fitting(job, methods, held, vram_gib)
        if found:
            choices = _worth_naming(job, sorted(found, key=job.rank), vram_gib)
            best, *others = choices
            return Plan(vram_gib, job.shape.name, best, tuple(others), notes=notes, gpus=gpus)
    job = jobs[-1]
    ways = _ways(job, methods, held)
    smallest = min((job.choice(group[0]) for group in ways), key=lambda choice: choice.needs_gib)
    nearest = tuple(_nearest(job, smallest, vram_gib))
    if any(choice.estimate.gpus > 1 for choice in nearest):
        notes = (MARGIN, RANKED_BY, SENDING)
    return Plan(vram_gib, job.shape.name, None, nearest=nearest, smallest=smallest, notes=notes,
                gpus=gpus)  # fmt: skip


def _shared(wish: _Wish, gpus: int) -> list[_Wish]:
    """The wish on several GPUs: all weights on each, or else sharded; itself on one."""
    sharing(wish.recipe, gpus, None)  # raises for what cannot be
    if gpus == 1:
        return [wish]
    if wish.device != "cuda":
        raise CourseError("Several GPUs are asked for, and device is 'cpu': use 'cuda'.")
    made = [dataclasses.replace(wish, gpus=gpus, sharding="ddp")]
    if wish.recipe.base_precision != "fp8" and wish.recipe.optimizer == "adamw":
        stock = _stock(wish.recipe)  # which alone can be sharded
        made.append(_Wish(stock, wish.shape, wish.lengths, wish.device, gpus, "fsdp"))
    return made


def _fitting(job: _Wish, methods: Sequence[str], fixed: set[str], vram_gib: float) -> list[Recipe]:
    """All ways that fit; where a micro-batch fits, smaller ones do as well."""
    found: list[Recipe] = []
    for group in _ways(job, methods, fixed):
        low, high = 0, len(group)
        while low < high:
            middle = (low + high) // 2
            if job.fits(group[middle], vram_gib):
                low = middle + 1
            else:
                high = middle
        found += group[:low]
    return found


def _worth_naming(job: _Wish, ways: Sequence[Recipe], vram_gib: float) -> list[Choice]:
    """The fastest of each kind, without what is slower and needs as much as one before."""
    named: list[Choice] = []
    kinds: set[tuple[str, float]] = set()
    for way in ways:
        if (kind := (way.method, _share(way))) in kinds or len(named) == 4:
            continue  # the same with other micro-batches
        kinds.add(kind)
        choice = job.choice(way, vram_gib)
        less = all(
            choice.needs_gib < other.needs_gib - SPARE_GIB
            for other in named
            if other.recipe.method in (way.method, "lora")
        )
        if less:
            named.append(choice)
    return named


@dataclass
class _Wish:
    """What is asked for, with a memory of what was calculated for it."""

    recipe: Recipe
    shape: Shape
    lengths: Sequence[int] | None
    device: str
    gpus: int = 1
    sharding: str = "none"
    known: dict[Recipe, Estimate] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the longest row or pack."""
        if self.recipe.packing:
            return self.recipe.pack_length or self.recipe.max_length
        return min(max(self.lengths or [self.recipe.max_length]), self.recipe.max_length)

    def seconds(self, way: Recipe) -> float:
        """Per token, as on the H200; of several GPUs together, without what sending takes."""
        row = statistics.fmean(self.lengths) if self.lengths else self.length
        row = self.length if way.packing else min(row, self.length)
        if self.gpus == 1:
            return seconds_per_token(self.shape, way, way.batch_size * row, self.device)
        size, batches = rows_of(way, self.gpus)
        each = seconds_per_token(self.shape, way, size * row, self.device)
        return each * size * batches / way.effective_batch

    def rank(self, way: Recipe) -> tuple[Any, ...]:
        """Faster first; for the same speed LoRA before QLoRA, and a pass of about `TOKENS`."""
        ideal = self.seconds(way) / _ideal(self.shape)
        far = abs(math.log(way.batch_size * self.length / TOKENS))
        return round(ideal / SAME_SPEED), way.method == "qlora", far, _share(way)

    def fits(self, way: Recipe, vram_gib: float) -> bool:
        """Whether a card of `vram_gib` will do, with the margin of `MARGIN`."""
        made, error = self.estimated(way)
        room = (vram_gib - SPARE_GIB) / error
        if self.device == "cpu" or made.process_gib <= room:
            return made.process_gib <= room
        beside = made.process_gib - made.reserved_gib
        if made.allocated_gib + beside > room:
            return False
        return passes(self.ledger(way), int((room - beside) * GIB))

    def estimated(self, way: Recipe) -> tuple[Estimate, float]:
        """(the estimate, the factor to its upper end)."""
        if way not in self.known:
            self.known[way] = estimate(
                self.shape, way, length=self.length, device=self.device, gpus=self.gpus,
                sharding=self.sharding,
            )  # fmt: skip
        made = self.known[way]
        return made, made.range_gib[1] / made.process_gib

    def ledger(self, way: Recipe) -> Ledger:
        """Every tensor of the run."""
        job = make_job(
            self.shape, way, length=self.length, gpus=self.gpus, sharding=self.sharding
        )  # fmt: skip
        return write(job)[0]

    def choice(self, way: Recipe, fits_gib: float = math.inf) -> Choice:
        """The way with its figures.  fits_gib: a card that is known to do."""
        made, error = self.estimated(way)
        needs = made.process_gib
        if self.device == "cuda":
            low, high = (int(gib * GIB) for gib in (made.allocated_gib, made.reserved_gib))
            least = least_reserved(self.ledger(way), low, high) / GIB
            needs += least - made.reserved_gib
        needs = min(needs * error + SPARE_GIB, fits_gib)
        traded = tuple(_trades(way, self))
        return Choice(way, made, needs, self.length, self.seconds(way), traded)


def seconds_per_token(shape: Shape, recipe: Recipe, tokens: float, device: str = "cuda") -> float:
    """Of a pass over `tokens` tokens on the H200, for ranking: scaled from what was measured.

    A pass takes as long as its arithmetic, but no less than the CPU needs to start its kernels
    (on a CPU there is nothing to start, and small passes lose nothing).
    4-bit weights cost the same to unpack however many tokens there are.  Between no checkpointing
    and all layers' the share of layers decides.
    """
    fast = recipe.fast and recipe.dropout == 0 and recipe.method != "full"
    fast = fast and shape.family in ("llama", "mistral", "qwen2", "qwen3")
    table = SECONDS["fast" if fast else "stock"]
    share = 1 / recipe.checkpointing if recipe.checkpointing else 0.0

    def between(plain: float, checkpointed: float) -> float:
        return plain + share * (checkpointed - plain)

    step = between(table["lora", False], table["lora", True])
    unpack = between(*(table["qlora", k] - table["lora", k] for k in (False, True)))
    work = step * tokens / TOKENS * (FULL_FACTOR if recipe.method == "full" else 1)
    work += max(0.0, unpack) if recipe.method == "qlora" else 0.0
    launch = between(LAUNCH_SECONDS[False], LAUNCH_SECONDS[True]) * shape.layers / LAYERS
    launch *= device == "cuda"
    return max(work * shape.parameters / PARAMETERS, launch) / tokens


def _ideal(shape: Shape) -> float:
    """LoRA without checkpointing, with tokens enough."""
    return SECONDS["fast"]["lora", False] / TOKENS * shape.parameters / PARAMETERS


# ------------------------------------------------------------------------------- what there is


def _ways(job: _Wish, methods: Sequence[str], fixed: set[str]) -> Iterator[list[Recipe]]:
    """Every recipe that differs from the wish in what may be chosen, in groups.

    Of each method first the group with the least memory; within a group the batch grows.
    """
    recipe, rows = job.recipe, job.recipe.effective_batch
    batches = [size for size in range(1, rows + 1) if rows % size == 0]
    most = math.ceil(rows / job.gpus)  # rows of one GPU: a larger batch is the same there
    batches = [size for at, size in enumerate(batches) if at == 0 or batches[at - 1] < most]
    if fixed & {"batch_size", "gradient_accumulation"}:
        batches = [recipe.batch_size]
    everies = [recipe.checkpointing] if "checkpointing" in fixed else [True, 2, 4, False]
    for method in methods:
        changed = _as(recipe, method)
        offload = recipe.offload if "offload" in fixed else may_offload(changed, job.device)
        for every in everies:
            yield [
                changed.replace(
                    batch_size=batch, gradient_accumulation=rows // batch,
                    checkpointing=every, offload=bool(every) and offload,
                )
                for batch in batches
            ]  # fmt: skip


def _as(recipe: Recipe, method: str) -> Recipe:
    """The recipe with another method; how the base is held follows where it must."""
    if method == recipe.method:
        return recipe
    gradients = "auto" if method == "full" else recipe.gradient_precision
    return recipe.replace(method=method, base_precision="auto", gradient_precision=gradients)


def _stock(recipe: Recipe) -> Recipe:
    """The recipe through the stock layers."""
    return recipe.replace(fast=False, offload=False, gradient_precision="auto")


def may_offload(recipe: Recipe, device: str) -> bool:
    """Whether the fast layers run, which offload without loss of time, on a GPU."""
    return device == "cuda" and recipe.fast and recipe.method != "full" and recipe.dropout == 0


def _share(recipe: Recipe) -> float:
    return 1 / recipe.checkpointing if recipe.checkpointing else 0.0


def _trades(way: Recipe, job: _Wish) -> Iterator[str]:
    """Sentences on what this gives up."""
    if way.method == "qlora":
        yield (
            "4-bit base: its rounding stays in the model; on most tasks as good as LoRA "
            "(arXiv:2305.14314), so compare on yours"
        )
    if way.checkpointing:
        plain = job.seconds(way.replace(checkpointing=False, offload=False))
        yield f"checkpointing: {_percent(job.seconds(way) / plain)} more time"
    if way.batch_size < way.effective_batch:
        whole = job.seconds(way.replace(batch_size=way.effective_batch, gradient_accumulation=1))
        more = job.seconds(way) / whole
        if more > 1 + SAME_SPEED:
            yield f"micro-batches of {way.batch_size}: {_percent(more)} more time than all at once"
    if job.sharding == "fsdp":
        yield (
            f"weights sharded over {job.gpus} GPUs: every pass gathers them anew, layer by layer, "
            "at the speed of the links between the GPUs"
        )
    if way.base_precision == "bf16":
        yield "weights and optimizer in bf16: small updates are rounded away"


def _percent(factor: float) -> str:
    return f"{100 * (factor - 1):.0f} %"


# -------------------------------------------------------------------------- what would do instead


def _nearest(job: _Wish, smallest: Choice, vram_gib: float) -> Iterator[Choice]:
    """Shorter rows, another method, a smaller model, more GPUs, a larger card: each near."""
    shorter = _shorter(job, smallest, vram_gib)
    if shorter:
        yield shorter
    if smallest.recipe.method != "qlora":
        way = _as(smallest.recipe, "qlora")
        way = way.replace(offload=bool(way.checkpointing) and may_offload(way, job.device))
        other = job.choice(way)
        if other.needs_gib <= vram_gib:
            yield _traded(other, "QLoRA instead")
    model = _smaller_model(job, smallest, vram_gib)
    if model:
        yield model
    more = _more_gpus(job, smallest, vram_gib)
    if more:
        yield more
    card = next((size for size in CARDS if size >= smallest.needs_gib), None)
    if card and job.device == "cuda":  # the same, with more room
        yield _traded(smallest, f"a card of {card} GiB")


def _traded(choice: Choice, what: str) -> Choice:
    return dataclasses.replace(choice, traded=(what,))


def _shorter(job: _Wish, smallest: Choice, vram_gib: float) -> Choice | None:
    """The longest rows that fit, in steps of 64 tokens."""
    low, high = 0, (job.length - 1) // 64
    while low < high:
        middle = (low + high + 1) // 2
        shorter = _at_length(job, smallest.recipe, 64 * middle)
        if shorter.fits(shorter.recipe, vram_gib):
            low = middle
        else:
            high = middle - 1
    if not low:
        return None
    shorter = _at_length(job, smallest.recipe, 64 * low)
    cut = sum(length > shorter.length for length in job.lengths or [])
    more = f" ({cut:,} of {len(job.lengths):,} rows are cut)" if job.lengths else ""
    choice = shorter.choice(shorter.recipe, vram_gib)
    return _traded(choice, f"rows of at most {shorter.length:,} tokens{more}")


def _at_length(job: _Wish, way: Recipe, length: int) -> _Wish:
    """The wish for this way alone, with rows cut at `length`."""
    changed = way.replace(max_length=length, pack_length=None)
    lengths = [min(tokens, length) for tokens in job.lengths] if job.lengths else None
    return dataclasses.replace(job, recipe=changed, lengths=lengths, known={})


def _smaller_model(job: _Wish, smallest: Choice, vram_gib: float) -> Choice | None:
    """The largest well-known model that fits as it was asked for."""
    shapes = sorted((shape_of(name) for name in KNOWN), key=lambda s: -s.parameters)
    for shape in shapes:
        least = shape.parameters * (0.5 if smallest.recipe.method == "qlora" else 2) / 2**30
        too_long = shape.longest and shape.longest < job.length
        if shape.parameters >= job.shape.parameters or least > vram_gib or too_long:
            continue
        way = smallest.recipe.replace(model=shape.name)
        try:
            choice = dataclasses.replace(job, recipe=way, shape=shape, known={}).choice(way)
        except CourseError:  # other layer names than the recipe's targets
            continue
        if choice.needs_gib <= vram_gib:
            billions = f"{shape.parameters / 1e9:.1f} B parameters"
            return _traded(choice, f"a smaller model, {shape.name} ({billions})")
    return None


def _more_gpus(job: _Wish, smallest: Choice, vram_gib: float) -> Choice | None:
    """The fewest cards of this size that do, with weights sharded over them."""
    rows, optimizer = smallest.recipe.effective_batch, smallest.recipe.optimizer
    if job.device != "cuda" or smallest.recipe.base_precision == "fp8" or optimizer != "adamw":
        return None
    for gpus in GPU_COUNTS:
        if job.gpus < gpus <= rows:
            wish = _shared(dataclasses.replace(job, gpus=1, sharding="none", known={}), gpus)[-1]
            way = _stock(smallest.recipe)
            if wish.fits(way, vram_gib):
                return _traded(wish.choice(way, vram_gib), f"{gpus} GPUs, weights sharded")
    return None
