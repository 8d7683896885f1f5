"""The base model by name: the embedded one, a Hub id, a folder, or random weights from a config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import compat, fetch, hub
from .errors import CourseError

EMBEDDED = "smollm2"
HUB_NAMES = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}  # where an embedded model comes from
UNUSABLE = (  # what the libraries raise for files that are missing, damaged or of another kind
    OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
compat.quiet()


def device() -> torch.device:
    """Where training runs here: a CUDA device, of several processes each its own; else the CPU."""
    if torch.cuda.is_available():
        local = os.environ.get("LOCAL_RANK")  # said by what launched several processes
        return torch.device("cuda" if local is None else f"cuda:{local}")
    return torch.device("cpu")


def load_tokenizer(name: str | Path = EMBEDDED) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to the model `name`; it always has a padding token."""
    tokenizer = _from_source(AutoTokenizer, name)
    if tokenizer.pad_token_id is None:  # never read as a label: the collator masks by position
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load(
    name: str | Path | PretrainedConfig = EMBEDDED,
    *,
    dtype: torch.dtype = torch.float32,
    quantize: bool = False,
    storage: torch.dtype | None = None,
    on: torch.device | str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Load a causal language model.

    `name`: "smollm2" (embedded), a Hub id, a folder with safetensors weights, or a config
    (`PretrainedConfig`, or a path to a config `.json`) for random weights drawn with `seed`.
    `quantize=True` holds the linear layers in NF4 with double quantization (QLoRA,
    arXiv:2305.14314, section 3) and computes in `dtype`, on a GPU and on the CPU alike.
    storage: how the packed 4-bit numbers are declared (default uint8; the bits are the same).  To
    be shared out among processes (FSDP) they have to be of the other weights' type.
    Remote code is never run and pickled weights are never read.  Raises CourseError.
    """
    place = torch.device(on) if on is not None else device()
    if place.type == "cuda" and not torch.cuda.is_available():
        raise CourseError("There is no CUDA GPU here: leave `on` out, or say on='cpu'.")
    options: dict[str, Any] = {"dtype": dtype}
    if quantize:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=storage,
        )
        options["device_map"] = {"": place}
    config = _as_config(name)
    if config is not None:
        return _random_weights(config, options, place, seed)
    with compat.without_progress_bars():
        model, found = _from_source(
            AutoModelForCausalLM, name, use_safetensors=True, output_loading_info=True, **options
        )
    if found["missing_keys"]:  # transformers only warns, and goes on with random numbers
        raise CourseError(
            f"{name} lacks {len(found['missing_keys'])} weights of a {type(model).__name__}, such "
            f"as {min(found['missing_keys'])}: it is damaged, or is no causal language model."
        )
    return _ready(model if quantize else model.to(place))


def source_of(model: nn.Module) -> str | None:
    """What a recipe calls the base of this model: "smollm2", a Hub id or a folder; None: unknown.

    None for random weights, and for what was not loaded by name.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = getattr(base, "name_or_path", "")
    for part in Path(name).parts:  # in the Hub's cache, a folder models--OWNER--NAME
        if part.startswith("models--"):
            name = part.removeprefix("models--").replace("--", "/", 1)
    own = (HUB_NAMES[EMBEDDED], str(fetch.cache_dir() / fetch.FOLDER))
    return EMBEDDED if name in own else name or None


def _random_weights(
    config: PretrainedConfig, options: dict[str, Any], place: torch.device, seed: int
) -> PreTrainedModel:
    if "quantization_config" in options:
        raise CourseError(
            "Random weights cannot be loaded in 4 bits directly: save the model to a folder first "
            "(`load(config).save_pretrained(folder)`) and load that folder with quantize=True."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, dtype=options["dtype"])
        except ValueError as error:
            raise CourseError(
                f"transformers has no causal language model for a {type(config).__name__}: take "
                "the config of one, such as LlamaConfig or GPT2Config."
            ) from error
    return _ready(model.to(place))


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    keep_4bit_trainable(model)
    return model.eval()


def _as_config(name: str | Path | PretrainedConfig) -> PretrainedConfig | None:
    if isinstance(name, PretrainedConfig):
        return name
    if not str(name).endswith(".json"):
        return None
    try:
        fields = json.loads(Path(name).read_text(encoding="utf-8"))
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except (*UNUSABLE, AttributeError) as error:
        raise CourseError(
            f"{name} is no readable model config ({_brief(error)}): it must be a JSON object with "
            'at least "model_type", as in the config.json of a model on the Hub.'
        ) from error


def _from_source(loader: Any, name: str | Path, **options: Any) -> Any:
    """`loader.from_pretrained`, with one sentence instead of a traceback for what goes wrong."""
    if name == EMBEDDED:
        name = fetch.embedded_model()
    folder = Path(name).expanduser()
    if not folder.is_dir() and _looks_like_path(str(name)):
        raise CourseError(f"There is no model folder {name}: check the path (now in {Path.cwd()}).")
    if not folder.is_dir():
        folder = None if hub.reachable(str(name)) else _kept_by_hub(str(name))
    try:
        return loader.from_pretrained(str(folder or name), trust_remote_code=False, **options)
    except torch.OutOfMemoryError:
        raise
    except UNUSABLE as error:
        raise CourseError(_why_not(name, folder is not None, error)) from error


def _kept_by_hub(name: str) -> Path:
    """The folder in which the Hub's cache keeps this model since an earlier download."""
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        raise CourseError(_no_hub(name))
    return Path(config).parent


def _looks_like_path(name: str) -> bool:
    """Also owner/name where a folder `owner` is here: runs/recpie is a slip, no name of the Hub."""
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1:
        return True
    return "/" in name and Path(name).parent.is_dir()


def _why_not(name: str | Path, is_folder: bool, error: Exception) -> str:
    text = _brief(error)
    if "trust_remote_code" in text or "custom code" in text:
        return (
            f"{name} brings Python code of its own, which this course never runs: choose a model "
            "whose architecture is part of transformers."
        )
    if is_folder:
        return (
            f"The folder {name} holds no model that can be loaded safely ({text}): it needs "
            "config.json, the tokenizer's files and *.safetensors (pickled .bin files are refused)."
        )
    return f"{_no_hub(name)} ({text})"


def _no_hub(name: str | Path) -> str:
    return (
        f"The model {name} could not be had from the Hub (no such model, or no network): check "
        f'both, or use the embedded model, "{EMBEDDED}", which needs neither.'
    )


def _brief(error: Exception) -> str:
    """The error's text on one line, 200 characters of it at most."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + " ..."


def load_or_embedded(name: str) -> str:
    """`name`, or the embedded model's, after saying so, where the Hub cannot be asked for it.

    A folder that is not there, or cannot be used, stays an error.
    """
    try:
        _from_source(AutoConfig, name)
        return name
    except CourseError as error:
        if _looks_like_path(name) or Path(name).is_dir():
            raise
        print(f"{error} Going on with the embedded model.", file=sys.stderr)
        return EMBEDDED


# --------------------------------------------------------------------------- what is in a model


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer that maps hidden states to logits, if the model has one."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if get else None


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> module of every layer an adapter can sit on, the output layer left out.

    Covers `nn.Linear` and its 4-bit and 8-bit forms, and GPT-2's `Conv1D`.
    """
    from transformers.pytorch_utils import Conv1D

    head = output_layer(model)
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }


