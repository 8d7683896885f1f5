"""Training runs: what changes, what must not, resuming, stopping, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import signal
import weakref

import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from course_utils import evaluation, fast, fetch, models, precision, training
from course_utils.checkpoints import SO_FAR
from course_utils.data import Conversation
from course_utils.errors import CourseError
from course_utils.loop import learning_rate_factor
from course_utils.memory import GIB, MemoryMeter
from course_utils.recipes import Recipe
from course_utils.report import load_report

RECIPE = Recipe(
    model="tiny", method="lora", rank=4, alpha=8, learning_rate=2e-2, batch_size=4, max_steps=6,
    max_length=128, precision="fp32", group_by_length=False,
)  # fmt: skip
METHODS = ["full", "lora", "qlora"]


def tiny(kind: str = "llama", **changes):
    return tiny_models.model(kind, vocab_size=tiny_models.FEW, **changes)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A small model as a folder, which 4-bit loading needs."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny("untied").save_pretrained(folder)
    return folder


@pytest.fixture
def start(tiny_folder, tokenizer, tmp_path):
    """start(recipe fields..., model=None, rows=None, ...) -> training.Run on a small model."""

    def run(model=None, rows=None, validation=None, panel=None, resume=None, folder="run",
            **fields):  # fmt: skip
        recipe = RECIPE.replace(**fields)
        if model is None and recipe.method == "qlora":
            model = models.load(tiny_folder, quantize=True, on="cpu")
        return training.run(
            recipe, rows or tiny_models.encoded(24), validation, model=model or tiny(),
            tokenizer=tokenizer, panel=panel, resume=resume, output_dir=tmp_path / folder,
        )  # fmt: skip

    return run


class Panel:
    """Writes down what it is told; may do something at a step."""

    def __init__(self, at=None, act=None):
        self.at, self.act = at, act
        self.total, self.updates, self.messages = None, [], []

    def start(self, total_steps):
        self.total = total_steps

    def update(self, step, **figures):
        self.updates.append((step, figures))
        if step == self.at and "loss" in figures:
            self.act()

    def finish(self, message=""):
        self.messages.append(message)


def losses(run) -> list[float]:
    return [point["loss"] for point in run.report.losses]


def trained(run) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad}


def frozen(model) -> dict[str, torch.Tensor]:
    """Raw storage of all weights but the adapter's, by their names before PEFT wrapped them."""
    found = {}
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            name = name.removeprefix("base_model.model.").replace(".base_layer", "")
            found[name] = weight.detach().clone()
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance):
    assert one.keys() == other.keys() and one
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0}))


# ---------------------------------------------------------------------------- what changes


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls(start, method):
    run = start(method=method, max_steps=16, learning_rate=5e-3 if method == "full" else 2e-2)
    values = losses(run)
    assert len(values) == run.report.steps == 16
    assert sum(values[-4:]) < 0.8 * sum(values[:4])
    assert not run.model.training


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_only_the_adapter_changes(start, method, tiny_folder):
    quantize = method == "qlora"
    model = models.load(tiny_folder, quantize=quantize, on="cpu")
    before = frozen(model)
    run = start(model=model, method=method)
    assert_equal(frozen(run.model), before)
    assert all("lora_" in name for name in trained(run))
    assert all(bool(w.any()) for name, w in trained(run).items() if "lora_B" in name)


def test_full_training_changes_every_weight(start):
    model = tiny()
    before = frozen(model)
    run = start(model=model, method="full")
    assert not isinstance(run.model, PeftModel)
    assert [n for n, w in frozen(run.model).items() if torch.equal(w, before[n])] == []


def test_full_training_holds_its_weights_in_fp32(start):
    """In bf16 an update below 1/256 of a weight would be rounded away."""
    run = start(model=tiny().to(torch.bfloat16), method="full", learning_rate=1e-5, max_steps=1)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


def test_qlora_is_really_in_four_bits(start, tiny_folder):
    run = start(method="qlora", max_steps=1)
    plain = models.linear_layers(models.load(tiny_folder, on="cpu"))
    packed = {n: p for n, p in run.model.named_parameters() if hasattr(p, "quant_state")}
    assert len(packed) == len(plain) == 14
    for weight in packed.values():
        state = weight.quant_state
        assert state.quant_type == "nf4" and state.nested  # nested: double quantization
        assert weight.dtype == torch.uint8
        assert weight.nbytes == state.shape.numel() / 2


