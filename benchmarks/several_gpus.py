"""One recipe on one GPU and shared by two: the same losses, how much faster, in what memory.

    python -m benchmarks.peers_gpu build --shape 1b --tokenizer FOLDER  # the model, once
    python -m benchmarks.several_gpus run --shape 1b        # rows go to $OUT/several.jsonl
    python -m benchmarks.several_gpus run --shape 1b --crowded  # others train meanwhile: no times
    python -m benchmarks.several_gpus collect several.jsonl # writes results/several_gpus_h200.json

Random weights and rows as in `peers_gpu`, 8 rows of 1024 tokens an update: on one GPU 4 and 4, on
two 4 each. `accelerate launch` with the files that the course ships starts two. Systems:

- one: a single process; ddp: two that each hold the whole model; fsdp2: two that share it

Methods: lora, qlora, full (weights in bf16, checkpointing), and exact: lora in fp32, where two GPUs
should have the losses of one to the last digits.
Figures are the first process's. Speed in tokens a second of both, by the median of the steps after
the warm-up; `memory`: the run's highest phases, which `estimate` is compared with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import gpu_common as common
from benchmarks import peers_gpu
from benchmarks.gpu_common import REPOSITORY, SEED, Case, Row, StepMeter

MODULE = "benchmarks.several_gpus"
WAYS = ("one", "ddp", "fsdp2")
METHODS = ("lora", "qlora", "full", "exact")
BATCH, STEPS, WARM, GPUS = 4, 10, 4, 2
UPDATE = BATCH * GPUS  # rows


def recipe(case: Case) -> Any:
    """The recipe of a case, the same for one GPU and for two; `case["recipe"]` has more fields."""
    from course_utils.recipes import from_dict

    method = "lora" if case["method"] == "exact" else case["method"]
    fields = {
        "model": str(common.model_folder(case["shape"])), "method": method, "rank": common.RANK,
        "alpha": common.ALPHA, "learning_rate": common.RATE, "schedule": "constant", "warmup": 0.0,
        "batch_size": BATCH, "gradient_accumulation": GPUS, "max_steps": STEPS,
        "max_length": peers_gpu.LENGTH[case["shape"]], "group_by_length": False,
        "precision": "fp32" if case["method"] == "exact" else "bf16", "seed": SEED,
    }  # fmt: skip
    if method == "full":
        fields |= peers_gpu.FULL | {"checkpointing": True}
    return from_dict(fields | case.get("recipe", {}))


def rows(shape: str) -> Any:
    """`peers_gpu`'s rows, as many as the updates need."""
    from course_utils.encoding import Encoded, EncodingReport

    length = peers_gpu.LENGTH[shape]
    tokens = (peers_gpu.tokens({"shape": shape}) * STEPS)[: STEPS * UPDATE]
    count = len(tokens) * length
    report = EncodingReport(len(tokens), count, count, length, truncated=0, sequences=len(tokens))
    return Encoded([{"input_ids": row, "labels": row} for row in tokens], report)


def train(case: Case, result: str) -> None:
    """What each process does; the first writes the figures to `result`."""
    from course_utils import training
    from course_utils.processes import leave, processes

    meter = StepMeter(WARM)
    with tempfile.TemporaryDirectory() as folder:
        run = training.run(recipe(case), rows(case["shape"]), output_dir=folder, callbacks=[meter])
    if processes().main:
        rate = UPDATE * peers_gpu.LENGTH[case["shape"]] / meter.figures()["seconds_per_step"]
        made = {"tokens_per_second": round(rate, 1)} | meter.figures() | {
            "losses": [round(point["loss"], 5) for point in run.report.losses],
            "processes": processes().count, "memory": run.report.memory.to_dict(),
            "notes": run.report.notes,
        }  # fmt: skip
        Path(result).write_text(json.dumps(made), encoding="utf-8")
    if processes().count > 1:
        leave(0)


def measure(case: Case) -> Row:
    """Train in one process or launch two."""
    start = ["-m", MODULE]
    if case["system"] != "one":
        file = REPOSITORY / "configs" / "accelerate" / f"{case['system']}.yaml"
        start = ["-m", "accelerate.commands.launch", "--config_file", str(file),
                 "--num_processes", str(GPUS), "--main_process_port", "0", *start]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, *start, "train", json.dumps(case), str(result)],
            capture_output=True, text=True, errors="replace", cwd=REPOSITORY,
        )  # fmt: skip
        if not result.is_file():
            raise RuntimeError((done.stdout + done.stderr)[-1500:])
        return json.loads(result.read_text(encoding="utf-8"))


