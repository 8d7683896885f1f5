"""How small a card a run can do with: torch's allocator, held to a limit.

`Estimate.reserved_gib` is what the allocator keeps where there is room.  Where there is none it
first gives back every segment that it keeps unused, and only then is memory out: so a run can pass
on a card that is smaller than what it reserves on a large one.
"""

from __future__ import annotations

from bisect import bisect_left

from .ledger import MIB, SMALL, Allocator, Block, Ledger, _segment

STEP = 32 * MIB  # how exactly `least_reserved` looks


class _Full(Exception):
    """The run does not pass under this limit."""


class _Limited(Allocator):
    """The allocator after `torch.cuda.set_per_process_memory_fraction`; limit: bytes reserved."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def take(self, size: int, stream: str = "") -> Block:
        pool = self.pool(stream, size <= SMALL)
        if bisect_left(pool.order, (size, 0)) == len(pool.order):  # a new segment
            if self.reserved + _segment(size) > self.limit:
                self.empty_cache()
            if self.reserved + _segment(size) > self.limit:
                raise _Full
        return super().take(size, stream)


def passes(ledger: Ledger, limit: int) -> bool:
    """Whether the ledger's run needs no more than `limit` reserved bytes at any time."""
    allocator, blocks = _Limited(limit), {}
    sizes, streams = [kind.size for kind in ledger.kinds], ledger.streams
    try:
        for number, _ in ledger.events:
            if number is None:
                allocator.empty_cache()
            elif number >= 0 and sizes[number]:
                blocks[number] = allocator.take(sizes[number], streams.get(number, ""))
            elif number < 0 and ~number in blocks:
                made = blocks.pop(~number)
                allocator.give(made, sizes[~number] <= SMALL, streams.get(~number, ""))
    except _Full:
        return False
    return True


def least_reserved(ledger: Ledger, low: int, high: int) -> int:
    """The smallest limit, in bytes, under which the run passes; between `low` and `high`."""
    low, high = low // STEP, -(-high // STEP)
    while low < high:
        middle = (low + high) // 2
        if passes(ledger, middle * STEP):
            high = middle
        else:
            low = middle + 1
    return low * STEP
