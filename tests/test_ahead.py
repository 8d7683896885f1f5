"""Batches that bring their counts along, and losses that are read late."""

import pytest
import tiny_models
import torch
from test_fast import FP32, adapted
from test_loss import assert_same, loss_and_gradients

from course_utils import fast, loss, models, training
from course_utils.ahead import CountedBatches, LateLog, without_walks
from course_utils.encoding import IGNORE, Collator, pack
from course_utils.recipes import Recipe

UNEVEN = tiny_models.rows(5)
EVEN = [{name: values[-4:] for name, values in row.items()} for row in UNEVEN]


def model_inputs(batch):
    return {name: value for name, value in batch.items() if name != "counts"}


def counted(rows):
    tokens = sum(len(row["input_ids"]) for row in rows)
    return tokens, sum(label != IGNORE for row in rows for label in row["labels"])


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("rows", [UNEVEN, EVEN, pack(UNEVEN, 64), pack(UNEVEN, 40)])
def test_counts_are_those_of_the_rows(rows, by_rows):
    assert CountedBatches(0, by_rows)(rows)["counts"] == counted(rows)


@pytest.mark.parametrize("rows", [UNEVEN, EVEN, pack(UNEVEN, 64)])
def test_without_rows_the_tensors_are_the_collators(rows):
    plain, made = Collator(0)(rows), CountedBatches(0)(rows)
    assert all(torch.equal(made[name], value) for name, value in plain.items())
    assert set(made) - set(plain) == {"counts", "label_positions"}


@pytest.mark.parametrize("rows", [UNEVEN, EVEN, pack(UNEVEN, 64), pack(UNEVEN, 40)])
def test_by_rows_loss_and_gradients_are_the_same(rows):
    model = adapted()
    with loss.answers_only(model), fast.fast_layers(model, **FP32):
        plain = loss_and_gradients(model, Collator(0)(rows))
        assert_same(plain, loss_and_gradients(model, model_inputs(CountedBatches(0, True)(rows))))


def test_by_rows_nothing_is_padded():
    batch = CountedBatches(0, by_rows=True)(UNEVEN)
    assert batch["input_ids"].shape == (1, counted(UNEVEN)[0])
    assert batch["longest_row"] == max(len(row["input_ids"]) for row in UNEVEN)
    assert batch["row_starts"].diff().tolist() == [len(row["input_ids"]) for row in UNEVEN]


def test_label_positions_save_the_search(monkeypatch):
    model, batch = adapted(), model_inputs(CountedBatches(0)(UNEVEN))
    with loss.answers_only(model):
        expected = loss_and_gradients(model, Collator(0)(UNEVEN))
        monkeypatch.setattr(torch.Tensor, "nonzero", None)
        assert_same(expected, loss_and_gradients(model, batch))


def test_late_log_keeps_the_order_and_logs_each_step_once():
    said = []
    late = LateLog(lambda step, epoch, figures: said.append((step, epoch, figures)))
    late.note(1, 0.5, torch.tensor(2.0), torch.tensor(3.0), 0.1)
    late.note(1, 0.5, torch.tensor(0.0), torch.tensor(3.0), 0.1)  # as at the end of an epoch
    late.note(2, 1.0, torch.tensor(1.5), None, None)
    assert said == [
        (1, 0.5, {"loss": 2.0, "grad_norm": 3.0, "learning_rate": 0.1}), (2, 1.0, {"loss": 1.5})
    ]  # fmt: skip


def test_every_step_of_a_run_is_in_its_report(tmp_path):
    recipe = Recipe(max_steps=5, batch_size=2, gradient_accumulation=2, precision="fp32")
    run = training.run(
        recipe, tiny_models.encoded(12), model=tiny_models.model(),
        tokenizer=models.load_tokenizer(), output_dir=tmp_path,
    )  # fmt: skip
    assert [point["step"] for point in run.report.losses] == [1, 2, 3, 4, 5]
    assert all({"loss", "grad_norm", "learning_rate"} <= set(p) for p in run.report.losses)


def test_walks_are_left_out_and_the_model_ends_as_it_was():
    model = adapted()
    with without_walks(model) as trained:
        assert trained == [p for p in model.parameters() if p.requires_grad]
        model.eval()
        assert not any(module.training for module in model.modules())
        model.train()
        assert all(module.training for module in model.modules())
        trained[0].grad = torch.ones_like(trained[0])
        model.zero_grad()
        assert trained[0].grad is None
        layer = next(iter(model.children()))
        layer.training = False
        model.train()  # in that mode already: the layer's own choice stays
        assert not layer.training
    assert "train" not in vars(model) and "zero_grad" not in vars(model)


def test_a_model_in_evaluation_mode_is_trained_in_training_mode():
    """A wrapper says `training` of itself while the layers inside it are loaded for evaluation."""
    model = adapted()
    model.eval()
    model.training = True
    with without_walks(model):
        assert all(module.training for module in model.modules())
