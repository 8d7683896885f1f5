"""What is learnt and what is forgotten, along the way: full fine-tuning and LoRA, on the CPU.

    python -m benchmarks.forgetting        # about 6 minutes; writes results/forgetting.json

Same rows (the tickets of `quickstart`), same order, same number of steps for every run; they differ
in method and learning rate.  At `POINTS` two losses are taken: on held-out tickets (answers alone),
and on `sets.general_text` (all tokens), which no run trains on.  One seed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks import study
from course_utils import evaluation, models, quickstart, sets, training
from course_utils.recipes import Recipe

STEPS, POINTS, TICKETS = 32, (8, 16, 32), 32
BASE = Recipe(
    method="full", batch_size=4, max_steps=STEPS, max_length=256, schedule="constant", warmup=0.1
)
RUNS: dict[str, Recipe] = {
    "full 1e-4": BASE.replace(learning_rate=1e-4),
    "LoRA 3e-3": BASE.replace(method="lora", learning_rate=3e-3),
    "full 5e-4": BASE.replace(learning_rate=5e-4),
    "full 2e-5": BASE.replace(learning_rate=2e-5),
    "LoRA 1e-3": BASE.replace(method="lora", learning_rate=1e-3),
}
RESULTS = Path(__file__).parent / "results" / "forgetting.json"


class Watch(TrainerCallback):
    """Both losses at each of the points."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.points = tokenizer, []
        self.tickets = quickstart.load_data().held_out[:TICKETS]

    def look(self, step: int, model: Any) -> None:
        """Note the losses of the model as it is."""
        task = evaluation.held_out_loss(model, self.tokenizer, self.tickets)
        general = evaluation.held_out_loss(model, self.tokenizer, sets.general_text())
        self.points.append({"step": step, "task": round(task, 4), "general": round(general, 4)})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in POINTS:
            self.look(state.global_step, model)


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One run with its losses at step 0 and at the points."""
    name = case["name"]
    tokenizer = models.load_tokenizer()
    watch = Watch(tokenizer)
    watch.look(0, quickstart.load_base()[0])
    run = training.run(
        RUNS[name], quickstart.load_data().train, tokenizer=tokenizer, callbacks=[watch]
    )
    return {
        "name": name,
        "recipe": RUNS[name].to_dict(),
        "trainable": run.report.trainable_parameters,
        "precision": run.report.precision,
        "points": watch.points,
    }


def main() -> None:
    """The runs that the file lacks, each in a process of its own."""
    about = {"tickets": TICKETS, "general_texts": len(sets.general_text())}
    study.run(RESULTS, measure, [{"name": name} for name in RUNS], **about)


if __name__ == "__main__":
    main()
