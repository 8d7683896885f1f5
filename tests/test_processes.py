"""Several processes train as one would: the same losses, files that go on in any number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler

from course_utils import models, training
from course_utils.errors import CourseError
from course_utils.processes import Processes, Shares, processes, shares
from course_utils.recipes import Recipe

HERE = Path(__file__).parent
ADAPTER = "adapter_model.safetensors"


FILES = HERE.parent / "configs" / "accelerate"


def train(tmp_path, count: int, name: str, resume="", launcher="ddp.yaml", **fields):
    """The report of a training in `count` processes; its checkpoints are in tmp_path/name.

    launcher: a shipped file for `accelerate launch`.
    """
    result = tmp_path / f"{name}.json"
    launch(
        tmp_path, count, HERE / "train_shared.py", result, tmp_path / name, json.dumps(fields),
        resume, launcher=launcher,
    )  # fmt: skip
    return json.loads(result.read_text(encoding="utf-8"))


def launch(folder, count: int, *command, launcher="ddp.yaml", code=0):
    """A Python command in `count` processes, or in one without a launcher, run in a folder."""
    start = ["-m", "accelerate.commands.launch", "--config_file", FILES / launcher]
    start += ["--num_processes", count, "--main_process_port", 0]
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, [*(start if count > 1 else []), *command])],
        env=os.environ | more, capture_output=True, text=True, timeout=300, cwd=folder,
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-1000:] + done.stderr[-3000:]
    return done


def curve(report) -> list[float]:
    return [point["loss"] for point in report["losses"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def alone(folder):
    """One process; 26 rows are six updates of 4 and a last one of 2, twice."""
    return train(folder, 1, "alone", save_every=5)


@pytest.mark.parametrize("count", [2, 3])
def test_several_processes_have_the_loss_curve_of_one(folder, alone, count):
    report = train(folder, count, f"of{count}", save_every=5)
    assert report["processes"] == count and len(curve(report)) == 14
    assert curve(report) == pytest.approx(curve(alone), abs=1e-4)
    for figure in ("tokens", "answer_tokens", "steps"):
        assert report[figure] == alone[figure]
    (first, last), (one_first, one_last) = report["validation_losses"], alone["validation_losses"]
    assert [first[1], last[1]] == pytest.approx([one_first[1], one_last[1]], abs=1e-4)
    norms = [[point["grad_norm"] for point in r["losses"]] for r in (report, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_a_checkpoint_of_two_processes_goes_on_in_any_number(folder, alone, count):
    if not (folder / "of2" / "checkpoint-10").is_dir():
        train(folder, 2, "of2", save_every=5)
    report = train(
        folder, count, f"on{count}", resume=folder / "of2" / "checkpoint-10", save_every=5
    )
    assert curve(report) == pytest.approx(curve(alone), abs=1e-4)


def test_all_stop_after_the_same_step_when_one_is_interrupted(folder, alone):
    report = train(folder, 2, "stopped", interrupt=3)
    assert report["stopped"] == "interrupted" and report["steps"] == 4  # heard one step later
    assert (folder / "stopped" / "checkpoint-4").is_dir()
    resumed = train(folder, 2, "stopped", resume=folder / "stopped" / "checkpoint-4")
    assert resumed["stopped"] == "finished"
    assert curve(resumed) == pytest.approx(curve(alone), abs=1e-4)


def test_accumulation_and_rows_by_length_are_shared_too(folder):
    ways = {"batch_size": 2, "gradient_accumulation": 3, "group_by_length": True, "method": "full",
            "learning_rate": 1e-3, "epochs": 1}  # fmt: skip
    assert curve(train(folder, 2, "long2", **ways)) == pytest.approx(
        curve(train(folder, 1, "long1", **ways)), abs=1e-4
    )


def test_weights_in_fp8_are_rounded_alike_in_all_processes(folder):
    curves = [
        curve(train(folder, count, f"fp8-{count}", base_precision="fp8", epochs=1))
        for count in (1, 2)
    ]
    assert curves[0][0] == pytest.approx(curves[1][0], abs=1e-5)
    assert curves[0] == pytest.approx(curves[1], abs=0.1)  # a rounding that flips moves the rest


@pytest.fixture(scope="module")
def shared_out(folder):
    """Two processes that hold a part of every weight each."""
    return train(folder, 2, "fsdp2", launcher="fsdp2.yaml", save_every=5)


def test_weights_that_are_shared_out_have_the_loss_curve_of_one(alone, shared_out):
    assert shared_out["processes"] == 2 and 0.45 < shared_out["held"] < 0.55
    assert shared_out["units"] == 5  # two layers; embedding (and head), last norm, the whole
    assert curve(shared_out) == pytest.approx(curve(alone), abs=1e-4)
    found = [[loss for _, loss in r["validation_losses"]] for r in (shared_out, alone)]
    assert found[0] == pytest.approx(found[1], abs=1e-4)
    assert any("shared out (FSDP)" in note for note in shared_out["notes"])


def test_an_adapter_that_was_shared_out_is_saved_whole(folder, alone, shared_out):
    kept = [load_file(folder / name / "saved" / ADAPTER) for name in ("fsdp2", "alone")]
    assert kept[0].keys() == kept[1].keys()
    for name, weight in kept[1].items():
        torch.testing.assert_close(kept[0][name], weight, atol=1e-3, rtol=1e-3)


def test_a_checkpoint_that_was_shared_out_goes_on_in_three(folder, alone, shared_out):
    report = train(
        folder, 3, "fsdp3", launcher="fsdp2.yaml", save_every=5,
        resume=folder / "fsdp2" / "checkpoint-10",
    )  # fmt: skip
    assert report["processes"] == 3 and curve(report) == pytest.approx(curve(alone), abs=1e-4)


def test_packed_4_bit_weights_are_shared_out_too(folder):
    base = folder / "base"
    tiny_models.model("llama", vocab_size=tiny_models.FEW).save_pretrained(base)
    models.load_tokenizer().save_pretrained(base)
    ways = {"model": str(base), "method": "qlora", "epochs": 1}
    shared = train(folder, 2, "qlora2", launcher="fsdp2.yaml", **ways)
    assert 0.45 < shared["held"] < 0.55
    assert curve(shared) == pytest.approx(curve(train(folder, 1, "qlora1", **ways)), abs=1e-4)


def test_a_training_launched_from_python_is_saved_and_has_the_loss_curve_of_one(tmp_path):
    more = {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(HERE / "launch_shared.py"), str(tmp_path)], env=os.environ | more,
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = (training.report_of(tmp_path / name).losses for name in ("two", "one"))
    assert len(two) == 7
    assert [p["loss"] for p in two] == pytest.approx([p["loss"] for p in one], abs=1e-4)


def test_the_command_line_trains_in_two_processes_and_answers_once(tmp_path):
    base = tmp_path / "base"
    tiny_models.model("llama").save_pretrained(base)
    models.load_tokenizer().save_pretrained(base)
    rows = [{"instruction": f"Say {n}", "output": f"It is {n}."} for n in range(9)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    job = {"model": str(base), "rank": 4, "batch_size": 4, "max_length": 128, "precision": "fp32"}
    job |= {"data": "rows.json", "output": "out"}
    (tmp_path / "job.yaml").write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML too
    done = launch(tmp_path, 2, "-m", "course_utils", "train", "job.yaml", "--json")
    answer = json.loads(done.stdout)  # of two processes, one
    assert answer["steps"] == 3 and Path(tmp_path / answer["saved"]).is_dir()
    (tmp_path / "job.yaml").write_text(json.dumps(job | {"rank": -1}), encoding="utf-8")
    failed = launch(tmp_path, 2, "-m", "course_utils", "train", "job.yaml", code=1)
    assert "error: This recipe cannot run: rank is -1" in failed.stderr


@pytest.mark.skipif(not find_spec("deepspeed"), reason="needs deepspeed")
def test_deepspeed_has_the_loss_curve_of_one_and_goes_on(folder, alone, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    report = train(folder, 2, "zero2", launcher="deepspeed.yaml", save_every=5)
    assert report["processes"] == 2 and curve(report) == pytest.approx(curve(alone), abs=1e-4)
    half = folder / "zero2" / "checkpoint-10"
    assert len(list(half.glob("global_step10/zero_pp_rank_*_optim_states.pt"))) == 2
    resumed = train(folder, 2, "zero2on", launcher="deepspeed.yaml", resume=half)
    assert curve(resumed) == pytest.approx(curve(alone), abs=1e-4)


def test_each_row_of_an_update_goes_to_one_process():
    recipe = Recipe(batch_size=4, gradient_accumulation=2)
    parts = [_dealt(recipe, 19, 3, index) for index in range(3)]
    assert {len(part) for part in parts} == {3}  # equally many batches, of 8, 8 and 3 rows
    for update in range(3):
        rows = sorted(row for part in parts for row in part[update])
        assert rows == list(range(19))[8 * update : 8 * update + 8]


def _dealt(recipe, rows, count, index):
    share = Shares(SequentialSampler(range(rows)), recipe, Processes(count, index))
    share.of = _Mute(count, index)
    return list(share)


class _Mute(Processes):
    """One of several that are not there."""

    def same(self, value):
        return value


@pytest.mark.parametrize(
    ("batch", "accumulation", "count", "expected"),
    [(4, 1, 2, (2, 1)), (4, 1, 3, (2, 1)), (4, 4, 2, (4, 2)), (2, 8, 3, (2, 3)), (8, 1, 8, (1, 1))],
)
def test_shares_hold_all_rows_and_no_larger_batch(batch, accumulation, count, expected):
    recipe = Recipe(batch_size=batch, gradient_accumulation=accumulation)
    size, batches = shares(recipe, count)
    assert (size, batches) == expected
    assert size <= batch and size * batches * count >= batch * accumulation


def test_more_processes_than_rows_are_refused():
    with pytest.raises(CourseError, match="4 rows cannot be shared by 5 processes"):
        shares(Recipe(batch_size=4), 5)


def test_one_process_is_alone_and_main():
    assert processes() == Processes() and processes().main
    assert processes().total(1.5, 2) == [1.5, 2] and processes().same("x") == "x"
