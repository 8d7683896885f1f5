"""Checks of chapter 6: sampling, counting updates, a search, pruning, halving, optimism, curves."""

from __future__ import annotations

import functools
import math
import random
import statistics
from typing import Any

from . import check, draw, expect, same_items, same_number


def _is(got: Any, value: float, tolerance: float = 1e-4) -> bool:
    """Whether this is that number."""
    is_number = isinstance(got, int | float) and not isinstance(got, bool)
    return is_number and math.isclose(got, value, rel_tol=tolerance)


@check("equal shares of the unit interval become equal factors, not equal distances.")
def log_uniform(attempt: Any) -> None:
    low = 10 ** draw.number(-6, -4)
    high = low * 10 ** draw.number(1, 3)
    for share in (0.0, 1.0, draw.number(0.1, 0.4), draw.number(0.6, 0.9)):
        got = attempt(low, high, share)
        case = f"for share {share:.2g} of {low:.2g} to {high:.2g}, the value"
        if 0 < share < 1:
            at = (math.log10(low), math.log10(high))
            known = {
                "is the exponent: raise 10 (or e) to it": at[0] + share * (at[1] - at[0]),
                "has the natural logarithm's exponent, and is not raised to e": math.log(low)
                + share * math.log(high / low),
                "is spread evenly between the ends: it is the exponent that is to be": low
                + share * (high - low),
                "is spread downwards: share 0 is the low end": high * (low / high) ** share,
                "mixes bases: e is raised to an exponent of 10, or the other way round": math.exp(
                    at[0] + share * (at[1] - at[0])
                ),
            }
            for off, value in known.items():
                expect(not _is(got, value), f"{case} {off}")
        same_number(got, low * (high / low) ** share, case, look="the logarithms of both ends")


@check("the last, smaller batch makes an update too, in every epoch.")
def updates(attempt: Any) -> None:
    size, count = draw.integer(2, 5), draw.integer(3, 4)
    per_update = size * count
    for rest in (0, 1, size + 1):  # nothing left over, less than a batch, more than one
        rows, epochs = per_update * draw.integer(4, 9) + rest, draw.integer(2, 4)
        got = attempt(rows, size, count, epochs)
        expect(
            isinstance(got, tuple | list) and len(got) == 2,
            "two numbers are wanted: return rows per update, updates",
        )
        effective, total = got
        right = math.ceil(rows / per_update) * epochs
        expect(
            (effective, total) != (right, per_update) or effective == total,
            "the two numbers come the wrong way round: rows per update first",
        )
        expect(effective != size + count, "batch and accumulation are added: multiply them")
        same_number(effective, per_update, "the rows per update", look="batch size x accumulation")
        case = f"for {rows} rows in batches of {size}, {count} batches an update, {epochs} epochs,"
        known = {
            "is that of one epoch": math.ceil(rows / per_update),
            "counts batches, not updates": math.ceil(rows / size) * epochs,
            "drops the rows that are left over at the end of an epoch": rows // per_update * epochs,
            "joins the epochs: what is left over of one is not carried into the next": math.ceil(
                rows * epochs / per_update
            ),
        }
        for off, value in known.items():
            expect(total == right or total != value, f"{case} the number of updates {off}")
        same_number(total, right, f"{case} the number of updates", look="math.ceil")


# ------------------------------------------------------------------ a search


def _settings() -> tuple[list[dict[str, float]], list[Any]]:
    """Settings, and for each a loss, a nan, or the reason of a failure."""
    ends: list[Any] = [round(draw.number(0.5, 3), 3) for _ in range(5)]
    ends[0] += 4  # neither the first nor the last is the best
    ends += [math.nan, f"out of memory at {draw.integer(2, 99)} GiB", "alpha is 0", math.inf, 9.5]
    ends = [ends[0], *draw.sample(ends[1:-1], len(ends) - 2), ends[-1]]
    return [{"rate": draw.number(1e-5, 1e-2), "rank": draw.integer(2, 64)} for _ in ends], ends


@check("failures are part of the table, a nan never wins, and a bug is not taken for a failure.")
def grid_search(attempt: Any) -> None:
    settings, ends = _settings()
    calls: list[dict[str, float]] = []

    def evaluate(setting: dict[str, float]) -> float:
        calls.append(setting)
        end = ends[settings.index(setting)]
        if isinstance(end, str):
            raise ValueError(end)
        return end

    got = attempt([dict(setting) for setting in settings], evaluate)
    expect(
        isinstance(got, tuple | list) and len(got) == 2,
        "two things are wanted: return best, failures",
    )
    expect(
        len(calls) >= len(settings),
        f"{len(calls)} of {len(settings)} settings were evaluated: a failure ends the search, or "
        "a setting is left out",
    )
    expect(len(calls) == len(settings), "a setting is evaluated more than once: it costs as much")
    _best_of(got[0], settings, ends)
    _failures(got[1], ends)
    _raises_bugs(attempt, settings)
    _all_failed(attempt, settings)


