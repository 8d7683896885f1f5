"""Write a model folder as one GGUF file, which llama.cpp and the programs built on it read.

A GGUF holds everything: the model's shape, the tokenizer, the chat template and the weights.  What
is written here is read back by transformers (`gguf_file=`) and by llama.cpp to the same tokens;
`benchmarks/gguf_check.py` compares them.  Llama's architecture only: every other one needs its own
names and its own order of weights, which llama.cpp's `convert_hf_to_gguf.py` knows.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from . import compat, damage, models
from .errors import CourseError
from .stopping import BEST

ARCHITECTURE = gguf.MODEL_ARCH.LLAMA
ELSEWHERE = "convert it with llama.cpp's convert_hf_to_gguf.py, which knows it"
KINDS = {  # how matrices are stored -> llama.cpp's number for such a file
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
Q8_BLOCK = 32  # neighbors that share a scale


def to_gguf(folder: str | Path, path: str | Path, kind: str = "f16") -> Path:
    """Write the model in `folder` (config, tokenizer, safetensors) to the file `path`.

    kind: "f32", "f16", or "q8_0" (8 bits a weight and a 16-bit scale for each 32).  Norms stay in
    32 bits.  One tensor is held in memory at a time.  Raises CourseError for another architecture
    or tokenizer, a file that is there already, and a folder without a whole, undamaged model.
    """
    folder, path = Path(folder), Path(path)
    if kind not in KINDS:
        raise CourseError(f"kind is {kind!r} and must be one of {', '.join(KINDS)}.")
    if path.exists():
        raise CourseError(f"{path} is there already: delete it, or choose another name.")
    config = _config(folder)
    _check(config, kind)
    tokenizer = models.load_tokenizer(folder)
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    _write_shape(writer, config, folder.resolve().name, kind)
    _write_tokenizer(writer, tokenizer, config.vocab_size)
    part = path.with_name(path.name + ".part")  # renamed when it is whole
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_weights(writer, folder, config, kind, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def read_gguf(path: str | Path) -> PreTrainedModel:
    """The model in a GGUF file, in 32 bits on the CPU, as transformers reads it (`gguf_file=`)."""
    path = Path(path)
    if not path.is_file():
        raise CourseError(f"There is no file {path}: write it with to_gguf first.")
    with compat.without_progress_bars(), _without_readers_bar():
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    return model.eval()


@contextlib.contextmanager
def _without_readers_bar() -> Iterator[None]:
    """The progress bar of the GGUF reader knows nothing of transformers' switch for all others."""
    from transformers import modeling_gguf_pytorch_utils as reader

    shown, reader.tqdm = reader.tqdm, lambda rows, **_: rows
    try:
        yield
    finally:
        reader.tqdm = shown


def _config(folder: Path) -> PretrainedConfig:
    if (folder / "adapter_config.json").is_file():
        raise CourseError(f"{folder} holds an adapter, not a whole model: merge it first.")
    if not (folder / "config.json").is_file() or not _weight_files(folder):
        raise CourseError(f"{folder} holds no model: it needs config.json and *.safetensors.")
    return models._from_source(AutoConfig, folder)


def _weight_files(folder: Path) -> list[Path]:
    """The model's own: an early stopping that was killed leaves its best weights beside them."""
    return sorted(file for file in folder.glob("*.safetensors") if file.name != BEST)


def _check(config: PretrainedConfig, kind: str) -> None:
    """Whether this model is computed as llama.cpp computes a plain Llama."""
    if config.model_type != "llama":
        raise CourseError(
            f"This is a {config.model_type} model, and to_gguf writes Llama's architecture only: "
            f"{ELSEWHERE}."
        )
    rope = config.rope_parameters["rope_type"]
    odd = {
        "biases": config.attention_bias or config.mlp_bias,
        f"rotary positions of the type {rope}": rope != "default",
        f"the activation {config.hidden_act}": config.hidden_act != "silu",
        "4-bit weights": hasattr(config, "quantization_config"),
    }
    for what in (name for name, found in odd.items() if found):
        raise CourseError(f"This Llama has {what}, which to_gguf cannot write: {ELSEWHERE}.")
    if kind == "q8_0" and (config.hidden_size % Q8_BLOCK or config.intermediate_size % Q8_BLOCK):
        raise CourseError(f"q8_0 needs rows of a multiple of {Q8_BLOCK} weights: take f16.")


def _write_shape(writer: gguf.GGUFWriter, config: PretrainedConfig, name: str, kind: str) -> None:
    head = config.head_dim
    writer.add_name(name)
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


# ------------------------------------------------------------------------------- the tokenizer


