"""Our training step beside its peers' on one GPU: LoRA, QLoRA, full fine-tuning of a 7B model.

    python -m benchmarks.peers_gpu build --tokenizer FOLDER   # the model, once: 13.8 GB of disk
    python -m benchmarks.peers_gpu run --seconds 900          # rows go to $OUT/peers.jsonl
    python -m benchmarks.peers_gpu run --only plain,liger --seconds 300
    python -m benchmarks.peers_gpu collect peers.jsonl        # writes results/peers_h200.json

Losses alone, in four minutes on two CPU cores (`build --shape small` before):

    python -m benchmarks.peers_gpu run --shape small --only ours,plain,exact --methods lora
    python -m benchmarks.peers_gpu collect peers.jsonl --name losses_cpu

Llama-2-7B's shape with 49,152 words and random weights in bf16; rank 16, alpha 32 on all linear
layers, no dropout; 4 rows of 1024 random tokens a step, AdamW at 2e-4, gradients clipped at 1.
The rows come again ten times, so that they are learned by heart and the losses fall.
Full fine-tuning, always with checkpointing: weights and AdamW's averages in bf16, at 1e-5.
All systems draw the same adapters and take the rows in the same order (one seed, the Trainer's own
sampler), which the losses of each step show.  Systems:

- ours: `training.run`; ours_fp8: the same with the frozen weights in fp8; ours_fp8_gradients: with
  the products that gradients pass back through in fp8 alone
- unsloth: its model under transformers' Trainer; trl: `SFTTrainer` with its default loss
- plain: transformers' Trainer and PEFT; liger: the same with `use_liger_kernel`
- exact: as plain, but all of it in fp32: the losses that the others should have, at any speed
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_common as common
from benchmarks.gpu_common import SEED, Case, Row, StepMeter

MODULE = "benchmarks.peers_gpu"
BATCH, STEPS, WARM = 4, 20, 4
LENGTH = {"7b": 1024, "1b": 1024, "small": 128, "tiny": 64}  # tokens of a row
ROWS = 8  # that differ
ORDER = ("ours", "unsloth", "ours_fp8_gradients", "ours_fp8", "trl", "plain", "liger", "exact")
FIRST = ORDER[:4]  # the most important, should time run out
METHODS = ("lora", "qlora", "full")
FULL = {"base_precision": "bf16", "learning_rate": 1e-5}  # a recipe's fields for that method
PEERS = ("unsloth", "trl", "plain", "liger")
# A recipe's fields beyond those that all systems share, by system.
EXTRA: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours_fp8": {"base_precision": "fp8"},
    "ours_fp8_gradients": {"gradient_precision": "fp8"},
}
# Methods of a system; else all.
OF = {"ours_fp8": ("lora",), "ours_fp8_gradients": ("lora", "qlora"), "exact": ("lora",)}


def tokens(case: Case) -> list[list[int]]:
    """The token rows: `ROWS` of them, again and again."""
    draw, length = random.Random(SEED), LENGTH[case["shape"]]
    rows = [[draw.randrange(3, 32000) for _ in range(length)] for _ in range(ROWS)]
    return rows * (STEPS * BATCH // ROWS)


def ours(case: Case, meter: StepMeter) -> None:
    """`training.run` on rows that are encoded already; `case["recipe"]` may set more fields."""
    from course_utils import training
    from course_utils.encoding import Encoded, EncodingReport
    from course_utils.recipes import from_dict

    rows, length = tokens(case), LENGTH[case["shape"]]
    count = len(rows) * length
    report = EncodingReport(len(rows), count, count, length, truncated=0, sequences=len(rows))
    fields = {
        "model": str(common.model_folder(case["shape"])), "method": case["method"],
        "rank": common.RANK, "alpha": common.ALPHA, "learning_rate": common.RATE,
        "schedule": "constant", "warmup": 0.0, "batch_size": BATCH, "max_steps": STEPS,
        "max_length": length, "group_by_length": False, "precision": "bf16", "seed": SEED,
        "checkpointing": case["checkpointing"],
    }  # fmt: skip
    fields |= FULL if case["method"] == "full" else {}
    fields |= EXTRA[case["system"]] | case.get("recipe", {})
    encoded = Encoded([{"input_ids": row, "labels": row} for row in rows], report)
    with tempfile.TemporaryDirectory() as folder:
        training.run(from_dict(fields), encoded, output_dir=folder, callbacks=[meter])


def peer_trainer(case: Case, meter: StepMeter) -> None:
    """transformers' Trainer: as it is, with Liger's kernels, in fp32, or with Unsloth's model."""
    from transformers import Trainer, TrainingArguments, default_data_collator

    checkpointing, exact = case["checkpointing"], case["system"] == "exact"
    if case["system"] == "unsloth":  # checkpoints by itself, so the Trainer is told nothing of it
        length = LENGTH[case["shape"]]
        model, _ = common.unsloth_model(case["shape"], case["method"], checkpointing, length)
        checkpointing = False
    else:
        dtype = "float32" if exact else "bfloat16"
        model = common.peft_model(case["shape"], case["method"], checkpointing, dtype)
    data = [
        {"input_ids": row, "labels": row, "attention_mask": [1] * len(row)} for row in tokens(case)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **_arguments(case, folder, checkpointing) | {"bf16": not exact},
            use_liger_kernel=case["system"] == "liger",
        )
        trainer = Trainer(
            model=model, args=arguments, train_dataset=data, callbacks=[meter],
            data_collator=default_data_collator,
        )  # fmt: skip
        trainer.train()


