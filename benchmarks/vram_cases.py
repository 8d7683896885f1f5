"""The cases of the memory grid: model shapes, recipes, and which rows may be fitted to.

A group is a shape and a method.  New cases go to the end of their group: whether a case is fitted
to is decided by its place there.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from course_utils import recipes
from course_utils.memory.known import KNOWN
from course_utils.recipes import Recipe

GIB = 2**30
STEPS, TIMED_STEPS, WARM = 3, 6, 2  # steps of a case; of one with the card to itself; not timed
QV = ("q_proj", "v_proj")
# Shapes of which no row is fitted to.
HELD_OUT = ("llama-3.1-8b", "qwen2.5-3b", "qwen3-1.7b")


SHAPES = {
    name: KNOWN[name]
    for name in (
        "smollm2", "llama-3.2-1b", "llama-2-7b", "llama-3.1-8b", "qwen2.5-1.5b", "qwen2.5-3b",
        "qwen3-1.7b", "gpt2-xl",
    )
}  # fmt: skip
# To try the script on a CPU: the same families; the figures say nothing.
TINY: dict[str, dict[str, int]] = {
    "llama": {"vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 16},
    "gpt2": {"vocab_size": 1024, "n_embd": 64, "n_layer": 2, "n_head": 4},
}  # fmt: skip
TINY["qwen2"] = TINY["qwen3"] = TINY["llama"]


@dataclass(frozen=True)
class Case:
    """One run to measure.

    recipe: fields of the recipe beyond the grid's own (`GRID`).  length: tokens of each row.
    alone: has the card for itself, so that its process and its speed can be measured.
    loads: the base model is read from a folder, as learners do, inside what is measured.
    what: "train" (`training.run`), "plain" (transformers' Trainer and PEFT) or "weights" (the
    model on the card and nothing else).  dtype: of the base, where the recipe has no word for it.
    may_not_fit: an out-of-memory error is a result.
    """

    name: str
    shape: str
    method: str
    length: int
    recipe: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    loads: bool = False
    what: str = "train"
    dtype: str | None = None
    may_not_fit: bool = False
    tiny: bool = False

    @property
    def group(self) -> str:
        """The shape and the method."""
        return f"{self.shape}/{self.method}"

    @property
    def judged(self) -> bool:
        """Whether the recipe says all that an estimate needs."""
        return self.what == "train" and self.dtype is None

    def made_recipe(self) -> Recipe:
        """The recipe, whole."""
        fields = GRID | {"max_steps": TIMED_STEPS if self.alone else STEPS}
        fields |= {"method": self.method, "max_length": self.length} | self.recipe
        return recipes.from_dict(fields)

    def config_fields(self) -> dict[str, Any]:
        """The model's config.json."""
        fields = SHAPES[self.shape]
        return fields | TINY[fields["model_type"]] if self.tiny else fields

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those that say nothing."""
        shown = {k: v for k, v in asdict(self).items() if v not in (None, False)}
        return shown | {"group": self.group}

    @property
    def need_gib(self) -> float:
        """See `need_gib`."""
        return need_gib(self)

    def small(self) -> Case:
        """The same case with a tiny model and rows a 32nd as long."""
        return replace(self, tiny=True, length=max(16, self.length // 32))


GRID = {  # what all cases share
    "rank": 16, "alpha": 32, "dropout": 0.0, "schedule": "constant", "warmup": 0.0,
    "learning_rate": 1e-4, "group_by_length": False, "precision": "bf16", "batch_size": 1,
}  # fmt: skip


def config(fields: dict[str, Any]) -> PretrainedConfig:
    """The config object of these fields."""
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@functools.cache
def parameters(shape: str) -> int:
    """How many parameters the shape has, counted on a model without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(SHAPES[shape]))
    return sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------- the list


def _named(name: str, method: str, rows: str, *, shape: str = "llama-2-7b", **more: Any) -> Case:
    """A case that the claims ledger looks up by its name; rows: "4x512"."""
    keys = ("what", "dtype", "may_not_fit", "loads")
    special = {key: more.pop(key) for key in keys if key in more}
    batch, length = (int(part) for part in rows.split("x"))
    return Case(name, shape, method, length, {"batch_size": batch} | more, alone=True, **special)


