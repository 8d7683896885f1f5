"""Run a recipe on encoded data with transformers' Trainer and PEFT."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)

from . import compat, fast, fp8, models, recipes
from .data import Conversation
from .encoding import IGNORE, Collator, Encoded, batches, count_tokens, encode, packed
from .errors import CourseError
from .loss import answers_only, mean_loss
from .memory import MemoryMeter, current_gib, device_name
from .recipes import Recipe
from .report import RunReport, load_report, versions

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HUB_NAMES = {models.EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}
MAY_CHANGE = (
    "evaluate_every", "save_every", "checkpointing", "offload", "fast", "kernels",
)  # fmt: skip  # between a run and its resumption
Rows = Sequence[Conversation] | Encoded


class Panel(Protocol):
    """What `run` tells about its progress; `display.LivePanel` draws it."""

    def start(self, total_steps: int) -> None: ...

    def update(self, step: int, **figures: Any) -> None: ...

    def finish(self, message: str = "") -> None: ...


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
    Raises CourseError when nothing could be learnt: no gradient, a NaN loss, an untouched adapter.
    """
    place = models.device() if model is None else next(model.parameters()).device
    if resume is not None:
        _check_resumable(Path(resume), recipe)
    meter = MemoryMeter(place)
    precision, why = choose_precision(recipe, place)
    tokenizer = tokenizer or models.load_tokenizer(recipe.model)
    train = _encoded(train, tokenizer, recipe)
    validation = None if validation is None else _encoded(validation, tokenizer, recipe)
    set_seed(recipe.seed)
    with meter.phase("load"):
        model = model if model is not None else _load_base(recipe, precision, place)
        model = prepare(model, recipe)
    _check_fit(model, train)
    report = _new_report(recipe, model, train, place, f"{precision} ({why})")
    folder = Path(output_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{recipe.method}")
    report.output_dir = str(folder)
    trainer = _AnswerTrainer(
        recipe, model, tokenizer, train, validation, folder, meter, report, precision, panel
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    try:
        trainer.fit(str(resume) if resume else None)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where it stayed empty
    report.memory = meter.report()
    return Run(model.eval(), tokenizer, report, recipe)


def _encoded(rows: Rows, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> Encoded:
    if not isinstance(rows, Encoded):
        rows = encode(rows, tokenizer, max_length=recipe.max_length)
    if rows.report.longest > recipe.max_length:
        raise CourseError(
            f"The rows were encoded with up to {rows.report.longest} tokens and the recipe says "
            f"max_length={recipe.max_length}: encode them with that length, or raise the recipe's."
        )
    return packed(rows, recipe.pack_length or recipe.max_length) if recipe.packing else rows


def _check_fit(model: nn.Module, train: Encoded) -> None:
    """Whether this model can read these rows as they are."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most and train.report.longest > most:
        raise CourseError(
            f"The longest row has {train.report.longest} tokens and this model reads at most "
            f"{most}: set max_length={most} or less."
        )
    if "position_ids" in train[0]:
        check_packing(model)


def _check_resumable(folder: Path, recipe: Recipe) -> None:
    """Whether `folder` is a checkpoint of a run of this recipe."""
    if not (folder / "trainer_state.json").is_file():
        raise CourseError(
            f"{folder} is no checkpoint to go on from: give a folder such as "
            "runs/NAME/checkpoint-100, which save_every or an interrupted run leaves."
        )
    if not (folder / "recipe.yaml").is_file():
        return
    then, now = recipe_of(folder).to_dict(), recipe.to_dict()
    changed = [n for n in now if now[n] != then[n] and n not in MAY_CHANGE]
    if changed:
        raise CourseError(
            f"{folder} is of a run with another {', '.join(changed)}: go on with its own recipe "
            f"(training.recipe_of({folder.as_posix()!r})), or start anew without resume."
        )


def _load_base(recipe: Recipe, precision: str, place: torch.device) -> PreTrainedModel:
    # Weights that are trained stay in fp32 (autocast computes in `precision`): an update of
    # 1e-5 would vanish in bf16's 8 bits.  Frozen weights lose nothing by being held short.
    dtype = torch.float32 if recipe.method == "full" else DTYPES[precision]
    return models.load(recipe.model, dtype=dtype, quantize=recipe.method == "qlora", on=place)


def prepare(model: PreTrainedModel | PeftModel, recipe: Recipe) -> PreTrainedModel | PeftModel:
    """Choose what trains: every weight, or a new adapter on the frozen base (PEFT).

    For QLoRA nothing is cast up to fp32: `prepare_model_for_kbit_training` would hold the
    embeddings in fp32 as well and change no result.
    """
    models.keep_4bit_trainable(model)
    if recipe.checkpointing:
        compat.enable_checkpointing(model)
    if isinstance(model, PeftModel):
        return model
    if recipe.method == "full":
        if getattr(model, "is_loaded_in_4bit", False):
            raise CourseError("A model held in 4 bits cannot be trained in full: use 'qlora'.")
        return model.float().requires_grad_(True)  # see _load_base
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


# ------------------------------------------------------------------------------- precision


def choose_precision(recipe: Recipe, place: torch.device) -> tuple[str, str]:
    """(precision, why): the recipe's own, or the faster one here by a short timing."""
    if recipe.precision == "fp16" and place.type == "cpu":
        raise CourseError("fp16 training needs a GPU: on a CPU use precision='auto' or 'fp32'.")
    if recipe.precision != "auto":
        return recipe.precision, "as the recipe says"
    if place.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16", "this GPU has no bf16"
    gain = _bf16_gain(str(place))
    return ("bf16" if gain > 1.1 else "fp32"), f"bf16 runs at {gain:.1f}x the speed of fp32 here"


@functools.cache
def _bf16_gain(place: str) -> float:
    """How many times faster a linear layer's forward and backward run in bf16 than in fp32."""
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    # Other programs on the machine only ever add time, and most where threads wait for each other:
    # so the best of several, in turn, on one thread.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(8):
            for dtype, best in seconds.items():
                seconds[dtype] = min(best, _linear_seconds(place, dtype))
    finally:
        torch.set_num_threads(threads)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _linear_seconds(place: str, dtype: torch.dtype) -> float:
    """Time of one forward and backward through a linear layer of the embedded model's size."""
    layer = nn.Linear(576, 1536, bias=False, device=place, dtype=dtype)
    inputs = torch.randn(512, 576, device=place, dtype=dtype, requires_grad=True)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    layer(inputs).sum().backward()
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def autocast_for(precision: str, place: torch.device) -> Callable[[], Any]:
    """A context manager factory that computes in `precision` on `place`."""
    if precision == "fp32":
        return contextlib.nullcontext
    return functools.partial(torch.autocast, place.type, DTYPES[precision])


# ---------------------------------------------------------------------------- the Trainer


class _AnswerTrainer(Trainer):
    """transformers' Trainer with our loss, precision, warm-up, measuring and safety checks."""

    def __init__(
        self, recipe, model, tokenizer, train, validation, folder, meter, report, precision, panel
    ) -> None:
        place = next(model.parameters()).device
        self.keeps_cache = getattr(model.config, "use_cache", None)  # the Trainer switches it off
        super().__init__(
            model=model,
            args=_arguments(recipe, folder, place, precision),
            train_dataset=train,
            data_collator=Collator(tokenizer.pad_token_id or 0),
        )
        self.recipe, self.meter, self.report, self.panel = recipe, meter, report, panel
        self.precision, self.autocast = precision, autocast_for(precision, place)
        pad = tokenizer.pad_token_id or 0
        self.validation = batches(validation, recipe.batch_size, pad) if validation else None
        self.model_accepts_loss_kwargs = True  # our forward divides by the whole batch's labels
        self.interrupted = False
        self.remove_callback(PrinterCallback)
        self.add_callback(_Watch(self))

    def fit(self, resume: str | None) -> None:
        """Train, with everything that was switched on for it switched off again after."""
        casting = disable_input_dtype_casting(self.model) if self._adapts() else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(answers_only(self.model))
            stack.enter_context(self._fast_layers())
            stack.enter_context(_stop_on_interrupt(self))
            if casting is not None and self.autocast is not contextlib.nullcontext:
                stack.enter_context(casting)  # autocast casts; PEFT need not do it again
            if self.recipe.checkpointing:
                stack.callback(compat.disable_checkpointing, self.model)
            try:
                self.train(resume_from_checkpoint=resume)
            except BaseException as error:
                self.report.stopped = f"stopped by {type(error).__name__}"
                raise
            finally:
                if self.keeps_cache is not None:
                    self.model.config.use_cache = self.keeps_cache
                if self.panel:
                    self.panel.finish(self._last_word())

    def _fast_layers(self) -> Any:
        """The decoder layers made fast, where the recipe wants it and this model allows it."""
        recipe = self.recipe
        if recipe.method == "full" or not recipe.fast:
            return contextlib.nullcontext()
        place = next(self.model.parameters()).device
        if recipe.base_precision == "fp8" and not fp8.native(place):
            self.report.notes.append("no fp8 units here: the same numbers by fp32, and slower")
        if recipe.kernels and place.type == "cuda" and not compat.has_triton():
            self.report.notes.append("no Triton here: the steps between products are slower")
        reason = fast.why_not(self.model, longest=self.train_dataset.report.longest)
        if reason and recipe.base_precision == "fp8":
            raise CourseError(f"base_precision='fp8' needs the fast layers, and {reason}.")
        if reason:
            self.report.notes.append(f"stock layers, slower: {reason}")
            return contextlib.nullcontext()
        return fast.fast_layers(
            self.model,
            dtype=DTYPES[self.precision],
            base_precision=recipe.base_precision,
            checkpointing=recipe.checkpointing,
            offload=recipe.offload,
            kernels=recipe.kernels,
        )

    def _last_word(self) -> str:
        """How the run ended; after an interruption, how to go on."""
        return (
            self.report.notes[-1] if self.interrupted and self.report.notes else self.report.stopped
        )

    def _adapts(self) -> bool:
        return isinstance(self.model, PeftModel)

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The forward pass, in the chosen precision, with its memory attributed."""
        if model.training:
            self._count(inputs)
        self.meter.mark("forward")
        with self.autocast():
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and not loss.requires_grad:
            raise CourseError(
                "The loss has no gradient: nothing in this model is set to train. Check that the "
                "adapter was added and is not frozen (chapter 10, 'gradients that do not arrive')."
            )
        self.meter.mark("backward")
        return loss

    def _count(self, inputs: dict[str, torch.Tensor]) -> None:
        self.report.tokens += count_tokens(inputs)
        self.report.answer_tokens += int((inputs["labels"] != IGNORE).sum())

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Linear warm-up from the first step on, then the recipe's schedule down to 0.

        transformers' own warm-up starts at a learning rate of 0: a first step that does nothing.
        """
        if self.lr_scheduler is None:
            warm = math.ceil(self.recipe.warmup * num_training_steps)
            factor = functools.partial(
                learning_rate_factor, total=num_training_steps, warmup=warm,
                schedule=self.recipe.schedule,
            )  # fmt: skip
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def evaluate_now(self) -> float | None:
        """Held-out loss at this step, noted in the report; its time is not training time."""
        if self.validation is None:
            return None
        self.meter.mark(None)
        value = mean_loss(self.model, self.validation, autocast=self.autocast)
        self.report.validation_losses.append((self.state.global_step, round(value, 5)))
        return value


def learning_rate_factor(step: int, *, total: int, warmup: int, schedule: str) -> float:
    """The share of the peak learning rate at `step` (from 0) of `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 - done if schedule == "linear" else 1.0


def _arguments(recipe: Recipe, folder: Path, place: torch.device, precision: str):
    arguments = compat.training_arguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=OPTIMIZERS[recipe.optimizer],
        train_sampling_strategy="group_by_length" if recipe.group_by_length else None,
        fp16=precision == "fp16",
        use_cpu=place.type == "cpu",
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN loss is logged as a good one
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or 500,
        save_total_limit=2,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=place.type == "cuda",
        disable_tqdm=True,
        report_to="none",
    )
    if arguments.n_gpu > 1:  # one process drives one GPU; several are launched, not threaded
        arguments._n_gpu = 1
    return arguments


class _Watch(TrainerCallback):
    """Follows a run: fills the report, feeds the panel, stops what cannot learn."""

    def __init__(self, trainer: _AnswerTrainer) -> None:
        self.trainer, self.report = trainer, trainer.report
        self.panel, self.meter = trainer.panel, trainer.meter
        self._since = 0.0
        self._unproven = True  # until the first step has been seen to change something

    def on_train_begin(self, args, state, control, **kwargs):
        if self.panel:
            self.panel.start(state.max_steps)
        self.report.losses = [_curve_point(e) for e in state.log_history if "loss" in e]
        self._validate(state)
        self._since = time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.meter.mark("step")
        if self._unproven:
            _check_gradients(self.trainer.model)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.meter.mark(None)

    def on_step_end(self, args, state, control, **kwargs):
        self.report.steps = state.global_step
        if self._unproven and not self.trainer.accelerator.optimizer_step_was_skipped:
            _check_adapter_moved(self.trainer.model)
            self._unproven = False  # an fp16 scaler skips steps while it looks for its scale
        if self.trainer.interrupted and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.report.stopped = "interrupted"
        every = self.trainer.recipe.evaluate_every
        last = state.global_step >= state.max_steps
        if (every and state.global_step % every == 0) or last:
            self._pause(self._validate, state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        point = _curve_point({**logs, "step": state.global_step})
        if not math.isfinite(point["loss"]):
            raise CourseError(
                f"The loss became {point['loss']} at step {state.global_step}: lower the learning "
                "rate, use bf16 or fp32 instead of fp16, or look for broken rows (chapter 10)."
            )
        self.report.losses.append(point)
        self._show(state, loss=point["loss"])

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.trainer.recipe.save(folder / "recipe.yaml")
        if self.report.stopped == "interrupted":
            self.report.notes.append(
                f"interrupted after step {state.global_step} of {state.max_steps}; to go on: "
                f"training.run(recipe, train, resume={folder.as_posix()!r})"
            )

    def on_train_end(self, args, state, control, **kwargs):
        self.report.seconds += time.perf_counter() - self._since

    def _pause(self, work, *arguments) -> None:
        self.report.seconds += time.perf_counter() - self._since
        work(*arguments)
        self._since = time.perf_counter()

    def _validate(self, state) -> None:
        value = self.trainer.evaluate_now()
        if value is not None:
            self._show(state, validation_loss=value)

    def _show(self, state, **figures) -> None:
        if not self.panel:
            return
        seconds = self.report.seconds + time.perf_counter() - self._since
        if state.global_step:
            figures["tokens_per_second"] = self.report.tokens / max(seconds, 1e-9)
        self.panel.update(state.global_step, memory_gib=current_gib(self.meter.device), **figures)


def _curve_point(entry: dict[str, Any]) -> dict[str, float]:
    point = {name: float(entry[name]) for name in ("step", "loss")}
    more = {n: float(entry[n]) for n in ("learning_rate", "grad_norm") if entry.get(n) is not None}
    return point | {name: value for name, value in more.items() if math.isfinite(value)}


def _check_gradients(model: nn.Module) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    if not any(p.grad is not None and bool(p.grad.any()) for p in trained):
        raise CourseError(
            "No gradient reached any trainable weight in the first step: check that the labels "
            "are not all masked and that checkpointing is non-reentrant (chapter 10)."
        )


def _check_adapter_moved(model: nn.Module) -> None:
    """An adapter starts with B = 0; after one step B must have moved somewhere."""
    b_matrices = [p for n, p in model.named_parameters() if "lora_B" in n and p.requires_grad]
    if b_matrices and not any(bool(p.any()) for p in b_matrices):
        raise CourseError(
            "After the first step every B matrix of the adapter is still zero, so it changes "
            "nothing: check the learning rate, alpha, and that the targets are used (chapter 10)."
        )


@contextlib.contextmanager
def _stop_on_interrupt(trainer: _AnswerTrainer) -> Iterator[None]:
    """First Ctrl-C: end after this step.  Second: at once.  Only the main thread gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number, frame):
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.interrupted = True

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------- report, save, load


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
    """Write adapter or model (safetensors), tokenizer, recipe.yaml and report.json to `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(run.model, PeftModel):
        # The embedded model's own folder is a path of this machine: name its home on the Hub.
        config = run.model.peft_config["default"]
        config.base_model_name_or_path = HUB_NAMES.get(run.recipe.model, run.recipe.model)
    with compat.without_progress_bars():
        # "auto" would ask the Hub for the base's config, to see whether its vocabulary has grown
        options = {"save_embedding_layers": False} if isinstance(run.model, PeftModel) else {}
        run.model.save_pretrained(folder, **options)
    run.tokenizer.save_pretrained(folder)
    run.recipe.save(folder / "recipe.yaml")
    run.report.save(folder / "report.json")
    return folder


def newest_checkpoint(folder: str | Path) -> Path:
    """The checkpoint with the most steps in a run's folder."""
    found = [p for p in Path(folder).glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    if not found:
        raise CourseError(
            f"{folder} holds no checkpoint to go on from: set save_every in the recipe, or "
            "interrupt a run once, and one is kept there."
        )
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))


def recipe_of(folder: str | Path) -> Recipe:
    """The recipe that a checkpoint or a saved run was made with."""
    return recipes.load(Path(folder) / "recipe.yaml")


def report_of(folder: str | Path) -> RunReport | None:
    """The report of a saved run, if it has one."""
    path = Path(folder) / "report.json"
    return load_report(path) if path.is_file() else None


def load(folder: str | Path) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, Recipe]:
    """(model, tokenizer, recipe) that `save` wrote; an adapter comes on its base model."""
    folder = Path(folder)
    if not (folder / "recipe.yaml").is_file():
        raise CourseError(f"{folder} holds no run saved by this course: recipe.yaml is missing.")
    recipe = recipes.load(folder / "recipe.yaml")
    tokenizer = models.load_tokenizer(folder)
    place = models.device()
    precision, _ = choose_precision(recipe, place)
    if not (folder / "adapter_config.json").is_file():
        return models.load(folder), tokenizer, recipe
    base = _load_base(recipe, precision, place)
    return PeftModel.from_pretrained(base, folder).eval(), tokenizer, recipe
