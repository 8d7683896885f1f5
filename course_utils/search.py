"""Studies over recipes: which settings reach the lowest held-out loss, searched with Optuna.

Each trial of a study trains one recipe and is judged by its loss on the validation rows.  The test
rows are for the recipe that is chosen in the end: the best of many trials always looks better on
the rows that chose it than it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from . import models, recipes, training
from .encoding import Encoded, encode, packed
from .errors import CourseError
from .oom import let_go
from .recipes import Recipe
from .training import Rows

PER_RANK = "alpha_per_rank"
KINDS = {f.name: f.type for f in dataclasses.fields(Recipe)} | {PER_RANK: "float"}
RANGES = {"int": IntDistribution, "float": FloatDistribution}
FIXED = {
    "model": "losses per token of different tokenizers cannot be compared",
    "max_length": "all trials must be judged on the same tokens",
    "evaluate_every": "the study's `looks` say how often a trial is judged",
    "save_every": "the models of trials are not kept",
    "early_stopping": "a trial is judged by its last look, and `pruner` ends it early",
}
SAMPLERS = ("grid", "random", "tpe")
PRUNERS = {
    None: optuna.pruners.NopPruner(),
    "median": optuna.pruners.MedianPruner(n_startup_trials=4),
    "halving": optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
}
TPE_STARTUP = 5  # random trials before TPE models the losses; Optuna's 10 suit longer studies
KEPT = r" \(resume=.* goes on from there\)"  # of a checkpoint, which a trial does not keep
MAX_DEATHS = 3  # processes that may be killed during one trial before it counts as failed


class Study:
    """A search for the values of some recipe fields that give the lowest held-out loss.

    base: the recipe that the trials change.
    space: field -> a list of choices, or a range `(low, high)` or `(low, high, "log")`, both ends
    included.  "alpha_per_rank" sets alpha to so many times the trial's rank.
    train, validation: conversations or encoded rows, the same for all trials.
    sampler: "grid" (every combination of the choices, shuffled), "random", or "tpe" (Bergstra et
    al., 2011), which tries more of what went well.  What trial n of "grid" and "random" tries
    follows from `seed` and n; "tpe" also looks at the losses so far, and so at the order in which
    several processes finish.
    pruner: None; "median" stops a trial that is worse than the median of those before at the same
    look; "halving" at looks 1, 2, 4 ... all but the better half so far (ASHA, arXiv:1810.05934).
    looks: how often a trial is judged, at equal shares of its steps; the last one is its result.
    storage: an SQLite file.  The same call goes on with the study in it, and several processes of
    one machine may work on it at once.  None: the study ends with this object.
    name: of the study in that file, which can hold several.

    `optuna` is Optuna's own study, for its plots.  Raises CourseError for a space that fits no
    recipe, and for a stored study that was begun with other settings or rows.
    """

    def __init__(
        self, base: Recipe, space: Mapping[str, Any], train: Rows, validation: Rows, *,
        sampler: str = "tpe", seed: int = 0, pruner: str | None = None, looks: int = 4,
        storage: str | Path | None = None, name: str = "search",
    ) -> None:  # fmt: skip
        _check(space, sampler, seed, pruner, looks)
        self.base, self.space = base, dict(space)
        self.sampler, self.seed, self.looks = sampler, seed, looks
        self.distributions = {field: _distribution(field, space[field]) for field in sorted(space)}
        self.train, self.validation = _encoded(train, base), _encoded(validation, base)
        settings = {
            "base": base.to_dict(), "space": repr(sorted(space.items())), "sampler": sampler,
            "seed": seed, "pruner": pruner, "looks": looks,
            "train": _fingerprint(self.train), "validation": _fingerprint(self.validation),
        }  # fmt: skip
        if storage is None:
            self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            storage = Path(self._folder.name) / "study.db"
        self.file = Path(storage).absolute()
        self._open(name, settings, PRUNERS[pruner])

    def run(
        self, trials: int | None = None, minutes: float | None = None,
        on_trial: Callable[[dict[str, Any]], None] | None = None,
    ) -> Study:  # fmt: skip
        """Train until the study has `trials` trials, or until none may begin after `minutes`.

        trials: of the whole study, those of earlier calls and other processes included; "grid"
        needs no number.  minutes: of this call; a trial under way is finished.
        on_trial: called with a trial's row of the table when it has ended.
        What a killed or interrupted process left unfinished is trained first, from its beginning.
        A trial that cannot train, meets a NaN or runs out of memory fails with its reason and the
        study goes on; any other error is noted too, and raised.
        """
        limit = self._limit(trials, minutes)
        end = math.inf if minutes is None else time.monotonic() + 60 * minutes
        with self._at_work() as worker:
            while time.monotonic() < end and (trial := self._next(limit, worker)) is not None:
                if not self._attempt(trial):
                    break
                if on_trial:
                    on_trial(self.table()[trial.number])
        return self

    def table(self) -> list[dict[str, Any]]:
        """A row for each trial: number, what was tried, loss (nats per answer token), seconds
        (with loading and judging), state and reason.

        States: complete, pruned (with its last loss), failed, running, waiting.
        """
        rows = []
        for trial in self.optuna.get_trials(deepcopy=False):
            span = trial.duration
            rows.append({
                "number": trial.number,
                **{field: trial.params.get(field) for field in self.space},
                "loss": trial.value,
                "seconds": span and round(span.total_seconds(), 1),
                "state": "failed" if trial.state == TrialState.FAIL else trial.state.name.lower(),
                "reason": trial.user_attrs.get("reason", ""),
            })  # fmt: skip
        return rows

    def to_dict(self) -> dict[str, Any]:
        """The ended trials as plain values for JSON, from which `stored` makes Optuna's study."""
        fields = self.distributions.items()
        write = optuna.distributions.distribution_to_json
        return {
            "distributions": {field: write(distribution) for field, distribution in fields},
            "trials": [
                {
                    "params": trial.params, "state": trial.state.name, "loss": trial.value,
                    "looks": trial.intermediate_values, "reason": row["reason"],
                    "seconds": row["seconds"],
                }
                for trial, row in zip(self.optuna.trials, self.table(), strict=True)
                if trial.state.is_finished()
            ],
        }  # fmt: skip

    @property
    def best(self) -> Recipe:
        """The recipe of the trial with the lowest loss; CourseError where none is complete."""
        if self.optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            return self.recipe(self.optuna.best_params)
        reasons = [row["reason"] for row in self.table() if row["state"] == "failed"]
        last = f" ({len(reasons)} failed, the last one because: {reasons[-1]})" if reasons else ""
        raise CourseError(f"No trial of this study is complete{last}: run it, or change its space.")

    def recipe(self, params: Mapping[str, Any]) -> Recipe:
        """The base recipe with what a trial tries: Optuna's `params`, or a row of the table."""
        fields = {}
        for field in self.space:
            options = self.space[field] if isinstance(self.space[field], list) else []
            labels = {_label(option): option for option in options}
            fields[field] = labels.get(params[field], params[field])
        if PER_RANK in fields:
            fields["alpha"] = fields.pop(PER_RANK) * fields.get("rank", self.base.rank)
        return self.base.replace(**fields)

    # ------------------------------------------------------------------------- one trial

    def _next(self, limit: float, worker: str) -> optuna.Trial | None:
        """A trial to train, with its proposal stored; None where the study has enough."""
        # One process at a time: so none is counted or proposed twice, and a running trial without
        # a worker's name can only be of a process that died in here.
        with FileLock(f"{self.file}.lock"):
            self._take_back()
            known = self.optuna.get_trials(deepcopy=False)
            waiting = [trial.number for trial in known if trial.state == TrialState.WAITING]
            number = min(waiting, default=len(known))
            if not waiting and number >= limit:
                return None
            if not waiting and self.sampler == "grid":
                self.optuna.enqueue_trial(self._grid()[number])
            self.optuna.sampler = self._sampler(number)
            trial = self.optuna.ask(self.distributions)
            trial.set_user_attr("worker", worker)
            return trial

    def _grid(self) -> list[dict[str, Any]]:
        """All combinations, shuffled so that a part of them is no corner of the grid."""
        fields = self.distributions
        choices = itertools.product(*(fields[field].choices for field in fields))
        grid = [dict(zip(fields, values, strict=True)) for values in choices]
        return random.Random(self.seed).sample(grid, len(grid))

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """A new one for each trial: one for all would begin anew in each process."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "tpe":
            return optuna.samplers.TPESampler(n_startup_trials=TPE_STARTUP, seed=seed)
        return optuna.samplers.RandomSampler(seed)

    def _attempt(self, trial: optuna.Trial) -> bool:
        """Train and judge a trial; False where it was interrupted, and waits to be run again."""
        loss, state, reason = None, TrialState.WAITING, ""  # as a KeyboardInterrupt leaves it
        try:
            loss = self._loss(trial)
            state = TrialState.WAITING if loss is None else TrialState.COMPLETE
        except (optuna.TrialPruned, CourseError) as error:
            state = TrialState.FAIL if isinstance(error, CourseError) else TrialState.PRUNED
            reason = re.sub(KEPT, "", str(error))
            let_go(error, models.device())
        except Exception as error:
            state, reason = TrialState.FAIL, f"{type(error).__name__}: {error}"
            raise
        finally:
            if state == TrialState.WAITING:
                self.storage.set_trial_state_values(trial._trial_id, state)
            else:
                trial.set_user_attr("reason", reason)
                self.optuna.tell(trial, loss, state)
        return state != TrialState.WAITING

    def _loss(self, trial: optuna.Trial) -> float | None:
        """The loss on the validation rows after training; None where that was interrupted."""
        recipe = self.recipe(trial.params)
        looks = {"evaluate_every": self._every(recipe), "early_stopping": None}
        recipe = recipe.replace(save_every=None, **looks)
        known = self.optuna.get_trials(deepcopy=False)[trial.number].intermediate_values
        judge = _Judge(trial, self.looks, self._every(recipe), known)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            folder = Path(folder) / "trial"
            run = training.run(recipe, self.train, self.validation, panel=judge, output_dir=folder)
        interrupted = run.report.stopped == "interrupted"
        return None if interrupted else run.report.validation_losses[-1][1]

    def _every(self, recipe: Recipe) -> int:
        """Steps from look to look."""
        length = recipe.pack_length or recipe.max_length
        rows = len(packed(self.train, length) if recipe.packing else self.train)
        updates = math.ceil(math.ceil(rows / recipe.batch_size) / recipe.gradient_accumulation)
        return math.ceil((recipe.max_steps or updates * recipe.epochs) / self.looks)

    # ------------------------------------------------- the stored study and its processes

    def _open(self, name: str, settings: dict[str, Any], pruner) -> None:
        """Begin the study, or go on with the stored one if it has the same settings."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else two lines a trial
        self.file.parent.mkdir(parents=True, exist_ok=True)
        url, patient = f"sqlite:///{self.file.as_posix()}", {"timeout": 60}  # s, for others' writes
        with FileLock(f"{self.file}.lock"):
            self.storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": patient})
            self.optuna = optuna.create_study(
                study_name=name, storage=self.storage, pruner=pruner, load_if_exists=True
            )
            stored = self.optuna.user_attrs.get("settings", settings)
            other = ", ".join(key for key in settings if stored.get(key) != settings[key])
            if other:
                raise CourseError(
                    f"The study {name!r} in {self.file} was begun with another {other}: use that "
                    "again, or another name or storage."
                )
            self.optuna.set_user_attr("settings", settings)

    def _limit(self, trials: int | None, minutes: float | None) -> float:
        """Trials that the study may have."""
        for name, value in (("trials", trials), ("minutes", minutes)):
            if value is not None and value <= 0:
                raise CourseError(f"{name} is {value!r} and must be above 0.")
        if self.sampler == "grid":
            return min(trials or math.inf, len(self._grid()))
        if trials is None and minutes is None:
            raise CourseError("This search has no end of its own: give trials, minutes or both.")
        return trials or math.inf

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[str]:
        """The name of a file that stays locked as long as this process works and lives."""
        path = self.file.with_name(f"{self.file.name}.{uuid.uuid4().hex[:8]}.worker")
        try:
            with FileLock(path):
                yield path.name
        finally:
            path.unlink(missing_ok=True)

    def _take_back(self) -> None:
        """Let the trials of dead processes wait again, with what they propose.

        A trial may itself be what gets them killed, by taking all of the machine's memory.
        """
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker and _is_locked(self.file.with_name(worker)):
                continue
            deaths, key = trial.user_attrs.get("deaths", 0) + 1, trial._trial_id
            self.storage.set_trial_user_attr(key, "deaths", deaths)
            state = TrialState.WAITING if deaths < MAX_DEATHS else TrialState.FAIL
            if state == TrialState.FAIL:
                reason = f"killed with its process {deaths} times: the machine may lack the memory"
                self.storage.set_trial_user_attr(key, "reason", reason)
            self.storage.set_trial_state_values(key, state)


