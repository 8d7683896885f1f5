"""Shipping: what is merged, exported and served says what was trained."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import psutil
import pytest
import tiny_models
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from peft import PeftModel
from transformers import LlamaConfig

from course_utils import cli, evaluation, models, recipes, serve, sets, ship, training
from course_utils.errors import CourseError
from course_utils.recipes import Recipe

ASKED = [1, 300, 4000, 77, 41, 9999, 12]
SLUGS = sets.load("instruction").only("slug")


def trained(folder: Path, model: Path, tokenizer, **fields):
    """A run of three steps, saved in `folder`."""
    recipe = Recipe(**{"model": str(model), "rank": 4, "alpha": 8, "learning_rate": 3e-2,
                       "max_steps": 3, "batch_size": 4, "precision": "fp32"} | fields)  # fmt: skip
    run = training.run(recipe, SLUGS.train, tokenizer=tokenizer, output_dir=folder / "checkpoints")
    run.save(folder)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_model, tokenizer):
    """(run, folder) of a LoRA training of the small model."""
    folder = tmp_path_factory.mktemp("lora")
    return trained(folder, small_model, tokenizer), folder


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory):
    """The folder of the merged model in 32 bits."""
    return ship.save_merged(run[1], tmp_path_factory.mktemp("merged") / "tickets", "fp32")


def greedy(model, count: int = 20) -> list[int]:
    out = model.generate(
        torch.tensor([ASKED]), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out[0, len(ASKED) :].tolist()


# --------------------------------------------------------------------------------------- merge


def test_merged_equals_unmerged(run, tokenizer):
    tuned, folder = run
    merged = ship.merge(folder)
    assert not isinstance(merged, PeftModel) and merged.dtype == torch.float32
    same = ship.difference(tuned.model, merged, tokenizer, SLUGS.held_out)
    assert same.logits < 1e-3 and same.same == 1 and same.tokens > 30
    base = models.load(tuned.recipe.model)  # and training had changed something
    assert ship.difference(base, merged, tokenizer, SLUGS.held_out).logits > 0.1


def test_qlora_is_merged_into_the_dequantized_base(tmp_path, small_model, tokenizer):
    tuned = trained(tmp_path, small_model, tokenizer, method="qlora")
    right = ship.merge(tmp_path)
    onto_original = PeftModel.from_pretrained(models.load(small_model), tmp_path)
    wrong = ship.merge(onto_original)
    apart = [
        ship.difference(tuned.model, model, tokenizer, SLUGS.held_out) for model in (right, wrong)
    ]
    assert apart[0].logits < 0.01 < apart[1].logits
    with pytest.raises(CourseError, match="rounds the sum once more"):
        ship.merge(tuned.model)


def test_a_saved_merge_loads_as_a_plain_model(run, merged, tokenizer):
    again = models.load(merged)
    assert ship.difference(run[0].model, again, tokenizer, SLUGS.held_out[:4]).logits < 1e-3
    config = (merged / "config.json").read_text(encoding="utf-8")
    assert str(merged.parent) not in config and json.loads(config)["dtype"] == "float32"
    assert models.load_tokenizer(merged).chat_template == tokenizer.chat_template


def test_16_bits_are_close_and_half_the_size(run, merged, tmp_path, tokenizer):
    half = ship.save_merged(run[1], tmp_path / "half", "bf16")
    sizes = [(f / "model.safetensors").stat().st_size for f in (half, merged)]
    assert 0.49 < sizes[0] / sizes[1] < 0.51
    apart = ship.difference(models.load(merged), models.load(half), tokenizer, SLUGS.held_out)
    assert 1e-3 < apart.logits < 1 and apart.same > 0.9


def test_a_wholly_tuned_run_has_nothing_to_merge(tmp_path, small_model, tokenizer):
    full = trained(tmp_path / "full", small_model, tokenizer, method="full", learning_rate=1e-3)
    with pytest.raises(CourseError, match="holds no adapter"):
        ship.merge(tmp_path / "full")
    whole = ship.whole(tmp_path / "full")
    assert ship.difference(full.model, whole, tokenizer, SLUGS.held_out[:4]).logits < 1e-4


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda run, full: ship.merge("nowhere"), "There is no folder nowhere"),
        (lambda run, full: ship.save_merged("smollm2", "x"), "There is no folder smollm2"),
        (lambda run, full: ship.save_merged(full, "x"), "tickets holds no run of this course"),
        (lambda run, full: ship.save_merged(run, full), "is there already"),
        (lambda run, full: ship.save_merged(run, "x", "fp8"), "must be one of bf16, fp16, fp32"),
        (lambda run, full: ship.to_gguf(run, "x.gguf"), "an adapter, not a whole model: merge it"),
        (lambda run, full: ship.to_gguf(full, "x.gguf", "q4"), "must be one of f32, f16, q8_0"),
        (lambda run, full: ship.to_gguf(full, full / "config.json"), "is there already"),
        (lambda run, full: ship.export(run, full / "config.json"), "is there already"),
        (lambda run, full: ship.to_gguf("nowhere", "x.gguf"), "nowhere holds no model"),
        (lambda run, full: ship.push(full), "has no README.md"),
        (lambda run, full: ship.save_merged(models.load(full), "x"), "which tokenizer belongs"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(run, merged, call, said):
    with pytest.raises(CourseError, match=said):
        call(run[1], merged)


def cut(file: Path) -> None:
    """As where the disk was full."""
    file.write_bytes(file.read_bytes()[:-100])


def of_another_base(folder: Path) -> None:
    tiny_models.model("llama", hidden_size=32).save_pretrained(folder / "base")
    recipe = training.recipe_of(folder).replace(model=str(folder / "base"))
    recipe.save(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: cut(folder / "adapter_model.safetensors"), "The adapter in .* its files"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no weights of an"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "The adapter in .* its"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "The adapter in .* its"),
        (of_another_base, "size mismatch .* belong to another base model"),
    ],
    ids=["cut", "no-weights", "no-json", "no-fields", "another-base"],
)
def test_a_damaged_adapter_is_named(run, tmp_path, spoil, said):
    folder = shutil.copytree(run[1], tmp_path / "spoilt")
    spoil(folder)
    for use in (training.load, ship.merge, lambda run: ship.export(run, tmp_path / "x.gguf")):
        with pytest.raises(CourseError, match=said) as error:
            use(folder)
        assert "spoilt" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "x.gguf").exists()


# ---------------------------------------------------------------------------------------- GGUF


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: cut(folder / "model.safetensors"), r"model\.safetensors cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "holds no model that can be"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "best.safetensors"),
            "holds no model: it needs",
        ),
    ],
    ids=["cut", "config", "best-alone"],
)
def test_a_damaged_model_is_not_exported(merged, tmp_path, spoil, said):
    folder = shutil.copytree(merged, tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(CourseError, match=said):
        ship.export(folder, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x.gguf*"))


def test_what_an_early_stopping_left_is_not_exported(merged, tmp_path):
    folder = shutil.copytree(merged, tmp_path / merged.name)
    shutil.copy(folder / "model.safetensors", folder / "best.safetensors")
    files = [
        ship.export(source, tmp_path / f"{i}.gguf") for i, source in enumerate((merged, folder))
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    "kind, most", [("f32", 0), ("f16", 2e-3), ("q8_0", 2e-2)], ids=["f32", "f16", "q8_0"]
)
def test_a_gguf_holds_the_weights(merged, tmp_path, kind, most):
    file = ship.to_gguf(merged, tmp_path / f"m.{kind}.gguf", kind)
    model, back = models.load(merged), ship.read_gguf(file)
    found = back.state_dict()
    for name, weight in model.state_dict().items():
        assert (found[name] - weight).abs().max() <= most * weight.abs().max(), name
    assert back.config.tie_word_embeddings and back.config.rope_parameters["rope_theta"] == 10_000
    assert [file.name] == [path.name for path in tmp_path.iterdir()]  # no .part is left
    if kind != "q8_0":
        assert greedy(model) == greedy(back)


def test_an_untied_output_layer_is_written(tmp_path, tokenizer):
    model = tiny_models.model("untied", head_dim=32, rope_parameters={
        "rope_type": "default", "rope_theta": 500_000.0})  # fmt: skip
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    back = ship.read_gguf(ship.to_gguf(tmp_path / "m", tmp_path / "m.gguf", "f32"))
    assert not back.config.tie_word_embeddings and back.config.head_dim == 32
    assert greedy(model) == greedy(back)


def test_the_tokenizer_and_template_are_in_the_gguf(merged, tmp_path, tokenizer):
    inside = gguf.GGUFReader(ship.to_gguf(merged, tmp_path / "m.gguf"))
    value = {name: field.contents for name, field in inside.fields.items()}
    assert value["tokenizer.ggml.pre"]() == "gpt-2"
    assert value["tokenizer.chat_template"]() == tokenizer.chat_template
    assert value["tokenizer.ggml.eos_token_id"]() == tokenizer.eos_token_id
    tokens, types = (value[f"tokenizer.ggml.{name}"]() for name in ("tokens", "token_type"))
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = [text for text, kind in zip(tokens, types, strict=True) if kind == 3]
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= set(special)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"attention_bias": True}, "has biases"),
        ({"hidden_act": "gelu"}, "has the activation gelu"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
         "positions of the type linear"),
    ],
)  # fmt: skip
def test_another_llama_is_refused(tmp_path, tokenizer, changes, said):
    tiny_models.model("llama", vocab_size=49152, **changes).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(CourseError, match=said):
        ship.to_gguf(tmp_path / "m", tmp_path / "m.gguf")


def test_another_architecture_is_refused(tmp_path):
    tiny_models.model("gpt2", vocab_size=99).save_pretrained(tmp_path / "m")
    with pytest.raises(CourseError, match="a gpt2 model.*convert_hf_to_gguf.py"):
        ship.to_gguf(tmp_path / "m", tmp_path / "m.gguf")


@pytest.mark.parametrize("change", ["normalizer", "prefix", "split"])
def test_another_kind_of_tokenizer_is_refused(merged, tmp_path, change):
    folder = tmp_path / "m"
    folder.mkdir()
    for file in merged.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if change == "normalizer":
        stored["normalizer"] = {"type": "NFC"}
    elif change == "prefix":
        stored["pre_tokenizer"]["add_prefix_space"] = True
    else:
        stored["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
            {"type": "Punctuation", "behavior": "Isolated"}, stored["pre_tokenizer"]]}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(CourseError, match="byte-level BPE"):
        ship.to_gguf(folder, tmp_path / "m.gguf")


def test_a_vocabulary_that_is_too_large_is_refused(tmp_path, tokenizer):
    tiny_models.model("llama", vocab_size=997).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    with pytest.raises(CourseError, match="do not belong together"):
        ship.to_gguf(tmp_path / "m", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@pytest.mark.skipif(not importlib.util.find_spec("llama_cpp"), reason="no llama-cpp-python")
def test_llama_cpp_says_the_same(merged, tmp_path, tokenizer):
    from llama_cpp import Llama

    file = ship.to_gguf(merged, tmp_path / "m.gguf", "f32")
    llama = Llama(str(file), n_ctx=128, verbose=False)
    said = list(itertools.islice(llama.generate(ASKED, temp=0.0), 20))
    assert said == greedy(models.load(merged))
    text = "Order 12345, süß 你好\n\n  two  spaces<|im_end|>"
    mine = tokenizer(text)["input_ids"]
    assert llama.tokenize(text.encode(), add_bos=False, special=True) == mine


# ------------------------------------------------------------------------------------ the card


def test_a_card_says_what_a_user_must_know(run, tmp_path):
    tuned, _ = run
    score = evaluation.Score([evaluation.Answer("q", "a", "a", 1.0)] * 4)
    text = ship.model_card(
        "my-slugs", tuned.recipe, tuned.report, SLUGS.card, {"after": score}, purpose="Slugs."
    )
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    head = ModelCard.load(tmp_path / "README.md").data
    assert head.license == "apache-2.0" and head.eval_results[0].metric_value == 1
    assert head.base_model == Path(tuned.recipe.model).name  # and no path of this machine
    assert str(Path(tuned.recipe.model).parent) not in text and str(Path.home()) not in text
    for told in ("100.0 % of 4", SLUGS.card.source, "Apache-2.0", "torch", "## How to use it"):
        assert told in text
    fields = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    again = recipes.from_dict(fields | {"model": tuned.recipe.model})
    assert again == tuned.recipe


def test_a_card_of_the_embedded_model_names_its_home(run):
    recipe = run[0].recipe.replace(model="smollm2")
    score = evaluation.Score([evaluation.Answer("q", "a", "b", 0.0)])
    text = ship.model_card(
        "x", recipe, run[0].report, SLUGS.card, {"after": score}, purpose="Nothing."
    )
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in text
    with pytest.raises(CourseError, match="without a score"):
        ship.model_card("x", recipe, run[0].report, SLUGS.card, {}, purpose="Nothing.")


def test_nobody_is_logged_in(tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "get_token", lambda: None)
    (tmp_path / "README.md").write_text("# A model", encoding="utf-8")
    with pytest.raises(CourseError, match="Nobody is logged in.*hf auth login"):
        ship.push(tmp_path, "me/model")


def test_a_push_leaves_checkpoints_here(tmp_path, monkeypatch):
    sent = {}
    monkeypatch.setattr(ship, "get_token", lambda: "a token")
    monkeypatch.setattr(ship.HfApi, "create_repo", lambda self, name, **options: None)
    monkeypatch.setattr(ship.HfApi, "upload_folder", lambda self, **options: sent.update(options))
    for name in ("README.md", "adapter_model.safetensors", "checkpoint-4/optimizer.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert ship.push(tmp_path, "me/model") == "https://huggingface.co/me/model"
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")]
    kept = filter_repo_objects(names, ignore_patterns=sent["ignore_patterns"])
    assert sorted(kept) == ["README.md", "adapter_model.safetensors"]


def test_a_name_that_the_hub_cannot_have_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "get_token", lambda: "a token")
    (tmp_path / "README.md").write_text("# A model", encoding="utf-8")
    with pytest.raises(CourseError, match="'my model!' is no name on the Hub"):
        ship.push(tmp_path, "my model!")


# ---------------------------------------------------------------------------- several adapters


def test_each_row_has_its_own_adapter(run, small_model, tokenizer):
    _, folder = run
    model = PeftModel.from_pretrained(models.load(small_model), folder).eval()
    model.load_adapter(folder, adapter_name="loud")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.loud" in name:
                parameter.mul_(-3)
    prompts = [row.prompt for row in SLUGS.held_out[:3]]
    through = ["loud", "__base__", "default"]
    mixed = ship.answer_by_adapter(model, tokenizer, prompts, through, 8)
    for prompt, name, answer in zip(prompts, through, mixed, strict=True):
        only = ship.answer_by_adapter(model, tokenizer, [prompt], [name], 8)
        assert only == [answer]
    assert len(set(ship.answer_by_adapter(model, tokenizer, prompts[:1] * 3, through, 8))) == 3
    with pytest.raises(CourseError, match="one adapter for each of the 3 prompts, out of default"):
        ship.answer_by_adapter(model, tokenizer, prompts, ["default", "loud", "quiet"])


# -------------------------------------------------------------------------------------- server


@pytest.mark.skipif(not serve.installed(), reason="no server is installed")
def test_the_server_answers_as_the_model_does(merged, tokenizer):
    asked = SLUGS.held_out[0].prompt
    with serve.start(merged) as server:
        answer = server.ask(asked, max_tokens=8)
        assert server.address.startswith("http://127.0.0.1:")
    assert (
        answer == evaluation.generate(models.load(merged), tokenizer, [asked], max_new_tokens=8)[0]
    )
    assert server.process.poll() is not None


def test_without_a_server_a_sentence_says_what_to_install(merged, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    assert serve.installed() is None
    with (
        pytest.raises(CourseError, match="pip install fastapi uvicorn openai"),
        serve.start(merged),
    ):
        pass


def test_a_server_that_does_not_start_is_told(merged, monkeypatch):
    ends = ["-c", "print('loading'); raise SystemExit('port is taken')"]
    monkeypatch.setitem(serve.COMMANDS, "transformers", ends)
    with (
        pytest.raises(CourseError, match="did not start to serve: port is taken"),
        serve.start(merged, "transformers"),
    ):
        pass


def test_a_folder_without_a_model_is_not_served(tmp_path):
    with pytest.raises(CourseError, match="holds no model to serve"), serve.start(tmp_path, "vllm"):
        pass


def test_stop_ends_the_children_too():
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    parent = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE)
    family = psutil.Process(parent.pid)
    while not family.children():
        pass
    [grandchild] = family.children()
    serve.stop(parent)
    assert parent.poll() is not None and not grandchild.is_running()


# ------------------------------------------------------------------------------------- the CLI


def test_merge_and_export_from_the_command_line(run, tmp_path, capsys):
    folder = str(run[1])
    assert cli.main(["merge", folder, "--output", str(tmp_path / "m"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["precision"] == "bf16" and said["gib"] > 0
    assert isinstance(models.load(said["saved"]).config, LlamaConfig)
    for source in (folder, str(tmp_path / "m")):  # a run, and a whole model
        file = tmp_path / f"{Path(source).name}.gguf"
        assert cli.main(["export", source, "--output", str(file), "--kind", "f16"]) == 0
        assert "GiB, f16" in capsys.readouterr().out and file.is_file()


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["merge", str(tmp_path), "--output", "x"]) == 1
    assert "error:" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), "--output", str(tmp_path / "x"), "--json"]) == 1
    assert "holds no model" in json.loads(capsys.readouterr().out)["error"]
