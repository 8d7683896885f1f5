"""Symptoms of a training that goes wrong, and how to provoke them: chapter 10's.

The library's errors use the same words and name the chapter: see `SYMPTOMS`.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import models
from .memory import GIB

CHAPTER = "10_troubleshooting"


@dataclass(frozen=True)
class Symptom:
    """What is seen, what it usually comes from, and the cells of the chapter that provoke and cure.

    topic: its cells are `<topic>-provoke` and `<topic>-cure`, or, where both are in one, `<topic>`.
    """

    seen: str
    cause: str
    topic: str
    in_one: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """The ids of the cells that provoke and cure it."""
        return (self.topic,) if self.in_one else (f"{self.topic}-provoke", f"{self.topic}-cure")


SYMPTOMS: dict[str, Symptom] = {
    "out of memory": Symptom(
        "`Memory ran out`, `CUDA out of memory`, a killed kernel",
        "more tokens at once, or more bytes a weight, than there is room for", "oom",
    ),
    "target modules not found": Symptom(
        "`Target modules ... not found`, `has no layer called`",
        "layer names of another architecture", "targets",
    ),
    "loss is NaN": Symptom(
        "`The loss became nan`", "too high a rate, fp16's range, a row without an answer", "nan",
    ),
    "loss is flat: rate": Symptom(
        "the loss stays where it began", "a rate a hundred times too small", "rate",
    ),
    "loss is flat: warm-up": Symptom(
        "the loss hardly falls, though the rate is right", "a warm-up longer than the run",
        "warmup", True,
    ),
    "loss is flat: masked labels": Symptom(
        "`keep no answer token`, a loss of NaN or 0", "rows cut before their answer", "masked",
        True,
    ),
    "loss is flat: alpha is 0": Symptom(
        "`an adapter scaled by 0 trains nothing`, `No gradient reached any trainable weight`",
        "alpha rounded to 0: the adapter is off", "alpha", True,
    ),
    "overfitting": Symptom(
        "training loss falls, held-out loss rises", "too many passes over too few rows",
        "overfitting",
    ),
    "never-ending answers": Symptom(
        "answers go on to the token limit", "pad = eos masks the label of the end", "endless", True,
    ),
    "fp16": Symptom(
        "`Attempting to unscale FP16 gradients`, `fp16 training needs a GPU`",
        "trained weights in fp16; fp16 where there is no GPU", "fp16",
    ),
    "wrong chat template": Symptom(
        "a good loss in training, bad answers in use", "another template in use than in training",
        "template",
    ),
    "gradients that do not arrive": Symptom(
        "`The loss has no gradient`", "an adapter loaded for use alone", "frozen",
    ),
    "gradients that do not arrive: checkpointing": Symptom(
        "`element 0 of tensors does not require grad`", "reentrant checkpointing", "reentrant",
        True,
    ),
    "4-bit model used before training": Symptom(
        "`This 4-bit model was used for inference before`",
        "bitsandbytes repacked it for a kernel without a backward pass", "fourbit",
    ),
    "memory is not freed": Symptom(
        "the second run in one kernel runs out of memory",
        "a name, an output or an error still holds the first model", "freed",
    ),
    "resume restarts": Symptom(
        "step 1 again after an interruption, `holds no checkpoint`",
        "no `resume`, or `save_steps` beyond the run's end", "resume",
    ),
    "version drift": Symptom(
        "`unexpected keyword argument`, other losses than last month",
        "another version of a library", "drift", True,
    ),
}  # fmt: skip


def table() -> str:
    """The symptoms as the chapter's Markdown table."""
    lines = ["| symptom | you see | it usually comes from | cells |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {one.seen} | {one.cause} | {', '.join(f'`{cell}`' for cell in one.cells)} |"
        for name, one in SYMPTOMS.items()
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def provoked(kind: type[Exception], words: str, *, happens: bool = True) -> Iterator[None]:
    """A block that must fail, with an error of this kind whose text holds `words`.

    Prints the error's first line and lets go of all that it holds.  happens: False where this
    machine cannot fail so; then the block may pass.  Raises AssertionError where the failure no
    longer happens, and lets another error through.
    """
    try:
        yield
    except kind as error:
        said = " ".join(str(error).split())
        if words not in said:
            raise
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        print(f"{type(error).__name__}: {said[:400]}")
    else:
        if happens:
            raise AssertionError(f"This failure no longer happens: no {kind.__name__} ({words!r}).")
        print(f"Not on this machine: no {kind.__name__} with {words!r}.")
    gc.collect()


def can_cap() -> bool:
    """Whether `capped` can limit this process: on a GPU, or by Linux for the CPU's memory."""
    return models.device().type == "cuda" or sys.platform == "linux"


@contextlib.contextmanager
def capped(more_gib: float) -> Iterator[None]:
    """Inside the block this process gets at most so many GiB more than it holds.

    On a GPU as on a smaller card; on Linux the address space is limited (RLIMIT_AS); elsewhere
    nothing is.
    """
    place = models.device()
    if place.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved(place) + more_gib * GIB
        total = torch.cuda.get_device_properties(place).total_memory
        torch.cuda.set_per_process_memory_fraction(room / total, place)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, place)
    elif sys.platform == "linux":
        with _address_space(int(more_gib * GIB)):
            yield
    else:
        yield


@contextlib.contextmanager
def _address_space(more: int) -> Iterator[None]:
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
