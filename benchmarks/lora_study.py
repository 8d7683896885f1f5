"""Which layers, and which rank: LoRA on the first chapter's tickets.

    python -m benchmarks.lora_study            # 15 minutes; writes results/lora_study.json
    python -m benchmarks.lora_study --jobs 6   # six runs at once, for a GPU
    python -m benchmarks.lora_study --runs 2   # the next two runs only; what is there is kept

All runs see `STEPS` batches of the same rows under one recipe, the first chapter's in fewer steps,
and differ in what a row of the results names.  alpha is twice the rank, so that the scale alpha / r
is 2 in all of them.  The seeds change the adapter's start and the order of the rows, and show how
far two runs of the same recipe lie apart.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import evaluation, quickstart, training
from course_utils.recipes import Recipe

STEPS, QUESTIONS = 32, 40  # of each run; of the 74 held-out rows
RECIPE = quickstart.RECIPE.replace(max_steps=STEPS, evaluate_every=None)
TARGETS: dict[str, Any] = {
    "q, v": ("q_proj", "v_proj"),
    "all linear": "all-linear",
}
SEEDS = (0, 1, 2, 3, 4)
RESULTS = Path(__file__).parent / "results" / "lora_study.json"
Row = dict[str, Any]


def cases() -> list[Row]:
    """What each run is: three ranks on all layers, and one on some layers only."""
    places = [("all linear", 16), ("q, v", 16), ("all linear", 1), ("all linear", 64)]
    return [
        {"targets": t, "rank": r, "learning_rate": RECIPE.learning_rate, "seed": seed}
        for t, r in places
        for seed in SEEDS
    ]


def recipe_of(case: Row) -> Recipe:
    """The whole recipe of a run."""
    targets, rank = TARGETS[case["targets"]], case["rank"]
    return RECIPE.replace(targets=targets, rank=rank, alpha=2 * rank, seed=case["seed"])


def measure(case: Row) -> Row:
    """Train and evaluate one run.  loss: nats per answer token; score: share of right tickets."""
    data = quickstart.load_data()
    held_out = data.held_out[:QUESTIONS]
    run = training.run(recipe_of(case), data.train)
    score = evaluation.score(
        run.model, run.tokenizer, held_out, max_new_tokens=quickstart.ANSWER_TOKENS,
        batch_size=len(held_out),
    )  # fmt: skip
    return case | {
        "trained": run.report.trainable_parameters,
        "loss": round(evaluation.held_out_loss(run.model, run.tokenizer, held_out), 4),
        "score": round(score.value, 4),
        "seconds": round(run.report.seconds, 1),
        "precision": run.report.precision.split(" ")[0],
    }


def main() -> None:
    """Measure what is missing, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, help="stop after so many")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    given = parser.parse_args()
    about = {"steps": STEPS, "questions": QUESTIONS, "recipe": RECIPE.to_dict()}
    study.run(RESULTS, measure, cases(), jobs=given.jobs, most=given.runs, **about)


if __name__ == "__main__":
    main()