def test_parameters_are_counted_right_in_four_bits(start):
    reports = {method: start(method=method, max_steps=1).report for method in ("lora", "qlora")}
    untied = sum(p.numel() for p in tiny("untied").parameters())
    tied = sum(p.numel() for p in tiny().parameters())
    adapter = 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96))  # layers x rank x (in + out)
    assert reports["qlora"].trainable_parameters == adapter
    assert reports["qlora"].total_parameters == untied + adapter
    assert reports["lora"].total_parameters == tied + adapter
    assert reports["lora"].trainable_share == pytest.approx(adapter / (tied + adapter))


@pytest.mark.parametrize(
    "kind, targets, adapted",
    [
        ("gpt2", "all-linear", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        ("gpt2", "attention", {"attn.c_attn", "attn.c_proj"}),
        ("gpt2", ("c_attn",), {"attn.c_attn"}),
        ("gpt_neox", ("query_key_value",), {"attention.query_key_value"}),
        ("phi3", "attention", {"self_attn.qkv_proj", "self_attn.o_proj"}),
        ("phi3", "all-linear", {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj",
                                "mlp.down_proj"}),
    ],
)  # fmt: skip
def test_adapters_sit_where_they_should_and_train(start, kind, targets, adapted):
    run = start(model=tiny(kind), targets=targets, max_steps=2)
    found = {".".join(name.split(".lora_")[0].split(".")[-2:]) for name in trained(run)}
    assert found == adapted
    assert all(bool(w.any()) for name, w in trained(run).items() if "lora_B" in name)


# ---------------------------------------------------------------------- same, and not same


@pytest.mark.parametrize("method", METHODS)
def test_accumulating_equals_the_large_batch(start, method):
    rows = tiny_models.encoded(24)
    learning_rate = 1e-3  # small: Adam divides by the gradient, and so multiplies rounding
    runs = [
        start(rows=rows, method=method, batch_size=batch, gradient_accumulation=8 // batch,
              max_steps=3, learning_rate=learning_rate)
        for batch in (8, 2)
    ]  # fmt: skip
    torch.testing.assert_close(losses(runs[0]), losses(runs[1]), rtol=1e-5, atol=1e-5)
    assert_equal(*[trained(run) for run in runs], rtol=1e-3, atol=1e-4)
    assert runs[0].report.tokens == runs[1].report.tokens
    assert runs[0].recipe.effective_batch == runs[1].recipe.effective_batch == 8


def test_the_seed_decides(start):
    one, same, other = (start(seed=seed, dropout=0.1) for seed in (1, 1, 2))
    assert losses(one) == losses(same) and losses(one) != losses(other)
    assert_equal(trained(one), trained(same))
    # of the full method only the order of the rows is left to chance
    first, second = (start(seed=seed, method="full", max_steps=1) for seed in (1, 2))
    assert losses(first) != losses(second)


def test_checkpointing_changes_memory_only(start):
    plain, recomputed = start(), start(checkpointing=True)
    assert losses(plain) == pytest.approx(losses(recomputed), rel=1e-6)
    assert_equal(trained(plain), trained(recomputed), rtol=1e-5, atol=1e-6)


def test_checkpointing_really_recomputes_and_ends_with_the_run(start):
    model, calls = tiny(), []
    # on a part of the layer: the layer's own hooks may stay outside what is computed again
    hook = model.model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    start(model=model, checkpointing=True, max_steps=1, fast=False)
    assert sum(calls) == 2  # in the forward pass, and again in the backward pass
    calls.clear()
    model.train()
    model(input_ids=torch.ones(1, 4).long(), labels=torch.ones(1, 4).long()).loss.backward()
    hook.remove()
    assert sum(calls) == 1


def test_packing_trains_on_the_same_tokens(start):
    rows = tiny_models.encoded(24)
    one_by_one = start(rows=rows, batch_size=24, max_steps=1)
    together = start(rows=rows, packing=True, batch_size=24, max_steps=1)
    assert losses(together) == pytest.approx(losses(one_by_one), rel=1e-5)
    for name in ("tokens", "answer_tokens", "rows"):
        assert getattr(together.report, name) == getattr(one_by_one.report, name)
    assert together.report.tokens == rows.report.tokens
    assert_equal(trained(together), trained(one_by_one), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("given", ["conversations", "encoded"])
def test_packing_takes_fewer_steps(start, tokenizer, given):
    from course_utils.encoding import encode

    turn = ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"})
    rows = [Conversation(turn)] * 12
    model = tiny_models.model("llama")  # with the tokenizer's vocabulary
    if given == "encoded":
        rows = encode(rows, tokenizer)
    length = 4 * encode([Conversation(turn)], tokenizer).report.tokens
    run = start(model=model, rows=rows, packing=True, batch_size=1, max_length=length,
                max_steps=None, epochs=1)  # fmt: skip
    assert run.report.steps == 3 and run.report.rows == 12


def test_grouping_by_length_takes_every_row_once(start):
    rows = tiny_models.encoded(24)
    run = start(rows=rows, group_by_length=True, max_steps=None, epochs=1)
    assert run.report.steps == 6 and run.report.tokens == rows.report.tokens
    assert run.report.answer_tokens == rows.report.labelled_tokens


# ------------------------------------------------------------------- checkpoint and resume


@pytest.mark.parametrize("method", METHODS)
def test_resuming_equals_an_uninterrupted_run(start, tmp_path, method):
    fields = {"method": method, "dropout": 0.1, "learning_rate": 5e-3}
    looks = {"validation": tiny_models.encoded(4, seed=1), "evaluate_every": 2}
    whole = start(folder="whole", save_every=3, **fields, **looks)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert training.recipe_of(checkpoint) == whole.recipe
    looked = [pair for pair in whole.report.validation_losses if pair[0] != 3]
    resumed = start(folder="rest", resume=checkpoint, **fields, **looks)
    resumed.report.validation_losses = [
        pair
        for pair in resumed.report.validation_losses
        if pair[0] != 3  # where it went on
    ]
    assert len(looked) == 4
    assert losses(resumed) == losses(whole) and resumed.report.steps == 6
    assert resumed.report.seconds > json.loads((checkpoint / SO_FAR).read_text())["seconds"] > 0
    assert_equal(trained(resumed), trained(whole))
    for figure in ("tokens", "answer_tokens", "validation_losses"):  # of the whole run
        assert getattr(resumed.report, figure) == getattr(whole.report, figure)
    assert resumed.report.began == whole.report.began


def test_interrupting_keeps_a_checkpoint_and_says_how_to_go_on(start, tmp_path):
    whole = start(folder="whole", dropout=0.1)
    panel = Panel(at=2, act=lambda: signal.raise_signal(signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    stopped = start(folder="broken", dropout=0.1, panel=panel)
    assert signal.getsignal(signal.SIGINT) is handler
    assert stopped.report.stopped == "interrupted"
    assert stopped.report.steps == 3  # the step in which the signal came is finished
    checkpoint = training.newest_checkpoint(tmp_path / "broken")
    assert checkpoint.name == "checkpoint-3"
    note = stopped.report.notes[-1]  # before it: why dropout takes the stock layers
    assert panel.messages == [note]
    assert "interrupted after step 3 of 6" in note and checkpoint.as_posix() in note
    assert note in str(stopped.report)
    resumed = start(folder="broken", dropout=0.1, resume=checkpoint)
    assert resumed.report.stopped == "finished"
    assert losses(resumed) == losses(whole)
    assert_equal(trained(resumed), trained(whole))


def test_a_second_interrupt_stops_at_once(start):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    panel, handler = Panel(at=2, act=twice), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        start(panel=panel)
    assert panel.messages == ["stopped by KeyboardInterrupt"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_without_checkpoints_leaves_no_folder(start, tmp_path):
    start(max_steps=1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(CourseError, match="holds no checkpoint"):
        training.newest_checkpoint(tmp_path / "run")


def test_what_cannot_be_resumed_is_said(start, tmp_path):
    with pytest.raises(CourseError, match="nowhere is no checkpoint"):
        start(resume=tmp_path / "nowhere")
    start(save_every=3, max_steps=3, folder="saved")
    with pytest.raises(CourseError, match="another learning_rate, max_steps"):
        start(resume=tmp_path / "saved" / "checkpoint-3", learning_rate=1e-3)
    with pytest.raises(CourseError, match="on other rows, or on these in another order"):
        start(resume=tmp_path / "saved" / "checkpoint-3", max_steps=3, rows=tiny_models.encoded(23))


def cut(file):
    """As where the disk was full."""
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda checkpoint: cut(checkpoint / "adapter_model.safetensors"),
        lambda checkpoint: (checkpoint / "adapter_model.safetensors").unlink(),
        lambda checkpoint: cut(checkpoint / "optimizer.pt"),
        lambda checkpoint: cut(checkpoint / "scheduler.pt"),
        lambda checkpoint: cut(checkpoint / "rng_state.pth"),
        lambda checkpoint: cut(checkpoint / "epoch_random_state.pt"),
        lambda checkpoint: cut(checkpoint / "best.safetensors"),
        lambda checkpoint: (checkpoint / "looks.json").write_text("[]"),
        lambda checkpoint: (checkpoint / "trainer_state.json").write_text("[]"),
    ],
    ids=["weights", "no-weights", "optimizer", "schedule", "random", "epoch", "best", "looks",
         "state"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_named(start, tmp_path, spoil):
    looks = {"validation": tiny_models.encoded(4, seed=1), "evaluate_every": 1, "early_stopping": 9}
    start(save_every=2, folder="saved", **looks)
    checkpoint = tmp_path / "saved" / "checkpoint-4"
    spoil(checkpoint)
    with pytest.raises(CourseError, match="checkpoint-4 .*go on from an earlier") as error:
        start(resume=checkpoint, folder="rest", **looks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt"])
def test_an_optimizer_that_starts_anew_is_said(start, tmp_path, missing):
    start(save_every=2, folder="saved")
    checkpoint = tmp_path / "saved" / "checkpoint-4"
    assert not [n for n in start(resume=checkpoint).report.notes if "start anew" in n]
    (checkpoint / missing).unlink()
    resumed = start(resume=checkpoint, folder="rest")
    assert resumed.report.steps == 6
    (said,) = [note for note in resumed.report.notes if "start anew" in note]
    assert said.startswith("checkpoint-4 has no state of the optimizer")


def test_a_checkpoint_of_another_size_is_named(start, tmp_path):
    start(save_every=2, folder="saved")
    with pytest.raises(CourseError, match="size mismatch .* belongs to another model"):
        start(model=tiny(hidden_size=32), resume=tmp_path / "saved" / "checkpoint-4")


@pytest.mark.parametrize("kept", ['{"began": "2026"}', "[1]", "3", '{"seconds"'])
def test_figures_that_are_not_whole_are_left_out(start, tmp_path, kept):
    start(save_every=2, folder="saved")
    checkpoint = tmp_path / "saved" / "checkpoint-4"
    (checkpoint / SO_FAR).write_text(kept, encoding="utf-8")
    assert training.newest_checkpoint(tmp_path / "saved").name == "checkpoint-6"
    resumed = start(resume=checkpoint, folder="rest")
    assert resumed.report.steps == 6 and resumed.report.stopped == "finished"


# ------------------------------------------------------------------------ stops and errors


def test_a_nan_loss_stops(start):
    model = tiny()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
    panel = Panel()
    with pytest.raises(CourseError, match="loss became nan at step 1: lower the learning rate"):
        start(model=model, panel=panel)
    assert panel.messages == ["stopped by CourseError"]
    assert "forward" not in model.__dict__  # the loss of the course is taken off again


def test_a_loss_that_explodes_stops(start):
    with pytest.raises(CourseError, match="loss became"):
        start(method="full", learning_rate=1e30, max_steps=6, max_grad_norm=1e30)


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        (None, "last update left .* infinite or NaN"),
        (4, "loss became nan at step 1, on held-out rows"),
    ],
)
def test_a_model_that_its_last_update_broke_is_not_finished(start, validation, said):
    """No later step would see it."""
    rows = validation and tiny_models.encoded(validation)
    with pytest.raises(CourseError, match=said):
        start(method="full", learning_rate=1e38, max_steps=1, validation=rows)


def test_a_frozen_adapter_stops(start):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    model = get_peft_model(tiny(), config).requires_grad_(False)
    with pytest.raises(CourseError, match="loss has no gradient: nothing in this model is set"):
        start(model=model)


def test_weights_that_no_gradient_reaches_stop(start):
    """An adapter on a layer that the forward pass does not use, beside one that has no say."""
    model = tiny()
    model.model.layers[0].unused = torch.nn.Linear(64, 64)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["unused"]))
    model.get_base_model().model.embed_tokens.requires_grad_(False)
    with pytest.raises(CourseError, match="loss has no gradient"):
        start(model=model)
    # with checkpointing's hook on the embeddings the loss has a gradient, the adapter still none
    model.enable_input_require_grads()
    with pytest.raises(CourseError, match="No gradient reached any trainable weight"):
        start(model=model)


def test_an_adapter_that_stays_zero_stops(start):
    """A second trainable part takes all of the gradient; the adapter is on an unused layer."""
    model = tiny()
    model.model.layers[0].unused = torch.nn.Linear(64, 64)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["unused"], modules_to_save=["norm"])
    with pytest.raises(CourseError, match="every B matrix of the adapter is still zero"):
        start(model=get_peft_model(model, config))


def test_fp16_on_a_cpu_is_refused(start):
    with pytest.raises(CourseError, match="fp16 training needs a GPU"):
        start(precision="fp16")


def test_rows_that_do_not_fit_are_refused(start):
    rows = tiny_models.encoded(8, longest=30)
    longest = rows.report.longest
    with pytest.raises(CourseError, match=f"up to {longest} tokens and the recipe says max_length"):
        start(rows=rows, max_length=longest - 1)
    with pytest.raises(CourseError, match=f"has {longest} tokens and this model reads at most 16"):
        start(model=tiny("gpt2", n_positions=16), rows=rows)


def test_full_training_of_a_model_in_four_bits_is_refused(start, tiny_folder):
    with pytest.raises(CourseError, match="4 bits cannot be trained in full"):
        start(model=models.load(tiny_folder, quantize=True, on="cpu"), method="full")


# ----------------------------------------------------------------------- learning rate etc.


def test_the_faster_precision_is_chosen_and_said():
    threads = torch.get_num_threads()
    gain = precision._bf16_gain("cpu")
    chosen, why = precision.choose_precision(Recipe(), torch.device("cpu"))
    assert chosen == ("bf16" if gain > 1.1 else "fp32")
    assert why == f"bf16 runs at {gain:.1f}x the speed of fp32 here"
    assert precision.choose_precision(RECIPE, torch.device("cpu"))[0] == "fp32"
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 1), (10, 0), (10, 3), (1000, 50)])
def test_learning_rate_factor(schedule, total, warmup):
    factors = [
        learning_rate_factor(step, total=total, warmup=warmup, schedule=schedule)
        for step in range(total)
    ]
    assert all(0 < factor <= 1 for factor in factors)  # no step is for nothing
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    if total == 1000 and schedule != "constant":
        assert factors[-1] < 0.01 and max(factors) == 1


