"""What holding the frozen weights in fp8 costs in quality: the first chapter's task, several seeds.

    python -m benchmarks.fp8_quality --jobs 5     # on a GPU with fp8 units; under a minute
    python -m benchmarks.fp8_quality --seeds 4    # about 8 minutes a seed on two CPU cores

Each seed trains the embedded model (real weights) twice on the same rows: with its frozen weights
in bf16, and in fp8.  A CPU has no fp8 units and takes the same rounded numbers through an fp32
product.  Afterwards both models are judged the same way, in bf16: held-out loss (nats per answer
token) and share of right answers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import study
from course_utils import evaluation, models, quickstart, training

RESULTS = Path(__file__).parent / "results" / "fp8_quality.json"
Row = dict[str, Any]


def measure(case: Row) -> Row:
    """Train with one seed and one kind of frozen weights, and judge the result."""
    data = quickstart.load_data()
    recipe = quickstart.RECIPE.replace(precision="bf16", evaluate_every=None, **case)
    model, tokenizer = models.load(dtype=torch.bfloat16), models.load_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        run = training.run(recipe, data.train, model=model, tokenizer=tokenizer, output_dir=folder)
    rows = data.validation + data.held_out
    return case | {
        "held_out_loss": round(evaluation.held_out_loss(run.model, tokenizer, rows), 5),
        "score": round(quickstart.score(run.model, tokenizer, data).value, 4),
        "train_loss": run.report.losses[-1]["loss"],
        "notes": run.report.notes,
    }


def summary(rows: list[Row]) -> Row:
    """Mean and spread over the seeds, and fp8 - bf16 for the same seed."""
    made: Row = {}
    for figure in ("held_out_loss", "score"):
        by = {
            name: [row[figure] for row in rows if row["base_precision"] == name]  # by seed
            for name in ("auto", "fp8")
        }
        apart = [b - a for a, b in zip(by["auto"], by["fp8"], strict=True)]
        made[figure] = {
            "bf16_mean": round(statistics.mean(by["auto"]), 4),
            "bf16_spread": round(max(by["auto"]) - min(by["auto"]), 4),
            "fp8_mean": round(statistics.mean(by["fp8"]), 4),
            "fp8_spread": round(max(by["fp8"]) - min(by["fp8"]), 4),
            "mean_difference": round(statistics.mean(apart), 4),
        }
    return made


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    given, data = parser.parse_args(), quickstart.load_data()
    about = {
        "rows_held_out": len(data.validation) + len(data.held_out), "questions": len(data.held_out)
    }  # fmt: skip
    cases = [{"seed": seed, "base_precision": base} for seed in range(given.seeds)
             for base in ("auto", "fp8")]  # fmt: skip
    rows = study.run(RESULTS, measure, cases, jobs=given.jobs, **about)
    study.write(RESULTS, rows, **about, summary=summary(rows))
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
