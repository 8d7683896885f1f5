"""The guide's rules for settings, each as an experiment: one setting varied, several seeds.

    nvidia-cuda-mps-control -d                                # lets processes share a GPU
    python -m benchmarks.tuning_rules --jobs 12 --minutes 9   # rows are kept as they come
    python -m benchmarks.tuning_rules           # about 2 minutes a run on two CPU cores

Three tasks on the embedded model: easy (the tickets of the first chapter), medium (all 23 kinds of
instruction) and hard (code, which is run against its tests).  All runs of a task see the same rows
in batches of `batch_size` and are judged on the same held-out ones.  Learning rates by method come
first (results/tuning_rates.json), then ranks (tuning_ranks.json); all other rules, and the ranks of
the hard task, are in results/tuning_settings.json.  The last one, on how many rows a method needs,
takes for each the learning rate that was best before.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import evaluation, quickstart, sets, training
from course_utils.data import Conversation
from course_utils.recipes import Recipe

RESULTS = Path(__file__).parent / "results"
RATES, RANKS = RESULTS / "tuning_rates.json", RESULTS / "tuning_ranks.json"
SETTINGS = RESULTS / "tuning_settings.json"
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


def ranks(tasks: tuple[str, ...] = ("easy", "medium")) -> list[Row]:
    """Ranks, with alpha = 2 x rank."""
    return [
        case("rank", seed, task, rank=rank, alpha=2 * rank)
        for task in tasks for rank in (1, 4, 8, 16, 32, 64) for seed in SEEDS
    ]  # fmt: skip


def hard_ranks() -> list[Row]:
    """Ranks on code."""
    return ranks(("hard",))


def alphas() -> list[Row]:
    """alpha = rank, 2 x and 4 x rank, each at three learning rates."""
    return [
        case("alpha", seed, alpha=alpha, learning_rate=rate)
        for alpha in (16, 32, 64) for rate in (3e-4, 1e-3, 3e-3) for seed in SEEDS[:2]
    ]  # fmt: skip


def scalings() -> list[Row]:
    """One alpha for all ranks: scaled by 1 / rank, and by 1 / sqrt(rank) (rsLoRA)."""
    return [
        case("rslora", seed, rank=rank, alpha=16, rslora=rslora)
        for rank in (4, 16, 64) for rslora in (False, True) for seed in SEEDS[:2]
    ]  # fmt: skip


def batches() -> list[Row]:
    """Rows a batch and batches an update, over the same rows at the same rate."""
    return [
        case("batch", seed, batch_size=size, gradient_accumulation=count)
        for size, count in ((2, 1), (8, 1), (2, 8), (4, 4), (16, 1), (32, 1)) for seed in SEEDS
    ]  # fmt: skip


def lengths() -> list[Row]:
    """Epochs, each run with a schedule of its own."""
    return [case("epochs", seed, epochs=n) for n in (1, 2, 3, 5, 8) for seed in SEEDS]


def dropouts() -> list[Row]:
    """Dropout on the adapters' inputs."""
    return [case("dropout", seed, dropout=p) for p in (0.0, 0.05, 0.1) for seed in SEEDS]


def drawn() -> list[Row]:
    """20 random settings from the guide's space (alpha at least 1 x rank), one seed."""
    dice, made = random.Random(0), []
    for _ in range(20):
        rank = dice.choice((4, 8, 16, 32, 64))
        alpha = dice.choice([a for a in (8, 16, 32, 64, 128) if a >= rank])
        rate = float(f"{10 ** dice.uniform(-5, -3.301):.2g}")  # 1e-5 to 5e-4
        made.append(case("random", 0, rank=rank, alpha=alpha, learning_rate=rate))
    return made


def sizes(rows: list[Row]) -> list[Row]:
    """Training rows, for full fine-tuning and LoRA at the best rate of each; as many updates."""
    return [
        case("rows", seed, rows=n, method=method, learning_rate=best_rate(rows, method),
             epochs=EPOCHS["easy"] * 260 / n)
        for method, n in itertools.product(("full", "lora"), (30, 100)) for seed in SEEDS
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


def _figures(rows: list[Row]) -> Row:
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
            at[f"{rate:.0e}"] = _figures(of)
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
            at[rank] = _figures([r for r in rows if (r["task"], r["rank"]) == (task, rank)])
        best = max(at, key=lambda rank: at[rank]["score"])
        least = at[best]["score"] - at[best]["spread"]
        enough = min(rank for rank, of in at.items() if of["score"] >= least)
        made[task] = {
            "best_rank": best, "best": at[best], "enough_rank": enough,
            "at": {str(rank): of for rank, of in at.items()},
        }  # fmt: skip
    return made


RULES: tuple[Callable[[], list[Row]], ...] = (
    alphas, batches, scalings, drawn, lengths, dropouts, hard_ranks,
)  # fmt: skip


# ------------------------------------------------------------------ one run


def data_of(task: str) -> tuple[list[Conversation], list[Conversation]]:
    """(training rows, held-out rows) of a task."""
    if task == "easy":
        data = quickstart.load_data()
        return data.train, data.held_out
    found = sets.load({"medium": "instruction", "hard": "code"}[task])
    return found.train, random.Random(0).sample(found.held_out, QUESTIONS)


def measure(case: Row) -> Row:
    """Train and judge one run.

    loss: nats per answer token, held out.  score: share of right answers.  general: nats per token
    of texts that no run trains on.  train_loss: of the last 10 updates, answer tokens.
    """
    recipe = RECIPE.replace(seed=case["seed"], **{name: case[name] for name in FIELDS})
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
    parser.add_argument("--minutes", type=float, help="begin no rule after so many")
    parser.add_argument("--runs", type=int, help="stop after so many")
    given = parser.parse_args()
    how = {"jobs": given.jobs, "most": given.runs, "fresh": False,
           "until": time.monotonic() + 60 * (given.minutes or math.inf),
           "questions": QUESTIONS, "recipe": RECIPE.to_dict()}  # fmt: skip
    about = {name: how[name] for name in ("questions", "recipe")}
    found = study.run(RATES, measure, rates(), **how)
    if study.missing(rates(), found):
        return
    study.write(RATES, found, **about, methods=summary(found))
    ranked = study.run(RANKS, measure, ranks(), **how)
    if study.missing(ranks(), ranked):
        return
    study.write(RANKS, ranked, **about, ranks=rank_summary(ranked))
    study.run(SETTINGS, measure, [made for rule in RULES for made in rule()] + sizes(found), **how)


if __name__ == "__main__":
    main()
