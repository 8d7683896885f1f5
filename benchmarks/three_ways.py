"""Full fine-tuning, LoRA and QLoRA on one task: score, cost, and what is forgotten, on the CPU.

    python -m benchmarks.three_ways          # about 10 minutes; writes results/three_ways.json
    python -m benchmarks.three_ways --time   # only the seconds of a step, anew in that file

The training is the first chapter's (`quickstart`: tickets), three times.  All ways see the same
rows in the same order; each is a process of its own, so that its peak memory is its own too.  The
loss on tickets is on answers alone, the loss on general text on all tokens of `sets.general_text`.
One seed: small differences are not told apart (`interval` says what the number of questions
leaves open).
`seconds` and `cpu_seconds` depend on what else the machine does meanwhile.  So `seconds_a_step` is
measured by itself: a few steps of each way in turn, several rounds, and of each step the fastest.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks import study
from course_utils import evaluation, quickstart, sets, training
from course_utils.recipes import Recipe

LORA = quickstart.RECIPE.replace(evaluate_every=None)
# An adapter bears steps thirty times as large as the weights themselves do.
WAYS: dict[str, Recipe] = {
    "full": LORA.replace(method="full", learning_rate=1e-4),
    "lora": LORA,
    "qlora": LORA.replace(method="qlora"),
}
QUESTIONS = (
    "What is the capital of France?",
    "How many days are in a week?",
    "Name a fruit that is yellow.",
)
TIMED_STEPS, ROUNDS = 10, 3
RESULTS = Path(__file__).parent / "results" / "three_ways.json"
Row = dict[str, Any]


class Clock(TrainerCallback):
    """The seconds between the ends of steps: one fewer than there are steps."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


def abilities(model: Any, tokenizer: Any) -> Row:
    """What the model can do: tickets, general text, and its answers to a few plain questions."""
    data = quickstart.load_data()
    scored = quickstart.score(model, tokenizer, data)
    answers = evaluation.generate(model, tokenizer, QUESTIONS, max_new_tokens=30)
    return {
        "score": round(scored.value, 4),
        "interval": [round(end, 4) for end in scored.interval()],
        "ticket_loss": round(evaluation.held_out_loss(model, tokenizer, data.held_out), 4),
        "general_loss": round(evaluation.held_out_loss(model, tokenizer, sets.general_text()), 4),
        "answers": dict(zip(QUESTIONS, answers, strict=True)),
    }


def measure(case: Row) -> Row:
    """One way, or "base": the model as it comes."""
    name = case["name"]
    if name == "base":
        return {"name": name, **abilities(*quickstart.load_base())}
    began = time.process_time()
    run = training.run(WAYS[name], quickstart.load_data().train)
    worked = time.process_time() - began
    report = run.report
    cost = {
        "steps": report.steps,
        "tokens": report.tokens,
        "trainable": report.trainable_parameters,
        "total": report.total_parameters,
        "seconds": round(report.seconds, 1),
        "cpu_seconds": round(worked, 1),
        "peak_gib": round(report.memory.peak_gib, 3),
        "precision": report.precision,
        "learning_rate": WAYS[name].learning_rate,
        "losses": [round(point["loss"], 4) for point in report.losses],
    }
    return {"name": name, **cost, **abilities(run.model, run.tokenizer)}


def seconds_a_step() -> dict[str, float]:
    """Of each way, on the same rows; the first step, which makes buffers, does not count."""
    train = quickstart.load_data().train
    found: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, recipe in WAYS.items():
            clock = Clock()
            training.run(recipe.replace(max_steps=TIMED_STEPS), train, callbacks=[clock])
            found[name].append(clock.seconds)
            print(name, [round(seconds, 2) for seconds in clock.seconds], flush=True)
    fastest = {name: list(map(min, zip(*rounds, strict=True))) for name, rounds in found.items()}
    return {name: round(sum(steps) / len(steps), 3) for name, steps in fastest.items()}


def main() -> None:
    """Each way in a process of its own, then the seconds of a step of all in one."""
    if sys.argv[1:] != ["--time"]:
        RESULTS.unlink(missing_ok=True)
    cases = [{"name": name} for name in ("base", *WAYS)]
    about = {"questions": len(quickstart.load_data().held_out)}
    rows, times = study.run(RESULTS, measure, cases, **about), seconds_a_step()
    rows = [row | {"seconds_a_step": times[row["name"]]} if row["name"] in times else row
            for row in rows]  # fmt: skip
    study.write(RESULTS, rows, **about)


if __name__ == "__main__":
    main()
