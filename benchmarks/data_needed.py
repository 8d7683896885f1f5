"""How many rows a task takes: the first chapter's tickets, learnt from 0, 10, 30, 100 or all rows.

    python -m benchmarks.data_needed              # about 25 minutes on two idle cores
    python -m benchmarks.data_needed --jobs 7     # seven at a time, on a GPU

Trainings that results/data_needed.json holds already are not repeated.

Every training takes the same number of steps, one pass over all rows: 10 rows are then seen 26
times, all rows once. With equal *epochs* the small sets would get a few steps and fail for want of
training, not of rows. One pass is less than the first chapter's training, so all rows can do more
than they do here. The rows of a size are drawn anew with each seed, and the smaller set is part of
the larger. Learning rate and rank are the first chapter's, and not tuned for each size.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import quickstart, training
from course_utils.report import versions

SIZES, SEEDS = (10, 30, 100, 260), (0, 1, 2)  # 260: all
EVALUATE_EVERY = 22
NEAR = 5  # points below the best mean score that still count as "enough"
RESULTS = Path(__file__).parent / "results" / "data_needed.json"
Row = dict[str, Any]


def train_one(case: Row) -> Row:
    """Train on so many rows (0: not at all) and score on all held-out messages."""
    data, count, seed = quickstart.load_data(), case["rows"], case["seed"]
    base, tokenizer = quickstart.load_base()
    if count == 0:
        score = quickstart.score(base, tokenizer, data)
        return case | {"score_percent": 100 * score.value}
    rows = random.Random(seed).sample(data.train, len(data.train))[:count]
    batch = quickstart.RECIPE.batch_size
    recipe = quickstart.RECIPE.replace(
        max_steps=len(data.train) // batch, evaluate_every=EVALUATE_EVERY, seed=seed
    )
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = training.run(
            recipe, rows, data.validation, model=base, tokenizer=tokenizer, output_dir=folder
        )
    held_out = [loss for _, loss in run.report.validation_losses]
    last = [point["loss"] for point in run.report.losses[-10:]]
    return case | {
        "steps": run.report.steps,
        "epochs": round(run.report.steps * batch / count, 2),
        "score_percent": 100 * quickstart.score(run.model, tokenizer, data).value,
        "held_out_losses": held_out,
        "held_out_loss": held_out[-1],
        "training_loss": round(statistics.mean(last), 5),
        "cpu_seconds": round(time.process_time() - began),
        "precision": run.report.precision.partition(" ")[0],
        "device": run.report.device,
    }


def collect(trainings: list[Row]) -> Row:
    """Means over the seeds for each size, and from how many rows on little more is gained."""
    rows = []
    for size in sorted({row["rows"] for row in trainings}):
        same = [row for row in trainings if row["rows"] == size]
        scores = [row["score_percent"] for row in same]
        made = {
            "name": f"rows-{size}", "rows": size, "seeds": len(same),
            "score_percent": statistics.mean(scores),
            "lowest_percent": min(scores), "highest_percent": max(scores),
        }  # fmt: skip
        if size:
            losses = {k: [row[k] for row in same] for k in ("held_out_loss", "training_loss")}
            lowest = statistics.mean(min(row["held_out_losses"][1:]) for row in same)
            made |= {key: statistics.mean(values) for key, values in losses.items()}
            made |= {"epochs": same[0]["epochs"], "lowest_held_out_loss": lowest}
            made["loss_ratio"] = made["held_out_loss"] / made["training_loss"]
        rows.append({k: round(v, 5) if isinstance(v, float) else v for k, v in made.items()})
    best = max(row["score_percent"] for row in rows)
    enough = min(row["rows"] for row in rows if row["score_percent"] >= best - NEAR)
    usable = min(row["rows"] for row in rows if row["score_percent"] >= best / 2)
    return {
        "device": max(row.get("device", "") for row in trainings),
        "date": date.today().isoformat(),
        "versions": versions(),
        "task": "first chapter's tickets, LoRA, equal number of steps for each size",
        "steps": max(row.get("steps", 0) for row in trainings),
        "best_percent": round(best, 3),
        "enough_rows": enough,
        "half_of_best_rows": usable,
        "rows": rows,
        "trainings": trainings,
    }


def main() -> None:
    """The trainings that the results lack, collected after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    cases = [{"rows": 0, "seed": 0}]
    cases += [{"rows": size, "seed": seed} for size in SIZES for seed in SEEDS]
    study.collected(RESULTS, train_one, cases, collect, jobs=parser.parse_args().jobs)


if __name__ == "__main__":
    main()
