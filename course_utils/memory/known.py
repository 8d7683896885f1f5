"""Shapes of well-known models by short names, so that an estimate needs no download.

The numbers are those of each model's published config.json.
"""

from __future__ import annotations

from typing import Any


def _llama(family: str, vocabulary: int, width: int, mlp: int, layers: int, heads: int,
           kv_heads: int, tied: bool = False, head_dim: int | None = None,
           longest: int = 32768, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": family, "vocab_size": vocabulary, "hidden_size": width,
        "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim or width // heads,
        "tie_word_embeddings": tied, "max_position_embeddings": longest,
    } | more  # fmt: skip


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": width, "n_layer": layers,
        "n_head": heads, "n_positions": 1024, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        "resid_pdrop": 0.1, "activation_function": "gelu_new",
    }  # fmt: skip


KNOWN: dict[str, dict[str, Any]] = {
    "smollm2": _llama("llama", 49152, 576, 1536, 30, 9, 3, True, longest=8192),
    "smollm2-135m": _llama("llama", 49152, 576, 1536, 30, 9, 3, True, longest=8192),
    "smollm2-360m": _llama("llama", 49152, 960, 2560, 32, 15, 5, True, longest=8192),
    "smollm2-1.7b": _llama("llama", 49152, 2048, 8192, 24, 32, 32, True, longest=8192),
    "tinyllama-1.1b": _llama("llama", 32000, 2048, 5632, 22, 32, 4, longest=2048),
    "llama-2-7b": _llama("llama", 32000, 4096, 11008, 32, 32, 32, longest=4096),
    "llama-2-13b": _llama("llama", 32000, 5120, 13824, 40, 40, 40, longest=4096),
    "llama-2-70b": _llama("llama", 32000, 8192, 28672, 80, 64, 8, longest=4096),
    "llama-3-8b": _llama("llama", 128256, 4096, 14336, 32, 32, 8, longest=8192),
    "llama-3.1-8b": _llama("llama", 128256, 4096, 14336, 32, 32, 8, longest=131072),
    "llama-3.1-70b": _llama("llama", 128256, 8192, 28672, 80, 64, 8, longest=131072),
    "llama-3.2-1b": _llama("llama", 128256, 2048, 8192, 16, 32, 8, True, longest=131072),
    "llama-3.2-3b": _llama("llama", 128256, 3072, 8192, 28, 24, 8, True, longest=131072),
    "mistral-7b": _llama("mistral", 32768, 4096, 14336, 32, 32, 8),
    "qwen2.5-0.5b": _llama("qwen2", 151936, 896, 4864, 24, 14, 2, True),
    "qwen2.5-1.5b": _llama("qwen2", 151936, 1536, 8960, 28, 12, 2, True),
    "qwen2.5-3b": _llama("qwen2", 151936, 2048, 11008, 36, 16, 2, True),
    "qwen2.5-7b": _llama("qwen2", 152064, 3584, 18944, 28, 28, 4),
    "qwen2.5-14b": _llama("qwen2", 152064, 5120, 13824, 48, 40, 8),
    "qwen2.5-32b": _llama("qwen2", 152064, 5120, 27648, 64, 40, 8),
    "qwen2.5-72b": _llama("qwen2", 152064, 8192, 29568, 80, 64, 8),
    "qwen3-0.6b": _llama("qwen3", 151936, 1024, 3072, 28, 16, 8, True, 128, 40960),
    "qwen3-1.7b": _llama("qwen3", 151936, 2048, 6144, 28, 16, 8, True, 128, 40960),
    "qwen3-4b": _llama("qwen3", 151936, 2560, 9728, 36, 32, 8, True, 128, 40960),
    "qwen3-8b": _llama("qwen3", 151936, 4096, 12288, 36, 32, 8, False, 128, 40960),
    "qwen3-14b": _llama("qwen3", 151936, 5120, 17408, 40, 40, 8, False, 128, 40960),
    "qwen3-32b": _llama("qwen3", 151936, 5120, 25600, 64, 64, 8, False, 128, 40960),
    "gemma-2b": _llama("gemma", 256000, 2048, 16384, 18, 8, 1, True, 256, 8192,
                       hidden_activation="gelu_pytorch_tanh"),
    "gemma-7b": _llama("gemma", 256000, 3072, 24576, 28, 16, 16, True, 256, 8192,
                       hidden_activation="gelu_pytorch_tanh"),
    "phi-3-mini": _llama("phi3", 32064, 3072, 8192, 32, 32, 32, longest=4096),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
}  # fmt: skip
