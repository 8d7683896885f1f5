"""The Triton kernels: the same as the steps in plain PyTorch.

They run on a GPU, or on a CPU in the interpreter (TRITON_INTERPRET=1) of an installed Triton.
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no GPU, and TRITON_INTERPRET is not 1", allow_module_level=True)

from course_utils import fast, fp8, kernels  # noqa: E402

PLACE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16]


def made(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(PLACE)


def same(ours, plain):
    rtol = 2e-2 if plain.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=rtol * float(plain.float().std()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 100, 576])
def test_norm_and_its_backward(width, dtype):
    x, weight, grad, more = (made(7, width, seed=i, dtype=dtype) for i in range(4))
    weight = weight[0].clone()
    plain, scale = fast.rms_norm(x, weight, 1e-5)
    ours, scale_too = kernels.rms_norm(x, weight, 1e-5)
    same(ours, plain)
    same(scale_too, scale)
    for past in (more, None):
        back = fast.rms_norm_backward(grad, x, weight, scale, past)
        same(kernels.rms_norm_backward(grad.clone(), x, weight, scale, past), back)


RANKS = [0, 6, 16, 48, 130]  # 0: no adapter; 130: too high for a tile


def adapter(rows: int, width: int, rank: int, dtype: torch.dtype, seed: int = 5):
    """inner [rows, rank] and B [width, rank]."""
    if not rank:
        return None, None
    return made(rows, rank, seed=seed, dtype=dtype), made(width, rank, seed=seed + 1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_row", [False, True], ids=["one position for all", "packed"])
@pytest.mark.parametrize("rank", RANKS)
def test_rotation_and_back(rank, per_row, dtype):
    batch, length, heads, rotated, width = 2, 5, 5, 3, 32
    angles = made(batch if per_row else 1, length, 1, width // 2, seed=1)
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
    qkv = made(batch * length, heads * width, dtype=dtype)
    inner, b = adapter(len(qkv), heads * width, rank, dtype)
    plain, ours = qkv.clone(), qkv.clone()
    fast.rotate(plain, cos, sin, rotated, inner, b)
    kernels.rotate(ours, cos, sin, rotated, inner, b)
    same(ours, plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_head", [False, True], ids=["tokens first", "heads first"])
@pytest.mark.parametrize("per_row", [False, True], ids=["one position for all", "packed"])
def test_rotation_taken_back(per_row, by_head, dtype):
    batch, length, heads, width = 2, 5, (4, 2, 2), 32
    angles = made(batch if per_row else 1, length, 1, width // 2, seed=1)
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
    parts = [made(batch, length, h, width, seed=h + i, dtype=dtype) for i, h in enumerate(heads)]
    if by_head:  # as attention on a GPU may lay its gradients out
        parts = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts]
    same(kernels.rotate_back(parts, cos, sin), fast.rotate_back(parts, cos, sin))


def test_rotation_taken_back_undoes_it():
    angles = made(1, 5, 1, 16, seed=1)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))
    qkv = made(10, 8 * 32)
    turned = qkv.clone()
    kernels.rotate(turned, cos, sin, 6, None, None)
    parts = turned.view(2, 5, 8, 32).split([4, 2, 2], dim=2)
    same(kernels.rotate_back(parts, cos, sin), qkv)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
def test_swiglu_and_its_backward(rank, dtype):
    rows, width = 70, 300
    gate_up, grad = made(rows, 2 * width, dtype=dtype), made(rows, width, seed=1, dtype=dtype)
    inner, b = adapter(rows, 2 * width, rank, dtype)
    d_inner, a_down = adapter(rows, width, rank, dtype, seed=8)
    a_down = None if a_down is None else a_down.t().contiguous()
    pairs = [(grad.clone(), gate_up.clone()) for _ in range(2)]
    fast.swiglu_backward(*pairs[0], d_inner, a_down, inner, b)
    kernels.swiglu_backward(*pairs[1], d_inner, a_down, inner, b)
    for ours, plain in zip(pairs[1], pairs[0], strict=True):
        same(ours, plain)
    kept = gate_up.clone(), gate_up.clone()
    same(kernels.swiglu(kept[0], inner, b, True), fast.swiglu(kept[1], inner, b, True))
    same(kept[0], kept[1])
    same(kernels.swiglu(gate_up.clone(), inner, b, False), fast.swiglu(gate_up, inner, b, False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", RANKS)
def test_residual(rank, dtype):
    (branch, x), (inner, b) = (made(2, 70, 300, dtype=dtype)), adapter(70, 300, rank, dtype)
    plain = fast.residual(branch.clone(), x, inner, b)
    ours = branch.clone()
    assert kernels.residual(ours, x, inner, b) is ours
    same(ours, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_and_its_gradient(dtype):
    logits = 3 * made(5, 9000, dtype=dtype)
    targets = torch.tensor([0, 7, 8999, 8192, 300], device=PLACE)
    wide = logits.float().requires_grad_()
    plain = torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    (grad,) = torch.autograd.grad(plain.sum(), wide)
    torch.testing.assert_close(kernels.cross_entropy(logits, targets), plain)
    torch.testing.assert_close(logits.float(), grad, rtol=1e-2, atol=1e-5)


def test_transpose():
    x = torch.randint(0, 255, (130, 200), dtype=torch.uint8, device=PLACE)
    assert torch.equal(kernels.transpose(x), x.t())


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no fp8")
@pytest.mark.parametrize("columns", [False, True])
def test_quantized_rows(columns):
    x, factors = made(6, 5000), made(1, 5000, seed=1)[0] if columns else None
    ours, scale = kernels.quantize_rows(x, factors)
    plain, scale_too = fp8.quantize_rows(x, factors)
    same(scale, scale_too)
    same(ours.float() * scale, plain.float() * scale_too)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no fp8")
@pytest.mark.parametrize("shape", [(130, 200), (256, 128), (5, 1000)])
def test_a_weight_turned_into_fp8(shape):
    weight = made(*shape, dtype=torch.bfloat16)
    scale = fp8.row_scales(weight)
    ours, plain = kernels.turn(weight, scale), fp8.turn(weight, scale)
    assert ours.shape == plain.shape
    torch.testing.assert_close(ours.float(), plain.float(), rtol=0.13, atol=0)  # a rounding apart
    assert (ours.float() != plain.float()).float().mean() < 1e-3


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no fp8")
@pytest.mark.parametrize("shape", [(50, 200), (130, 64)])
def test_weights_rounded_for_their_inputs(shape):
    weight, x = made(*shape), made(300, 20, seed=1) @ made(20, shape[1], seed=2)
    x += 0.1 * made(300, shape[1], seed=3)
    ours, scale = fp8.quantize_for(weight, x, kernels.round_columns)
    plain, scale_too = fp8.quantize_for(weight, x)
    same(scale, scale_too)
    right = x @ weight.t()
    apart = [float((x @ (w.float() * scale).t() - right).norm()) for w in (ours, plain)]
    assert apart[0] == pytest.approx(apart[1], rel=0.05)
    assert (ours.float() != plain.float()).float().mean() < 0.02  # one tie moves all that follows


@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no fp8")
def test_nf4_turned_into_fp8():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = made(130, 200)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    whole = dequantize_4bit(packed, state)
    scale, wide = fp8.row_scales(whole), torch.zeros(200, 150, dtype=fp8.FP8, device=PLACE)
    kernels.turn_four_bit(packed, state, scale, wide[:, 10:140])
    plain = fp8.turn(whole, scale).float()
    torch.testing.assert_close(wide[:, 10:140].float(), plain, rtol=0.13, atol=1e-6)
    assert not wide[:, :10].float().any() and not wide[:, 140:].float().any()


def test_dequantized_nf4():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = made(96, 200)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    out = torch.empty_like(weight)
    kernels.dequantize(packed, state, out)
    torch.testing.assert_close(out, dequantize_4bit(packed, state), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("there", DTYPES)
@pytest.mark.parametrize("here", DTYPES)
def test_many_matrices_copied_at_once(here, there):
    shapes = [(3, 700), (40, 16), (1, 5000)]
    sources = [made(*shape, seed=n, dtype=here) for n, shape in enumerate(shapes)]
    wide = [torch.zeros(r, c + 3, dtype=there, device=sources[0].device) for r, c in shapes]
    ours = [w[:, 1:-2] for w in wide]  # parts of larger ones: nothing beside them may change
    plain = [torch.empty_like(part) for part in ours]
    fast.copy_all(plain, sources, [1.0, 0.5, 3.0])
    kernels.copy_all(ours, sources, [1.0, 0.5, 3.0])
    for mine, theirs, whole in zip(ours, plain, wide, strict=True):
        same(mine, theirs)
        assert not whole[:, 0].any() and not whole[:, -2:].any()
