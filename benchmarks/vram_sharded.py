"""What one of several GPUs holds, measured on one GPU that stands in for the first of them.

    python -m benchmarks.vram_sharded run     # rows go to $OUT/sharded.jsonl
    python -m benchmarks.vram_sharded collect sharded.jsonl

Torch's process group for tests (fake_pg) says that there are N processes and sends nothing: DDP and
FSDP2 run as they are, with all their buffers, streams and shards, on a real card and its allocator.
The loss is made in chunks, which a training under FSDP2 does not do.  What NCCL takes, and whether
a real run behaves so, `several_gpus` shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import torch

GIB = 2**30
MARK = "RESULT "
# A trained output layer makes its logits at once in these: torch 2.11's FSDP2 cannot call it again
# for a second chunk, as `loss` does with more rows.
CASES: list[dict[str, Any]] = [
    {"model": model, "gpus": gpus, "sharding": sharding, "length": length, "recipe": recipe}
    for model, gpus, sharding, length, recipe in [
        ("tinyllama-1.1b", 4, "fsdp", 512, {"method": "full", "batch_size": 8}),
        ("tinyllama-1.1b", 2, "fsdp", 512, {"method": "full", "batch_size": 4,
                                            "checkpointing": True}),
        ("tinyllama-1.1b", 8, "fsdp", 512, {"method": "full", "batch_size": 2,
                                            "gradient_accumulation": 16}),
        ("llama-2-7b", 8, "fsdp", 512, {"method": "full", "batch_size": 16,
                                        "checkpointing": True}),
        ("llama-3.2-1b", 4, "fsdp", 256, {"method": "full", "batch_size": 4}),
        ("gpt2-large", 4, "fsdp", 640, {"method": "full", "batch_size": 4}),
        ("llama-3.2-3b", 4, "fsdp", 1024, {"method": "lora", "batch_size": 16,
                                           "checkpointing": True}),
        ("llama-2-7b", 4, "fsdp", 1024, {"method": "lora", "batch_size": 8}),
        ("llama-3.2-1b", 4, "ddp", 1024, {"method": "full", "batch_size": 8}),
        ("llama-2-7b", 4, "ddp", 1024, {"method": "lora", "batch_size": 16}),
        ("llama-3.2-3b", 2, "ddp", 1024, {"method": "lora", "batch_size": 8,
                                          "checkpointing": True, "offload": True}),
        ("llama-3.2-1b", 2, "ddp", 1024, {"method": "full", "batch_size": 2,
                                          "gradient_accumulation": 4}),
    ]
]  # fmt: skip


def _config(name: str) -> Any:
    from transformers import AutoConfig

    from course_utils.memory.known import KNOWN

    fields = dict(KNOWN[name])
    return AutoConfig.for_model(fields.pop("model_type"), use_cache=False, **fields)


def _model(case: dict[str, Any], recipe: Any, place: torch.device) -> Any:
    """With weights of 0, which memory does not see; on the CPU where it is to be sharded."""
    from transformers import AutoModelForCausalLM

    from course_utils import loss, training

    config = _config(case["model"])
    short = recipe.method != "full" or recipe.base_precision == "bf16"
    home = torch.device("cpu") if case["sharding"] == "fsdp" else place
    with torch.device("meta"):
        dtype = torch.bfloat16 if short else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.to_empty(device=home)
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    for parameter in model.parameters():
        parameter.data.zero_()
    decoder = getattr(model, model.base_model_prefix)
    if hasattr(decoder, "rotary_emb"):
        decoder.rotary_emb = type(decoder.rotary_emb)(config).to(home)
    loss._KNOWN[model] = True  # trying it out would run the model before it is sharded
    return training.prepare(model, recipe).train()


def one(case: dict[str, Any]) -> dict[str, Any]:
    """A case's peaks in GiB."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from course_utils import fast, loss
    from course_utils.memory.dryrun import _casting, shard
    from course_utils.memory.sharded import rows_of
    from course_utils.recipes import Recipe

    place, gpus = torch.device("cuda" if torch.cuda.is_available() else "cpu"), case["gpus"]
    wish = Recipe(**{"precision": "bf16", "max_length": case["length"], **case["recipe"]})
    size, batches = rows_of(wish, gpus)
    recipe = wish.replace(batch_size=size, gradient_accumulation=batches)
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=gpus)
    model = _model(case, recipe, place)
    with contextlib.ExitStack() as stack:
        stack.enter_context(loss.answers_only(model))
        # with weights of 0 there is nothing to compare
        stack.enter_context(mock.patch.object(fast, "_check_same", lambda *args: None))
        if case["sharding"] == "fsdp":
            shard(model, init_device_mesh(place.type, (gpus,)), recipe)
            wrapped = model
            stack.enter_context(mock.patch.object(loss, "_by_autograd", _by_kernel(model)))
        else:
            if recipe.method != "full":
                stack.enter_context(fast.fast_layers(
                    model, dtype=torch.bfloat16, checkpointing=recipe.checkpointing,
                    offload=recipe.offload, kernels=place.type == "cuda",
                ))  # fmt: skip
            torch.cuda.empty_cache()
            where = {"device_ids": [0], "output_device": 0} if place.type == "cuda" else {}
            wrapped = torch.nn.parallel.DistributedDataParallel(model, **where)
            wrapped.register_comm_hook(None, _as_sent)
        torch.cuda.empty_cache()
        stack.enter_context(_casting(model))
        _steps(model, wrapped, recipe, case, place)
    return case | {
        "rows": [size, batches],
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
    }


