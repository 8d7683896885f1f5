"""The packing benchmark counts what it trains on; the systems themselves need a GPU."""

from __future__ import annotations

import json

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


def test_ours_and_unsloth_are_compared_at_one_and_at_four_sequences_a_step():
    cases = packing_gpu.cases("tiny", None, None)
    by = {count: [c["system"] for c in cases if c["sequences"] == count] for count in (1, 4)}
    assert by == {1: ["ours", "unsloth", "plain", "guide"], 4: ["ours", "unsloth"]}
    enough = 4 * packing_gpu.STEPS * packing_gpu.PACKED["tiny"]
    assert sum(len(row["input_ids"]) for row in packing_gpu.token_rows("tiny", 4)) > enough
    rows = [
        {"losses": [1.0], "peak_gib": 1.0, "tokens_per_second": speed, **case}
        for case, speed in zip(cases, (8, 4, 2, 1, 9, 6), strict=True)
    ]
    one, four = gpu_common.ratios(rows, "ours", packing_gpu.SYSTEMS[1:])
    assert one["unsloth"]["speed"] == 2 and four["unsloth"]["speed"] == 1.5
    assert "guide" in one and "guide" not in four


def test_our_steps_hold_the_sequences_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_common, "model_folder", lambda shape: tmp_path)
    case = {"system": "ours", "method": "lora", "checkpointing": False, "shape": "tiny"}
    gpu_common.build("tiny", None)
    found = packing_gpu.measure(case | {"sequences": 4})
    assert 3 * 512 < found["tokens_per_step"] <= 4 * 512 and len(found["losses"]) == 30


def test_ours_packs_faster_than_unsloth_in_each_run_and_far_faster_than_padding():
    """README and NOTES.md: at one and at four sequences a step, on every machine."""
    path = gpu_common.RESULTS / "packing_h200.json"
    made = json.loads(path.read_text(encoding="utf-8"))
    assert made["summary"] == gpu_common.ratios(made["rows"], "ours", packing_gpu.SYSTEMS[1:])
    alike = [
        ratio
        for run in (made, *made["repeats"])
        for ratio in run["summary"]
        if ratio.get("sequences")  # earlier rows are not of as many sequences a step
    ]
    assert sorted(ratio["sequences"] for ratio in alike) == [1, 1, 1, 4, 4]
    assert all(ratio["unsloth"]["speed"] >= 1.2 for ratio in alike)
    assert all(ratio["unsloth"]["memory"] < 1 for ratio in alike)
    assert made["summary"][0]["guide"]["speed"] > 3
