"""Checks of chapter 11: file sizes, streams, agreement, order of rows, merging, GGUF."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import check, draw, expect, same, same_items, same_number, short, unchanged

BLOCK = 32
BLOCK_BYTES = {"q8_0": 34, "q4_0": 18, "q4_1": 20}
GIB = 2**30


def _is(got: Any, value: float) -> bool:
    """Whether this is that number, to six digits."""
    is_number = isinstance(got, int | float) and not isinstance(got, bool)
    return is_number and math.isclose(got, value, rel_tol=1e-6)


# --------------------------------------------------------------- 1: the size of a file


@check("a block of 32 numbers and its scale: 8.5 bits a number for q8_0, 4.5 for q4_0, 5 for q4_1.")
def file_gib(attempt: Any) -> None:
    width = 32 * draw.integer(60, 120)
    shapes = [(width, 4 * width)] * draw.integer(8, 20) + [(width,)] * draw.integer(3000, 9000)
    for kind in draw.sample(["f16", *BLOCK_BYTES], 4):
        got = attempt(list(shapes), kind)
        for off, value in _wrong_sizes(shapes, kind).items():
            expect(not _is(got, value), f"for {kind}, the size {off}")
        right = _bytes(shapes, kind) / GIB
        same_number(got, right, f"the size for {kind}", tolerance=1e-6, look="one block, in bytes")


def _bytes(shapes: Sequence[tuple[int, ...]], kind: str, vectors: float = 4) -> float:
    """Bytes of the tensors of a GGUF file; vectors: bytes of a number in one of these."""
    each = BLOCK_BYTES[kind] / BLOCK if kind in BLOCK_BYTES else 2
    return sum(math.prod(shape) * (each if len(shape) > 1 else vectors) for shape in shapes)


def _wrong_sizes(shapes: Sequence[tuple[int, ...]], kind: str) -> dict[str, float]:
    """Usual mistakes and the GiB that they lead to."""
    numbers = sum(math.prod(shape) for shape in shapes if len(shape) > 1)
    right, blocks = _bytes(shapes, kind), numbers / BLOCK
    known = {
        "is in bytes: GiB are wanted": right,
        "is in GB, of 10^9 bytes: a GiB has 2^30": right / 1e9,
        "lacks the vectors": _bytes(shapes, kind, 0) / GIB,
        "has the vectors in 16 bits: they stay in f32": _bytes(shapes, kind, 2) / GIB,
    }
    if kind in BLOCK_BYTES:
        extra = {"q8_0": 2, "q4_0": 2, "q4_1": 4}[kind]
        each = BLOCK_BYTES[kind] / BLOCK
        known |= {
            "has the vectors in blocks too: they stay in f32": _bytes(shapes, kind, each) / GIB,
            "has the codes alone: each block of 32 has a scale": (right - extra * blocks) / GIB,
            "has scales of 4 bytes: they take 2": (right + extra * blocks) / GIB,
        }
    if kind == "q4_1":
        known["lacks the minimum of each block"] = (right - 2 * blocks) / GIB
    if kind == "q4_0":
        known["has a minimum for each block: that is q4_1"] = (right + 2 * blocks) / GIB
    return known


# --------------------------------------------------------------- 2: a streamed answer


@check("the text of all deltas as they are, and whether the end was announced or the line broke.")
def stream_text(attempt: Any) -> None:
    for whole in (True, False):
        pieces = _pieces()
        text = "".join(piece for piece in pieces if piece)
        lines = _stream(pieces, whole)
        got = attempt(list(lines))
        expect(
            isinstance(got, tuple | list) and len(got) == 2,
            f"two things are wanted, and it returned {short(got)}: return text, whole",
        )
        _explain_text(got[0], text, pieces, lines)
        expect(
            isinstance(got[1], bool),
            f"the second result is {short(got[1])}: True or False is wanted",
        )
        case = "data: [DONE] came" if whole else "the stream broke off before data: [DONE]"
        expect(got[1] == whole, f"{case}, and it says {got[1]}")


def _pieces() -> list[str | None]:
    """The deltas' contents: some are None or empty, some begin or end in white space."""
    words = [f" {draw.word()}" for _ in range(draw.integer(3, 5))]
    odd = [" ", "\n", "", None, "data: ", "  - é\n", '"{}"']
    pieces: list[str | None] = [*words, *odd]
    return [draw.word(), *draw.sample(pieces, len(pieces)), " [DONE]", draw.word(), "\n"]


