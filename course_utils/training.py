"""Run a recipe on encoded data with transformers' Trainer and PEFT."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    set_seed,
)

from . import compat, models, recipes
from .checkpoints import check_rows, checkpoints
from .damage import with_adapter
from .data import Conversation
from .encoding import Encoded, encode, packed
from .errors import CourseError
from .loop import AnswerTrainer, Panel
from .memory import MemoryMeter, device_name
from .oom import RanOutOfMemory, is_out_of_memory, let_go
from .precision import DTYPES, choose_precision
from .processes import processes, weights_are_shared, whole_weights
from .recipes import Recipe
from .report import RunReport, load_report, versions

MAY_CHANGE = (
    "evaluate_every", "save_every", "early_stopping", "checkpointing", "offload", "fast", "kernels",
)  # fmt: skip  # between a run and its resumption
Rows = Sequence[Conversation] | Encoded


@dataclass
class Run:
    """A finished run: the tuned model (in eval mode), its tokenizer and its report."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    report: RunReport
    recipe: Recipe

    def save(self, folder: str | Path) -> Path:
        """Write adapter or model (safetensors), tokenizer, recipe.yaml and report.json."""
        return save(self, folder)


def run(
    recipe: Recipe,
    train: Rows,
    validation: Rows | None = None,
    *,
    model: PreTrainedModel | PeftModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    output_dir: str | Path | None = None,
    panel: Panel | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: str | Path | None = None,
) -> Run:
    """Fine-tune as `recipe` says and return the tuned model with a report.

    train, validation: conversations, or rows that `encoding.encode` made.
    model, tokenizer: instead of loading `recipe.model`; a PEFT model is trained on.
    output_dir: for checkpoints (default `runs/<time>-<method>`).
    callbacks: transformers' own, for what a run should do besides.
    resume: a checkpoint folder of an earlier run of the same recipe and data; goes on there.
    Interrupting (Ctrl-C, or Jupyter's stop button) ends after the step and keeps a checkpoint.
    Raises CourseError when nothing could be learnt: no gradient, a NaN loss, an untouched adapter;
    RanOutOfMemory, with a checkpoint of the last finished step (`budget.run_within` goes on).
    """
    place = models.device() if model is None else next(model.parameters()).device
    if model is not None:  # so that `load` finds the same base
        recipe = recipe.replace(model=models.source_of(model) or recipe.model)
    if output_dir is not None:
        _check_folder(Path(output_dir).expanduser(), recipe)
    if resume is not None:
        _check_resumable(Path(resume), recipe)
    meter = MemoryMeter(place, empty=model is None)
    precision, why = choose_precision(recipe, place)
    tokenizer = tokenizer or models.load_tokenizer(recipe.model)
    train = _encoded(train, tokenizer, recipe)
    if resume is not None:
        check_rows(Path(resume), train.fingerprint())
    validation = None if validation is None else _encoded(validation, tokenizer, recipe)
    _check_looks(recipe, validation)
    set_seed(recipe.seed)
    with meter.phase("load"):
        model = _ready(recipe, model, precision, place, resume)
    for rows in filter(None, (train, validation)):
        _check_fit(model, rows)
    report = _new_report(recipe, model, train, place, f"{precision} ({why})")
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.method}"
    folder = Path(output_dir or Path("runs") / processes().same(name)).expanduser()
    report.output_dir = str(folder)
    report.notes += meter.notes
    if resume is None and checkpoints(folder):
        report.notes.append(
            f"{folder} holds checkpoints of an earlier run too: they stay, but for equal steps"
        )
    trainer = AnswerTrainer(
        recipe, model, tokenizer, train, validation, folder, meter, report, precision, panel
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        trainer.fit(str(resume) if resume else None)
    finally:
        if trainer.best:
            trainer.best.forget()
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it stayed empty
        report.memory = meter.report()
    return Run(model.eval(), tokenizer, report, recipe)


def run_and_save(
    recipe: Recipe, train: Rows, folder: str | Path, validation: Rows | None = None
) -> None:
    """`run`, and `save` to `folder`: for processes whose results nobody gets.

    `accelerate.notebook_launcher(training.run_and_save, (recipe, rows, folder), num_processes=2)`
    trains on two GPUs from a notebook, and `load(folder)` brings the model into it.
    """
    save(run(recipe, train, validation, output_dir=folder), folder)


def _encoded(rows: Rows, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encoded:
    if not isinstance(rows, Encoded):
        rows = encode(rows, tokenizer, max_length=recipe.max_length)
    if rows.report.longest > recipe.max_length:
        raise CourseError(
            f"The rows were encoded with up to {rows.report.longest} tokens and the recipe says "
            f"max_length={recipe.max_length}: encode them with that length, or raise the recipe's."
        )
    return packed(rows, recipe.pack_length or recipe.max_length) if recipe.packing else rows


def _check_looks(recipe: Recipe, validation: Encoded | None) -> None:
    """Whether early stopping has something to look at, and weights to keep."""
    if recipe.early_stopping and weights_are_shared():
        raise CourseError(
            "early_stopping keeps the best weights, which no process holds where they are shared "
            "out (FSDP): leave it out, or launch with DDP."
        )
    if recipe.early_stopping and validation is None:
        raise CourseError(
            "early_stopping ends a run by its held-out loss, and there are no held-out rows: give "
            "validation rows that are not trained on (chapter 10, 'overfitting')."
        )


def _check_folder(folder: Path, recipe: Recipe) -> None:
    """Whether a run can write there, and may: over no model but an earlier run's."""
    if folder.exists() and not folder.is_dir():
        raise CourseError(f"{folder} is a file: give a folder to write to.")
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise CourseError(
            f"{there} cannot be written to ({error.strerror}): give another folder, or mend its "
            "rights."
        ) from error
    base = Path(recipe.model).expanduser()
    if base.is_dir() and folder.is_dir() and base.samefile(folder):
        raise CourseError(
            f"{folder} holds the model that this training starts from: give another folder."
        )
    models_there = ("config.json", "adapter_config.json", "model*.safetensors")
    ours = (folder / "recipe.yaml").is_file()
    if not ours and any(any(folder.glob(name)) for name in models_there):
        raise CourseError(
            f"{folder} holds a model that no run of this course saved, and it would be written "
            "over: give another folder."
        )


def _check_fit(model: nn.Module, rows: Encoded) -> None:
    """Whether this model can read these rows as they are."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most and rows.report.longest > most:
        raise CourseError(
            f"The longest row has {rows.report.longest} tokens and this model reads at most "
            f"{most}: set max_length={most} or less."
        )
    if "position_ids" in rows[0]:
        check_packing(model)


def _check_resumable(folder: Path, recipe: Recipe) -> None:
    """Whether `folder` is a checkpoint of a run of this recipe."""
    if not (folder / "trainer_state.json").is_file():
        raise CourseError(
            f"{folder} is no checkpoint to go on from: give a folder such as "
            "runs/NAME/checkpoint-100, which save_every or an interrupted run leaves."
        )
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"{folder} was not written to its end: go on from an earlier checkpoint, or start anew."
        ) from error
    if not (folder / "recipe.yaml").is_file():
        return
    old = recipe_of(folder)
    then, now, free = old.to_dict(), recipe.to_dict(), MAY_CHANGE
    if old.effective_batch == recipe.effective_batch:
        free += ("batch_size", "gradient_accumulation")  # the same rows in each update
    changed = [n for n in now if now[n] != then[n] and n not in free]
    if changed:
        raise CourseError(
            f"{folder} is of a run with another {', '.join(changed)}: go on with its own recipe "
            f"(training.recipe_of({folder.as_posix()!r})), or start anew without resume."
        )


def _ready(
    recipe: Recipe,
    model: PreTrainedModel | PeftModel | None,
    precision: str,
    place: torch.device,
    resume: str | Path | None,
) -> PreTrainedModel | PeftModel:
    """The model of the recipe, or the one given, with what is to be trained in it."""
    try:
        model = model if model is not None else _load_base(recipe, precision, place)
        return prepare(model, recipe)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = let_go(error, place)
    raise RanOutOfMemory(recipe, said, checkpoint=Path(resume) if resume else None)


def _load_base(recipe: Recipe, precision: str, place: torch.device) -> PreTrainedModel:
    # Weights that are trained stay in fp32 (autocast computes in `precision`): an update of
    # 1e-5 would vanish in bf16's 8 bits.  Frozen weights lose nothing by being held short.
    dtype = _trained_in(recipe) if recipe.method == "full" else DTYPES[precision]
    quantize, shared = recipe.method == "qlora", weights_are_shared()
    if shared and not quantize:  # whole on no GPU: FSDP moves each process's part there
        place = torch.device("cpu")
    return models.load(
        recipe.model, dtype=dtype, quantize=quantize, storage=dtype if shared else None, on=place
    )


def _trained_in(recipe: Recipe) -> torch.dtype:
    """The precision that full fine-tuning holds weights, gradients and optimizer states in."""
    return torch.bfloat16 if recipe.base_precision == "bf16" else torch.float32


def prepare(model: PreTrainedModel | PeftModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    """Choose what trains: every weight, or a new adapter on the frozen base (PEFT).

    For QLoRA nothing is cast up to fp32: `prepare_model_for_kbit_training` would hold the
    embeddings in fp32 as well and change no result.
    """
    models.keep_4bit_trainable(model)
    _check_base(model, recipe)
    if recipe.checkpointing:
        compat.enable_checkpointing(model, int(recipe.checkpointing))
    if isinstance(model, PeftModel):
        return model
    if recipe.method == "full":
        return model.to(_trained_in(recipe)).requires_grad_(True)  # see _load_base
    model.requires_grad_(False)
    targets = models.target_layers(model, recipe.targets)
    conv1d = any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in targets)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        use_rslora=recipe.rslora,
        target_modules=targets,  # full names: a short one might be the output layer's too
        fan_in_fan_out=conv1d,  # GPT-2's Conv1D holds its weight transposed
    )
    return get_peft_model(model, config)


def _check_base(model: PreTrainedModel | PeftModel, recipe: Recipe) -> None:
    """Whether a model that was given is what the recipe speaks of."""
    adapted = isinstance(model, PeftModel)
    if not adapted and any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise CourseError(
            "This model carries the adapter of an earlier run, which was put into it: load the "
            "base again (models.load), or go on with the earlier run's own model (run.model)."
        )
    base = model.get_base_model() if adapted else model
    four_bit = bool(getattr(base, "is_loaded_in_4bit", False))
    if recipe.method == "full" and four_bit:
        raise CourseError("A model held in 4 bits cannot be trained in full: use 'qlora'.")
    if recipe.method != "full" and four_bit != (recipe.method == "qlora"):
        raise CourseError(
            f"The method is {recipe.method!r}, and the model given is {'' if four_bit else 'not '}"
            f"in 4 bits: load it with quantize={not four_bit}, or use "
            f"{'qlora' if four_bit else 'lora'!r}."
        )


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Raise CourseError unless this model keeps rows that share a sequence apart.

    Tried with one row behind two different ones: what it says may not depend on those.  Models
    that know no position ids (ALiBi, state spaces) would read the rows before.
    """
    place, was_training = next(model.parameters()).device, model.training
    first, second = torch.arange(1, 9).view(2, 4), torch.tensor([[9, 10, 11, 12]] * 2)
    tokens = torch.cat([first, second], dim=1).to(place)
    positions = torch.arange(4, device=place).repeat(2, 2)
    model.eval()
    try:
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits[:, 4:]
        apart = torch.allclose(logits[0].float(), logits[1].float(), rtol=1e-3, atol=1e-3)
    except TypeError:  # no such argument
        apart = False
    finally:
        model.train(was_training)
    if not apart:
        raise CourseError(
            f"{type(model).__name__} does not keep packed rows apart, so each would read the rows "
            "before it: set packing=False."
        )


# ---------------------------------------------------------------- report, save, load


def _new_report(
    recipe: Recipe, model: nn.Module, train: Encoded, place: torch.device, precision: str
) -> RunReport:
    trainable, total = models.count_parameters(model)
    return RunReport(
        recipe=recipe.to_dict(),
        device=device_name(place),
        precision=precision,
        trainable_parameters=trainable,
        total_parameters=total,
        rows=train.report.rows,
        truncated=train.report.truncated,
        versions=versions(),
    )


def save(run: Run, folder: str | Path) -> Path:
    """Write adapter or model (safetensors), tokenizer, recipe.yaml and report.json to `folder`.

    In a training of several processes each calls this, and the main one writes.  Raises CourseError
    for a folder that holds the base model, or one that no run saved.
    """
    folder = Path(folder).expanduser()
    whole = whole_weights(run.model)
    if not processes().main:  # it may be writing already, which is no model of somebody else
        return folder
    _check_folder(folder, run.recipe)
    folder.mkdir(parents=True, exist_ok=True)
    adapted, card = isinstance(run.model, PeftModel), folder / "README.md"
    written = card.read_bytes() if card.is_file() else None
    if adapted:
        # The embedded model's folder is a path of this machine: name its home on the Hub.
        name, base = models.HUB_NAMES.get(run.recipe.model), run.model.get_base_model()
        config = run.model.peft_config["default"]
        config.base_model_name_or_path = name or run.recipe.model
        base.config._name_or_path = base.name_or_path = name or base.name_or_path
    with compat.without_progress_bars():
        # "auto" would ask the Hub for the base's config, to see whether its vocabulary has grown
        options = {"save_embedding_layers": False} if adapted else {}
        if whole is not None:  # weights that were shared out
            options["state_dict"] = whole
        run.model.save_pretrained(folder, **options)
    _remove_other_kind(folder, adapted)  # only now: nothing is lost where writing fails
    if adapted:  # PEFT writes a form with nothing filled in, which nobody should publish
        card.unlink(missing_ok=True)
        if written is not None:
            card.write_bytes(written)
    run.tokenizer.save_pretrained(folder)
    run.recipe.save(folder / "recipe.yaml")
    run.report.save(folder / "report.json")
    return folder


def _remove_other_kind(folder: Path, adapted: bool) -> None:
    """Remove what an earlier run of the other kind saved here: it would be read with this one's."""
    if not (folder / "recipe.yaml").is_file():  # no run's folder: nothing in it is ours
        return
    whole = ("model*.safetensors*", "config.json", "generation_config.json")
    for pattern in whole if adapted else ("adapter_*",):
        for old in folder.glob(pattern):
            old.unlink()


def newest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint with the most steps, of the newest run in a folder."""
    found = checkpoints(folder)
    if not found:
        raise CourseError(
            f"{folder} holds no checkpoint to go on from: set save_every in the recipe, or "
            "interrupt a run once, and one is kept there (chapter 10, 'resume restarts')."
        )
    return found[-1]


def recipe_of(folder: str | Path) -> Recipe:
    """The recipe that a checkpoint or a saved run was made with."""
    return recipes.load(Path(folder) / "recipe.yaml")


def report_of(folder: str | Path) -> RunReport | None:
    """The report of a saved run, if it has one."""
    path = Path(folder) / "report.json"
    return load_report(path) if path.is_file() else None


def computed_in(folder: str | Path) -> torch.dtype | None:
    """The precision that a saved run computed in; None where its report is missing."""
    report = report_of(folder)
    return DTYPES.get(report.precision.split()[0]) if report and report.precision else None


def load(folder: str | Path) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, Recipe]:
    """(model, tokenizer, recipe) that `save` wrote; an adapter comes on its base model.

    Raises CourseError for a folder that no run saved, or whose files are missing or damaged.
    """
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise CourseError(f"{folder} holds no run saved by this course: recipe.yaml is missing.")
    recipe = recipes.load(folder / "recipe.yaml")
    tokenizer = models.load_tokenizer(folder)
    place = models.device()
    precision = "fp32" if recipe.precision == "fp16" and place.type == "cpu" else None
    precision = precision or choose_precision(recipe, place)[0]
    if not (folder / "adapter_config.json").is_file():
        return models.load(folder), tokenizer, recipe
    base = _load_base(recipe, precision, place)
    return with_adapter(base, folder).eval(), tokenizer, recipe
