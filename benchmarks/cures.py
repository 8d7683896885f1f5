"""Failures provoked, and each change that the guide names tried alone as their cure.

    python -m benchmarks.cures --jobs 16       # on a GPU, three seeds; writes results/cures.json
    python -m benchmarks.cures --seeds 1       # one seed, on two CPU cores
    python -m benchmarks.cures --memory        # results/cures_memory.json alone, 1 minute
    python -m benchmarks.cures --runs 2        # the next two runs only; what is there is kept

Three failures on the first chapter's tickets, with LoRA on the embedded model: a loss that does not
fall because the learning rate is too large (`TOO_LARGE`), one that does not fall because it is too
small (`TOO_SMALL`), and a small training set that is learnt by heart (`OVERFITTING`).  Each run is
its failing recipe with one thing changed.  All are judged on the same held-out tickets, which
neither train nor stop a run: early stopping looks at the validation rows.

The guide's "500 warm-up steps" in a run of fewer steps is a rate that rises all along and never
arrives: step s of N has the share s / 501 of it.  `warmed` writes that as a recipe.

The memory of mixed precision is measured too, in a file of its own: one LoRA on fp32 weights
computed in fp32, the same computed in 16 bits under autocast (fp16 on a GPU, bf16 on the CPU), and
on weights of 16 bits, with few tokens a step and with many.  On the CPU it is the resident memory
of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks import study
from course_utils import encoding, evaluation, models, quickstart, training
from course_utils.precision import DTYPES
from course_utils.recipes import Recipe

RESULTS = Path(__file__).parent / "results" / "cures.json"
MEMORY = RESULTS.with_name("cures_memory.json")
SEEDS = (0, 1, 2)
ROWS, FEW_ROWS = 48, 24  # of the training rows; a small set is soon known by heart
WARMUP_STEPS, PATIENCE = 500, 2
# rank and alpha are half of what the guide names as the cure
FAILING = Recipe(
    method="lora", rank=8, alpha=16, batch_size=4, epochs=2, max_length=256, warmup=0.0,
    group_by_length=False, precision="auto",
)  # fmt: skip
TOO_LARGE = FAILING.replace(learning_rate=3e-2)
TOO_SMALL = FAILING.replace(learning_rate=1e-5)
OVERFITTING = FAILING.replace(learning_rate=3e-3, epochs=10, schedule="constant")
Row = dict[str, Any]


def warmed(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with `WARMUP_STEPS` of warm-up, which is more than its steps on so many rows."""
    steps = math.ceil(rows / recipe.effective_batch) * int(recipe.epochs)
    peak = recipe.learning_rate * (steps + 1) / (WARMUP_STEPS + 1)
    return recipe.replace(learning_rate=peak, warmup=1 - 1e-6)


def not_falling(failing: Recipe) -> dict[str, Recipe]:
    """The guide's five changes for a loss that does not fall."""
    return {
        "as it fails": failing,
        "rate 1e-4": failing.replace(learning_rate=1e-4),
        "500 warm-up steps": warmed(failing, ROWS),
        "rank 16": failing.replace(rank=16, alpha=32),  # alpha / rank as it was
        "alpha 32": failing.replace(alpha=32),
        "5 epochs": failing.replace(epochs=5),
    }


def overfitting() -> dict[str, Recipe]:
    """The guide's five changes for a model that learns its rows by heart."""
    every = math.ceil(FEW_ROWS / OVERFITTING.batch_size)  # a look after each epoch
    return {
        "as it fails": OVERFITTING,
        "dropout 0.2": OVERFITTING.replace(dropout=0.2),
        "1 epoch": OVERFITTING.replace(epochs=1),
        "rate 1e-4": OVERFITTING.replace(learning_rate=1e-4),
        "weight decay 0.01": OVERFITTING.replace(weight_decay=0.01),
        "early stopping": OVERFITTING.replace(evaluate_every=every, early_stopping=PATIENCE),
    }


FAILURES: dict[str, tuple[dict[str, Recipe], int]] = {
    "too large": (not_falling(TOO_LARGE), ROWS),
    "too small": (not_falling(TOO_SMALL), ROWS),
    "overfitting": (overfitting(), FEW_ROWS),
}
# (name, weights in 16 bits, computed in 16 bits): the guide's fp16=True is the second
MIXED = (
    ("all in fp32", False, False),
    ("fp32 weights, mixed precision", False, True),
    ("16-bit weights", True, True),
)
SHAPES = ((1, 128), (4, 256))  # rows, tokens each


def cases(seeds: int = len(SEEDS)) -> list[Row]:
    """What each training is; all changes of a seed come before the next seed."""
    return [
        {"failure": failure, "change": change, "seed": seed}
        for seed in SEEDS[:seeds]
        for failure, (changes, _) in FAILURES.items()
        for change in changes
    ]