def _stream(pieces: list[str | None], whole: bool) -> list[str]:
    """The lines that a server sends for these pieces, as OpenAI's protocol has them."""

    def line(*choices: dict[str, Any], **more: Any) -> str:
        space = draw.pick((" ", " ", ""))  # one space behind the colon may be left out
        chunk = {"object": "chat.completion.chunk", "choices": choices, **more}
        return f"data:{space}{json.dumps(chunk)}"

    lines = [": keep-alive", "", line({"index": 0, "delta": {"role": "assistant"}})]
    for piece in pieces:
        lines += ["", line({"index": 0, "delta": {"content": piece}, "finish_reason": None})]
        if draw.integer(1, 4) == 1:
            lines += ["", ": keep-alive", "event: message"]
    if whole:
        lines += ["", line({"index": 0, "delta": {}, "finish_reason": "stop"})]
        lines += ["", line(usage={"completion_tokens": len(pieces)}), "", "data: [DONE]", ""]
    return lines


def _contents(line: str) -> str:
    """What one line of a stream adds to the text."""
    data = line.removeprefix("data:").strip()
    choices = json.loads(data)["choices"] if data.startswith("{") else ()
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def _explain_text(got: Any, text: str, pieces: list[str | None], lines: list[str]) -> None:
    """NotYet where the text put together is not the one that was sent."""
    expect(isinstance(got, str), f"the text is {short(got)}, of type {type(got).__name__}")
    known = {
        "has lost white space: contents are joined as they come, blanks and line ends included": (
            "".join((piece or "").strip() for piece in pieces)
        ),
        "has lost the white space at its ends": text.strip(),
        "holds the word None: a delta's content may be null": "".join(map(str, pieces)),
        "has blanks between the pieces that nobody sent": " ".join(p for p in pieces if p),
        "ends where a delta *contains* [DONE]: the end is the line `data: [DONE]`": text.partition(
            " [DONE]"
        )[0],
        "lacks the pieces whose line has no blank behind `data:`: there may be one or none": (
            "".join(_contents(line) for line in lines if line.startswith("data: "))
        ),
    }
    for off, wrong in known.items():
        expect(wrong == text or got != wrong, f"the text {off}")
    same_items(got, text, "the text", look="which lines hold a delta with content")


# --------------------------------------------------------------- 3: do two models agree?


@check("logits may all be off and the model the same: compare what is made of them.")
def agreement(attempt: Any) -> None:
    reference, exported = _logits()
    rows = len(reference)
    kept = reference.clone(), exported.clone()
    got = attempt(reference, exported)
    expect(
        isinstance(got, tuple | list) and len(got) == 2,
        f"two numbers are wanted, and it returned {short(got)}: return divergence, share",
    )
    expect(
        torch.equal(kept[0], reference) and torch.equal(kept[1], exported),
        "the logits were changed by the function",
    )
    divergence, share = (g.item() if isinstance(g, Tensor) and g.numel() == 1 else g for g in got)
    for off, value in _wrong_divergences(*kept).items():
        expect(not _near(divergence, value), f"the divergence {off}")
    same_number(
        divergence, _divergence(*kept).item(), "the divergence", tolerance=1e-3,
        factors={"the number of positions": rows}, look="log_softmax, and the sum over tokens",
    )  # fmt: skip
    right = (kept[0].argmax(1) == kept[1].argmax(1)).double().mean().item()
    expect(
        not _near(share, rows * right) or rows * right == right,
        "the share is a count: divide by the positions",
    )
    expect(not _near(share, 1 - right), "the share is that of positions that differ")
    same_number(share, right, "the share", look="argmax over the vocabulary, the last axis")
    again = attempt(kept[0], kept[0].clone())[0]
    expect(
        abs(float(again)) < 1e-4, f"a model diverges from itself by {short(float(again))}, not 0"
    )


