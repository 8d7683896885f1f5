"""Loading by name, what is refused, target modules, and 4-bit layers that stay trainable."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import tiny_models
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BitsAndBytesConfig,
    ViTConfig,
)

from course_utils import models, training
from course_utils.errors import CourseError
from course_utils.recipes import Recipe


def tiny(kind: str = "llama", **changes):
    return tiny_models.model(kind, vocab_size=tiny_models.FEW, **changes)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A sound model folder."""
    folder = tmp_path_factory.mktemp("model")
    # widths of multiples of 64, which bitsandbytes' repacking for inference needs
    tiny("untied", num_hidden_layers=4, intermediate_size=128).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "copy")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


# --------------------------------------------------------------------------------- loading


def test_a_folder_is_loaded_as_it_was_saved(saved):
    model = models.load(saved, on="cpu")
    stored = load_file(saved / "model.safetensors")
    found = model.state_dict()
    assert found.keys() == stored.keys() and not model.training
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    assert models.load(str(saved), on="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_config_gives_random_weights_by_seed(tmp_path):
    config = tiny_models.config("llama", vocab_size=tiny_models.FEW)
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    state = torch.get_rng_state()
    one, same, other = (models.load(path, on="cpu", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)  # the caller's chance is left alone
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_embedded_model_is_what_it_says(base, tokenizer):
    assert base.config.model_type == "llama" and base.num_parameters() == 134_515_008
    assert len(tokenizer) == base.config.vocab_size and tokenizer.chat_template
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"


def test_a_tokenizer_always_has_a_padding_token(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields.pop("pad_token")
    path.write_text(json.dumps(fields), encoding="utf-8")
    assert models.load_tokenizer(tmp_path).pad_token == "<|im_end|>"


# -------------------------------------------------------------------------------- refusals


def test_pickled_weights_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CourseError, match=r"pickled \.bin files are refused"):
        models.load(folder)


@pytest.mark.parametrize("model_type", ["llama", "mine"])
def test_code_of_the_models_own_is_never_run(folder, tmp_path, model_type):
    trace = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')", encoding="utf-8")
    own = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    edit_config(folder, auto_map=own, model_type=model_type)
    if model_type == "mine":
        with pytest.raises(CourseError, match="Python code of its own, which this course never"):
            models.load(folder)
    else:  # transformers knows this one without the code
        assert models.load(folder, on="cpu").config.model_type == "llama"
    assert not trace.exists()


def test_missing_weights_are_not_made_up(folder):
    path = folder / "model.safetensors"
    weights = {n: w for n, w in load_file(path).items() if "layers.1." not in n}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CourseError, match=r"lacks 9 weights of a LlamaForCausalLM.*layers\.1\."):
        models.load(folder)


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    "spoil",
    [
        _cut,
        lambda folder: edit_config(folder, hidden_size=32),
        lambda folder: edit_config(folder, hidden_size="many"),
        lambda folder: edit_config(folder, model_type="nonesuch"),
        lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
        lambda folder: (folder / "config.json").unlink(),
    ],
    ids=["cut-short", "other-shape", "not-a-number", "unknown-kind", "bad-json", "no-config"],
)
def test_a_spoilt_folder_is_one_sentence(folder, spoil):
    spoil(folder)
    with pytest.raises(CourseError, match="holds no model that can be loaded safely") as error:
        models.load(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"model_type": "nonesuch"}', '{"model_type": "llama", "vocab_size": "x"}',
     '{"model_type": "llama", "hidden_size": 65, "num_attention_heads": 4}'],
)  # fmt: skip
def test_a_bad_config_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match="is no readable model config") as error:
        models.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_other_things_that_cannot_be_loaded(tmp_path):
    with pytest.raises(CourseError, match="There is no model folder ./nowhere"):
        models.load("./nowhere")
    with pytest.raises(CourseError, match="There is no model folder ./nowhere"):
        models.load_or_embedded("./nowhere")  # the embedded one stands in for Hub models alone
    with pytest.raises(CourseError, match="is no readable model config"):
        models.load(tmp_path / "nowhere.json")
    with pytest.raises(CourseError, match="no causal language model for a ViTConfig"):
        models.load(ViTConfig())
    with pytest.raises(CourseError, match="Random weights cannot be loaded in 4 bits"):
        models.load(tiny_models.config("llama"), quantize=True)
    if not torch.cuda.is_available():
        with pytest.raises(CourseError, match="no CUDA GPU here"):
            models.load(tiny_models.config("llama"), on="cuda")


