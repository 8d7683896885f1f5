"""Whether `memory.plan`'s recipes fit the cards they are for, and what a run too large does.

    python -m benchmarks.vram_plans run --seconds 200       # rows go to $OUT/plans.jsonl
    python -m benchmarks.vram_plans collect plans.jsonl     # results/vram_plans.json

A process on a large card is held to a small one's memory (`memory.limit_memory`), makes the model
there and trains it: every plan for a model, a card and a length of rows, and the presets of
`recipes` on the cards they are for.  What passes the limit is an out-of-memory error, as it would
be on the small card.  "tight": `budget.run_within` with a budget that the recipe's larger batches
do not fit; it has to end with the losses and the tokens of a run without a limit.

Random weights and tokens, 3 optimizer steps; of an update's micro-batches no more than two are run,
since the third finds the memory as the second did.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_common as common
from benchmarks import vram_cases, vram_measure
from benchmarks.gpu_common import MARK, Row
from benchmarks.vram_grid import Runner, read_rows
from course_utils import recipes
from course_utils.memory.known import KNOWN
from course_utils.recipes import Recipe

MODULE = "benchmarks.vram_plans"
STEPS, ROWS = 3, 16  # optimizer steps, rows of an update
# model, card in GiB, tokens of the longest row
PLANS = [
    ("llama-3.2-1b", 8, 1024), ("qwen2.5-1.5b", 8, 1024), ("llama-2-7b", 8, 512),
    ("llama-2-7b", 8, 1024), ("llama-3.1-8b", 8, 512), ("qwen2.5-3b", 8, 2048),
    ("smollm2-1.7b", 12, 2048), ("llama-3.2-3b", 12, 1024), ("llama-2-7b", 12, 2048),
    ("llama-3.1-8b", 12, 1024), ("qwen2.5-7b", 12, 1024), ("llama-2-7b", 16, 1024),
    ("llama-3.1-8b", 16, 2048), ("mistral-7b", 16, 4096), ("qwen3-4b", 16, 1024),
    ("llama-2-7b", 24, 1024), ("llama-3.1-8b", 24, 2048), ("qwen2.5-7b", 24, 4096),
    ("qwen2.5-14b", 24, 1024), ("gpt2-xl", 24, 1024), ("llama-2-7b", 40, 2048),
    ("llama-3.1-8b", 40, 4096), ("qwen2.5-14b", 40, 1024), ("llama-3.1-8b", 80, 4096),
    ("qwen2.5-14b", 80, 2048),
]  # fmt: skip
# GiB of the cards that the presets are for (see `recipes`).
PRESETS = {"small": 6, "medium": 16, "large": 24}
TIGHT = {"shape": "llama-3.2-1b", "rows": 8, "short": 128, "long": 2048, "steps": 6, "every": 12}


@dataclass(frozen=True)
class Card:
    """One case: a model on a card.  kind: "plan", "preset" or "tight"."""

    name: str
    kind: str
    shape: str
    card_gib: float
    length: int
    tiny: bool = False

    @property
    def need_gib(self) -> float:
        """What it may hold at most; a tight run measures without a limit first."""
        return 1.0 if self.tiny else self.card_gib

    def to_dict(self) -> Row:
        """Plain values for JSON."""
        return asdict(self)

    def config_fields(self) -> dict[str, Any]:
        """The model's config.json."""
        fields = KNOWN[self.shape]
        return fields | vram_cases.TINY[fields["model_type"]] if self.tiny else fields

    def recipe(self) -> Recipe | None:
        """What is to be run: the plan's recipe or the preset; None where nothing fits."""
        if self.kind == "preset":
            return getattr(recipes, f"RECOMMENDED_CONFIG_{self.name.split()[-1].upper()}")
        from course_utils.memory.plan import plan

        return plan(self.shape, self.card_gib, length=self.length, effective_batch=ROWS).recipe


def all_cases(tiny: bool = False) -> list[Card]:
    """The presets, the recovery, then the plans."""
    made = [
        Card(f"preset {name}", "preset", "llama-2-7b", gib,
             getattr(recipes, f"RECOMMENDED_CONFIG_{name.upper()}").max_length, tiny)
        for name, gib in PRESETS.items()
    ] + [Card("tight", "tight", TIGHT["shape"], 40, TIGHT["long"], tiny)]  # fmt: skip
    for shape, gib, length in PLANS:
        made.append(Card(f"{shape}, {gib} GiB, {length} tokens", "plan", shape, gib, length, tiny))
    return made


