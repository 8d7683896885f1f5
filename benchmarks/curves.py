"""Four learning curves on the first chapter's tickets: too low, right, too high, overfitting.

    python -m benchmarks.curves            # about 4 minutes; writes results/curves.json
    python -m benchmarks.curves --runs 2   # the next two runs only; what is there is kept

All four are the first chapter's LoRA in 30 steps with a constant learning rate, so that no schedule
bends the curves.  Three differ in the rate alone; the fourth has the right rate and ten rows.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import quickstart, training

STEPS, EVERY, WATCHED = 30, 5, 16  # steps; from look to look; validation rows
RECIPE = quickstart.RECIPE.replace(
    max_steps=STEPS, evaluate_every=EVERY, schedule="constant", warmup=0.0
)
CASES = [
    {"name": "too low", "learning_rate": 3e-5, "rows": 260},
    {"name": "right", "learning_rate": 1e-3, "rows": 260},
    {"name": "too high", "learning_rate": 2e-2, "rows": 260},
    {"name": "overfitting", "learning_rate": 1e-3, "rows": 10},
]
RESULTS = Path(__file__).parent / "results" / "curves.json"
Row = dict[str, Any]


def measure(case: Row) -> Row:
    """One run: its losses and validation losses, (step, nats per answer token)."""
    data = quickstart.load_data()
    with tempfile.TemporaryDirectory() as folder:
        run = training.run(
            RECIPE.replace(learning_rate=case["learning_rate"]), data.train[: case["rows"]],
            data.validation[:WATCHED], output_dir=folder,
        )  # fmt: skip
    return case | {
        "losses": [(point["step"], round(point["loss"], 5)) for point in run.report.losses],
        "validation_losses": [
            (step, round(loss, 5)) for step, loss in run.report.validation_losses
        ],
        "seconds": round(run.report.seconds, 1),
        "precision": run.report.precision.partition(" ")[0],
    }


def main() -> None:
    """Measure what is missing, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, help="stop after so many")
    given = parser.parse_args()
    about = {"watched": WATCHED, "recipe": RECIPE.to_dict()}
    study.run(RESULTS, measure, CASES, most=given.runs, **about)


if __name__ == "__main__":
    main()
