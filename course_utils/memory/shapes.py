"""The shape of a model: what of its config counts for memory, and its exact parameters.

`shape_of` takes a config in any form and needs neither weights nor a download.  What it does not
know it refuses: a number that was guessed would make every figure after it wrong in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CourseError
from .known import KNOWN

LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi3")
FAMILIES = (*LLAMA_LIKE, "gpt2")
FAST_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # as in `course_utils.fast`
# Left out of a config.json, these take a default of the family's own class, which is no fact of the
# model: they have to be there.  Llama's and Phi-3's is the number of query heads, a rule.
NEEDED = {
    "mistral": ("num_key_value_heads",),
    "qwen2": ("num_key_value_heads",),
    "qwen3": ("num_key_value_heads", "head_dim"),
    "gemma": ("num_key_value_heads", "head_dim"),
}
REFUSED = {
    "moe": "is a mixture of experts, whose memory depends on where its router sends the tokens",
    "mamba": "is a state-space model, which this estimate does not know",
    "vision": "reads images as well, and this estimate knows text alone",
}


@dataclass(frozen=True)
class Matrix:
    """One parameter: its name, its dimensions [outputs, inputs] or [width], and where it sits.

    place: "embedding", "positions", "head", "norm", "bias", or the name of a linear layer such as
    "q_proj".
    """

    name: str
    dims: tuple[int, ...]
    place: str

    @property
    def count(self) -> int:
        """Numbers in it."""
        return self.dims[0] * (self.dims[1] if len(self.dims) == 2 else 1)


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder layer: its short name, the block it is in, and its size."""

    name: str
    block: str  # "attention" or "mlp"
    outputs: int
    inputs: int
    bias: bool = False


