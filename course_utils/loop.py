"""The training loop: transformers' Trainer with our loss, precision, measuring and checks."""

from __future__ import annotations

import contextlib
import functools
import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback

from . import compat, damage, fast, fp8
from .ahead import CountedBatches, LateLog, without_walks
from .checkpoints import go_on_from, note_figures, remove_older
from .encoding import batches, sample
from .errors import CourseError
from .loss import answers_only, summed_loss
from .memory import current_gib
from .oom import RanOutOfMemory, is_out_of_memory, let_go
from .precision import DTYPES, autocast_for
from .processes import (
    Heard,
    Processes,
    own_part,
    processes,
    shared_loader,
    shares,
    weights_are_shared,
)
from .recipes import Recipe
from .stopping import BestLook

EPOCH_RANDOM = "epoch_random_state.pt"  # in a checkpoint: what the epoch's order was drawn from
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


class Panel(Protocol):
    """What `run` tells about its progress; `display.LivePanel` draws it."""

    def start(self, total_steps: int) -> None: ...

    def update(self, step: int, **figures: Any) -> None: ...

    def finish(self, message: str = "") -> None: ...


class AnswerTrainer(Trainer):
    """transformers' Trainer with our loss, precision, warm-up, measuring and safety checks."""

    def __init__(
        self, recipe, model, tokenizer, train, validation, folder, meter, report, precision, panel
    ) -> None:
        place, self.processes = meter.device, processes()
        self.shared = weights_are_shared()
        self.keeps_cache = getattr(model.config, "use_cache", None)  # the Trainer switches it off
        super().__init__(
            model=model,
            args=arguments(recipe, folder, place, precision, self.processes.count),
            train_dataset=train,
            data_collator=CountedBatches(tokenizer.pad_token_id or 0),
        )
        self.recipe, self.meter, self.report, self.panel = recipe, meter, report, panel
        # pure bf16 needs no autocast, which would compute some steps in fp32
        self.precision, pure = precision, recipe.base_precision == "bf16"
        self.autocast = autocast_for("fp32" if pure else precision, place)
        pad = tokenizer.pad_token_id or 0
        self.validation = batches(validation, recipe.batch_size, pad) if validation else None
        if self.validation and not self.shared:  # else each batch needs all processes
            self.validation = self.validation[self.processes.index :: self.processes.count]
        self.model_accepts_loss_kwargs = True  # our forward divides by the whole batch's labels
        self.interrupted = False
        self.best = None
        if recipe.early_stopping:
            self.best = BestLook(recipe.early_stopping, folder, writes=self.processes.main)
        self.remove_callback(PrinterCallback)
        self.watch, self.late = _Watch(self), LateLog(self._log_step)
        self.add_callback(self.watch)

    def fit(self, resume: str | None) -> None:
        """Train, with everything that was switched on for it switched off again after.

        Raises RanOutOfMemory, with the state of the last finished step kept as a checkpoint.
        """
        self.resumed = resume
        casting = disable_input_dtype_casting(self.model) if self._adapts() else None
        with contextlib.ExitStack() as stack:
            stack.enter_context(answers_only(self.model, stock=self.shared))
            said = self._build(stack)
            if said is not None:
                raise RanOutOfMemory(self.recipe, said, checkpoint=Path(resume) if resume else None)
            stack.enter_context(_stop_on_interrupt(self))
            self.trained = None
            if not self.shared:  # FSDP puts other parameters in the place of these
                self.trained = stack.enter_context(without_walks(self.model))
            if casting is not None and self.autocast is not contextlib.nullcontext:
                stack.enter_context(casting)  # autocast casts; PEFT need not do it again
            if self.recipe.checkpointing:
                stack.callback(compat.disable_checkpointing, self.model)
            try:
                self.train(resume_from_checkpoint=resume)
                self._keep_best()
                if not self.shared:
                    _check_weights(self.model)
            except BaseException as error:
                self.report.stopped = f"stopped by {type(error).__name__}"
                if not is_out_of_memory(error):
                    raise
                # freed here: leaving the block takes a little memory itself
                self.model.zero_grad(set_to_none=True)  # of a part of a batch
                said = let_go(error, self.meter.device)
            finally:
                if self.keeps_cache is not None:
                    self.model.config.use_cache = self.keeps_cache
                if self.panel:
                    self.panel.finish(self._last_word())
        if said is not None:
            torn = self.watch.updating and self.state.global_step > self.watch.began_at
            alone = self.processes.count == 1  # the others wait, and cannot write their part
            checkpoint = self._keep_last_step() if alone and not torn else None
            raise RanOutOfMemory(self.recipe, said, self.report, checkpoint, torn)

    def _build(self, stack: contextlib.ExitStack) -> str | None:
        """Put the fast layers in place; what the allocator said where they found no room."""
        try:
            with self.meter.phase("load"):
                decoder = stack.enter_context(self._fast_layers())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return let_go(error, self.meter.device)
        self.data_collator = replace(self.data_collator, by_rows=decoder is not None)
        return None

    def _keep_last_step(self) -> Path | None:
        """A checkpoint of the last finished step; None where none is finished.

        A failed step has changed no weight yet; only counts and random numbers are taken back.
        """
        self.watch.back_to_last_step()
        self.late.hand_on()
        step = self.state.global_step
        if step == self.watch.began_at:
            return Path(self.resumed) if self.resumed else None
        self._save_checkpoint(self.model, trial=None)
        self.callback_handler.on_save(self.args, self.state, self.control)
        return Path(self.args.output_dir) / f"checkpoint-{step}"

    def _keep_best(self) -> None:
        """With early stopping, the weights of the best look in place of the last step's."""
        if self.best is None or not self.best.found:
            return
        self.processes.total(0.0)  # all wait until the main one's file is whole
        self.best.bring_back(self.model)
        self.processes.total(0.0)  # and the file stays until all have read it
        said = f"{self.report.stopped} after step {self.state.global_step}: {self.best}"
        # an interrupted run's last note is how to go on
        self.report.notes.insert(len(self.report.notes) - self.interrupted, said)

    def _fast_layers(self) -> Any:
        """The decoder layers made fast, where the recipe wants it and this model allows it."""
        recipe = self.recipe
        if recipe.method == "full" or not recipe.fast:
            return contextlib.nullcontext()
        held_in_fp8 = recipe.base_precision == "fp8"
        longest = self.train_dataset.report.longest
        reason = "weights are shared out (FSDP)" if self.shared else None
        reason = reason or fast.why_not(self.model, DTYPES[self.precision], longest)
        if reason and held_in_fp8:
            raise CourseError(f"base_precision='fp8' needs the fast layers, and {reason}.")
        if reason:
            lost = ", and gradients not in fp8" if recipe.gradient_precision == "fp8" else ""
            self.report.notes.append(f"stock layers, slower{lost}: {reason}")
            return contextlib.nullcontext()
        self._note_what_is_missing()
        seen = sample(self.train_dataset, fp8.SAMPLE) if held_in_fp8 else None
        if seen:
            tokens = seen["input_ids"].numel()
            self.report.notes.append(f"fp8 base: rounded for {tokens:,} tokens of these rows")
        return fast.fast_layers(
            self.model,
            dtype=DTYPES[self.precision],
            base_precision=recipe.base_precision,
            gradient_precision=recipe.gradient_precision,
            sample=seen,
            checkpointing=recipe.checkpointing,
            offload=recipe.offload,
            kernels=recipe.kernels,
        )

    def _note_what_is_missing(self) -> None:
        """What the recipe asks of the fast layers and this machine has not."""
        recipe, place = self.recipe, next(self.model.parameters()).device
        in_fp8 = "fp8" in (recipe.base_precision, recipe.gradient_precision)
        if in_fp8 and not fp8.native(place):
            self.report.notes.append("no fp8 units here: the same numbers by fp32, and slower")
        elif in_fp8 and self.precision != "bf16":
            self.report.notes.append(
                f"fp8 by products in fp32, slower: precision is {self.precision}, not bf16"
            )
        if recipe.kernels and place.type == "cuda" and not compat.has_triton():
            self.report.notes.append("no Triton here: the steps between products are slower")

    def _last_word(self) -> str:
        """How the run ended; after an interruption, how to go on."""
        return (
            self.report.notes[-1] if self.interrupted and self.report.notes else self.report.stopped
        )

    def _adapts(self) -> bool:
        return isinstance(self.model, PeftModel)

    def compute_loss(self, model, inputs, *args, **kwargs):
        """The forward pass, in the chosen precision, with its memory attributed."""
        counts = inputs.pop("counts")
        if model.training:
            self.report.tokens += counts[0]
            self.report.answer_tokens += counts[1]
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

    def get_train_dataloader(self):
        """The Trainer's own; of several processes each reads its share of every update."""
        if self.processes.count == 1:
            return super().get_train_dataloader()
        return shared_loader(
            self.train_dataset, self._get_train_sampler(), self.recipe, self.processes,
            collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Around what reads the checkpoint: names it where it is damaged, or another model's."""
        return damage.named(
            f"The checkpoint {self.resumed}",
            "it is damaged or belongs to another model; go on from an earlier checkpoint, or "
            "start anew without resume",
        )

    def _load_from_checkpoint(self, *args, **kwargs):
        with self.reading():
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        """The Trainer's own, which without one of the two loads neither, and says nothing of it."""
        kept = Path(checkpoint) if checkpoint and not self.is_deepspeed_enabled else None
        if kept and not (any(kept.glob("optimizer*")) and (kept / "scheduler.pt").is_file()):
            self.report.notes.append(
                f"{kept.name} has no state of the optimizer and the schedule: both start anew, "
                "warm-up included"
            )
        with self.reading():
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint):
        with self.reading():
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint):
        """The Trainer's own; where another number of processes saved, the main one's state."""
        if checkpoint is not None:
            compat.rng_state_for(checkpoint, self.processes.count, self.processes.index)
        with self.reading():
            super()._load_rng_state(checkpoint)

    def _clip_grad_norm(self, model):
        """The norm of all gradients, clipped; the Trainer's own, without a walk for them."""
        trained = self.trained or [p for p in model.parameters() if p.requires_grad]
        norm = self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, *args, learning_rate=None, **kwargs):
        """The Trainer's own, but for the losses: those are read late (`ahead.LateLog`)."""
        step, epoch = self.state.global_step, self.state.epoch
        loss = self.processes.mean(tr_loss)  # each has divided its part by all tokens
        self.late.note(step, epoch, loss, grad_norm, learning_rate)
        tr_loss.zero_()
        if self.control.should_save or self.control.should_training_stop:
            self.late.hand_on()
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, *args, learning_rate=learning_rate, **kwargs
        )

    def _log_step(self, step: int, epoch: float, figures: dict[str, float]) -> None:
        """Log as the Trainer would have at that step."""
        now = self.state.global_step, self.state.epoch
        self.state.global_step, self.state.epoch = step, epoch
        try:
            self.log(figures)
            self._total_loss_scalar += figures["loss"]  # of which the Trainer tells the mean
        finally:
            self.state.global_step, self.state.epoch = now

    def floating_point_ops(self, inputs) -> int:
        """Not counted: transformers would walk through all parameters anew at each step."""
        return 0

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

    @functools.cached_property
    def rows_seen(self) -> str:
        """The fingerprint of the rows that are trained on."""
        return self.train_dataset.fingerprint()

    def evaluate_now(self) -> float | None:
        """Held-out loss at this step, noted in the report; its time is not training time."""
        if self.validation is None:
            return None
        self.meter.mark(None)
        part = summed_loss(self.model, self.validation, autocast=self.autocast, stock=self.shared)
        total, count = part if self.shared else self.processes.total(*part)
        if not count:
            raise CourseError("There is no labelled token to evaluate on: check its answers.")
        value = total / count
        _check_finite(value, f"step {self.state.global_step}, on held-out rows")
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


