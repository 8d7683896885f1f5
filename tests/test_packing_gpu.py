"""The packing benchmark counts what it trains on; the systems themselves need a GPU."""

from __future__ import annotations

import tiny_models
from transformers import Trainer, TrainingArguments

from benchmarks import gpu_common, packing_gpu
from course_utils.encoding import Collator


def test_a_steps_tokens_are_those_of_all_its_batches(tmp_path):
    rows = [{"input_ids": [3] * n, "labels": [3] * n} for n in (5, 7, 9, 11, 4, 6, 8, 10)]
    meter = packing_gpu.TokenMeter(warm=0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, logging_steps=1, save_strategy="no", report_to="none",
        use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    model = tiny_models.model("llama", vocab_size=tiny_models.FEW)
    Trainer(
        model=model, args=arguments, train_dataset=rows, data_collator=Collator(0),
        callbacks=[meter],
    ).train()  # fmt: skip
    assert sum(int(count) for count in meter.counted) == 60  # both steps: all eight rows
    assert meter.figures()["tokens_per_step"] == 30
    assert sum(meter.positions) >= 60


def test_no_peer_accumulates_batches_unasked(tmp_path):
    keywords = gpu_common.peer_arguments(4, 2, False, str(tmp_path))
    assert keywords["gradient_accumulation_steps"] == 1
