"""Recovery from memory that ran out: real errors, raised where they would be, in real runs."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import tiny_models
import torch
from transformers import TrainerCallback

from course_utils import CourseError, ModelTrainer, budget, training
from course_utils.oom import RanOutOfMemory, is_out_of_memory
from course_utils.recipes import Recipe

STEPS = 6  # 16 rows in updates of 8: two an epoch


class SmallCard(TrainerCallback):
    """From step `since` on, a forward pass of more than `rows` rows finds no memory.

    microbatch: which of a step's passes fails.  fits(model): may pass in spite of its rows.
    """

    def __init__(self, rows: int, since: int = 0, microbatch: int = 0, fits=lambda model: False):
        self.rows, self.since, self.microbatch, self.fits = rows, since, microbatch, fits
        self.refs: list[weakref.ref] = []  # each attempt's model, and a tensor of its graph
        self.alive: list[int] = []  # how many of them the next attempt still found
        self.seen: list[tuple[int, int]] = []  # (finished steps, rows) of each forward pass

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        gc.collect()
        self.alive.append(sum(ref() is not None for ref in self.refs))
        self.refs.append(weakref.ref(model))
        done: dict[int, int] = {}

        def hook(model, args, inputs):
            if not model.training or "labels" not in inputs:
                return
            step, rows = state.global_step, inputs["input_ids"].shape[0]
            if "row_starts" in inputs:  # rows of several lengths stand behind each other
                rows = len(inputs["row_starts"]) - 1
            late = step >= self.since and done.get(step, 0) >= self.microbatch
            done[step] = done.get(step, 0) + 1
            self.seen.append((step, rows))
            if late and rows > self.rows and not self.fits(model):
                kept = torch.ones(1000, requires_grad=True) * 2  # stays alive with the error
                self.refs.append(weakref.ref(kept))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        model.register_forward_pre_hook(hook, with_kwargs=True)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """So small a model gains nothing by two, and on a busy machine they wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tokenizer):
    """Of a small model on disk, in updates of two times four rows."""
    folder = tmp_path_factory.mktemp("few")
    tiny_models.model("llama", vocab_size=tiny_models.FEW).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Recipe(
        model=str(folder), rank=4, learning_rate=1e-2, batch_size=4, gradient_accumulation=2,
        epochs=3, precision="fp32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return tiny_models.encoded(16)


@pytest.fixture(scope="module")
def whole(recipe, rows, tmp_path_factory):
    """The uninterrupted run in micro-batches of 2."""
    small = recipe.replace(batch_size=2, gradient_accumulation=4)
    return training.run(small, rows, rows, output_dir=tmp_path_factory.mktemp("whole"))


def _losses(run) -> list[float]:
    return [point["loss"] for point in run.report.losses]


@pytest.mark.parametrize("since", [0, 1, 3])  # at once, in the first epoch, in the second
def test_no_step_is_lost_or_repeated(recipe, rows, whole, tmp_path, since):
    card = SmallCard(2, since, microbatch=1)  # the second half of an accumulation fails
    folder = tmp_path / "run"
    run = budget.run_within(recipe, rows, rows, output_dir=folder, callbacks=[card])
    assert (run.recipe.batch_size, run.recipe.gradient_accumulation) == (2, 4)
    assert [point["step"] for point in run.report.losses] == list(range(1, STEPS + 1))
    assert _losses(run) == pytest.approx(_losses(whole), abs=1e-4)
    ours = dict(run.model.named_parameters())
    for name, weight in whole.model.named_parameters():
        assert torch.allclose(weight, ours[name], atol=1e-4), name
    attempts = [(step, 4) for step in range(since + 1) for _ in range(2)]
    assert card.seen == attempts + [(s, 2) for s in range(since, STEPS) for _ in range(4)]
    assert card.alive == [0, 0]  # model and graph were freed before the second attempt
    for figure in ("tokens", "answer_tokens", "steps", "stopped"):
        assert getattr(run.report, figure) == getattr(whole.report, figure), figure
    measured = [step for step, _ in run.report.validation_losses]
    assert measured == sorted({0, since, STEPS})  # a run that is resumed measures first
    (note,) = run.report.notes
    assert f"after step {since} with batch_size=4" in note and "batch_size=2" in note
    assert not folder.exists()  # its checkpoint was for the recovery alone


def test_by_hand_it_goes_on_from_the_checkpoint(recipe, rows, whole, tmp_path):
    with pytest.raises(RanOutOfMemory, match="after step 3, with batch_size=4") as caught:
        training.run(recipe, rows, output_dir=tmp_path, callbacks=[SmallCard(2, 3)])
    checkpoint = caught.value.checkpoint
    assert checkpoint == tmp_path / "checkpoint-3" and str(checkpoint) in str(caught.value)
    assert isinstance(caught.value, CourseError) and isinstance(
        caught.value, torch.OutOfMemoryError
    )
    small = recipe.replace(batch_size=1, gradient_accumulation=8)
    run = training.run(small, rows, resume=checkpoint)
    assert _losses(run) == pytest.approx(_losses(whole), abs=1e-4)
    with pytest.raises(CourseError, match="another batch_size"):  # other rows in each update
        training.run(recipe.replace(batch_size=2), rows, resume=checkpoint)


def test_the_checkpoint_that_was_given_stays_as_it_is(recipe, rows, whole, tmp_path):
    with pytest.raises(RanOutOfMemory):
        training.run(recipe, rows, output_dir=tmp_path, callbacks=[SmallCard(2, 3)])
    given = tmp_path / "checkpoint-3"
    before = {path.name: path.read_bytes() for path in given.iterdir()}
    card = SmallCard(2, since=3)  # at once, before anything new is done
    run = budget.run_within(
        recipe, rows, output_dir=tmp_path / "on", resume=given, callbacks=[card]
    )
    assert run.recipe.batch_size == 2 and _losses(run) == pytest.approx(_losses(whole), abs=1e-4)
    assert {path.name: path.read_bytes() for path in given.iterdir()} == before
    assert run.report.tokens == whole.report.tokens  # those before the checkpoint count too


@pytest.mark.parametrize("allowed", [True, False])
def test_the_last_resort_is_a_base_in_4_bits(recipe, rows, whole, tmp_path, allowed):
    def in_4_bits(model):
        return any(hasattr(p, "quant_state") for p in model.parameters())

    card = SmallCard(0, since=2, fits=in_4_bits)

    def train():
        return budget.run_within(
            recipe, rows, allow_qlora=allowed, output_dir=tmp_path, callbacks=[card]
        )

    if not allowed:
        with pytest.raises(RanOutOfMemory, match="after step 2, with batch_size=1"):
            train()
        assert training.recipe_of(tmp_path / "checkpoint-2").checkpointing is True
        return
    run = train()
    assert run.recipe == recipe.replace(
        method="qlora", batch_size=1, gradient_accumulation=8, checkpointing=True
    )
    assert _losses(run)[:2] == pytest.approx(_losses(whole)[:2], abs=1e-4)
    assert _losses(run)[2:] == pytest.approx(_losses(whole)[2:], abs=0.5)  # 4 bits differ
    assert _losses(run)[2:] != pytest.approx(_losses(whole)[2:], abs=1e-4)
    assert [note.rpartition("with ")[2] for note in run.report.notes if "ran out" in note] == [
        "batch_size=2, gradient_accumulation=4",
        "batch_size=1, gradient_accumulation=8",
        "checkpointing=True",
        "method='qlora'",
    ]


def test_full_fine_tuning_recovers_as_well(recipe, rows, tmp_path):
    full = recipe.replace(method="full", epochs=1, learning_rate=1e-3)
    small = full.replace(batch_size=2, gradient_accumulation=4)
    whole = training.run(small, rows, output_dir=tmp_path / "whole")
    run = budget.run_within(full, rows, output_dir=tmp_path / "r", callbacks=[SmallCard(2, 1)])
    assert _losses(run) == pytest.approx(_losses(whole), abs=1e-4) and len(_losses(run)) == 2


def test_other_errors_are_not_taken_for_memory(recipe, rows, tmp_path):
    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        budget.run_within(recipe, rows, output_dir=tmp_path, callbacks=[Broken()])


def test_what_torch_says_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56)
    assert is_out_of_memory(caught.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("index out of range"))