def arguments(recipe: Recipe, folder: Path, place: torch.device, precision: str, count: int = 1):
    """The recipe in transformers' terms, for each of `count` processes."""
    size, accumulation = shares(recipe, count)
    arguments = compat.training_arguments(
        output_dir=str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=OPTIMIZERS[recipe.optimizer],
        train_sampling_strategy="group_by_length" if recipe.group_by_length else None,
        fp16=precision == "fp16",
        use_cpu=place.type == "cpu",
        logging_strategy="no",  # see AnswerTrainer._maybe_log_save_evaluate
        logging_nan_inf_filter=False,  # else each step's loss would be waited for
        save_strategy="steps" if recipe.save_every else "no",
        save_steps=recipe.save_every or 500,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,  # all that is trained is used in each step
        dataloader_pin_memory=place.type == "cuda",
        accelerator_config={"non_blocking": place.type == "cuda"},  # copies are not waited for
        disable_tqdm=True,
        report_to="none",
    )
    if arguments.n_gpu > 1:  # one process drives one GPU; several are launched, not threaded
        arguments._n_gpu = 1
    return arguments


class _Watch(TrainerCallback):
    """Follows a run: fills the report, feeds the panel, stops what cannot learn."""

    def __init__(self, trainer: AnswerTrainer) -> None:
        self.trainer, self.report = trainer, trainer.report
        self.panel, self.meter = trainer.panel, trainer.meter
        self._since, self._heard = time.perf_counter(), Heard(trainer.processes)
        self._unproven = True  # until the first step has been seen to change something
        self.began_at = 0  # the step that the run starts after: not 0 where it was resumed
        self.updating = False  # whether the optimizer is at work
        self._epoch_state: torch.Tensor | None = None
        self._note_step()

    def on_train_begin(self, args, state, control, **kwargs):
        if self.panel:
            self.panel.start(state.max_steps)
        self.report.losses = [_curve_point(e) for e in state.log_history if "loss" in e]
        self.report.steps = self.began_at = self.trainer.late.noted = state.global_step
        if self.trainer.resumed:
            main, checkpoint = self.trainer.processes.main, Path(self.trainer.resumed)
            with self.trainer.reading():
                go_on_from(self.report, checkpoint, state.global_step, main)
                if self.trainer.best:
                    self.trainer.best.read_from(checkpoint)
            self._note_step()
        self._validate(state, control)
        self._since = time.perf_counter()

    def on_epoch_begin(self, args, state, control, **kwargs):
        """The order of an epoch's rows is drawn next: a resumed epoch needs the same draw."""
        resumed = self.trainer.resumed
        if resumed and state.global_step == self.began_at:
            kept = Path(resumed) / EPOCH_RANDOM
            if state.epoch == int(state.epoch):  # a new epoch
                self.trainer._load_rng_state(resumed)
            elif kept.is_file():
                with self.trainer.reading():
                    torch.random.set_rng_state(torch.load(kept, weights_only=True))
        self._epoch_state = torch.random.get_rng_state()

    def _note_step(self) -> None:
        """Remember what a step that fails would change, besides gradients."""
        self._last = (self.report.tokens, self.report.answer_tokens, _random_state())

    def back_to_last_step(self) -> None:
        """Undo what a failed step counted and drew."""
        self._count_time()
        self.report.tokens, self.report.answer_tokens, state = self._last
        _set_random_state(state)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.meter.mark("step")
        self.updating = True
        if self._unproven and not self.trainer.is_deepspeed_enabled:  # which keeps them to itself
            _check_gradients(self.trainer.model, self.trainer.processes)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.meter.mark(None)
        self.updating = False

    def on_step_end(self, args, state, control, **kwargs):
        self.report.steps = state.global_step
        self._note_step()
        if self._unproven and not self.trainer.accelerator.optimizer_step_was_skipped:
            _check_adapter_moved(self.trainer.model, self.trainer.processes)
            self._unproven = False  # an fp16 scaler skips steps while it looks for its scale
        # whoever was interrupted: all stop after the same step
        stop = self._heard.any(self.trainer.interrupted)
        self.trainer.interrupted |= stop
        if stop and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.report.stopped = "interrupted"
        every = self.trainer.recipe.evaluate_every
        last = state.global_step >= state.max_steps
        if (every and state.global_step % every == 0) or last:
            self._pause(self._validate, state, control)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs:
            return
        point = _curve_point({**logs, "step": state.global_step})
        _check_finite(point["loss"], f"step {state.global_step}")
        self.report.losses.append(point)
        self._show(state, loss=point["loss"])

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        counted = self.trainer.processes.total(self.report.tokens, self.report.answer_tokens)
        self._count_time()
        if self.trainer.processes.main:
            tokens, answers = map(int, counted)
            rows = self.trainer.rows_seen
            note_figures(self.report, folder, rows, tokens=tokens, answer_tokens=answers)
            self.trainer.recipe.save(folder / "recipe.yaml")
            torch.save(self._epoch_state, folder / EPOCH_RANDOM)
            if self.trainer.best:
                self.trainer.best.keep_in(folder, state.global_step)
            remove_older(folder.parent, self.report.began)
        if self.report.stopped == "interrupted":
            self.report.notes.append(
                f"interrupted after step {state.global_step} of {state.max_steps}; to go on: "
                f"training.run(recipe, train, resume={folder.as_posix()!r})"
            )

    def on_train_end(self, args, state, control, **kwargs):
        self._count_time()
        counted = self.trainer.processes.total(self.report.tokens, self.report.answer_tokens)
        self.report.tokens, self.report.answer_tokens = map(int, counted)

    def _pause(self, work, *arguments) -> None:
        if self.meter.device.type == "cuda":
            torch.cuda.synchronize()  # the step may still be under way there
        self._count_time()
        work(*arguments)
        self._since = time.perf_counter()

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.report.seconds, self._since = self.report.seconds + now - self._since, now

    def _validate(self, state, control) -> None:
        value, best = self.trainer.evaluate_now(), self.trainer.best
        if value is None:
            return
        self._show(state, validation_loss=value)
        if best and best.look(state.global_step, value, self.trainer.model):
            control.should_training_stop = True
            if state.global_step < state.max_steps and self.report.stopped == "finished":
                self.report.stopped = "stopped early"

    def _show(self, state, **figures) -> None:
        if not self.panel:
            return
        seconds = self.report.seconds + time.perf_counter() - self._since
        if state.global_step:
            figures["tokens_per_second"] = self.report.tokens / max(seconds, 1e-9)
        self.panel.update(state.global_step, memory_gib=current_gib(self.meter.device), **figures)


