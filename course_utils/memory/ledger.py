"""A list of all tensors a training step makes and lets go of, and torch's allocator to replay it.

`Ledger` is written by the modules that know which tensors a step holds (`activations`, `stock`);
each entry says to what part it belongs and how large it is.  `replay` runs the list through the
rules of torch's caching allocator for CUDA (c10/cuda/CUDACachingAllocator.cpp, with its default
settings), which gives the same two peaks as `torch.cuda.max_memory_allocated` and
`max_memory_reserved`.  No tensor is made: everything here is sizes in bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """What a tensor is: its part of the total, a name, its dimensions and bytes per number."""

    part: str
    name: str
    dims: tuple[int, ...]
    width: float

    @property
    def size(self) -> int:
        """Bytes, as asked for."""
        return int(prod(self.dims) * self.width)

    def __str__(self) -> str:
        numbers = " x ".join(f"{dim:,}" for dim in self.dims)
        return f"{numbers} x {self.width:g} B"


class Piece:
    """One tensor's memory.  uses: how many still need it; at 0 it is given back."""

    __slots__ = ("kind", "ledger", "number", "uses")

    def __init__(self, ledger: Ledger, kind: Kind, number: int) -> None:
        self.ledger, self.kind, self.number, self.uses = ledger, kind, number, 1

    def keep(self) -> Piece:
        """One more needs it."""
        self.uses += 1
        return self

    def drop(self) -> None:
        """One less needs it."""
        self.uses -= 1
        if self.uses == 0:
            self.ledger.events.append((~self.number, self.ledger.now))


def drop(*pieces: Piece | None) -> None:
    """One less needs each of them; None is passed over."""
    for piece in pieces:
        if piece is not None:
            piece.drop()


class Ledger:
    """Events in the order in which they happen.

    events: (number of a piece, moment); the bitwise complement of the number where it is freed.
    stream: of CUDA, on which new pieces are made; streams: of those not made on the usual one, by
    number.
    """

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        self.events: list[tuple[int | None, str]] = []
        self.now = "load"
        self.stream = ""
        self.streams: dict[int, str] = {}

    def new(self, part: str, name: str, *dims: int, width: float = 2) -> Piece:
        """A tensor of these dimensions, with `width` bytes for each number."""
        piece = Piece(self, Kind(part, name, dims, width), len(self.kinds))
        self.kinds.append(piece.kind)
        self.events.append((piece.number, self.now))
        if self.stream:
            self.streams[piece.number] = self.stream
        return piece

    @contextmanager
    def on_stream(self, name: str) -> Iterator[None]:
        """What the block makes is made on this stream."""
        before, self.stream = self.stream, name
        yield
        self.stream = before

    @contextmanager
    def short(self, part: str, name: str, *dims: int, width: float = 2) -> Iterator[Piece]:
        """A tensor that lives as long as the block."""
        piece = self.new(part, name, *dims, width=width)
        yield piece
        piece.drop()

    def empty_cache(self) -> None:
        """Here the allocator gives all its unused segments back to the driver."""
        self.events.append((None, self.now))


# --------------------------------------------------------------------------- torch's allocator

SMALL = MIB  # tensors up to this share segments of 2 MiB
SMALL_SEGMENT, LARGE_SEGMENT = 2 * MIB, 20 * MIB
OWN_SEGMENT = 10 * MIB  # from this size on, a segment is made to measure
ROUND, ROUND_OWN = 512, 2 * MIB


