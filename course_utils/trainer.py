"""`ModelTrainer`: one object for prepare, format, train, evaluate, generate, save and load.

A thin face over `data`, `encoding`, `training` and `evaluation`.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import budget, data, display, evaluation, models, sets, training
from .data import Conversation
from .display.panel import in_notebook
from .encoding import Encoded, encode
from .errors import CourseError
from .memory import memory_limit_gib
from .recipes import Recipe
from .report import RunReport

SAMPLE_ROWS = 32  # of the embedded instruction set: under half a minute on two cores
PLACEHOLDER = "your_data.json"  # stands in the quick-start template for the reader's own file


class ModelTrainer:
    """Fine-tune one base model and use the result.

    model_name: "smollm2" (embedded, needs no network), a Hub id, or a folder.  A Hub model that
    cannot be had is replaced by the embedded one, with a sentence that says so.
    memory_budget_gib: GiB that a training may take, as if the card had no more: what memory alone
    depends on (how an update's rows are split, checkpointing, offload) is then chosen to fit, where
    no keyword fixes it, and a training that meets the limit all the same goes on in smaller steps.
    On the CPU it is checked by calculation alone.  allow_qlora: whether LoRA may become QLoRA for
    it; `train` without a method chooses between both in any case.
    After training: `model`, `tokenizer`, `recipe` and `report`.
    """

    def __init__(
        self,
        model_name: str = models.EMBEDDED,
        memory_budget_gib: float | None = None,
        allow_qlora: bool = False,
    ) -> None:
        self.model_name = model_name
        self.memory_budget_gib, self.allow_qlora = memory_budget_gib, allow_qlora
        self.model: Any = None
        self.tokenizer: Any = None
        self.recipe: Recipe | None = None
        self.report: RunReport | None = None

    # ------------------------------------------------------------------------------- data

    def prepare_dataset(
        self, data_path: str | Path | None = None, dataset_name: str | None = None
    ) -> list[Conversation]:
        """Rows from a file, from the Hub, or (neither given) a sample of the embedded set.

        Exact duplicates and rows that cannot be trained on are removed, and counted in print.
        """
        if str(data_path) == PLACEHOLDER and not Path(PLACEHOLDER).exists():
            _say(f"{PLACEHOLDER} is the template's placeholder: put your own file's path there.")
            data_path = None
        if data_path is not None:
            rows = data.read(data_path)
        elif dataset_name is not None:
            rows = data.load_hub(dataset_name)
        else:
            _say(f"Using {SAMPLE_ROWS} rows of the embedded instruction set.")
            return sets.load("instruction").train[:SAMPLE_ROWS]
        rows, report = data.clean(rows)
        _say(report)
        report.require_rows(data_path or dataset_name)
        return rows

    def format_dataset(self, dataset: Any, max_length: int = 512) -> Encoded:
        """Token rows with labels on the answers; `dataset` is rows of any form `data` reads."""
        self._ensure_tokenizer()
        if isinstance(dataset, Encoded):
            return dataset
        rows = _conversations(dataset)
        encoded = encode(rows, self.tokenizer, max_length=max_length)
        _say(encoded.report)
        return encoded

    # --------------------------------------------------------------------------- training

    def train_lora(
        self,
        train_dataset: Any,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.1,
        learning_rate: float = 2e-4,
        batch_size: int = 4,
        epochs: float = 3,
        output_dir: str | Path = "./lora_model",
        **options: Any,
    ) -> tuple[Any, Any]:
        """Train a LoRA adapter; returns (model, tokenizer) and saves to `output_dir`.

        `options`: `validation_dataset`, and any other field of `Recipe`, such as
        `gradient_accumulation=1` (default 4) or `targets="attention"`.
        """
        options = {"gradient_accumulation": 4, **options}
        adapter = {"rank": rank, "alpha": alpha, "dropout": dropout}
        shared = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
        return self.train(
            train_dataset, output_dir=output_dir, method="lora", **adapter, **shared, **options
        )

    def train_qlora(
        self,
        train_dataset: Any,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.1,
        learning_rate: float = 2e-4,
        batch_size: int = 2,
        epochs: float = 3,
        output_dir: str | Path = "./qlora_model",
        **options: Any,
    ) -> tuple[Any, Any]:
        """Like `train_lora`, on a base held in 4 bits (default gradient_accumulation 8)."""
        options = {"gradient_accumulation": 8, **options}
        adapter = {"rank": rank, "alpha": alpha, "dropout": dropout}
        shared = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
        return self.train(
            train_dataset, output_dir=output_dir, method="qlora", **adapter, **shared, **options
        )

    def train_full(
        self,
        train_dataset: Any,
        learning_rate: float = 2e-5,
        batch_size: int = 2,
        epochs: float = 3,
        output_dir: str | Path = "./full_model",
        **options: Any,
    ) -> tuple[Any, Any]:
        """Train every weight (default gradient_accumulation 8); saves the whole model."""
        options = {"gradient_accumulation": 8, **options}
        shared = {"learning_rate": learning_rate, "batch_size": batch_size, "epochs": epochs}
        return self.train(train_dataset, output_dir=output_dir, method="full", **shared, **options)

    def train(
        self,
        train_dataset: Any,
        recipe: Recipe | None = None,
        *,
        validation_dataset: Any = None,
        output_dir: str | Path = "./my_model",
        resume: str | Path | None = None,
        **fields: Any,
    ) -> tuple[Any, Any]:
        """Train as `recipe` (or its `fields`) says; every other `train_*` ends here.

        A recipe that names no model but the default one is for this trainer's; one that names
        another, or a field `model`, changes the trainer to that one.
        """
        free = self.allow_qlora or (recipe is None and "method" not in fields)
        recipe = (recipe or Recipe()).replace(**fields)
        if "model" in fields or recipe.model != Recipe.model:
            self._change_to(recipe.model)
        self._ensure_tokenizer()
        recipe = recipe.replace(model=self.model_name)
        encoded = self.format_dataset(train_dataset, recipe.max_length)
        if validation_dataset is not None:
            validation_dataset = self.format_dataset(validation_dataset, recipe.max_length)
        # let go of the previous model before the next one is loaded
        self.model = self.recipe = self.report = None
        limit = self.memory_budget_gib or memory_limit_gib(models.device())
        panel = display.panel_for_here(f"{recipe.method} on {recipe.model}", limit)
        run = training.run
        if self.memory_budget_gib is not None:
            free = free and recipe.method == "lora" and resume is None
            run = functools.partial(self._run_within, free, set(fields))
        result = run(
            recipe, encoded, validation_dataset, tokenizer=self.tokenizer,
            output_dir=output_dir, panel=panel, resume=resume,
        )  # fmt: skip
        self.model, self.recipe, self.report = result.model, result.recipe, result.report
        result.save(output_dir)
        _say(result.report)
        return self.model, self.tokenizer

    def _run_within(
        self,
        free: bool,
        fixed: set[str],
        recipe: Recipe,
        rows: Encoded,
        *others: Any,
        **options: Any,
    ) -> training.Run:
        """`training.run` within the budget.  free: to take QLoRA.  fixed: fields not to change.

        Of a batch's size only the rows per update are fixed, however they are split.
        """
        limit = self.memory_budget_gib
        recipe, said = budget.fitted(
            recipe, limit, rows,
            fixed=sorted(fixed & {"checkpointing", "offload"}),
            methods=("lora", "qlora") if free else None,
        )  # fmt: skip
        run = budget.run_within(
            recipe, rows, *others, budget_gib=limit, allow_qlora=free, **options
        )
        run.report.notes.insert(0, said)
        return run

    def resume(self, train_dataset: Any, output_dir: str | Path, **options: Any):
        """Go on from the newest checkpoint in `output_dir`, with the recipe it was started with."""
        checkpoint = training.newest_checkpoint(output_dir)
        recipe = training.recipe_of(checkpoint)
        self._change_to(recipe.model)
        return self.train(
            train_dataset, recipe, output_dir=output_dir, resume=checkpoint, **options
        )

    # --------------------------------------------------------------------------------- use

    def evaluate(self, dataset: Any, **options: Any) -> dict[str, float]:
        """Held-out loss (nats per answer token) and perplexity; a score where rows have a check.

        Rows are cut at the `max_length` of the training, or at 512 tokens where there was none.
        `options` go to `evaluation.score`, for example `max_new_tokens`.
        """
        self._ensure_model()
        rows = _conversations(dataset)
        length = self.recipe.max_length if self.recipe else Recipe.max_length
        loss = evaluation.held_out_loss(self.model, self.tokenizer, rows, max_length=length)
        result = {"loss": loss, "perplexity": math.exp(loss)}
        if all("check" in row.info for row in rows):
            result["score"] = evaluation.score(self.model, self.tokenizer, rows, **options).value
        return result

    def generate(
        self,
        prompt: str | Sequence[dict[str, str]],
        max_length: int = 100,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> str:
        """The model's answer to a question, a `### Instruction:` prompt, or messages.

        max_length: new tokens, the prompt not counted.  temperature: None for the likeliest
        answer (repeatable), about 0.7 for varied ones; `seed` makes those repeatable too.
        """
        self._ensure_model()
        return evaluation.generate(
            self.model, self.tokenizer, [prompt], max_new_tokens=max_length,
            temperature=temperature, seed=seed,
        )[0]  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write adapter or model, tokenizer, recipe and report; `ModelTrainer.load` reads them."""
        self._ensure_model()
        if self.recipe is None or self.report is None:
            raise CourseError("There is nothing trained to save yet: train first.")
        run = training.Run(self.model, self.tokenizer, self.report, self.recipe)
        return run.save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> ModelTrainer:
        """A trainer with the tuned model that `save` or a training wrote to `folder`."""
        model, tokenizer, recipe = training.load(folder)
        trainer = cls(recipe.model)
        trainer.model, trainer.tokenizer, trainer.recipe = model, tokenizer, recipe
        trainer.report = training.report_of(folder)
        return trainer

    # ------------------------------------------------------------------------------ inside

    def _change_to(self, model_name: str) -> None:
        """Work with this model from here on; its tokenizer comes with it."""
        if model_name != self.model_name:
            self.model_name, self.model, self.tokenizer = model_name, None, None

    def _ensure_tokenizer(self) -> None:
        if self.tokenizer is None:
            self.model_name = models.load_or_embedded(self.model_name)
            self.tokenizer = models.load_tokenizer(self.model_name)

    def _ensure_model(self) -> None:
        """The base model, where nothing has been trained or loaded yet."""
        self._ensure_tokenizer()
        if self.model is None:
            self.model = models.load(self.model_name)


def _conversations(dataset: Any) -> list[Conversation]:
    # as a list, a data frame or a dict would be its names, and a text its letters
    if isinstance(dataset, Mapping | str | bytes) or hasattr(dataset, "iterrows"):
        return data.convert(dataset)
    rows = list(dataset)
    if all(isinstance(row, Conversation) for row in rows):
        return rows
    return data.convert(rows)


def _say(text: Any) -> None:
    print(text, file=sys.stderr if not in_notebook() else sys.stdout, flush=True)
