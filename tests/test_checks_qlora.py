"""The checks of chapter 5 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from check_contract import CheckContract

from course_utils.checks import qlora


class FrozenStub(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dequantize):
        raise NotImplementedError

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


def model_bytes(quantized, kept, double):
    scales = quantized / 64
    return quantized / 2 + (scales + scales / 64 if double else 4 * scales) + 2 * kept


def absmax(weights, size):
    blocks = weights.reshape(-1, size)
    scales = blocks.abs().amax(dim=1)
    return blocks / scales[:, None], scales


def largest(weights, size):
    blocks = weights.reshape(-1, size)
    return blocks / blocks.amax(1)[:, None], blocks.amax(1)


def one_scale(weights, size):
    blocks = weights.reshape(-1, size)
    return blocks / blocks.abs().max(), blocks.abs().max().expand(len(blocks))


def row_scales(weights, size):
    scales = weights.abs().amax(1)
    return (weights / scales[:, None]).reshape(-1, size), scales


def scales_over_blocks(weights, size):
    blocks = weights.reshape(-1, size)
    return blocks / blocks.abs().amax(0), blocks.abs().amax(0)


def absmax_in_place(weights, size):
    blocks, scales = weights.view(-1, size), weights.view(-1, size).abs().amax(1)
    return blocks.div_(scales[:, None]), scales


def nearest(block, levels):
    return ((block / block.abs().max())[:, None] - levels).abs().argmin(1)


def pack(codes):
    codes = codes.to(torch.uint8)
    return (codes[0::2] << 4) | codes[1::2]


def encode(block, levels):
    return pack(nearest(block, levels)), block.abs().max()


def encode_swapped(block, levels):
    codes = nearest(block, levels).to(torch.uint8)
    return (codes[1::2] << 4) | codes[0::2], block.abs().max()


def encode_halves(block, levels):
    first, second = nearest(block, levels).to(torch.uint8).chunk(2)
    return (first << 4) | second, block.abs().max()


def encode_unscaled(block, levels):
    return pack((block[:, None] - levels).abs().argmin(1)), block.abs().max()


def encode_down(block, levels):
    codes = torch.bucketize(block / block.abs().max(), levels, right=True) - 1
    return pack(codes), block.abs().max()


def decode(packed, scales, levels):
    codes = torch.stack([packed // 16, packed % 16], dim=-1).flatten(1).long()
    return levels[codes] * scales[:, None]


def decode_swapped(packed, scales, levels):
    codes = torch.stack([packed % 16, packed // 16], dim=-1).flatten(1).long()
    return levels[codes] * scales[:, None]


def decode_halves(packed, scales, levels):
    codes = torch.cat([packed // 16, packed % 16], dim=1).long()
    return levels[codes] * scales[:, None]


def scales(given, group):
    mean = given.mean()
    groups = (given - mean).reshape(-1, group)
    steps = groups.abs().amax(1) / 127
    return (groups / steps[:, None]).round().to(torch.int8), steps, mean.item()


def scales_uncentered(given, group):
    groups = given.reshape(-1, group)
    steps = groups.abs().amax(1) / 127
    return (groups / steps[:, None]).round().to(torch.int8), steps, given.mean()


def scales_128(given, group):
    codes, steps, mean = scales(given, group)
    return codes, steps * 127 / 128, mean


def scales_cut_off(given, group):
    _, steps, mean = scales(given, group)
    return ((given - mean).reshape(-1, group) / steps[:, None]).to(torch.int8), steps, mean


def scales_as_floats(given, group):
    codes, steps, mean = scales(given, group)
    return codes.float(), steps, mean


def which_merge(x, wanted, merges):
    return min(merges, key=lambda name: (x @ merges[name].t() - wanted).norm().item())


def worst_merge(x, wanted, merges):
    return max(merges, key=lambda name: (x @ merges[name].t() - wanted).norm().item())


def smallest_weights(x, wanted, merges):
    return min(merges, key=lambda name: merges[name].norm().item())


class FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dequantize):
        ctx.dequantize = dequantize
        return x @ dequantize().t()

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.dequantize(), None


class Kept(FrozenLinear):
    @staticmethod
    def forward(ctx, x, dequantize):
        weight = dequantize()
        ctx.save_for_backward(weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0], None


class KeptByName(FrozenLinear):
    @staticmethod
    def forward(ctx, x, dequantize):
        ctx.weight = dequantize()
        return x @ ctx.weight.t()

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.weight, None


class WithX(FrozenLinear):
    """Keeps x as well: needless, and no mistake."""

    @staticmethod
    def forward(ctx, x, dequantize):
        ctx.save_for_backward(x)
        return FrozenLinear.forward(ctx, x, dequantize)


class OneGradient(FrozenLinear):
    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.dequantize()


class WrongSign(FrozenLinear):
    @staticmethod
    def backward(ctx, grad):
        return -(grad @ ctx.dequantize()), None


class GradientUntouched(FrozenLinear):
    @staticmethod
    def backward(ctx, grad):
        return grad, None


class NoGradient(FrozenLinear):
    @staticmethod
    def backward(ctx, grad):
        return None, None


class Transposed(FrozenLinear):
    @staticmethod
    def forward(ctx, x, dequantize):
        return x @ dequantize()


class TransposedBack(FrozenLinear):
    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.dequantize().t(), None


class Twice(FrozenLinear):
    @staticmethod
    def backward(ctx, grad):
        ctx.dequantize()
        return grad @ ctx.dequantize(), None


RIGHT: dict[str, Callable] = {
    "model_bytes": model_bytes,
    "which_merge": which_merge,
    "absmax": absmax,
    "encode": encode,
    "decode": decode,
    "scales": scales,
    "frozen_linear": FrozenLinear,
}
WRONG: list[tuple[str, Callable, str]] = [
    ("model_bytes", lambda q, k, d: 4e9, "the number of bytes"),
    ("model_bytes", lambda q, k, d: model_bytes(q, k, False), "double=True the scales still"),
    ("model_bytes", lambda q, k, d: q / 2 + 2 * k, "the scales are missing"),
    ("model_bytes", lambda q, k, d: model_bytes(q, k, d) + q / 2, "takes a whole byte"),
    ("model_bytes", lambda q, k, d: model_bytes(q, 2 * k, d), "16 bits are 2"),
    ("model_bytes", lambda q, k, d: model_bytes(q, 0, d), "what stays in 16 bits is missing"),
    ("model_bytes", lambda q, k, d: model_bytes(q + k, 0, d), "all numbers are quantized"),
    ("model_bytes", lambda q, k, d: 8 * model_bytes(q, k, d), "bits or bytes"),
    ("model_bytes", lambda q, k, d: model_bytes(q, k, d) / 2**30, "2\\^30"),
    ("which_merge", lambda x, wanted, merges: next(iter(merges)), "changes the outputs"),
    ("which_merge", lambda x, wanted, merges: "first", "no merge of the name"),
    ("which_merge", lambda x, wanted, merges: 0, "the name of a merge is wanted"),
    ("which_merge", worst_merge, "changes the outputs by"),
    ("which_merge", smallest_weights, "changes the outputs by"),
    ("absmax", lambda w, s: (torch.zeros(2, s), torch.ones(2)), "the tensor of scales"),
    ("absmax", lambda w, s: absmax(w, s)[0], "a pair of tensors"),
    ("absmax", largest, "look below 0 too"),
    ("absmax", one_scale, "one for all"),
    ("absmax", row_scales, "one for each row"),
    ("absmax", scales_over_blocks, "run over the blocks"),
    ("absmax", lambda w, s: (absmax(w, s)[0], absmax(w, s)[1][:, None]), "an axis too much"),
    ("absmax", lambda w, s: (absmax(w, s)[0] * absmax(w, s)[1][:, None] ** 2, absmax(w, s)[1]),
     "scaled blocks"),
    ("absmax", absmax_in_place, "was changed"),
    ("encode", lambda b, t: (torch.zeros(len(b) // 2, dtype=torch.uint8), torch.tensor(1.0)),
     "the scale"),
    ("encode", lambda b, t: (nearest(b, t), b.abs().max()), "two share a byte"),
    ("encode", lambda b, t: (pack(nearest(b, t)), b.max()), "the scale"),
    ("encode", encode_swapped, "second of each pair above"),
    ("encode", encode_halves, "neighbors share a byte"),
    ("encode", encode_unscaled, "divide it by its scale"),
    ("encode", encode_down, "the nearest one is wanted"),
    ("encode", lambda b, t: (encode(b, t)[0].long(), b.abs().max()), "a byte is torch.uint8"),
    ("decode", lambda p, s, t: torch.zeros(len(p), 2 * p.shape[1]), "zero everywhere"),
    ("decode", lambda p, s, t: decode(p, torch.ones_like(s), t), "multiplied by its scale"),
    ("decode", lambda p, s, t: decode(p, 1 / s, t), "divided by the scale: multiply"),
    ("decode", decode_swapped, "swapped pairs"),
    ("decode", decode_halves, "neighbors"),
    ("decode", lambda p, s, t: decode(p, s, torch.arange(16.0)), "place of a level"),
    ("decode", lambda p, s, t: decode(p, s, t).flatten(), "shape"),
    ("scales", lambda s, g: (torch.zeros(2, g, dtype=torch.int8), torch.ones(2), 2.0), "the mean"),
    ("scales", lambda s, g: scales(s, g)[0], "codes, steps and the mean are wanted"),
    ("scales", scales_uncentered, "take their mean off first"),
    ("scales", scales_128, "128 / 127"),
    ("scales", scales_cut_off, "round them"),
    ("scales", scales_as_floats, "torch.int8"),
    ("scales", lambda s, g: (-scales(s, g)[0], *scales(s, g)[1:]), "wrong sign"),
    ("scales", lambda s, g: (scales(s, g)[0], 127 * scales(s, g)[1], s.mean()), "127"),
    ("frozen_linear", lambda x, dequantize: x @ dequantize().t(), "a class is wanted"),
    ("frozen_linear", Kept, "kept for the backward pass"),
    ("frozen_linear", KeptByName, "kept for the backward pass"),
    ("frozen_linear", OneGradient, "as many values as forward has inputs"),
    ("frozen_linear", WrongSign, "gradient at x has the wrong sign"),
    ("frozen_linear", GradientUntouched, "another shape than x"),
    ("frozen_linear", NoGradient, "got no gradient"),
    ("frozen_linear", Transposed, "in forward the two factors"),
    ("frozen_linear", TransposedBack, "in backward the two factors"),
    ("frozen_linear", Twice, "called 2 times"),
]  # fmt: skip


def test_keeping_the_input_too_is_no_mistake() -> None:
    qlora.frozen_linear(WithX)


def test_bitsandbytes_own_encoding_passes() -> None:
    """Its table is NF4's, and the check's is another each time: the code is the same."""
    from bitsandbytes import functional

    levels = functional.get_4bit_type("nf4", device="cpu")
    block = torch.randn(64)
    packed, state = functional.quantize_4bit(block, quant_type="nf4")
    mine, scale = encode(block, levels)
    assert torch.equal(mine, packed.flatten()) and torch.equal(scale, state.absmax[0])


class TestQlora(CheckContract):
    topic, right, wrong = qlora, RIGHT, WRONG
    stubs = {"frozen_linear": FrozenStub}
