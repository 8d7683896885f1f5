"""The checks of chapter 11 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import gguf
import torch
from check_contract import CheckContract

from course_utils.checks import ship

BYTES = {"f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32, "q4_1": 20 / 32}


# ------------------------------------------------------------- sizes


def file_gib(shapes, kind, bytes_of=BYTES, vectors=4):
    each = bytes_of[kind]
    total = sum(math.prod(s) * (each if len(s) > 1 else vectors) for s in shapes)
    return total / 2**30


def with_bytes(**changed):
    return lambda shapes, kind: file_gib(shapes, kind, {**BYTES, **changed})


# ------------------------------------------------------------- streams


def stream_text(lines, choose=lambda choice: choice["delta"].get("content") or "", mark="data:"):
    text = ""
    for line in lines:
        if not line.startswith(mark):
            continue
        data = line.removeprefix(mark).strip()
        if data == "[DONE]":
            return text, True
        text += "".join(choose(choice) for choice in json.loads(data)["choices"])
    return text, False


def with_none(lines):
    return stream_text(lines, lambda choice: str(choice["delta"].get("content", "")))


def stripped(lines):
    return stream_text(lines, lambda choice: (choice["delta"].get("content") or "").strip())


def until_any_done(lines):
    end = next((i for i, line in enumerate(lines) if "[DONE]" in line), len(lines))
    return stream_text(lines[:end])[0], True


def by_finish_reason(lines):
    return stream_text(lines)[0], True


# ------------------------------------------------------------- agreement


def agreement(reference, exported):
    p, q = reference.log_softmax(-1), exported.log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).mean().item()
    return divergence, (reference.argmax(-1) == exported.argmax(-1)).float().mean().item()


def with_divergence(divergence):
    return lambda reference, exported: (
        divergence(reference, exported).item(),
        agreement(reference, exported)[1],
    )


def with_share(share):
    return lambda reference, exported: (
        agreement(reference, exported)[0],
        share(reference.argmax(-1), exported.argmax(-1)),
    )


def in_place(reference, exported):
    reference -= reference.amax(-1, keepdim=True)
    return agreement(reference, exported)


def without_maximum(reference, exported):
    p, q = reference.exp(), exported.exp()
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    return (p * (p / q).log()).sum(-1).mean(), agreement(reference, exported)[1]


# ------------------------------------------------------------- merging files


def merge_files(base, adapter, config, scale=None, turn=None):
    rank = config["r"]
    usual = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    turn = config["fan_in_fan_out"] if turn is None else turn
    merged = dict(base)
    for name, a in adapter.items():
        if ".lora_A." not in name:
            continue
        delta = adapter[name.replace(".lora_A.", ".lora_B.")] @ a
        target = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
        delta = (usual if scale is None else scale(config)) * delta
        merged[target] = base[target] + (delta.t() if turn else delta)
    return merged


def merged_in_place(base, adapter, config):
    for name, tensor in merge_files(base, adapter, config).items():
        base[name].copy_(tensor)
    return base


def merged_alone(base, adapter, config):
    merged = merge_files(base, adapter, config)
    return {name: tensor for name, tensor in merged.items() if tensor is not base[name]}


def with_prefix(base, adapter, config):
    merged = merge_files(base, adapter, config)
    return {f"base_model.model.{name}": tensor for name, tensor in merged.items()}


def turned_to_fit(base, adapter, config):
    """Looks at shapes alone, which say nothing of square matrices."""
    merged = dict(base)
    for name, a in adapter.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_A.", ".")
            delta = ship._scale(config) * adapter[name.replace(".lora_A.", ".lora_B.")] @ a
            merged[target] = base[target] + (
                delta if delta.shape == base[target].shape else delta.t()
            )
    return merged


# ------------------------------------------------------------- the order of rows


def interleave(weight, heads):
    half = len(weight) // heads // 2
    return weight.reshape(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)


def to_halves(weight, heads):
    half = len(weight) // heads // 2
    return weight.reshape(heads, half, 2, -1).transpose(1, 2).reshape(weight.shape)


def second_first(weight, heads):
    half = len(weight) // heads // 2
    return weight.reshape(heads, 2, half, -1).flip(1).transpose(1, 2).reshape(weight.shape)


# ------------------------------------------------------------- GGUF

FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}
FORMATS |= {11: "<q", 12: "<d"}


def gguf_header(data, formats=FORMATS, decode=bytes.decode, magic=b"GGUF"):
    if data[:4] != magic:
        raise ValueError(f"not a GGUF file: it begins with {data[:4]!r}")
    version, tensors, count = struct.unpack_from("<IQQ", data, 4)
    at = 24

    def take(form):
        nonlocal at
        (value,) = struct.unpack_from(form, data, at)
        at += struct.calcsize(form)
        return value

    def text():
        nonlocal at
        length = take("<Q")
        at += length
        return decode(data[at - length : at])

    values = {}
    for _ in range(count):
        key = text()
        kind = take("<I")
        values[key] = text() if kind == 8 else take(formats[kind])
    return version, tensors, values


def without_magic(data):
    return gguf_header(b"GGUF" + data[4:])


def counts_swapped(data):
    version, _, values = gguf_header(data)
    return version, len(values), values


def one_short(data):
    version, tensors, values = gguf_header(data)
    return version, tensors, dict(list(values.items())[:-1])


RIGHT = {
    "file_gib": file_gib,
    "stream_text": stream_text,
    "agreement": agreement,
    "merge_files": merge_files,
    "interleave": interleave,
    "gguf_header": gguf_header,
}
WRONG = [
    ("file_gib", lambda s, k: file_gib(s, k) * 2**30, "is in bytes"),
    ("file_gib", lambda s, k: file_gib(s, k) * 2**30 / 1e9, "is in GB"),
    ("file_gib", lambda s, k: file_gib(s, k, vectors=0), "lacks the vectors"),
    ("file_gib", lambda s, k: file_gib(s, k, vectors=2), "vectors in 16 bits"),
    ("file_gib", lambda s, k: file_gib(s, k, vectors=BYTES[k]), "vectors in"),
    ("file_gib", with_bytes(q8_0=1, q4_0=0.5, q4_1=0.5), "the codes alone"),
    ("file_gib", with_bytes(q8_0=36 / 32, q4_0=20 / 32, q4_1=24 / 32), "scales of 4 bytes"),
    ("file_gib", with_bytes(q4_1=18 / 32, q8_0=36 / 32), "lacks the minimum|scales of 4"),
    ("file_gib", with_bytes(q4_0=20 / 32, q8_0=36 / 32), "that is q4_1|scales of 4"),
    ("stream_text", with_none, "the word None"),
    ("stream_text", stripped, "lost white space"),
    ("stream_text", lambda w: (stream_text(w)[0].strip(), stream_text(w)[1]), "at its ends"),
    ("stream_text", until_any_done, "contains"),
    ("stream_text", by_finish_reason, "broke off before"),
    ("stream_text", lambda w: stream_text(w, mark="data: "), "no blank behind"),
    ("stream_text", lambda w: stream_text(w)[0], "two things are wanted"),
    ("stream_text", lambda w: stream_text([x for x in w if x.startswith("data")], lambda c:
        c["delta"]["content"]), "your code stopped"),
    ("agreement", lambda a, b: agreement(b, a), "the reference's count"),
    ("agreement", with_divergence(lambda a, b: torch.tensor(agreement(a, b)[0]) / math.log(2)),
     "in bits"),
    ("agreement", with_divergence(lambda a, b: torch.tensor(agreement(a, b)[0] * len(a))),
     "sum over positions"),
    ("agreement", with_divergence(lambda a, b: (
        a.softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).mean()), "mean over tokens"),
    ("agreement", with_divergence(lambda a, b: (a - b).abs().mean()), "distance of the logits"),
    ("agreement", with_divergence(lambda a, b: (a - b).abs().max()), "distance of the logits"),
    ("agreement", with_divergence(lambda a, b: torch.nn.functional.cross_entropy(
        b, a.softmax(-1))), "cross-entropy"),
    ("agreement", with_divergence(lambda a, b: torch.tensor(-agreement(a, b)[0])), "wrong sign"),
    ("agreement", with_divergence(lambda a, b: torch.nn.functional.kl_div(
        b.log_softmax(-1), a.softmax(-1), reduction="none").mean()), "mean over tokens"),
    ("agreement", without_maximum, "finite"),
    ("agreement", with_share(lambda a, b: (a == b).sum()), "a count"),
    ("agreement", with_share(lambda a, b: (a != b).float().mean()), "positions that differ"),
    ("agreement", in_place, "logits were changed"),
    ("merge_files", lambda *f: merge_files(*f, scale=lambda c: 1), "lacks the scale"),
    ("merge_files", lambda *f: merge_files(*f, scale=lambda c: c["lora_alpha"]), "alpha alone"),
    ("merge_files", lambda *f: merge_files(*f, scale=lambda c: c["lora_alpha"] / c["r"]),
     "with use_rslora"),
    ("merge_files", lambda *f: merge_files(*f, scale=lambda c: c["lora_alpha"] / c["r"] ** 0.5),
     "for use_rslora alone"),
    ("merge_files", lambda *f: merge_files(*f, scale=lambda c: -c["lora_alpha"] / c["r"] ** (
        0.5 if c["use_rslora"] else 1)), "taken off"),
    ("merge_files", lambda *f: merge_files(*f, turn=False), "your code stopped"),
    ("merge_files", turned_to_fit, "transposed"),
    ("merge_files", merged_in_place, "changed in place"),
    ("merge_files", merged_alone, "without an adapter belong"),
    ("merge_files", with_prefix, "no name of the base"),
    ("merge_files", lambda base, *_: dict(base), "lacks its adapter"),
    ("merge_files", lambda base, adapter, config: merge_files(base, adapter, config) | adapter,
     "among the merged weights"),
    ("interleave", lambda w, heads: w, "stand as they were"),
    ("interleave", to_halves, "go the other way"),
    ("interleave", lambda w, heads: interleave(w, 1), "the whole matrix"),
    ("interleave", second_first, "second of each pair first"),
    ("interleave", lambda w, heads: w.reshape(heads, -1, w.shape[1]).transpose(0, 1).reshape(
        w.shape), "all heads are mixed"),
    ("interleave", lambda w, heads: interleave(w, heads).reshape(heads, -1, w.shape[1]), "shape"),
    ("interleave", lambda w, heads: w.copy_(interleave(w, heads)), "changed by the function"),
    ("gguf_header", without_magic, "raise a ValueError"),
    ("gguf_header", counts_swapped, "the tensors' comes first"),
    ("gguf_header", one_short, "keys are missing"),
    ("gguf_header", lambda d: gguf_header(d, decode=bytes), "left in bytes"),
    ("gguf_header", lambda d: gguf_header(d, decode=lambda b: b.decode("latin-1")),
     "keys are missing"),
    ("gguf_header", lambda d: gguf_header(d, {**FORMATS, 4: "<i"}), "was written"),
    ("gguf_header", lambda d: gguf_header(d, {**FORMATS, 6: "<I"}), "float32"),
    ("gguf_header", lambda d: gguf_header(d, {**FORMATS, 7: "<B"}), "of type int"),
    ("gguf_header", lambda d: gguf_header(d)[1:], "three things"),
]  # fmt: skip


class TestShip(CheckContract):
    topic, right, wrong = ship, RIGHT, WRONG
    rounds = 3


def test_sizes_are_those_of_the_format() -> None:
    for kind, each in BYTES.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
        assert size / block == each


def test_a_file_is_as_large_as_its_tensors(tmp_path: Path) -> None:
    """Beyond a header of less than 1 kB."""
    path, shapes = tmp_path / "model.gguf", [(64, 128), (32, 64), (64,)]
    writer = gguf.GGUFWriter(path, "llama")
    for place, shape in enumerate(shapes):
        data = torch.randn(shape).numpy()
        if len(shape) > 1:
            kind = gguf.GGMLQuantizationType.Q4_0
            packed = gguf.quants.quantize(data, kind)
            writer.add_tensor(f"blk.{place}.weight", packed, raw_dtype=kind)
        else:
            writer.add_tensor(f"blk.{place}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beyond = path.stat().st_size - file_gib(shapes, "q4_0") * 2**30
    assert 0 < beyond < 1000
    version, tensors, values = gguf_header(path.read_bytes())
    assert (version, tensors) == (3, 3) and values == {"general.architecture": "llama"}


def test_torchs_own_divergence_is_right() -> None:
    def attempt(reference, exported):
        p, q = reference.log_softmax(-1), exported.log_softmax(-1)
        divergence = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
        return divergence, (reference.argmax(-1) == exported.argmax(-1)).float().mean()

    ship.agreement(attempt)


def test_interleaved_rows_turn_as_neighbors() -> None:
    """What transformers' rotation makes of halves, a rotation of neighbors makes of the result."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads, half, rows = 3, 4, 5
    weight, x = torch.randn(heads * 2 * half, 6), torch.randn(rows, 6)
    angles = torch.outer(torch.arange(rows), 10000.0 ** (-torch.arange(half) / half))
    split = (x @ weight.t()).reshape(1, rows, heads, 2 * half).transpose(1, 2)
    turned, _ = apply_rotary_pos_emb(
        split,
        split,
        torch.cat([angles] * 2, -1).cos()[None],
        torch.cat([angles] * 2, -1).sin()[None],
    )
    pairs = (x @ interleave(weight, heads).t()).reshape(rows, heads, half, 2)
    first, second = pairs.unbind(-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    neighbors = torch.stack([first * cos - second * sin, second * cos + first * sin], -1)
    wanted = interleave(turned[0].transpose(0, 1).reshape(rows, -1).t().contiguous(), heads).t()
    assert torch.allclose(neighbors.reshape(rows, -1), wanted, atol=1e-5)