def test_the_trainer_uses_this_schedule(start):
    run = start(warmup=0.3, max_steps=6)
    rates = [point["learning_rate"] for point in run.report.losses]
    expected = [
        2e-2 * learning_rate_factor(step, total=6, warmup=2, schedule="cosine") for step in range(6)
    ]
    assert rates == pytest.approx(expected)


def test_validation_is_measured_before_between_and_after(start):
    model, held_out, panel = tiny(), tiny_models.encoded(6, seed=9), Panel()
    before = float(
        sum(_loss_sum(model, row) for row in held_out.rows) / held_out.report.labelled_tokens
    )
    run = start(model=model, validation=held_out, evaluate_every=4, panel=panel)
    assert [step for step, _ in run.report.validation_losses] == [0, 4, 6]
    assert run.report.validation_losses[0][1] == pytest.approx(before, rel=1e-4)
    after = sum(_loss_sum(run.model, row) for row in held_out.rows)
    assert run.report.validation_losses[-1][1] == pytest.approx(
        float(after / held_out.report.labelled_tokens), rel=1e-4
    )
    shown = [step for step, figures in panel.updates if "validation_loss" in figures]
    assert shown == [0, 4, 6]


@torch.no_grad()
def _loss_sum(model, row):
    """Brute force: every label's own cross-entropy."""
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
    labels = row["labels"]
    return -sum(logits[i - 1, labels[i]] for i in range(1, len(labels)) if labels[i] >= 0)


