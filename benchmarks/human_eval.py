"""HumanEval before and after the code chapter's fine-tuning: the first 40 problems, greedy.

    python -m benchmarks.human_eval            # 4 minutes; writes results/human_eval.json
    python -m benchmarks.human_eval --runs 1   # one of the two models only

Each problem is a chat message, since the model is a chat model; the code block of its answer runs
in the sandbox.  (The paper, arXiv:2107.03374, has the model continue the bare text instead.)
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from benchmarks import study
from course_utils import evaluation, humaneval, quickstart, sandbox, scoring, sets, training
from course_utils.data import Conversation
from course_utils.recipes import Recipe

PROBLEMS, TOKENS, ROWS = 40, 200, 288
RECIPE = Recipe(method="lora", rank=16, alpha=32, learning_rate=2e-3, batch_size=8, max_length=128)
REQUEST = "Complete this Python function.\n\n```python\n{prompt}```"
RESULTS = Path(__file__).parent / "results" / "human_eval.json"
Row = dict[str, Any]


def training_rows() -> list[Conversation]:
    """The chapter's: rows of the code set without the six families that it keeps out."""
    code = sets.load("code")
    kept_out = random.Random(0).sample(sorted(code.card.kinds), 6)
    return [row for row in code.train if row.info["kind"] not in kept_out][:ROWS]


def measure(case: Row) -> Row:
    """What one model solves: names of the problems, and why the others failed."""
    model, tokenizer = quickstart.load_base()
    if case["model"] == "tuned":
        model = training.run(RECIPE, training_rows(), model=model, tokenizer=tokenizer).model
    problems = humaneval.problems()[:PROBLEMS]
    asked = [REQUEST.format(prompt=problem.prompt) for problem in problems]
    answers = evaluation.generate(
        model, tokenizer, asked, max_new_tokens=TOKENS, batch_size=PROBLEMS
    )
    pairs = list(zip(problems, answers, strict=True))
    codes = [p.answered(scoring.extract_code(answer, p.entry)) for p, answer in pairs]
    outcomes = sandbox.run_many([(c, p.tests) for c, p in zip(codes, problems, strict=True)])
    passed = [p.task for p, outcome in zip(problems, outcomes, strict=True) if outcome.passed]
    return case | {
        "percent": round(100 * len(passed) / PROBLEMS, 1),
        "passed": passed,
        "reasons": [outcome.reason[:80] for outcome in outcomes],
    }


def main() -> None:
    """Measure what is missing, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, help="stop after so many")
    about = {
        "problems": PROBLEMS, "tokens": TOKENS, "rows_trained": ROWS, "recipe": RECIPE.to_dict(),
        "source": f"{humaneval.PACKAGE} {humaneval.VERSION}, MIT license",
    }  # fmt: skip
    cases = [{"model": "base"}, {"model": "tuned"}]
    study.run(RESULTS, measure, cases, most=parser.parse_args().runs, **about)


if __name__ == "__main__":
    main()
