"""Chapter 7's case over the number of pairs: 21 kinds of task, learnt from 42, 105 or 294 rows.

    python -m benchmarks.case_instruction             # about 10 minutes on two idle cores
    python -m benchmarks.case_instruction --most 2    # two trainings, the others another time
    python -m benchmarks.case_instruction --jobs 7    # seven at a time, on a GPU

Every training takes the same number of steps: one pass over the 294 rows, seven over the 42. Each
kind gives equally many rows, drawn anew with each seed, the smaller set part of the larger. Scored
are the chapter's 147 held-out questions, seven of each kind.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import evaluation, quickstart, sets, training
from course_utils.recipes import Recipe
from course_utils.report import versions

PER_KIND, SEEDS = (2, 5, 14), (0, 1)
LEFT_OUT = ("ticket", "zh_fields")  # as in the chapter
QUESTIONS = 7  # of each kind
NEAR = 5  # points below the best mean score that still count as "enough"
RECIPE = Recipe(rank=16, alpha=32, learning_rate=3e-3, batch_size=4, max_length=256)
RESULTS = Path(__file__).parent / "results" / "case_instruction.json"
Row = dict[str, Any]


def task() -> sets.DataSet:
    """The instruction set without the kinds that the chapter leaves out."""
    everything = sets.load("instruction")
    return everything.only(*(kind for kind in everything.card.kinds if kind not in LEFT_OUT))


def train_one(case: Row) -> Row:
    """Train on so many rows of each kind (0: not at all) and score."""
    rows, count, seed = task(), case["per_kind"], case["seed"]
    of_kind = {kind: rows.only(kind) for kind in rows.card.kinds}
    questions = [row for part in of_kind.values() for row in part.held_out[:QUESTIONS]]
    base, tokenizer = quickstart.load_base()
    made: Row = {"pairs": count * len(of_kind)}
    if count:
        rng = random.Random(seed)
        train = [
            row
            for part in of_kind.values()
            for row in rng.sample(part.train, len(part.train))[:count]
        ]
        steps = max(PER_KIND) * len(of_kind) // RECIPE.batch_size
        recipe = RECIPE.replace(max_steps=steps, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            run = training.run(recipe, train, model=base, tokenizer=tokenizer, output_dir=folder)
        base = run.model.merge_and_unload()
        made |= {"steps": steps, "device": run.report.device}
    score = evaluation.score(base, tokenizer, questions, max_new_tokens=30, batch_size=49)
    low, high = score.interval()
    english = evaluation.Score([a for a in score.answers if not a.kind.startswith("zh_")])
    made |= {
        "questions": len(questions),
        "score_percent": 100 * score.value,
        "interval_percent": [100 * low, 100 * high],
        "english_percent": 100 * english.value,
        "by_kind_percent": {kind: 100 * share for kind, share in score.by_kind.items()},
    }
    return case | made


def cases() -> list[Row]:
    """The base model, and every size with every seed."""
    sized = [{"per_kind": size, "seed": seed} for seed in SEEDS for size in PER_KIND]
    return [{"per_kind": 0, "seed": 0}, *sized]


def collect(trainings: list[Row]) -> Row:
    """Means over the seeds for each size, and from how many pairs on little more is gained."""
    rows = []
    for pairs in sorted({row["pairs"] for row in trainings}):
        same = [row for row in trainings if row["pairs"] == pairs]
        scores = [row["score_percent"] for row in same]
        rows.append(
            {
                "name": f"pairs-{pairs}",
                "pairs": pairs,
                "seeds": len(same),
                "score_percent": round(statistics.mean(scores), 3),
                "lowest_percent": round(min(scores), 3),
                "highest_percent": round(max(scores), 3),
            }
        )
    best = max(row["score_percent"] for row in rows)
    return {
        "device": max(row.get("device", "") for row in trainings),
        "date": date.today().isoformat(),
        "versions": versions(),
        "task": "21 kinds of the embedded instruction set, LoRA, equal number of steps",
        "best_percent": best,
        "most_pairs": max(row["pairs"] for row in rows),
        "enough_pairs": min(r["pairs"] for r in rows if r["score_percent"] >= best - NEAR),
        "half_of_best_pairs": min(r["pairs"] for r in rows if r["score_percent"] >= best / 2),
        "rows": rows,
        "trainings": trainings,
    }


def main() -> None:
    """The trainings that the results lack, collected after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--most", type=int, help="trainings this time (default: all that lack)")
    given = parser.parse_args()
    study.collected(RESULTS, train_one, cases(), collect, jobs=given.jobs, most=given.most)


if __name__ == "__main__":
    main()