def test_evaluation_between_does_not_change_the_training(start):
    held_out = tiny_models.encoded(6, seed=9)
    for method in ("lora", "qlora"):
        plain = start(method=method, dropout=0.1)
        watched = start(method=method, dropout=0.1, validation=held_out, evaluate_every=1)
        assert losses(plain) == losses(watched)


def test_the_model_works_on_after_training(start, tokenizer):
    model = tiny()
    assert model.config.use_cache is True
    run = start(model=model)
    assert model.config.use_cache is True and "forward" not in model.__dict__
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1}
    answer = run.model.generate(input_ids=ids, **options)
    assert torch.equal(answer, run.model.generate(input_ids=ids, use_cache=False, **options))
    again = start(model=run.model)  # a PEFT model is trained on
    assert losses(again)[0] < losses(run)[0]


def test_the_panel_hears_every_step(start):
    panel = Panel()
    start(panel=panel)
    assert panel.total == 6 and panel.messages == ["finished"]
    assert [step for step, figures in panel.updates if "loss" in figures] == [1, 2, 3, 4, 5, 6]
    assert all(figures["tokens_per_second"] > 0 for _, figures in panel.updates)
    assert all(figures["memory_gib"] > 0.05 for _, figures in panel.updates)


def test_the_report_is_whole(start, tmp_path):
    run = start(rows=tiny_models.encoded(24), max_steps=None, epochs=2)
    report = run.report
    assert report.steps == len(report.losses) == 12 and report.rows == 24
    assert report.tokens == 2 * tiny_models.encoded(24).report.tokens
    assert list(report.memory.phases) == ["load", "forward", "backward", "step"]
    assert report.memory.peak_gib < report.memory.limit_gib
    assert all("grad_norm" in point for point in report.losses)
    saved = report.save(tmp_path / "report.json")
    json.loads(saved.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no NaN
    assert load_report(saved) == report
    for part in ("lora on tiny: finished after 12 steps", "trainable", "tokens", "fp32"):
        assert part in str(report)


def test_nothing_of_a_run_stays_behind(start):
    """Neither the model nor the optimizer's states outlive the run's result."""
    run = start(method="full", max_steps=1)
    model = weakref.ref(run.model)
    gc.collect()
    optimizers = [o for o in gc.get_objects() if isinstance(o, torch.optim.Optimizer)]
    assert optimizers == []
    del run
    gc.collect()
    assert model() is None


# ---------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_run_answers_the_same(start, tiny_folder, tokenizer, tmp_path, method):
    model = models.load(tiny_folder, quantize=method == "qlora", on="cpu")
    run = start(model=model, method=method)
    # load() finds the base by the recipe's name
    run.recipe = run.recipe.replace(model=str(tiny_folder))
    folder = run.save(tmp_path / "saved")
    assert not list(folder.glob("*.bin")) and list(folder.glob("*.safetensors"))
    model, same, recipe = training.load(folder)
    assert recipe == run.recipe and len(same) == len(tokenizer)
    assert training.report_of(folder) == run.report
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=ids).logits.float(), run.model(input_ids=ids).logits.float(),
            rtol=1e-4, atol=1e-4,
        )  # fmt: skip


