"""Checks of chapter 5: bytes of a 4-bit model, absmax, NF4, scales, merging, the frozen layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import check, draw, expect, same, same_number, short, unchanged

LEVELS = 16
Pair = tuple[Tensor, Tensor]


@check("4 bits a number, and a scale for each block: 4.5 bits, or 4.127 with 8-bit scales.")
def model_bytes(attempt: Any) -> None:
    quantized, kept = 64 * 256 * draw.integer(100, 900), draw.integer(10**5, 10**7)
    for double in (False, True):
        got = attempt(quantized, kept, double)
        scales = quantized / 64
        right = quantized / 2 + (scales + 4 * scales / 256 if double else 4 * scales) + 2 * kept
        for off, value in _wrong_bytes(quantized, kept, double).items():
            expect(not _near(got, value), f"with double={double} {off}")
        same_number(
            got, right, f"the number of bytes with double={double}", tolerance=1e-6,
            look="what one block of 64 takes: 32 bytes of codes, and its scale",
        )  # fmt: skip


def _wrong_bytes(quantized: int, kept: int, double: bool) -> dict[str, float]:
    """Usual mistakes and the bytes that they lead to."""
    codes, scales = quantized / 2, quantized / 64
    held = scales + 4 * scales / 256 if double else 4 * scales
    known = {
        "the scales are missing: each block of 64 has one": codes + 2 * kept,
        "each quantized number takes a whole byte: two of them share one": 2 * codes
        + held + 2 * kept,
        "all numbers are quantized: embeddings and norms stay in 16 bits": (quantized + kept) / 2
        + held * (1 + kept / quantized),
        "the numbers that stay in 16 bits take 4 bytes each: 16 bits are 2": codes + held
        + 4 * kept,
        "what stays in 16 bits is missing": codes + held,
        "every number has a scale of its own: a block of 64 shares one": codes + 64 * held
        + 2 * kept,
    }  # fmt: skip
    if double:
        known |= {
            "the scales still take 4 bytes each: that is `double=False`": codes + 4 * scales
            + 2 * kept,
            "the scales of the scales are missing: 256 of them share one of 4 bytes": codes
            + scales + 2 * kept,
        }  # fmt: skip
    return known


def _near(got: Any, value: float) -> bool:
    """Whether a number is this value, to six digits."""
    try:
        return abs(float(got) - value) <= 1e-6 * abs(value)
    except (TypeError, ValueError):
        return False


def _pair(got: Any, first: str, second: str) -> Pair:
    """The two tensors that an attempt returned; NotYet where it did not."""
    expect(
        isinstance(got, tuple) and len(got) == 2 and all(isinstance(t, Tensor) for t in got),
        f"a pair of tensors is wanted, and it returned {short(got)}",
        look=f"the last line: return {first}, {second}",
    )
    return got


@check("each block is divided by its largest absolute value, so it fills -1 to 1.")
def absmax(attempt: Any) -> None:
    size = draw.pick((16, 32, 64))
    rows, columns = draw.integer(3, 6), size * draw.integer(2, 4)
    weights = draw.tensor(rows, columns) * torch.logspace(-2, 0, rows)[:, None]
    weights[0, 3] = -2 * weights[0].abs().max()  # the largest of its block is a negative number
    kept = weights.clone()
    scaled, scales = _pair(attempt(weights, size), "scaled", "scales")
    unchanged(weights, kept, "the tensor of weights")
    blocks = weights.reshape(-1, size)
    right = blocks.abs().amax(dim=1)
    known: dict[str, Tensor] = {
        "are the largest values, not the largest absolute ones: look below 0 too": (
            blocks.amax(dim=1)
        ),
        "are one for all: each block has its own": blocks.abs().max().expand(len(blocks)),
        "are one for each row of the matrix: a row holds several blocks": weights.abs().amax(1),
        "run over the blocks: one scale for each place in a block came out": blocks.abs().amax(0),
    }
    for off, wrong in known.items():
        expect(not _equal(scales, wrong), f"the scales {off}")
    expect(
        not _equal(scales, right[:, None]),
        "the scales have an axis too much: one number for each block is wanted",
        look="keepdim, and where you need it",
    )
    same(scales, right, "the tensor of scales", look="the blocks, weights.reshape(-1, size)")
    same(
        scaled, blocks / right[:, None], "the tensor of scaled blocks",
        look="the division: scales[:, None] has one scale for each row",
    )  # fmt: skip


def _equal(got: Any, value: Tensor) -> bool:
    same_form = isinstance(got, Tensor) and got.shape == value.shape
    return same_form and torch.allclose(got.float(), value.float())


def _levels() -> Tensor:
    """Sixteen levels from -1 to 1, not evenly spaced; different each time."""
    steps = torch.cat([torch.zeros(1), 0.5 + torch.rand(LEVELS - 1)])
    return 2 * steps.cumsum(0) / steps.sum() - 1


def _codes(*shape: int) -> Tensor:
    """Random places of levels."""
    return torch.randint(0, LEVELS, shape)


@check("the nearest of 16 levels takes 4 bits; two of them share a byte, the first one above.")
def encode(attempt: Any) -> None:
    levels, size = _levels(), draw.pick((16, 32, 64))
    codes, scale = _codes(size), draw.number(1.5, 3)
    gap = (levels[1:] - levels[:-1]).min()
    values = (levels[codes] + (torch.rand(size) - 0.5) * 0.8 * gap).clamp(-1, 1 - 0.1 * gap)
    codes[5], values[5] = 0, -1.0  # the largest number of the block is a negative one
    block = scale * values
    kept = block.clone()
    packed, found = _pair(attempt(block, levels), "packed", "scale")
    unchanged(block, kept, "the block")
    same(found, block.abs().max(), "the scale", look="the largest absolute value of the block")
    expect(
        packed.numel() != size,
        f"{size} codes came out in {size} bytes: two share a byte",
        look="codes[0::2] and codes[1::2]",
    )
    expect(
        packed.dtype == torch.uint8,
        f"the packed codes are of {short(packed)}: a byte is torch.uint8",
        look=".to(torch.uint8) before you shift",
    )
    high, low = codes[0::2], codes[1::2]
    unscaled = (block[:, None] - levels).abs().argmin(1)
    down = torch.bucketize(values, levels, right=True) - 1
    known = {
        "hold the second of each pair above, the first below": low * 16 + high,
        "hold the first half of the block above, the second below: neighbors share a byte": (
            codes[: size // 2] * 16 + codes[size // 2 :]
        ),
        "are of the block as it is: divide it by its scale before you look for levels": (
            unscaled[0::2] * 16 + unscaled[1::2]
        ),
        "are of the next level below: the nearest one is wanted": down[0::2] * 16 + down[1::2],
    }
    right = high * 16 + low
    for off, wrong in known.items():
        expect(torch.equal(right, wrong) or not _equal(packed, wrong), f"the packed codes {off}")
    same(packed, right.to(torch.uint8), "the tensor of packed codes", look="16 * first + second")


@check("each half of a byte names a level; the level times its block's scale is the weight.")
def decode(attempt: Any) -> None:
    levels, size = _levels(), draw.pick((16, 32))
    blocks = draw.integer(3, 5)
    codes = _codes(blocks, size)
    packed = (codes[:, 0::2] * 16 + codes[:, 1::2]).to(torch.uint8)
    scales = torch.rand(blocks) + 0.3
    kept = packed.clone()
    got = attempt(packed, scales, levels)
    unchanged(packed, kept, "the tensor of packed codes")
    right = levels[codes] * scales[:, None]
    swapped = codes.reshape(blocks, -1, 2).flip(2).reshape(blocks, size)
    halves = torch.cat([codes[:, 0::2], codes[:, 1::2]], dim=1)
    known = {
        "are the levels alone: each block is multiplied by its scale": levels[codes],
        "are divided by the scale: multiply": levels[codes] / scales[:, None],
        "come in swapped pairs: the first number of a pair is the upper half of the byte": (
            levels[swapped] * scales[:, None]
        ),
        "are the upper halves first and then the lower ones: the two halves of a byte are neighbors"
        "": levels[halves] * scales[:, None],
        "are the codes times the scale: a code is the place of a level": codes * scales[:, None],
    }
    for off, wrong in known.items():
        expect(not _equal(got, wrong), f"the weights {off}")
    same(got, right, "the tensor of weights", look="byte // 16 and byte % 16")


@check("8-bit scales around their mean: a 64th of a byte for a weight, where 4 bytes were a 16th.")
def scales(attempt: Any) -> None:
    group = draw.pick((16, 32, 64))
    count = group * draw.integer(2, 4)
    given = 2 + torch.rand(count) * torch.linspace(0.3, 1.5, count)
    kept = given.clone()
    got = attempt(given, group)
    expect(
        isinstance(got, tuple) and len(got) == 3,
        f"codes, steps and the mean are wanted, and it returned {short(got)}",
    )
    unchanged(given, kept, "the tensor of scales")
    codes, steps, mean = got
    expect(isinstance(codes, Tensor), f"the codes are {short(codes)}, not a tensor")
    same_number(mean, given.mean().item(), "the mean", look="given.mean(), one for all groups")
    groups = (given - given.mean()).reshape(-1, group)
    wanted = groups.abs().amax(1) / 127
    uncentered = given.reshape(-1, group).abs().amax(1) / 127
    expect(
        not _equal(steps, uncentered),
        "the steps are of the scales themselves: take their mean off first, so that 8 bits are "
        "spent on how they differ",
    )
    same(
        steps, wanted, "the tensor of steps", factors={"127": 127.0, "128 / 127": 128 / 127},
        look="the largest absolute value of each group, and the largest code, 127",
    )  # fmt: skip
    expect(
        codes.dtype == torch.int8,
        f"the codes are {short(codes)}: 8 bits with a sign are torch.int8",
    )
    right = (groups / wanted[:, None]).round().to(torch.int8)
    expect(
        not torch.equal(codes.reshape(-1), (groups / wanted[:, None]).to(torch.int8).reshape(-1)),
        "the codes are cut off towards 0, which is off by up to a whole step: round them",
    )
    same(codes, right, "the tensor of codes", look="one row of codes for each group")


@check("a merge is right if the layer's outputs stay what they were during training.")
def which_merge(attempt: Any) -> None:
    for _ in range(4):
        x, wanted, merges, right = _merges()
        given = {name: weight.clone() for name, weight in merges.items()}
        got = attempt(x, wanted, given)
        expect(
            isinstance(got, str),
            f"the name of a merge is wanted, and it returned {short(got)}",
            look="which key of `merges` to return",
        )
        expect(got in merges, f"there is no merge of the name {got!r}")
        for name, weight in merges.items():
            unchanged(given[name], weight, f"the merge {name!r}")
        expect(
            got == right,
            f"{got!r} changes the outputs by {_output_error(x, wanted, merges[got]):.1%}, "
            f"and another one by {_output_error(x, wanted, merges[right]):.1%}",
            look="x @ weight.t() for each, and its distance from `wanted`",
        )


def _merges() -> tuple[Tensor, Tensor, dict[str, Tensor], str]:
    """(inputs, outputs in training, merged weights by name, the name of the right one).

    The wrong ones look as near, or nearer to the weights before quantization.
    """
    original, a, b = draw.tensor(24, 64), draw.tensor(4, 64) / 8, draw.tensor(24, 4) / 8
    scale, levels = draw.pick((0.5, 2.0, 4.0)), torch.linspace(-1, 1, LEVELS)
    base = _rounded(original, levels)
    merged = base + scale * b @ a
    wrong = {
        "original": original + scale * b @ a,
        "requantized": _rounded(merged, levels),
        "unscaled": base + b @ a,
    }
    x = draw.tensor(8, 64)
    chosen = [merged, *draw.sample(list(wrong.values()), 2)]
    names = [draw.word() for _ in chosen]
    order = draw.sample(range(3), 3)
    return x, x @ merged.t(), {names[i]: chosen[i] for i in order}, names[0]


def _rounded(weight: Tensor, levels: Tensor) -> Tensor:
    """Each row as a block: scaled by its largest value and moved to the nearest level."""
    scale = weight.abs().amax(1, keepdim=True)
    return levels[(weight / scale)[..., None].sub(levels).abs().argmin(-1)] * scale


def _output_error(x: Tensor, wanted: Tensor, weight: Tensor) -> float:
    return ((x @ weight.t() - wanted).norm() / wanted.norm()).item()


@check("the backward pass multiplies by a copy that is made again, so none has to wait in memory.")
def frozen_linear(attempt: Any) -> None:
    outputs, inputs = draw.integer(5, 9), draw.integer(10, 14)
    weight, made = draw.tensor(outputs, inputs), []

    def dequantize() -> Tensor:
        made.append(None)
        return weight.clone()

    shape = draw.pick([(draw.integer(3, 6),), (draw.integer(2, 3), draw.integer(3, 5))])
    x = draw.tensor(*shape, inputs).requires_grad_()
    if not isinstance(attempt, type):
        attempt(x, dequantize)  # a stub says itself that it is one
    expect(
        isinstance(attempt, type) and issubclass(attempt, torch.autograd.Function),
        "a class is wanted that inherits from torch.autograd.Function",
    )
    y = _in_words("forward", lambda: attempt.apply(x, dequantize))
    same(y, F.linear(x, weight), "the output", look="x @ weight.t()")
    expect(
        y.requires_grad and y.grad_fn is not None,
        "no gradient is asked for at the output: keep x in the graph, without detach() or data",
    )
    _expect_nothing_kept(y.grad_fn, weight)
    grad, before = draw.tensor(*y.shape), len(made)
    _in_words("backward", lambda: y.backward(grad))
    expect(x.grad is not None, "the input got no gradient", look="the first value of backward")
    same(x.grad, grad @ weight, "the gradient at x", look="grad @ weight, without transposing")
    expect(
        len(made) == before + 1,
        f"dequantize() was called {len(made) - before} times in the backward pass, not once: the "
        "copy of the forward pass should be gone by then",
    )


def _in_words(part: str, run: Callable[[], Any]) -> Any:
    """What `run` gives, with torch's own words put in a learner's.  part: "forward"."""
    try:
        return run()
    except RuntimeError as error:
        said = str(error)
        expect(
            "cannot be multiplied" not in said,
            f"in {part} the two factors do not fit together ({said})",
            look="x @ weight.t() forward, grad @ weight backward",
        )
        expect(
            "incorrect number of gradients" not in said,
            "backward should return as many values as forward has inputs besides ctx: a gradient "
            "for x, and None for dequantize",
        )
        expect(
            "invalid gradient" not in said,
            "the gradient at x has another shape than x",
            look="grad @ weight, without transposing",
        )
        raise


def _expect_nothing_kept(function: Any, weight: Tensor) -> None:
    """The weight's numbers do not wait for the backward pass, under whatever name."""
    kept = [t for t in getattr(function, "saved_tensors", ()) if isinstance(t, Tensor)]
    kept += [t for t in vars(function).values() if isinstance(t, Tensor)]
    numbers = weight.flatten().sort().values
    expect(
        not any(_equal(t.detach().flatten().sort().values, numbers) for t in kept),
        "the dequantized weight is kept for the backward pass: then nothing is saved by 4 bits",
        look="ctx.dequantize = dequantize, which keeps the function and not what it makes",
    )