def memory_cases() -> list[Row]:
    """What is held in 16 bits and computed in them, with few tokens and with many."""
    return [
        {"name": name, "rows": rows, "tokens": tokens}
        for rows, tokens in SHAPES
        for name, _, _ in MIXED
    ]


def measure(case: Row) -> Row:
    """Train and judge one run.

    loss_before, loss: nats per answer token, held out.  train_loss: of the last 6 updates.
    score: share of right tickets.
    """
    changes, count = FAILURES[case["failure"]]
    recipe = changes[case["change"]].replace(seed=case["seed"])
    data, tokenizer = quickstart.load_data(), models.load_tokenizer()
    base = quickstart.load_base()[0]
    before = evaluation.held_out_loss(base, tokenizer, data.held_out)
    del base
    looks = data.validation if recipe.early_stopping else None
    run = training.run(recipe, data.train[:count], looks, tokenizer=tokenizer)
    score = quickstart.score(run.model, tokenizer, data)
    losses = [line["loss"] for line in run.report.losses]
    return case | {
        "rows": count, "rate": recipe.learning_rate, "steps": run.report.steps,
        "loss_before": round(before, 4),
        "loss": round(evaluation.held_out_loss(run.model, tokenizer, data.held_out), 4),
        "train_loss": round(statistics.mean(losses[-6:]), 4),
        "score": round(score.value, 4),
        "looks": [round(loss, 4) for _, loss in run.report.validation_losses] if looks else [],
        "seconds": round(run.report.seconds, 1),
        "precision": run.report.precision.split(" ")[0],
    }  # fmt: skip


def measure_memory(case: Row) -> Row:
    """peak_gib: over two updates, of what `kind` says."""
    _, weights, computed = next(one for one in MIXED if one[0] == case["name"])
    short = "fp16" if models.device().type == "cuda" else "bf16"
    recipe = FAILING.replace(
        precision=short if computed else "fp32", fast=False, batch_size=case["rows"],
        max_length=case["tokens"],
        learning_rate=1e-4, max_steps=2,
    )  # fmt: skip
    ids = [list(range(100, 100 + case["tokens"]))] * case["rows"]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    total = case["rows"] * case["tokens"]
    report = encoding.EncodingReport(len(rows), total, total, case["tokens"], 0, len(rows))
    model = models.load(dtype=DTYPES[short] if weights else torch.float32)
    run = training.run(recipe, encoding.Encoded(rows, report), model=model)
    found = {"peak_gib": round(run.report.memory.peak_gib, 4), "kind": run.report.memory.kind}
    return case | found | {"precision": recipe.precision}


def slug(name: str) -> str:
    """A name as the summary's keys hold it, which references join by dots."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def summary(rows: list[Row]) -> Row:
    """Of each failure and change: means over the seeds, and how far the seeds lie apart.

    loss_left: the share of the loss before training that is left.  against: the held-out loss over
    that of the failing run.  score, spread: % of right tickets; spread is most minus least.
    """
    made: Row = {}
    for failure, (changes, _) in FAILURES.items():
        found = {change: _mean(rows, failure, change) for change in changes}
        if failing := found["as it fails"]:
            for one in filter(None, found.values()):
                one["against"] = round(one["loss"] / failing["loss"], 4)
        made[slug(failure)] = {slug(change): one for change, one in found.items() if one}
    return made


def _mean(rows: list[Row], failure: str, change: str) -> Row:
    of = [row for row in rows if (row["failure"], row["change"]) == (failure, change)]
    if not of:
        return {}
    scores = [100 * row["score"] for row in of]
    mean = {name: statistics.mean(r[name] for r in of) for name in ("loss", "loss_before", "steps")}
    return {
        "seeds": len(of),
        "loss": round(mean["loss"], 4),
        "loss_left": round(mean["loss"] / mean["loss_before"], 4),
        "train_loss": round(statistics.mean(row["train_loss"] for row in of), 4),
        "score": round(statistics.mean(scores), 1),
        "spread": round(max(scores) - min(scores), 1),
        "steps": round(mean["steps"]),
    }


def main() -> None:
    """Measure what is missing, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--runs", type=int, help="stop after so many")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="of each run")
    parser.add_argument("--memory", action="store_true", help="measure the memory alone")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the results file")
    given = parser.parse_args()
    study.run(MEMORY, measure_memory, memory_cases())
    if given.memory:
        return
    about = {"training_rows": [ROWS, FEW_ROWS], "recipe": FAILING.to_dict()}
    wanted = cases(given.seeds)
    known = study.known(given.output, about)
    wanted += [row for row in known if not any(c.items() <= row.items() for c in wanted)]
    found = study.run(given.output, measure, wanted, jobs=given.jobs, most=given.runs, **about)
    study.write(given.output, found, **about, failures=summary(found))
    print(json.dumps(summary(found), indent=1))


if __name__ == "__main__":
    main()
