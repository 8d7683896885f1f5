"""What holding the frozen weights in fp8 costs in quality: the first chapter's task, several seeds.

    python -m benchmarks.fp8_quality --jobs 10    # on a GPU with fp8 units, under MPS; two minutes
    python -m benchmarks.fp8_quality --seeds 4    # about 10 minutes a seed on two CPU cores

Each seed trains the embedded model (real weights) three times on the same rows: with its frozen
weights in bf16, in fp8, and, to compare with what many take for granted, in 4 bits (QLoRA).  A CPU
has no fp8 units and takes the same rounded numbers through an fp32 product.  Afterwards all are
judged the same way, in bf16: held-out loss (nats per answer token) and share of right answers.
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
BASES = {
    "bf16": {"method": "lora", "base_precision": "auto"},
    "fp8": {"method": "lora", "base_precision": "fp8"},
    "4 bits": {"method": "qlora", "base_precision": "auto"},
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
    """Of each figure and base: the seeds' mean, most minus least, and the mean less bf16's."""
    made: Row = {}
    for figure in ("held_out_loss", "score"):
        by = {name: [row[figure] for row in of(rows, name)] for name in BASES}
        means = {name: statistics.mean(values) for name, values in by.items() if values}
        made[figure] = {
            name: {
                "mean": round(mean, 4), "spread": round(max(by[name]) - min(by[name]), 4),
                "less_bf16": round(mean - means["bf16"], 4),
            }
            for name, mean in means.items()
        }  # fmt: skip
    return made


def of(rows: list[Row], base: str) -> list[Row]:
    """The rows of one of `BASES`."""
    return [row for row in rows if BASES[base].items() <= row.items()]


def main() -> None:
    """The command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
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
