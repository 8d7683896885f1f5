"""The first fine-tuning of the course: support messages to JSON tickets, on a laptop.

The notebook 00 takes its data and recipe from here, and `python -m course_utils quickstart` runs
the same without a browser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import evaluation, memory, models, precision, sets, training
from .data import Conversation, split
from .display import panel_for_here
from .evaluation import Score
from .recipes import Recipe
from .training import Run

ANSWER_TOKENS = 40  # a ticket takes 20 to 30
RECIPE = Recipe(
    method="lora",
    rank=16,
    alpha=32,
    learning_rate=3e-3,
    batch_size=4,
    epochs=1.75,
    max_length=256,
    evaluate_every=26,
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """Rows to train on, rows to watch the loss on, and rows to score with at the end."""

    train: list[Conversation]
    validation: list[Conversation]
    held_out: list[Conversation]


def load_data() -> Data:
    """The tickets of the embedded instruction set; a tenth of the training rows is validation."""
    tickets = sets.load("instruction").only("ticket")
    train, validation = split(tickets.train, 0.1, salt="validation")
    return Data(train, validation, tickets.held_out)


def load_base() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The embedded model in the precision that is faster here, and its tokenizer."""
    chosen, _ = precision.choose_precision(RECIPE, models.device())
    return models.load(dtype=precision.DTYPES[chosen]), models.load_tokenizer()


def score(model: Any, tokenizer: Any, data: Data) -> Score:
    """The share of held-out messages that become exactly the right ticket."""
    return evaluation.score(
        model, tokenizer, data.held_out, max_new_tokens=ANSWER_TOKENS, batch_size=80
    )


def run(say: Say) -> tuple[dict[str, Any], Score, Score, Run]:
    """Score, fine-tune and score again; `say` gets a line before each part.

    Returns (result, score before, score after, the run); `result` is what `--json` prints.
    """
    data = load_data()
    base, tokenizer = load_base()
    say(f"Before: the base model answers {len(data.held_out)} held-out questions.")
    before = score(base, tokenizer, data)
    say(f"  {before}")
    say(f"Fine-tuning on {len(data.train)} rows with {RECIPE}")
    panel = panel_for_here("LoRA on SmolLM2-135M", memory.memory_limit_gib(models.device()))
    tuned = training.run(
        RECIPE, data.train, data.validation, model=base, tokenizer=tokenizer, panel=panel
    )
    say("After: the tuned model answers the same questions.")
    after = score(tuned.model, tokenizer, data)
    say(f"  {after}")
    return summary(before, after, tuned), before, after, tuned


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
