"""From a finished run to something that others can use: merge, check, describe, export, push."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import compat, encoding, evaluation, hub, models, training
from .damage import with_adapter
from .data import Conversation
from .errors import CourseError
from .evaluation import Score
from .gguf_file import read_gguf, to_gguf
from .precision import DTYPES, choose_precision
from .recipes import Recipe
from .report import RunReport
from .sets import DataCard

__all__ = [
    "Difference",
    "answer_by_adapter",
    "difference",
    "export",
    "merge",
    "model_card",
    "push",
    "read_gguf",
    "save_merged",
    "to_gguf",
    "whole",
]
NOT_FOR_OTHERS = ["checkpoint-*/**", "best.safetensors"]
SMOLLM2_LICENSE = "apache-2.0"
UNSAFE = re.compile(r"^(?:[~/.\\]|[A-Za-z]:)|[\\]")  # what looks like a path of this machine


# --------------------------------------------------------------------------------------- merge


def merge(source: PeftModel | str | Path) -> PreTrainedModel:
    """The plain model that a LoRA adapter and its base are together, in 32 bits.

    source: a run's folder, or a model with an adapter, which is used up.  The base is loaded in the
    precision that the run computed in, as its report says; for QLoRA it is the *dequantized* base,
    which the adapter was trained beside.  The sum is made in 32 bits, where an update is not
    rounded away: convert once, when saving.  Raises CourseError where there is no adapter, or none
    that can be read.
    """
    if isinstance(source, PeftModel):
        if getattr(source.get_base_model(), "is_loaded_in_4bit", False):
            raise CourseError(
                "A merge into 4 bits rounds the sum once more: save the run and merge its folder."
            )
        return source.float().merge_and_unload().eval()
    folder = _adapter_folder(source)
    recipe, place = training.recipe_of(folder), models.device()
    dtype, four = training.computed_in(folder), recipe.method == "qlora"
    dtype = dtype or DTYPES[choose_precision(recipe, place)[0]]
    if place.type == "cpu" and dtype == torch.float16:
        dtype = torch.float32  # the CPU has no such products; nothing is rounded by it
    base = models.load(recipe.model, dtype=dtype, quantize=four)
    base = (models.dequantized(base) if four else base).float()
    return with_adapter(base, folder).float().merge_and_unload().eval()


def _folder(source: str | Path) -> Path:
    if not Path(source).is_dir():
        raise CourseError(f"There is no folder {source}: give the folder of a finished run.")
    return Path(source)


def _adapter_folder(source: str | Path) -> Path:
    folder = _folder(source)
    if not (folder / "adapter_config.json").is_file():
        raise CourseError(
            f"{source} holds no adapter (adapter_config.json is missing), so there is nothing to "
            "merge."
        )
    return folder


def whole(folder: str | Path) -> PreTrainedModel:
    """The model of a run in 32 bits, whether it was trained in full or as an adapter.

    Raises CourseError for what is no run: a base model would pass for a tuned one.
    """
    folder = _folder(folder)
    if (folder / "adapter_config.json").is_file():
        return merge(folder)
    if not (folder / "recipe.yaml").is_file():
        raise CourseError(
            f"{folder} holds no run of this course (neither adapter_config.json nor recipe.yaml): "
            "give the folder of a finished run."
        )
    return models.load(folder)


def save_merged(
    source: PreTrainedModel | str | Path,
    folder: str | Path,
    precision: str = "bf16",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a whole model as safetensors with its tokenizer, converted once to `precision`.

    source: a run's folder, or what `merge` returned, which is converted in place and needs the
    run's `tokenizer`.  precision: "bf16", "fp16" or "fp32".  Raises CourseError for a folder that
    is not empty: a file that was left there would be taken for a part of the model.
    """
    folder = Path(folder)
    if isinstance(source, nn.Module) and tokenizer is None:
        raise CourseError("Say which tokenizer belongs to this model: save_merged(..., tokenizer=)")
    if precision not in DTYPES:
        raise CourseError(f"precision is {precision!r} and must be one of {', '.join(DTYPES)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CourseError(f"{folder} is there already: delete it, or choose another folder.")
    if not isinstance(source, nn.Module):
        source, tokenizer = whole(source), tokenizer or models.load_tokenizer(source)
    model = source.to(DTYPES[precision])
    model.config._name_or_path = folder.name  # it held a path of this machine
    with compat.without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def export(source: str | Path, path: str | Path, kind: str = "f16") -> Path:
    """Write a run's folder, or a whole model's, as a GGUF file (see `to_gguf`)."""
    if not (Path(source) / "adapter_config.json").is_file():
        return to_gguf(source, path, kind)
    path = Path(path)
    if path.exists():  # before the work, not after it
        raise CourseError(f"{path} is there already: delete it, or choose another name.")
    with tempfile.TemporaryDirectory() as scratch:
        merged = save_merged(source, Path(scratch) / Path(source).resolve().name, "fp32")
        return to_gguf(merged, path, kind)


# --------------------------------------------------------------------------------------- check


@dataclass(frozen=True)
class Difference:
    """How far apart two models' predictions are, over the answer tokens of some conversations.

    logits: the largest difference of any logit.  scale: the largest logit.  probability: the
    largest difference of the probability of a right token.  same: the share of answer tokens at
    which both find the same token likeliest, between 0 and 1.  tokens: how many were compared.
    """

    logits: float
    scale: float
    probability: float
    same: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"logits differ by {self.logits:.2g} at most (they reach {self.scale:.0f}), "
            f"probabilities by {self.probability:.2g}; the same token is likeliest at "
            f"{100 * self.same:.1f} % of {self.tokens:,}"
        )


