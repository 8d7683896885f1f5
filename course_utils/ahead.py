"""The CPU stays ahead of the GPU: nothing in a training step waits for a result.

A GPU works through a queue that the CPU fills.  Each time the CPU asks for a number (how many
labels there are, what the loss was), it waits until the queue is empty, and then the GPU waits for
the CPU.  So what can be counted on the CPU is counted there, while a batch is put together, and
losses are read one step late, when they have long been there.  The Trainer's walks through all
modules, of which a 7-billion model with adapters has thousands, are left out where they would
change nothing.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Rows
from .encoding import IGNORE, Collator, count_tokens, joined
from .loss import labelled

Batch = dict[str, Any]


@dataclass(frozen=True)
class CountedBatches:
    """A collator that tells with each batch what its forward pass would have to wait for.

    Beside the tensors of `Collator`: `counts` (tokens, labelled tokens), `label_positions` (see
    `loss.labelled`), and with `by_rows`, where rows are told apart by position, `row_starts` and
    `longest_row` (see `attention.Rows`).
    by_rows: for `fast.FastDecoder`; a batch with padding becomes one line of its rows instead.
    """

    pad_id: int
    by_rows: bool = False

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> Batch:
        nothing = {"input_ids": [self.pad_id] * 2, "labels": [IGNORE] * 2}
        real, rows = bool(rows), rows or [nothing]  # see processes.Shares
        uneven = len({len(row["input_ids"]) for row in rows}) > 1
        batch: Batch = Collator(self.pad_id)([joined(rows)] if self.by_rows and uneven else rows)
        answers = int((batch["labels"] != IGNORE).sum())
        more: Batch = {"counts": (count_tokens(batch) if real else 0, answers)}
        more["label_positions"] = labelled(batch["labels"])[0]
        if self.by_rows and "position_ids" in batch:
            found = Rows.packed(batch["position_ids"])
            more |= {"row_starts": found.starts, "longest_row": found.longest}
        elif self.by_rows:
            del batch["attention_mask"]  # rows of one length: it leaves out nothing
        return batch | more


@dataclass(frozen=True)
class _Entry:
    """What a step left to be logged: figures on the device's way to the CPU, and what is known."""

    step: int
    epoch: float
    figures: Tensor  # [loss, norm of the gradient], on the CPU once `there` has happened
    there: torch.cuda.Event | None
    learning_rate: float | None


class LateLog:
    """Losses and gradient norms, handed on in order once they are there.

    log: takes (step, epoch, figures by name).  With a GPU the newest step's wait for the next one.
    """

    def __init__(self, log: Callable[[int, float, dict[str, float]], None]) -> None:
        self._log, self._waiting = log, deque()
        self.noted = 0  # the last step; those before a resumed run's first are not its own

    def note(
        self, step: int, epoch: float, loss: Tensor, norm: Tensor | float | None,
        learning_rate: float | None,
    ) -> None:  # fmt: skip
        """Keep a step's figures, and hand on those of the steps before it; a step counts once."""
        if step <= self.noted:
            return
        self.noted = step
        figures = [loss.detach().float()]
        if norm is not None:
            figures.append(torch.as_tensor(norm, dtype=torch.float32, device=loss.device))
        copied = torch.stack(figures).to("cpu", non_blocking=True)
        there = torch.cuda.current_stream().record_event() if loss.is_cuda else None
        self._waiting.append(_Entry(step, epoch, copied, there, learning_rate))
        self.hand_on(keep=1 if loss.is_cuda else 0)

    def hand_on(self, keep: int = 0) -> None:
        """Log all entries but the newest `keep`."""
        while len(self._waiting) > keep:
            entry = self._waiting.popleft()
            if entry.there is not None:
                entry.there.synchronize()
            values = dict(zip(("loss", "grad_norm"), entry.figures.tolist(), strict=False))
            if entry.learning_rate is not None:
                values["learning_rate"] = entry.learning_rate
            self._log(entry.step, entry.epoch, values)


@contextlib.contextmanager
def without_walks(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside the block, `model.train()` and `zero_grad()` touch only what is to be changed.

    Gives the parameters that are trained, the only ones that ever have a gradient.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    walk = model.train

    def train(mode: bool = True) -> nn.Module:
        return model if model.training == mode else walk(mode)

    def zero_grad(set_to_none: bool = True) -> None:
        for parameter in trained:
            parameter.grad = None

    walk()  # once: a loaded model's layers are in evaluation mode, whatever its wrapper says
    model.train, model.zero_grad = train, zero_grad
    try:
        yield trained
    finally:
        del model.train, model.zero_grad  # the class's own show again