# ------------------------------------------------------------------------------------ a card


def shortened(recipe: Recipe) -> Recipe:
    """The recipe for a few steps of two micro-batches at most."""
    return recipe.replace(
        max_steps=STEPS, gradient_accumulation=min(2, recipe.gradient_accumulation),
        precision="bf16", group_by_length=False,
    )  # fmt: skip


def expected(case: Card, recipe: Recipe) -> Row:
    """The recipe, and what the estimate says of it."""
    from course_utils.memory.estimate import estimate

    said = estimate(KNOWN[case.shape], recipe, length=case.length)
    figures = {
        "allocated_gib": said.allocated_gib, "reserved_gib": said.reserved_gib,
        "process_gib": said.process_gib, "at_most_gib": said.range_gib[1],
    }  # fmt: skip
    rounded = {name: round(gib, 3) for name, gib in figures.items()}
    return {"recipe": changed(recipe), "estimated": rounded}


def fits(case: Card, recipe: Recipe, meter: vram_measure.Meter) -> Row:
    """Run the recipe on the case's card."""
    from course_utils import memory, models, training

    if torch.cuda.is_available():
        memory.limit_memory(case.card_gib)
    recipe, config = shortened(recipe), vram_cases.config(case.config_fields())
    lengths = [16 if case.tiny else case.length] * (recipe.effective_batch * STEPS)
    rows = vram_measure.encoded(token_rows(lengths, config.vocab_size))
    dtype = torch.bfloat16 if recipe.method != "full" else torch.float32
    model = vram_measure.random_model(config, dtype, recipe.method == "qlora", models.device())
    meter.start()
    with tempfile.TemporaryDirectory() as folder:
        run = training.run(
            recipe, rows, model=model, output_dir=folder, tokenizer=vram_measure.tokenizer(),
            callbacks=[meter],
        )  # fmt: skip
    losses = [round(entry["loss"], 4) for entry in run.report.losses]
    return {"fits": True, "losses": losses, "notes": run.report.notes}


def changed(recipe: Recipe) -> Row:
    """The recipe's fields that are not a recipe's default, and its method."""
    default, fields = Recipe(method=recipe.method).to_dict(), recipe.to_dict()
    shown = {k: v for k, v in fields.items() if v != default[k] and k != "model"}
    return {"method": recipe.method} | shown


def token_rows(lengths: list[int], vocabulary: int) -> list[list[int]]:
    """Random tokens."""
    draw = random.Random(common.SEED)
    return [[draw.randrange(3, vocabulary) for _ in range(length)] for length in lengths]


# ---------------------------------------------------------------------------- a run too large


def tight(case: Card, meter: vram_measure.Meter) -> Row:
    """A budget that some batches pass: run without it, then with it, and compare."""
    from course_utils import budget, training

    # Most rows are short, and a few long: which batch passes the budget first is the sampler's.
    count = TIGHT["rows"] * TIGHT["steps"]
    long, short = (64, 8) if case.tiny else (TIGHT["long"], TIGHT["short"])
    lengths = [long if i % TIGHT["every"] == 0 else short for i in range(count)]
    rows = vram_measure.encoded(token_rows(lengths, case.config_fields()["vocab_size"]))
    fields = {"method": "lora", "batch_size": TIGHT["rows"], "max_steps": TIGHT["steps"],
              "max_length": long, "precision": "bf16", "group_by_length": False,
              "schedule": "constant", "warmup": 0.0, "learning_rate": 1e-4}  # fmt: skip
    with vram_measure.model_folder(case.config_fields()) as folder:
        recipe = Recipe(model=folder, **fields)
        options = {"tokenizer": vram_measure.tokenizer()}
        with tempfile.TemporaryDirectory() as out:
            free = training.run(recipe, rows, output_dir=out, **options)
        free_peak = free.report.memory.reserved_gib
        # Between what the weights alone take and what the largest batch does.
        gib = _budget(free.report.memory.phases, free_peak)
        losses, tokens = [e["loss"] for e in free.report.losses], free.report.tokens
        del free
        meter.start()
        with tempfile.TemporaryDirectory() as out:
            run = budget.run_within(recipe, rows, budget_gib=gib, output_dir=out, **options)
    found = [entry["loss"] for entry in run.report.losses]
    apart = max(abs(a - b) for a, b in zip(losses, found, strict=True))
    return {
        "recipe": changed(recipe), "budget_gib": gib,
        "unlimited_reserved_gib": free_peak, "ended_with": changed(run.recipe),
        "losses": [round(loss, 4) for loss in found], "largest_loss_difference": round(apart, 4),
        "tokens": run.report.tokens, "same_tokens": run.report.tokens == tokens,
        "steps": run.report.steps, "notes": run.report.notes,
        "recovered": any("memory ran out" in note for note in run.report.notes),
    }  # fmt: skip


