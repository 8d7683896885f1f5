"""The checks of chapter 6 take the right answer, excuse the stub, and explain wrong ones."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
from check_contract import CheckContract

from course_utils.checks import tuning


def log_uniform(low, high, share):
    return low * (high / low) ** share


def updates(rows, batch_size, accumulation, epochs):
    each = math.ceil(math.ceil(rows / batch_size) / accumulation)
    return batch_size * accumulation, each * epochs


def grid_search(settings, evaluate, caught=ValueError, finite=math.isfinite, sign=1):
    best, lowest, failures = None, math.inf, {}
    for place, setting in enumerate(settings):
        try:
            loss = evaluate(setting)
        except caught as error:
            failures[place] = str(error)
            continue
        if not finite(loss):
            failures[place] = f"the loss is {loss}"
        elif sign * loss < lowest:
            best, lowest = setting, sign * loss
    return best, failures


def grid_search_of_nan(settings, evaluate):
    best, lowest, failures = None, None, {}
    for place, setting in enumerate(settings):
        try:
            loss = evaluate(setting)
        except ValueError as error:
            failures[place] = str(error)
            continue
        if loss == math.inf:
            failures[place] = "inf"
        elif lowest is None or not loss >= lowest:
            best, lowest = setting, loss
    return best, failures


def grid_search_without_reasons(settings, evaluate):
    best, failures = grid_search(settings, evaluate)
    return best, dict.fromkeys(failures, "failed")


def grid_search_that_stops(settings, evaluate):
    try:
        losses = [evaluate(setting) for setting in settings]
    except ValueError as error:
        return None, {0: str(error)}
    return settings[losses.index(min(losses))], {}


def grid_search_from_one(settings, evaluate):
    best, failures = grid_search(settings, evaluate)
    return best, {place + 1: reason for place, reason in failures.items()}


def grid_search_evaluating_again(settings, evaluate):
    best, failures = grid_search(settings, evaluate)
    evaluate(best)
    return best, failures


def prune(losses, others, least=4, middle=statistics.median, worst=min):
    at = len(losses)
    same = [other[at - 1] for other in others if len(other) >= at]
    return len(same) >= least and worst(losses) > middle(same)


def prune_upside_down(losses, others):
    return not prune(losses, others, least=0) if others else False


def prune_by_the_final_loss(losses, others):
    return len(others) >= 4 and min(losses) > statistics.median(other[-1] for other in others)


def prune_counting_all(losses, others):
    at = len(losses) - 1
    same = [other[at] for other in others if len(other) > at]
    return len(others) >= 4 and min(losses) > statistics.median(same)


def halving(settings, train, steps, keep=lambda n: math.ceil(n / 2), grow=2, sign=1):
    alive = list(settings)
    while len(alive) > 1:
        losses = {setting: sign * train(setting, steps) for setting in alive}
        alive = sorted(alive, key=losses.get)[: keep(len(alive))]
        steps *= grow
    return alive[0]


def halving_once(settings, train, steps):
    losses = {setting: train(setting, steps) for setting in settings}
    return min(losses, key=losses.get)


def halving_and_once_more(settings, train, steps):
    rungs = []
    best = halving(settings, lambda s, n: rungs.append(n) or train(s, n), steps)
    train(best, 2 * max(rungs))
    return best


def optimism(settings, rows, share, repeats=1000):
    right = np.random.binomial(rows, share, size=(repeats, settings))
    return float(right.max(axis=1).mean() / rows - share)


def optimism_of_one(settings, rows, share):
    return float(np.random.binomial(rows, share, size=9000).mean() / rows - share)


def diagnose(train, validation, order="high over low", slack=1.25, still=0.7):
    if not all(map(math.isfinite, train)) or train[-1] > train[0]:
        return "too high"
    if validation[-1] > slack * min(validation):
        return "overfitting"
    return "too low" if train[-1] > still * train[0] else "right"


def diagnose_without_nan(train, validation):
    if train[-1] > train[0]:
        return "too high"
    return diagnose([loss for loss in train if math.isfinite(loss)], validation)


def diagnose_by_the_last_nan(train, validation):
    end = math.isnan(train[-1])
    return "too high" if end else diagnose([loss for loss in train if loss < math.inf], validation)


def diagnose_by_any_nan(train, validation):
    return diagnose([9e9 if loss == math.inf else loss for loss in train], validation)


def diagnose_by_the_gap(train, validation):
    found = diagnose(train, validation)
    gap = validation[-1] > 1.02 * min(validation)
    return "overfitting" if found == "right" and gap else found


RIGHT = {
    "log_uniform": log_uniform,
    "updates": updates,
    "grid_search": grid_search,
    "prune": prune,
    "halving": halving,
    "optimism": optimism,
    "diagnose": diagnose,
}
WRONG = [
    ("log_uniform", lambda a, b, u: a + u * (b - a), "is spread evenly"),
    ("log_uniform", lambda a, b, u: math.log10(a) + u * math.log10(b / a), "^for share"),
    ("log_uniform", lambda a, b, u: b * (a / b) ** u, "too large|times as large"),
    (
        "log_uniform",
        lambda a, b, u: a if u == 0 else b if u == 1 else math.log10(a) + u * math.log10(b / a),
        "raise 10",
    ),
    (
        "log_uniform",
        lambda a, b, u: (
            a if u == 0 else b if u == 1 else math.exp(math.log10(a) + u * math.log10(b / a))
        ),
        "mixes bases",
    ),
    ("updates", lambda n, b, a, e: (b * a, n // (b * a) * e), "left over at the end"),
    ("updates", lambda n, b, a, e: (b * a, math.ceil(n / b) * e), "counts batches, not updates"),
    ("updates", lambda n, b, a, e: (b * a, math.ceil(n / (b * a))), "that of one epoch"),
    ("updates", lambda n, b, a, e: (b + a, math.ceil(n / (b * a)) * e), "are added: multiply"),
    ("updates", lambda n, b, a, e: updates(n, b, a, e)[::-1], "wrong way round"),
    ("updates", lambda n, b, a, e: (b * a, math.ceil(n * e / (b * a))), "joins the epochs"),
    ("updates", lambda n, b, a, e: (b * a, n / (b * a) * e), "number of updates"),
    ("grid_search", grid_search_of_nan, "nan|lowest loss|a loss is to be low"),
    ("grid_search", lambda s, e: grid_search(s, e, caught=Exception), "catch ValueError alone"),
    ("grid_search", lambda s, e: grid_search(s, e, sign=-1), "the best is the worst"),
    ("grid_search", lambda s, e: grid_search(s, e, finite=lambda _: True), "nan or inf is no"),
    ("grid_search", grid_search_without_reasons, "lacks its reason"),
    ("grid_search", grid_search_that_stops, "a failure ends the search"),
    ("grid_search", grid_search_from_one, "places of the failures"),
    ("grid_search", grid_search_evaluating_again, "more than once"),
    ("grid_search", lambda s, e: grid_search(s, e)[0], "two things are wanted"),
    ("prune", prune_upside_down, "wrong way round"),
    ("prune", lambda m, o: prune(m, o, least=1), "only 3 others"),
    ("prune", lambda m, o: prune(m, o, least=5), "4 are enough.*at least 4"),
    ("prune", lambda m, o: prune(m, o, worst=lambda x: x[-1]), "lowest loss so far"),
    ("prune", lambda m, o: prune(m, o, middle=statistics.mean), "which they do not move"),
    ("prune", lambda m, o: prune(m, o, middle=max), "worse than the median at its look goes on"),
    ("prune", prune_by_the_final_loss, "is stopped. look at at which look|better than the median"),
    ("prune", prune_counting_all, "counted among the 4"),
    ("halving", lambda s, t, n: halving(s, t, n, grow=1), "budget doubles|ends after"),
    ("halving", lambda s, t, n: halving(s, t, n, grow=3), "budget doubles"),
    ("halving", lambda s, t, n: halving(s, t, n, sign=-1), "low loss is better"),
    ("halving", lambda s, t, n: halving(s, t, n, keep=lambda k: k - 1), "half of them"),
    ("halving", halving_once, "ends after 1 rung"),
    ("halving", halving_and_once_more, "no further training"),
    ("halving", lambda s, t, n: s[0], "nothing was trained"),
    ("optimism", lambda n, m, p: optimism(n, m, p) + p, "take off what it truly is"),
    ("optimism", optimism_of_one, "that of a single setting"),
    ("optimism", lambda n, m, p: -optimism(n, m, p), "worst setting|wrong sign"),
    ("optimism", lambda n, m, p: m * optimism(n, m, p), "is in rows"),
    ("optimism", lambda n, m, p: optimism(n, m, p, repeats=1), "another one each time"),
    ("optimism", lambda n, m, p: optimism(n, 4 * m, p), "too small"),
    ("diagnose", diagnose_without_nan, "ends in nan|a single inf"),
    ("diagnose", diagnose_by_the_last_nan, "a single inf in the middle was called 'right'"),
    ("diagnose", diagnose_by_any_nan, "a single inf in the middle was called 'right'"),
    ("diagnose", diagnose_by_the_gap, "a few per cent above its lowest|1.2 times its lowest"),
    ("diagnose", lambda t, v: diagnose(t, v, slack=1.15), "1.2 times its lowest was called 'over"),
    ("diagnose", lambda t, v: diagnose(t, v, slack=1.35), "1.3 times its lowest was called 'right"),
    ("diagnose", lambda t, v: diagnose(t, v, slack=99), "'overfitting'.* was called 'right'"),
    ("diagnose", lambda t, v: diagnose(t, v, still=0.3), "0.65 of its start was called 'too low'"),
    ("diagnose", lambda t, v: diagnose(t, v, still=0.8), "0.75 of its start was called 'right'"),
    ("diagnose", lambda t, v: diagnose(t, v, still=9), "'too low'.* was called 'right'"),
    ("diagnose", lambda t, v: diagnose(v, t), "was called"),
    ("diagnose", lambda t, v: diagnose(t, v).replace(" ", "_"), "is no shape|was called"),
]


class TestTuning(CheckContract):
    topic, right, wrong = tuning, RIGHT, WRONG


def test_the_expected_best_is_that_of_a_simulation() -> None:
    random.seed(0)
    drawn = [max(sum(random.random() < 0.6 for _ in range(20)) for _ in range(5)) / 20
             for _ in range(4000)]  # fmt: skip
    assert abs(statistics.mean(drawn) - tuning._expected_best(5, 20, 0.6)) < 0.005
