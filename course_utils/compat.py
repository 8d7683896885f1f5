"""The calls that differ between the supported versions of the libraries, each behind one function.

Supported: transformers 5.15 to 5.23, torch 2.9 and later.  `tests/test_compat.py` checks the
signatures that the course relies on against what is installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CourseError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # no warning after a fork
# GNU OpenMP's threads spin while they wait for each other.  Beside any other busy program on the
# same cores that slows a training many-fold; with a short spin, two trainings at once on two cores
# take about three times as long each, and one alone is as fast (benchmarks/contention.py measures).
# Read when torch is loaded, so the package sets it at its own import.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def quiet() -> None:
    """Silence messages that say nothing to a learner (deprecations inside the libraries)."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated.*")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
    # A run that goes on in smaller batches, which `training` has checked to hold the same rows.
    logging.getLogger("transformers.trainer_utils").addFilter(
        lambda record: "do not match the ones in the `trainer_state.json`" not in record.msg
    )
    # Checkpoints are told apart by their numbers where a disk's times are too coarse.
    logging.getLogger("transformers.trainer_utils").addFilter(
        lambda record: "mtime may not be reliable" not in str(record.msg)
    )
    # GPT-2's class name does not say which loss is its own; the default is the right one.
    logging.getLogger("transformers.modeling_utils").addFilter(
        lambda record: "`loss_type=" not in str(record.msg)
    )
    # What `models.dequantized` is asked for.
    logging.getLogger("transformers.integrations.bitsandbytes").addFilter(
        lambda record: "modules are dequantized" not in str(record.msg)
    )
    # bitsandbytes looks for an optional inference kernel at import and warns where it is absent.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Switch off transformers' own progress bars (loading, saving) inside the block."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def training_arguments(**wanted: Any):
    """`TrainingArguments` from today's names; what an older release calls otherwise is renamed."""
    from transformers import TrainingArguments

    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    strategy = wanted.pop("train_sampling_strategy", None)
    if "train_sampling_strategy" in known:  # from 5.17
        wanted["train_sampling_strategy"] = strategy or "random"
    elif strategy == "group_by_length":
        wanted["group_by_length"] = True
    return TrainingArguments(**wanted)


def enable_checkpointing(model: Any, every: int = 1) -> None:
    """Recompute activations in the backward pass instead of keeping them (non-reentrant).

    every: of each such layer, from the first on.  Raises CourseError where that is asked for and
    the installed transformers, or this model, can only checkpoint all layers.
    """
    keywords = {"use_reentrant": False}
    enable = getattr(model, "activation_checkpointing_enable", None)  # from 5.23
    enable = enable or model.gradient_checkpointing_enable
    if every == 1:
        enable(keywords)
        return
    if "every_n_layers" not in inspect.signature(enable).parameters:
        raise CourseError(
            f"checkpointing={every} needs a newer transformers for a {type(model).__name__}: set "
            "checkpointing=True, or update transformers."
        )
    enable(keywords, every_n_layers=every)


def disable_checkpointing(model: Any) -> None:
    """Undo `enable_checkpointing`."""
    if hasattr(model, "activation_checkpointing_disable"):
        model.activation_checkpointing_disable()
    else:
        model.gradient_checkpointing_disable()


def chat_text(
    tokenizer: Any, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    """The conversation as one string in the tokenizer's own chat template.

    Raises CourseError where the template refuses: some take no system message, for example.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise CourseError(
            f"The chat template of this tokenizer refuses a conversation of the roles {roles} "
            f"({error}): change the rows, or use another model."
        ) from error


def rng_state_for(checkpoint: Any, count: int, index: int) -> None:
    """Give process `index` of `count` a state of the random numbers in a checkpoint of others.

    transformers writes `rng_state.pth` in a single process, and one numbered file in each of
    several; the orders of rows are drawn by the main one.
    """
    wanted = Path(checkpoint) / (f"rng_state_{index}.pth" if count > 1 else "rng_state.pth")
    kept = [wanted.with_name(name) for name in ("rng_state_0.pth", "rng_state.pth")]
    found = next((path for path in kept if path.is_file()), None)
    if found and not wanted.is_file():
        part = wanted.with_suffix(".part")
        shutil.copy(found, part)
        part.replace(wanted)


@functools.cache
def has_flash_attention(dtype: Any) -> bool:
    """Whether torch's flash attention runs here in this precision: 16 bits, from Ampere on."""
    import torch

    return dtype in (torch.float16, torch.bfloat16) and torch.cuda.get_device_capability() >= (8, 0)


@functools.cache
def has_varlen_attention(dtype: Any) -> bool:
    """Whether torch's attention over packed rows runs here: torch 2.10, and flash attention."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return has_flash_attention(dtype)


def varlen_attention(q: Any, k: Any, v: Any, starts: Any, longest: int) -> Any:
    """Causal attention within packed rows: q, k, v [tokens, heads, dim], starts [rows + 1]."""
    from torch.nn.attention.varlen import varlen_attn

    names = inspect.signature(varlen_attn).parameters
    options = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    shared = q.shape[1] // k.shape[1]
    if shared > 1 and "enable_gqa" in names:  # from 2.13
        options["enable_gqa"] = True
    elif shared > 1:
        k, v = (x.repeat_interleave(shared, dim=1) for x in (k, v))
    return varlen_attn(q, k, v, starts, starts, longest, longest, **options)


@functools.cache
def has_triton() -> bool:
    """Whether Triton kernels run here: it comes with torch's CUDA builds for Linux."""
    import torch
    from torch.utils._triton import has_triton as works

    return torch.cuda.is_available() and works()