def _best_of(best: Any, settings: list[dict[str, float]], ends: list[Any]) -> None:
    """Whether this is the setting with the lowest loss."""
    losses = [end for end in ends if isinstance(end, float) and math.isfinite(end)]
    lowest = settings[ends.index(min(losses))]
    expect(best is not None, "the best is None, though some settings have a loss")
    expect(
        not (isinstance(best, int | float) and _is(best, min(losses))),
        "the best is a loss: the setting is wanted that has it",
    )
    expect(best in settings, f"the best is {type(best).__name__}, not one of the settings")
    end = ends[settings.index(best)]
    expect(
        not (isinstance(end, float) and math.isnan(end)),
        "the best has a loss of nan: comparing with nan is always false, so it slips through",
        look="math.isfinite",
    )
    expect(end != max(losses) and end != math.inf, "the best is the worst: a loss is to be low")
    expect(best == lowest, "the best is not the setting with the lowest loss")


def _failures(failures: Any, ends: list[Any]) -> None:
    """Whether these are place -> reason of all that failed."""
    places = [n for n, end in enumerate(ends) if isinstance(end, str) or not math.isfinite(end)]
    expect(isinstance(failures, dict), "failures is to be a dict: place in the list -> reason")
    without = [n for n in places if n not in failures and not isinstance(ends[n], str)]
    expect(
        not (without and set(failures) <= set(places)),
        "a loss of nan or inf is no result: it belongs to the failures",
    )
    same_items(sorted(failures), places, "the places of the failures", look="enumerate, from 0 on")
    for place in places:
        if isinstance(ends[place], str):
            expect(
                ends[place] in str(failures[place]),
                "a failure lacks its reason: keep what the error says",
                look="str(error)",
            )
        expect(isinstance(failures[place], str) and failures[place], "a reason is a sentence: str")


def _raises_bugs(attempt: Any, settings: list[dict[str, float]]) -> None:
    """Whether a misspelt name ends the search."""

    def misspelt(_: dict[str, float]) -> float:
        return evaluate_modle()  # noqa: F821

    try:
        attempt(settings, misspelt)
    except NameError:
        return
    expect(
        False,
        "an error of the program (a NameError) was taken for a failed trial: catch ValueError "
        "alone",
        look="the except clause",
    )


def _all_failed(attempt: Any, settings: list[dict[str, float]]) -> None:
    """Where nothing worked there is no best."""

    def broken(_: dict[str, float]) -> float:
        raise ValueError("no")

    best, failures = attempt(settings, broken)
    expect(best is None, "where every setting failed, the best is to be None")
    expect(len(failures) == len(settings), "where every setting failed, failures holds them all")


# ------------------------------------------------------------------ stopping early


@check("a trial is measured against others at the same look, and by its best loss so far.")
def prune(attempt: Any) -> None:
    looks = draw.integer(4, 6)
    level = [draw.number(2.0, 2.1) - 0.2 * n for n in range(looks)]  # falls, as losses do
    others = [[loss + 0.01 * n for loss in level] for n in draw.sample(range(-2, 3), 5)]
    at = looks - 2
    middle = statistics.median(other[at] for other in others)
    before = [loss + 0.5 for loss in level[:at]]

    def asked(last: float, earlier: list[float] | None = None, known: Any = None) -> Any:
        losses = [*(before if earlier is None else earlier), last]
        return attempt(losses, [list(o) for o in (others if known is None else known)])

    good = asked(middle - 0.005)
    expect(isinstance(good, bool), "True or False is wanted: whether to stop the trial")
    expect(
        not asked(middle - 0.005) or asked(middle + 0.005),
        "it is the wrong way round: a trial with a loss above the median is stopped",
    )
    expect(
        not good,
        "a trial that is better than the median at its look is stopped",
        look="at which look the others' losses are taken: as many as this trial has",
    )
    expect(
        asked(middle + 0.005),
        "a trial that is worse than the median at its look goes on",
        look="the median (not the mean, the worst or the best) of the others at the same look",
    )
    expect(
        not asked(middle + 0.5, [*before[:-1], middle - 0.005]),
        "a trial whose loss was low and then jumped is stopped: its lowest loss so far counts",
    )
    _few(asked, others, middle, at)