def _by_kernel(model: Any) -> Any:
    """A frozen head's loss as on one GPU; FSDP gives its layer another class, which hides it."""
    from course_utils import loss

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = base.get_output_embeddings()
    return lambda summed, states, targets: loss._by_kernel(head.weight, states, targets)


def _as_sent(state, bucket):  # torch refuses annotations that are strings
    """In place of the sum over all processes, which this group does not make."""
    done = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def _steps(model: Any, wrapped: Any, recipe: Any, case: dict[str, Any], place: Any) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    pure = recipe.base_precision == "bf16"
    for _ in range(3):
        for batch in range(recipe.gradient_accumulation):
            last = batch == recipe.gradient_accumulation - 1
            waits = contextlib.nullcontext()
            if hasattr(wrapped, "set_requires_gradient_sync"):
                wrapped.set_requires_gradient_sync(last)
            elif not last:
                waits = wrapped.no_sync()
            shape = (recipe.batch_size, case["length"])
            tokens = torch.randint(900, shape, device=place)
            with waits:
                with torch.autocast(place.type, torch.bfloat16, enabled=not pure):
                    value = wrapped(input_ids=tokens, labels=tokens.clone()).loss
                value.backward()
            del value, tokens
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def run(at_once: int = 4) -> None:
    """Every case in a process of its own, some at a time."""
    out = Path(os.environ.get("OUT", "runs")) / "sharded.jsonl"
    names = ("torch", "transformers", "peft", "accelerate", "triton")
    head = {
        "device": torch.cuda.get_device_name().removesuffix(" HBM3e"),
        "date": date.today().isoformat(),
        "versions": {name: metadata.version(name) for name in names},
    }
    out.write_text(json.dumps(head) + "\n", encoding="utf-8")
    left, going = list(CASES), []
    while left or going:
        while left and len(going) < at_once:
            case = left.pop(0)
            command = [sys.executable, "-m", "benchmarks.vram_sharded", "one", json.dumps(case)]
            going.append((case, subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )))  # fmt: skip
        case, child = going.pop(0)
        said, errors = child.communicate(timeout=400)
        lines = [line for line in said.splitlines() if line.startswith(MARK)]
        row = json.loads(lines[0].removeprefix(MARK)) if lines else case | {"error": errors[-600:]}
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def calculated(row: dict[str, Any]) -> Any:
    """The estimate's peaks for a row, with the loss in chunks as here."""
    from course_utils.memory.estimate import make_job, write
    from course_utils.memory.ledger import replay
    from course_utils.recipes import Recipe

    recipe = Recipe(**{"precision": "bf16", "max_length": row["length"], **row["recipe"]})
    job = make_job(row["model"], recipe, gpus=row["gpus"], sharding=row["sharding"])
    ledger, _ = write(replace(job, own_loss=False))
    return replay(ledger)


def collect(file: str) -> Path:
    """results/vram_sharded.json: the rows, and how far off the estimate of today is."""
    lines = Path(file).read_text(encoding="utf-8").splitlines()
    head, *rows = [json.loads(line) for line in lines]
    good = [row for row in rows if "error" not in row]
    for row in good:
        peaks = calculated(row)
        row |= {
            "said_allocated_gib": peaks.highest().allocated / GIB,
            "said_reserved_gib": peaks.reserved / GIB,
            "peak_at": peaks.highest().name,
        }
    apart = {
        tier: [row[f"said_{tier}_gib"] / row[f"{tier}_gib"] - 1 for row in good]
        for tier in ("allocated", "reserved")
    }
    summary = {
        tier: {
            "mean_error": sum(map(abs, values)) / len(values),
            "worst_error": max(values, key=abs),
        }
        for tier, values in apart.items()
    }
    note = (
        "One GPU in the place of the first of several, over a process group that sends nothing "
        "(fake_pg): NCCL's own memory is not in it."
    )
    made = head | {"notes": [note], "summary": summary | {"runs": len(good)}, "rows": rows}
    path = Path(__file__).parent / "results" / "vram_sharded.json"
    path.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    if sys.argv[1] == "one":
        print(MARK + json.dumps(one(json.loads(sys.argv[2]))))
    elif sys.argv[1] == "collect":
        print(collect(sys.argv[2]))
    else:
        run()