def test_an_adapter_of_the_embedded_model_names_its_home_on_the_hub(start, tmp_path):
    run = start(model=models.load(), max_steps=1)  # from its folder on this machine
    assert run.recipe.model == "smollm2"
    folder, here = run.save(tmp_path / "saved"), str(fetch.embedded_model())
    text = (folder / "adapter_config.json").read_text(encoding="utf-8")
    assert models.HUB_NAMES["smollm2"] in text and here not in text


def test_a_form_with_nothing_filled_in_is_no_model_card(start, tmp_path):
    run, folder = start(max_steps=1), tmp_path / "saved"
    run.save(folder)
    assert not (folder / "README.md").exists()  # PEFT writes one
    (folder / "README.md").write_text("# Mine\n", encoding="utf-8")
    run.save(folder)
    assert (folder / "README.md").read_text(encoding="utf-8") == "# Mine\n"


def test_a_model_that_was_given_is_found_again(start, tiny_folder, tmp_path):
    run = start(model=models.load(tiny_folder, on="cpu"), max_steps=2)
    assert run.recipe.model == str(tiny_folder)
    model, _, _ = training.load(run.save(tmp_path / "saved"))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, run.model(input_ids=ids).logits)


@pytest.mark.parametrize(("first", "second"), [("lora", "full"), ("full", "lora")])
def test_a_folder_that_is_used_again_holds_the_last_run_alone(
    start, tiny_folder, tmp_path, first, second
):
    for method in (first, second):
        base = models.load(tiny_folder, on="cpu")
        run = start(model=base, method=method, max_steps=2, learning_rate=2e-2)
        folder = run.save(tmp_path / "saved")
    model, _, recipe = training.load(folder)
    assert recipe.method == second and isinstance(model, PeftModel) == (second == "lora")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, run.model(input_ids=ids).logits)


