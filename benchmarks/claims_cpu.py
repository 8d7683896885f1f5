"""The guide's claims that need no GPU and no long training: counted, computed or run on the CPU.

    python -m benchmarks.claims_cpu        # under a minute; writes results/claims_cpu.json

Each measurement is a function in `MEASUREMENTS` that gives rows with a `name`; the claims ledger
(`course_utils.claims`) selects them by it.  A "7B" is Llama-2-7B's shape, counted on the meta
device, that is with the real modules and no weights.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DataCollatorForLanguageModeling,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

from benchmarks.gpu_common import SHAPES
from course_utils import encoding, memory, models, quickstart, recipes, sets, training
from course_utils.data import Conversation
from course_utils.errors import CourseError
from course_utils.memory import GIB
from course_utils.report import versions

RESULTS = Path(__file__).parent / "results" / "claims_cpu.json"
ALPACA_LENGTHS = Path(__file__).parent / "alpaca_lengths.json"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "r8-qv": (8, ["q_proj", "v_proj"]),
    "r8-linear": (8, LINEAR),
    "r16-attention": (16, ATTENTION),
    "r32-linear": (32, LINEAR),
    "r64-qv": (64, ["q_proj", "v_proj"]),
}
GUIDE_LENGTH, GUIDE_BATCH, GUIDE_EPOCHS, GUIDE_ANSWER = 512, 16, 3, 100  # what its code sets
Row = dict[str, Any]


def llama_7b() -> PretrainedConfig:
    """Llama-2-7B's shape (arXiv:2307.09288; 32,000 tokens)."""
    return LlamaConfig(vocab_size=32000, **SHAPES["7b"])


def tiny(targets: list[str] | None = None, alpha: float = 16) -> nn.Module:
    """A tiny Llama with random weights; with an adapter if `targets` are given."""
    model = models.load(LlamaConfig(vocab_size=49152, **SHAPES["tiny"]), on="cpu")
    if targets is None:
        return model
    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=alpha, target_modules=targets)
    )


# ------------------------------------------------------------------------------- parameters


def parameters() -> Iterable[Row]:
    """Trainable parameters of a 7B: all of them, and PEFT's adapters."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_7b())
    base = sum(p.numel() for p in model.parameters())
    yield {"name": "7b-full", "trainable": base, "share_percent": 100.0}
    for name, (rank, targets) in ADAPTERS.items():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(llama_7b())
            config = LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets)
            model = get_peft_model(model, config)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        share = 100 * trainable / base
        yield {
            "name": f"7b-lora-{name}", "rank": rank, "targets": targets, "trainable": trainable,
            "share_percent": share, "saved_percent": 100 - share,
        }  # fmt: skip


def layer_names() -> Iterable[Row]:
    """Whether the layers that the guide names exist in these architectures."""
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    cases = (
        ("gpt2", AutoModelForCausalLM, GPT2Config(n_embd=64, n_layer=1, n_head=2), ["c_attn"]),
        ("llama", AutoModelForCausalLM, llama_7b(), ["q_proj", "v_proj"]),
        ("bert", AutoModelForMaskedLM, BertConfig(**small), ["query", "value"]),
    )
    for name, kind, config, targets in cases:
        with torch.device("meta"):
            model = kind.from_config(config)
        try:
            found = len(models.target_layers(model, targets)) > 0
        except CourseError:
            found = False
        yield {"name": f"layers-{name}", "targets": targets, "found": found}


# ------------------------------------------------------------------------------------ 4 bits


def nf4() -> Iterable[Row]:
    """One 4096 x 4096 matrix really quantized: bytes of all that is kept, and the error."""
    from bitsandbytes import functional

    weight = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    for name, double in (("nf4", False), ("nf4-double", True)):
        packed, state = functional.quantize_4bit(
            weight, quant_type="nf4", compress_statistics=double
        )
        kept = [packed, state.absmax, state.code]
        if double:
            kept += [state.state2.absmax, state.state2.code, state.offset]
        size = sum(t.numel() * t.element_size() for t in kept)
        back = functional.dequantize_4bit(packed, state).float()
        error = ((back - weight.float()).norm() / weight.float().norm()).item()
        yield {
            "name": name, "bits_per_parameter": 8 * size / weight.numel(),
            "relative_error_percent": 100 * error,
        } | _weights_7b(size / weight.numel())  # fmt: skip


def _weights_7b(bytes_per_parameter: float) -> Row:
    """GiB of a 7B's weights: linear layers in 4 bits, embeddings, norms and output in 16."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_7b())
    total = sum(p.numel() for p in model.parameters())
    linear = sum(m.weight.numel() for m in models.linear_layers(model).values())
    bf16 = 2 * total / GIB
    gib = (linear * bytes_per_parameter + 2 * (total - linear)) / GIB
    packed = linear // 2 + total - linear  # two 4-bit numbers count as one
    adapter = 8 * 2 * 4096 * 2 * 32  # rank 8 on q and v; `parameters` counts the same with PEFT
    return {
        "weights_7b_gib": gib,
        "weights_7b_bf16_gib": bf16,
        "weights_7b_saved_percent": 100 * (1 - gib / bf16),
        "share_7b_by_numel_percent": 100 * adapter / (packed + adapter),
    }