def _random_state() -> tuple[Any, ...]:
    """Where the random numbers of Python, NumPy and torch stand."""
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return random.getstate(), np.random.get_state(), torch.random.get_rng_state(), gpu


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.random.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state(state[3])


def _curve_point(entry: dict[str, Any]) -> dict[str, float]:
    point = {name: float(entry[name]) for name in ("step", "loss")}
    more = {n: float(entry[n]) for n in ("learning_rate", "grad_norm") if entry.get(n) is not None}
    return point | {name: value for name, value in more.items() if math.isfinite(value)}


def _check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise CourseError(
            f"The loss became {loss} at {where}: lower the learning rate, use bf16 or fp32 "
            "instead of fp16, or look for broken rows (chapter 10, 'loss is NaN')."
        )


def _check_weights(model: nn.Module) -> None:
    """The last update is in no loss that was looked at."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(weight.isfinite().all()):
            raise CourseError(
                f"The last update left {name} infinite or NaN: lower the learning rate (chapter "
                "10, 'loss is NaN')."
            )


def _check_gradients(model: nn.Module, of: Processes) -> None:
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    if not _any_not_zero(gradients, of):
        raise CourseError(
            "No gradient reached any trainable weight in the first step: check that the labels "
            "are not all masked, that alpha is not 0 and that checkpointing is non-reentrant "
            "(chapter 10, 'gradients that do not arrive')."
        )


def _any_not_zero(values: list[torch.Tensor], of: Processes) -> bool:
    """Whether any number of these, or of the parts that other processes hold, is not 0."""
    return bool(of.total(any(bool(own_part(value).any()) for value in values))[0])


def _check_adapter_moved(model: nn.Module, of: Processes) -> None:
    """An adapter starts with B = 0; after one step B must have moved somewhere."""
    b_matrices = [p for n, p in model.named_parameters() if "lora_B" in n and p.requires_grad]
    if b_matrices and not _any_not_zero(b_matrices, of):
        raise CourseError(
            "After the first step every B matrix of the adapter is still zero, so it changes "
            "nothing: check the learning rate, alpha, and that the targets are used (chapter 10, "
            "'loss is flat: rate')."
        )


@contextlib.contextmanager
def _stop_on_interrupt(trainer: AnswerTrainer) -> Iterator[None]:
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