@torch.no_grad()
def difference(
    first: nn.Module,
    second: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
) -> Difference:
    """Compare what two models predict for every answer token.  Both stay in eval mode."""
    rows = encoding.encode(conversations, tokenizer, max_length=512)
    logits = probability = scale = 0.0
    same = count = 0
    for row in encoding.batches(rows, 4, tokenizer.pad_token_id or 0):
        at = row["labels"][:, 1:] != encoding.IGNORE
        a, b = (_logits(model, row)[:, :-1][at] for model in (first, second))
        right = row["labels"][:, 1:][at][:, None]
        told = [x.softmax(-1).gather(1, right) for x in (a, b)]
        logits = max(logits, (a - b).abs().max().item())
        scale = max(scale, a.abs().max().item())
        probability = max(probability, (told[0] - told[1]).abs().max().item())
        same += (a.argmax(-1) == b.argmax(-1)).sum().item()
        count += len(right)
    return Difference(logits, scale, probability, same / count, count)


def _logits(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    place = next(model.parameters()).device
    inputs = {name: batch[name].to(place) for name in ("input_ids", "attention_mask")}
    with evaluation.computing(model):
        return model(**inputs, use_cache=False).logits.float().cpu()


# --------------------------------------------------------------------------------- the adapters


def answer_by_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[dict[str, str]]],
    adapters: Sequence[str],
    max_new_tokens: int = 40,
) -> list[str]:
    """Answer all prompts in one batch, each through its own adapter ("__base__": through none)."""
    known = [*model.peft_config, "__base__"]
    unknown = [name for name in adapters if name not in known]
    if unknown or len(adapters) != len(prompts):
        raise CourseError(
            f"Name one adapter for each of the {len(prompts)} prompts, out of {', '.join(known)}."
        )
    texts = [encoding.render(_messages(prompt), tokenizer, ask=True) for prompt in prompts]
    batch = evaluation.left_padded(texts, tokenizer, model)
    tokens = evaluation.generate_tokens(
        model, tokenizer, batch, max_new_tokens, adapter_names=list(adapters)
    )
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _messages(prompt: str | Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return encoding.parse_prompt(prompt) if isinstance(prompt, str) else list(prompt)


# ------------------------------------------------------------------------------------ the card

CARD = """---
{front}
---

# {name}

{base} fine-tuned with {method} on {rows:,} conversations.

## What it is for

{purpose}

## Scores

Share of right answers to {questions} held-out questions, with a 95 % interval.

| | right answers |
|---|---|
{scores}

## Data

{data}

## Training

| | |
|---|---|
{training}

```yaml
{recipe}
```

## How to use it

```python
from transformers import pipeline

ask = pipeline("text-generation", model="{name}")
print(ask([{{"role": "user", "content": "..."}}], max_new_tokens=64, do_sample=False))
```
"""


def model_card(
    name: str,
    recipe: Recipe,
    report: RunReport,
    data: DataCard,
    scores: Mapping[str, Score],
    *,
    purpose: str,
    license: str = SMOLLM2_LICENSE,
) -> str:
    """The text of a README.md: YAML for the Hub, then what a user must know.

    scores: by name, such as before and after; the last one is this model's.  license: one that
    base model and data both allow.  Paths of this machine are left out.
    """
    if not scores:
        raise CourseError("A card without a score says nothing: give scores={'after': score}.")
    base = models.HUB_NAMES.get(recipe.model, recipe.model)
    base = Path(base).name if UNSAFE.search(base) else base
    last = list(scores.values())[-1]
    result = EvalResult(
        task_type="text-generation", dataset_type="held-out", dataset_name=data.title,
        metric_type="accuracy", metric_value=round(last.value, 4),
    )  # fmt: skip
    front = ModelCardData(
        base_model=base, license=license, library_name="transformers", model_name=name,
        pipeline_tag="text-generation", tags=["fine-tuned", recipe.method], eval_results=[result],
    )  # fmt: skip
    return CARD.format(
        front=front.to_yaml().strip(), name=name, base=base, method=_named(recipe.method),
        rows=report.rows, purpose=purpose, questions=len(last.answers),
        scores=_table(scores), data=str(data).replace("\n", "  \n"),
        training=_table(_training(report)), recipe=_changed(recipe, base),
    )  # fmt: skip


def _named(method: str) -> str:
    return {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[method]


def _table(rows: Mapping[str, object]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _training(report: RunReport) -> dict[str, str]:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return {
        "steps": f"{report.steps} on {report.rows:,} rows, {report.seconds:.0f} s",
        "trained": f"{report.trainable_parameters:,} of {report.total_parameters:,} parameters",
        "device": f"{report.device}, {report.precision}",
        "versions": versions,
    }


def _changed(recipe: Recipe, base: str) -> str:
    """The recipe's fields that say something: those that are not the defaults."""
    import yaml

    standard, fields = Recipe(method=recipe.method).to_dict(), recipe.to_dict()
    always = ("method", "rank", "alpha", "learning_rate", "batch_size", "epochs")
    told = {n: v for n, v in fields.items() if n in always or v != standard[n]}
    return yaml.safe_dump({"model": base} | told | {"model": base}, sort_keys=False).strip()


# ---------------------------------------------------------------------------------------- push


def push(folder: str | Path, name: str | None = None, private: bool = True) -> str:
    """Upload a folder to the Hub repository `name` ("owner/model"); returns its address.

    Checkpoints stay here: they hold optimizer states, and are for going on.  Raises CourseError,
    before anything is sent, where nobody is logged in, no name is given or the folder has no model
    card.
    """
    folder = Path(folder)
    if not (folder / "README.md").is_file():
        raise CourseError(f"{folder} has no README.md: write a model card before you publish it.")
    if get_token() is None:
        raise CourseError(
            f"Nobody is logged in to the Hub, so {folder} stays here: run `hf auth login`, then "
            "push again."
        )
    if not name:
        raise CourseError(f"Say where {folder} should go: push(folder, 'your-name/your-model').")
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=NOT_FOR_OTHERS)
    except HFValidationError as error:
        raise CourseError(
            f"{name!r} is no name on the Hub: write 'your-name/your-model'."
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, *hub.transport_errors()) as error:
        why = " ".join(str(error).split())[:200]
        raise CourseError(f"The Hub did not take {folder} ({why}): try again.") from error
    return f"https://huggingface.co/{name}"
