"""Peaks are caught, given to the right phase, and forgotten between phases."""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest
import tiny_models
import torch
from transformers import TrainerCallback

from course_utils import CourseError, memory, training
from course_utils.memory import MemoryMeter, MemoryReport, measure
from course_utils.recipes import Recipe
from course_utils.report import load_report

BLOCK_GIB = 0.25


def _block() -> np.ndarray:
    """Pages of its own: what malloc gives may come from, and go back to, a heap that stays."""
    block = np.frombuffer(mmap.mmap(-1, int(BLOCK_GIB * memory.GIB)), dtype=np.uint8)
    block[:] = 1
    time.sleep(0.5)  # long enough for the sampling reader too, on a busy machine as well
    return block


@pytest.fixture(params=["kernel", "sampled"])
def meter(request):
    made = MemoryMeter("cpu")
    if request.param == "sampled":
        made._process = measure._shared_sampler()
        made._take_peak()
    elif not isinstance(made._process, measure._KernelPeak):
        pytest.skip("this system's kernel keeps no peak")
    return made


def test_a_peak_goes_to_the_phase_it_happened_in(meter):
    with meter.phase("load"):
        pass
    before = memory.current_gib()
    with meter.phase("forward"):
        block = _block()
        del block
    with meter.phase("backward"):
        time.sleep(0.05)
    phases = meter.report().phases
    assert phases["forward"] == pytest.approx(before + BLOCK_GIB, abs=0.06)
    assert phases["load"] < phases["forward"] - BLOCK_GIB / 2
    assert phases["backward"] < phases["forward"] - BLOCK_GIB / 2


def test_phases_come_in_the_order_of_a_step(meter):
    for name in ("step", "evaluation", "backward", "load"):
        with meter.phase(name):
            pass
    assert list(meter.report().phases) == ["load", "backward", "step", "evaluation"]


def test_the_report_says_that_it_is_not_gpu_memory():
    report = MemoryMeter("cpu").report()
    assert "not VRAM" in report.kind and report.reserved_gib is None
    assert report.peak_gib == 0 and report.limit_gib > 0.5


def test_the_limit_is_no_more_than_the_machine():
    import psutil

    assert memory.memory_limit_gib() <= psutil.virtual_memory().total / memory.GIB


# ----------------------------------------------------------------- several figures, several runs


def test_the_three_figures_stand_side_by_side():
    report = MemoryReport(
        device="card", kind="GPU memory allocated", phases={"load": 1.0, "forward": 3.0},
        reserved_phases={"load": 1.5, "forward": 3.5}, reserved_gib=3.5, process_gib=4.25,
    )  # fmt: skip
    assert report.by_phase() == [
        {"phase": "load", "peak": 1.0, "reserved": 1.5, "process": 2.25},
        {"phase": "forward", "peak": 3.0, "reserved": 3.5, "process": 4.25},
    ]
    assert "reserved 3.50" in str(report) and "whole process 4.25" in str(report)
    cpu = MemoryReport(device="CPU", kind="resident", phases={"load": 1.0})
    assert cpu.by_phase() == [{"phase": "load", "peak": 1.0, "reserved": None, "process": None}]
    assert "reserved" not in str(cpu)


