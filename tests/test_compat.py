"""The installed libraries still have what the course calls, by name."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from course_utils import compat, loop
from course_utils.recipes import Recipe


def parameters(function) -> set[str]:
    return set(inspect.signature(function).parameters)


@pytest.mark.parametrize("group_by_length", [True, False])
def test_training_arguments_are_taken_as_given(tmp_path, group_by_length):
    import torch

    recipe = Recipe(group_by_length=group_by_length, save_every=5, max_steps=3)
    made = loop.arguments(recipe, tmp_path, torch.device("cpu"), "fp32")
    assert made.max_steps == 3 and made.save_steps == 5
    grouped = getattr(made, "group_by_length", False)
    grouped = grouped or getattr(made, "train_sampling_strategy", None) == "group_by_length"
    assert grouped == group_by_length
    assert made.logging_nan_inf_filter is False


def test_an_argument_that_no_release_knows_is_an_error(tmp_path):
    with pytest.raises(TypeError):
        compat.training_arguments(output_dir=str(tmp_path), no_such_argument=1)


def test_the_trainer_calls_what_we_override():
    assert {"model", "inputs", "num_items_in_batch"} <= parameters(Trainer.compute_loss)
    assert "num_training_steps" in parameters(Trainer.create_scheduler)
    assert "resume_from_checkpoint" in parameters(Trainer.train)
    assert "model_accepts_loss_kwargs" in inspect.getsource(Trainer)
    for event in ("on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log", "on_save"):
        assert hasattr(TrainerCallback, event), event


def test_adapters_and_quantization_have_our_fields():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    wanted = {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "fan_in_fan_out"}
    assert wanted <= fields
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    assert config.load_in_4bit and config.bnb_4bit_use_double_quant


def test_models_and_tokenizers_have_our_calls():
    assert {"tokenize", "add_generation_prompt"} <= parameters(
        PreTrainedTokenizerBase.apply_chat_template
    )
    assert "dtype" in parameters(AutoModelForCausalLM.from_config) or "kwargs" in parameters(
        AutoModelForCausalLM.from_config
    )
    enable = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    assert any(hasattr(PreTrainedModel, name) for name in enable)
    assert "gradient_checkpointing" in {f.name for f in dataclasses.fields(TrainingArguments)}


def test_progress_bars_come_back():
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    with compat.without_progress_bars():
        assert not logging.is_progress_bar_enabled()
    assert logging.is_progress_bar_enabled() == shown
