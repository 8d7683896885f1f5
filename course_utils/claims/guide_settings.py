"""The guide's numbers on settings: ranks, rates, batches, warm-up, searches; and on quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .figures import Figure, Ref, cpu, needed, percent, times, yes
from .ledger import Claim
from .rules import (
    DEPENDS,
    FALSE,
    HOLDS,
    OFF,
    about,
    at_least,
    at_most,
    between,
    so,
)

_FASTER = (
    "At one rate below the best, a larger rank also learns faster, and on the tickets rank 16 at "
    "three times the rate does as well as rank 64: find the rate first, then compare ranks."
)
_RANK = {
    OFF: _FASTER, DEPENDS: _FASTER,
    HOLDS: "Beyond it nothing was gained that one could tell from the seeds.",
}  # fmt: skip
_RATE = {
    OFF: "A model of 135M in a run of 99 updates takes larger rates than the guide's, which are "
         "those of large models in long runs: try three to ten times either way before a long run.",
}  # fmt: skip


_RANGES = {
    OFF: "The best rate of every experiment here lies beyond these: a search finds nothing outside "
         "its space, and does not say so. Give rates two or three powers of ten.",
}  # fmt: skip


def tried(key: str) -> Ref:
    """A field of `benchmarks/tuning_rules.py`'s summary over learning rates, by method."""
    return Ref("tuning_rates", f"methods.{key}")


def _best(method: str) -> Figure:
    """The rate with the lowest held-out loss of those that were tried, each with three seeds."""
    return Figure("rate with the lowest held-out loss", (tried(f"{method}.best_rate"),))


def _scores(method: str, rate: str) -> tuple[Figure, ...]:
    return (
        percent(f"right answers at {rate}", tried(f"{method}.at.{rate}.score"), judged=False),
        percent("right answers at the best rate", tried(f"{method}.best.score"), judged=False),
    )


def _set(key: str) -> Ref:
    """A field of `benchmarks/tuning_settings.py`'s summary, by rule; two seeds a setting."""
    return Ref("tuning_settings", f"rules.{key}")


def _batch(size: int, batches: int) -> Ref:
    """The held-out loss with so many rows a batch, and batches an update."""
    return _set(f"batch.at.2e-03 {size} {batches}.loss")


def _lowest(*names: int) -> Callable[..., int]:
    """Which of these has the lowest of as many losses."""
    return lambda *losses: min(zip(losses, names, strict=True))[1]


def _losses(alpha: int) -> tuple[Ref, ...]:
    """Held-out losses with an alpha at rank 16, at three rates."""
    return tuple(_set(f"alpha.at.{alpha} {rate}.loss") for rate in ("1e-03", "2e-03", "4e-03"))


def _in_study(rank: int) -> tuple[Ref, ...]:
    """Held-out losses of `benchmarks/lora_study.py`, a run each, adapters on all linear layers."""
    of = {"targets": "all linear", "rank": rank}
    return tuple(Ref("lora_study", "loss", of | {"seed": seed}) for seed in range(5))


def _ranked(key: str) -> Ref:
    """A field of `benchmarks/tuning_rules.py`'s summary over ranks, by task."""
    return Ref("tuning_ranks", f"ranks.{key}")


def _enough(task: str, what: str) -> Figure:
    """The smallest rank whose score is the best one's within that one's seeds; three seeds each."""
    return Figure(f"smallest rank as good as the best, {what}", (_ranked(f"{task}.enough_rank"),))


def _on_code(key: str) -> Ref:
    """A field of `benchmarks/tuning_settings.py`'s summary over ranks on code; two seeds each."""
    return Ref("tuning_tasks", f"rules.code.{key}")


def _code_loss(rank: int, seed: int) -> Ref:
    """The held-out loss of one training on code."""
    return Ref("tuning_tasks", "loss", {"task": "hard", "rank": rank, "seed": seed})


_CODE = (
    *(percent(f"problems solved at rank {rank}", _on_code(f"at.{rank} {2 * rank}.score"),
              judged=False)
      for rank in (4, 16, 64)),
)  # fmt: skip


def _at_rank(task: str, rank: int) -> Figure:
    return percent(f"right answers at rank {rank}, {task} task", _ranked(f"{task}.at.{rank}.score"),
                   judged=False)  # fmt: skip


def cures(key: str) -> Ref:
    """A field of `benchmarks/cures.py`'s summary, by failure and change."""
    return Ref("cures", f"failures.{key}")


