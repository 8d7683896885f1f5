"""Layouts of batches: every row once, widths that fit, and the share of padding by hand."""

from __future__ import annotations

import random

import pytest

from course_utils.errors import CourseError
from course_utils.padding import WAYS, layout

LENGTHS = random.Random(0).choices(range(1, 91), k=203)


@pytest.mark.parametrize("way", WAYS)
def test_every_row_is_laid_out_once_and_fits(way):
    made = layout(LENGTHS, way, batch_size=8, max_length=100)
    assert sorted(i for members, _ in made.sequences for i in members) == list(range(203))
    assert all(sum(LENGTHS[i] for i in members) <= width for members, width in made.sequences)
    assert made.tokens == sum(LENGTHS)
    assert made.positions == sum(width for _, width in made.sequences)
    assert made.way in str(made) and f"{100 * made.padding_share:.1f} % padding" in str(made)


def test_shares_counted_by_hand():
    lengths = [4, 4, 4, 4, 2, 2]
    share = {way: layout(lengths, way, batch_size=6, max_length=10).padding_share for way in WAYS}
    assert share["to max_length"] == pytest.approx(1 - 20 / 60)
    assert share["to the longest of a batch"] == pytest.approx(1 - 20 / 24)
    assert share["packing"] == pytest.approx(0)  # 4 + 4 + 2, twice


def test_group_by_length_wastes_less_than_chance_and_packing_joins():
    made = {way: layout(LENGTHS * 4, way, batch_size=8, max_length=256) for way in WAYS}
    shares = [made[way].padding_share for way in WAYS[:3]]
    assert shares == sorted(shares, reverse=True) and shares[2] < shares[1] / 2
    assert len(made["packing"].sequences) < len(LENGTHS)


def test_the_order_is_the_seeds():
    way = "to the longest of a batch"
    first, again, other = (layout(LENGTHS, way, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_long_rows_are_cut():
    made = layout([5, 1000], "to max_length", max_length=10)
    assert (made.tokens, made.positions) == (15, 20)


@pytest.mark.parametrize(
    ("lengths", "way", "options", "said"),
    [
        ([1], "none", {}, "must be one of 'to max_length'"),
        ([], "packing", {}, "above 0"),
        ([0], "packing", {}, "above 0"),
        ([3], "packing", {"batch_size": 0}, "above 0"),
    ],
)
def test_what_cannot_be_laid_out(lengths, way, options, said):
    with pytest.raises(CourseError, match=said):
        layout(lengths, way, **options)
