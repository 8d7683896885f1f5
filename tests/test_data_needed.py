"""The benchmark of how many rows a task takes: what it concludes from its trainings."""

from __future__ import annotations

import json

import pytest

from benchmarks import data_needed


def training(rows, seed, score, held_out=(1.0, 0.5, 0.6), loss=0.1):
    return {
        "rows": rows, "seed": seed, "score_percent": score, "held_out_losses": list(held_out),
        "held_out_loss": held_out[-1], "training_loss": loss, "epochs": 260 / rows, "steps": 65,
        "device": "CPU (a name, 2 threads)",
    }  # fmt: skip


def test_conclusions_from_trainings():
    made = data_needed.collect(
        [
            {"rows": 0, "seed": 0, "score_percent": 1.0},
            training(10, 0, 20.0),
            training(10, 1, 30.0, held_out=(1.0, 0.7, 0.9), loss=0.2),
            training(100, 0, 80.0),
            training(100, 1, 90.0),
            training(260, 0, 88.0),
            training(260, 1, 90.0),
        ]
    )
    rows = {row["name"]: row for row in made["rows"]}
    assert (made["best_percent"], made["steps"]) == (89.0, 65)
    assert made["enough_rows"] == 100, "85 is within 5 points of 89"
    assert made["half_of_best_rows"] == 100, "25 is not half of 89"
    assert rows["rows-0"]["seeds"] == 1 and "epochs" not in rows["rows-0"]
    few = rows["rows-10"]
    assert (few["lowest_percent"], few["score_percent"], few["highest_percent"]) == (20, 25, 30)
    assert few["lowest_held_out_loss"] == pytest.approx(0.6), "the start does not count"
    assert few["held_out_loss"] == pytest.approx(0.75)
    assert few["loss_ratio"] == pytest.approx(0.75 / 0.15, rel=1e-4)


def test_the_shipped_result_is_of_equal_steps_and_several_seeds():
    if not data_needed.RESULTS.is_file():
        pytest.skip("benchmarks.data_needed was not run yet")
    made = json.loads(data_needed.RESULTS.read_text(encoding="utf-8"))
    trained = [run for run in made["trainings"] if run["rows"]]
    assert {run["rows"] for run in trained} == {10, 30, 100, 260}
    assert {run["steps"] for run in trained} == {made["steps"]}
    assert all(row["seeds"] >= 2 for row in made["rows"] if row["rows"])
    again = data_needed.collect(made["trainings"])
    same = ("rows", "enough_rows", "half_of_best_rows", "best_percent")
    assert {key: again[key] for key in same} == {key: made[key] for key in same}
