"""A search kept as JSON gives Optuna's study back, and so its plots."""

from __future__ import annotations

import json

import optuna
import pytest
from test_search import TRAIN, VALIDATION, _quick, base  # noqa: F401  (fixtures)

from course_utils import search
from course_utils.display import plot_study


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_a_study_keeps_gives_it_back(base):  # noqa: F811
    space = {"learning_rate": (1e-4, 1e-1, "log"), "rank": [0, 2], "batch_size": (2, 4)}
    made = search.Study(
        base.replace(max_steps=2), space, TRAIN, VALIDATION, sampler="random", looks=2, seed=3
    ).run(6)
    made.optuna.enqueue_trial({"learning_rate": 1e-3, "rank": 2, "batch_size": 2})  # waits
    kept = json.loads(json.dumps(made.to_dict()))
    again = search.stored(kept)
    assert len(again.trials) == 6 and {t.state.name for t in again.trials} == {"COMPLETE", "FAIL"}
    for one, other in zip(made.optuna.trials, again.trials, strict=False):
        assert one.params == other.params and one.value == other.value and one.state == other.state
        assert one.intermediate_values == other.intermediate_values
        assert one.distributions == other.distributions
    assert again.best_params == made.optuna.best_params
    for kind in ("history", "importance", "parallel"):
        plot_study(again, kind)


def test_pruned_trials_stay_pruned():
    kept = {
        "distributions": {
            "rank": optuna.distributions.distribution_to_json(
                optuna.distributions.CategoricalDistribution([2, 4])
            )
        },
        "trials": [
            {"params": {"rank": 2}, "state": "COMPLETE", "loss": 0.5, "looks": {"1": 0.9, "2": 0.5},
             "reason": "", "seconds": 1.0},
            {"params": {"rank": 4}, "state": "PRUNED", "loss": 1.5, "looks": {"1": 1.5},
             "reason": "stopped at look 1 of 2", "seconds": 0.5},
        ],
    }  # fmt: skip
    again = search.stored(kept)
    assert again.trials[1].state == optuna.trial.TrialState.PRUNED
    assert again.trials[1].intermediate_values == {1: 1.5} and again.best_value == 0.5
    assert again.trials[1].user_attrs["reason"] == "stopped at look 1 of 2"
