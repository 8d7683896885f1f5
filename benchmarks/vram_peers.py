"""What other estimators say about the runs of the memory grid, in GiB (2^30 bytes).

- fitcheck: fitcheck-llm, through its Python interface, with an H200 as the card.  It models PEFT
  with the stock layers and all logits; offload, checkpointing of some layers, fp8 and packing are
  not among its options.  Weights that we hold in fp32 and compute in bf16 it knows as precision
  "fp32"; all others are "bf16".  SDPA counts as its `flash_attn`.  allocated: its five tensor
  components; process: its total, with its overhead for cards it has not measured (500 MiB and 5 %).
- accelerate: `accelerate estimate-memory` (its own two functions on the model without memory):
  Adam's fp32 training figure; the model's is 4 times the weights, whatever the method is.
- llamafactory: the table in the README of LLaMA-Factory (commit ff6d4d1; "estimated"), a figure for
  the process: its 7B column for a 7B model, its column "xB" for others, in GB of 10^9 bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import vram_cases
from benchmarks.gpu_common import GIB, Row
from benchmarks.vram_cases import Case

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# GB for 7 billion parameters, and GB for each billion.
LLAMAFACTORY = {"full": (120, 18), "full, bf16": (60, 8), "lora": (16, 2), "qlora": (6, 0.5)}


def fill(path: Path, fitcheck: str | None) -> None:
    """Write `peers` into each row of a result file, and their versions above the rows."""
    sys.path.insert(0, fitcheck or "")
    result = json.loads(path.read_text(encoding="utf-8"))
    cases = {case.name: case for case in vram_cases.all_cases()}
    for row in result["rows"]:
        case = cases.get(row["name"])
        if case and case.what != "weights" and (case.judged or case.dtype is None):
            row["peers"] = peers(case)
    made = {"about": " ".join(__doc__.split()), "fitcheck-llm": _version("fitcheck-llm")}
    result = {"peers": made | {"accelerate": metadata.version("accelerate")}} | result
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8", newline="\n")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise SystemExit(
            f"{package} is not there: pip install --no-deps --target FOLDER {package}, then "
            "give --fitcheck FOLDER."
        ) from error


def peers(case: Case) -> dict[str, Row | None]:
    """Name of the estimator -> its figures for the case; None where it does not take the model."""
    return {
        "fitcheck": fitcheck(case),
        "accelerate": {"allocated_gib": round(_accelerate_bytes(case.shape) / GIB, 3)},
        "llamafactory": {"process_gib": round(llamafactory(case), 3)},
    }


def fitcheck(case: Case) -> Row | None:
    """fitcheck's figures."""
    from fitcheck import estimator, gpu_db

    config, recipe = _fitcheck_config(case.shape), case.made_recipe()
    if config is None:
        return None
    wide = case.method == "full" and recipe.base_precision != "bf16"
    targets = {"all-linear": LINEAR, "attention": LINEAR[:4]}.get(recipe.targets, recipe.targets)
    options = estimator.TrainingConfig(
        precision="fp32" if wide else "bf16",
        quantization="nf4" if case.method == "qlora" else "none",
        double_quant=case.method == "qlora",
        optimizer="adamw" if recipe.optimizer == "adamw" else "adam8bit",
        batch_size=recipe.batch_size,
        seq_len=case.length,
        lora_rank=None if case.method == "full" else recipe.rank,
        lora_targets=list(targets),
        grad_checkpoint=bool(recipe.checkpointing),
        flash_attn=True,
        grad_accum_steps=recipe.gradient_accumulation,
    )
    report = estimator.estimate(config, options, gpu_db.get_gpu("h200"))
    tensors = report.total_mib - report.overhead_mib
    return {
        "allocated_gib": round(tensors / 1024, 3),
        "process_gib": round(report.total_mib / 1024, 3),
    }


@functools.cache
def _fitcheck_config(shape: str) -> Any:
    """fitcheck's reading of the config.json, from a cache of the Hub made for it.

    With network it would ask the Hub for the exact number of parameters, and refuse a model whose
    number differs from its own formula by more than 2 %; here both are done with the counted one.
    """
    from fitcheck import config_parser

    fields, exact = vram_cases.SHAPES[shape], vram_cases.parameters(shape)
    with tempfile.TemporaryDirectory() as cache:
        path = Path(cache) / "config.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        with _instead(config_parser, hf_hub_download=lambda **_: str(path),
                      _reported_param_count=lambda *_: exact):  # fmt: skip
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    config = config_parser.fetch_model_config(shape)
            except ValueError as error:
                print(f"fitcheck does not take {shape}: {str(error)[:160]}")
                return None
    return dataclasses.replace(config, num_params=exact)


@contextlib.contextmanager
def _instead(module: Any, **values: Any):
    """Attributes of a module, others inside the block: there is no network to ask."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@functools.cache
def _accelerate_bytes(shape: str) -> float:
    """accelerate's training figure, by its own functions: 4 times the weights in fp32."""
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils.modeling import calculate_maximum_sizes
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(vram_cases.config(vram_cases.SHAPES[shape]))
    total, _ = calculate_maximum_sizes(model)
    return max(estimate_training_usage(total, "float32").values())


def llamafactory(case: Case) -> float:
    """The table's figure in GiB."""
    kind = case.method
    if kind == "full" and case.made_recipe().base_precision == "bf16":
        kind = "full, bf16"
    seven, each = LLAMAFACTORY[kind]
    billions = vram_cases.parameters(case.shape) / 1e9
    return (seven if round(billions) == 7 else each * billions) * 1e9 / GIB
