"""The loss on answers alone: the same value and gradients as the models' own loss."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertLMHeadModel, BertModel

from course_utils import loss, models
from course_utils.errors import CourseError

KINDS = ["llama", "untied", "gpt2", "gpt_neox", "phi3", "gemma2", "cohere", "granite"]
IGNORE = loss.IGNORE
VOCABULARY = tiny_models.FEW


def tiny(kind: str):
    """A small model with a small vocabulary."""
    return tiny_models.model(kind, vocab_size=VOCABULARY)


def batch(rows: int = 3, length: int = 12, seed: int = 0) -> dict[str, torch.Tensor]:
    """Padded rows of different length, about half of each labelled."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = (torch.arange(length) < length - 2 * torch.arange(rows)[:, None]).long()
    labels = torch.where(torch.rand(rows, length, generator=generator) < 0.5, ids, IGNORE)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.where(mask.bool(), labels, IGNORE),
    }


def loss_and_gradients(model, inputs):
    model.zero_grad()
    value = model(**inputs).loss
    value.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return value.detach(), grads


def with_adapter(model):
    torch.manual_seed(1)
    layers = list(models.linear_layers(model))
    peft = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules=layers, init_lora_weights=False)
    )
    return peft.eval()


def assert_same(one, other):
    (value, grads), (value_too, grads_too) = one, other
    torch.testing.assert_close(value, value_too, rtol=1e-5, atol=1e-6)
    assert grads.keys() == grads_too.keys() and grads
    for name in grads:
        torch.testing.assert_close(grads[name], grads_too[name], rtol=1e-3, atol=2e-5, msg=name)


# --------------------------------------------------------------------- value and gradients


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "peft"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_models_own_loss(kind, adapter):
    model = tiny(kind)
    model = with_adapter(model) if adapter else model
    plain = loss_and_gradients(model, batch())
    with loss.answers_only(model):
        assert model(**batch()).logits is None  # ours it is: no logits of all positions are made
        ours = loss_and_gradients(model, batch())
    assert_same(plain, ours)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_chunks_change_nothing(kind, monkeypatch):
    model = tiny(kind)
    with loss.answers_only(model):
        whole = loss_and_gradients(model, batch())
        # 4 bytes a logit: two answer tokens a chunk, so the 15 or so labels make several
        monkeypatch.setattr(loss, "CHUNK_BYTES", 2 * 4 * VOCABULARY)
        heads = []
        head = models.output_layer(model)
        hook = head.register_forward_hook(lambda module, inputs, out: heads.append(len(out)))
        chunked = loss_and_gradients(model, batch())
        hook.remove()
    labels = int((batch()["labels"][:, 1:] != IGNORE).sum())
    forward = (labels + 1) // 2
    assert max(heads) == 2 and len(heads) == 2 * forward  # each once more in the backward pass
    assert_same(whole, chunked)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_divides_by_the_whole_accumulated_batch(kind):
    model = tiny(kind)
    inputs = {**batch(), "num_items_in_batch": torch.tensor(50)}
    plain = loss_and_gradients(model, inputs)
    with loss.answers_only(model):
        ours = loss_and_gradients(model, inputs)
    labels = int((inputs["labels"][:, 1:] != IGNORE).sum())
    mean = model(**batch()).loss.detach()
    torch.testing.assert_close(plain[0], mean * labels / 50)
    assert_same(plain, ours)


def test_positions_without_a_label_make_no_logits():
    model, inputs, seen = tiny("llama"), batch(), []
    hook = models.output_layer(model).register_forward_hook(
        lambda module, args, out: seen.append(out.shape[0])
    )
    with loss.answers_only(model):
        seen.clear()  # the check on entry makes logits too
        model(**inputs)
    hook.remove()
    assert seen == [int((inputs["labels"][:, 1:] != IGNORE).sum())]


def test_label_of_the_first_token_counts_for_nothing():
    model, inputs = tiny("llama"), batch()
    changed = {**inputs, "labels": inputs["labels"].clone()}
    inputs["labels"][:, 0], changed["labels"][:, 0] = IGNORE, 17
    with loss.answers_only(model):
        assert torch.equal(model(**inputs).loss, model(**changed).loss)


# --------------------------------------------------------------------------- the with-block