def _cured(failure: str, what: str, changes: dict[str, str]) -> Iterator[Figure]:
    """The held-out loss with each change alone, over that of the failing run; half is a cure."""
    for key, name in changes.items():
        yield times(
            f"held-out loss with {name}, over that without ({what}; half would be a cure)",
            cures(f"{failure}.{key}.loss"),
            cures(f"{failure}.as-it-fails.loss"),
        )


_EASY, _MEDIUM = _enough("easy", "tickets, rate 1e-3"), _enough("medium", "23 kinds, rate 1e-3")


def _minus(a: float, b: float) -> float:
    return a - b


def _reached(warm: int, counts: tuple[int, ...]) -> tuple[Figure, ...]:
    return tuple(
        percent(f"of that rate, {rows:,} rows, 3 epochs, 16 rows a step",
                cpu(f"warmup-{warm}-rows-{rows}", "reached_percent"))
        for rows in counts
    )  # fmt: skip


_WARM = {
    DEPENDS: "Fewer steps than the warm-up has never reach the rate; a share of the steps does.",
    OFF: "Fewer steps than the warm-up has never reach the rate; a share of the steps does.",
}

STEPS = (
    Claim(
        "3.1-warmup", "3.1, 3.2, 3.3, 5.1", "settings",
        "100 warm-up steps: training reaches the rate asked for", at_least(100, implied=True),
        _reached(100, (3, 100, 1000, 10_000)), _WARM,
    ),
    Claim(
        "5.1-warmup", "5.1", "settings", "large preset, 200 warm-up steps: the rate is reached",
        at_least(100, tolerance=0.01, implied=True), _reached(200, (100, 1000, 10_000)), _WARM,
    ),
    Claim(
        "5.4-warmup", "5.4, 9", "settings", "not converging: 500 warm-up steps are a cure",
        at_least(100, tolerance=0.01, implied=True), _reached(500, (100, 1000, 10_000)), _WARM,
    ),
    Claim(
        "3.1-save", "3.1, 3.2, 3.3", "settings", "save_steps = 500 keeps checkpoints",
        at_least(1, implied=True),
        tuple(
            Figure(f"{rows:,} rows, 3 epochs, 16 rows a step",
                   (cpu(f"warmup-100-rows-{rows}", "steps"),), "checkpoints",
                   lambda steps: steps // 500)
            for rows in (100, 1000, 10_000)
        ),
        {DEPENDS: "A run of fewer steps keeps none: an interruption loses all of it."},
    ),
    Claim(
        "5.1-batch", "5.1, 5.3", "settings", "the three presets have a real batch of 16",
        about(16, 0),
        tuple(
            Figure(f"{name} preset", (cpu(f"batch-{name}", "rows_per_step"),), "rows a step")
            for name in ("small", "medium", "large")
        ),
        {HOLDS: "Batch times accumulation, as the presets of this course keep it."},
    ),
    Claim(
        "5.3-batch", "5.3", "settings", "real batch = batch size x accumulation",
        at_most(0.1, implied=True),
        (percent("largest difference of losses, 8 x 1 against 2 x 4 rows, same seed",
                 cpu("accumulation", "difference_percent")),),
        {HOLDS: "Losses are summed and divided by the answer tokens of the whole batch."},
    ),
    Claim(
        "5.3-batch-sizes", "5.3", "settings",
        "batch 8 to 16 with much memory, 4 x 4 and 2 x 8 with less", so(),
        (
            *(yes(f"{size} x {16 // size} rows end like 16 x 1 (held-out loss within 10 %)",
                  _batch(size, 16 // size), _batch(16, 1),
                  combine=lambda one, other: abs(one / other - 1) < 0.1) for size in (2, 4)),
            yes("8 or 16 rows an update have the lowest held-out loss, of 2 to 32, at one rate and "
                "as many epochs",
                _set("batch.best.batch_size"), _set("batch.best.gradient_accumulation"),
                combine=lambda rows, batches: 8 <= rows * batches <= 16),
            *(Figure(f"held-out loss, {rows} rows an update", (_batch(rows, 1),), judged=False)
              for rows in (2, 8, 16, 32)),
        ),
        {DEPENDS: "Batch times accumulation is what counts. How large it should be is no rule of "
                  "its own: over the same rows at one rate, small batches make more updates and "
                  "learn more; the batch, the rate and the epochs are one choice."},
    ),
    Claim(
        "3.1-epochs", "3.1, 3.2, 3.3, 4.1, 5.1", "settings", "3 epochs", about(3),
        (
            Figure("lowest held-out loss, of 1, 2, 3 and 5, 100 tickets",
                   (_set("epochs.best.epochs"),), "epochs"),
            *(percent(f"right answers after {n}", _set(f"epochs.at.{n}.score"), judged=False)
              for n in (1, 3, 5)),
        ),
        {OFF: "Few rows need more passes: what counts is the number of updates, and the held-out "
              "loss says when they are enough."},
    ),
    Claim(
        "5.1-both", "5.1", "settings", "large preset: fp16 and bf16 both true", so(),
        (yes("transformers accepts it", cpu("fp16-and-bf16", "accepted")),),
        {FALSE: "It is an error; take bf16 where the machine has it, and fp16 elsewhere."},
    ),
    Claim(
        "3.1-fp16", "3.1, 3.2, 3.3, 5.1", "settings", "fp16=True trains in mixed precision", so(),
        (yes("on a CPU", cpu("fp16-on-cpu", "used")),),
        {FALSE: "It needs a GPU; on a CPU it is ignored without a word."},
    ),
)  # fmt: skip

SEARCH = (
    Claim(
        "5.2-alpha", "5.2", "settings", "alpha // rank * rank aligns alpha with the rank",
        at_most(0, implied=True),
        (
            percent("of the guide's pairs become 0", cpu("alpha-fault", "zero_percent")),
            Figure("of 20 trials", (cpu("alpha-fault", "expected_of_20_trials"),), "trials",
                   judged=False),
            Figure("largest gradient with alpha 0",
                   (cpu("alpha-0-gradient", "largest_gradient"),), judged=False),
        ),
        {FALSE: "Wherever alpha is below the rank, it becomes 0: the adapter is off and learns "
                "nothing."},
    ),
    Claim(
        "5.2-grid", "5.2", "settings",
        "grid: rank 4 to 16, alpha 8 to 32, rate 1e-4 to 3e-4, batch 2 to 8", between(1e-4, 3e-4),
        (_best("lora"), *_scores("lora", "2e-04"), _at_rank("easy", 16), _at_rank("easy", 64)),
        _RANGES,
    ),
    Claim(
        "5.2-random", "5.2", "settings",
        "20 random trials: rank 4 to 64, alpha 8 to 128, rate 1e-5 to 5e-4", between(1e-5, 5e-4),
        tuple(
            Figure(f"rate of the best of 12 trials, {name} over 1e-5 to 3e-2",
                   (Ref("tuning_study", "best.learning_rate", {"search": key, "seed": 0}),))
            for key, name in (("random", "random search"), ("tpe", "TPE with pruning"))
        ),
        _RANGES,
    ),
)  # fmt: skip

RULES = (
    Claim(
        "5.3-rank-simple", "5.3", "settings", "simple tasks: rank 4 to 8", between(4, 8),
        (
            _EASY,
            Figure("rank with the lowest held-out loss, of 4, 16, 64 at one alpha, 100 tickets",
                   tuple(_set(f"rslora.at.{rank} 0.loss") for rank in (4, 16, 64)), "",
                   _lowest(4, 16, 64)),
            _at_rank("easy", 8), _at_rank("easy", 64),
        ),
        _RANK,
    ),
    Claim(
        "5.3-rank-medium", "5.3", "settings", "medium tasks: rank 16 to 32", between(16, 32),
        (_MEDIUM, _at_rank("medium", 16), _at_rank("medium", 64)), _RANK,
    ),
    Claim(
        "5.3-rank-complex", "5.3", "settings", "complex tasks: rank 32 to 64", between(32, 64),
        (
            *(Figure(f"rank with the lowest held-out loss, of 4, 16, 64, code set, seed {seed}",
                     tuple(_code_loss(rank, seed) for rank in (4, 16, 64)), "",
                     _lowest(4, 16, 64)) for seed in (0, 1)),
            *_CODE,
        ),
        {DEPENDS: "On the hardest set of this course rank 64 is no better than 16: worse with one "
                  "seed, as good with the other; all at one rate."},
    ),
    Claim(
        "5.3-rank-first", "5.3", "settings", "start with rank 8", about(8),
        (_EASY, _MEDIUM, _at_rank("easy", 8), _at_rank("medium", 8)), _RANK,
    ),
    Claim(
        "10.1-rank", "10.1", "settings", "rank 8 to 32, by the task", between(8, 32),
        (_EASY, _MEDIUM), _RANK,
    ),
    Claim(
        "5.3-rank-better", "5.3", "settings", "the larger the rank, the better",
        at_most(1, tolerance=0, implied=True),
        (
            *(times(f"held-out loss at rank 64 over rank 16, {what}, rate 1e-3, long run",
                    _ranked(f"{task}.at.64.loss"), _ranked(f"{task}.at.16.loss"))
              for task, what in (("easy", "tickets"), ("medium", "23 kinds"))),
            Figure("the same, tickets, rate 3e-3, short run, five seeds",
                   (*_in_study(64), *_in_study(16)), "x",
                   lambda *losses: sum(losses[:5]) / sum(losses[5:])),
        ),
        {DEPENDS: _FASTER},
    ),
    Claim(
        "6.2-rank", "6.2", "settings", "code may need a larger rank: 16",
        at_most(1, tolerance=0, implied=True),
        (
            *(times(f"held-out loss at rank 16 over rank 4, code set, seed {seed}",
                    _code_loss(16, seed), _code_loss(4, seed)) for seed in (0, 1)),
            *_CODE,
        ),
        {HOLDS: "Rank 16 beats 4 with both seeds, and 64 with one of the two; all at one rate."},
    ),
    Claim(
        "5.3-alpha", "5.3, 10.1", "settings", "alpha = 2 x rank", at_most(1, implied=True),
        (
            Figure("held-out loss over the lowest with alpha = r or 4r, each at its best of three "
                   "rates", (*_losses(32), *_losses(16), *_losses(64)), "x",
                   lambda *losses: min(losses[:3]) / min(losses[3:])),
        ),
        {HOLDS: "So are r and 4r, each at a rate of its own: alpha moves the best rate, and not "
                "the result."},
    ),
    Claim(
        "5.3-alpha-range", "5.3", "settings",
        "alpha = rank is careful, alpha = 4 x rank is bold", at_least(0, implied=True),
        (
            *(Figure(f"loss on general text, alpha = 4r minus alpha = r, rate {rate}",
                     (_set(f"alpha.at.64 {rate}.general"), _set(f"alpha.at.16 {rate}.general")),
                     "nats a token", _minus) for rate in ("1e-03", "4e-03")),
            times("held-out loss, alpha = 4r over alpha = r, rate 4e-3",
                  _set("alpha.at.64 4e-03.loss"), _set("alpha.at.16 4e-03.loss"), judged=False),
        ),
        {HOLDS: "At one rate: four times alpha moves the weights as a several times higher rate "
                "would."},
    ),
    Claim(
        "5.3-rate-full", "5.3, 3.1, 10.2", "settings",
        "full fine-tuning: learning rate 1e-5 to 2e-5", between(1e-5, 2e-5),
        (_best("full"), *_scores("full", "2e-05")), _RATE,
    ),
    Claim(
        "5.3-rate-lora", "5.3, 10.1, 5.1, 10.2", "settings", "LoRA: learning rate 1e-4 to 3e-4",
        between(1e-4, 3e-4), (_best("lora"), *_scores("lora", "2e-04")), _RATE,
    ),
    Claim(
        "5.3-rate-qlora", "5.3, 3.3, 10.2", "settings", "QLoRA: learning rate 2e-4", about(2e-4),
        (_best("qlora"), *_scores("qlora", "2e-04")), _RATE,
    ),
    Claim(
        "5.3-rate-limits", "5.3", "settings",
        "too large a rate is unstable, too small a one slow", at_least(2, implied=True),
        (
            *(times(f"{name}: held-out loss at {rate} over that at the best rate",
                    tried(f"{method}.at.{rate}.loss"), tried(f"{method}.best.loss"))
              for name, method, rates in (("full", "full", ("1e-05", "1e-03")),
                                          ("LoRA", "lora", ("1e-04", "1e-02")))
              for rate in rates),
        ),
        {HOLDS: "The window between them is narrow: a factor of three to ten to either side."},
    ),
    Claim(
        "3.2-dropout", "3.2, 5.1", "settings", "adapter dropout 0.1, with much memory 0.05",
        at_most(1, tolerance=0, implied=True),
        tuple(
            times(f"held-out loss with dropout {share} over that without",
                  _set(f"dropout.at.{key}.loss"), _set("dropout.at.0%.loss"))
            for share, key in (("0.1", "10%"), ("0.05", "5%"))
        ),
        {OFF: "Nothing was gained by it in a short run, and the fast layers do not run with it.",
         DEPENDS: "Within what two seeds differ by, and the fast layers do not run with it."},
    ),
    Claim(
        "5.4-rate", "5.4, 9", "settings",
        "loss not falling: learning rate 1e-4, rank 16, alpha 32, 5 epochs",
        at_most(0.5, tolerance=0, implied=True),
        (
            *_cured("too-large", "a rate of 3e-2", {
                "rate-1e-4": "rate 1e-4", "rank-16": "rank 16", "alpha-32": "alpha 32",
                "5-epochs": "5 epochs",
            }),
            *_cured("too-small", "a rate of 1e-5", {
                "rate-1e-4": "rate 1e-4", "rank-16": "rank 16", "alpha-32": "alpha 32",
                "5-epochs": "5 epochs",
            }),
        ),
        {DEPENDS: "One seed. What is wrong is the rate, and only another rate cures it: at too "
                  "large a one a higher rank or alpha makes it worse, at too small a one they move "
                  "it little. A warm-up beyond the run's end is a smaller rate in disguise."},
    ),
    Claim(
        "5.4-overfitting", "5.4", "settings",
        "overfitting: dropout 0.2, 1 epoch, rate 1e-4, early stopping",
        at_most(0.5, tolerance=0, implied=True),
        (
            *_cured("overfitting", "24 rows, 10 epochs", {
                "dropout-0-2": "dropout 0.2", "1-epoch": "1 epoch", "rate-1e-4": "rate 1e-4",
                "early-stopping": "early stopping",
            }),
            *(percent(f"right answers: {name}", cures(f"overfitting.{key}.score"), judged=False)
              for key, name in (("as-it-fails", "as it fails"), ("1-epoch", "1 epoch"),
                                ("early-stopping", "early stopping"))),
            times("held-out loss with weight decay 0.01, which does nothing here: chance alone",
                  cures("overfitting.weight-decay-0-01.loss"),
                  cures("overfitting.as-it-fails.loss"), judged=False),
        ),
        {OFF: "One seed, so that only a large difference counts, and none is. Of these only early "
              "stopping lowers the held-out loss, by no more than chance may. Fewer steps or a "
              "lower rate overfit less because they learn less: fewer answers are right. What "
              "helps is more rows."},
    ),
    Claim(
        "5.4-decay", "5.4", "settings", "overfitting: weight decay 0.01 is a cure",
        at_least(1, implied=True),
        (percent("taken off a weight in an epoch of 1,000 rows at 1e-4 (1 % would be an effect)",
                 cpu("weight-decay", "shrunk_percent")),),
        {OFF: "Decay is rate x 0.01 a step: in a short run it does nothing that can be seen."},
    ),
)  # fmt: skip

QUALITIES = (
    Claim(
        "2.2-close", "2.2, 10.1", "quality", "LoRA comes close to full fine-tuning",
        at_most(5, implied=True),
        (Figure("full minus LoRA, each at its best rate (5 points would be far)",
                (tried("full.best.score"), tried("lora.best.score")), "points", _minus),),
        {HOLDS: "With a rate of its own: at full fine-tuning's it would have learnt far less."},
    ),
    Claim(
        "3.1-best", "3.1", "quality", "full fine-tuning is best, in theory", so(),
        (yes("by more than its seeds differ: full over LoRA, each at its best rate",
             tried("full.best.score"), tried("lora.best.score"), tried("full.best.spread"),
             combine=lambda full, lora, spread: full - lora > spread),),
        {FALSE: "On this task the difference is smaller than that between two seeds."},
    ),
    Claim(
        "10.1-qlora-good", "10.1", "quality", "QLoRA is still very good",
        at_least(95, tolerance=0, implied=True),
        (percent("of LoRA's score, each at its best rate (95 would still be very good)",
                 tried("qlora.best.score"), tried("lora.best.score"),
                 combine=lambda qlora, lora: 100 * qlora / lora),),
        {HOLDS: "The adapter learns around the rounding of the weights below it."},
    ),
    Claim(
        "3.1-forgetting", "1.2, 3.1", "quality",
        "full fine-tuning may forget what the model could, LoRA keeps it",
        at_least(0, tolerance=0, implied=True),
        (Figure("loss on general text: full minus LoRA, each at its best rate for the task",
                (tried("full.best.general"), tried("lora.best.general")), "nats a token", _minus),
         Figure("the same at 10 times full's best rate", judged=False,
                refs=(tried("full.at.1e-03.general"), tried("lora.best.general")),
                unit="nats a token", combine=_minus)),
        {FALSE: "What is forgotten grows with the learning rate, and LoRA's best is the larger "
                "one: here it forgets more."},
    ),
    Claim(
        "2.1-overfitting", "2.1", "quality", "too few rows overfit", at_least(2, implied=True),
        (
            times("held-out loss over training loss, 10 rows (twice as large would be overfitting)",
                  needed("held_out_loss", "rows-10"), needed("training_loss", "rows-10")),
            times("the same, all 260 rows, as many steps", needed("held_out_loss", "rows-260"),
                  needed("training_loss", "rows-260"), judged=False),
        ),
        {HOLDS: "Few rows are soon known by heart, and what is learnt is those rows."},
    ),
)  # fmt: skip

CLAIMS = (*STEPS, *SEARCH, *RULES, *QUALITIES)
