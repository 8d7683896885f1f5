"""How rows of different length become batches, and how many positions that makes a model compute.

    for way in WAYS:
        print(layout(lengths, way, batch_size=8, max_length=512))

Nothing is encoded here: the lengths of the rows (in tokens) are enough to count.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .encoding import pack
from .errors import CourseError

WAYS = ("to max_length", "to the longest of a batch", "group_by_length", "packing")


@dataclass(frozen=True)
class Layout:
    """Rows as they lie on the positions that are computed.

    way: one of `WAYS`.  tokens: of all rows, cut at max_length.  positions: computed in one epoch,
    padding with them.  sequences: (rows by index, width in positions) of each sequence, in the
    order of training.
    """

    way: str
    tokens: int
    positions: int
    sequences: tuple[tuple[tuple[int, ...], int], ...]

    @property
    def padding_share(self) -> float:
        """Padding over all positions, between 0 and 1."""
        return 1 - self.tokens / self.positions

    def __str__(self) -> str:
        return (
            f"{self.way:26} {len(self.sequences):>6,} sequences, {self.positions:>9,} positions, "
            f"{100 * self.padding_share:.1f} % padding"
        )


def layout(
    lengths: Sequence[int], way: str, *, batch_size: int = 8, max_length: int = 512, seed: int = 0
) -> Layout:
    """Lay rows of these `lengths` out, in batches of `batch_size` sequences.

    "to max_length": every row filled up to max_length.  "to the longest of a batch": in random
    order, each batch as wide as its longest row.  "group_by_length": the same in transformers'
    order, which puts rows of like length together.  "packing": rows joined into sequences of up to
    max_length, these then batched in random order.  Longer rows are cut.  Raises CourseError.
    """
    if way not in WAYS:
        raise CourseError(f"way is {way!r} and must be one of {', '.join(map(repr, WAYS))}.")
    if not lengths or min(lengths) < 1 or min(batch_size, max_length) < 1:
        raise CourseError("lengths, batch_size and max_length must hold whole numbers above 0.")
    cut = [min(length, max_length) for length in lengths]
    members = _packed(cut, max_length) if way == "packing" else [(i,) for i in range(len(cut))]
    sizes = [sum(cut[i] for i in group) for group in members]
    order = _order(sizes, way, batch_size, seed)
    sequences: list[tuple[tuple[int, ...], int]] = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max_length if way == "to max_length" else max(sizes[i] for i in batch)
        sequences += [(members[i], width) for i in batch]
    return Layout(way, sum(cut), sum(width for _, width in sequences), tuple(sequences))


def _packed(lengths: list[int], max_length: int) -> list[tuple[int, ...]]:
    """The rows that `encoding.pack` puts together, by index."""
    rows = [{"input_ids": [i] * n, "labels": [i] * n} for i, n in enumerate(lengths)]
    return [tuple(dict.fromkeys(row["input_ids"])) for row in pack(rows, max_length)]


def _order(sizes: list[int], way: str, batch_size: int, seed: int) -> list[int]:
    """The order in which an epoch takes the sequences."""
    if way == "group_by_length":
        from transformers.trainer_pt_utils import get_length_grouped_indices  # what Trainer uses

        generator = torch.Generator().manual_seed(seed)
        return get_length_grouped_indices(sizes, batch_size, generator=generator)
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    return order