def _logits() -> tuple[Tensor, Tensor]:
    """[positions, vocabulary] of two models, such that each usual mistake shows in the result."""
    rows, vocabulary = 2 * draw.integer(15, 25) + 1, draw.integer(12, 20)
    while True:
        reference = draw.tensor(rows, vocabulary) * 2 + 60 * torch.randn(rows, 1)
        exported = reference + draw.tensor(rows, vocabulary) + 40 * torch.randn(rows, 1)
        known = _wrong_divergences(reference, exported).values()
        values = sorted([_divergence(reference, exported).item(), *known])
        if not any(math.isclose(a, b, rel_tol=0.01) for a, b in itertools.pairwise(values)):
            return reference, exported


def _near(got: Any, value: float) -> bool:
    is_number = isinstance(got, int | float) and not isinstance(got, bool)
    return is_number and math.isclose(got, value, rel_tol=1e-3)


def _divergence(reference: Tensor, exported: Tensor) -> Tensor:
    """Mean over positions of KL(reference || exported), in nats."""
    p, q = reference.double().log_softmax(1), exported.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1).mean()


def _wrong_divergences(reference: Tensor, exported: Tensor) -> dict[str, float]:
    """Usual mistakes and what they lead to."""
    right = _divergence(reference, exported)
    p, q = reference.double().log_softmax(1), exported.double().log_softmax(1)
    known = {
        "is weighted by the export's probabilities: the reference's count": _divergence(
            exported, reference
        ),
        "is in bits: nats are wanted": right / math.log(2),
        "is the sum over positions: their mean is wanted": right * len(reference),
        "is the mean over tokens too: sum over the vocabulary, then the mean over positions": right
        / reference.shape[1],
        "has the wrong sign": -right,
        "lacks the weights: each token counts as much as it is probable": (p - q).sum(1).mean(),
        "is the cross-entropy: take the reference's own entropy off": -(p.exp() * q).sum(1).mean(),
        "is the mean distance of the logits, which all the same may be shifted": (
            (reference - exported).abs().mean()
        ),
        "is the largest distance of the logits, which all the same may be shifted": (
            (reference - exported).abs().max()
        ),
        "takes the softmax over positions: the vocabulary is the last axis": _divergence(
            reference.t(), exported.t()
        ),
    }
    return {off: float(value) for off, value in known.items()}


# --------------------------------------------------------------- 4: the order of rows


@check("pairs that rotate together stand together: nothing is changed but the order within a head.")
def interleave(attempt: Any) -> None:
    heads, half, inputs = draw.integer(3, 4), draw.integer(5, 6), draw.integer(6, 9)
    weight = draw.tensor(heads * 2 * half, inputs)
    kept = weight.clone()
    got = attempt(weight, heads)
    unchanged(weight, kept, "the weight")
    right = weight.reshape(heads, 2, half, inputs).transpose(1, 2).reshape_as(weight)
    for off, wrong in _wrong_orders(weight, heads, half).items():
        expect(not _equal_to(got, wrong), f"the rows {off}")
    same(got, right, "the matrix", look="where row 0, 1 and 2 of the result come from")


def _wrong_orders(weight: Tensor, heads: int, half: int) -> dict[str, Tensor]:
    """Usual mistakes and the matrices that they lead to."""
    inputs = weight.shape[1]
    pairs = weight.reshape(heads, half, 2, inputs)
    halves = weight.reshape(heads, 2, half, inputs)
    return {
        "stand as they were: row 1 of a head is to be what row d/2 was": weight,
        "go the other way, from neighbors to halves": pairs.transpose(1, 2).reshape_as(weight),
        "are taken from the whole matrix: each head has an order of its own": (
            weight.reshape(2, heads * half, inputs).transpose(0, 1).reshape_as(weight)
        ),
        "hold the second of each pair first": (halves.flip(1).transpose(1, 2).reshape_as(weight)),
        "of all heads are mixed: the first d rows belong to the first head": (
            weight.reshape(heads, 2 * half, inputs).transpose(0, 1).reshape_as(weight)
        ),
    }


def _equal_to(got: Any, wanted: Tensor) -> bool:
    return isinstance(got, Tensor) and torch.equal(got.detach(), wanted)


# --------------------------------------------------------------- 5: merge files


