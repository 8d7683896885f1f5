"""Several processes train one model together, each on its share of every update's rows.

    accelerate launch --num_processes 2 -m course_utils train recipe.yaml

A recipe means the same however many there are: an update sees `effective_batch` rows, in the same
order, and its loss is divided by the answer tokens of all of them.  So the loss curve is that of
one process, and a checkpoint goes on in any number.  Gradients travel by PyTorch's DDP, or, where
the launcher's file says so, weights, gradients and optimizer states are shared out among the
processes as well (FSDP2); the Trainer and accelerate set that up.  What is here deals out the rows,
adds up what each process counted, and gathers what was shared out.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, RandomSampler, Sampler

from .errors import CourseError
from .recipes import Recipe


@dataclass(frozen=True)
class Processes:
    """How many processes train together, and which of them this is (from 0)."""

    count: int = 1
    index: int = 0

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and shows progress."""
        return self.index == 0

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all processes; each must call this at the same point."""
        if self.count == 1:
            return list(values)
        kind = PartialState().device
        summed = torch.tensor(values, dtype=torch.float64, device=kind)
        dist.all_reduce(summed)
        return summed.tolist()

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes; a GPU is not waited for."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.count
        return value

    def same(self, value: Any) -> Any:
        """The main process's value, in every process."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]


class Heard:
    """Whether any process raised its hand, told one step late: so nobody waits for a GPU."""

    def __init__(self, of: Processes) -> None:
        self.of, self._waiting = of, None

    def any(self, raised: bool) -> bool:
        """Raise this process's hand or not; True where one was up at the call before.

        Each process must call this at the same point, and each gets the same answer.
        """
        if self.of.count == 1:
            return raised
        count = torch.tensor(float(raised), device=PartialState().device)
        dist.all_reduce(count)
        there = torch.cuda.Event() if count.is_cuda else None
        copied = count.to("cpu", non_blocking=True)
        if there is not None:
            there.record()
        before, self._waiting = self._waiting, (copied, there)
        if before is None:
            return False
        if before[1] is not None:
            before[1].synchronize()
        return bool(before[0])


def processes() -> Processes:
    """What the launcher (accelerate, torchrun) started; one where it was none."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Processes()
    state = PartialState(cpu=not torch.cuda.is_available())
    return Processes(state.num_processes, state.process_index)


def leave(code: int) -> NoReturn:
    """End this process, one of several, with an exit code; nothing after the call runs.

    Python is not taken down first: the threads that carry tensors between processes (gloo) outlive
    their group, and one that drops its last tensor meanwhile aborts a process whose work is done.
    """
    if code == 0 and dist.is_initialized():  # after an error others may still be waiting in it
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def weights_are_shared() -> bool:
    """Whether each process is to hold only a part of every weight (FSDP).

    `accelerate launch` tells its processes so by environment variables.
    """
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return asked and processes().count > 1


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor; all of it where nothing is shared out."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """The trained weights of a model, gathered on the CPU; None where they are not shared out.

    Each process must call this at the same point; the main one gets the values.
    """
    if not any(isinstance(weight, DTensor) for weight in model.parameters()):
        return None
    whole = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            value = weight.detach().full_tensor() if isinstance(weight, DTensor) else weight
            whole[name] = value.cpu()
    return whole


def shares(recipe: Recipe, count: int) -> tuple[int, int]:
    """(rows in a batch, batches in an update) of each of `count` processes.

    Never more rows at once than `recipe.batch_size`.  Raises CourseError where an update has fewer
    rows than there are processes.
    """
    rows = recipe.effective_batch
    if rows < count:
        raise CourseError(
            f"An update of {rows} rows cannot be shared by {count} processes: raise batch_size or "
            f"gradient_accumulation to {count} rows an update or more, or launch fewer."
        )
    most = math.ceil(rows / count)
    size = min(recipe.batch_size, most)
    return size, math.ceil(most / size)


class Shares(Sampler):
    """Batches of row numbers for one process: its share of every update, in equally many batches.

    An update takes the next `effective_batch` rows in `order`'s order, as one process would; row
    k of it goes to process k modulo their number.  A share that is too small for all its batches
    ends in empty ones, which `ahead.CountedBatches` fills with a row that has no answer.
    """

    def __init__(self, order: Sampler, recipe: Recipe, of: Processes) -> None:
        self.order, self.of, self.rows = order, of, recipe.effective_batch
        self.size, self.count = shares(recipe, of.count)

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.rows) * self.count

    def __iter__(self) -> Iterator[list[int]]:
        numbers = self.of.same(list(self.order))
        for start in range(0, len(numbers), self.rows):
            mine = numbers[start : start + self.rows][self.of.index :: self.of.count]
            for batch in range(self.count):
                yield mine[batch * self.size : (batch + 1) * self.size]

    def set_epoch(self, epoch: int) -> None:
        """Told by the Trainer; the order of an epoch follows from it."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)


class SharedLoader(DataLoader):
    """A loader of `Shares`."""

    def set_epoch(self, epoch: int) -> None:
        """Told by the Trainer at the start of each epoch."""
        self.batch_sampler.set_epoch(epoch)


def shared_loader(rows: Any, order: Sampler, recipe: Recipe, of: Processes, **options: Any):
    """What the Trainer reads its batches from in one of several processes."""
    if isinstance(order, RandomSampler):  # as accelerate makes it for one process
        order = SeedableRandomSampler(
            order.data_source, num_samples=len(order), generator=torch.Generator(),
            data_seed=recipe.seed,
        )  # fmt: skip
    elif hasattr(order, "batch_size"):  # by length: within groups of so many updates
        order.batch_size = recipe.effective_batch
    return SharedLoader(rows, batch_sampler=Shares(order, recipe, of), **options)
