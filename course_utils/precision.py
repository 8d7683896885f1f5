"""In which precision to compute: what the recipe says, or what is faster on this machine."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .errors import CourseError
from .recipes import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_precision(recipe: Recipe, place: torch.device) -> tuple[str, str]:
    """(precision, why): the recipe's own, or the faster one here by a short timing."""
    if recipe.precision == "fp16" and place.type == "cpu":
        raise CourseError(
            "fp16 training needs a GPU: on a CPU use precision='auto' or 'fp32' "
            "(chapter 10, 'fp16')."
        )
    if recipe.precision != "auto":
        return recipe.precision, "as the recipe says"
    if place.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16", "this GPU has no bf16"
    gain = _bf16_gain(str(place))
    return ("bf16" if gain > 1.1 else "fp32"), f"bf16 runs at {gain:.1f}x the speed of fp32 here"


@functools.cache
def _bf16_gain(place: str) -> float:
    """How many times faster a linear layer's forward and backward run in bf16 than in fp32."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    # Other programs on the machine only ever add time, and most where threads wait for each other:
    # so the best of several, in turn, on one thread.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(8):
            for dtype, best in seconds.items():
                seconds[dtype] = min(best, _linear_seconds(place, dtype))
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _linear_seconds(place: str, dtype: torch.dtype) -> float:
    """Time of one forward and backward through a linear layer of the embedded model's size."""
    layer = nn.Linear(576, 1536, bias=False, device=place, dtype=dtype)
    inputs = torch.randn(512, 576, device=place, dtype=dtype, requires_grad=True)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    layer(inputs).sum().backward()
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def autocast_for(precision: str, place: torch.device) -> Callable[[], Any]:
    """A context manager factory that computes in `precision` on `place`."""
    if precision == "fp32":
        return contextlib.nullcontext
    return functools.partial(torch.autocast, place.type, DTYPES[precision])