def target_layers(model: nn.Module, targets: str | Iterable[str] = "all-linear") -> list[str]:
    """The full names of the layers that `targets` means, found in any architecture.

    "all-linear": every linear layer but the output layer; "attention": those inside attention
    blocks; or short names such as "q_proj", each of which must occur in the model.
    """
    layers = list(linear_layers(model))
    short = sorted({_short(name) for name in layers})
    if targets == "all-linear":
        found = layers
    elif targets == "attention":
        found = [name for name in layers if "att" in name.rpartition(".")[0].lower()]
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        missing = [name for name in wanted if name not in short]
        if missing:
            raise CourseError(
                f"{type(model).__name__} has no layer called {', '.join(missing)}: its linear "
                f"layers are {', '.join(short)}; name some of these, or use targets='all-linear' "
                "(chapter 10, 'target modules not found')."
            )
        found = [name for name in layers if _short(name) in wanted]
    if not found:
        raise CourseError(
            f"No {'attention' if targets == 'attention' else 'linear'} layers were found in "
            f"{type(model).__name__}: name them yourself, out of {', '.join(short) or 'none'}."
        )
    return found


def target_modules(model: nn.Module, targets: str | Iterable[str] = "all-linear") -> list[str]:
    """The short names of `target_layers`, each once: "q_proj" for all layers that end so."""
    return sorted({_short(name) for name in target_layers(model, targets)})


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; a 4-bit weight counts as the numbers it stands for.

    bitsandbytes packs two 4-bit numbers into one byte, so `p.numel()` would halve the total and
    nearly double the printed share of trainable parameters.
    """
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = state.shape.numel() if state is not None else parameter.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """The 4-bit model with ordinary layers in its place, whose weights are what it computed with.

    In the model's own precision, so four times the memory; the model given is changed and returned.
    An adapter is merged into this one, since a merge into 4 bits rounds the sum once more.
    Raises CourseError for a model that is not in 4 bits, or that carries an adapter.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        raise CourseError(f"This {type(model).__name__} is not in 4 bits: use it as it is.")
    if hasattr(model, "peft_config"):
        raise CourseError(
            "Dequantize the base model first, then put the adapter on it: "
            "PeftModel.from_pretrained(models.dequantized(base), folder)."
        )
    model = model.dequantize()
    model.is_loaded_in_4bit = False
    return model


def keep_4bit_trainable(model: nn.Module) -> int:
    """Stop bitsandbytes from repacking 4-bit weights on the CPU; returns how many layers.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 repacks a `Linear4bit` at its first forward in
    eval mode without gradients, for a kernel that has no backward: a training that follows loses
    the gradients that should flow through the base, without any error.  Raises CourseError where
    that has happened already.
    """
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    for layer in layers:
        state = getattr(layer.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise CourseError(
                "This 4-bit model was used for inference before, and bitsandbytes then repacked "
                "its weights in a form that passes no gradients on: load it again with "
                "models.load(..., quantize=True), which prevents that "
                "(chapter 10, '4-bit model used before training')."
            )
        layer.support_avx512bf16_for_cpu = False
    return len(layers)
