"""What fp8 costs in quality: the first chapter's task, several seeds.

    python -m benchmarks.fp8_quality --jobs 10    # on a GPU with fp8 units, under MPS; 5 minutes
    python -m benchmarks.fp8_quality --seeds 4    # about 10 minutes a training on two CPU cores

Each seed trains the embedded model (real weights) on the same rows: in bf16; with gradients alone
passing through the frozen weights in fp8; with these weights held in fp8; and, to compare with what
many take for granted, in 4 bits (QLoRA).  A CPU has no fp8 units and takes the same rounded numbers
through an fp32 product.  Afterwards all are judged the same way, on the weights as they were and in
bf16: held-out loss (nats per answer token) and share of right answers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import study
from course_utils import evaluation, models, quickstart, training

RESULTS = Path(__file__).parent / "results" / "fp8_quality.json"
BASES = {
    "bf16": {"method": "lora", "base_precision": "auto", "gradient_precision": "auto"},
    "fp8 gradients": {"method": "lora", "base_precision": "auto", "gradient_precision": "fp8"},
    "fp8": {"method": "lora", "base_precision": "fp8", "gradient_precision": "auto"},
    "4 bits": {"method": "qlora", "base_precision": "auto", "gradient_precision": "auto"},
}
Row = dict[str, Any]


def measure(case: Row) -> Row:
    """Train with one seed and one kind of frozen weights, and judge the result."""
    data = quickstart.load_data()
    recipe = quickstart.RECIPE.replace(precision="bf16", evaluate_every=None, **case)
    model = models.load(dtype=torch.bfloat16, quantize=recipe.method == "qlora")
    tokenizer = models.load_tokenizer()
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
    """Of each figure and base: the seeds' mean, most minus least, and the mean less bf16's.

    error: the standard error of `less_bf16`, from the differences seed by seed.
    """
    made: Row = {}
    for figure in ("held_out_loss", "score"):
        by = {name: [row[figure] for row in of(rows, name)] for name in BASES}
        made[figure] = {name: _beside(values, by["bf16"]) for name, values in by.items() if values}
    return made


def _beside(values: list[float], bf16: list[float]) -> Row:
    less = [a - b for a, b in zip(values, bf16, strict=True)]
    error = statistics.stdev(less) / math.sqrt(len(less)) if len(less) > 1 else 0.0
    found = {
        "mean": statistics.mean(values), "spread": max(values) - min(values),
        "less_bf16": statistics.mean(less), "error": error,
    }  # fmt: skip
    return {name: round(value, 4) for name, value in found.items()}


def of(rows: list[Row], base: str) -> list[Row]:
    """The rows of one of `BASES`."""
    return [row for row in rows if BASES[base].items() <= row.items()]


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    given, data = parser.parse_args(), quickstart.load_data()
    about = {
        "rows_held_out": len(data.validation) + len(data.held_out), "questions": len(data.held_out)
    }  # fmt: skip
    cases = [{"seed": seed} | base for seed in range(given.seeds) for base in BASES.values()]
    rows = study.run(RESULTS, measure, cases, jobs=given.jobs, fresh=False, **about)
    study.write(RESULTS, rows, **about, summary=summary(rows))
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
