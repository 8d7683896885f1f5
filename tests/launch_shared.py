"""Run by `tests/test_processes.py`: a training launched from Python, as a notebook would do it."""

import sys

import tiny_models
from accelerate import debug_launcher

from course_utils import models, training
from course_utils.recipes import Recipe


def main(folder: str) -> None:
    """Train in two processes and in this one; `notebook_launcher` itself does so on GPUs only."""
    base = f"{folder}/base"
    tiny_models.model("llama", vocab_size=tiny_models.FEW).save_pretrained(base)
    models.load_tokenizer().save_pretrained(base)
    recipe = Recipe(
        model=base, rank=4, alpha=8, learning_rate=2e-2, batch_size=4, max_length=128,
        precision="fp32", group_by_length=False,
    )  # fmt: skip
    rows = tiny_models.encoded(26)
    debug_launcher(training.run_and_save, (recipe, rows, f"{folder}/two"), num_processes=2)
    training.run_and_save(recipe, rows, f"{folder}/one")


if __name__ == "__main__":
    main(sys.argv[1])
