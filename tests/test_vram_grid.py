"""The memory grid: its cases, who may be on the card, the split of its rows and its arithmetic."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace

import pytest
import torch

from benchmarks import gpu_common, vram_cases, vram_grid, vram_measure, vram_plans

CASES = vram_cases.all_cases()


# ------------------------------------------------------------------------------------ cases


def test_enough_cases_over_enough_shapes():
    judged = [case for case in CASES if case.judged]
    assert len(judged) >= 64
    assert len({case.shape for case in judged}) >= 6
    assert {case.method for case in judged} == {"full", "lora", "qlora"}
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(case.alone for case in judged) >= 20  # of these the process is measured


def test_every_recipe_is_valid_and_says_what_its_case_says():
    for case in CASES:
        recipe = case.made_recipe()
        assert (recipe.method, recipe.max_length) == (case.method, case.length)
        assert recipe.precision == "bf16"
        assert recipe.max_steps > vram_cases.WARM or not case.alone or "preset" in case.name


def test_the_settings_that_change_memory_all_occur():
    made = [case.made_recipe() for case in CASES if case.judged]
    for field, values in {
        "optimizer": {"adamw", "adamw_8bit", "paged_adamw_8bit"},
        "checkpointing": {False, True, 2},
        "offload": {False, True},
        "fast": {False, True},
        "packing": {False, True},
        "base_precision": {"auto", "bf16", "fp8"},
        "gradient_precision": {"auto", "fp8"},
    }.items():
        assert {getattr(recipe, field) for recipe in made} == values, field
    assert {case.length for case in CASES} >= {512, 1024, 2048, 4096}


def test_the_presets_are_run_as_they_stand():
    from course_utils import recipes

    case = next(case for case in CASES if case.name == "preset-medium")
    preset, made = recipes.RECOMMENDED_CONFIG_MEDIUM, case.made_recipe()
    for field in ("rank", "targets", "dropout", "batch_size", "gradient_accumulation", "offload",
                  "checkpointing", "optimizer", "max_length", "method"):  # fmt: skip
        assert getattr(made, field) == getattr(preset, field), field


def test_parameters_are_those_of_the_published_models():
    assert vram_cases.parameters("llama-2-7b") == 6_738_415_616
    assert vram_cases.parameters("gpt2-xl") == 1_557_611_200


def test_what_a_case_needs_grows_with_its_work():
    case = next(case for case in CASES if case.name == "llama-2-7b lora 4x1024")
    kept = replace(case, recipe=case.recipe | {"checkpointing": True})
    assert vram_cases.need_gib(kept) < vram_cases.need_gib(case) < 80
    full = next(case for case in CASES if case.name == "full-fp32-amp")
    assert 110 < vram_cases.need_gib(full) < 145


# ---------------------------------------------------------------------------------- the split


def test_the_split_leaves_out_whole_shapes_and_does_not_move():
    split = vram_cases.fitted(CASES)
    shapes = {case.shape for case in CASES if split[case.name]}
    assert shapes and not shapes & set(vram_cases.HELD_OUT)
    judged = [case for case in CASES if case.judged]
    unseen = [case for case in judged if not split[case.name]]
    assert len(unseen) >= len(judged) / 2
    assert {case.shape for case in unseen} == set(vram_cases.SHAPES)
    # Names fixed before the first measurement.
    assert split["preset-small"] and split["full-fp32-amp"] and split["llama-3.2-1b lora 4x1024"]
    for name in ("preset-large", "full-bf16", "llama-2-7b lora 4x1024", "lora-fp32-amp"):
        assert not split[name], name


def test_a_new_case_at_the_end_changes_no_other():
    more = [*CASES, replace(CASES[0], name="new")]
    before, after = vram_cases.fitted(CASES), vram_cases.fitted(more)
    assert {name: after[name] for name in before} == before


def test_a_run_cut_off_has_seen_every_group():
    shared = [case for case in CASES if not case.alone]
    groups = {case.group for case in shared}
    assert {case.group for case in vram_cases.in_turn(shared)[: len(groups)]} == groups


# ------------------------------------------------------------------------------ sharing the card


def on_card(card: vram_grid.Card, needs: list[float]) -> tuple[float, int]:
    """(most GiB, most processes) that the card held at once."""
    most, watch = [0.0, 0], threading.Lock()

    def work(ticket: int) -> None:
        with card.place(ticket, needs[ticket]):
            with watch:
                most[0] = max(most[0], sum(card.held))
                most[1] = max(most[1], len(card.held))
            time.sleep(0.01)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(needs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    return most[0], most[1]


def test_the_card_never_holds_more_than_its_cap():
    needs = [5.0, 60.0, 30.0, 30.0, 1.0, 80.0, 20.0, 20.0, 20.0, 7.0] * 3
    held, count = on_card(vram_grid.Card(cap=100, jobs=4), needs)
    assert held <= 100
    assert 2 <= count <= 4


def test_one_that_needs_more_than_the_cap_is_alone():
    card = vram_grid.Card(cap=100, jobs=4)
    held, _ = on_card(card, [10.0, 130.0, 20.0, 10.0])
    assert held == 130.0 and not card.held


def test_a_waiting_case_is_not_passed_over_for_ever():
    card, now = vram_grid.Card(cap=10, jobs=4, patience=15.0), time.monotonic()
    card.held.append(5.0)
    card._waiting = {0: (9.0, now - 20), 1: (5.0, now)}
    assert not card._may(1, 5.0)  # it would fit, but an earlier one waits for more room
    card._waiting[0] = (9.0, now)
    assert card._may(1, 5.0)  # not yet for long
    card._waiting[0] = (4.0, now)
    assert not card._may(1, 5.0) and card._may(0, 4.0)  # both fit: in their order


# ---------------------------------------------------------------------------------- figures


def row(name: str, measured: float, guess: float, **more) -> dict:
    """A made-up row; peers said twice what was measured."""
    return {
        "name": name, "group": "a/lora", "shape": "a", "fitted": False,
        "measured": {"allocated_gib": measured}, "estimated": {"allocated_gib": guess},
        "peers": {"fitcheck": {"allocated_gib": 2 * measured}, "accelerate": None},
    } | more  # fmt: skip


def test_summary_is_over_rows_that_nothing_was_fitted_to():
    rows = [
        row("high", 10.0, 11.0),
        row("low", 10.0, 7.0, group="b/full", shape=vram_cases.HELD_OUT[0]),
        row("fitted", 10.0, 90.0, fitted=True),
        row("failed", 10.0, 90.0) | {"error": "out of memory"},
    ]
    del rows[3]["estimated"]
    made = vram_grid.summary(rows)
    assert made["allocated"] == {
        "rows": 2, "mean_error": 20.0, "worst_error": -30.0, "worst": "low", "below": 1,
    }  # fmt: skip
    assert made["reserved"] is None
    assert made["whole_shapes_held_out"]["allocated"]["mean_error"] == 30.0
    assert made["fitted_rows"]["allocated"]["mean_error"] == 800.0
    assert made["groups"]["a/lora"]["allocated"]["mean_error"] == 10.0
    assert made["peers"]["fitcheck"]["allocated"]["worst_error"] == 100.0
    assert made["peers"]["accelerate"] == {}
    assert "mean  20.00 %" in vram_grid.table(made)


def test_peers_are_judged_on_the_plain_trainer_too():
    plain = row("plain", 10.0, 0.0, what="plain")
    del plain["estimated"]
    made = vram_grid.summary([row("ours", 10.0, 10.0), plain])
    assert made["allocated"]["rows"] == 1
    assert made["peers_on_plain_trainer"]["fitcheck"]["allocated"]["rows"] == 1


def test_the_last_good_row_of_a_case_counts(tmp_path):
    lines = [{"name": "x", "v": 1}, {"name": "x", "v": 2}, {"name": "x", "error": "no"},
             {"name": "y", "error": "no"}]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert vram_grid.read_rows([str(path)]) == [{"name": "x", "v": 2}, {"name": "y", "error": "no"}]


def test_a_row_keeps_its_date_where_most_have_another(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_common, "RESULTS", tmp_path)
    days = ("2026-11-24", "2026-11-29", "2026-11-24")
    facts = {"device": "a card", "versions": {"torch": "2"}, "note": None}
    rows = [{"name": name, "date": day} | facts for name, day in zip("xyz", days, strict=True)]
    path = gpu_common.write_result("made", {"rows": rows})
    made = json.loads(path.read_text(encoding="utf-8"))
    assert (made["device"], made["date"], made["versions"]) == ("a card", days[0], {"torch": "2"})
    assert made["rows"] == [
        {"name": "x", "note": None}, {"name": "y", "date": days[1], "note": None},
        {"name": "z", "note": None},
    ]  # fmt: skip


def test_cases_run_one_after_the_other_and_none_twice(tmp_path):
    lines, names = tmp_path / "rows.jsonl", ["known", "first", "second", "broken"]
    lines.write_text(json.dumps({"system": "known"}) + "\n", encoding="utf-8")
    gpu_common.run("tests.echo_case", [{"system": name} for name in names], lines, seconds=120)
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert [row["system"] for row in rows] == names
    assert "no such system" in rows[3]["error"]
    assert rows[2]["began"] > rows[1]["ended"]  # although its process began before


def test_a_case_is_stopped_in_time_and_none_is_begun_too_late(tmp_path, capsys):
    lines = tmp_path / "rows.jsonl"
    gpu_common.run("tests.echo_case", [{"system": "slow"}], lines, seconds=120, limit=2)
    gpu_common.run("tests.echo_case", [{"system": "late"}], lines, seconds=10)
    stopped = {"system": "slow", "error": "stopped after 2 s"}
    assert json.loads(lines.read_text(encoding="utf-8")) == stopped
    assert "no time left" in capsys.readouterr().out


def test_estimates_of_a_row_come_from_its_case():
    case = next(case for case in CASES if case.name == "llama-3.2-1b lora 4x1024")
    found = vram_grid.with_estimates([{"name": case.name}, {"name": "weights-nf4"}])
    assert 4 < found[0]["estimated"]["allocated_gib"] < 8
    assert sum(found[0]["estimated"]["parts"].values()) == pytest.approx(
        found[0]["estimated"]["allocated_gib"], abs=0.01
    )
    assert "estimated" not in found[1]


# ---------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("name", ["llama-2-7b qlora 4x1024 checkpointing", "gpt2-xl lora 4x512"])
def test_a_case_trains_a_model_that_was_made_in_place(name):
    case = next(case for case in CASES if case.name == name).small()
    found = vram_measure.measure(case, None)
    assert len(found["losses"]) == case.made_recipe().max_steps
    assert found["losses"][0] == pytest.approx(6.93, abs=0.5)  # ln(1024): it knows nothing yet
    assert ("tokens_per_second" in found) is case.alone  # beside others it says nothing
    assert found["measured"] == {} or torch.cuda.is_available()


def test_a_random_four_bit_model_holds_what_a_loaded_one_does(tmp_path):
    from course_utils import models

    case = next(case for case in CASES if case.name == "weights-nf4").small()
    place = torch.device("cpu")
    made = vram_measure.base(case, place)
    with vram_measure.model_folder(case.config_fields()) as folder:
        loaded = models.load(folder, dtype=torch.bfloat16, quantize=True, on=place)
    there = {n: (p.shape, p.dtype) for n, p in loaded.named_parameters()}
    assert {n: (p.shape, p.dtype) for n, p in made.named_parameters()} == there
    assert {n: b.shape for n, b in made.named_buffers()} == {
        n: b.shape for n, b in loaded.named_buffers()
    }


@pytest.mark.slow
def test_rows_of_a_child_reach_the_file(tmp_path):
    case = next(case for case in CASES if case.name == "weights-bf16").small()
    runner = vram_grid.Runner(tmp_path / "rows.jsonl", time.monotonic() + 120)
    bad = replace(case, name="there is no such case")
    assert runner.run([case, bad], jobs=2, ahead=0) == []
    rows = {json.loads(line)["name"]: json.loads(line)
            for line in (tmp_path / "rows.jsonl").read_text().splitlines()}  # fmt: skip
    assert rows["weights-bf16"]["parameters"] > 0 and "error" not in rows["weights-bf16"]
    assert "ValueError" in rows["there is no such case"]["error"]


def test_without_time_nothing_starts(tmp_path):
    runner = vram_grid.Runner(tmp_path / "rows.jsonl", time.monotonic() + 1)
    assert runner.run(CASES[:3], jobs=1, ahead=0) == CASES[:3]
    assert not (tmp_path / "rows.jsonl").exists()


# ------------------------------------------------------------------------------------ plans


def test_plans_cover_cards_models_and_lengths():
    cases = vram_plans.all_cases()
    plans = [case for case in cases if case.kind == "plan"]
    assert len(plans) >= 20
    assert {case.card_gib for case in plans} == {8, 12, 16, 24, 40, 80}
    assert len({case.shape for case in plans}) >= 6
    assert len({case.name for case in cases}) == len(cases)
    assert sum(case.kind == "preset" for case in cases) == 3


def test_a_plan_is_run_with_two_micro_batches_and_else_as_it_is():
    case = next(case for case in vram_plans.all_cases() if case.kind == "preset")
    recipe = case.recipe()
    made = vram_plans.shortened(recipe)
    assert made.gradient_accumulation == 2 < recipe.gradient_accumulation
    for field in ("batch_size", "checkpointing", "rank", "targets", "dropout", "optimizer"):
        assert getattr(made, field) == getattr(recipe, field)


def test_collect_counts_what_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_common, "RESULTS", tmp_path)
    facts = {"device": "none", "date": "2026-11-24", "versions": {}}
    rows = [
        {"name": "a", "kind": "plan", "recipe": {}, "fits": True},
        {"name": "b", "kind": "plan", "recipe": {}, "fits": False, "error": "out of memory"},
        {"name": "c", "kind": "plan", "recipe": None},
        {"name": "t", "kind": "tight", "recipe": {}, "recovered": True},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r | facts) for r in rows), encoding="utf-8")
    found = json.loads(vram_plans.collect([str(path)], "x", None).read_text(encoding="utf-8"))
    assert found["summary"] == {
        "ran": 2, "fitted": 1, "out_of_memory": ["b"], "nothing_fits": ["c"],
    }  # fmt: skip
