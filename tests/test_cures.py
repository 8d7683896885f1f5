"""The study of cures: what it varies, the guide's warm-up as a recipe, its summary's names."""

from __future__ import annotations

import math

import pytest

from benchmarks import cures
from course_utils import results
from course_utils.loop import learning_rate_factor


@pytest.mark.parametrize("failing", [cures.TOO_LARGE, cures.TOO_SMALL])
def test_the_guides_warm_up_is_written_as_a_recipe(failing):
    """Step s of N has the share s / 501 of the rate that was asked for."""
    made = cures.warmed(failing, cures.ROWS)
    steps = math.ceil(cures.ROWS / failing.batch_size) * int(failing.epochs)
    warm = math.ceil(made.warmup * steps)
    for step in range(steps):
        share = learning_rate_factor(step, total=steps, warmup=warm, schedule=made.schedule)
        assert share * made.learning_rate == pytest.approx(failing.learning_rate * (step + 1) / 501)


def test_each_change_is_one_change():
    for changes, _ in cures.FAILURES.values():
        failing = changes["as it fails"].to_dict()
        for name, recipe in changes.items():
            differ = [field for field, value in recipe.to_dict().items() if value != failing[field]]
            together = {"500 warm-up steps": 2, "rank 16": 2, "early stopping": 2, "as it fails": 0}
            assert len(differ) == together.get(name, 1), (name, differ)


def test_a_seed_is_whole_before_the_next_begins():
    seeds = [case["seed"] for case in cures.cases()]
    assert seeds == sorted(seeds) and len(seeds) == 18 * len(cures.SEEDS)


def test_the_shipped_summary_is_that_of_its_rows():
    made = results.read("cures")
    assert made["failures"] == cures.summary(made["rows"])
    assert not any("." in name for changes in made["failures"].values() for name in changes)