def _of(shape: str, method: str, rows: str, *, alone: bool = False, loads: bool = False, **more):
    """A case named after what it does."""
    batch, length = (int(part) for part in rows.split("x"))
    words = [shape, method, rows] + [_word(key, value) for key, value in more.items()]
    if loads:
        words.append("from a folder")
    fields = {"batch_size": batch} | more
    return Case(" ".join(words), shape, method, length, fields, alone=alone, loads=loads)


def _plain(shape: str, method: str, rows: str, **more: Any) -> Case:
    """A run of transformers' Trainer, which the other estimators have in mind."""
    case = _of(shape, method, rows, **more)
    return replace(case, name=f"plain {case.name}", what="plain")


def _word(key: str, value: Any) -> str:
    if isinstance(value, tuple):
        value = "+".join(name.removesuffix("_proj") for name in value)
    short = {"gradient_accumulation": "accumulation", "base_precision": "base"}
    short["gradient_precision"] = "gradients"
    return key if value is True else f"{short.get(key, key)}={value}"


def _preset(name: str, recipe: Recipe, **changes: Any) -> Case:
    """One of the guide's recipes as it stands, for the same steps as the others."""
    fields = recipe.to_dict() | {"precision": "bf16", "max_steps": STEPS, "schedule": "constant"}
    fields |= {"group_by_length": False, "targets": recipe.targets} | changes
    method, length = fields.pop("method"), fields.pop("max_length")
    del fields["model"]
    may_not_fit = not fields["checkpointing"]
    return Case(name, "llama-2-7b", method, length, fields, alone=True, may_not_fit=may_not_fit)


def _ledger() -> list[Case]:
    """What the guide says about memory, most important first."""
    guide = {"rank": 8, "alpha": 16, "targets": QV}
    kept, least = {"checkpointing": True}, {"checkpointing": True, "offload": True}
    plain = {"checkpointing": False, "offload": False}
    short = {"base_precision": "bf16"}
    medium, large = recipes.RECOMMENDED_CONFIG_MEDIUM, recipes.RECOMMENDED_CONFIG_LARGE
    return [
        _preset("preset-small", recipes.RECOMMENDED_CONFIG_SMALL),
        _preset("preset-medium", medium),
        _preset("preset-large", large),
        _named("full-fp32-amp", "full", "2x512"),
        _named("full-bf16", "full", "1x512", **short, **kept),
        _named("lora-bf16", "lora", "4x512", **guide),
        _named("lora-fp32-amp", "lora", "4x512", dtype="fp32", **guide),
        _named("qlora", "qlora", "2x512", **guide),
        _named("qlora-checkpointing", "qlora", "2x512", **guide, **kept),
        _named("weights-bf16", "lora", "1x512", what="weights"),
        _named("weights-nf4", "qlora", "1x512", what="weights"),
        _named("full-bf16-paged8bit", "full", "1x512", **short, **kept,
               optimizer="paged_adamw_8bit"),
        _named("full-bf16-4x512", "full", "4x512", **short, **kept),
        _named("lora-bf16-checkpointing", "lora", "4x512", **guide, **least),
        _named("lora-bf16-least", "lora", "1x512", **guide, **kept),
        _named("qlora-4x512", "qlora", "4x512", **guide),
        _named("out-of-memory-cure", "qlora", "1x256", **guide, **kept),
        _preset("preset-medium-no-checkpointing", medium, **plain),
        _preset("preset-large-no-checkpointing", large, **plain),
        _named("plain-lora-fp32-amp", "lora", "4x512", what="plain", dtype="fp32", **guide),
        _named("plain-full-fp32-amp", "full", "2x512", what="plain", dtype="fp32"),
    ]  # fmt: skip


