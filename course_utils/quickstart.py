"""The first fine-tuning of the course: support messages to JSON tickets, on a laptop.

The notebook 00 takes its data and recipe from here, and `python -m course_utils quickstart` runs
the same without a browser.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import evaluation, memory, models, sets, training
from .display import panel_for_here
from .encoding import encode
from .evaluation import Score
from .recipes import Recipe
from .sets import DataSet
from .training import Run

ANSWER_TOKENS = 40  # a ticket takes 20 to 30
RECIPE = Recipe(
    method="lora", rank=16, alpha=32, learning_rate=2e-3, batch_size=4, epochs=1.5, max_length=256
)
Say = Callable[[str], None]


def load_data() -> DataSet:
    """The tickets of the embedded instruction set."""
    return sets.load("instruction").only("ticket")


def run(say: Say) -> tuple[dict[str, Any], Score, Score, Run]:
    """Score, fine-tune and score again; `say` gets a line before each part.

    Returns (result, score before, score after, the run); `result` is what `--json` prints.
    """
    data, tokenizer = load_data(), models.load_tokenizer()
    precision, _ = training.choose_precision(RECIPE, models.device())
    base = models.load(dtype=training.DTYPES[precision])
    say(f"Before: the base model answers {len(data.held_out)} held-out questions.")
    before = score(base, tokenizer, data)
    say(f"  {before}")
    say(f"Fine-tuning on {len(data.train)} rows. {RECIPE}")
    panel = panel_for_here("LoRA on SmolLM2-135M", memory.memory_limit_gib(models.device()))
    rows = encode(data.train, tokenizer, max_length=RECIPE.max_length)
    result = training.run(RECIPE, rows, model=base, tokenizer=tokenizer, panel=panel)
    say("After: the tuned model answers the same questions.")
    after = score(result.model, tokenizer, data)
    return summary(before, after, result), before, after, result


def score(model: Any, tokenizer: Any, data: DataSet) -> Score:
    """The share of held-out messages that become exactly the right ticket."""
    return evaluation.score(model, tokenizer, data.held_out, max_new_tokens=ANSWER_TOKENS)


def summary(before: Score, after: Score, run: Run) -> dict[str, Any]:
    """The figures of a before/after run, scores between 0 and 1."""
    report = run.report
    return {
        "score_before": round(before.value, 4),
        "score_after": round(after.value, 4),
        "questions": len(after.answers),
        "train_seconds": round(report.seconds, 1),
        "peak_gib": report.memory.peak_gib if report.memory else None,
        "tokens_per_second": round(report.tokens_per_second, 1),
        "device": report.device,
        "precision": report.precision,
        "stopped": report.stopped,
        "versions": report.versions,
    }