def packed_count() -> Iterable[Row]:
    """The embedded model in 4 bits: parameters as `numel` counts them, and as they are."""
    model = models.load(quantize=True, on="cpu")
    counted = sum(p.numel() for p in model.parameters())
    _, real = models.count_parameters(model)
    yield {"name": "packed-count", "by_numel": counted, "real": real, "factor": real / counted}


# --------------------------------------------------------------------------- searching, alpha


def alpha_fault() -> Iterable[Row]:
    """`alpha // rank * rank` over the guide's ranges: how often 0, and what 0 does."""
    pairs = list(itertools.product(range(4, 65), range(8, 129)))  # randint: both ends drawn
    zero = sum(alpha // rank * rank == 0 for rank, alpha in pairs) / len(pairs)
    yield {
        "name": "alpha-fault", "pairs": len(pairs), "zero_percent": 100 * zero,
        "expected_of_20_trials": 20 * zero,
    }  # fmt: skip
    for alpha in (0, 16):
        model = tiny(["q_proj", "v_proj"], alpha)
        ids = torch.arange(32)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        grads = [p.grad.norm() for n, p in model.named_parameters() if "lora_B" in n]
        yield {
            "name": f"alpha-{alpha}-gradient",
            "largest_gradient": max(grads).item(),
            "trains": max(grads).item() > 0,
        }


# ---------------------------------------------------------------------------- training settings


def warm_up() -> Iterable[Row]:
    """The learning rate that a run of the guide's reaches, in % of what was asked for."""
    for rows, warm in itertools.product((3, 100, 1000, 10000), (100, 200, 500)):
        steps = math.ceil(rows / GUIDE_BATCH) * GUIDE_EPOCHS
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_linear_schedule_with_warmup(optimizer, warm, steps)
        reached = []
        for _ in range(steps):
            reached.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        yield {
            "name": f"warmup-{warm}-rows-{rows}", "steps": steps,
            "reached_percent": 100 * max(reached),
            "mean_percent": 100 * sum(reached) / len(reached),
        }  # fmt: skip


def weight_decay() -> Iterable[Row]:
    """How much AdamW's decay of 0.01 takes off a weight in one epoch of 1,000 rows at 1e-4."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.01)
    steps = math.ceil(1000 / GUIDE_BATCH)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    yield {"name": "weight-decay", "steps": steps, "shrunk_percent": 100 * (1 - weight.item())}


def batches() -> Iterable[Row]:
    """Rows a step in the three presets; and one run with two splits of the same batch."""
    for name in ("SMALL", "MEDIUM", "LARGE"):
        recipe = getattr(recipes, f"RECOMMENDED_CONFIG_{name}")
        yield {"name": f"batch-{name.lower()}", "rows_per_step": recipe.effective_batch}
    rows = sets.load("instruction").train[:32]
    base = recipes.Recipe(
        rank=8, max_steps=4, precision="fp32", group_by_length=False, schedule="constant",
        warmup=0.0, learning_rate=1e-2,
    )  # fmt: skip
    losses = []
    for batch, steps in ((8, 1), (2, 4)):
        recipe = base.replace(batch_size=batch, gradient_accumulation=steps)
        with tempfile.TemporaryDirectory() as folder:
            run = training.run(
                recipe, rows, model=tiny(), tokenizer=models.load_tokenizer(), output_dir=folder
            )
        losses.append([step["loss"] for step in run.report.losses])
    gap = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    yield {
        "name": "accumulation", "steps": len(losses[0]), "losses": losses,
        "difference_percent": 100 * gap,
    }  # fmt: skip


def mixed_precision() -> Iterable[Row]:
    """What `fp16=True` does on a CPU, and whether `fp16` and `bf16` may both be true."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            TrainingArguments(output_dir=folder, fp16=True, bf16=True, use_cpu=True)
            both = True
        except ValueError:
            both = False
        arguments = TrainingArguments(output_dir=folder, fp16=True, use_cpu=True)
        used = bool(Trainer(model=tiny(), args=arguments).accelerator.native_amp)
    yield {"name": "fp16-and-bf16", "accepted": both}
    yield {"name": "fp16-on-cpu", "used": used}


# ------------------------------------------------------------------------------------- data


def padding() -> Iterable[Row]:
    """Tokens of the rows, and the share of positions that padding to 512 adds."""
    tokenizer = models.load_tokenizer()
    lengths = {
        name: [len(r["input_ids"]) for r in _encoded(sets.load(name).train, tokenizer)]
        for name in ("instruction", "code", "chat")
    }
    pairs = json.loads(ALPACA_LENGTHS.read_text(encoding="utf-8"))["pairs"]
    lengths["alpaca"] = [prompt + answer for prompt, answer in pairs]
    for name, found in lengths.items():
        kept = [min(length, GUIDE_LENGTH) for length in found]
        yield {
            "name": f"padding-{name}", "rows": len(found),
            "mean_tokens": sum(found) / len(found),
            "over_512": sum(length > GUIDE_LENGTH for length in found),
            "over_256": sum(length > 256 for length in found),
            "wasted_percent": 100 * (1 - sum(kept) / (GUIDE_LENGTH * len(kept))),
        }  # fmt: skip


def _encoded(rows: list[Conversation], tokenizer: Any) -> list[dict[str, list[int]]]:
    return encoding.encode(rows, tokenizer, max_length=8192).rows


def tokens() -> Iterable[Row]:
    """Tokens of Chinese and of English text, with the embedded model's tokenizer."""
    tokenizer = models.load_tokenizer()
    texts: dict[str, list[str]] = {"english": [], "chinese": []}
    for name in ("instruction", "chat"):
        for conversation in sets.load(name).train:
            for message in conversation.messages:
                share = sum("\u4e00" <= c <= "\u9fff" for c in message["content"])
                chinese = share > len(message["content"]) / 2
                texts["chinese" if chinese else "english"].append(message["content"])
    for name, found in texts.items():
        count = sum(len(tokenizer(text)["input_ids"]) for text in found)
        size = sum(len(text.encode()) for text in found)
        yield {
            "name": f"tokens-{name}", "texts": len(found), "tokens": count,
            "tokens_per_character": count / sum(map(len, found)),
            "bytes_per_token": size / count,
            "billion_tokens_in_100_gb": 100 * count / size,
            "billion_tokens_in_1_tb": 1000 * count / size,
        }  # fmt: skip


def end_of_text() -> Iterable[Row]:
    """With the padding token set to the end-of-text token: rows whose end keeps its label."""
    tokenizer = models.load_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    texts = [c.answer + tokenizer.eos_token for c in sets.load("instruction").train[:100]]
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)(rows)["labels"]
    learnt = (labels == tokenizer.eos_token_id).any(dim=1).sum().item()
    yield {"name": "end-of-text", "rows": len(rows), "learnt_percent": 100 * learnt / len(rows)}


