"""Small models of several architectures with random weights, for tests that need no knowledge."""

from __future__ import annotations

import random

import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from course_utils import models
from course_utils.encoding import IGNORE, Encoded, EncodingReport

VOCABULARY = 49152  # the embedded tokenizer's
FEW = 997  # where no text is needed: a vocabulary that makes tests quick
# Weights ten times the usual: logits that differ, so that an error in them shows in the loss.
SHAPE = {"vocab_size": VOCABULARY, "pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
MODERN = {
    **SHAPE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}


def config(kind: str, **changes) -> PretrainedConfig:
    """The configuration of one of the small models, fields changed where given."""
    grouped = {**MODERN, "num_key_value_heads": 2, "tie_word_embeddings": True}
    makers = {
        "llama": (LlamaConfig, grouped),
        "untied": (LlamaConfig, {**grouped, "tie_word_embeddings": False}),
        "gpt2": (GPT2Config, {
            **SHAPE, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "initializer_range": 0.2,
        }),
        "gpt_neox": (GPTNeoXConfig, MODERN),
        "mistral": (MistralConfig, {**grouped, "sliding_window": None}),
        "qwen2": (Qwen2Config, grouped),
        "qwen3": (Qwen3Config, {**grouped, "head_dim": 16}),
        "phi3": (Phi3Config, {**grouped, "tie_word_embeddings": False}),
        "gemma2": (Gemma2Config, {**grouped, "head_dim": 16, "final_logit_softcapping": 2.0}),
        "cohere": (CohereConfig, {**grouped, "logit_scale": 0.25}),
        "granite": (GraniteConfig, {**grouped, "logits_scaling": 3.0}),
    }  # fmt: skip
    maker, fields = makers[kind]
    return maker(**{**fields, **changes})


def model(kind: str = "llama", seed: int = 0, **changes) -> torch.nn.Module:
    """The model itself, in fp32 on the CPU, in evaluation mode."""
    return models.load(config(kind, **changes), on="cpu", seed=seed)


def rows(count: int, seed: int = 0, longest: int = 30) -> list[dict[str, list[int]]]:
    """Rows of random tokens out of `FEW`, the second half of each labelled."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(3, FEW) for _ in range(rng.randint(4, longest))]
        half = len(ids) // 2
        made.append({"input_ids": ids, "labels": [IGNORE] * half + ids[half:]})
    return made


def encoded(count: int, seed: int = 0, longest: int = 30) -> Encoded:
    """Such rows as `encoding.encode` would hand them over."""
    made = rows(count, seed, longest)
    lengths = [len(row["input_ids"]) for row in made]
    labelled = sum(label != IGNORE for row in made for label in row["labels"])
    return Encoded(
        made, EncodingReport(count, sum(lengths), labelled, max(lengths), 0, sequences=count)
    )