def _grid() -> list[Case]:
    """Everything that changes memory, over the shapes."""
    kept, least = {"checkpointing": True}, {"checkpointing": True, "offload": True}
    second = {"checkpointing": 2}
    short, fp8, stock = {"base_precision": "bf16"}, {"base_precision": "fp8"}, {"fast": False}
    guide = {"rank": 8, "alpha": 16, "targets": QV}
    bnb, paged = {"optimizer": "adamw_8bit"}, {"optimizer": "paged_adamw_8bit"}
    of7 = functools.partial(_of, "llama-2-7b")
    of1 = functools.partial(_of, "llama-3.2-1b")
    of8 = functools.partial(_of, "llama-3.1-8b")
    smol = functools.partial(_of, "smollm2")
    qwen, qwen3b = functools.partial(_of, "qwen2.5-1.5b"), functools.partial(_of, "qwen2.5-3b")
    gpt2 = functools.partial(_of, "gpt2-xl")
    return [
        of7("lora", "4x1024", alone=True),
        of7("lora", "4x1024", **least, alone=True),
        of7("lora", "4x1024", **kept),
        of7("lora", "4x1024", **second, offload=True),
        of7("lora", "4x1024", **second),
        of7("lora", "4x1024", **fp8),
        of7("lora", "4x1024", **fp8, **least),
        of7("lora", "2x512", **stock),
        of7("lora", "2x1024", **stock, **kept),
        of7("lora", "1x4096", rank=64, alpha=128, **least),
        of7("lora", "8x512", targets="attention"),
        of7("lora", "2x1024", rank=128, alpha=256, **bnb),
        of7("lora", "2x512", dropout=0.1),
        of7("qlora", "4x1024", alone=True),
        of7("qlora", "4x1024", **least),
        of7("qlora", "4x1024", **kept),
        of7("qlora", "1x4096", **least),
        of7("qlora", "1x512", **stock, **kept),
        of1("full", "4x512", alone=True),
        of1("full", "8x1024", **kept),
        of1("full", "4x512", **bnb),
        of1("full", "4x1024", **short),
        of1("full", "2x2048", **short, **kept, **paged),
        of1("full", "2x512", gradient_accumulation=2),
        of1("lora", "4x1024", alone=True),
        of1("lora", "4x1024", **least, alone=True),
        of1("lora", "8x512", **guide),
        of1("lora", "4x1024", **kept),
        of1("lora", "4x1024", **second, offload=True),
        of1("lora", "1x4096"),
        of1("lora", "2x1024", rank=128, alpha=256),
        of1("lora", "2x1024", **stock),
        of1("lora", "4x1024", **stock, **kept),
        of1("lora", "4x1024", **fp8),
        of1("lora", "2x2048", packing=True),
        of1("lora", "2x1024", gradient_accumulation=2),
        of1("lora", "2x1024", loads=True),
        of1("lora", "2x1024", dropout=0.05, **kept),
        of1("qlora", "4x1024", alone=True),
        of1("qlora", "4x1024", **kept),
        of1("qlora", "2x2048", **least),
        of1("qlora", "2x512", **stock),
        of1("qlora", "2x1024", loads=True),
        smol("full", "8x512", alone=True),
        smol("full", "8x512", **kept),
        smol("full", "4x1024", **bnb),
        smol("full", "8x512", **short),
        smol("full", "2x512", loads=True),
        smol("lora", "8x512", alone=True),
        smol("lora", "8x512", **least),
        smol("lora", "2x2048"),
        smol("lora", "8x512", **stock),
        smol("lora", "8x1024", **kept, rank=64, alpha=128),
        smol("qlora", "8x512"),
        smol("qlora", "8x512", **least),
        of8("lora", "2x1024", alone=True),
        of8("lora", "4x1024", **least),
        of8("lora", "2x2048", **kept),
        of8("lora", "4x512", **guide),
        of8("lora", "1x4096", **fp8, **least),
        of8("qlora", "2x1024", alone=True),
        of8("qlora", "4x1024", **least),
        of8("qlora", "1x4096", **second, offload=True),
        of8("full", "1x512", **short, **kept, **bnb),
        gpt2("lora", "4x512", alone=True),
        gpt2("lora", "4x1024", **kept),
        gpt2("lora", "2x1024", rank=8, alpha=16, targets="attention"),
        gpt2("full", "2x512", **kept, alone=True),
        gpt2("full", "2x1024", **short),
        qwen("lora", "4x1024", alone=True),
        qwen("lora", "4x1024", **least),
        qwen("lora", "2x2048", **second),
        qwen("lora", "2x1024", **stock),
        qwen("qlora", "4x1024"),
        qwen("qlora", "2x2048", **least),
        qwen("full", "2x512"),
        qwen("full", "2x1024", **short, **kept),
        qwen3b("lora", "2x1024", alone=True),
        qwen3b("lora", "4x1024", **least),
        qwen3b("qlora", "2x2048", **least),
        qwen3b("qlora", "4x512"),
        qwen3b("full", "2x512", **short, **kept, **bnb),
        qwen3b("full", "2x512", **kept),
        _of("qwen3-1.7b", "lora", "2x1024"),
        _of("qwen3-1.7b", "lora", "4x1024", **least),
        _of("qwen3-1.7b", "qlora", "2x1024", **kept),
    ]  # fmt: skip