def _few(asked: Any, others: list[list[float]], middle: float, at: int) -> None:
    """What holds where few trials have come that far."""
    expect(
        not asked(middle + 9, known=others[:3]),
        "a trial is stopped though only 3 others came that far: 4 are needed",
    )
    short = [other[:at] for other in others[:2]] + others[2:]  # pruned before this look
    expect(
        not asked(middle + 9, known=short),
        "trials that were stopped before this look are counted among the 4",
        look="len(other)",
    )
    expect(not asked(middle + 9, known=[]), "with no other trial at all, none is stopped")
    expect(
        asked(middle + 9, known=others[:4]),
        "a bad trial goes on though 4 others came that far: 4 are enough",
        look="at least 4, not more than 4",
    )
    outlier = [*others[:3], [99.0] * len(others[0]), [99.5] * len(others[0])]
    top = statistics.median(other[at] for other in outlier)
    expect(
        asked(top + 0.05, known=outlier),
        "two trials that failed badly lift the bar: take the median, which they do not move",
    )


@check("each rung gives the better half twice the budget, so most of the time goes to few.")
def halving(attempt: Any) -> None:
    count, least = draw.pick([6, 8, 11]), draw.integer(2, 5)
    names = [draw.word(8) for _ in range(count)]
    quality = dict(zip(names, draw.sample(range(1, 100), count), strict=True))
    # who is best at the start is not who is best in the end
    late = dict(zip(names, draw.sample(range(1, 100), count), strict=True))
    asked: list[tuple[str, int]] = []

    def loss(name: str, steps: int) -> float:
        return quality[name] + 0.7 * late[name] * math.log2(steps / least + 1e-9)

    def train(name: str, steps: int) -> float:
        asked.append((name, steps))
        return loss(name, steps)

    got = attempt(list(names), train, least)
    alive, steps, wanted = list(names), least, []
    while len(alive) > 1:
        wanted.append((set(alive), steps))
        alive = sorted(alive, key=functools.partial(loss, steps=steps))[: math.ceil(len(alive) / 2)]
        steps *= 2
    expect(isinstance(got, str), "the name of one setting is wanted")
    rungs: list[tuple[set[str], int]] = []
    for name, budget in asked:
        if not rungs or rungs[-1][1] != budget:
            rungs.append((set(), budget))
        rungs[-1][0].add(name)
    _rungs(rungs, wanted, asked)
    expect(got == alive[0], "the trainings are right, but another setting is returned")


def _rungs(rungs: Any, wanted: Any, asked: list[tuple[str, int]]) -> None:
    """Whether the right settings were trained for the right number of steps."""
    expect(rungs, "nothing was trained: call train(setting, steps)")
    expect(
        len(rungs[0][0]) == len(wanted[0][0]) and rungs[0][1] == wanted[0][1],
        f"at first all {len(wanted[0][0])} settings are trained for {wanted[0][1]} steps; here it "
        f"was {len(rungs[0][0])} for {rungs[0][1]}",
    )
    if len(rungs) > 1:
        expect(
            rungs[1][1] == wanted[1][1],
            f"after {wanted[0][1]} steps come {wanted[1][1]}, not {rungs[1][1]}: the budget "
            "doubles",
        )
        few, right = len(rungs[1][0]), len(wanted[1][0])
        expect(few == right, f"of {len(wanted[0][0])} settings {right} go on, not {few}: half of "
                             "them, rounded up")  # fmt: skip
        expect(rungs[1][0] == wanted[1][0], "the wrong half goes on: a low loss is better")
    expect(
        len(rungs) >= len(wanted),
        f"it ends after {len(rungs)} rungs, with more than one setting left",
    )
    expect(len(rungs) == len(wanted), "a single setting that is left needs no further training")
    expect(rungs == wanted, "a later rung trains other settings than the better half before it")
    expect(len(asked) == len(set(asked)), "a setting is trained twice for the same steps")


# ------------------------------------------------------------------ judging