def test_an_adapter_is_not_saved_over_its_base(start, tmp_path):
    folder = start(method="full", max_steps=1, learning_rate=1e-4).save(tmp_path / "saved")
    before = (folder / "model.safetensors").read_bytes()
    run = start(model=models.load(folder, on="cpu"), max_steps=1)
    with pytest.raises(CourseError, match="holds the model that this training starts from"):
        run.save(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_model_of_the_hubs_cache_keeps_its_name_there():
    model = tiny()
    assert models.source_of(model) is None
    model.name_or_path = "/home/me/.cache/huggingface/hub/models--me--my--model/snapshots/0a1b"
    assert models.source_of(model) == "me/my--model"


def test_a_run_in_half_precision_opens_on_a_cpu(start, tiny_folder, tmp_path):
    run = start(model=models.load(tiny_folder, on="cpu"), max_steps=1)
    run.recipe = run.recipe.replace(precision="fp16")  # as on an older GPU
    run.report.precision = "fp16 (this GPU has no bf16)"
    folder = run.save(tmp_path / "saved")
    assert training.computed_in(folder) == torch.float16
    if not torch.cuda.is_available():
        assert next(training.load(folder)[0].parameters()).dtype == torch.float32


def test_the_newest_runs_checkpoint_is_taken(start, tmp_path):
    start(folder="same", save_every=2)  # leaves 4 and 6
    newer = start(folder="same", save_every=2, max_steps=2, learning_rate=1e-3)
    assert any("checkpoints of an earlier run" in note for note in newer.report.notes)
    names = {path.name for path in (tmp_path / "same").glob("checkpoint-*")}
    assert names == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}  # of 2, 4, 6: two are kept
    (tmp_path / "same" / "checkpoint-best").mkdir()
    found = training.newest_checkpoint(tmp_path / "same")
    assert found.name == "checkpoint-2" and training.recipe_of(found).learning_rate == 1e-3