class Block:
    """A stretch of a segment."""

    __slots__ = ("address", "after", "before", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size
        self.before: Block | None = None
        self.after: Block | None = None


class Pool:
    """The free blocks of one pool (small or large), ordered by size and then by address."""

    def __init__(self, least_rest: int) -> None:
        self.order: list[tuple[int, int]] = []
        self.blocks: dict[int, Block] = {}  # by address
        self.least_rest = least_rest  # a smaller rest stays with the block

    def add(self, block: Block) -> None:
        insort(self.order, (block.size, block.address))
        self.blocks[block.address] = block

    def remove(self, block: Block) -> None:
        del self.order[bisect_left(self.order, (block.size, block.address))]
        del self.blocks[block.address]

    def best(self, size: int) -> Block | None:
        """The smallest that is large enough, taken out."""
        at = bisect_left(self.order, (size, 0))
        if at == len(self.order):
            return None
        block = self.blocks.pop(self.order[at][1])
        del self.order[at]
        return block


class Allocator:
    """torch's caching allocator: best fit, split, merged again when freed; pools by stream."""

    def __init__(self) -> None:
        self.pools: dict[tuple[str, bool], Pool] = {}
        self.allocated = self.reserved = self.top = 0

    def pool(self, stream: str, small: bool) -> Pool:
        """Free blocks of one stream: what was made on one is never handed out on another."""
        pool = self.pools.get((stream, small))
        if pool is None:
            pool = self.pools[stream, small] = Pool(ROUND if small else SMALL + 1)
        return pool

    def take(self, size: int, stream: str = "") -> Block:
        size = max(ROUND, -(-size // ROUND) * ROUND)
        pool = self.pool(stream, size <= SMALL)
        block = pool.best(size)
        if block is None:
            whole = _segment(size)
            block = Block(self.top, whole)
            self.top += whole + 1  # never adjoining: segments do not merge
            self.reserved += whole
        if block.size - size >= pool.least_rest:
            rest = Block(block.address + size, block.size - size)
            rest.before, rest.after, block.after = block, block.after, rest
            if rest.after:
                rest.after.before = rest
            block.size = size
            pool.add(rest)
        self.allocated += block.size
        return block

    def give(self, block: Block, small: bool, stream: str = "") -> None:
        pool = self.pool(stream, small)
        self.allocated -= block.size
        before, after = block.before, block.after
        if before is not None and before.address in pool.blocks:
            pool.remove(before)
            before.size += block.size
            before.after = after
            if after is not None:
                after.before = before
            block = before
        if after is not None and after.address in pool.blocks:
            pool.remove(after)
            block.size += after.size
            block.after = after.after
            if after.after is not None:
                after.after.before = block
        pool.add(block)

    def empty_cache(self) -> None:
        for pool in self.pools.values():
            for block in list(pool.blocks.values()):
                if block.before is None and block.after is None:
                    pool.remove(block)
                    self.reserved -= block.size


def _segment(size: int) -> int:
    """Bytes that the driver is asked for."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < OWN_SEGMENT else -(-size // ROUND_OWN) * ROUND_OWN


# ------------------------------------------------------------------------------------- peaks


@dataclass
class Moment:
    """The highest point of one moment of a run, in bytes.  at: index of its event."""

    name: str
    allocated: int = 0
    reserved: int = 0
    at: int = -1


@dataclass
class Peaks:
    """What `replay` found: each moment's highest point, in the order of their first event."""

    ledger: Ledger
    moments: dict[str, Moment] = field(default_factory=dict)

    def highest(self, names: Sequence[str] | None = None) -> Moment:
        """The moment of the highest peak, of all or of those named."""
        chosen = [m for name, m in self.moments.items() if names is None or name in names]
        return max(chosen, key=lambda moment: moment.allocated)

    @property
    def reserved(self) -> int:
        """The most that was reserved at any time."""
        return max(moment.reserved for moment in self.moments.values())

    def live(self, at: int) -> Counter[Kind]:
        """How many tensors of each kind are alive after event number `at`."""
        alive: set[int] = set()
        for number, _ in self.ledger.events[: at + 1]:
            if number is not None:
                alive.add(number) if number >= 0 else alive.discard(~number)
        return Counter(self.ledger.kinds[number] for number in alive)


def replay(ledger: Ledger) -> Peaks:
    """Run a ledger's events through the allocator."""
    allocator, peaks, blocks = Allocator(), Peaks(ledger), {}
    sizes, streams = [kind.size for kind in ledger.kinds], ledger.streams
    for at, (number, name) in enumerate(ledger.events):
        if number is None:
            allocator.empty_cache()
        elif number >= 0:
            if sizes[number]:
                blocks[number] = allocator.take(sizes[number], streams.get(number, ""))
        elif ~number in blocks:
            made = blocks.pop(~number)
            allocator.give(made, sizes[~number] <= SMALL, streams.get(~number, ""))
        moment = peaks.moments.get(name) or peaks.moments.setdefault(name, Moment(name))
        if allocator.allocated > moment.allocated:
            moment.allocated, moment.at = allocator.allocated, at
        moment.reserved = max(moment.reserved, allocator.reserved)
    return peaks
