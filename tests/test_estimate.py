"""Memory estimates: parameters counted exactly, two independent ways that agree, refusals."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import transformers

from benchmarks import cpu_memory, peers_gpu, study
from course_utils.errors import CourseError
from course_utils.loss import CHUNK_BYTES
from course_utils.memory import estimate, shape_of
from course_utils.memory import job as jobs
from course_utils.memory.activations import FastLayers
from course_utils.memory.dryrun import dry_run
from course_utils.memory.estimate import GIB, debug_table, make_job, write
from course_utils.memory.known import KNOWN
from course_utils.memory.ledger import MIB, Ledger, replay
from course_utils.memory.stock import StockLayers
from course_utils.recipes import Recipe

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
MEDIUM = {
    "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": transformers.LlamaConfig(**MEDIUM),
    "llama-tied": transformers.LlamaConfig(
        **{**MEDIUM, "vocab_size": 2**16}, tie_word_embeddings=True  # its loss has four chunks
    ),
    "llama-biases": transformers.LlamaConfig(**MEDIUM, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**MEDIUM, sliding_window=None),
    "qwen2": transformers.Qwen2Config(**MEDIUM, tie_word_embeddings=True),
    "qwen3": transformers.Qwen3Config(**MEDIUM, head_dim=64),
    "gemma": transformers.GemmaConfig(**MEDIUM, head_dim=64),
    "phi3": transformers.Phi3Config(**MEDIUM),
    "gpt2": transformers.GPT2Config(
        vocab_size=8192, n_embd=512, n_layer=4, n_head=8, n_positions=1024,
        bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_real_model(name):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
    assert shape_of(CONFIGS[name]).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),  # as their model cards count them
    [("smollm2", 134_515_008), ("llama-2-7b", 6_738_415_616), ("llama-3.1-8b", 8_030_261_248),
     ("llama-3.2-1b", 1_235_814_400), ("qwen2.5-7b", 7_615_616_512), ("qwen3-8b", 8_190_735_360),
     ("mistral-7b", 7_248_023_552), ("gpt2", 124_439_808), ("gpt2-xl", 1_557_611_200),
     ("gemma-2b", 2_506_172_416)],
)  # fmt: skip
def test_known_shapes_have_the_published_sizes(name, parameters):
    assert shape_of(name).parameters == parameters


def test_a_config_may_come_in_any_form(tmp_path):
    config = CONFIGS["qwen3"]
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    forms = [config, config.to_dict(), tmp_path, str(tmp_path / "config.json")]
    counts = {shape_of(form).parameters for form in forms} | {shape_of(shape_of(config)).parameters}
    assert len(counts) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [({"hidden_size": None}, "hidden_size"), ({"num_hidden_layers": -2}, "num_hidden_layers"),
     ({"model_type": None}, "model_type"), ({"model_type": "bert"}, "bert"),
     ({"num_attention_heads": 7}, "num_attention_heads"), ({"num_experts": 8}, "experts"),
     ({"model_type": "mamba"}, "state-space"), ({"vision_config": {"a": 1}}, "images"),
     ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads"),
     ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized already \(gptq\)"),
     ({"quantization_config": {"quant_method": "fp8"}}, r"quantized already \(fp8\)"),
     ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "already"),
     ({"quantization_config": "unheard of"}, "by a method that is not named"),
     ({"attention_dropout": "x"}, "attention_dropout of .* is 'x' and must be a number"),
     ({"attn_pdrop": "a"}, "attn_pdrop of .* is 'a' and must be a number from 0 to 1"),
     ({"model_type": "mistral", "sliding_window": "w"}, "sliding_window of .* is 'w'")],
)  # fmt: skip
def test_what_is_missing_or_unknown_is_named(change, word):
    fields = {**KNOWN["llama-2-7b"], "head_dim": None, **change}
    with pytest.raises(CourseError, match=word):
        shape_of(fields)


@pytest.mark.parametrize(("rate", "read"), [(None, 0.1), (0, 0.0), (0.25, 0.25)])
def test_dropout_of_a_config_is_read(rate, read):
    assert shape_of({**KNOWN["gpt2"], "attn_pdrop": rate}).dropout == (0.1, read, 0.1)
    with pytest.raises(CourseError, match="attn_pdrop of .* is 'a'"):
        shape_of({**KNOWN["gpt2"], "attn_pdrop": "a"})


def test_a_base_in_4_bits_has_the_shape_that_it_was_made_from():
    quantized = transformers.BitsAndBytesConfig(load_in_4bit=True)
    config = transformers.LlamaConfig(**MEDIUM)
    plain = shape_of(config)
    for form in (quantized, quantized.to_dict(), None):  # as a loaded model holds it, and a file
        config.quantization_config = form
        assert shape_of(config) == plain


@pytest.mark.parametrize("word", ["all-linear", "attention"])
def test_a_list_of_one_word_trains_the_same_layers(word):
    one, listed = (estimate("smollm2", Recipe(targets=t), length=64) for t in (word, [word]))
    assert one.trained == listed.trained > 0


# ---------------------------------------------------------------- against the real step, dry


CASES = [
    ("llama", {"method": "lora"}, 0.002),
    ("llama", {"method": "lora", "checkpointing": True}, 0.002),
    ("qwen3", {"method": "lora", "targets": "attention"}, 0.002),
    ("llama", {"method": "lora", "dropout": 0.1}, 0.002),
    ("llama", {"method": "lora", "fast": False, "checkpointing": True}, 0.002),
    ("gemma", {"method": "lora"}, 0.002),
    ("gpt2", {"method": "lora"}, 0.002),
    ("gpt2", {"method": "lora", "checkpointing": True}, 0.002),
    ("llama-tied", {"method": "full"}, 0.002),
    ("llama", {"method": "full", "base_precision": "bf16"}, 0.002),
    ("llama-tied", {"method": "full", "base_precision": "bf16"}, 0.002),
    ("qwen3", {"method": "full", "base_precision": "bf16", "checkpointing": True}, 0.002),
    ("gpt2", {"method": "full", "base_precision": "bf16"}, 0.002),
    # torch always adds gradients of fake tensors into a third one, real ones mostly in place
    ("llama", {"method": "full"}, 0.01),
    ("qwen2", {"method": "full", "checkpointing": True}, 0.015),
    ("gpt2", {"method": "full"}, 0.01),
]


@pytest.mark.parametrize(("name", "fields", "apart"), CASES)
def test_the_estimate_is_what_a_dry_run_of_the_real_step_counts(name, fields, apart):
    recipe = Recipe(batch_size=4, precision="bf16", **fields)
    counted = max(dry_run(CONFIGS[name], recipe, 512).values())
    assert _requested(CONFIGS[name], recipe) == pytest.approx(counted, rel=apart)


def _requested(config, recipe: Recipe) -> float:
    """Peak GiB of the tensors alone: no workspace of cuBLAS, no rests that the allocator leaves."""
    ledger, _ = write(make_job(config, recipe, length=512))
    alive = peak = 0
    for number, _ in ledger.events:
        if number is None:
            continue
        kind = ledger.kinds[max(number, ~number)]
        if not kind.name.startswith("cuBLAS"):
            size = -(-kind.size // 512) * 512
            alive += size if number >= 0 else -size
            peak = max(peak, alive)
    return peak / GIB


def test_the_dry_run_says_what_it_does_not_cover():
    with pytest.raises(CourseError, match="dry run"):
        dry_run(CONFIGS["llama"], Recipe(gradient_precision="fp8"), 128)
    with pytest.raises(CourseError, match="dry run"):
        dry_run(CONFIGS["llama"], Recipe(method="qlora"), 128)


# ------------------------------------------------------------------------ against a real GPU


def _measured() -> list[dict]:
    rows = json.loads((RESULTS / "peers_h200.json").read_text(encoding="utf-8"))["rows"]
    # of an fp8 base with checkpointing the steps are not the highest moment, and only they count
    highest_at_the_end = {"system": "ours_fp8", "checkpointing": True}
    return [
        row for row in rows
        if row["system"] in peers_gpu.EXTRA and not highest_at_the_end.items() <= row.items()
    ]  # fmt: skip


def _name(row: dict) -> str:
    return f"{row['system']} {row['method']}" + " checkpointing" * row["checkpointing"]


@pytest.mark.parametrize("row", _measured(), ids=_name)
def test_peaks_measured_on_an_h200(row):
    shape = {**KNOWN["llama-2-7b"], "vocab_size": 49152, "max_position_embeddings": 8192}
    fields = {name: row[name] for name in ("method", "checkpointing")} | row["recipe"]
    fields |= peers_gpu.EXTRA[row["system"]] | (peers_gpu.FULL if row["method"] == "full" else {})
    recipe = Recipe(batch_size=row["batch"], precision="bf16", **fields)
    found = estimate(shape, recipe, length=row["length"])
    assert found.allocated_gib == pytest.approx(row["peak_gib"], rel=0.005)
    assert found.reserved_gib == pytest.approx(row["reserved_gib"], rel=0.04)


# ----------------------------------------------------------------------------------- estimates


def test_parts_add_up_and_formulas_show_their_numbers():
    recipe = Recipe(method="qlora", batch_size=4, checkpointing=True)
    found = estimate("llama-2-7b", recipe, length=1024)
    assert sum(found.parts.values()) == pytest.approx(found.allocated_gib, abs=1e-6)
    assert found.allocated_gib <= found.reserved_gib < found.process_gib
    assert found.range_gib[0] < found.process_gib < found.range_gib[1]
    assert max(found.moments.values()) == found.allocated_gib
    assert "11,008" in found.formula("weights") and "0.5 B" in found.formula("weights")
    assert "GiB" in str(found) and json.dumps(found.to_dict())
    for part in found.parts:
        lines = found.formula(part).splitlines()[1:]
        amounts = [float(line.rsplit("= ", 1)[1].split()[0]) for line in lines if "= " in line]
        if amounts:
            assert sum(amounts) == pytest.approx(found.parts[part], abs=2e-3), part
    with pytest.raises(CourseError, match="no part"):
        found.formula("tyres")


def test_an_estimate_takes_less_than_a_second():
    start = time.perf_counter()
    estimate("llama-2-70b", Recipe(method="lora", checkpointing=True), length=2048)
    assert time.perf_counter() - start < 3  # tenths of a second on an idle machine


def _gib(model="llama-3.2-1b", length=1024, **fields) -> float:
    fields = {"method": "lora", "batch_size": 4, **fields}
    return estimate(model, Recipe(**fields), length=length).allocated_gib


def test_what_saves_memory_is_estimated_to_save_it():
    plain = _gib()
    assert _gib(checkpointing=True, offload=True) < _gib(checkpointing=True) < plain
    assert _gib(method="qlora") < plain
    assert _gib(targets="attention") < plain < _gib(dropout=0.1)
    assert _gib(length=512) < plain < _gib(batch_size=8)
    full = {"method": "full", "batch_size": 1}
    assert _gib(**full, optimizer="paged_adamw_8bit") < _gib(**full, optimizer="adamw_8bit")
    assert _gib(**full, optimizer="adamw_8bit") < _gib(**full)


def test_more_rows_or_tokens_never_take_less():
    for fields in ({}, {"method": "full"}, {"dropout": 0.1}, {"checkpointing": True}):
        found = [_gib("smollm2", length=n, **fields) for n in (64, 256, 512, 1024)]
        assert found == sorted(found), fields


def test_paged_states_count_for_the_process_not_for_torch():
    paged = estimate("gpt2", Recipe(method="full", optimizer="paged_adamw_8bit"), length=64)
    assert paged.process_gib - paged.reserved_gib > 0.85  # 0.16 GiB of states and the context
    assert any("paged" in note for note in paged.notes)


def test_full_fine_tuning_holds_sixteen_bytes_a_parameter_at_the_optimizer_step():
    found = estimate("llama-3.2-1b", Recipe(method="full", batch_size=1), length=16)
    share = found.moments["optimizer step"] * GIB / found.parameters
    assert share == pytest.approx(16, rel=0.05)


@pytest.mark.parametrize(
    ("model", "fields", "length", "word"),
    [("llama-2-7b", {}, 0, "length"), ("llama-2-7b", {}, 2.5, "length"),
     ("gpt2", {}, 4096, "1024 tokens"), ("gpt2", {"targets": ["q_proj"]}, 64, "c_attn"),
     ("gpt2", {"base_precision": "fp8"}, 64, "fast layers"), (3, {}, 64, "model is 3")],
)  # fmt: skip
def test_what_cannot_run_is_refused(model, fields, length, word):
    with pytest.raises(CourseError, match=word):
        estimate(model, Recipe(**fields), length=length)


def test_device_and_labelled_are_checked():
    with pytest.raises(CourseError, match="device"):
        estimate("gpt2", Recipe(), device="tpu")
    with pytest.raises(CourseError, match="labelled"):
        estimate("gpt2", Recipe(), labelled=0)


def test_cpu_estimates_are_as_near_as_their_summary_says():
    """benchmarks/results/cpu_memory.json: the grid, and what was run after it, blind."""
    kept = json.loads(cpu_memory.PATH.read_text(encoding="utf-8"))
    rows = kept["rows"]
    assert cpu_memory.summary(rows) == kept["summary"]
    assert not study.missing(cpu_memory.cases(), rows)
    grid, blind = ([r for r in rows if bool(r.get("blind")) is kind] for kind in (False, True))
    found = cpu_memory.summary(grid)
    assert found["mean_error"] < 10 and found["worst_error"] < 20 and not found["out_of_range"]
    seen = [(row, cpu_memory.estimated(row)) for row in rows if row["fitted"]]
    assert all(e.range_gib[0] <= r["resident_gib"] <= e.range_gib[1] for r, e in seen)
    assert cpu_memory.summary(blind) == kept["blind"]
    for row in blind:  # who takes more than the range says was warned
        made = cpu_memory.estimated(row)
        loose = any("up to 1.6 times" in note for note in made.notes)
        assert loose is bool(row["checkpointing"])
        most = max(made.range_gib[1], 1.65 * made.process_gib * loose)
        assert made.range_gib[0] <= row["resident_gib"] <= most


def test_a_cpu_estimate_says_that_it_is_no_vram():
    found = estimate("smollm2", Recipe(), length=128, device="cpu")
    assert "not VRAM" in str(found) and found.range_gib[0] < found.process_gib < found.range_gib[1]
    assert found.process_gib > 0.65


def test_the_table_of_moments_names_the_largest_tensors():
    table = debug_table("smollm2", Recipe(method="lora", precision="bf16"), length=128)
    assert "backward, last norm" in table and "linear layers" in table


def test_the_loss_is_cut_into_the_same_chunks():
    assert jobs.CHUNK_BYTES == CHUNK_BYTES


# ----------------------------------------------------------------------------------- allocator


def test_the_allocator_rounds_splits_and_reuses_as_torchs():
    ledger = Ledger()
    large = ledger.new("a", "own segment", 11 * MIB, width=1)
    ledger.new("a", "from a segment of 20 MiB", 3 * MIB, width=1)
    ledger.new("a", "one byte", 1, width=1)
    large.drop()
    ledger.new("a", "fits the freed one", 10 * MIB + 512, width=1)
    peaks = replay(ledger)
    assert peaks.reserved == (12 + 20 + 2) * MIB
    assert peaks.highest().allocated == (12 + 3) * MIB + 512  # a rest up to 1 MiB stays with it


def test_an_emptied_cache_gives_back_unused_segments():
    ledger = Ledger()
    with ledger.short("a", "once", 50 * MIB, width=1):
        pass
    ledger.empty_cache()
    ledger.now = "later"
    ledger.new("a", "other", 20 * MIB, width=1)
    assert replay(ledger).moments["later"].reserved == 20 * MIB


STEPS = [
    ("llama", {"method": "lora", "checkpointing": True, "offload": True}, FastLayers),
    ("qwen3", {"method": "lora"}, FastLayers),
    ("gpt2", {"method": "lora", "checkpointing": True}, StockLayers),
    ("llama-tied", {"method": "full"}, StockLayers),
    ("gpt2", {"method": "full", "base_precision": "bf16", "checkpointing": True}, StockLayers),
    ("gemma", {"method": "lora", "dropout": 0.1}, StockLayers),
]


@pytest.mark.parametrize(("name", "fields", "kind"), STEPS)
def test_every_tensor_of_a_step_is_given_back(name, fields, kind):
    job = make_job(CONFIGS[name], Recipe(**fields), length=512)
    ledger = Ledger()
    held = jobs.Held(job, ledger)
    held.load()
    held.add_adapters()
    layers = kind(job, ledger, held)
    layers.build()
    before = len(ledger.kinds)
    layers.forward()
    layers.backward(layers.loss_backward(layers.loss()))
    for grad in layers.gather_backward(add=False):
        grad.drop()
    freed = {~number for number, _ in ledger.events if number is not None and number < 0}
    left = set(range(before, len(ledger.kinds))) - freed
    assert not left, {ledger.kinds[number].name for number in left}


def test_gradients_of_later_passes_are_added_up():
    fields = {"method": "full", "batch_size": 2, "precision": "bf16"}
    once, twice, often = (
        estimate("llama-3.2-1b", Recipe(**fields, gradient_accumulation=n), length=512)
        for n in (1, 2, 8)
    )
    assert once.allocated_gib < twice.allocated_gib == often.allocated_gib
    # the gradients so far are there in the second forward pass, 4 bytes a parameter
    more = twice.moments["forward"] - once.moments["forward"]
    assert more == pytest.approx(4 * once.parameters / GIB, rel=0.01)


def test_older_torch_copies_shared_keys_and_values_of_packed_rows():
    """Before 2.13 attention over packed rows took as many key heads as query heads."""
    recipe = Recipe(packing=True, max_length=2048, batch_size=2)
    before, now = (
        estimate("llama-3.2-1b", recipe, torch_version=version).allocated_gib
        for version in ("2.11.0", "2.13.0+cpu")
    )
    one_layer = 2 * 2 * 2048 * 2048 * 2 / 2**30  # keys, values: 2 x 2048 tokens x width in bf16
    assert before - now == pytest.approx(16 * one_layer, rel=0.02)
    padded = recipe.replace(packing=False)
    assert len({estimate("llama-3.2-1b", padded, torch_version=v).allocated_gib
                for v in ("2.11.0", "2.13.0")}) == 1  # fmt: skip
