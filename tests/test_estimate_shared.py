"""Several GPUs: the estimate against torch's own FSDP2 and DDP, and against one card of several."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from test_estimate import CONFIGS

from benchmarks import gpu_common, several_gpus, vram_sharded
from course_utils import cli
from course_utils.display.memory_figure import CONTEXT, NCCL, PAGED, segments
from course_utils.errors import CourseError
from course_utils.memory import estimate, plan
from course_utils.memory.dryrun import dry_run
from course_utils.memory.estimate import GIB, HARDWARE, make_job, write
from course_utils.memory.plan import _Wish
from course_utils.memory.sharded import units_of
from course_utils.recipes import Recipe

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
SEVEN = "llama-2-7b"


# --------------------------------------------------------- against FSDP2 on tensors without numbers


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"method": "full"}),
        ("llama", {"method": "full", "base_precision": "bf16", "checkpointing": True}),
        ("llama", {"method": "full", "gradient_accumulation": 8}),  # gradients whole, in one step
        ("llama-tied", {"method": "full"}),
        ("llama-tied", {"method": "lora", "checkpointing": True}),
        ("qwen3", {"method": "lora", "gradient_accumulation": 8}),
        ("gpt2", {"method": "lora", "checkpointing": True}),
    ],
)
def test_the_estimate_is_what_a_dry_run_of_fsdp_counts(name, fields):
    batch = 2 if "gradient_accumulation" in fields else 8  # 2 rows at once on each of 4
    recipe = Recipe(batch_size=batch, precision="bf16", **fields)
    job = make_job(CONFIGS[name], recipe, length=512, gpus=4, sharding="fsdp")
    counted = dry_run(CONFIGS[name], job.recipe, 512, gpus=4)
    said = _requested(job)
    del counted["load"]  # there the whole model is made first
    assert max(said.values()) == pytest.approx(max(counted.values()), rel=0.01)
    assert said["optimizer step"] == pytest.approx(counted["step"], rel=0.002)


def _requested(job) -> dict[str, float]:
    """Peak GiB of each moment after loading, without cuBLAS and the allocator's rests."""
    ledger, _ = write(job)
    alive, peaks = 0, {}
    for number, now in ledger.events:
        if number is None:
            continue
        kind = ledger.kinds[max(number, ~number)]
        if not kind.name.startswith("cuBLAS"):
            size = -(-kind.size // 512) * 512
            alive += size if number >= 0 else -size
            peaks[now] = max(peaks.get(now, 0), alive / GIB)
    del peaks["load"]
    return peaks


# ----------------------------------------------------------------- against real tensors, on the CPU


def hold(tmp_path, *arguments: object) -> dict:
    """What `hold_shared.py` says in two processes."""
    result = tmp_path / "held.json"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(HERE / "hold_shared.py"), str(result), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1",
                          "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(result.read_text(encoding="utf-8"))


def _alive(ledger, moment: str, words: str) -> int:
    """Bytes of the pieces with these words in their name, at the start of a moment's first run."""
    alive, seen = 0, False
    for number, now in ledger.events:
        if seen and number is not None and now != moment:
            break
        seen = now == moment
        if number is not None and words in ledger.kinds[max(number, ~number)].name:
            if seen and number < 0:
                break
            alive += ledger.kinds[max(number, ~number)].size * (1 if number >= 0 else -1)
    return alive


@pytest.mark.parametrize(("kind", "method"), [("untied", "full"), ("llama", "lora")])
def test_two_processes_hold_the_parts_that_are_said(tmp_path, kind, method):
    fields = {"method": method, "rank": 3, "batch_size": 4, "precision": "bf16"}
    held = hold(tmp_path, "fsdp", kind, json.dumps(fields))["processes"]
    config = tiny_models.config(kind, vocab_size=tiny_models.FEW)  # an odd number of rows
    job = make_job(config, Recipe(**fields), length=32, gpus=2, sharding="fsdp")
    ledger, made = write(job)
    first = held[0]
    assert first["weights"] == _alive(ledger, "load", "1/2 of")
    assert first["weights"] == held[1]["weights"]  # padded to equal parts
    assert first["gradients"] == _alive(ledger, "optimizer step", "own part of the gradients")
    states = sum(8 * _numbers(dims) for _, dims, _ in made.trained)
    assert first["optimizer"] == states >= held[1]["optimizer"]
    assert sum(p.padded(2) for unit in units_of(job).values() for p in unit) >= (
        job.shape.parameters
    )


def _numbers(dims: tuple[int, ...]) -> int:
    return dims[0] * (dims[1] if len(dims) == 2 else 1)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_ddp_fills_the_buckets_that_are_said(tmp_path, method):
    fields = {"method": method, "batch_size": 4, "precision": "fp32", "max_length": 128}
    held = hold(tmp_path, "ddp", "llama", json.dumps(fields))
    config = tiny_models.config("llama", vocab_size=tiny_models.FEW)
    ledger, made = write(make_job(config, Recipe(**fields), length=32, gpus=2))
    first, *later = [kind.size for kind in ledger.kinds if "DDP's buckets" in kind.name]
    assert [int(size) for size in held["bucket_sizes"].split(",")] == [first]
    assert sum(int(size) for size in held["rebuilt_bucket_sizes"].split(",")) == sum(later) == first
    assert first == 4 * made.trained_count
    assert not held["gradient_as_bucket_view"]  # so gradients are held twice


# ------------------------------------------------------------------------- against one real card


ROWS = json.loads((RESULTS / "vram_sharded.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['sharding']}")
def test_one_card_in_the_place_of_one_of_several(row):
    """Which made the loss in chunks, other than a training under FSDP."""
    peaks = vram_sharded.calculated(row)
    assert peaks.highest().allocated / GIB == pytest.approx(row["allocated_gib"], rel=0.01)
    assert peaks.reserved / GIB == pytest.approx(row["reserved_gib"], rel=0.035)


# ----------------------------------------------------------------------------- against two of them


TWO = json.loads((RESULTS / "several_gpus_h200.json").read_text(encoding="utf-8"))


def test_the_benchmark_itself_trains_in_one_process_and_in_two(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where its processes look for the model
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folder = tmp_path / gpu_common.model_folder("tiny").name
    monkeypatch.setattr(gpu_common, "model_folder", lambda shape: folder)
    gpu_common.build("tiny", None)
    made = several_gpus.cases("tiny", "one,ddp", "exact", False, '{"rank": 4}')
    one, two = (case | several_gpus.measure(case) for case in made)
    assert (one["processes"], two["processes"]) == (1, 2)
    (ratio,) = several_gpus.summary([one, two])
    assert ratio["largest_loss_difference"] < 1e-4 and ratio["speed"] > 0
    assert len(two["losses"]) == several_gpus.STEPS


def test_two_gpus_have_the_losses_of_one():
    """README and chapter 11: in fp32 to the last digit, in bf16 to its rounding."""
    apart = {
        (row["system"], row["method"], row["shape"]): row["largest_loss_difference"]
        for row in several_gpus.summary(TWO["rows"])
    }
    assert len(apart) == 12 and TWO["summary"] == several_gpus.summary(TWO["rows"])
    assert all(far < 1e-4 for (_, method, _), far in apart.items() if method == "exact")
    assert all(far < 0.003 for (way, _, _), far in apart.items() if way == "ddp")
    # FSDP runs the stock layers, which round a small adapter's output away (see NOTES.md)
    assert max(apart.values()) < 0.2 and apart["fsdp2", "full", "1b"] < 0.003


@pytest.mark.parametrize(
    "row",
    [row for row in TWO["rows"] if row["method"] != "exact"],  # fp32: see `_notes`
    ids=lambda row: f"{row['shape']}-{row['method']}-{row['system']}",
)
def test_two_gpus_take_what_is_said(row):
    said, measured = several_gpus.estimated(row), row["memory"]
    assert said == row["estimated"]
    assert said["allocated_gib"] == pytest.approx(measured["peak_gib"], rel=0.004)
    assert said["reserved_gib"] == pytest.approx(measured["reserved_gib"], rel=0.041)
    assert said["process_gib"] == pytest.approx(measured["process_gib"], rel=0.038)


def test_the_errors_that_are_told_are_those_of_today():
    """`sharded`, README and NOTES.md."""
    found = several_gpus.errors(TWO["rows"])
    assert found == TWO["estimate_error"]
    assert [abs(found["allocated_gib"][of]) for of in ("mean", "worst")] == pytest.approx(
        [0.001, 0.003], abs=0.0005
    )
    assert [abs(found["process_gib"][of]) for of in ("mean", "worst")] == pytest.approx(
        [0.007, 0.037], abs=0.0005
    )


def test_what_is_told_of_two_gpus_was_measured():
    """README and chapter 11; NOTES.md."""
    speed = {
        (row["system"], row["method"]): f"{row['speed']:.2f}"
        for row in TWO["summary"]
        if "speed" in row
    }
    assert speed == {
        ("ddp", "lora"): "1.85", ("ddp", "qlora"): "1.81",
        ("fsdp2", "lora"): "0.88", ("fsdp2", "qlora"): "0.82",
    }  # fmt: skip
    readme = (HERE.parent / "README.md").read_text(encoding="utf-8")
    assert "1.85 times as fast as one with LoRA, 1.81 with QLoRA" in readme
    assert "longer than one (0.88, 0.82)" in readme
    rows = {(r["system"], r["method"], r["shape"]): r for r in TWO["rows"]}
    beside = [
        rows[way, method, "7b"]["memory"]["process_gib"]
        - rows[way, method, "7b"]["memory"]["reserved_gib"]
        for way in ("one", "ddp", "fsdp2")
        for method in ("lora", "qlora")
    ]
    alone, two = max(beside[:2]), (min(beside[2:]), max(beside[2:]))
    assert [each - alone for each in two] == pytest.approx([0.83, 0.83], abs=0.005)


def test_two_gpus_train_nearly_as_fast_as_planned():
    """`plan.SENDING`: over the planner's speed, which knows nothing of sending."""
    found = {}
    for row in TWO["rows"]:
        if row["system"] != "one" and row["tokens_per_second"]:
            sharding = {"ddp": "ddp", "fsdp2": "fsdp"}[row["system"]]
            recipe = several_gpus.recipe(row).replace(fast=sharding == "ddp")  # as plans have it
            wish = _Wish(recipe, several_gpus.shape(row), None, "cuda", 2, sharding)
            share = row["tokens_per_second"] * wish.seconds(recipe)
            found.setdefault(sharding, []).append(round(share, 2))
    assert {way: (min(shares), max(shares)) for way, shares in found.items()} == {
        "ddp": (0.92, 0.95), "fsdp": (0.77, 0.86),
    }  # fmt: skip


# ------------------------------------------------------------------------------------- estimates


def test_one_gpu_is_as_before():
    recipe = Recipe(batch_size=4, checkpointing=True)
    assert estimate(SEVEN, recipe, gpus=1, sharding="none") == estimate(SEVEN, recipe)
    assert estimate(SEVEN, recipe).to_dict()["sharding"] == "none"


def test_more_gpus_hold_less_each():
    recipe = Recipe(method="full", batch_size=8, checkpointing=True)
    made = [estimate("llama-3.2-1b", recipe, gpus=n, sharding="fsdp") for n in (2, 4, 8)]
    gib = [each.allocated_gib for each in made]
    assert gib == sorted(gib, reverse=True)
    assert made[0].parts["optimizer"] == pytest.approx(2 * made[1].parts["optimizer"], rel=1e-3)
    assert len({each.trained for each in made}) == 1 and made[0].trained == made[0].parameters
    copies = estimate("llama-3.2-1b", recipe, gpus=4)
    assert copies.sharding == "ddp" and copies.allocated_gib > gib[1]


def test_rows_are_shared_out():
    recipe = Recipe(method="lora", batch_size=8)
    one, four = estimate(SEVEN, recipe), estimate(SEVEN, recipe, gpus=4)
    two_rows = estimate(SEVEN, recipe.replace(batch_size=2))
    assert four.parts["activations"] == two_rows.parts["activations"] < one.parts["activations"]
    assert four.parts["weights"] == one.parts["weights"]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_what_was_not_measured_is_said(sharding):
    recipe = Recipe(method="qlora", checkpointing=True, batch_size=2, gradient_accumulation=4)
    said = str(estimate(SEVEN, recipe, length=256, gpus=2, sharding=sharding))
    assert "on each of 2 GPUs" in said and "on two H200s such figures were right to 4 %" in said
    assert "NCCL" in said
    for word in ("bnb_4bit_quant_storage", "no_sync", "all logits at once"):
        assert (word in said) == (sharding == "fsdp")


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ({}, {"gpus": 0}, "gpus is 0"),
        ({}, {"gpus": 1.5}, "gpus is 1.5"),
        ({}, {"gpus": 2, "sharding": "zero3"}, "sharding is 'zero3'"),
        ({}, {"gpus": 1, "sharding": "fsdp"}, "is for 2 GPUs or more"),
        ({}, {"gpus": 2, "sharding": "none"}, "name one"),
        ({"batch_size": 2}, {"gpus": 4}, "2 rows cannot be shared by 4"),
        ({}, {"gpus": 2, "device": "cpu"}, "device is 'cpu'"),
        ({"optimizer": "adamw_8bit"}, {"gpus": 2, "sharding": "fsdp"}, "no sharded weights"),
        ({"base_precision": "fp8"}, {"gpus": 2, "sharding": "fsdp"}, "needs the fast layers"),
    ],
)
def test_what_cannot_be_shared_is_refused(fields, options, said):
    with pytest.raises(CourseError, match=said):
        estimate(SEVEN, Recipe(**fields), length=64, **options)


# ----------------------------------------------------------------------------------------- plans


def test_all_weights_on_each_card_where_they_fit():
    one, four = plan(SEVEN, 24, length=512), plan(SEVEN, 24, length=512, gpus=4)
    assert four.sharding == "ddp" and four.gpus == 4 and one.sharding == "none"
    assert four.recipe.effective_batch == one.recipe.effective_batch == 16
    assert four.best.seconds == pytest.approx(one.best.seconds / 4, rel=0.05)
    assert "on 4 cards of 24 GiB" in str(four) and any("NCCL" in note for note in four.notes)


def test_weights_are_sharded_where_they_do_not_fit():
    assert plan(SEVEN, 48, length=512, methods=("full",)).best is None
    made = plan(SEVEN, 48, length=512, methods=("full",), gpus=8)
    assert made.sharding == "fsdp" and made.best.needs_gib <= 48
    assert any(trade.startswith("weights sharded over 8 GPUs") for trade in made.traded)
    fields = json.loads(json.dumps(made.to_dict()))
    assert (fields["gpus"], fields["sharding"]) == (8, "fsdp")
    assert fields["best"]["estimate"]["gpus"] == 8


def test_more_gpus_are_one_way_out():
    made = plan("llama-2-13b", 24, length=512, methods=("lora",))
    (more,) = [c for c in made.nearest if "GPUs" in c.traded[0]]
    assert more.traded == ("2 GPUs, weights sharded",) and more.needs_gib <= 24
    assert plan("llama-2-13b", 24, length=512, methods=("lora",), gpus=2).sharding == "fsdp"
    with pytest.raises(CourseError, match="gpus is 0"):
        plan(SEVEN, 8, gpus=0)
    with pytest.raises(CourseError, match="4 rows cannot be shared"):
        plan(SEVEN, 8, gpus=5, effective_batch=4)


def test_the_command_line_knows_gpus(capsys):
    flags = ["--model", "llama-3.2-1b", "--json", "--gpus", "2"]
    assert cli.main(["estimate", *flags, "--sharding", "fsdp", "--length", "128"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["gpus"], made["sharding"]) == (2, "fsdp") and made["recipe"]["batch_size"] == 8
    assert cli.main(["plan", *flags, "--vram", "8"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["fits"] and (made["gpus"], made["sharding"]) == (2, "ddp")
    assert cli.main(["estimate", *flags[:2], "--sharding", "fsdp"]) == 1
    assert "2 GPUs or more" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_what_sends_is_a_part_of_its_own(optimizer):
    recipe = Recipe(method="full", batch_size=4, optimizer=optimizer)
    one, two = (segments(estimate("llama-3.2-1b", recipe, length=64, gpus=n)) for n in (1, 2))
    assert two[NCCL] == HARDWARE["nccl_gib"] and NCCL not in one
    assert two[CONTEXT] == pytest.approx(one[CONTEXT])
    assert (PAGED in two) == (PAGED in one) == (optimizer != "adamw")
    assert two.get(PAGED, 0) == pytest.approx(one.get(PAGED, 0))
