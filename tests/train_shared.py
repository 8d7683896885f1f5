"""Run by `tests/test_processes.py` in several processes: a small training, its figures as JSON."""

import json
import sys
from pathlib import Path

import tiny_models

from course_utils import models, training
from course_utils.processes import processes
from course_utils.recipes import Recipe


def main() -> None:
    """Arguments: output file, run folder, recipe fields as JSON, checkpoint to go on from."""
    result, folder, fields, resume = sys.argv[1:]
    recipe = Recipe(**{
        "model": "tiny", "method": "lora", "rank": 4, "alpha": 8, "learning_rate": 2e-2,
        "batch_size": 4, "max_length": 128, "precision": "fp32", "epochs": 2,
        "group_by_length": False,
    } | json.loads(fields))  # fmt: skip
    rows = tiny_models.encoded(26)
    held_out = tiny_models.encoded(7)
    model = tiny_models.model("llama", vocab_size=tiny_models.FEW)
    run = training.run(
        recipe, rows, held_out, model=model, tokenizer=models.load_tokenizer(),
        output_dir=folder, resume=resume or None,
    )  # fmt: skip
    if processes().main:
        made = run.report.to_dict() | {"processes": processes().count}
        Path(result).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