def test_a_checkpoint_that_was_not_written_to_its_end_is_named(start, tmp_path):
    start(folder="whole", save_every=3)
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    (checkpoint / "trainer_state.json").write_text('{"epoch": 0.', encoding="utf-8")
    with pytest.raises(CourseError, match="checkpoint-3 was not written to its end"):
        start(folder="rest", resume=checkpoint)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_base_that_an_earlier_run_adapted_is_refused(start, method):
    base = tiny()
    start(model=base, max_steps=1)
    with pytest.raises(CourseError, match="carries the adapter of an earlier run"):
        start(model=base, method=method, max_steps=1)


def test_a_given_model_must_be_what_the_recipe_says(start, tiny_folder):
    with pytest.raises(CourseError, match="'qlora'.* not in 4 bits.*quantize=True"):
        start(model=tiny(), method="qlora")
    packed = models.load(tiny_folder, quantize=True, on="cpu")
    with pytest.raises(CourseError, match="'lora'.* in 4 bits.*quantize=False"):
        start(model=packed, method="lora")


def test_a_run_does_not_write_over_its_base_or_a_file(start, tiny_folder, tmp_path):
    with pytest.raises(CourseError, match="holds the model that this training starts from"):
        training.run(RECIPE.replace(model=str(tiny_folder)), [], output_dir=tiny_folder)
    (tmp_path / "taken").write_text("", encoding="utf-8")
    with pytest.raises(CourseError, match="taken is a file"):
        start(folder="taken")


def test_held_out_rows_must_fit_the_model_too(start):
    long = tiny_models.encoded(2, longest=30)
    with pytest.raises(CourseError, match="reads at most 8: set max_length=8"):
        start(model=tiny(max_position_embeddings=8), validation=long,
              rows=tiny_models.encoded(8, longest=8))  # fmt: skip


def test_a_folder_that_no_run_saved_is_refused(tmp_path):
    with pytest.raises(CourseError, match=r"recipe\.yaml is missing"):
        training.load(tmp_path)


# --------------------------------------------------------------------------- the real model


@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_model_learns(tokenizer, method, tmp_path):
    from course_utils import sets

    rows = sets.load("instruction").only("ticket").train[:16]
    fields = {"full": {"learning_rate": 1e-4}, "lora": {}, "qlora": {}}[method]
    recipe = Recipe(method=method, batch_size=8, max_steps=4, max_length=128, **fields)
    run = training.run(recipe, rows, tokenizer=tokenizer, output_dir=tmp_path / "run")
    assert losses(run)[-1] < 0.8 * losses(run)[0]
    total = 134_515_008  # of SmolLM2-135M
    assert run.report.total_parameters == total + (0 if method == "full" else 4_884_480)
    if method == "qlora":
        packed = [p for p in run.model.parameters() if hasattr(p, "quant_state")]
        assert sum(p.nbytes for p in packed) < 0.06 * GIB  # 106 million weights of half a byte
    [answer] = evaluation.generate(run.model, tokenizer, ["Hello"], max_new_tokens=3)
    assert isinstance(answer, str) and math.isfinite(losses(run)[-1])


