"""The studies' runner: each case in a process of its own, kept at once, and none measured twice."""

import json
import os
import shutil
import statistics
import time
from pathlib import Path

import pytest

from benchmarks import (
    chat_turns,
    curves,
    data_needed,
    fp8_quality,
    lora_study,
    qlora_study,
    study,
    tuning_rules,
    tuning_settings,
)
from course_utils import claims, results


def measure(case):
    if case["n"] == 3:
        raise ValueError("three")
    return case | {"square": case["n"] ** 2, "process": os.getpid()}


def test_each_case_has_a_process_of_its_own_and_none_is_measured_twice(tmp_path):
    path, cases = tmp_path / "made.json", [{"n": 1}, {"n": 2}]
    first = study.run(path, measure, cases, most=1, steps=4)
    rows = study.run(path, measure, cases, steps=4)
    assert [row["square"] for row in rows] == [1, 4] and rows[0] == first[0]
    assert len({row["process"] for row in rows} | {os.getpid()}) == 3
    made = json.loads(path.read_text(encoding="utf-8"))
    assert made["rows"] == rows and made["steps"] == 4
    assert made["device"] and made["date"] and made["versions"]["torch"]


def test_a_collected_file_is_made_anew_after_each_training(tmp_path):
    path, cases = tmp_path / "made.json", [{"n": 1}, {"n": 2}]
    for most in (1, None):
        study.collected(path, measure, cases, _largest, most=most)
    made = json.loads(path.read_text(encoding="utf-8"))
    assert made["largest"] == 4 and [row["n"] for row in made["trainings"]] == [1, 2]


def _largest(rows):
    return {"largest": max(row["square"] for row in rows), "trainings": rows}


def test_after_its_time_is_up_no_case_is_begun(tmp_path):
    path, cases = tmp_path / "made.json", [{"n": 1}, {"n": 2}]
    assert study.run(path, measure, cases, until=time.monotonic()) == []
    assert len(study.run(path, measure, cases, jobs=2, until=time.monotonic() + 600)) == 2


def test_rows_made_in_another_way_are_not_kept(tmp_path):
    path = tmp_path / "made.json"
    study.write(path, [{"n": 1, "square": -1}], steps=4)
    assert study.known(path, {"steps": 4}) and not study.known(path, {"steps": 5})


def test_what_was_measured_before_an_error_is_kept(tmp_path):
    path = tmp_path / "made.json"
    with pytest.raises(ValueError, match="three"):
        study.run(path, measure, [{"n": 2}, {"n": 3}])
    assert [row["n"] for row in study.known(path, {})] == [2]


