"""The study behind chapter 7: its cases, and what it makes of their scores."""

from __future__ import annotations

from benchmarks import case_instruction


def test_the_base_model_and_all_sizes_with_all_seeds() -> None:
    cases = case_instruction.cases()
    assert len(cases) == 1 + len(case_instruction.PER_KIND) * len(case_instruction.SEEDS)
    assert cases[0]["per_kind"] == 0


def test_every_kind_has_rows_and_questions_enough() -> None:
    task = case_instruction.task()
    assert len(task.card.kinds) == 21 and not set(case_instruction.LEFT_OUT) & set(task.card.kinds)
    for kind in task.card.kinds:
        part = task.only(kind)
        assert len(part.train) >= max(case_instruction.PER_KIND)
        assert len(part.held_out) >= case_instruction.QUESTIONS


def test_scores_are_collected_by_size() -> None:
    scores = {(0, 0): 2.0, (42, 0): 20.0, (42, 1): 30.0, (105, 0): 44.0, (294, 0): 46.0}
    trainings = [
        {"pairs": pairs, "seed": seed, "score_percent": score}
        for (pairs, seed), score in scores.items()
    ]
    found = case_instruction.collect(trainings)
    assert [row["score_percent"] for row in found["rows"]] == [2, 25, 44, 46]
    assert found["rows"][1]["lowest_percent"] == 20 and found["rows"][1]["seeds"] == 2
    assert found["enough_pairs"] == 105 and found["half_of_best_pairs"] == 42
    assert found["most_pairs"] == 294 and found["best_percent"] == 46