def cases(
    shape: str, only: str | None, methods: str | None, crowded: bool, recipe: str | None = None
) -> list[Case]:
    """Method by method, all ways; crowded: beside other trainings, so that times say nothing."""
    more = {"shape": shape, "crowded": crowded} | ({"recipe": json.loads(recipe)} if recipe else {})
    return [
        {"system": way, "method": method, "checkpointing": method == "full"} | more
        for method in common.named(methods, METHODS)
        for way in common.named(only, WAYS)
    ]


def shape(row: Row) -> Any:
    """The model's shape, as `estimate` and `plan` take it."""
    from transformers import LlamaConfig

    from course_utils.memory import shape_of

    sizes = common.SHAPES[row["shape"]]
    return shape_of(
        LlamaConfig(vocab_size=common.VOCABULARY, max_position_embeddings=8192, **sizes)
    )


def estimated(row: Row) -> Row:
    """What the estimate says of each GPU, in GiB: tensors, what torch reserves, all of it."""
    from course_utils import memory

    gpus = 1 if row["system"] == "one" else GPUS
    sharding = {"one": None, "ddp": "ddp", "fsdp2": "fsdp"}[row["system"]]
    said = memory.estimate(shape(row), recipe(row), gpus=gpus, sharding=sharding)
    return {
        name: round(getattr(said, name), 3)
        for name in ("allocated_gib", "reserved_gib", "process_gib")
    }


def summary(found: list[Row]) -> list[Row]:
    """Two GPUs over one: speed and memory, and the losses' largest difference, in nats."""
    made = []
    for row in found:
        alone = next(
            (r for r in found if r["system"] == "one"
             and all(r.get(key) == row.get(key) for key in ("method", "shape", "recipe"))), None
        )  # fmt: skip
        if row["system"] == "one" or alone is None:
            continue
        gaps = [abs(a - b) for a, b in zip(row["losses"], alone["losses"], strict=True)]
        times = {} if row["crowded"] or alone["crowded"] else {
            "speed": round(row["tokens_per_second"] / alone["tokens_per_second"], 3),
        }  # fmt: skip
        made.append({
            "system": row["system"], "method": row["method"], "shape": row["shape"], **times,
            "memory": round(row["memory"]["peak_gib"] / alone["memory"]["peak_gib"], 3),
            "largest_loss_difference": round(max(gaps), 5),
        })  # fmt: skip
    return made


def errors(found: list[Row]) -> Row:
    """How far off the estimate is, where two share a training in bf16: on average and at worst.

    Of fp32 it says itself that it does not know the memory of attention.
    """
    several = [r for r in found if r["processes"] == GPUS and r["method"] != "exact"]
    made = {}
    for said, measured in (("allocated_gib", "peak_gib"), ("process_gib", "process_gib")):
        apart = [row["estimated"][said] / row["memory"][measured] - 1 for row in several]
        made[said] = {
            "mean": round(sum(map(abs, apart)) / len(apart), 4),
            "worst": round(max(apart, key=abs), 4),
        }
    return made


def collect(files: list[str], name: str, notes: list[str] | None) -> Path:
    """Write results/NAME.json, with what the estimate says beside what was measured."""
    found = [row for row in common.read_rows(files) if "error" not in row]
    known = [row | {"estimated": estimated(row)} for row in found]
    for row in known:
        if row["crowded"]:
            row |= dict.fromkeys(("tokens_per_second", "seconds_per_step", "process_seconds"))
    result = {"summary": summary(known), "estimate_error": errors(known), "rows": known}
    return common.write_result(name, result, notes)


def main() -> None:
    """The command line; see the top of this file."""
    actions = ["run", "one", "train", "collect"]
    parser = common.parser(__doc__, actions, name="several_gpus_h200")
    parser.add_argument("--methods", help="separated by commas; or all")
    parser.add_argument("--crowded", action="store_true", help="others train meanwhile: no times")
    given = parser.parse_args()
    if given.action == "train":
        train(json.loads(given.what[0]), given.what[1])
    elif given.action == "one":
        common.answer(json.loads(given.what[0]), measure)
    elif given.action == "run":
        wanted = cases(given.shape, given.only, given.methods, given.crowded, given.recipe)
        common.run(MODULE, wanted, common.lines_path("several"), given.seconds)
    else:
        print(collect(given.what, given.name, given.note))


if __name__ == "__main__":
    sys.exit(main())