# ---------------------------------------------------------------- the fast layers in a run


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("options", [{}, {"checkpointing": True}, {"packing": True}], ids=str)
def test_the_fast_layers_train_as_the_stock_ones(start, method, options):
    stock = start(method=method, fast=False, **options)
    ours = start(method=method, folder="fast", **options)
    assert not ours.report.notes
    torch.testing.assert_close(losses(ours), losses(stock), rtol=1e-4, atol=1e-5)
    assert_equal(trained(ours), trained(stock), rtol=1e-2, atol=1e-3)


def test_a_run_says_why_its_layers_are_stock_ones(start):
    dropped = start(dropout=0.1)
    assert any("adapter dropout is on" in note for note in dropped.report.notes)
    other = start(model=tiny("gpt2"))
    assert any("not built like Llama" in note for note in other.report.notes)
    assert not start(method="full", learning_rate=1e-3).report.notes  # there are no others there


def test_an_fp8_base_trains_and_comes_back(start):
    before = tiny()
    run = start(base_precision="fp8")
    said = " ".join(run.report.notes)
    assert "rounded for" in said
    assert "no fp8 units here" in said or torch.cuda.is_available()
    assert losses(run)[-1] < losses(run)[0]
    assert_equal(frozen(run.model), frozen(before))
    with pytest.raises(CourseError, match="needs the fast layers"):
        start(base_precision="fp8", model=tiny("gpt2"))


def test_gradients_in_fp8_train_beside_bf16(start):
    wide, short = start(), start(gradient_precision="fp8")
    assert "no fp8 units here" in " ".join(short.report.notes) or torch.cuda.is_available()
    assert losses(short)[0] == losses(wide)[0] and losses(short)[-1] != losses(wide)[-1]
    assert losses(short)[-1] == pytest.approx(losses(wide)[-1], rel=0.1)
    stock = start(gradient_precision="fp8", model=tiny("gpt2"))  # which has none to round
    assert any("gradients not in fp8: gpt2" in note for note in stock.report.notes)


def test_what_building_the_fast_layers_takes_is_reported(start, monkeypatch):
    seen, mark, layers = [], MemoryMeter.mark, fast.fast_layers

    def marked(self, phase):
        seen.append(phase)
        mark(self, phase)

    @contextlib.contextmanager
    def built(*arguments, **options):
        seen.append("build")
        with layers(*arguments, **options) as made:
            yield made

    monkeypatch.setattr(MemoryMeter, "mark", marked)
    monkeypatch.setattr(fast, "fast_layers", built)
    start(max_steps=1)
    at = seen.index("build")
    assert seen[at - 1 : at + 2] == ["load", "build", None]


def test_packed_sequences_may_be_longer_than_rows(start):
    run = start(packing=True, max_length=30, pack_length=128, max_steps=2)
    assert run.report.tokens > 2 * 4 * 60  # rows have 30 tokens at most


@pytest.mark.parametrize(("held", "precision"), [("fp32", "bf16"), ("bf16", "fp32")])
def test_a_model_loaded_in_another_precision_trains_in_stock_layers(start, held, precision):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[held]
    run = start(model=tiny().to(dtype), precision=precision, max_steps=16)
    assert any("the model is loaded in" in note for note in run.report.notes)
    assert losses(run)[-1] < losses(run)[0]


def test_a_folder_that_cannot_be_written_is_said_before_training(start, monkeypatch):
    def refused(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(training.tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(training, "prepare", None)  # nothing is trained
    with pytest.raises(CourseError, match="cannot be written to .Permission denied.: give another"):
        start(folder="there/and/further")


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "model-1.safetensors"])
def test_a_model_of_somebody_else_is_not_written_over(start, tmp_path, name):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / name).write_text("{}")
    run = start(max_steps=1)
    for write in (lambda: start(folder="theirs"), lambda: run.save(tmp_path / "theirs")):
        with pytest.raises(CourseError, match="holds a model that no run of this course saved"):
            write()
    assert (tmp_path / "theirs" / name).read_text() == "{}"