def answers() -> Iterable[Row]:
    """Room that `max_length=100` leaves for an answer; answers that the first turn drops."""
    tokenizer = models.load_tokenizer()
    held_out = [c for name in ("instruction", "code", "chat") for c in sets.load(name).held_out]
    prompts = [encoding.render(c.prompt, tokenizer, ask=True) for c in held_out]
    rooms = [max(0, GUIDE_ANSWER - len(tokenizer(text)["input_ids"])) for text in prompts]
    yield {
        "name": "answer-room", "prompts": len(rooms), "mean_tokens": sum(rooms) / len(rooms),
        "none_percent": 100 * sum(room == 0 for room in rooms) / len(rooms),
    }  # fmt: skip
    chats = sets.load("chat").train
    count = sum(m["role"] == "assistant" for c in chats for m in c.messages)
    yield {
        "name": "first-turn", "chats": len(chats), "answers": count,
        "kept_percent": 100 * len(chats) / count,
    }  # fmt: skip


def quickstart_rows() -> Iterable[Row]:
    """The rows that the first chapter trains on; what it reaches is in quickstart.json."""
    yield {"name": "quickstart", "rows": len(quickstart.load_data().train)}


MEASUREMENTS: tuple[Callable[[], Iterable[Row]], ...] = (
    parameters, layer_names, nf4, packed_count, alpha_fault, warm_up, weight_decay, batches,
    mixed_precision, padding, tokens, end_of_text, answers, quickstart_rows,
)  # fmt: skip


def main() -> None:
    """Measure everything and write one JSON file."""
    rows = []
    for measure in MEASUREMENTS:
        for row in measure():
            rows.append({k: _rounded(v) for k, v in row.items()})
            print(json.dumps(rows[-1]), flush=True)
    result = {
        "device": memory.device_name(),
        "date": date.today().isoformat(),
        "versions": versions(),
        "rows": rows,
    }
    text = json.dumps(result, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8", newline="\n")


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
