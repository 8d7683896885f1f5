"""Recipes: validated, printable, and the same after a trip through YAML."""

from __future__ import annotations

import dataclasses
import math

import pytest

from course_utils import recipes
from course_utils.errors import CourseError
from course_utils.recipes import Recipe


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "lore"}, "method is 'lore'"),
        ({"alpha": 0}, "trains nothing"),
        ({"alpha": -2}, "alpha"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 8.5}, "whole number"),
        ({"batch_size": True}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"dropout": 1.0}, "dropout"),
        ({"warmup": -0.1}, "warmup"),
        ({"max_steps": 0}, "max_steps"),
        ({"epochs": 0}, "epochs"),
        ({"precision": "int8"}, "precision"),
        ({"targets": ()}, "targets"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"packing": "maybe"}, "packing is 'maybe' and must be true or false"),
        ({"targets": 5}, "targets is 5"),
        ({"targets": (1, 2)}, r"targets is \(1, 2\)"),
        ({"targets": ["q_proj", "all-linear"]}, "'all-linear' beside other names"),
        ({"targets": ("attention", "q_proj")}, "'attention' beside other names"),
        ({"max_grad_norm": "high"}, "is 'high' and must be a number above 0"),
        ({"max_grad_norm": -1}, "is -1 and must be above 0"),
        ({"dropout": "some"}, "is 'some' and must be a number of at least 0"),
        ({"model": None}, "model is None"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"seed": 20240101123456}, "from 0 to 4294967295"),
        ({"seed": True}, "seed is True"),
        ({"alpha": 10**400}, r"alpha must lie between -2\*\*63 and 2\*\*63"),
        ({"max_steps": 10**400, "warmup": -(10**400)}, "warmup, max_steps must lie"),
    ],
)
def test_what_cannot_work_is_refused_by_name(fields, said):
    with pytest.raises(CourseError, match=said):
        Recipe(**fields)


def test_all_problems_come_in_one_sentence():
    with pytest.raises(CourseError) as error:
        Recipe(rank=0, alpha=0, method="?")
    assert all(name in str(error.value) for name in ("rank", "alpha", "method"))


def test_learning_rate_follows_the_method():
    assert Recipe(method="full").learning_rate < Recipe(method="lora").learning_rate
    assert Recipe(method="lora", learning_rate=5e-5).learning_rate == 5e-5
    assert Recipe(method="lora").replace(method="full") == Recipe(method="full")
    assert Recipe(learning_rate=5e-5).replace(method="full").learning_rate == 5e-5
    assert Recipe().replace(method="full", learning_rate=1e-3).learning_rate == 1e-3


def test_scale_and_effective_batch():
    assert Recipe(rank=16, alpha=32).scale == 2
    assert Recipe(rank=16, alpha=32, rslora=True).scale == 8
    assert Recipe(batch_size=2, gradient_accumulation=8).effective_batch == 16


def test_yaml_round_trip(tmp_path):
    recipe = Recipe(method="qlora", targets=("q_proj", "v_proj"), max_steps=7, learning_rate=2e-4)
    assert recipes.load(recipe.save(tmp_path / "recipe.yaml")) == recipe


def test_a_model_may_be_a_path(tmp_path):
    recipe = Recipe(model=tmp_path)
    assert recipes.load(recipe.save(tmp_path / "recipe.yaml")) == recipe == Recipe(str(tmp_path))


def test_yaml_reads_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "recipe.yaml"
    text = "\ufefflearning_rate: 1e-3\r\nrank: 4\r\nmax_grad_norm: 5e-1\r\n"
    path.write_text(text, encoding="utf-8")
    recipe = recipes.load(path)
    assert (recipe.learning_rate, recipe.max_grad_norm) == (1e-3, 0.5)


