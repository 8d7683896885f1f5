"""A training run written down: one frozen, validated, printable object.

A recipe knows nothing of torch; it says what to do, and `training.run` does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import CourseError

METHODS = ("full", "lora", "qlora")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw_8bit")
BASE_PRECISIONS = ("auto", "bf16", "fp8")
GRADIENT_PRECISIONS = ("auto", "fp8")
SCHEDULES = ("cosine", "linear", "constant")
GROUPS = ("all-linear", "attention")  # what `targets` may say instead of names
SWITCHES = ("rslora", "packing", "group_by_length", "offload", "fast", "kernels")
# Full fine-tuning moves every weight, so it needs steps about ten times smaller than an adapter.
DEFAULT_LEARNING_RATE = {"full": 1e-4, "lora": 1e-3, "qlora": 1e-3}


ALPHA_0 = ": an adapter scaled by 0 trains nothing (chapter 10, 'loss is flat: alpha is 0')"


@dataclass(frozen=True)
class Recipe:
    """What to train and how.

    model: name as `models.load` takes it.  method: "full", "lora" or "qlora".
    rank, alpha: the adapter's rank r and its scale alpha / r (with `rslora`: alpha / sqrt(r),
    arXiv:2312.03732).  dropout: share of adapter inputs dropped.
    targets: "all-linear", "attention", or layer names.
    learning_rate: peak; None takes the method's default.  warmup: share of all steps.
    batch_size: rows a step computes at once; gradient_accumulation: such batches per update.
    epochs: passes over the data; max_steps, where given, decides instead.
    max_length: tokens; longer rows are cut and counted.  packing: join rows without padding, into
    sequences of pack_length tokens (default max_length).
    precision: "auto" takes the faster of bf16 and fp32 on this machine.
    checkpointing: recompute activations in the backward pass (less memory, more time); True: those
    of every layer, N: of every N-th, between the two in memory and in time.
    offload: keep what checkpointing keeps in the CPU's memory (needs a GPU; costs no time where
    a layer computes longer than its input is copied).
    fast: run LoRA's decoder layers through `fast` where it knows them; elsewhere the report says
    why not.  kernels: their elementwise steps as Triton kernels, where there is a GPU for them.
    base_precision: "auto" holds the frozen weights as `precision` says, and trained ones in fp32.
    "bf16", for "full" alone: weights, gradients and optimizer states in bf16, half of fp32's
    memory.  bf16 has 8 bits of mantissa, so an update below about 1/256 of its weight is rounded
    away: late in a schedule many are, and the loss may stop falling earlier than in fp32.
    "fp8" holds and multiplies the frozen weights in 8 bits, on GPUs that can (Ada, Hopper and
    later), rounded for a sample of the run's rows (`fp8.quantize_for`), in under 20 s for a 7B
    model; before and after the training the weights are in bf16.  Sixteen seeds of the embedded
    model do not tell its quality from bf16's (benchmarks/results/fp8_quality.json), but one of
    them lost 47 points, and another one gained 34: try both before you rely on it.
    gradient_precision: "auto" multiplies what passes back through the frozen weights as `precision`
    says.  "fp8" does so in 8 bits, on GPUs that can: half of the arithmetic (a third of it with
    checkpointing) at twice the rate.  The forward pass, the loss and the adapters' own products
    stay as they are; what it costs in quality is in the same file.
    evaluate_every, save_every: in steps; None evaluates at the end only and saves no checkpoint.
    early_stopping: looks (one every `evaluate_every` steps) without a new lowest held-out loss
    after which the run ends; the model is given back as it was at the best look, which may come
    early in a run that goes through as well.
    """

    model: str = "smollm2"
    method: str = "lora"
    rank: int = 16
    alpha: float = 32
    rslora: bool = False
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    learning_rate: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw"
    batch_size: int = 8
    gradient_accumulation: int = 1
    epochs: float = 1.0
    max_steps: int | None = None
    max_length: int = 512
    packing: bool = False
    pack_length: int | None = None
    group_by_length: bool = True
    precision: str = "auto"
    checkpointing: bool | int = False
    offload: bool = False
    fast: bool = True
    kernels: bool = True
    base_precision: str = "auto"
    gradient_precision: str = "auto"
    evaluate_every: int | None = None
    save_every: int | None = None
    early_stopping: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.targets, list):
            object.__setattr__(self, "targets", tuple(self.targets))
        if self.targets in [(group,) for group in GROUPS]:  # a YAML list of one word
            object.__setattr__(self, "targets", self.targets[0])
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if self.learning_rate is None and self.method in METHODS:
            object.__setattr__(self, "learning_rate", DEFAULT_LEARNING_RATE[self.method])
        if self.base_precision == "bf16" and self.precision == "auto":
            object.__setattr__(self, "precision", "bf16")
        problems = list(_problems(self))
        if problems:
            raise CourseError("This recipe cannot run: " + "; ".join(problems) + ".")

    @property
    def effective_batch(self) -> int:
        """Rows that one optimizer step averages over."""
        return self.batch_size * self.gradient_accumulation

    @property
    def scale(self) -> float:
        """The factor on the adapter's output: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def replace(self, **changes: Any) -> Recipe:
        """A copy with some fields changed; unknown names are an error.

        With another method, a learning rate that was the old one's default becomes the new one's.
        """
        fields = self.to_dict()
        if "method" in changes and self.learning_rate == DEFAULT_LEARNING_RATE[self.method]:
            fields["learning_rate"] = None
        return from_dict({**fields, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON and YAML hold them."""
        fields = dataclasses.asdict(self)
        fields["targets"] = self.targets if isinstance(self.targets, str) else list(self.targets)
        return fields

    def save(self, path: str | Path) -> Path:
        """Write the recipe as YAML."""
        path = Path(path)
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        return path

    def __str__(self) -> str:
        default = Recipe(method=self.method)
        fields = [f.name for f in dataclasses.fields(self)]
        shown = [n for n in fields if getattr(self, n) != getattr(default, n)]
        always = ["method", "learning_rate", "batch_size", "epochs"]
        if self.method != "full":
            always[1:1] = ["rank", "alpha"]
        names = always + [n for n in shown if n not in always]
        return "Recipe(" + ", ".join(f"{n}={getattr(self, n)!r}" for n in names) + ")"


def _problems(recipe: Recipe):
    """Sentences, one for each field that cannot work."""
    too_large = [n for n, v in vars(recipe).items() if isinstance(v, int) and abs(v) >= 2**63]
    if too_large:  # no tensor holds it, maybe no float, and the sentences below would print it
        yield f"{', '.join(too_large)} must lie between -2**63 and 2**63"
        return
    for name, allowed in (
        ("method", METHODS),
        ("precision", PRECISIONS),
        ("optimizer", OPTIMIZERS),
        ("schedule", SCHEDULES),
        ("base_precision", BASE_PRECISIONS),
        ("gradient_precision", GRADIENT_PRECISIONS),
    ):
        if getattr(recipe, name) not in allowed:
            yield f"{name} is {getattr(recipe, name)!r} and must be one of {', '.join(allowed)}"
    for name in ("rank", "batch_size", "gradient_accumulation", "max_length"):
        yield from _whole(recipe, name)
    for name in ("max_steps", "evaluate_every", "save_every", "early_stopping", "pack_length"):
        if getattr(recipe, name) is not None:
            yield from _whole(recipe, name)
    for name in ("alpha", "learning_rate", "epochs", "max_grad_norm"):
        value = getattr(recipe, name)
        if value is not None and not (_is_number(value) and value > 0):
            what = "" if _is_number(value) else "a number "
            hint = ALPHA_0 if name == "alpha" else ""
            yield f"{name} is {value!r} and must be {what}above 0{hint}"
    for name, top in (("dropout", 1), ("warmup", 1), ("weight_decay", math.inf)):
        value = getattr(recipe, name)
        if not (_is_number(value) and 0 <= value < top):
            what = "" if _is_number(value) else "a number of "
            yield f"{name} is {value!r} and must be {what}at least 0 and below {top}"
    lengths = (recipe.pack_length, recipe.max_length)
    whole = all(isinstance(length, int) for length in lengths)  # others are named above
    if whole and not (recipe.packing and recipe.pack_length >= recipe.max_length):
        yield "pack_length needs packing=True, and at least max_length tokens"
    if recipe.base_precision == "bf16" and recipe.method != "full":
        yield "base_precision 'bf16' is for method 'full': frozen weights follow `precision`"
    if recipe.base_precision == "bf16" and recipe.precision not in ("auto", "bf16"):
        yield f"base_precision 'bf16' computes in bf16, and precision is {recipe.precision!r}"
    if recipe.base_precision == "fp8" and recipe.method != "lora":
        yield "base_precision 'fp8' is for method 'lora': qlora has its own, full trains the base"
    if recipe.base_precision == "fp8" and not recipe.fast:
        yield "base_precision 'fp8' needs fast=True"
    if recipe.base_precision == recipe.gradient_precision == "fp8":
        yield "base_precision 'fp8' has its gradients in fp8: leave gradient_precision at 'auto'"
    if recipe.gradient_precision == "fp8" and (recipe.method == "full" or not recipe.fast):
        yield "gradient_precision 'fp8' is for frozen weights in the fast layers: for lora or qlora"
    if recipe.offload and not (recipe.checkpointing and recipe.fast):
        yield "offload moves what checkpointing keeps: it needs checkpointing=True and fast=True"
    if recipe.early_stopping and not recipe.evaluate_every:
        yield "early_stopping counts looks at the held-out loss: it needs evaluate_every"
    if not recipe.targets:
        yield "targets is empty: name layers, or write 'all-linear'"
    yield from _wrong_kinds(recipe)


def _wrong_kinds(recipe: Recipe):
    """A YAML file may hold anything: "packing: maybe" would count as true."""
    for name in SWITCHES:
        if not isinstance(getattr(recipe, name), bool):
            yield f"{name} is {getattr(recipe, name)!r} and must be true or false"
    every = recipe.checkpointing
    if not isinstance(every, bool | int) or (every < 1 and every is not False):
        yield (
            f"checkpointing is {every!r} and must be true, false, or a whole number N of at least "
            "1 for every N-th layer"
        )
    if not isinstance(recipe.model, str) or not recipe.model:
        yield f"model is {recipe.model!r} and must be a name, a Hub id or a folder"
    names = [recipe.targets] if isinstance(recipe.targets, str) else recipe.targets
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        yield f"targets is {recipe.targets!r} and must be a name or a list of names"
    elif len(names) > 1 and (groups := [name for name in names if name in GROUPS]):
        yield f"targets has {groups[0]!r} beside other names: write it alone, or names alone"
    seed, whole = recipe.seed, isinstance(recipe.seed, int) and not isinstance(recipe.seed, bool)
    if not (whole and 0 <= seed < 2**32):  # NumPy takes no larger one
        yield f"seed is {seed!r} and must be a whole number from 0 to 4294967295"


def _whole(recipe: Recipe, name: str):
    value = getattr(recipe, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        yield f"{name} is {value!r} and must be a whole number of at least 1"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def from_dict(fields: dict[str, Any]) -> Recipe:
    """A recipe from plain values; for an unknown name the error suggests the right one."""
    known = [field.name for field in dataclasses.fields(Recipe)]
    unknown = [name for name in fields if name not in known]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
        raise CourseError(f"A recipe has no field {', '.join(map(repr, unknown))}: {hint}")
    return Recipe(**fields)


def load(path: str | Path) -> Recipe:
    """Read a recipe from a YAML (or JSON) file."""
    return from_dict(read_fields(path))


def read_fields(path: str | Path) -> dict[str, Any]:
    """The `field: value` lines of a YAML file, not yet checked."""
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CourseError(f"The recipe {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # besides YAML's own: a date such as 2024-02-30, and what is too large or nested too deep
        where = " ".join(str(error).split())
        raise CourseError(f"The recipe {path} is not valid YAML: {where}") from error
    if not isinstance(fields, dict):
        raise CourseError(f"The recipe {path} must be a list of `field: value` lines.")
    # YAML 1.1 reads 1e-3 (without a dot) as text
    for name in (
        "learning_rate", "weight_decay", "warmup", "epochs", "alpha", "dropout", "max_grad_norm",
    ):  # fmt: skip
        if isinstance(fields.get(name), str):
            with contextlib.suppress(ValueError):  # what stays text, the validation names
                fields[name] = float(fields[name])
    return fields


# The guide's three settings by memory: for a 7B model (Llama-2-7B's shape) on cards of 6 to 8, 16
# and 24 GiB, which `tests/test_plan.py` checks by calculation.  It takes checkpointing, inputs that
# wait in the CPU's memory (offload), and dropout=0, without which the fast layers do not run: stock
# ones need 16.9 GiB where the medium setting has 16, and 25.9 where the large one has 24.  The
# guide's dropout of 0.1 and 0.05 is the price; more rows or fewer epochs act against overfitting.
RECOMMENDED_CONFIG_SMALL = Recipe(
    method="qlora", rank=8, alpha=16, targets=("q_proj", "v_proj"),
    learning_rate=2e-4, batch_size=2, gradient_accumulation=8, epochs=3, max_length=512,
    checkpointing=True, offload=True,
)  # fmt: skip
RECOMMENDED_CONFIG_MEDIUM = Recipe(
    method="lora", rank=16, alpha=32, targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    learning_rate=3e-4, batch_size=4, gradient_accumulation=4, epochs=3, max_length=1024,
    checkpointing=True, offload=True,
)  # fmt: skip
RECOMMENDED_CONFIG_LARGE = Recipe(
    method="lora", rank=32, alpha=64, targets="all-linear",
    learning_rate=3e-4, batch_size=8, gradient_accumulation=2, epochs=3, max_length=2048,
    checkpointing=True, offload=True,
)  # fmt: skip