def _write_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int
) -> None:
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")  # byte-level BPE, whoever made it
    writer.add_tokenizer_pre(_splitting(stored))
    tokens, types = _tokens(stored, size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = stored["model"]["merges"]  # as pairs, or in older files as text
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _splitting(stored: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which this tokenizer cuts text before it merges bytes."""
    rule = stored["pre_tokenizer"] or {}
    steps = rule.get("pretokenizers", [rule])
    kinds = [step.get("type") for step in steps]
    byte_level = steps[-1]
    plain = byte_level.get("use_regex", True) and not byte_level.get("add_prefix_space")
    if stored["model"]["type"] == "BPE" and stored["normalizer"] is None and plain:
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
            return "smollm"
    raise CourseError(
        "This tokenizer is not GPT-2's kind of byte-level BPE, the only one that to_gguf writes: "
        f"{ELSEWHERE}."
    )


def _tokens(stored: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token's text and type by number; numbers that no token has are marked as unused."""
    texts = {number: text for text, number in stored["model"]["vocab"].items()}
    types = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in stored["added_tokens"]:
        texts[added["id"]] = added["content"]
        special = added["special"]
        types[added["id"]] = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
    if max(texts) >= size:
        raise CourseError(
            f"The tokenizer knows {max(texts) + 1} tokens and the model {size}: they do not belong "
            "together."
        )
    names = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return names, [types.get(number, gguf.TokenType.UNUSED) for number in range(size)]


# --------------------------------------------------------------------------------- the weights


def _write_weights(
    writer: gguf.GGUFWriter, folder: Path, config: PretrainedConfig, kind: str, path: Path
) -> None:
    """A table of all tensors' names and sizes first, then the tensors, one by one."""
    found = list(_places(folder, config))
    for name, shape, _, _ in found:
        stored, dtype = _stored_as(shape, kind)
        quantized = stored == gguf.GGMLQuantizationType.Q8_0
        size = gguf.quant_shape_to_byte_shape(shape, stored) if quantized else shape
        count = math.prod(size) * np.dtype(dtype).itemsize
        writer.add_tensor_info(name, size, np.dtype(dtype), count, raw_dtype=stored)
    writer.write_header_to_file(path)
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, shape, file, source in found:
            weight = _ordered(source, _read(file, source), config)
            writer.write_tensor_data(gguf.quantize(weight, _stored_as(shape, kind)[0]))
    finally:
        writer.close()


def _stored_as(shape: Sequence[int], kind: str) -> tuple[gguf.GGMLQuantizationType, type]:
    """How a tensor is stored, and the type of the array that is written."""
    if len(shape) == 1 or kind == "f32":
        return gguf.GGMLQuantizationType.F32, np.float32
    return KINDS[kind][0], np.float16 if kind == "f16" else np.uint8


def _places(folder: Path, config: PretrainedConfig) -> Iterator[tuple[str, list[int], Path, str]]:
    """(name in GGUF, shape, file, name in the file) of every weight that is to be written."""
    names = gguf.get_tensor_name_map(ARCHITECTURE, config.num_hidden_layers)
    for file in _weight_files(folder):
        with _open(file) as tensors:
            for source in tensors.keys():  # noqa: SIM118 (it is no dict)
                name = names.get_name(source, try_suffixes=(".weight",))
                if name is None:
                    raise CourseError(f"{file} holds {source}, which no Llama has: {ELSEWHERE}.")
                if name == "output.weight" and config.tie_word_embeddings:
                    continue  # its absence says that the embedding serves as output layer too
                yield name, tensors.get_slice(source).get_shape(), file, source


@contextlib.contextmanager
def _open(file: Path) -> Iterator[Any]:
    with (
        damage.named(file, "it is damaged; copy the model's folder again, or save it anew"),
        safe_open(file, "pt") as tensors,
    ):
        yield tensors


def _read(file: Path, name: str) -> np.ndarray:
    """One weight in 32 bits; numpy has no bf16."""
    with _open(file) as tensors:
        return tensors.get_tensor(name).float().numpy()


def _ordered(name: str, weight: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """The rows of q and k as llama.cpp wants them.

    Rotary positions turn pairs of a head's numbers.  transformers pairs number i with i + head/2,
    llama.cpp 2i with 2i + 1: so the two halves of each head are interleaved.
    """
    heads = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": config.num_key_value_heads,
    }
    for end, count in heads.items():
        if name.endswith(end):
            halves = weight.reshape(count, 2, -1, weight.shape[1])
            return halves.swapaxes(1, 2).reshape(weight.shape)
    return weight
