"""Running out of memory: recognised, let go of, and named in one sentence.

An exception keeps every frame that it passed through, and these keep activations alive: whoever
wants to go on after it has to let go of them first.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from .errors import CourseError
from .memory import free_memory
from .recipes import Recipe
from .report import RunReport

SIGNS = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")


class RanOutOfMemory(CourseError, torch.OutOfMemoryError):
    """A run met the end of the memory; what it had reached is kept.

    recipe: the run's.  report: up to the last finished step; None while the model was loaded.
    checkpoint: of that step; None where there was none, and a new run loses nothing.
    torn: whether it happened in the middle of a weight update, so that nothing could be kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        said: str,
        report: RunReport | None = None,
        checkpoint: Path | None = None,
        torn: bool = False,
    ) -> None:
        self.recipe, self.report, self.checkpoint, self.torn = recipe, report, checkpoint, torn
        when = f"after step {report.steps}" if report else "while the model was loaded"
        kept = f" (resume={checkpoint.as_posix()!r} goes on from there)" if checkpoint else ""
        super().__init__(
            f"Memory ran out {when}, with batch_size={recipe.batch_size}{kept}: lower batch_size "
            "and raise gradient_accumulation by the same factor, set checkpointing=True, or let "
            "ModelTrainer(memory_budget_gib=...) see to it (chapter 10, 'out of memory'). The "
            f"allocator said: {said}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an allocation that failed, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def let_go(error: BaseException, device: torch.device | str) -> str:
    """Free what the frames of `error` keep alive; returns what it said, on one line."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    free_memory(device)
    return said
