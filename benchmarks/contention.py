"""What a second busy program does to a training on the CPU, and how OpenMP's spin matters there.

    python benchmarks/contention.py     # about 5 minutes; Linux; writes results/contention.json

GNU OpenMP's threads spin while they wait for one another, for ever longer than a step's many small
operations take.  While they spin they keep the other program, and through it themselves, from
working.  Each row: GOMP_SPINCOUNT, trainings at once, and the median seconds of a LoRA step.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "contention.json"
SPINS = {"the default": None, "10000": "10000", "0": "0"}
LIMIT_S = 90  # of one measurement; with the default spin two trainings hardly move


def steps(seconds: float = 12.0, most: int = 12) -> list[float]:
    """Seconds of LoRA steps on the embedded set, for about `seconds` after two to warm up."""
    from course_utils import encoding, loss, models, precision, quickstart, training

    model, tokenizer = quickstart.load_base()
    model = training.prepare(model, quickstart.RECIPE).train()
    rows = encoding.encode(quickstart.load_data().train, tokenizer)
    batch = encoding.batches(rows, 4, tokenizer.pad_token_id)[10]
    chosen, _ = precision.choose_precision(quickstart.RECIPE, models.device())
    autocast = precision.autocast_for(chosen, models.device())
    taken: list[float] = []
    with loss.answers_only(model):
        while len(taken) < 3 or (sum(taken) < seconds and len(taken) < most):
            start = time.perf_counter()
            with autocast():
                value = model(**batch).loss
            value.backward()
            taken.append(time.perf_counter() - start)
    return taken[2:]


def measure(spin: str | None, at_once: int) -> float | None:
    """Median seconds a step with `at_once` trainings side by side; None: none got through."""
    environment = os.environ | {"GOMP_SPINCOUNT": spin or ""}
    if spin is None:  # the package's own setting must not come in
        environment["GOMP_SPINCOUNT"] = "300000"  # libgomp's default where threads fit the cores
    command = [sys.executable, __file__, "one"]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(at_once)
    ]
    taken: list[float] = []
    end = time.monotonic() + LIMIT_S
    for process in running:
        try:
            output, _ = process.communicate(timeout=max(1, end - time.monotonic()))
            taken += json.loads(output.splitlines()[-1])
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return round(statistics.median(taken), 3) if taken else None


def main() -> None:
    """Measure every setting alone and with a second training beside it."""
    from course_utils import memory
    from course_utils.report import versions

    rows = []
    for at_once in (1, 2):
        for name, spin in SPINS.items():
            seconds = measure(spin, at_once)
            rows.append({"spin": name, "trainings_at_once": at_once, "seconds_per_step": seconds})
            print(rows[-1], flush=True)
    result = {
        "device": memory.device_name(),
        "date": date.today().isoformat(),
        "limit_seconds": LIMIT_S,
        "versions": versions(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    print(json.dumps(steps())) if sys.argv[1:] == ["one"] else main()