def test_a_slip_in_a_path_is_no_name_of_the_hub(no_hub, tmp_path, monkeypatch):
    """A name owner/model is a path where a folder `owner` is here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CourseError, match="runs/recpie could not be had from the Hub"):
        models.load("runs/recpie")
    (tmp_path / "runs").mkdir()
    for load in (models.load, models.load_tokenizer, models.load_or_embedded):
        with pytest.raises(CourseError, match="There is no model folder runs/recpie: check"):
            load("runs/recpie")


def test_without_the_hub_a_name_is_one_sentence_and_soon(no_hub, capfd):
    start = time.monotonic()
    with pytest.raises(CourseError, match="gpt2 could not be had from the Hub .*smollm2"):
        models.load("gpt2")
    assert models.load_or_embedded("gpt2") == "smollm2"
    assert time.monotonic() - start < 16  # two requests
    assert "Retrying" not in capfd.readouterr().err
    with pytest.raises(CourseError, match="'a b' is no name of the Hub"):
        models.load("a b")


def test_without_the_hub_its_cache_is_used(no_hub, saved, monkeypatch, tmp_path, capfd):
    """Laid out as the Hub's client keeps downloads."""
    from huggingface_hub import constants

    home = tmp_path / "models--someone--small"
    shutil.copytree(saved, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "try_to_load_from_cache", _in(tmp_path))
    assert models.load("someone/small", on="cpu").config.num_hidden_layers == 4
    assert "Retrying" not in capfd.readouterr().err


def _in(folder):
    from functools import partial

    from huggingface_hub import try_to_load_from_cache

    return partial(try_to_load_from_cache, cache_dir=folder)


# -------------------------------------------------------------------------- target modules

LLAMA = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
BERT = BertConfig(
    vocab_size=97, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)