def test_a_new_meter_begins_at_what_is_left():
    """What an earlier run held is neither kept nor counted."""
    ring = [torch.ones(int(0.3 * memory.GIB) // 4)]
    ring.append(ring)  # a cycle, as the Trainer's: only the garbage collector frees it
    held = memory.current_gib()
    del ring
    meter = MemoryMeter("cpu")
    with meter.phase("load"):
        pass
    assert meter.report().phases["load"] < held - 0.2


def test_there_is_no_process_on_a_card_on_the_cpu():
    assert memory.process_memory_gib("cpu") is None and memory.others_on_card_gib("cpu") == 0


@pytest.mark.parametrize("gib", [0, -1, float("nan")])
def test_a_card_has_more_than_nothing(gib):
    with pytest.raises(CourseError, match="a card has more than 0 GiB"):
        memory.limit_memory(gib)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to limit")
def test_only_a_gpu_can_be_limited():
    for device in ("cpu", "cuda"):
        with pytest.raises(CourseError, match="device='cpu'"):
            memory.limit_memory(8, device)


# ---------------------------------------------------------------------- what recipes save


@pytest.fixture
def one_thread():
    """For models too small to gain by two, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class _Look(TrainerCallback):
    """What the optimizer holds, and which layers are checkpointed, while it trains."""

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.states = {t.dtype for s in optimizer.state.values() for t in s.values() if t.dim()}
        self.weights = {p.dtype for p in model.parameters()}
        layers = model.get_decoder().layers
        self.checkpointed = [i for i, x in enumerate(layers) if x.gradient_checkpointing]


def _train(tokenizer, tmp_path, layers=2, **fields):
    look = _Look()
    recipe = Recipe(max_steps=2, batch_size=2, rank=2, **fields)
    model = tiny_models.model("llama", vocab_size=tiny_models.FEW, num_hidden_layers=layers)
    options = {"tokenizer": tokenizer, "output_dir": tmp_path / "run", "callbacks": [look]}
    return training.run(recipe, tiny_models.encoded(4), model=model, **options), look


def test_pure_bf16_holds_everything_in_bf16(one_thread, tokenizer, tmp_path):
    run, look = _train(tokenizer, tmp_path, method="full", base_precision="bf16")
    assert look.weights == look.states == {torch.bfloat16}
    assert run.report.precision.startswith("bf16")
    _, look = _train(tokenizer, tmp_path, method="full", precision="bf16")
    assert look.weights == look.states == {torch.float32}


def test_every_nth_stock_layer_is_checkpointed(one_thread, tokenizer, tmp_path):
    run = {}
    for every in (False, True, 2, 3):
        run[every], look = _train(
            tokenizer, tmp_path, layers=5, method="full", precision="fp32", checkpointing=every
        )
        wanted = range(0, 5, int(every)) if every else []
        assert look.checkpointed == list(wanted), every
    losses = {every: [p["loss"] for p in made.report.losses] for every, made in run.items()}
    assert all(found == pytest.approx(losses[False], abs=1e-5) for found in losses.values())


def test_a_saved_report_keeps_its_memory(one_thread, tokenizer, tmp_path):
    run, _ = _train(tokenizer, tmp_path, precision="fp32")
    again = load_report(run.report.save(tmp_path / "report.json"))
    assert again.memory == run.report.memory and again.memory.process_gib is None


# ----------------------------------------------------------------------------------- on a GPU

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@gpu
def test_allocated_reserved_and_process_nest():
    meter = MemoryMeter("cuda", empty=True)
    with meter.phase("forward"):
        block = torch.ones(2**28, device="cuda")  # 1 GiB
        del block
    with meter.phase("step"):
        torch.ones(2**20, device="cuda")
    report = meter.report()
    row, last = report.by_phase()
    assert row["peak"] == pytest.approx(1, abs=0.1) and row["reserved"] >= row["peak"]
    assert last["peak"] < 0.2  # the block was not counted again
    if report.process_gib is not None:
        assert report.process_gib > report.reserved_gib + 0.1  # the context


@gpu
def test_a_simulated_card_holds_what_it_says():
    whole = memory.memory_limit_gib("cuda")
    with memory.limited_memory(3, "cuda"):
        assert memory.memory_limit_gib("cuda") == 3
        held = []
        with pytest.raises(torch.OutOfMemoryError):
            for _ in range(100):
                held.append(torch.empty(2**25, device="cuda"))  # 128 MiB each
        process = memory.process_memory_gib("cuda")
        assert 1 < len(held) * 0.125 < 3 and (process is None or process <= 3.05)
        held.clear()
    assert memory.memory_limit_gib("cuda") == whole
    assert torch.empty(2**30, device="cuda").numel()  # 4 GiB
    with pytest.raises(CourseError, match="this card has"):
        memory.limit_memory(10_000)
    with pytest.raises(CourseError, match="CUDA itself takes"):
        memory.limit_memory(0.01)