def _budget(phases: dict[str, float], reserved: float | None) -> float | None:
    """GiB: a third of the way from loading to the peak, and CUDA's context; None on a CPU."""
    if reserved is None:
        return None
    from course_utils.memory.measure import CONTEXT_GIB

    return round(phases["load"] + (reserved - phases["load"]) / 3 + CONTEXT_GIB, 2)


# -------------------------------------------------------------------------------- running it


def one(name: str, tiny: bool) -> None:
    """The child: see `vram_grid.Runner`."""
    from course_utils import training  # noqa: F401  the slow imports, before the card is taken

    (case,) = [case for case in all_cases(tiny) if case.name == name]
    recipe = case.recipe() if case.kind != "tight" else None  # takes the CPU a while
    row = expected(case, recipe) if recipe else {"recipe": None}
    print(vram_measure.READY, flush=True)
    word, *before = sys.stdin.readline().split() or ["stop"]
    if word != vram_measure.GO:
        return
    since = time.perf_counter()
    meter = vram_measure.Meter(1, float(before[0]) if before else None)
    try:
        if case.kind == "tight":
            row = tight(case, meter)
        elif recipe:
            row |= fits(case, recipe, meter)
    except torch.OutOfMemoryError as error:
        said = " ".join(str(error).split())[:400]
        row |= {"fits": False, "error": said, "out_of_memory": True}
    row = case.to_dict() | row | {"measured": meter.memory()}
    row["seconds"] = round(time.perf_counter() - since, 1)
    print(MARK + json.dumps(row | common.facts()), flush=True)


def run(lines: Path, seconds: float, jobs: int, tiny: bool, only: str | None) -> None:
    """The presets and the recovery with the card to themselves, the plans beside each other."""
    start = time.monotonic()
    cases = [case for case in all_cases(tiny) if not only or only in case.name]
    runner = Runner(lines, start + seconds, MODULE)
    left = runner.run([case for case in cases if case.kind != "plan"], jobs=1)
    left += runner.run([case for case in cases if case.kind == "plan"], jobs=jobs)
    print(f"{len(runner.rows)} rows in {time.monotonic() - start:.0f} s; no time for {len(left)}")


def collect(files: list[str], name: str, notes: list[str] | None) -> Path:
    """Merge the rows into results/NAME.json, with how many plans fit."""
    rows = read_rows(files)
    ran = [row for row in rows if "fits" in row]
    found = {
        "ran": len(ran), "fitted": sum(row["fits"] for row in ran),
        "out_of_memory": [row["name"] for row in ran if not row["fits"]],
        "nothing_fits": [row["name"] for row in rows if row.get("recipe", 0) is None],
    }  # fmt: skip
    return common.write_result(name, {"summary": found, "rows": rows}, notes)


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["run", "one", "collect"])
    parser.add_argument("what", nargs="*", help="one: the case's name; collect: the files")
    parser.add_argument("--only", help="run: a part of the names")
    parser.add_argument("--seconds", type=float, default=250, help="run: stop after these")
    parser.add_argument("--jobs", type=int, default=6, help="run: processes at once")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it on a CPU")
    parser.add_argument("--note", action="append", help="collect: a remark to keep with the rows")
    parser.add_argument("--name", default="vram_plans", help="the file in results/, without .json")
    given = parser.parse_args()
    if given.action == "one":
        one(given.what[0], given.tiny)
    elif given.action == "run":
        run(common.lines_path("plans"), given.seconds, given.jobs, given.tiny, given.only)
    else:
        print(collect(given.what, given.name, given.note))


if __name__ == "__main__":
    sys.exit(main())