def test_forward_is_restored_and_blocks_nest():
    model = tiny("llama")
    assert "forward" not in model.__dict__
    with loss.answers_only(model):
        outer = model.forward
        with loss.answers_only(model):
            inner = loss_and_gradients(model, batch())
        assert model.forward == outer
        assert model(**batch()).logits is None
    assert "forward" not in model.__dict__
    assert model(**batch()).logits is not None
    assert_same(loss_and_gradients(model, batch()), inner)


def test_forward_is_restored_after_an_error():
    model = tiny("llama")
    with pytest.raises(RuntimeError, match="stop here"), loss.answers_only(model):
        raise RuntimeError("stop here")
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "peft"])
def test_generation_and_logits_are_untouched(adapter):
    model = tiny("llama")
    model = with_adapter(model) if adapter else model
    prompt = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3).long()}
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    before, logits = model.generate(**prompt, **options), model(**prompt).logits
    with loss.answers_only(model):
        assert torch.equal(model.generate(**prompt, **options), before)
        assert torch.equal(model(**prompt).logits, logits)


def test_training_mode_survives_the_check_on_entry():
    model = tiny("llama").train()
    with loss.answers_only(model):
        assert model.training and model.model.training


def test_a_model_with_logits_of_its_own_kind_keeps_its_own_loss():
    """BERT transforms the states before its output layer, which our shortcut would leave out."""
    torch.manual_seed(0)
    bert = BertLMHeadModel(
        BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, is_decoder=True, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    inputs = {"input_ids": torch.arange(8)[None], "labels": torch.arange(8)[None]}
    plain = loss_and_gradients(bert, inputs)
    with loss.answers_only(bert):
        assert_same(plain, loss_and_gradients(bert, inputs))


def test_a_model_without_an_output_layer_is_refused():
    bert = BertModel(BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1,
                                num_attention_heads=1, intermediate_size=8))  # fmt: skip
    with (
        pytest.raises(CourseError, match="BertModel is no causal language model"),
        loss.answers_only(bert),
    ):
        pass


# ------------------------------------------------------------------------------- mean_loss


def test_mean_loss_weighs_every_token_the_same():
    model = tiny("llama").train()
    pieces = [batch(rows=1, length=20, seed=1), batch(rows=3, length=6, seed=2)]
    total = count = 0.0
    for inputs in pieces:
        labels = int((inputs["labels"][:, 1:] != IGNORE).sum())
        total += float(model(**inputs).loss) * labels
        count += labels
    by_batch = sum(float(model(**inputs).loss) for inputs in pieces) / 2
    value = loss.mean_loss(model, pieces)
    assert value == pytest.approx(total / count, rel=1e-5)
    assert abs(value - by_batch) > 1e-3  # the mean of means is another number
    assert model.training  # as it was


def test_mean_loss_passes_over_batches_without_a_label():
    model, one = tiny("llama"), batch()
    none = {**batch(seed=3), "labels": torch.full_like(batch()["labels"], IGNORE)}
    assert loss.mean_loss(model, [one, none]) == pytest.approx(loss.mean_loss(model, [one]))
    with pytest.raises(CourseError, match="no labelled token"):
        loss.mean_loss(model, [none])


def test_labels_that_are_not_shifted_show_in_no_first_loss(base, tokenizer):
    """As chapter 1 says: a fresh model starts no lower for it, a pretrained one near ln(V)."""
    ids = tokenizer("The cat sat on the mat, and the dog lay down beside it.")["input_ids"]
    few = [token % tiny_models.FEW for token in ids]
    fresh = tiny_models.model("untied", vocab_size=tiny_models.FEW)
    at = {}
    with torch.no_grad():
        for name, model, tokens in (("fresh", fresh, few), ("tuned", base, ids)):
            row = torch.tensor([tokens])
            logits = model(input_ids=row).logits[0].float()
            at[name] = F.cross_entropy(logits, row[0]).item()
            at[f"{name}, shifted"] = F.cross_entropy(logits[:-1], row[0, 1:]).item()
    assert at["fresh"] > math.log(tiny_models.FEW) - 0.5
    assert at["tuned"] > 0.8 * math.log(len(tokenizer)) > 2 * at["tuned, shifted"]
