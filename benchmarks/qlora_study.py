"""LoRA and QLoRA on the same task: quality, speed, memory, and what merging costs, on the CPU.

    python -m benchmarks.qlora_study            # about 10 minutes; writes results/qlora_study.json
    python -m benchmarks.qlora_study --runs 2   # the next two runs only; what is there is kept

The task is the first chapter's (`quickstart`: tickets), in `STEPS` steps instead of 114.  The two
methods differ in the base alone: bf16, or NF4 with double quantization.  A seed decides the
adapter's start and the order of the rows, so a seed's two runs form a pair; three seeds show how
far two runs of one recipe lie apart.  Each run is a process of its own: so is its peak memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerCallback

from benchmarks import study
from course_utils import evaluation, models, quickstart, training
from course_utils.precision import DTYPES, choose_precision

STEPS = 60
METHODS, SEEDS = ("lora", "qlora"), (0, 1, 2)
RECIPE = quickstart.RECIPE.replace(max_steps=STEPS, evaluate_every=None)
RESULTS = Path(__file__).parent / "results" / "qlora_study.json"
Row = dict[str, Any]


class Processor(TrainerCallback):
    """Seconds of processor time, of all threads: other programs on the machine do not count."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.process_time() - self.began


def cases() -> list[Row]:
    """What each run is."""
    return [{"method": method, "seed": seed} for seed in SEEDS for method in METHODS]


def measure(case: Row) -> Row:
    """Train and evaluate one run.  loss: nats per answer token; score: share of right tickets."""
    data = quickstart.load_data()
    processor = Processor()
    run = training.run(RECIPE.replace(**case), data.train, callbacks=[processor])

    def loss(model: nn.Module) -> float:
        found = evaluation.held_out_loss(model, run.tokenizer, data.held_out)
        return round(found, 4)

    row = case | {
        "loss": loss(run.model),
        "score": round(quickstart.score(run.model, run.tokenizer, data).value, 4),
        "tokens_per_second": round(run.report.tokens_per_second, 1),
        "seconds": round(run.report.seconds, 1),
        "processor_seconds": round(processor.seconds, 1),
        "peak_gib": run.report.memory.peak_gib,
        "precision": run.report.precision.split(" ")[0],
    }
    if case["method"] == "qlora":
        row["merged_loss"] = {name: loss(model) for name, model in merged(run)}
    return row


def merged(run: training.Run):
    """(into what, model) of each way to merge an adapter that was trained on a 4-bit base.

    "dequantized": into the base that the adapter was trained on, in 16 bits.  "original": into the
    base as it was before it was quantized.  "requantized": as PEFT merges into a 4-bit base, which
    quantizes the sum again.
    """
    dtype = DTYPES[choose_precision(run.recipe, models.device())[0]]
    with tempfile.TemporaryDirectory() as folder:
        run.save(folder)
        for name in ("dequantized", "original"):
            base = models.load(dtype=dtype, quantize=name == "dequantized")
            base = models.dequantized(base) if name == "dequantized" else base
            yield name, PeftModel.from_pretrained(base, folder).merge_and_unload()
    yield "requantized", run.model.merge_and_unload()


def main() -> None:
    """Measure what is missing, and keep each row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, help="stop after so many")
    most = parser.parse_args().runs
    about = {"recipe": RECIPE.to_dict(), "questions": len(quickstart.load_data().held_out)}
    study.run(RESULTS, measure, cases(), most=most, **about)


if __name__ == "__main__":
    main()