@pytest.mark.parametrize("word", ["all-linear", "attention"])
def test_a_list_of_one_word_is_the_word(tmp_path, word):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"targets: [{word}]\n", encoding="utf-8")
    assert recipes.load(path) == Recipe(targets=(word,)) == Recipe(targets=word)
    assert Recipe(targets=["q_proj"]).targets == ("q_proj",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat: 1e-3", "did you mean learning_rate"),
        ("- 1", "field: value"),
        ("rank: [", "not valid YAML"),
        ("rank: sixteen", "rank is 'sixteen'"),
        ("", "field: value"),
        ("output: 2024-02-30", "not valid YAML: day is out of range"),
        ("seed: 2024-99-99", "not valid YAML: month must be in 1..12"),
        ("rank: " + "9" * 400, "rank must lie between"),
        ("rank: " + "9" * 5000, "not valid YAML|rank must lie between"),  # from 3.10.7, or before
        ("targets: " + "[" * 5000 + "]" * 5000, "not valid YAML"),
    ],
    ids=lambda value: value[:30],
)
def test_bad_files_are_explained(tmp_path, text, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CourseError, match=said):
        recipes.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CourseError, match="nowhere.yaml"):
        recipes.load(tmp_path / "nowhere.yaml")


def test_replace_changes_a_copy_and_refuses_unknown_names():
    recipe = Recipe()
    assert recipe.replace(rank=4).rank == 4 and recipe.rank == 16
    with pytest.raises(CourseError, match="did you mean rank"):
        recipe.replace(rnak=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.rank = 4


def test_checkpointing_is_a_switch_or_every_nth_layer(tmp_path):
    for value in (False, True, 1, 3):
        recipe = Recipe(checkpointing=value)
        assert recipes.load(recipe.save(tmp_path / "recipe.yaml")).checkpointing == value
    assert Recipe(checkpointing=2, offload=True).offload


def test_pure_bf16_computes_in_bf16():
    assert Recipe(method="full", base_precision="bf16").precision == "bf16"
    assert Recipe(method="full").precision == "auto"


def test_printing_shows_what_differs():
    text = str(Recipe(packing=True, rank=4))
    assert "packing=True" in text and "rank=4" in text and "checkpointing" not in text
    assert "rank" not in str(Recipe(method="full"))


def test_presets_keep_the_guides_effective_batch():
    presets = (
        recipes.RECOMMENDED_CONFIG_SMALL,
        recipes.RECOMMENDED_CONFIG_MEDIUM,
        recipes.RECOMMENDED_CONFIG_LARGE,
    )
    assert [p.effective_batch for p in presets] == [16, 16, 16]
    assert [p.method for p in presets] == ["qlora", "lora", "lora"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pack_length": 64}, "pack_length needs packing=True"),
        ({"packing": True, "max_length": 512, "pack_length": 64}, "at least max_length"),
        ({"packing": True, "pack_length": "1024"}, "pack_length is '1024'"),
        ({"packing": True, "pack_length": 64, "max_length": "x"}, "max_length is 'x'"),
        ({"offload": True}, "needs checkpointing=True"),
        ({"base_precision": "fp8", "method": "qlora"}, "is for method 'lora'"),
        ({"base_precision": "fp8", "fast": False}, "needs fast=True"),
        ({"base_precision": "int3"}, "must be one of auto, bf16, fp8"),
        ({"gradient_precision": "bf16"}, "must be one of auto, fp8"),
        ({"gradient_precision": "fp8", "method": "full"}, "for lora or qlora"),
        ({"gradient_precision": "fp8", "fast": False}, "in the fast layers"),
        ({"gradient_precision": "fp8", "base_precision": "fp8"}, "leave gradient_precision"),
        ({"base_precision": "bf16", "method": "lora"}, "'bf16' is for method 'full'"),
        ({"base_precision": "bf16", "method": "full", "precision": "fp32"}, "is 'fp32'"),
        ({"checkpointing": 0}, "checkpointing is 0 and must be true, false, or"),
        ({"checkpointing": -2}, "checkpointing is -2"),
        ({"checkpointing": "yes"}, "checkpointing is 'yes'"),
        ({"checkpointing": 1.5}, "checkpointing is 1.5"),
        ({"kernels": "perhaps"}, "must be true or false"),
    ],
)
def test_options_for_speed_that_cannot_work_are_named(fields, said):
    with pytest.raises(CourseError, match=said):
        Recipe(**fields)