def stored(kept: Mapping[str, Any]) -> optuna.Study:
    """Optuna's study, for its plots, of what `Study.to_dict` wrote somewhere else."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fields = kept["distributions"].items()
    known = {field: optuna.distributions.json_to_distribution(text) for field, text in fields}
    made = optuna.create_study()
    for trial in kept["trials"]:
        made.add_trial(optuna.trial.create_trial(
            state=TrialState[trial["state"]], value=trial["loss"], params=trial["params"],
            distributions=known, user_attrs={"reason": trial["reason"]},
            intermediate_values={int(look): loss for look, loss in trial["looks"].items()},
        ))  # fmt: skip
    return made


class _Judge:
    """The panel of a trial's training: reports each look, and stops what the pruner gives up."""

    def __init__(self, trial: optuna.Trial, looks: int, every: int, known: Container[int]) -> None:
        self.trial, self.looks, self.every, self.known = trial, looks, every, known

    def start(self, total_steps: int) -> None:
        self.steps = total_steps

    def update(self, step: int, **figures: Any) -> None:
        loss = figures.get("validation_loss")
        if loss is None or step == 0:
            return
        # the last look comes at the last step, however far that is from the one before
        look = self.looks if step >= self.steps else step // self.every
        if look in self.known:  # reported before its process was killed
            return
        self.trial.report(loss, look)
        if step < self.steps and self.trial.should_prune():
            raise optuna.TrialPruned(f"stopped at look {look} of {self.looks}")

    def finish(self, message: str = "") -> None:
        pass