def test_a_model_without_room_is_named(tmp_path, rows, tokenizer):
    config = tiny_models.config("llama", vocab_size=2**46).to_dict()
    path = tmp_path / "huge.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(RanOutOfMemory, match="while the model was loaded"):
        budget.run_within(Recipe(model=str(path)), rows, tokenizer=tokenizer)


def test_no_room_for_the_fast_layers_is_as_none_for_the_model(monkeypatch, tmp_path, tokenizer):
    """Rounding weights to fp8 takes memory before the first step: smaller batches do not help."""

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("course_utils.fast.fast_layers", full)
    with pytest.raises(RanOutOfMemory, match="while the model was loaded") as found:
        training.run(
            Recipe(base_precision="fp8", precision="fp32"), tiny_models.encoded(4),
            model=tiny_models.model(), tokenizer=tokenizer, output_dir=tmp_path,
        )  # fmt: skip
    assert found.value.report is None and found.value.checkpoint is None


# ------------------------------------------------------------------------- steps down


def test_each_step_down_keeps_the_rows_of_an_update():
    recipe, seen = Recipe(batch_size=12, gradient_accumulation=1), []
    while recipe is not None:
        assert recipe.effective_batch == 12
        seen.append((recipe.method, recipe.batch_size, recipe.checkpointing, recipe.offload))
        recipe = budget.smaller(recipe, allow_qlora=True)
    assert seen == [
        ("lora", 12, False, False),
        ("lora", 6, False, False),
        ("lora", 3, False, False),
        ("lora", 1, False, False),
        ("lora", 1, True, True),
        ("qlora", 1, True, True),
    ]


