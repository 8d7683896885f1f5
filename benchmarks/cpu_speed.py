"""Our LoRA step against the plain Trainer's, on the same rows of the embedded set, on the CPU.

    python benchmarks/cpu_speed.py            # about 5 minutes; writes results/cpu_speed.json

Systems, all LoRA rank 16 on all linear layers, same seed, same order of rows:
- guide: the recipe as tutorials print it: fp32, all rows padded to 512, trained on the prompt too
- plain: transformers' Trainer and its own loss on our rows: answers only, padded to the longest row
- ours: `training.run`

The systems take turns, `ROUNDS` times a few steps each, so that a change in the machine's speed
meets all of them.  tokens_per_second counts prompt and answer tokens, padding not counted.
"""

from __future__ import annotations

import functools
import gc
import json
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, set_seed

from course_utils import compat, memory, models, quickstart, training
from course_utils.encoding import IGNORE, Collator, Encoded, encode
from course_utils.report import versions

ROUNDS, STEPS, WARM = 2, 5, 1
RECIPE = quickstart.RECIPE.replace(
    batch_size=8, max_steps=STEPS, evaluate_every=None, group_by_length=False, schedule="constant"
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


def ours(rows: Encoded, pad: int, times: StepTimes) -> None:
    """`training.run`, timed by the same callback."""
    with tempfile.TemporaryDirectory() as folder:
        training.run(RECIPE, rows, output_dir=folder, callbacks=[times])


def padded(rows: Encoded, length: int, pad: int) -> Encoded:
    """Every row filled up to `length`, labels on the prompt too, as the usual recipe has it."""
    made = []
    for row in rows.rows:
        ids, missing = row["input_ids"], length - len(row["input_ids"])
        made.append({"input_ids": ids + [pad] * missing, "labels": ids + [IGNORE] * missing})
    return Encoded(made, rows.report)


def main() -> None:
    """Run all systems in turns and write one row each."""
    torch.set_num_threads(torch.get_num_threads())
    tokenizer = models.load_tokenizer()
    rows = encode(quickstart.load_data().train, tokenizer, max_length=RECIPE.max_length)
    pad = tokenizer.pad_token_id
    systems = {
        "guide": functools.partial(plain, padded(rows, 512, pad), pad),
        "plain": functools.partial(plain, rows, pad),
        "ours": functools.partial(ours, rows, pad),
    }
    times: dict[str, list[StepTimes]] = {name: [] for name in systems}
    peaks = dict.fromkeys(systems, 0.0)
    for number in range(ROUNDS):
        for name, run in systems.items():
            times[name].append(StepTimes())
            meter = memory.MemoryMeter()
            with meter.phase("run"):
                run(times[name][-1])
            peaks[name] = max(peaks[name], meter.report().peak_gib)
            gc.collect()
            print(f"round {number + 1} {name:6} {_seconds(times[name]):.2f} s a step", flush=True)
    write(times, peaks, rows)


def _seconds(runs: list[StepTimes]) -> float:
    return statistics.median(s for run in runs for s in run.seconds[WARM:])


def write(times: dict[str, list[StepTimes]], peaks: dict[str, float], rows: Encoded) -> None:
    """One JSON row a system; the ratio is to the plain Trainer and to the guide's recipe."""
    tokens = rows.report.tokens / rows.report.rows * RECIPE.batch_size
    speed = {name: tokens / _seconds(runs) for name, runs in times.items()}
    precision, why = training.choose_precision(RECIPE, torch.device("cpu"))
    made = [
        {
            "system": name,
            "method": "lora",
            "checkpointing": False,
            "precision": precision if name == "ours" else "fp32",
            "seconds_per_step": round(_seconds(runs), 3),
            "tokens_per_second": round(speed[name], 1),
            "speed_against_plain": round(speed[name] / speed["plain"], 2),
            "peak_gib": peaks[name],
            "losses": [round(loss, 4) for loss in runs[0].losses],
            "final_loss": round(runs[0].losses[-1], 4),
        }
        for name, runs in times.items()
    ]
    result = {
        "device": memory.device_name(),
        "bf16": why,
        "date": date.today().isoformat(),
        "versions": versions(),
        "ours_against_plain": round(speed["ours"] / speed["plain"], 2),
        "ours_against_guide": round(speed["ours"] / speed["guide"], 2),
        "rows": made,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