def _check(space: Mapping[str, Any], sampler: str, seed: int, pruner: str | None, looks: int):
    """Raise CourseError for what no study can be made of."""
    for name, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            names = ", ".join(map(repr, known))
            raise CourseError(f"{name} is {value!r} and must be one of {names}.")
    for name, value, least in (("looks", looks, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise CourseError(f"{name} is {value!r} and must be a whole number from {least} on.")
    ranges = [field for field, options in space.items() if not isinstance(options, list)]
    if sampler == "grid" and ranges:
        raise CourseError(f"A grid needs a list of choices, not a range, for {', '.join(ranges)}.")
    if not space or {"alpha", PER_RANK} <= set(space):
        raise CourseError(f"The space must name a field to try, and not both alpha and {PER_RANK}.")


def _distribution(field: str, options: Any) -> optuna.distributions.BaseDistribution:
    """What may be proposed for a field."""
    if field in FIXED:
        raise CourseError(f"{field} cannot be searched: {FIXED[field]}.")
    if field not in KINDS:
        recipes.from_dict({field: None})  # raises, with the name that was meant
    if isinstance(options, list) and 0 < len(options) == len(set(map(_label, options))):
        return CategoricalDistribution([_label(option) for option in options])
    make = RANGES.get(KINDS[field].removesuffix(" | None"))
    if make and isinstance(options, tuple) and options[2:] in ((), ("log",)):
        with contextlib.suppress(TypeError, ValueError):  # Optuna's, for ends that are no range
            return make(*options[:2], log=len(options) == 3)
    raise CourseError(
        f"The space of {field} is {options!r}: give a list of different choices or, for a number, "
        'a range (low, high) or (low, high, "log").'
    )


def _label(value: Any) -> Any:
    """A choice as Optuna can store it: names of layers as one text."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _encoded(rows: Rows, base: Recipe) -> Encoded:
    if isinstance(rows, Encoded):
        return rows
    return encode(rows, models.load_tokenizer(base.model), max_length=base.max_length)


def _fingerprint(rows: Encoded) -> str:
    return hashlib.sha256(json.dumps(rows.rows).encode()).hexdigest()[:16]


def _is_locked(path: Path) -> bool:
    """Whether a process holds this file locked; else the file is removed."""
    try:
        with FileLock(path, timeout=0):
            pass
    except Timeout:
        return True
    path.unlink(missing_ok=True)
    return False
