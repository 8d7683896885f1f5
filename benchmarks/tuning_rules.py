"""The guide's rules for settings, each as an experiment: one setting varied, several seeds.

    nvidia-cuda-mps-control -d                                # lets processes share a GPU
    python -m benchmarks.tuning_rules --jobs 12 --minutes 9   # rows are kept as they come
    python -m benchmarks.tuning_rules           # about 2 minutes a run on two CPU cores

Three tasks on the embedded model: easy (the tickets of chapter 0), medium (all 23 kinds of
instruction) and hard (code, which is run against its tests).  All runs of a task see the same rows
in batches of `batch_size` and are judged on the same held-out ones.  Learning rates by method come
first (results/tuning_rates.json), then ranks on the first two tasks (tuning_ranks.json).  The other
rules have a study of their own, `tuning_settings.py`, and so have ranks on code.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import evaluation, quickstart, sets, training
from course_utils.data import Conversation
from course_utils.recipes import Recipe

RESULTS = Path(__file__).parent / "results"
RATES, RANKS = RESULTS / "tuning_rates.json", RESULTS / "tuning_ranks.json"
QUESTIONS = 120  # of the held-out rows of the larger sets
SEEDS = (0, 1, 2)
RECIPE = Recipe(learning_rate=1e-3, batch_size=8, max_length=256, group_by_length=False)
EPOCHS = {"easy": 3, "medium": 1, "hard": 1}  # 99, 164 and 129 updates of 8 rows
FIELDS = (
    "method", "rank", "alpha", "rslora", "learning_rate", "batch_size", "gradient_accumulation",
    "epochs", "dropout",
)  # fmt: skip
Row = dict[str, Any]


# ------------------------------------------------------------------ what is varied


def case(rule: str, seed: int, task: str = "easy", rows: int | None = None, **fields: Any) -> Row:
    """A run: the rule it belongs to, task, seed, training rows (None: all), and its settings."""
    recipe = RECIPE.replace(epochs=fields.pop("epochs", EPOCHS[task]), **fields).to_dict()
    chosen = {name: recipe.get(name, getattr(RECIPE, name)) for name in FIELDS}
    return {"rule": rule, "task": task, "rows": rows, "seed": seed} | chosen


def rates() -> list[Row]:
    """Learning rates, by method."""
    of = {
        "full": (1e-5, 2e-5, 1e-4, 3e-4, 1e-3),
        "lora": (1e-4, 2e-4, 1e-3, 3e-3, 1e-2),
        "qlora": (1e-4, 2e-4, 1e-3, 3e-3, 1e-2),
    }
    return [
        case("rate", seed, method=method, learning_rate=rate)
        for method, tried in of.items() for rate in tried for seed in SEEDS
    ]  # fmt: skip


def ranks() -> list[Row]:
    """Ranks, with alpha = 2 x rank, on two tasks."""
    return [
        case("rank", seed, task, rank=rank, alpha=2 * rank)
        for task in ("easy", "medium") for rank in (1, 4, 8, 16, 32, 64) for seed in SEEDS
    ]  # fmt: skip


def best_rate(rows: list[Row], method: str) -> float:
    """The learning rate with the lowest mean held-out loss; nan counts as the worst."""
    tried = _by_rate(rows, method)
    return min(tried, key=lambda rate: _mean(tried[rate], "loss"))


def _by_rate(rows: list[Row], method: str) -> dict[float, list[Row]]:
    tried: dict[float, list[Row]] = {}
    for row in rows:
        if (row["rule"], row["method"]) == ("rate", method):
            tried.setdefault(row["learning_rate"], []).append(row)
    return tried


def _mean(rows: list[Row], figure: str) -> float:
    return round(statistics.mean(row[figure] for row in rows), 4)


def figures(rows: list[Row]) -> Row:
    """Means and spread over the seeds of one setting."""
    scores = [100 * row["score"] for row in rows]
    return {
        "loss": _mean(rows, "loss"), "general": _mean(rows, "general"), "seeds": len(rows),
        "score": round(statistics.mean(scores), 1),
        "spread": round(max(scores) - min(scores), 1),
    }  # fmt: skip


def summary(rows: list[Row]) -> Row:
    """Of each method: its best rate, and means and spread of the seeds at each rate.

    loss, general: nats a token.  score, spread: % of right answers; spread is most minus least.
    """
    made: Row = {}
    for method in ("full", "lora", "qlora"):
        at = {}
        for rate, of in _by_rate(rows, method).items():
            at[f"{rate:.0e}"] = figures(of)
        best = best_rate(rows, method)
        made[method] = {"best_rate": best, "best": at[f"{best:.0e}"], "at": at}
    return made


def rank_summary(rows: list[Row]) -> Row:
    """Of each task: the best rank, the smallest that is as good, and means and spread of the seeds.

    As good: its mean score is below the best one's by no more than the best one's seeds differ.
    score, spread: % of right answers; loss, general: nats a token.
    """
    made: Row = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        at: dict[int, Row] = {}
        for rank in sorted({row["rank"] for row in rows}):
            at[rank] = figures([r for r in rows if (r["task"], r["rank"]) == (task, rank)])
        best = max(at, key=lambda rank: at[rank]["score"])
        least = at[best]["score"] - at[best]["spread"]
        enough = min(rank for rank, of in at.items() if of["score"] >= least)
        made[task] = {
            "best_rank": best, "best": at[best], "enough_rank": enough,
            "at": {str(rank): of for rank, of in at.items()},
        }  # fmt: skip
    return made


# ------------------------------------------------------------------ one run


def data_of(task: str) -> tuple[list[Conversation], list[Conversation]]:
    """(training rows, held-out rows) of a task."""
    if task == "easy":
        data = quickstart.load_data()
        return data.train, data.held_out
    found = sets.load({"medium": "instruction", "hard": "code"}[task])
    return found.train, random.Random(0).sample(found.held_out, QUESTIONS)


def measure(case: Row, base: Recipe = RECIPE) -> Row:
    """Train and judge one run: `base` with the fields of the case.

    loss: nats per answer token, held out.  score: share of right answers.  general: nats per token
    of texts that no run trains on.  train_loss: of the last 10 updates, answer tokens.
    """
    recipe = base.replace(seed=case["seed"], **{name: case[name] for name in FIELDS})
    train, held_out = data_of(case["task"])
    run = training.run(recipe, train[: case["rows"]])
    model, tokenizer = run.model, run.tokenizer
    score = evaluation.score(model, tokenizer, held_out, max_new_tokens=48, batch_size=120)
    last = [line["loss"] for line in run.report.losses[-10:]]
    return case | {
        "loss": round(evaluation.held_out_loss(model, tokenizer, held_out), 4),
        "score": round(score.value, 4),
        "general": round(evaluation.held_out_loss(model, tokenizer, sets.general_text()), 4),
        "train_loss": round(statistics.mean(last), 4),
        "updates": len(run.report.losses),
        "trained": run.report.trainable_parameters,
    }


def main() -> None:
    """Measure what is missing, the rates first, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--minutes", type=float, help="begin no run after so many")
    parser.add_argument("--runs", type=int, help="stop after so many")
    given = parser.parse_args()
    about = {"questions": QUESTIONS, "recipe": RECIPE.to_dict()}
    how = {"jobs": given.jobs, "most": given.runs, "fresh": False,
           "until": time.monotonic() + 60 * (given.minutes or math.inf)}  # fmt: skip
    for path, cases, name, summed in (
        (RATES, rates(), "methods", summary), (RANKS, ranks(), "ranks", rank_summary),
    ):  # fmt: skip
        lacking = study.missing(cases, study.known(path, about))
        if not lacking:
            continue  # a file that is whole keeps the device and the date it was measured with
        rows = study.run(path, measure, cases, **how, **about)
        if study.missing(cases, rows):
            return
        study.write(path, rows, **about, **{name: summed(rows)})


if __name__ == "__main__":
    main()
