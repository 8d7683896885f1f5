"""The guide's rules for alpha, batch, epochs, dropout, rows and ranks on code, as experiments.

    OMP_NUM_THREADS=1 python -m benchmarks.tuning_settings --jobs 2    # about 3 minutes a run each
    python -m benchmarks.tuning_settings --jobs 12                     # on a GPU, with MPS

Rates and ranks have studies of their own (`tuning_rules.py`).  Here the task is the first 100
tickets of chapter 0, seen three times: a run costs a CPU a minute or two, and there is room
for two seeds.  Around the centre (LoRA, rank 16, alpha 32, rate 2e-3, 8 rows an update) one
thing is varied at a time, alpha together with the rate.  A setting that belongs to several rules is
run once; every row names its rules (results/tuning_settings.json).  How many rows a method needs,
and ranks on code, are in results/tuning_tasks.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import study, tuning_rules
from benchmarks.tuning_rules import FIELDS, best_rate
from course_utils import results

PATH = Path(__file__).parent / "results" / "tuning_settings.json"
ROWS, EPOCHS, SEEDS = 100, 3, (0, 1)
# not "auto": on a busy machine it measures its neighbours, and chooses by them
CENTRE = tuning_rules.RECIPE.replace(learning_rate=2e-3, epochs=EPOCHS, precision="bf16")
Row = dict[str, Any]


# ------------------------------------------------------------------ what is varied


def setting(rows: int = ROWS, task: str = "easy", **fields: Any) -> Row:
    """The centre with other fields, on the first so many rows of a task."""
    recipe = CENTRE.replace(**fields)
    return {"task": task, "rows": rows} | {name: getattr(recipe, name) for name in FIELDS}


def alphas() -> Iterator[Row]:
    """alpha = rank, 2 x and 4 x rank, each at three learning rates a factor of two apart."""
    for alpha in (16, 32, 64):
        for rate in (1e-3, 2e-3, 4e-3):
            yield setting(alpha=alpha, learning_rate=rate)


def scalings() -> Iterator[Row]:
    """One alpha for all ranks: scaled by 1 / rank, and by 1 / sqrt(rank) (rsLoRA)."""
    for rank in (4, 16, 64):
        for rslora in (False, True):
            yield setting(rank=rank, alpha=16, rslora=rslora)


def batches() -> Iterator[Row]:
    """Rows a batch and batches an update, over the same rows; the last at twice the rate."""
    for size, count in ((2, 1), (8, 1), (2, 8), (4, 4), (16, 1), (32, 1)):
        yield setting(batch_size=size, gradient_accumulation=count)
    yield setting(batch_size=32, learning_rate=4e-3)


def lengths() -> Iterator[Row]:
    """Epochs, each run with a schedule of its own."""
    for epochs in (1, 2, 3, 5):
        yield setting(epochs=epochs)


def dropouts() -> Iterator[Row]:
    """Dropout on the adapters' inputs."""
    for share in (0.0, 0.05, 0.1):
        yield setting(dropout=share)


def sizes() -> Iterator[Row]:
    """Rows, for full fine-tuning and LoRA at the best rate of each, with as many updates."""
    rates = results.read("tuning_rates")["rows"]
    for method in ("full", "lora"):
        for rows in (30, 100):
            yield setting(rows, method=method, learning_rate=best_rate(rates, method),
                          epochs=EPOCHS * ROWS / rows)  # fmt: skip


def code_ranks() -> Iterator[Row]:
    """Ranks with alpha = 2 x rank, on code that is run against its tests; 400 rows, once."""
    for rank in (4, 16, 64):
        yield setting(400, "hard", epochs=1, rank=rank, alpha=2 * rank)


Rules = dict[str, Callable[[], Iterator[Row]]]
RULES: Rules = {
    "alpha": alphas, "rslora": scalings, "batch": batches, "epochs": lengths, "dropout": dropouts,
}  # fmt: skip
TASKS: Rules = {"rows": sizes, "code": code_ranks}


def cases(rules: Rules = RULES) -> list[Row]:
    """Every setting once, with the rules it belongs to, for each seed."""
    found: list[tuple[Row, list[str]]] = []
    for rule, made in rules.items():
        for one in made():
            known = next((rules for other, rules in found if other == one), None)
            if known is None:
                found.append((one, [rule]))
            else:
                known.append(rule)
    return [{"rules": rules, "seed": seed} | one for one, rules in found for seed in SEEDS]


# ------------------------------------------------------------------ what came of it


def summary(rows: list[Row], rules: Rules = RULES) -> Row:
    """Of each rule, what varies in it, the means and spread of its settings' seeds, and the best.

    best: the fields of the setting with the lowest mean held-out loss.
    """
    made: Row = {}
    for rule in rules:
        of = [row for row in rows if rule in row["rules"]]
        varied = [name for name in ("rows", *FIELDS) if len({str(row[name]) for row in of}) > 1]
        at: dict[str, list[Row]] = {}
        for row in of:
            at.setdefault(" ".join(_word(name, row[name]) for name in varied), []).append(row)
        figures = {key: tuning_rules.figures(seeds) for key, seeds in at.items()}
        best = at[min(figures, key=lambda key: figures[key]["loss"])][0]
        made[rule] = {
            "varied": varied, "best": {name: best[name] for name in varied}, "at": figures,
        }  # fmt: skip
    return made


def _word(name: str, value: Any) -> str:
    """A value in a key, without a point: claims name fields with points between them."""
    if isinstance(value, str):
        return value
    if name == "dropout":
        return f"{100 * value:g}%"
    return f"{value:.0e}" if name == "learning_rate" else f"{value:g}"


def measure(case: Row) -> Row:
    """Train and judge one run (see `tuning_rules.measure`)."""
    return tuning_rules.measure(case, CENTRE)


def main() -> None:
    """Measure what is missing, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--runs", type=int, help="stop after so many")
    given = parser.parse_args()
    about = {"recipe": CENTRE.to_dict()}
    for path, rules in ((PATH, RULES), (PATH.with_name("tuning_tasks.json"), TASKS)):
        wanted = cases(rules)
        if not study.missing(wanted, study.known(path, about)):
            continue  # whole: it keeps the device and date that it names
        rows = study.run(
            path, measure, wanted, jobs=given.jobs, most=given.runs, fresh=False, **about
        )
        if study.missing(wanted, rows):
            return
        study.write(path, rows, **about, rules=summary(rows, rules))


if __name__ == "__main__":
    main()