def _arguments(case: Case, folder: str, checkpointing: bool) -> dict[str, Any]:
    """What all peers get, as keywords of `TrainingArguments`."""
    keywords = common.peer_arguments(BATCH, STEPS, checkpointing, folder)
    return keywords | ({"learning_rate": FULL["learning_rate"]} if case["method"] == "full" else {})


def trl(case: Case, meter: StepMeter) -> None:
    """TRL's SFTTrainer, which adds the adapter itself, in bf16 and without a cast up to fp32."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = common.load_base(case["shape"], case["method"])
    tokenizer = AutoTokenizer.from_pretrained(common.model_folder(case["shape"]))
    with tempfile.TemporaryDirectory() as folder:
        keywords = _arguments(case, folder, case["checkpointing"])
        common.set_seed(SEED)
        trainer = SFTTrainer(
            model=model, args=SFTConfig(**keywords, max_length=LENGTH[case["shape"]]),
            train_dataset=Dataset.from_dict({"input_ids": tokens(case)}),
            processing_class=tokenizer,
            peft_config=None if case["method"] == "full" else common.lora_config(),
            callbacks=[meter],
        )  # fmt: skip
        trainer.train()


TRAIN: dict[str, Callable[[Case, StepMeter], None]] = {
    **dict.fromkeys(EXTRA, ours), "unsloth": peer_trainer, "trl": trl, "plain": peer_trainer,
    "liger": peer_trainer, "exact": peer_trainer,
}  # fmt: skip


def measure(case: Case) -> Row:
    """Train one system for `STEPS` steps, in this process."""
    meter = StepMeter(WARM)
    TRAIN[case["system"]](case, meter)
    figures = meter.figures()
    length = LENGTH[case["shape"]]
    rate = BATCH * length / figures["seconds_per_step"]
    return {"batch": BATCH, "length": length, "tokens_per_second": round(rate, 1)} | figures


def cases(shape: str, only: str | None, recipe: str | None, methods: str | None) -> list[Case]:
    """All cases: ours and its rivals in turn, method by method; then the others."""
    extra, chosen = json.loads(recipe) if recipe else {}, common.named(only, ORDER)
    halves = [n for n in chosen if n in FIRST], [n for n in chosen if n not in FIRST]
    made = []
    of = common.named(methods, METHODS)
    for names, method, checkpointing in itertools.product(halves, of, (True, False)):
        for name in names:
            if not checkpointing and method == "full" or checkpointing and name == "exact":
                continue  # not measured
            if method not in OF.get(name, METHODS):
                continue
            case = {"system": name, "method": method, "checkpointing": checkpointing}
            # offload: what a checkpoint keeps waits in the machine's memory
            offload = {"offload": checkpointing and method != "full"}
            fields = {"recipe": offload | extra} if name in EXTRA else {}
            made.append(case | {"shape": shape} | fields)
    return made


def collect(files: list[str], name: str, notes: list[str] | None) -> Path:
    """Merge the rows of one run into `results/NAME.json`, with the ratios ours / peer."""
    rows = common.read_rows(files)
    made = [ratio for system in EXTRA for ratio in common.ratios(rows, system, PEERS)]
    about = "ours / peer: above 1 is better in speed, below 1 in peak memory"
    exact = from_exact(rows)
    result = {"summary_is": about, "summary": made} | ({"from_exact": exact} if exact else {})
    return common.write_result(name, result | {"rows": rows}, notes)


def from_exact(rows: list[Row]) -> list[Row]:
    """How far the losses of LoRA are from those in fp32: at most and at the end, in nats."""
    curves = {row["shape"]: row["losses"] for row in rows if row["system"] == "exact"}
    found = []
    for row in rows:
        if row["shape"] in curves and row["method"] == "lora" and row["system"] != "exact":
            pairs = zip(row["losses"], curves[row["shape"]], strict=True)
            gaps = [round(loss - exact, 4) for loss, exact in pairs]
            found.append({key: row[key] for key in ("system", "checkpointing", "shape")}
                         | {"largest": max(gaps, key=abs), "last": gaps[-1]})  # fmt: skip
    return found


def main() -> None:
    """The command line; see the top of this file."""
    parser = common.parser(__doc__, ["build", "run", "one", "collect"], name="peers_h200")
    parser.add_argument("--tokenizer", help="build: folder with the tokenizer's files")
    parser.add_argument("--methods", help="of lora, qlora and full, separated by commas; or all")
    given = parser.parse_args()
    if given.action == "build":
        print(common.build(given.shape, given.tokenizer))
    elif given.action == "one":
        common.answer(json.loads(given.what[0]), measure)
    elif given.action == "run":
        wanted = cases(given.shape, given.only, given.recipe, given.methods)
        common.run(MODULE, wanted, common.lines_path("peers"), given.seconds)
    else:
        print(collect(given.what, given.name, given.note))


if __name__ == "__main__":
    sys.exit(main())