@dataclass(frozen=True)
class Shape:
    """What of a model's config counts for memory.

    heads, kv_heads: of the queries, and of the keys and values (fewer in grouped-query attention).
    gated: the MLP multiplies two projections (gate and up).  head_norms: q and k are normed (Qwen
    3).  positions: learned ones (GPT-2), 0 where positions turn q and k.  longest: tokens the model
    reads at most, 0 where the config does not say.  window: attention reaches back so far.
    dropout: of (embedding, attention, residual) in training.
    """

    name: str
    family: str
    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    gated: bool = True
    joined: bool = False  # q, k, v in one layer, and gate and up in one (Phi-3, GPT-2)
    head_norms: bool = False
    activation: str = "silu"
    positions: int = 0
    longest: int = 0
    window: int = 0
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def q_width(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Width of queries, keys and values together."""
        return self.q_width + 2 * self.kv_width

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one decoder layer, in the order of use."""
        d, q, kv, f = self.width, self.q_width, self.kv_width, self.mlp_width
        a, b, o, m = "attention", self.qkv_bias, self.out_bias, self.mlp_bias
        if self.family == "gpt2":
            return (
                Linear("c_attn", a, self.qkv_width, d, b), Linear("c_proj", a, d, q, o),
                Linear("c_fc", "mlp", f, d, m), Linear("c_proj", "mlp", d, f, m),
            )  # fmt: skip
        if self.joined:
            return (
                Linear("qkv_proj", a, self.qkv_width, d, b), Linear("o_proj", a, d, q, o),
                Linear("gate_up_proj", "mlp", 2 * f, d, m), Linear("down_proj", "mlp", d, f, m),
            )  # fmt: skip
        return (
            Linear("q_proj", a, q, d, b), Linear("k_proj", a, kv, d, b),
            Linear("v_proj", a, kv, d, b), Linear("o_proj", a, d, q, o),
            Linear("gate_proj", "mlp", f, d, m), Linear("up_proj", "mlp", f, d, m),
            Linear("down_proj", "mlp", d, f, m),
        )  # fmt: skip

    def matrices(self) -> Iterator[Matrix]:
        """Every parameter of the model, in the model's own order."""
        yield Matrix("embedding", (self.vocabulary, self.width), "embedding")
        if self.positions:
            yield Matrix("positions", (self.positions, self.width), "positions")
        norm_sizes = [self.width] * (4 if self.family == "gpt2" else 2)  # weight, and a bias there
        if self.head_norms:
            norm_sizes += [self.head_dim] * 2
        for layer in range(self.layers):
            for linear in self.linears:
                name = f"layers.{layer}.{linear.name}"
                yield Matrix(name, (linear.outputs, linear.inputs), linear.name)
                if linear.bias:
                    yield Matrix(f"{name}.bias", (linear.outputs,), "bias")
            for size in norm_sizes:
                yield Matrix(f"layers.{layer}.norm", (size,), "norm")
        for _ in range(2 if self.family == "gpt2" else 1):
            yield Matrix("norm", (self.width,), "norm")
        if not self.tied:
            yield Matrix("head", (self.vocabulary, self.width), "head")

    @property
    def parameters(self) -> int:
        """All parameters; a tied output layer counts once."""
        return sum(matrix.count for matrix in self.matrices())


def shape_of(model: Any) -> Shape:
    """The shape of a model given as a name, a folder, a config file, a dict or a config object.

    Names: "smollm2" and other short ones in `KNOWN` (such as "llama-3.1-8b") need no download; a
    Hub id does, unless the Hub's cache has it.  Raises CourseError for what is not known.
    """
    if isinstance(model, Shape):
        return model
    if isinstance(model, Mapping):
        return _from_fields(dict(model), str(model.get("name", "the given config")))
    if hasattr(model, "model_type") and hasattr(model, "to_dict"):
        return _from_fields(_of_config(model), type(model).__name__)
    if not isinstance(model, str | Path):
        raise CourseError(
            f"model is {model!r} and must be a name, a folder, a config file, a dict or a config."
        )
    short = str(model).lower()
    if short in KNOWN:
        return _from_fields(dict(KNOWN[short]), str(model))
    return _from_fields(_read(model), str(model))


def _read(model: str | Path) -> dict[str, Any]:
    """The fields of a config file, of a folder's, or of a Hub model's."""
    path = Path(model).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if path.suffix != ".json":
        from transformers import AutoConfig

        from .. import models

        return _of_config(models._from_source(AutoConfig, str(model)))
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(f"{path} is no readable model config ({error}).") from error
    if not isinstance(fields, dict):
        raise CourseError(f"{path} is no model config: it must hold a JSON object.")
    return fields


def _of_config(config: Any) -> dict[str, Any]:
    """A config object's fields, its class's defaults among them."""
    names = {*config.to_dict(), "head_dim", "tie_word_embeddings", "num_key_value_heads"}
    fields = {name: getattr(config, name, None) for name in names}
    return fields | {"model_type": config.model_type}


def _from_fields(fields: dict[str, Any], name: str) -> Shape:
    family = fields.get("model_type")
    if family is None:
        raise CourseError(f"{name} lacks the field model_type: it names the architecture.")
    _refuse(fields, str(family), name)
    if family == "gpt2":
        return _gpt2(fields, name)
    return _llama_like(fields, str(family), name)


def _refuse(fields: dict[str, Any], family: str, name: str) -> None:
    """Raise CourseError for architectures that are not known, and for quantized weights."""
    kind = ""
    if any(fields.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        kind = "moe"
    elif "mamba" in family or "ssm_cfg" in fields:
        kind = "mamba"
    elif "vision_config" in fields or "text_config" in fields:
        kind = "vision"
    if kind:
        raise CourseError(f"{name} ({family}) {REFUSED[kind]}.")
    if family not in FAMILIES:
        raise CourseError(
            f"The architecture {family!r} (model_type of {name}) is not known to the estimate: "
            f"known are {', '.join(FAMILIES)}."
        )
    method = _foreign_quantization(fields.get("quantization_config"))
    if method:
        raise CourseError(
            f"The weights of {name} are quantized already ({method}), and this estimate does not "
            "know how many bytes they take: name the model that they were made from."
        )


def _foreign_quantization(config: Any) -> str:
    """How the weights are quantized, where it is not bitsandbytes' 4 bits (QLoRA's); else ""."""
    if hasattr(config, "to_dict"):  # of a loaded model
        config = config.to_dict()
    fields = config if isinstance(config, Mapping) else {}
    if not config or fields.get("load_in_4bit"):
        return ""
    method = fields.get("quant_method") or "by a method that is not named"
    return str(getattr(method, "value", method))


def _whole(fields: dict[str, Any], field: str, name: str, default: int | None = None) -> int:
    """The field as a whole number above 0; without a default it must be there."""
    value = fields.get(field)
    value = default if value is None else value
    if value is None:
        raise CourseError(f"The config of {name} lacks the field {field}.")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CourseError(
            f"{field} of {name} is {value!r} and must be a whole number of at least 1."
        )
    return value


def _share(fields: dict[str, Any], field: str, name: str, default: float = 0.0) -> float:
    """The field as a share, 0 to 1; `default` where it is not there."""
    value = fields.get(field)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise CourseError(f"{field} of {name} is {value!r} and must be a number from 0 to 1.")
    return float(value)


def _dropout(fields: dict[str, Any], name: str, default: float) -> tuple[float, float, float]:
    """Dropout of (embedding, attention, residual) under GPT-2's names."""
    places = ("embd", "attn", "resid")
    return tuple(_share(fields, f"{place}_pdrop", name, default) for place in places)


def _llama_like(fields: dict[str, Any], family: str, name: str) -> Shape:
    for field in NEEDED.get(family, ()):
        _whole(fields, field, name)
    heads = _whole(fields, "num_attention_heads", name)
    width = _whole(fields, "hidden_size", name)
    kv_heads = _whole(fields, "num_key_value_heads", name, heads)  # absent: one for each query
    _divides(heads, kv_heads, "num_attention_heads", "num_key_value_heads", name)
    if fields.get("head_dim") is None:
        _divides(width, heads, "hidden_size", "num_attention_heads", name)
    bias = bool(fields.get("attention_bias"))
    gelu = "gelu" in str(fields.get("hidden_activation") or fields.get("hidden_act") or "silu")
    windowed = fields.get("use_sliding_window", True) and fields.get("sliding_window")
    tied = fields.get("tie_word_embeddings")
    dropout = _dropout(fields, name, 0.0)
    return Shape(
        name=name, family=family, width=width, heads=heads, kv_heads=kv_heads,
        vocabulary=_whole(fields, "vocab_size", name),
        layers=_whole(fields, "num_hidden_layers", name),
        head_dim=_whole(fields, "head_dim", name, width // heads),
        mlp_width=_whole(fields, "intermediate_size", name),
        tied=family == "gemma" if tied is None else bool(tied),  # transformers' own defaults
        qkv_bias=bias or family == "qwen2", out_bias=bias and family not in ("qwen2", "phi3"),
        mlp_bias=bool(fields.get("mlp_bias")) and family == "llama",
        joined=family == "phi3", head_norms=family == "qwen3",
        activation="gelu" if gelu else "silu",
        longest=_whole(fields, "max_position_embeddings", name, 10**9) % 10**9,
        window=_whole(fields, "sliding_window", name) if windowed and family != "llama" else 0,
        dropout=(dropout[0], _share(fields, "attention_dropout", name) or dropout[1], dropout[2]),
    )  # fmt: skip


def _gpt2(fields: dict[str, Any], name: str) -> Shape:
    width, heads = _whole(fields, "n_embd", name), _whole(fields, "n_head", name)
    _divides(width, heads, "n_embd", "n_head", name)
    if fields.get("add_cross_attention"):
        raise CourseError(f"{name} has cross-attention (add_cross_attention), which is not known.")
    tied = fields.get("tie_word_embeddings")
    return Shape(
        name=name, family="gpt2", width=width, heads=heads, kv_heads=heads,
        vocabulary=_whole(fields, "vocab_size", name),
        layers=_whole(fields, "n_layer", name), head_dim=width // heads,
        mlp_width=_whole(fields, "n_inner", name, 4 * width),
        tied=True if tied is None else bool(tied),
        qkv_bias=True, out_bias=True, mlp_bias=True, gated=False, joined=True,
        activation=str(fields.get("activation_function") or "gelu_new"),
        positions=_whole(fields, "n_positions", name),
        longest=_whole(fields, "n_positions", name),
        dropout=_dropout(fields, name, 0.1),
    )  # fmt: skip


def _divides(whole: int, by: int, field: str, other: str, name: str) -> None:
    if whole % by:
        raise CourseError(f"{field} of {name} is {whole}, which {other} = {by} does not divide.")
