"""Our LoRA step against the plain Trainer's, on the same rows of the embedded set, on the CPU.

    python benchmarks/cpu_speed.py            # about 6 minutes; writes results/cpu_speed.json

Systems, all LoRA rank 16 on all linear layers, same seed, same order of rows:
- guide: the recipe as tutorials print it: fp32, all rows padded to 512, trained on the prompt too
- plain: transformers' Trainer and its own loss on our rows: answers only, padded to the longest row
- ours: `training.run`; ours_fp32: the same in fp32, which shows that the losses are plain's own

The systems take turns, `ROUNDS` times a few steps each, so that a change in the machine's speed
meets all of them; each turn is a process of its own, so that its peak memory is its own too.
tokens_per_second counts prompt and answer tokens, padding not counted.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, set_seed

from course_utils import compat, memory, models, precision, quickstart, training
from course_utils.encoding import IGNORE, Collator, Encoded, encode
from course_utils.report import versions

SYSTEMS = ("guide", "plain", "ours", "ours_fp32")
ROUNDS, STEPS, WARM = 2, 4, 1
RECIPE = quickstart.RECIPE.replace(
    batch_size=8,
    max_steps=STEPS,
    evaluate_every=None,
    group_by_length=False,
    schedule="constant",
    warmup=0.0,
)
RESULTS = Path(__file__).parent / "results" / "cpu_speed.json"


class StepTimes(TrainerCallback):
    """Seconds of each step, and the loss that the Trainer logs for it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_, **__):
        self._start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self._start)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def plain(rows: Encoded, pad: int, times: StepTimes) -> None:
    """The Trainer as everybody uses it; fp16=True would be ignored on a CPU, without a word."""
    model = models.load(dtype=torch.float32)
    model.requires_grad_(False)
    set_seed(RECIPE.seed)
    targets = models.target_modules(model)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RECIPE.rank, lora_alpha=RECIPE.alpha, target_modules=targets
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = compat.training_arguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=RECIPE.batch_size,
            learning_rate=RECIPE.learning_rate, lr_scheduler_type="constant", use_cpu=True,
            optim="adamw_torch", logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True, remove_unused_columns=False, seed=RECIPE.seed, data_seed=RECIPE.seed,
        )  # fmt: skip
        trainer = Trainer(
            model=get_peft_model(model, config), args=arguments, train_dataset=rows,
            data_collator=Collator(pad), callbacks=[times],
        )  # fmt: skip
        trainer.train()


def ours(rows: Encoded, times: StepTimes, precision: str) -> None:
    """`training.run`, timed by the same callback."""
    recipe = RECIPE.replace(precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        training.run(recipe, rows, output_dir=folder, callbacks=[times])


def padded(rows: Encoded, length: int, pad: int) -> Encoded:
    """Every row filled up to `length`, labels on the prompt too, as the usual recipe has it."""
    made = []
    for row in rows.rows:
        ids, missing = row["input_ids"], length - len(row["input_ids"])
        made.append({"input_ids": ids + [pad] * missing, "labels": ids + [IGNORE] * missing})
    return Encoded(made, rows.report)


def turn(name: str) -> dict[str, Any]:
    """One system's steps in this process: seconds and loss of each, and the peak memory (GiB)."""
    tokenizer = models.load_tokenizer()
    pad = tokenizer.pad_token_id
    rows = encode(quickstart.load_data().train, tokenizer, max_length=RECIPE.max_length)
    times, meter = StepTimes(), memory.MemoryMeter("cpu")
    with meter.phase("run"):
        if name.startswith("ours"):
            ours(rows, times, "auto" if name == "ours" else "fp32")
        else:
            plain(padded(rows, 512, pad) if name == "guide" else rows, pad, times)
    return {
        "seconds": times.seconds,
        "losses": times.losses,
        "peak_gib": meter.report().peak_gib,
        "tokens": rows.report.tokens / rows.report.rows * RECIPE.batch_size,
    }


def main() -> None:
    """Let the systems take turns, each in a new process, and write one row for each."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in SYSTEMS}
    for number in range(ROUNDS):
        for name in SYSTEMS[min(number, 1) :]:  # the guide's recipe, 16 s a step, has one turn
            command = [sys.executable, __file__, name]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            turns[name].append(json.loads(output.splitlines()[-1]))
            print(f"round {number + 1} {name:6} {_seconds(turns[name]):.2f} s a step", flush=True)
    write(turns)


def _seconds(turns: list[dict[str, Any]]) -> float:
    return statistics.median(s for turn in turns for s in turn["seconds"][WARM:])


def write(turns: dict[str, list[dict[str, Any]]]) -> None:
    """One JSON row a system; the ratios are to the plain Trainer and to the guide's recipe."""
    speed = {name: made[0]["tokens"] / _seconds(made) for name, made in turns.items()}
    chosen, why = precision.choose_precision(RECIPE, torch.device("cpu"))
    rows = [
        {
            "system": name,
            "method": "lora",
            "checkpointing": False,
            "precision": chosen if name == "ours" else "fp32",
            "seconds_per_step": round(_seconds(made), 3),
            "tokens_per_second": round(speed[name], 1),
            "peak_gib": max(turn["peak_gib"] for turn in made),
            "losses": [round(loss, 4) for loss in made[0]["losses"]],
            "final_loss": round(made[0]["losses"][-1], 4),
        }
        for name, made in turns.items()
    ]
    result = {
        "device": memory.device_name(),
        "bf16": why,
        "date": date.today().isoformat(),
        "versions": versions(),
        "ours_against_plain": round(speed["ours"] / speed["plain"], 2),
        "ours_fp32_against_plain": round(speed["ours_fp32"] / speed["plain"], 2),
        "ours_against_guide": round(speed["ours"] / speed["guide"], 2),
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(turn(sys.argv[1])))
    else:
        main()
