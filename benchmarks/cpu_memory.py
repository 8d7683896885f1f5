"""Resident memory of `training.run` on a CPU, measured over shapes and settings, and estimated.

    python -m benchmarks.cpu_memory              # about 15 minutes on two cores
    python -m benchmarks.cpu_memory --summary    # the estimate's errors, as it is now

Each case trains a few steps on random tokens in a process of its own, with random weights of a
published shape that are loaded from a folder (results/cpu_memory.json).  `fitted` rows were used to
set the constants of `memory/cpu.py`: every second case of `GRID`.  All of `GRID` was looked at to
find which parts were missing, so the cases in `BLIND` were chosen and run after that: nothing has
been changed since.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import memory
from course_utils.memory.known import KNOWN
from course_utils.recipes import Recipe

PATH = Path(__file__).parent / "results" / "cpu_memory.json"
STEPS = 3
# shape, method, precision, rows, tokens a row, checkpointing
GRID = (
    ("smollm2", "lora", "fp32", 4, 128, False),
    ("smollm2", "lora", "bf16", 4, 128, False),
    ("smollm2", "lora", "fp32", 8, 256, False),
    ("smollm2", "lora", "bf16", 8, 256, False),
    ("smollm2", "lora", "fp32", 8, 256, True),
    ("smollm2", "lora", "bf16", 8, 256, True),
    ("smollm2", "lora", "bf16", 2, 1024, False),
    ("smollm2", "lora", "fp32", 2, 1024, False),
    ("smollm2", "full", "fp32", 4, 128, False),
    ("smollm2", "full", "bf16", 4, 128, False),
    ("smollm2", "full", "bf16", 8, 256, True),
    ("smollm2", "full", "fp32", 8, 256, False),
    ("smollm2", "qlora", "fp32", 4, 128, False),
    ("smollm2", "qlora", "bf16", 8, 256, True),
    ("smollm2-360m", "lora", "bf16", 4, 128, False),
    ("smollm2-360m", "full", "fp32", 4, 128, False),
    ("smollm2-360m", "lora", "fp32", 4, 256, True),
    ("smollm2-360m", "qlora", "bf16", 4, 128, False),
    ("gpt2", "lora", "fp32", 4, 128, False),
    ("gpt2", "full", "fp32", 4, 256, False),
    ("gpt2", "lora", "bf16", 8, 256, False),
    ("qwen2.5-0.5b", "lora", "bf16", 4, 128, False),
    ("qwen2.5-0.5b", "lora", "fp32", 4, 128, True),
    ("qwen2.5-0.5b", "full", "bf16", 2, 128, True),
)
BLIND = (
    ("smollm2", "lora", "bf16", 16, 128, False),
    ("smollm2", "qlora", "fp32", 8, 256, False),
    ("smollm2", "full", "fp32", 4, 256, True),
    ("smollm2-360m", "lora", "fp32", 8, 128, False),
    ("smollm2-360m", "qlora", "fp32", 4, 256, True),
    ("gpt2", "lora", "fp32", 8, 256, True),
    ("qwen2.5-0.5b", "lora", "bf16", 8, 256, False),
    ("qwen2.5-0.5b", "qlora", "bf16", 4, 256, True),
)
NAMES = ("shape", "method", "precision", "batch_size", "length", "checkpointing")
Row = dict[str, Any]


def cases() -> list[Row]:
    """The grid, every second case of which may be fitted to, and the blind ones."""
    grid = [(values, {"fitted": place % 2 == 0}) for place, values in enumerate(GRID)]
    blind = [(values, {"fitted": False, "blind": True}) for values in BLIND]
    return [dict(zip(NAMES, values, strict=True)) | marks for values, marks in grid + blind]


def recipe_of(case: Row, model: str) -> Recipe:
    """The case's recipe."""
    same = {name: case[name] for name in ("method", "precision", "batch_size", "checkpointing")}
    return Recipe(model=model, max_length=case["length"], max_steps=STEPS, **same)


def measure(case: Row) -> Row:
    """Peaks of resident memory in GiB, by phase and in all, and each step's loss."""
    from benchmarks.vram_measure import encoded, model_folder, tokenizer
    from course_utils import training

    fields, draw = KNOWN[case["shape"]], random.Random(0)
    count = case["batch_size"] * STEPS
    rows = [
        [draw.randrange(3, fields["vocab_size"]) for _ in range(case["length"])]
        for _ in range(count)
    ]
    with model_folder(fields) as folder, tempfile.TemporaryDirectory() as out:
        recipe = recipe_of(case, folder)
        run = training.run(recipe, encoded(rows), tokenizer=tokenizer(), output_dir=out)
    return case | {
        "resident_gib": run.report.memory.peak_gib, "phases": run.report.memory.phases,
        "losses": [round(entry["loss"], 3) for entry in run.report.losses],
    }  # fmt: skip


def estimated(case: Row) -> memory.Estimate:
    """What `memory.estimate` says of the case, as it is now."""
    return memory.estimate(
        case["shape"], recipe_of(case, case["shape"]), length=case["length"], device="cpu"
    )


def summary(rows: list[Row]) -> Row:
    """Mean and worst absolute error in % over rows that were not fitted to; rows out of range."""
    found = [(row, estimated(row)) for row in rows if not row["fitted"]]
    if not found:
        return {"rows": 0}
    errors = [100 * abs(e.process_gib / row["resident_gib"] - 1) for row, e in found]
    out = [row for row, e in found if not e.range_gib[0] <= row["resident_gib"] <= e.range_gib[1]]
    return {
        "rows": len(found), "mean_error": round(statistics.mean(errors), 1),
        "worst_error": round(max(errors), 1), "out_of_range": len(out),
    }  # fmt: skip


def show(rows: list[Row]) -> None:
    """Each row beside its estimate, and the summary."""
    for row in rows:
        made, is_ = estimated(row), row["resident_gib"]
        name = " ".join(str(row[field]) for field in NAMES)
        low, high = made.range_gib
        print(f"{name:48} {is_:6.2f} GiB, estimated {made.process_gib:6.2f} "
              f"({100 * (made.process_gib / is_ - 1):+5.1f} %; {low:.2f} to {high:.2f})"
              f"{'  fitted' if row['fitted'] else ''}")  # fmt: skip
    print(json.dumps(summary(rows)))


def main() -> None:
    """Measure what is missing, then show all rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--summary", action="store_true", help="measure nothing")
    parser.add_argument("--runs", type=int, help="stop after so many")
    given = parser.parse_args()
    about = {"steps": STEPS}
    rows = study.known(PATH, about)
    if study.missing(cases(), rows) and not given.summary:
        rows = study.run(PATH, measure, cases(), most=given.runs, **about)
        blind = summary([row for row in rows if row.get("blind")])
        study.write(PATH, rows, **about, summary=summary(rows), blind=blind)
    show(rows)


if __name__ == "__main__":
    main()
