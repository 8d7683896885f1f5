"""Studies over recipes, with real trainings of a very small model."""

from __future__ import annotations

import _thread
import gc
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import optuna
import pytest
import tiny_models
import torch
from optuna.trial import TrialState
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from course_utils import CourseError, search, training
from course_utils.recipes import Recipe

SPACE = {"learning_rate": (1e-4, 1e-1, "log"), "rank": [2, 4, 8], "alpha_per_rank": [1, 2]}


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """So small a model gains nothing by two threads; and each trial collects garbage twice."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()  # else each time all that is imported is looked through
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Recipe:
    """A recipe of four steps for a model of some 0.1 million weights, and a tokenizer as small."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_models.model("llama", vocab_size=tiny_models.FEW).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return Recipe(
        model=str(folder), rank=2, alpha=4, learning_rate=1e-2, batch_size=4, max_steps=4,
        precision="fp32", targets="attention", schedule="constant",
    )  # fmt: skip


TRAIN, VALIDATION = tiny_models.encoded(16, seed=1), tiny_models.encoded(6, seed=2)


def study(base: Recipe, space: dict | None = None, **options) -> search.Study:
    return search.Study(base, space or SPACE, TRAIN, VALIDATION, **options)


def tried(finished: search.Study) -> list[dict]:
    return [{field: row[field] for field in finished.space} for row in finished.table()]


def losses(finished: search.Study) -> list[float]:
    return [row["loss"] for row in finished.table()]


# --- What is tried ------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "trials"), [("random", 3), ("tpe", 6)])
def test_a_seed_proposes_the_same_trials_in_one_go_and_in_two(base, tmp_path, sampler, trials):
    options = {"sampler": sampler, "seed": 7, "looks": 1}
    short = base.replace(max_steps=1)
    whole = study(short, **options).run(trials)
    first = study(short, storage=tmp_path / "study.db", **options).run(trials - 1)
    assert len(first.table()) == trials - 1
    second = study(short, storage=tmp_path / "study.db", **options).run(trials)
    assert tried(whole) == tried(second) and losses(whole) == losses(second)
    assert len({row["learning_rate"] for row in tried(whole)}) == trials  # none is repeated
    assert all(1e-4 <= row["learning_rate"] <= 1e-1 for row in tried(whole))
    other = study(short, sampler=sampler, seed=8, looks=1).run(1)
    assert tried(other) != tried(whole)[:1]


def test_a_grid_is_every_combination_once(base):
    space = {"rank": [2, 4], "targets": ["attention", ["q_proj", "v_proj"]], "alpha_per_rank": [2]}
    finished = study(base.replace(max_steps=1), space, sampler="grid", looks=1).run()
    assert sorted(map(str, tried(finished))) == sorted(
        str({"rank": rank, "targets": targets, "alpha_per_rank": 2})
        for rank in (2, 4) for targets in ("attention", "q_proj, v_proj")
    )  # fmt: skip
    made = [finished.recipe(row) for row in finished.table()]
    assert {(r.rank, r.alpha) for r in made} == {(2, 4), (4, 8)}
    assert {r.targets for r in made} == {"attention", ("q_proj", "v_proj")}
    assert finished.run().table() == finished.table()  # nothing is left to do