@check("the best of many equal settings looks better than it is, by luck alone.")
def optimism(attempt: Any) -> None:
    settings, rows, share = draw.integer(10, 30), draw.integer(30, 60), draw.number(0.4, 0.7)
    deviation = math.sqrt(share * (1 - share) / rows)
    wanted = _expected_best(settings, rows, share) - share
    got = attempt(settings, rows, share)
    case = f"for {settings} settings, {rows} rows and {share:.2f} right,"
    same_number(got * 0, 0.0, f"{case} the difference")
    close = 0.24 * deviation
    known = {
        "is the score of the best itself: take off what it truly is": wanted + share,
        "is that of a single setting: take the best of all": 0.0,
        "is in rows: divide by their number": wanted * rows,
        "is that of the worst setting": -wanted,
        "has the wrong sign": -wanted,
    }
    more = [got, *(attempt(settings, rows, share) for _ in range(3))]
    for off, value in known.items():
        near = close * (rows if "in rows" in off else 1)
        expect(any(abs(one - value) > near for one in more), f"{case} the difference {off}")
    expect(
        max(more) - min(more) < close,
        f"{case} the difference is another one each time ({min(more):.3f} to {max(more):.3f}): it "
        "is the mean over many repetitions",
        look="how many times the draw is repeated: a thousand or so",
    )
    expect(
        abs(got - wanted) < close,
        f"{case} the difference is {got:.3f}, too {'large' if got > wanted else 'small'}",
        look="what is drawn: for each setting so many rows, each right with that chance",
    )


def _expected_best(settings: int, rows: int, share: float) -> float:
    """The expected share of the best of equal settings, exactly."""
    below, expected = 0.0, 0.0
    for right in range(rows + 1):
        at = math.comb(rows, right) * share**right * (1 - share) ** (rows - right)
        upto = min(1.0, below + at)
        expected += right / rows * (upto**settings - below**settings)
        below = upto
    return expected


def _curve(start: float, end: float, count: int, noise: float = 0.03) -> list[float]:
    """A falling (or rising) curve that levels out, with noise."""
    rate = 4 / count
    return [
        (end + (start - end) * math.exp(-rate * n)) * (1 + random.uniform(-noise, noise))
        for n in range(count)
    ]


def _fall(start: float, share: float, count: int) -> list[float]:
    """A smooth curve that ends at this share of its start."""
    return [*_curve(start, share * start, count - 1, noise=0.0), share * start]


@check("each of the four shapes is told by a comparison of two numbers.")
def diagnose(attempt: Any) -> None:
    start, count = draw.number(1.5, 4), draw.integer(20, 40)
    down, looks = start * draw.number(0.1, 0.2), 6
    even = _curve(start, down, looks - 1, noise=0.0)
    learnt = _curve(start, down, count)
    jumps = [start, start * 3, *_curve(start * 2, start * 1.3, count - 2)]
    cases = [
        ("right", learnt, _curve(start, down * 1.1, looks), ""),
        ("too low", _curve(start, 0.92 * start, count), _curve(start, 0.94 * start, looks), ""),
        ("too high", jumps, [start, *_curve(start * 2, start * 1.4, looks - 1)], ""),
        ("too high", [*learnt[:-2], math.nan, math.nan], _curve(start, down, looks),
         " that ends in nan"),
        ("too high", [*learnt[: count // 2], math.inf, *learnt[count // 2 :]],
         _curve(start, down, looks), " with a single inf in the middle"),
        ("overfitting", _curve(start, start / 1000, count),
         [*_curve(start, down * 2, looks - 3), down * 2.1, down * 2.6, down * 3], ""),
        ("right", learnt, [*even, 1.12 * even[-1]],
         " whose last validation loss is a few per cent above its lowest"),
        ("right", learnt, [*even, 1.2 * even[-1]],
         " whose last validation loss is 1.2 times its lowest"),
        ("overfitting", learnt, [*even, 1.3 * even[-1]],
         " whose last validation loss is 1.3 times its lowest"),
        ("too low", _fall(start, 0.75, count), _fall(start, 0.75, looks),
         " that ends at 0.75 of its start"),
        ("right", _fall(start, 0.65, count), _fall(start, 0.65, looks),
         " that ends at 0.65 of its start"),
    ]  # fmt: skip
    for wanted, train, validation, kind in draw.sample(cases, len(cases)):
        got = attempt(list(train), list(validation))
        expect(isinstance(got, str), "the name of a shape is wanted, a string")
        expect(
            got in ("too low", "right", "too high", "overfitting"),
            f"{got!r} is no shape: they are 'too low', 'right', 'too high' and 'overfitting'",
        )
        expect(
            got == wanted,
            f"a curve that is {wanted!r}{kind} was called {got!r} (training loss {train[0]:.2f} to "
            f"{train[-1]:.2f}, validation {validation[0]:.2f} to {validation[-1]:.2f}, lowest "
            f"{min(validation):.2f})",
            look="the order of the four questions, and what each compares",
        )