@pytest.mark.parametrize(
    ("path", "cases"),
    [
        (lora_study.RESULTS, lora_study.cases()),
        (qlora_study.RESULTS, qlora_study.cases()),
        (chat_turns.RESULTS, chat_turns.cases()),
        (curves.RESULTS, curves.CASES),
    ],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_shipped_rows_are_of_the_script_as_it_is(path, cases):
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert not study.missing(cases, rows)


def test_all_sizes_and_seeds_of_the_curve_are_there():
    made = json.loads(data_needed.RESULTS.read_text(encoding="utf-8"))["trainings"]
    wanted = [{"rows": n, "seed": s} for n in data_needed.SIZES for s in data_needed.SEEDS]
    assert not study.missing(wanted, made)


def test_the_summary_of_fp8_compares_with_bf16():
    rows = [
        {**fp8_quality.BASES[base], "held_out_loss": loss, "score": 1 - loss}
        for base, loss in (("bf16", 0.1), ("fp8", 0.2), ("bf16", 0.3), ("fp8", 0.3))
    ]
    found = fp8_quality.summary(rows)["held_out_loss"]
    assert found["bf16"] == {"mean": 0.2, "spread": 0.2, "less_bf16": 0.0, "error": 0.0}
    assert found["fp8"] == {"mean": 0.25, "spread": 0.1, "less_bf16": 0.05, "error": 0.05}
    assert "4 bits" not in found  # nothing of it was measured


def test_what_the_ledger_says_of_both_seeds():
    """`claims`: 2.2-lora-fewer, 6.2-rank and 5.3-rank-complex speak of each seed."""
    path = tuning_settings.PATH.with_name("tuning_tasks.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def by_seed(figure: str, **of) -> list[float]:
        found = [row for row in rows if of.items() <= row.items()]
        assert [row["seed"] for row in found] == list(tuning_settings.SEEDS)
        return [row[figure] for row in found]

    for count in (30, 100):
        full = by_seed("loss", rows=count, method="full")
        lora = by_seed("loss", rows=count, method="lora")
        assert max(lora) < min(full)
    low, middle, high = (by_seed("loss", task="hard", rank=rank) for rank in (4, 16, 64))
    assert all(a > b for a, b in zip(low, middle, strict=True))
    assert high[0] > 1.1 * middle[0] and abs(high[1] / middle[1] - 1) < 0.1


def test_fp8_costs_less_than_seeds_differ_by():
    """What `Recipe` says of both options in fp8, and the condition on which they are offered."""
    made = json.loads(fp8_quality.RESULTS.read_text(encoding="utf-8"))
    assert made["summary"] == fp8_quality.summary(made["rows"])
    seeds = {
        base: [row["seed"] for row in fp8_quality.of(made["rows"], base)]
        for base in fp8_quality.BASES
    }
    assert all(found == list(range(16)) for found in seeds.values())
    for figure, found in made["summary"].items():
        of_bf16 = [row[figure] for row in fp8_quality.of(made["rows"], "bf16")]
        for base in ("fp8", "fp8 gradients"):
            at_most = abs(found[base]["less_bf16"]) + 2 * found[base]["error"]
            assert at_most < statistics.stdev(of_bf16)
    in_4_bits = made["summary"]["held_out_loss"]["4 bits"]
    assert in_4_bits["less_bf16"] > 2 * in_4_bits["error"]


def test_what_chapters_4_and_11_say_beside_their_figures():
    ledger = claims.ledger()
    *stock, ours = (figure.value for figure in ledger["3.2-time"].measured)
    assert all(round(ratio, 1) == 0.9 for ratio in stock)  # "nine tenths"
    assert 1.8 < ours < 2  # "nearly twice"
    level = next(figure for figure in ledger["10.1-qlora-good"].measured)
    assert level.value > 99  # QLoRA cost "nothing that could be told" there
    price = results.read("fp8_quality")["summary"]["score"]["4 bits"]["less_bf16"]
    before = results.read("fp8_quality")["repeats"][-1]["summary"]["score"]
    assert (round(100 * price), round(100 * before["4 bits"]["less_bf16"])) == (-5, -14)
    assert -1 < before["fp8 gradients"]["less_bf16"] / before["fp8 gradients"]["error"] < 0


def test_what_chapter_11_says_of_single_seeds():
    made = json.loads(fp8_quality.RESULTS.read_text(encoding="utf-8"))
    right = {
        base: [100 * row["score"] for row in fp8_quality.of(made["rows"], base)]
        for base in fp8_quality.BASES
    }
    apart = {
        base: [round(a - b) for a, b in zip(right[base], right["bf16"], strict=True)]
        for base in ("fp8", "fp8 gradients")
    }
    hardest = right["bf16"].index(min(right["bf16"]))
    assert round(right["bf16"][hardest]) == 54
    assert (apart["fp8"][hardest], apart["fp8 gradients"][hardest]) == (34, 32)
    assert min(apart["fp8"]) == -47
    assert max(apart["fp8"]) == 34  # `Recipe`
    for figure, better in (("held_out_loss", -1), ("score", 1)):
        by_error = {
            base: better * found["less_bf16"] / found["error"]
            for base, found in made["summary"][figure].items() if base != "bf16"
        }  # fmt: skip
        assert abs(by_error["fp8"]) < 1 < by_error["fp8 gradients"] < 2
        assert by_error["4 bits"] < -2 or figure == "score"
    assert -2 < by_error["4 bits"] < 0
    nearest = made["repeats"][0]["summary"]["held_out_loss"]["fp8"]
    assert nearest["less_bf16"] > made["summary"]["held_out_loss"]["fp8"]["less_bf16"]


def test_the_best_rate_is_the_one_with_the_lowest_mean_loss():
    rows = [
        {"rule": "rate", "method": method, "learning_rate": rate, "loss": loss, "score": 1 - loss,
         "general": 3.0}
        for method in ("full", "lora", "qlora")
        for rate, losses in ((1e-4, (0.1, 0.9)), (1e-3, (0.3, 0.4)))
        for loss in losses
    ]  # fmt: skip
    found = tuning_rules.summary(rows)["lora"]
    assert found["best_rate"] == 1e-3 and found["best"] == found["at"]["1e-03"]
    assert found["at"]["1e-04"]["score"] == 50 and found["at"]["1e-04"]["spread"] == 80


def test_no_setting_is_measured_twice_and_all_make_recipes():
    for cases in (tuning_rules.rates() + tuning_rules.ranks(), _both()):
        assert len({json.dumps(case) for case in cases}) == len(cases)
    settings = [
        json.dumps({name: value for name, value in case.items() if name != "rules"})
        for case in _both()
    ]
    assert len(set(settings)) == len(settings)


def _both():
    rules = (tuning_settings.RULES, tuning_settings.TASKS)
    return [case for made in rules for case in tuning_settings.cases(made)]


def test_a_setting_of_several_rules_counts_in_each():
    rows = [
        case | {"loss": case["seed"] + case["epochs"] / 3, "score": 0.5, "general": 3.0}
        for case in tuning_settings.cases()
    ]
    found = tuning_settings.summary(rows)
    assert found["alpha"]["varied"] == ["alpha", "learning_rate"]
    assert len(found["alpha"]["at"]) == 9 and len(found["batch"]["at"]) == 7
    assert set(found["epochs"]["at"]) == {"1", "2", "3", "5"}
    centre = [found[rule]["at"][key] for rule, key in (
        ("alpha", "32 2e-03"), ("epochs", "3"), ("dropout", "0%"),
    )]  # fmt: skip
    assert all(at == centre[0] for at in centre) and centre[0]["loss"] == 1.5
    assert centre[0]["seeds"] == 2 and found["epochs"]["best"] == {"epochs": 1}


def test_files_that_are_whole_keep_their_device(tmp_path, monkeypatch):
    """Nothing is missing, so nothing is written: not even another machine's name."""
    for name in ("RATES", "RANKS"):
        copy = tmp_path / f"{name}.json"
        shutil.copy(getattr(tuning_rules, name), copy)
        monkeypatch.setattr(tuning_rules, name, copy)
    before = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    monkeypatch.setattr("sys.argv", ["tuning_rules"])
    tuning_rules.main()
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == before