def test_whole_numbers_stay_whole_and_alpha_is_never_zero(base):
    finished = study(
        base.replace(max_steps=1), {"rank": (2, 6), "alpha": (1, 8)}, sampler="random", looks=1
    ).run(3)
    assert all(type(row["rank"]) is int and 2 <= row["rank"] <= 6 for row in finished.table())
    assert any(row["alpha"] != int(row["alpha"]) >= 1 for row in finished.table())


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({"rnk": [2]}, "did you mean rank"),
        ({"rank": []}, "space of rank"),
        ({"rank": [2, 2]}, "different choices"),
        ({"rank": (8, 4)}, "space of rank"),
        ({"rank": 8}, "space of rank"),
        ({"learning_rate": (0, 1, "log")}, "space of learning_rate"),
        ({"learning_rate": (1e-4, 1e-2, "logarithmic")}, "space of learning_rate"),
        ({"method": ("full", "lora")}, "space of method"),
        ({"max_length": [64, 128]}, "same tokens"),
        ({"model": ["gpt2"]}, "tokenizers"),
        ({"alpha": [8], "alpha_per_rank": [2]}, "not both alpha"),
        ({}, "must name a field"),
    ],
)
def test_a_space_that_fits_no_recipe_is_named(base, space, says):
    with pytest.raises(CourseError, match=says):
        search.Study(base, space, TRAIN, VALIDATION)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sampler": "grid"}, "not a range, for learning_rate"),
        ({"sampler": "bayes"}, "must be one of 'grid'"),
        ({"pruner": "hyper"}, "must be one of None"),
        ({"looks": 0}, "looks is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options_are_named(base, options, says):
    with pytest.raises(CourseError, match=says):
        study(base, **options)


def test_an_endless_search_is_refused(base):
    with pytest.raises(CourseError, match="no end of its own"):
        study(base).run()
    with pytest.raises(CourseError, match="trials is 0"):
        study(base).run(trials=0)


# --- How it is judged ---------------------------------------------------------------------------


def test_the_best_recipe_has_the_lowest_loss_on_the_validation_rows(base):
    finished = study(base, {"learning_rate": [1e-6, 1e-2, 1e-3]}, sampler="grid").run()
    assert finished.best == base.replace(learning_rate=1e-2)
    alone = training.run(finished.best, TRAIN, VALIDATION).report.validation_losses
    assert alone[-1][1] == min(losses(finished))
    # those of training rows would be others
    assert training.run(finished.best, TRAIN, TRAIN).report.validation_losses[-1] != alone[-1]


def test_trials_of_other_lengths_are_judged_at_the_same_shares(base):
    recipe = base.replace(max_steps=None, epochs=4, max_length=64)  # 16 and 8 steps; packed, 8 or 4
    space = {"batch_size": [4, 8], "packing": [False, True]}
    finished = study(recipe, space, sampler="grid").run()
    looks = [list(trial.intermediate_values) for trial in finished.optuna.trials]
    assert looks == [[1, 2, 3, 4]] * 4
    for trial in finished.optuna.trials:
        assert trial.value == pytest.approx(trial.intermediate_values[4], abs=1e-5)


def test_looks_are_numbered_in_turn_where_steps_do_not_divide(base):
    finished = study(base.replace(max_steps=5), {"rank": [2]}, sampler="grid", looks=3).run()
    (trial,) = finished.optuna.trials  # looks after 2, 4 and 5 steps
    assert list(trial.intermediate_values) == [1, 2, 3]
    assert trial.value == pytest.approx(trial.intermediate_values[3], abs=1e-4)


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_pruner_stops_what_falls_behind(base, pruner):
    space = {"learning_rate": [1e-2, 2e-2, 3e-2, 4e-2, 1e-8]}
    finished = study(base, space, sampler="grid", pruner=pruner, seed=7).run()
    rows = finished.table()
    assert rows[-1]["learning_rate"] == 1e-8 and rows[-1]["state"] == "pruned"  # seed 7: the last
    look = int(re.fullmatch(r"stopped at look ([123]) of 4", rows[-1]["reason"])[1])
    last = finished.optuna.trials[-1].intermediate_values
    assert list(last) == list(range(1, look + 1)) and rows[-1]["loss"] == last[look]
    assert finished.best.learning_rate >= 1e-2


# --- What fails ---------------------------------------------------------------------------------


def test_failed_trials_have_their_reason_and_the_study_goes_on(base):
    space = {"rank": [0, 10**12, 2], "learning_rate": [1e-2, 1e30]}
    rows = study(base, space, sampler="grid").run().table()
    reasons = {(row["rank"], row["learning_rate"]): row["reason"] for row in rows}
    assert [row["state"] for row in rows].count("complete") == 1
    assert reasons[2, 1e-2] == ""
    assert "rank is 0 and must be a whole number" in reasons[0, 1e-2]
    assert "Memory ran out while the model was loaded" in reasons[10**12, 1e-2]
    assert "loss became" in reasons[2, 1e30]
    assert all((row["loss"] is None) == (row["state"] == "failed") for row in rows)
    assert all(row["seconds"] >= 0 for row in rows)


def test_a_study_of_failures_alone_says_why(base):
    with pytest.raises(CourseError, match="No trial of this study is complete: run it"):
        _ = study(base).best
    failed = study(base, {"rank": [0]}, sampler="grid").run()
    with pytest.raises(CourseError, match="1 failed, the last one because: .*rank is 0"):
        _ = failed.best


def test_an_error_that_is_no_finding_is_noted_and_raised(base):
    broken = tiny_models.encoded(4)
    broken.rows[0]["input_ids"][0] = 10**6  # no such token in this model
    begun = search.Study(base, {"rank": [2]}, broken, VALIDATION, sampler="grid")
    with pytest.raises(IndexError):
        begun.run()
    assert begun.table()[0]["state"] == "failed" and "IndexError" in begun.table()[0]["reason"]


def test_it_is_quiet_and_keeps_no_model(base, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    seen = []
    finished = study(base.replace(save_every=1), storage="deep/study.db")
    finished.run(trials=50, minutes=0.5 / 60, on_trial=seen.append)
    assert 1 <= len(seen) < 50 and seen == finished.table()
    assert capfd.readouterr() == ("", "")
    assert {p.name for p in tmp_path.rglob("*")} == {"deep", "study.db", "study.db.lock"}


# --- Interruptions and several processes --------------------------------------------------------

SLOW = {"space": {"rank": (2, 8)}, "sampler": "random", "seed": 5}


def slow(base: Recipe, file: Path | None) -> search.Study:
    """A study whose trials take about a second."""
    return study(base.replace(max_steps=40), storage=file, **SLOW)


def worker(base: Recipe, *runs: tuple[Path, int]) -> subprocess.Popen:
    """Another process that works on one study after the other, up to so many trials."""
    code = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        import torch; torch.set_num_threads(1)
        from test_search import Recipe, slow
        for file, trials in {[(str(file), trials) for file, trials in runs]!r}:
            slow(Recipe(**{base.to_dict()!r}), file).run(trials)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def looks_of(begun: search.Study, number: int) -> int:
    """How often a running trial has been judged so far."""
    running = [t for t in begun.optuna.trials if t.state == TrialState.RUNNING]
    return next((len(t.intermediate_values) for t in running if t.number == number), 0)


def test_processes_share_a_study_and_none_that_is_killed_loses_a_trial(base, tmp_path):
    shared, killed = slow(base, tmp_path / "shared.db"), slow(base, tmp_path / "killed.db")
    child = worker(base, (shared.file, 4), (killed.file, 3))
    wait_for(lambda: looks_of(shared, 0) >= 1)
    shared.run(4)  # with the child, which has the first trial
    wait_for(lambda: looks_of(killed, 1) >= 2)  # in the middle of the second trial
    child.kill()  # SIGKILL
    child.wait()

    assert [row["state"] for row in shared.table()] == ["complete"] * 4
    assert len({trial.user_attrs["worker"] for trial in shared.optuna.trials}) == 2
    assert [row["state"] for row in killed.table()] == ["complete", "running"]
    killed.run(3)
    assert [row["state"] for row in killed.table()] == ["complete"] * 3
    assert killed.optuna.trials[1].user_attrs["deaths"] == 1
    quick = study(base.replace(max_steps=1), looks=1, **SLOW).run(4)
    assert tried(shared) == tried(quick) and tried(killed) == tried(quick)[:3]
    assert losses(killed) == losses(shared)[:3]  # the second was begun anew
    assert not list(tmp_path.glob("*.worker"))


def test_a_trial_that_gets_its_process_killed_each_time_is_given_up(base):
    begun = study(base, {"rank": [2, 4]}, sampler="grid")
    for _ in range(search.MAX_DEATHS):
        begun._next(2, "gone.worker")  # all that a process leaves that dies in a trial
    rows = begun.run().table()
    assert [row["state"] for row in rows] == ["failed", "complete"]
    assert "killed with its process 3 times" in rows[0]["reason"]


def test_an_interrupted_trial_waits_and_is_run_again(base):
    begun = slow(base, None)

    def press():
        wait_for(lambda: looks_of(begun, 0) >= 1)
        _thread.interrupt_main()  # as Ctrl-C does

    threading.Thread(target=press).start()
    begun.run(2)
    assert [row["state"] for row in begun.table()] == ["waiting"]
    assert [row["state"] for row in begun.run(2).table()] == ["complete"] * 2


def test_a_stored_study_is_not_mixed_with_another(base, tmp_path):
    study(base, storage=tmp_path / "study.db")
    with pytest.raises(CourseError, match="with another space, seed: use that again"):
        study(base, {"rank": [2]}, seed=1, storage=tmp_path / "study.db")
    with pytest.raises(CourseError, match="with another validation"):
        search.Study(base, SPACE, TRAIN, TRAIN, storage=tmp_path / "study.db")
    study(base, dict(reversed(SPACE.items())), storage=tmp_path / "study.db")  # is the same space
    study(base, {"rank": [2]}, storage=tmp_path / "study.db", name="second")
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/study.db") == ["search", "second"]


# --- Plots --------------------------------------------------------------------------------------


def test_optunas_plots_in_the_courses_look(base):
    import matplotlib

    from course_utils.display import plot_study
    from course_utils.display.study import KINDS

    finished = study(base.replace(max_steps=2), looks=2)
    with pytest.raises(CourseError, match="two trials at least"):
        plot_study(finished.optuna, "importance")
    finished.run(4)
    matplotlib.use("Agg")
    before = dict(matplotlib.rcParams)
    for kind in KINDS:
        figure = plot_study(finished.optuna, kind)
        assert figure.get_size_inches()[0] == 7
        figure.canvas.draw()  # nothing of the layout fails either
        words = [axis.label.get_text() for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        assert "held-out loss (nats)" in words or kind == "importance"
    assert dict(matplotlib.rcParams) == before
    with pytest.raises(CourseError, match="kind is 'contour'"):
        plot_study(finished.optuna, "contour")