@pytest.mark.parametrize(
    "kind, every, attention",
    [
        ("llama", LLAMA, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("untied", LLAMA, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gemma2", LLAMA, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("cohere", LLAMA, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("granite", LLAMA, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}, {"c_attn", "c_proj"}),
        ("gpt_neox", {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
         {"query_key_value", "dense"}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}, {"qkv_proj", "o_proj"}),
    ],
)  # fmt: skip
def test_target_modules_of_every_architecture(kind, every, attention):
    model = tiny(kind)
    assert set(models.target_modules(model)) == every
    assert set(models.target_modules(model, "attention")) == attention
    assert not any("head" in name or "embed_out" in name for name in models.target_layers(model))


def test_target_modules_of_bert():
    model = BertForMaskedLM(BERT)
    inside = models.target_layers(model, "attention")
    assert {name.partition("attention.")[2] for name in inside} == {
        "self.query", "self.key", "self.value", "output.dense",
    }  # fmt: skip
    assert models.output_layer(model) is model.cls.predictions.decoder
    assert not any(name.endswith("decoder") for name in models.target_layers(model))
    assert set(models.target_modules(BertModel(BERT))) == {"query", "key", "value", "dense"}


def test_attention_means_attention_where_a_short_name_is_shared():
    """GPT-2 calls the output of attention and of the MLP c_proj."""
    assert not [n for n in models.target_layers(tiny("gpt2"), "attention") if "mlp" in n]
    assert [n for n in models.target_layers(tiny("gpt2"), ["c_proj"]) if "mlp" in n]


def test_unknown_targets_name_what_there_is():
    with pytest.raises(CourseError, match="GPT2LMHeadModel has no layer called q_proj, v_proj: its "
                       "linear layers are c_attn, c_fc, c_proj"):  # fmt: skip
        models.target_modules(tiny("gpt2"), ("q_proj", "c_attn", "v_proj"))
    with pytest.raises(CourseError, match="has no layer called x"):
        models.target_modules(tiny(), "x")
    with pytest.raises(CourseError, match="No attention layers were found in Sequential"):
        models.target_modules(torch.nn.Sequential(torch.nn.Linear(2, 2)), "attention")
    with pytest.raises(CourseError, match="No linear layers were found in ReLU.*out of none"):
        models.target_modules(torch.nn.ReLU())


def test_parameters_are_counted_once_and_in_four_bits_as_four(saved):
    tied = tiny()
    assert models.count_parameters(tied) == (tied.num_parameters(), tied.num_parameters())
    plain = models.load(saved, on="cpu").requires_grad_(False)
    packed = models.load(saved, on="cpu", quantize=True).requires_grad_(False)
    assert models.count_parameters(packed) == models.count_parameters(plain)
    assert sum(p.numel() for p in packed.parameters()) < models.count_parameters(plain)[1]


# ---------------------------------------------------------------- from 4 bits back to 16


def test_dequantized_layers_are_what_the_4bit_ones_computed_with(saved):
    four = models.load(saved, on="cpu", quantize=True, dtype=torch.bfloat16)
    ids = torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        wanted = four(input_ids=ids).logits
        plain = models.dequantized(four)
        found = plain(input_ids=ids).logits
    assert torch.equal(found, wanted)
    layers = models.linear_layers(plain).values()
    assert {type(layer) for layer in layers} == {torch.nn.Linear}
    assert {layer.weight.dtype for layer in layers} == {torch.bfloat16}
    assert sum(p.numel() for p in plain.parameters()) == models.count_parameters(plain)[1]
    recipe = Recipe(method="full")  # a plain model may be trained in full again
    assert training.prepare(plain, recipe).lm_head.weight.requires_grad


def test_what_cannot_be_dequantized_is_refused(saved):
    with pytest.raises(CourseError, match="is not in 4 bits: use it as it is"):
        models.dequantized(models.load(saved, on="cpu"))
    four = models.load(saved, on="cpu", quantize=True)
    adapted = get_peft_model(four, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(CourseError, match="Dequantize the base model first"):
        models.dequantized(adapted)


# ------------------------------------------------- 4 bits on CPUs that repack for inference


def repacks() -> bool:
    from bitsandbytes.functional import has_avx512bf16

    return has_avx512bf16()


needs_repacking = pytest.mark.skipif(
    not repacks(), reason="bitsandbytes repacks 4-bit weights only on CPUs with AVX512-BF16"
)


def first_layer_gradient(model) -> torch.Tensor:
    """Of the adapter on the first layer, which every layer above must pass back."""
    ids = torch.arange(3, 35).view(2, 16)
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    grads = [
        torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
        if "layers.0." in name and "lora_" in name
    ]
    assert grads
    return torch.cat([grad.flatten() for grad in grads])


def before_and_after_inference(saved, guarded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    base = models.load(saved, quantize=True, on="cpu")
    if not guarded:
        for module in base.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = True  # what bitsandbytes sets by itself
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False
    )
    model = get_peft_model(base, config)
    before = first_layer_gradient(model)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 20)[None])
    return before, first_layer_gradient(model)


@needs_repacking
def test_inference_before_training_leaves_gradients_alone(saved):
    before, after = before_and_after_inference(saved, guarded=True)
    assert before.norm() > 0 and torch.equal(before, after)


@needs_repacking
@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_without_the_guard_gradients_would_be_lost(saved):
    """Shows that the test above can fail; when this one fails, the guard is no longer needed."""
    before, after = before_and_after_inference(saved, guarded=False)
    assert after.norm() < 0.5 * before.norm()


@needs_repacking
def test_a_model_repacked_elsewhere_is_refused(saved, tokenizer, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    plain = AutoModelForCausalLM.from_pretrained(
        saved, quantization_config=config, device_map={"": "cpu"}
    ).eval()
    recipe = Recipe(model="tiny", method="qlora", precision="fp32", max_steps=1)
    run = {"model": plain, "tokenizer": tokenizer, "output_dir": tmp_path / "run"}
    training.run(recipe, tiny_models.encoded(4), **run)  # not used yet: good
    plain = AutoModelForCausalLM.from_pretrained(
        saved, quantization_config=config, device_map={"": "cpu"}
    ).eval()
    with torch.no_grad():
        plain(input_ids=torch.arange(3, 20)[None])
    with pytest.raises(CourseError, match="used for inference before, and bitsandbytes then"):
        training.run(recipe, tiny_models.encoded(4), **run | {"model": plain})
