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
    rtol = 2e-2 if plain.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 100, 576])
def test_norm_and_its_backward(width, dtype):
    x, weight, grad, more = (made(7, width, seed=i, dtype=dtype) for i in range(4))
    weight = weight[0].clone()
    plain, scale = fast.rms_norm(x, weight, 1e-5)
    ours, scale_too = kernels.rms_norm(x, weight, 1e-5)
    same(ours, plain)
    same(scale_too, scale)
    back = fast.rms_norm_backward(grad, x, weight, scale, more)
    same(kernels.rms_norm_backward(grad.clone(), x, weight, scale, more), back)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_row", [False, True], ids=["one position for all", "packed"])
@pytest.mark.parametrize("back", [False, True])
def test_rotation(back, per_row, dtype):
    batch, length, heads, width = 2, 5, 3, 8
    angles = made(batch if per_row else 1, length, 1, width // 2, seed=1)
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(dtype) for f in (torch.cos, torch.sin))
    qkv = made(batch * length, (heads + 2) * width, dtype=dtype)
    views = [x[:, : heads * width].view(batch, length, heads, width) for x in (qkv, qkv.clone())]
    fast.rotate_in_place(views[0], cos, sin, back)
    kernels.rotate_in_place(views[1], cos, sin, back)
    same(views[1], views[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_and_its_backward(dtype):
    gate_up, grad = made(5, 2 * 300, dtype=dtype), made(5, 300, seed=1, dtype=dtype)
    same(kernels.swiglu(gate_up), fast.swiglu(gate_up))
    pairs = [(grad.clone(), gate_up.clone()) for _ in range(2)]
    fast.swiglu_backward(*pairs[0])
    kernels.swiglu_backward(*pairs[1])
    for ours, plain in zip(pairs[1], pairs[0], strict=True):
        same(ours, plain)


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


def test_dequantized_nf4():
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = made(96, 200)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    out = torch.empty_like(weight)
    kernels.dequantize(packed, state, out)
    torch.testing.assert_close(out, dequantize_4bit(packed, state), rtol=1e-5, atol=1e-6)