@check("the files are all that it takes, as long as its config is read: scale and orientation too.")
def merge_files(attempt: Any) -> None:
    for kind in draw.sample(("Llama", "GPT-2"), 2):
        for rslora in (False, True):
            base, adapter, config, wanted = _files(kind, rslora)
            kept = {name: tensor.clone() for name, tensor in base.items()}
            got = attempt(base, adapter, dict(config))
            case = f"for {kind}, {'with' if rslora else 'without'} rsLoRA"
            changed = [name for name in kept if not torch.equal(kept[name], base[name])]
            expect(
                not changed,
                f"{case}, {short(next(iter(changed), ''))} of the base was changed in place: "
                "merging twice would add the adapter twice",
            )
            expect(
                isinstance(got, dict), f"a dict of tensors is wanted, and it returned {short(got)}"
            )
            _explain_names(got, wanted, case)
            _explain_merge(got, kept, adapter, config, wanted, case)


def _files(
    kind: str, rslora: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """(base, adapter, the adapter's config, PEFT's own merge); tensors by their names in files."""
    import transformers as hf
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    common = {"vocab_size": 31, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "GPT-2":
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**common, n_embd=8, n_layer=2, n_head=2))
        names = ["c_attn", "c_proj"]
    else:
        model = hf.LlamaForCausalLM(hf.LlamaConfig(
            **common, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=2,
        ))  # fmt: skip
        names = draw.sample(["q_proj", "v_proj", "up_proj", "down_proj"], 3)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rank = draw.integer(3, 5)
    options = {"r": rank, "lora_alpha": 2 * rank + 1, "use_rslora": rslora}
    options["fan_in_fan_out"] = kind == "GPT-2"
    tuned = get_peft_model(model, LoraConfig(target_modules=names, **options))
    for name, parameter in tuned.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    adapter = {n: t.clone() for n, t in get_peft_model_state_dict(tuned).items()}
    config = {"peft_type": "LORA", "target_modules": names, **options}
    return base, adapter, config, tuned.merge_and_unload().state_dict()


def _explain_names(got: dict[str, Any], wanted: dict[str, Tensor], case: str) -> None:
    """NotYet where the merged model has other tensors than the base."""
    left = [name for name in got if ".lora_" in name]
    expect(
        not left, f"{case}, {short(''.join(left[:1]))} is among the merged weights: it is in them"
    )
    strange = [name for name in got if name not in wanted]
    expect(
        not strange,
        f"{case}, {short(''.join(strange[:1]))} is no name of the base: take `base_model.model.` "
        "off",
    )
    missing = [name for name in wanted if name not in got]
    expect(
        not missing,
        f"{case}, {short(''.join(missing[:1]))} is missing: tensors without an adapter belong "
        "to the model too",
    )


def _explain_merge(
    got: dict[str, Any],
    base: dict[str, Tensor],
    adapter: dict[str, Tensor],
    config: dict[str, Any],
    wanted: dict[str, Tensor],
    case: str,
) -> None:
    """NotYet where a merged tensor is not PEFT's."""
    alpha, rank = config["lora_alpha"], config["r"]
    turned = "GPT-2's Conv1D keeps its weight as [inputs, outputs], which fan_in_fan_out says"
    for name, right in wanted.items():
        value, delta = got[name], right - base[name]
        expect(isinstance(value, Tensor), f"{case}, {name} is {short(value)}, not a tensor")
        expect(
            value.shape == right.shape,
            f"{case}, {name} has the shape {tuple(value.shape)}, not {tuple(right.shape)}",
        )
        if not delta.any():
            expect(torch.equal(value, right), f"{case}, {name} has no adapter and was changed")
            continue
        unscaled = delta / _scale(config)
        known = {
            "lacks its adapter": base[name],
            "lacks the scale": base[name] + unscaled,
            "is scaled by alpha alone": base[name] + alpha * unscaled,
            "has its adapter taken off: it is added": base[name] - delta,
            "is scaled by alpha / rank: with use_rslora it is alpha / sqrt(rank)": base[name]
            + alpha / rank * unscaled,
            "is scaled by alpha / sqrt(rank): that is for use_rslora alone": base[name]
            + alpha / math.sqrt(rank) * unscaled,
        }  # fmt: skip
        if delta.shape[0] == delta.shape[1]:
            known[f"has its adapter transposed: {turned}"] = base[name] + delta.t()
        for off, wrong in known.items():
            expect(_equal(wrong, right) or not _equal(value, wrong), f"{case}, {name} {off}")
        expect(_equal(value, right), f"{case}, {name} is not what PEFT's merge gives")


