"""Two searches of twelve trials on the same space: at random, and by TPE with pruning.

    python -m benchmarks.tuning_study                     # about 4 minutes on two idle cores
    python -m benchmarks.tuning_study --seeds 5 --jobs 5  # five searches of each kind, on a GPU

The task is a short one, titles to slugs, in two epochs of 24 rows whatever the batch, so that all
trials see the same text.  The space takes in the learning rates of the guide's search and larger
ones.  A search is kept in runs/tuning_study and goes on after an interruption; a kind
and seed that results/tuning_study.json holds already is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import evaluation, search, sets, training
from course_utils.data import split
from course_utils.recipes import Recipe

SPACE: dict[str, Any] = {
    "learning_rate": (1e-5, 3e-2, "log"),
    "rank": [4, 8, 16, 32, 64],
    "alpha_per_rank": [1, 2, 4],
    "batch_size": [2, 4, 8],
}
BASE = Recipe(rank=8, alpha=16, epochs=2, max_length=96)
TRIALS, LOOKS, SHARE = 12, 3, 0.35
KINDS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random"},
    "tpe": {"sampler": "tpe", "pruner": "median"},
}
HERE = Path(__file__).parent
RESULTS, STORED = HERE / "results" / "tuning_study.json", HERE.parent / "runs" / "tuning_study"
Row = dict[str, Any]


def measure(case: Row) -> Row:
    """One search: its trials, its best recipe, and that recipe's loss on the test rows."""
    slugs = sets.load("instruction").only("slug")
    train, validation = split(slugs.train, SHARE, salt="validation")
    name = f"{case['search']}-{case['seed']}"
    made = search.Study(
        BASE, SPACE, train, validation, seed=case["seed"], looks=LOOKS, name=name,
        storage=STORED / f"{name}.db", **KINDS[case["search"]],
    ).run(TRIALS, on_trial=lambda row: print(row, flush=True))  # fmt: skip
    best = training.run(made.best, train, output_dir=STORED / name)
    test = evaluation.held_out_loss(best.model, best.tokenizer, slugs.held_out)
    return (
        case
        | {
            "best": made.best.to_dict(),
            "test_loss": round(test, 5),
            "precision": best.report.precision.partition(" ")[0],
        }
        | made.to_dict()
    )


def main() -> None:
    """The searches that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="searches of each kind")
    parser.add_argument("--jobs", type=int, default=1, help="searches at once")
    given = parser.parse_args()
    cases = [{"search": kind, "seed": seed} for seed in range(given.seeds) for kind in KINDS]
    about = {"space": {field: list(options) for field, options in SPACE.items()},
             "recipe": BASE.to_dict(), "looks": LOOKS}  # fmt: skip
    study.run(RESULTS, measure, cases, jobs=given.jobs, **about)


if __name__ == "__main__":
    main()