def _others() -> list[Case]:
    """transformers' Trainer with checkpointing, one row a batch, adapters on the attention."""
    usual = {"targets": ("q_proj", "k_proj", "v_proj", "o_proj"), "checkpointing": True}
    return [
        _plain("llama-3.2-1b", "lora", "1x1024", **usual),
        _plain("llama-3.2-1b", "qlora", "1x1024", **usual),
        _plain("llama-2-7b", "qlora", "1x1024", **usual),
        _plain("qwen2.5-1.5b", "lora", "1x1024", **usual),
        _plain("qwen2.5-3b", "qlora", "1x1024", **usual),
        _plain("llama-3.1-8b", "lora", "1x1024", **usual),
    ]


def _gradients_in_fp8() -> list[Case]:
    """What passes back through the frozen weights in 8 bits."""
    short, least = {"gradient_precision": "fp8"}, {"checkpointing": True, "offload": True}
    return [
        _of("llama-2-7b", "lora", "4x1024", **short),
        _of("llama-2-7b", "qlora", "4x1024", **short),
        _of("llama-2-7b", "lora", "4x1024", **short, **least),
        _of("llama-2-7b", "qlora", "4x1024", **short, **least),
        _of("llama-3.2-1b", "lora", "4x1024", **short),
        _of("smollm2", "qlora", "8x512", **short),
    ]


def all_cases() -> list[Case]:
    """Every case, those that the claims ledger looks up first."""
    return _ledger() + _grid() + _others() + _gradients_in_fp8()


def fitted(cases: list[Case]) -> dict[str, bool]:
    """Name -> whether constants may be fitted to the case's row.

    Decided before anything was measured: the first, third, ... judged case of each group, and none
    of the shapes in `HELD_OUT`.
    """
    seen: dict[str, int] = {}
    found = {}
    for case in cases:
        place = seen[case.group] = seen.get(case.group, -1) + case.judged
        found[case.name] = case.judged and case.shape not in HELD_OUT and place % 2 == 0
    return found


def in_turn(cases: list[Case]) -> list[Case]:
    """The first case of each group, then the second of each ...: cut off, it covers all groups."""
    places: dict[str, int] = {}
    keyed = []
    for case in cases:
        places[case.group] = places.get(case.group, -1) + 1
        keyed.append((places[case.group], case))
    return [case for _, case in sorted(keyed, key=lambda pair: pair[0])]


def alone_in_turn(cases: list[Case]) -> list[Case]:
    """The ledger's most important cases, then one of each shape, then the others."""
    ledger = {case.name: place for place, case in enumerate(_ledger())}
    return sorted(cases, key=lambda case: min(ledger.get(case.name, 11), 11))


def need_gib(case: Case) -> float:
    """Roughly what the process will hold, and rather too much, to share the card by.

    On purpose not `memory.estimate`: that is what is tried here, and its errors must not decide
    what can be measured.
    """
    if case.tiny:
        return 1.0
    recipe, fields, count = case.made_recipe(), SHAPES[case.shape], parameters(case.shape)
    width = fields.get("hidden_size") or fields["n_embd"]
    mlp = fields.get("intermediate_size") or 4 * width
    layers = fields.get("num_hidden_layers") or fields["n_layer"]
    tokens = recipe.batch_size * case.length
    held = {"lora": 2.1, "qlora": 0.7, "full": 18.0}[case.method]
    if recipe.base_precision == "bf16":
        held = 8.0 if recipe.optimizer == "adamw" else 6.0
    if case.dtype == "fp32":
        held = max(held, 6.0)
    layer = tokens * 2 * (14 * width + 4 * mlp)
    if not recipe.fast or recipe.dropout or case.method == "full" or case.dtype:
        layer *= 2 if recipe.dropout else 1.5
    every = tokens * 2 * 2 * width  # what checkpointing keeps of a layer
    kept = layers * (layer if not recipe.checkpointing else every) + 2 * layer
    if recipe.checkpointing is not True and recipe.checkpointing:
        kept = layers * (layer + every) / 2 + 2 * layer
    return 1.1 * (2.5 + (held * count + kept) / GIB)