def _scale(config: dict[str, Any]) -> float:
    rank = config["r"]
    return config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)


def _equal(got: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(
        got.float(), wanted.float(), rtol=0, atol=1e-5 * float(wanted.abs().max())
    )


# --------------------------------------------------------------- 6: GGUF


@check("a GGUF file says all about itself, in a header of lengths, types and values.")
def gguf_header(attempt: Any) -> None:
    values, tensors = _values(), draw.integer(2, 5)
    data = _gguf(values, tensors)
    got = attempt(data)
    expect(
        isinstance(got, tuple | list) and len(got) == 3,
        f"three things are wanted, and it returned {short(got)}: return version, tensors, values",
    )
    expect(
        (got[0], got[1]) != (3, len(values)),
        "the number of tensors is that of the values: the tensors' comes first",
    )
    same_number(got[0], 3, "the version", look="bytes 4 to 8")
    same_number(got[1], tensors, "the number of tensors", look="bytes 8 to 16")
    expect(isinstance(got[2], dict), f"the values are {short(got[2])}, not a dict")
    _explain_values(got[2], values)
    _refuses(attempt, draw.pick((b"GGML", b"PK\x03\x04", b"FUGG")) + data[4:])


def _values() -> dict[str, Any]:
    """Key -> value: texts (not only in ASCII), whole numbers, real numbers, truth values."""
    word = draw.word()
    made: list[tuple[str, Any]] = [
        ("general.name", f"{draw.word()} é 微调"),
        (f"{word}.über", draw.word()),
        (f"{word}.block_count", draw.integer(2, 900)),
        (f"{word}.embedding_length", 2**31 + draw.integer(0, 900)),
        (f"{word}.rope.freq_base", draw.number(1e-6, 1e6)),
        ("tokenizer.ggml.add_bos_token", bool(draw.integer(0, 1))),
        ("tokenizer.ggml.add_eos_token", bool(draw.integer(0, 1))),
    ]
    return {"general.architecture": word, **dict(draw.sample(made, len(made)))}


def _gguf(values: dict[str, Any], tensors: int) -> bytes:
    """The bytes of a real GGUF file with these values and so many small tensors."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, values["general.architecture"])
        for key, value in list(values.items())[1:]:
            add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32}
            add.get(type(value), writer.add_float32)(key, value)
        for place in range(tensors):
            writer.add_tensor(f"blk.{place}.weight", draw.tensor(4, 32).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _explain_values(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """NotYet where a key or a value is not what was written."""
    bytes_left = [key for key in [*got, *got.values()] if isinstance(key, bytes)]
    expect(
        not bytes_left,
        f"the text {short(next(iter(bytes_left), b''))} is left in bytes: decode it, as utf-8",
    )
    missing = [key for key in wanted if key not in got]
    expect(
        not missing,
        f"{len(missing)} of {len(wanted)} keys are missing, such as {''.join(missing[:1])}",
    )
    strange = [key for key in got if key not in wanted]
    expect(
        not strange,
        f"{short(''.join(strange[:1]))} is no key of this file: does it begin too late?",
    )
    for key, right in wanted.items():
        value = got[key]
        if isinstance(right, float):
            is_real = isinstance(value, float) and math.isclose(value, right, rel_tol=1e-6)
            expect(
                is_real, f"the value of {key} is {short(value)}: type 6 is a float32, format '<f'"
            )
            continue
        expect(
            type(value) is type(right) and value == right,
            f"the value of {key} is {short(value)}, of type {type(value).__name__}: {short(right)} "
            "was written",
        )


def _refuses(attempt: Any, data: bytes) -> None:
    """A file of another kind is refused with a ValueError."""
    try:
        attempt(data)
    except ValueError:
        return
    expect(
        False,
        f"a file that begins with {data[:4]!r} was read as if it were GGUF: raise a ValueError",
    )
