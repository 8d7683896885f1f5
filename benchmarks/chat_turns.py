"""What a chat model learns from which labels: every answer, the first alone, or without its end.

    python -m benchmarks.chat_turns            # about 4 minutes; writes results/chat_turns.json
    python -m benchmarks.chat_turns --minutes 3   # none begins later; what is there is kept

QLoRA on the English dialogues of the chat set, on the CPU, the same recipe for every run.  "every":
all answers of a dialogue carry loss.  "first": the dialogue is cut after its first answer.
"no end": every answer, but the token that ends it carries no loss, as with transformers' plain
collator where the padding token is that token.  A seed decides the adapter's start and the order of
the dialogues.  Losses are nats per answer token on `QUESTIONS` held-out dialogues.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import dialogue, evaluation, models, sets, training
from course_utils.data import Conversation
from course_utils.encoding import Encoded, encode
from course_utils.recipes import Recipe

KINDS = ("handover", "correction", "system_steps", "visit")
QUESTIONS, ANSWER_TOKENS = 48, 40
RECIPE = Recipe(
    method="qlora", rank=16, alpha=32, learning_rate=2e-3, batch_size=4, max_steps=36,
    max_length=192, group_by_length=False,
)  # fmt: skip
ARMS, SEEDS = ("every", "first", "no end"), (0,)
RESULTS = Path(__file__).parent / "results" / "chat_turns.json"
Row = dict[str, Any]


def cases() -> list[Row]:
    """What each run is."""
    return [{"arm": arm, "seed": seed} for seed in SEEDS for arm in ARMS]


def rows_of(arm: str, train: list[Conversation], tokenizer: Any) -> Encoded:
    """The training rows of one arm."""
    if arm == "first":
        train = [Conversation(c.messages[:2], c.info) for c in train]
    rows = encode(train, tokenizer, max_length=RECIPE.max_length)
    return dialogue.without_ends(rows, tokenizer.pad_token_id) if arm == "no end" else rows


def measure(case: Row) -> Row:
    """Train and evaluate one run."""
    chat, tokenizer = sets.load("chat").only(*KINDS), models.load_tokenizer()
    asked = chat.held_out[:QUESTIONS]
    rows = rows_of(case["arm"], chat.train, tokenizer)
    run = training.run(RECIPE.replace(seed=case["seed"]), rows, tokenizer=tokenizer)
    score = evaluation.score(
        run.model, tokenizer, asked, max_new_tokens=ANSWER_TOKENS, batch_size=QUESTIONS
    )
    losses = dialogue.loss_by_turn(run.model, tokenizer, asked)
    general = evaluation.held_out_loss(run.model, tokenizer, sets.general_text())
    return case | {
        "loss": {str(turn): round(loss, 4) for turn, loss in losses.items()},
        "score": round(score.value, 4),
        "interval": [round(end, 4) for end in score.interval()],
        "by_kind": {kind: round(value, 4) for kind, value in score.by_kind.items()},
        "ended": round(score.ended, 4),
        "tokens_an_answer": round(sum(a.tokens for a in score.answers) / QUESTIONS, 2),
        "general_loss": round(general, 4),
        "answer_tokens": run.report.answer_tokens,
        "seconds": round(run.report.seconds, 1),
        "peak_gib": round(run.report.memory.peak_gib, 2),
    }


def main() -> None:
    """The runs that the file lacks, each in a process of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=None, help="how many runs this time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin none after these")
    about = {"recipe": RECIPE.to_dict(), "questions": QUESTIONS, "kinds": list(KINDS)}
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes
    study.run(RESULTS, measure, cases(), most=given.runs, until=until, **about)


if __name__ == "__main__":
    main()
