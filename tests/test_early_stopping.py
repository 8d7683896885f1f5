"""Early stopping: it stops, gives the best weights back, and goes on counting after a break."""

from __future__ import annotations

import signal

import pytest
import tiny_models
import torch
from test_processes import train
from test_training import Panel, assert_equal, losses, start, tiny_folder, trained  # noqa: F401

from course_utils import search, training
from course_utils.errors import CourseError
from course_utils.oom import RanOutOfMemory
from course_utils.recipes import Recipe, from_dict
from course_utils.stopping import BestLook

# Random rows: common tokens are learnt first, and help with others; then the rows by heart.
OVERFIT = {
    "rows": tiny_models.encoded(16, seed=1), "validation": tiny_models.encoded(8, seed=2),
    "learning_rate": 2e-2, "schedule": "constant", "warmup": 0.0, "evaluate_every": 2,
    "max_steps": 14,
}  # fmt: skip


@pytest.fixture
def overfit(start):  # noqa: F811
    """overfit(recipe fields...) -> a run whose held-out loss falls, then rises."""
    return lambda **fields: start(**{**OVERFIT, **fields})


def best_of(run) -> int:
    """The step with the lowest held-out loss."""
    return min(run.report.validation_losses, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_it_stops_and_gives_back_the_best_weights(overfit, tmp_path, method):
    rate = 1e-2 if method == "full" else 2e-2
    run = overfit(method=method, learning_rate=rate, early_stopping=2)
    best = best_of(run)
    assert run.report.stopped == "stopped early" and run.report.steps == best + 4 < 14
    assert f"the weights of step {best}" in run.report.notes[-1]
    assert not (tmp_path / "run").exists()  # nothing is left where no checkpoint was asked for
    if best:
        short = overfit(method=method, learning_rate=rate, max_steps=best)
        assert_equal(trained(run), trained(short))
        assert losses(run)[:best] == losses(short)  # looking changes no step


def test_a_run_that_goes_through_gives_the_best_look_too(overfit):
    run = overfit(early_stopping=50)
    best = best_of(run)
    assert run.report.stopped == "finished" and run.report.steps == 14 and 0 < best < 14
    assert_equal(trained(run), trained(overfit(max_steps=best)))


def test_a_loss_that_falls_is_let_run(start):  # noqa: F811
    rows = tiny_models.encoded(24)
    run = start(rows=rows, validation=rows, evaluate_every=2, max_steps=8, early_stopping=2)
    assert run.report.stopped == "finished" and run.report.steps == 8


def test_a_resumed_run_goes_on_counting(overfit, tmp_path):
    whole = overfit(early_stopping=3, folder="whole", save_every=1)
    before_the_end = tmp_path / "whole" / f"checkpoint-{whole.report.steps - 1}"  # between looks
    resumed = overfit(early_stopping=3, folder="rest", resume=before_the_end)
    assert resumed.report.steps == whole.report.steps
    assert_equal(trained(resumed), trained(whole))  # of a look before that checkpoint


def test_an_interrupted_run_says_how_to_go_on_and_does(overfit, tmp_path):
    whole = overfit(early_stopping=2)
    panel = Panel(at=3, act=lambda: signal.raise_signal(signal.SIGINT))
    broken = overfit(early_stopping=2, folder="broken", panel=panel)
    assert broken.report.stopped == "interrupted" and "to go on" in panel.messages[0]
    checkpoint = training.newest_checkpoint(tmp_path / "broken")
    resumed = overfit(early_stopping=2, folder="broken", resume=checkpoint)
    assert resumed.report.steps == whole.report.steps
    assert_equal(trained(resumed), trained(whole))


def test_memory_that_runs_out_loses_no_look(overfit):
    whole = overfit(early_stopping=2)

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(RanOutOfMemory) as caught:
        overfit(early_stopping=2, panel=Panel(at=3, act=full))
    resumed = overfit(early_stopping=2, resume=caught.value.checkpoint, folder="rest")
    assert resumed.report.steps == whole.report.steps
    assert_equal(trained(resumed), trained(whole))


def test_several_processes_stop_where_one_does(tmp_path):
    fields = {"evaluate_every": 1, "early_stopping": 2, "learning_rate": 0.1}
    alone, both = (train(tmp_path, count, f"of{count}", **fields) for count in (1, 2))
    assert both["processes"] == 2 and both["stopped"] == alone["stopped"] == "stopped early"
    assert both["steps"] == alone["steps"]
    kept = [report["notes"][-1].partition(", held-out")[0] for report in (alone, both)]
    assert kept[0] == kept[1] and "the weights of step" in kept[0]
    assert not list(tmp_path.glob("of2/*.safetensors"))  # of the best look


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"early_stopping": 2}, "it needs evaluate_every"),
        ({"early_stopping": 0, "evaluate_every": 2}, "early_stopping is 0"),
        ({"early_stopping": True, "evaluate_every": 2}, "early_stopping is True"),
    ],
)
def test_a_recipe_that_cannot_stop_is_refused(fields, said):
    with pytest.raises(CourseError, match=said):
        Recipe(**fields)


def test_held_out_rows_are_needed(start):  # noqa: F811
    with pytest.raises(CourseError, match=r"no held-out rows.*\(chapter 10, 'overfitting'\)"):
        start(evaluate_every=2, early_stopping=2)


def test_a_recipe_prints_and_keeps_it():
    recipe = Recipe(evaluate_every=4, early_stopping=2)
    assert "early_stopping=2" in str(recipe) and from_dict(recipe.to_dict()) == recipe
    assert "early_stopping" not in str(Recipe())


def test_a_study_judges_trials_in_its_own_way():
    with pytest.raises(CourseError, match="early_stopping cannot be searched"):
        search._distribution("early_stopping", [1, 2])


def test_a_loss_that_is_no_number_is_no_best(tmp_path):
    look = BestLook(2, tmp_path)
    model = tiny_models.model(vocab_size=tiny_models.FEW)
    assert not look.look(0, float("nan"), model) and not look.found
    assert look.look(2, float("nan"), model)