def test_offload_is_for_fast_layers_on_a_gpu():
    one = Recipe(batch_size=1)
    assert not budget.smaller(one, device="cpu").offload
    assert not budget.smaller(one.replace(dropout=0.1)).offload
    assert not budget.smaller(one.replace(method="full")).offload
    assert budget.smaller(one.replace(checkpointing=True)).offload
    assert budget.smaller(one.replace(checkpointing=4)).checkpointing is True


def test_smaller_batches_do_not_help_a_model_without_room():
    recipe = Recipe(batch_size=8)
    assert budget.smaller(recipe, loading=True) is None
    helped = budget.smaller(recipe, loading=True, allow_qlora=True)
    assert (helped.method, helped.batch_size) == ("qlora", 8)


# ---------------------------------------------------------------------------- ModelTrainer

ROWS = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "three", "four")]


def test_the_guides_class_keeps_to_a_budget(small_model, tmp_path):
    made = ModelTrainer(str(small_model), memory_budget_gib=6)
    made.train_lora(ROWS, dropout=0.0, max_steps=1, precision="fp32", output_dir=tmp_path)
    assert made.recipe.effective_batch == 16 and made.recipe.method == "lora"
    assert "chosen for 6 GiB" in made.report.notes[0] and "cannot be capped" in made.report.notes[0]
    assert training.recipe_of(tmp_path) == made.recipe
    kept = ModelTrainer(str(small_model), memory_budget_gib=6)
    kept.train_lora(ROWS, checkpointing=2, max_steps=1, precision="fp32", output_dir=tmp_path)
    assert kept.recipe.checkpointing == 2


def test_a_budget_that_nothing_fits_says_what_would(small_model, tmp_path):
    with pytest.raises(CourseError, match=r"0\.1 GiB are too little .* takes at least lora"):
        ModelTrainer(str(small_model), memory_budget_gib=0.1).train_lora(ROWS, output_dir=tmp_path)
