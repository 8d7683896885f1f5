"""A run that must fit: held to a budget of memory, and made smaller where it does not fit.

`memory.plan` chooses a recipe by calculation; what is here sees a run through when the calculation
was wrong, or the card is shared: it goes on from the last finished step with a smaller recipe.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from . import models, training
from .encoding import Encoded
from .errors import CourseError
from .memory import limited_memory
from .memory.plan import Plan, plan_recipe
from .memory.shapes import shape_of
from .oom import RanOutOfMemory, let_go
from .recipes import Recipe
from .training import Rows, Run


def fitted(
    recipe: Recipe,
    budget_gib: float,
    rows: Encoded | None = None,
    *,
    methods: Sequence[str] | None = None,
    fixed: Sequence[str] = (),
) -> tuple[Recipe, str]:
    """(the recipe as it fits the budget, a sentence on what was chosen).

    Rows per update and all that the result depends on stay, but for the method where `methods`
    allows others: see `memory.plan.plan_recipe`.  On the CPU the budget is of resident memory.
    A model whose memory cannot be calculated keeps its recipe.
    Raises CourseError where nothing fits, with what would.
    """
    place = models.device()
    try:
        shape = shape_of(recipe.model)
    except CourseError as error:
        return recipe, f"not planned for {budget_gib:g} GiB: {error}"
    lengths = [len(row["input_ids"]) for row in rows] if rows and not recipe.packing else None
    found = plan_recipe(
        recipe, budget_gib, model=shape, lengths=lengths, methods=methods, fixed=fixed,
        device=place.type,
    )  # fmt: skip
    if found.best is None:
        raise CourseError(_too_little(found))
    said = f"chosen for {budget_gib:g} GiB: {found.best}"
    if place.type == "cpu":
        said += " of resident memory, by calculation alone: the CPU's memory cannot be capped"
    return found.best.recipe, said


def _too_little(found: Plan) -> str:
    least = f"{found.smallest}" if found.smallest else "more"
    instead = " Instead: " + "; or ".join(c.traded[0] for c in found.nearest) + "."
    return (
        f"{found.vram_gib:g} GiB are too little for this training of {found.model}, which takes at "
        f"least {least}." + (instead if found.nearest else "")
    )


def run_within(
    recipe: Recipe,
    train: Rows,
    validation: Rows | None = None,
    *,
    budget_gib: float | None = None,
    allow_qlora: bool = False,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    **options: Any,
) -> Run:
    """`training.run` that steps down where memory runs out, and loses no finished step.

    In turn: smaller micro-batches with more accumulation, checkpointing with offload, and, where
    `allow_qlora`, a base in 4 bits.  Rows per update stay the same, and so do the updates, but for
    rounding; for a base in 4 bits they differ.  The report's notes say what was changed.
    budget_gib: GiB that this process may hold on the GPU meanwhile, as on a card of that size; None
    for all there is.  The CPU's memory cannot be capped: there a budget is no limit, and what is
    met is the machine's own.
    options: `tokenizer`, `panel` and `callbacks`, as `training.run` takes them; `model` it must
    load itself, so that a failed attempt is freed entirely.
    Raises RanOutOfMemory where nothing smaller is left.
    """
    place = models.device()
    folder = Path(output_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.method}")
    failed: list[RanOutOfMemory] = []
    given = Path(resume) if resume is not None else None
    cap = limited_memory(budget_gib, place) if place.type == "cuda" else contextlib.nullcontext()
    with cap:
        while True:
            run = _attempt(recipe, train, validation, failed, folder, resume, place, options)
            if run is not None:
                return _finished(run, failed, given)
            end = failed[-1]
            ours = end.checkpoint is None or end.checkpoint != given  # may say another method
            following = smaller(
                recipe, allow_qlora=allow_qlora and ours, loading=end.report is None, device=place
            )
            if following is None or end.torn:
                raise end
            recipe, resume = following, end.checkpoint
            if resume not in (None, given):
                recipe.save(resume / "recipe.yaml")  # which goes on from there, also another day


def _attempt(
    recipe: Recipe,
    train: Rows,
    validation: Rows | None,
    failed: list[RanOutOfMemory],
    folder: Path,
    resume: str | Path | None,
    place: torch.device,
    options: dict[str, Any],
) -> Run | None:
    """The finished run, or None after memory ran out (added to `failed`, all else freed)."""
    try:
        return training.run(recipe, train, validation, output_dir=folder, resume=resume, **options)
    except RanOutOfMemory as error:
        let_go(error, place)
        error.__context__ = None
        failed.append(error.with_traceback(None))
    return None


def smaller(
    recipe: Recipe,
    *,
    allow_qlora: bool = False,
    loading: bool = False,
    device: torch.device | str = "cuda",
) -> Recipe | None:
    """The next recipe to try when this one ran out of memory; None where there is none.

    loading: whether the model itself found no room, so that smaller batches cannot help.
    """
    if not loading:
        if recipe.batch_size > 1:
            return with_batch(recipe, recipe.batch_size // 2)
        fast = recipe.fast and recipe.method != "full" and recipe.dropout == 0
        offload = fast and torch.device(device).type == "cuda"
        if recipe.checkpointing != 1 or (offload and not recipe.offload):
            return recipe.replace(checkpointing=True, offload=offload or recipe.offload)
    if allow_qlora and recipe.method == "lora":
        return recipe.replace(method="qlora", base_precision="auto")
    return None


def with_batch(recipe: Recipe, most: int) -> Recipe:
    """The recipe in micro-batches of at most `most` rows, with the same rows per update."""
    rows = recipe.effective_batch
    batch = max(size for size in range(1, most + 1) if rows % size == 0)
    return recipe.replace(batch_size=batch, gradient_accumulation=rows // batch)


def _finished(run: Run, failed: Sequence[RanOutOfMemory], given: Path | None) -> Run:
    """The run with the failed attempts' share in its report, and their checkpoints removed.

    given: the checkpoint that the first of them went on from, which stays.
    """
    recipes = [error.recipe for error in failed[1:]] + [run.recipe]
    for error, following in zip(failed, recipes, strict=False):  # none failed: no pair
        run.report.notes.append(_note(error, following))
        if error.checkpoint not in (None, given) and not run.recipe.save_every:
            shutil.rmtree(error.checkpoint, ignore_errors=True)
            with contextlib.suppress(OSError):
                error.checkpoint.parent.rmdir()  # only where it stayed empty
    for error in failed:
        if error.report is not None and error.checkpoint is None:  # else it is counted there
            run.report.seconds += error.report.seconds
    return run


def _note(error: RanOutOfMemory, following: Recipe) -> str:
    old, new = error.recipe.to_dict(), following.to_dict()
    changes = ", ".join(f"{name}={new[name]!r}" for name in new if new[name] != old[name])
    when = f"after step {error.report.steps}" if error.report else "while loading"
    return (
        f"memory ran out {when} with batch_size={error.recipe.batch_size}: went on from there with "
        f"{changes}"
    )
