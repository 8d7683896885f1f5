"""`ModelTrainer`: the guide's programs as printed, and the class's other methods."""

from __future__ import annotations

import json
import math
import signal

import pandas
import pytest
import torch
from datasets import Dataset

from course_utils import CourseError, ModelTrainer, models, recipes, trainer
from course_utils.data import Conversation
from course_utils.encoding import IGNORE, Encoded
from course_utils.recipes import Recipe

ROWS = [
    {"instruction": "Say the color of the sky.", "input": "", "output": "Blue."},
    {"instruction": "翻译成英文", "input": "你好，世界", "output": "Hello, World"},
    {"instruction": "What is 2 + 3?", "input": "", "output": "5"},
    {"instruction": "Name a fruit.", "input": "", "output": "Apple."},
]
QUICK = {"max_steps": 2, "gradient_accumulation": 1, "precision": "fp32"}

# The quick-start template (7.2) and the example of 4.1: the calls as printed, the import changed.
TEMPLATE = """
from course_utils import ModelTrainer

trainer = ModelTrainer(model_name="gpt2")
dataset = trainer.prepare_dataset(data_path="your_data.json")
train_dataset = trainer.format_dataset(dataset)
model, tokenizer = trainer.train_lora(
    train_dataset=train_dataset,
    rank=8,
    alpha=16,
    learning_rate=2e-4,
    batch_size=4,
    epochs=3,
    output_dir="./my_model"
)
prompt = "### Instruction:\\n你的问题\\n### Response:\\n"
result = trainer.generate(prompt)
print(result)
"""
EXAMPLE = """
from course_utils import ModelTrainer

trainer = ModelTrainer(model_name="gpt2")
dataset = trainer.prepare_dataset()
train_dataset = trainer.format_dataset(dataset)
model, tokenizer = trainer.train_lora(
    train_dataset=train_dataset,
    rank=8,
    alpha=16,
    learning_rate=2e-4,
    batch_size=4,
    epochs=3,
    output_dir="./my_lora_model"
)
prompt = "### Instruction:\\n解释什么是深度学习\\n### Response:\\n"
result = trainer.generate(prompt)
print("\\n生成结果:")
print(result)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tuned(small_model, tmp_path_factory):
    """A trainer after a short LoRA training, and where that was saved."""
    folder = tmp_path_factory.mktemp("tuned")
    made = ModelTrainer(str(small_model))
    made.train_lora(ROWS, learning_rate=1e-2, output_dir=folder, **QUICK)
    return made, folder


# ------------------------------------------------------------------- the guide, as printed


def test_the_quick_start_template_runs_as_printed(no_hub, here, capsys):
    (here / "your_data.json").write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    names: dict = {}
    exec(compile(TEMPLATE, "template", "exec"), names)
    out, err = capsys.readouterr()
    assert "gpt2 could not be had" in err and "Going on with the embedded model." in err
    assert out == names["result"] + "\n"
    report = names["trainer"].report
    assert report.rows == 4 and report.steps == 3  # 4 rows, batches of 4 x 4, 3 epochs
    assert report.recipe["rank"] == 8 and report.recipe["alpha"] == 16
    assert (here / "my_model" / "adapter_model.safetensors").is_file()
    assert (here / "my_model" / "tokenizer.json").is_file()
    config = json.loads((here / "my_model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_the_example_of_4_1_runs_as_printed(no_hub, here, capsys):
    names: dict = {}
    exec(compile(EXAMPLE, "example", "exec"), names)
    out, err = capsys.readouterr()
    assert f"Using {trainer.SAMPLE_ROWS} rows of the embedded instruction set." in err
    assert out == f"\n生成结果:\n{names['result']}\n" and names["result"]
    report = names["trainer"].report
    assert report.rows == trainer.SAMPLE_ROWS
    losses = [point["loss"] for point in report.losses]
    assert len(losses) == 6 and sum(losses[4:]) < sum(losses[:2])  # of the third and first epoch


# ----------------------------------------------------------------------------------- data


def test_the_placeholder_of_the_template_is_explained(here, capsys):
    rows = ModelTrainer().prepare_dataset(data_path="your_data.json")
    assert len(rows) == trainer.SAMPLE_ROWS and isinstance(rows[0], Conversation)
    assert "put your own file's path there" in capsys.readouterr().err


def test_rows_of_a_file_are_cleaned_and_counted(here, capsys):
    (here / "rows.json").write_text(json.dumps(ROWS + ROWS[:1]), encoding="utf-8")
    assert len(ModelTrainer().prepare_dataset("rows.json")) == len(ROWS)
    assert "1" in capsys.readouterr().err
    with pytest.raises(CourseError, match="nowhere.json"):
        ModelTrainer().prepare_dataset("nowhere.json")


def test_a_file_of_which_cleaning_leaves_nothing_is_named(here):
    (here / "echo.json").write_text(json.dumps([{"question": "a", "answer": "A"}]))
    with pytest.raises(CourseError, match="echo.json: cleaning left none of 1 rows"):
        ModelTrainer().prepare_dataset("echo.json")


@pytest.mark.parametrize("wrong", [{"train": ROWS}, "rows.json"])
def test_what_is_no_list_of_rows_is_said_to_be_none(small_model, wrong):
    with pytest.raises(CourseError, match=f"is one {type(wrong).__name__}.*pass a list of rows"):
        ModelTrainer(str(small_model)).format_dataset(wrong)


@pytest.mark.parametrize(
    "form", [list, Dataset.from_list, pandas.DataFrame, lambda rows: (r for r in rows)]
)
def test_rows_of_any_form_are_encoded_alike(small_model, form):
    made = ModelTrainer(str(small_model))
    encoded = made.format_dataset(form(ROWS))
    assert isinstance(encoded, Encoded) and encoded.report.rows == len(ROWS)
    assert made.format_dataset(encoded) is encoded
    answers = [
        made.tokenizer.decode([label for label in row["labels"] if label != IGNORE])
        for row in encoded
    ]
    assert answers == [row["output"] + "<|im_end|>" for row in ROWS]


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize("method", ["train_lora", "train_qlora", "train_full"])
def test_every_method_trains_saves_and_loads(small_model, tmp_path, method):
    made = ModelTrainer(str(small_model))
    model, tokenizer = getattr(made, method)(
        ROWS, learning_rate=1e-2, output_dir=tmp_path, validation_dataset=ROWS[:2], **QUICK
    )
    assert model is made.model and tokenizer is made.tokenizer
    assert made.recipe.method == method.removeprefix("train_") and made.report.steps == 2
    assert [step for step, _ in made.report.validation_losses] == [0, 2]
    loaded = ModelTrainer.load(tmp_path)
    assert loaded.recipe == made.recipe and loaded.report == made.report
    question = "What is 2 + 3?"
    assert loaded.generate(question, max_length=5) == made.generate(question, max_length=5)
    assert loaded.evaluate(ROWS)["loss"] == pytest.approx(made.evaluate(ROWS)["loss"], rel=1e-4)


def test_settings_reach_the_recipe(small_model, tmp_path):
    """As in a search over settings: every field of a recipe is a keyword."""
    made = ModelTrainer(str(small_model))
    for settings in ({"rank": 2, "dropout": 0.0}, {"rank": 4, "targets": "attention", "seed": 3}):
        made.train_lora(ROWS, output_dir=tmp_path, **{**QUICK, "max_steps": 1}, **settings)
        assert {name: getattr(made.recipe, name) for name in settings} == settings
    with pytest.raises(CourseError, match="no field 'rnak': did you mean rank"):
        made.train_lora(ROWS, rnak=4, output_dir=tmp_path)
    with pytest.raises(CourseError, match="rank is 0"):
        made.train_lora(ROWS, rank=0, output_dir=tmp_path)


def test_defaults_follow_the_method(small_model, tmp_path):
    made = ModelTrainer(str(small_model))
    made.train(ROWS, method="full", max_steps=1, precision="fp32", output_dir=tmp_path)
    assert made.recipe.learning_rate == 1e-4 and made.recipe.model == str(small_model)


def test_packing_packs(small_model, tmp_path):
    made = ModelTrainer(str(small_model))
    one_epoch = {"epochs": 1, "batch_size": 1, "gradient_accumulation": 1, "precision": "fp32"}
    made.train_lora(ROWS, packing=True, output_dir=tmp_path, **one_epoch)
    assert made.report.steps == 1 and made.report.rows == 4


def test_resuming_finishes_an_interrupted_training(small_model, tmp_path, monkeypatch):
    class Stop:
        """A panel that presses Ctrl-C after the first of four steps."""

        def start(self, total_steps):
            pass

        def update(self, step, loss=None, **figures):
            if step == 1 and loss is not None:
                signal.raise_signal(signal.SIGINT)

        def finish(self, message=""):
            pass

    settings = {**QUICK, "max_steps": 4, "learning_rate": 1e-2}
    whole = ModelTrainer(str(small_model))
    whole.train_lora(ROWS, output_dir=tmp_path / "whole", **settings)
    made = ModelTrainer(str(small_model))
    with monkeypatch.context() as patch:
        patch.setattr(trainer.display, "panel_for_here", lambda *_: Stop(), raising=False)
        made.train_lora(ROWS, output_dir=tmp_path / "cut", **settings)
    assert made.report.stopped == "interrupted" and made.report.steps == 2
    again = ModelTrainer()
    again.resume(ROWS, tmp_path / "cut")
    assert again.report.stopped == "finished" and again.report.steps == 4
    assert again.report.losses == whole.report.losses and again.recipe == whole.recipe
    assert again.model_name == whole.model_name == str(small_model)
    with pytest.raises(CourseError, match="holds no checkpoint"):
        again.resume(ROWS, tmp_path / "whole")


# ------------------------------------------------------------------------------------- use


def test_saving_elsewhere_and_loading_gives_the_same_answers(tuned, tmp_path):
    made, folder = tuned
    copy = ModelTrainer.load(made.save(tmp_path / "copy"))
    assert not copy.model.training
    for prompt in ("Name a fruit.", "### Instruction:\nName a fruit.\n### Response:\n",
                   [{"role": "user", "content": "Name a fruit."}]):  # fmt: skip
        answer = made.generate(prompt, max_length=6)
        assert answer == copy.generate(prompt, max_length=6)
        assert answer == ModelTrainer.load(folder).generate(prompt, max_length=6)


def test_evaluate_gives_loss_perplexity_and_a_score_where_there_is_one(tuned):
    made, _ = tuned
    result = made.evaluate(ROWS)
    assert set(result) == {"loss", "perplexity"}
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    checked = [
        Conversation(
            ({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}),
            {"check": {"type": "exact", "value": "A"}},
        )
    ]
    assert made.evaluate(checked, max_new_tokens=3)["score"] == 0


def test_sampling_repeats_with_its_seed(tuned):
    made, _ = tuned
    first, again, other = (
        made.generate("Hi", max_length=8, temperature=1.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    with pytest.raises(CourseError, match="must be at least 1"):
        made.generate("Hi", max_length=0)


def test_after_a_failed_training_there_is_nothing_to_save(small_model, tmp_path):
    made = ModelTrainer(str(small_model))
    made.train_lora(ROWS, output_dir=tmp_path / "good", **{**QUICK, "max_steps": 1})
    with pytest.raises(CourseError, match="no layer called nonesuch"):
        made.train_lora(ROWS, targets="nonesuch", output_dir=tmp_path / "bad", **QUICK)
    with pytest.raises(CourseError, match="nothing trained to save yet"):
        made.save(tmp_path / "other")


def test_an_untrained_trainer_answers_as_its_base_model(small_model):
    made = ModelTrainer(str(small_model))
    made.generate("Hi", max_length=2)
    base = models.load(small_model, on="cpu")
    assert all(
        torch.equal(one, other)
        for one, other in zip(made.model.parameters(), base.parameters(), strict=True)
    )
    with pytest.raises(CourseError, match=r"recipe\.yaml is missing"):
        ModelTrainer.load(small_model)


# ------------------------------------------------------------------- which model is trained


@pytest.fixture
def asked(monkeypatch):
    """What `training.run` would be asked for: a list of (model, vocabulary of its tokenizer)."""
    found = []

    def run(recipe, rows, validation, *, tokenizer, **options):
        found.append((recipe.model, tokenizer.name_or_path))
        raise CourseError("enough")

    monkeypatch.setattr(trainer.training, "run", run)
    return found


def train(made, *arguments, **fields):
    with pytest.raises(CourseError, match="enough"):
        made.train(ROWS, *arguments, **fields)


def test_a_preset_is_for_the_trainers_own_model(asked, small_model):
    made = ModelTrainer(str(small_model))
    for recipe in (recipes.RECOMMENDED_CONFIG_SMALL, Recipe(rank=4), None):
        train(made, recipe)
    assert asked == [(str(small_model), str(small_model))] * 3


def test_another_model_brings_its_own_tokenizer(asked, small_model):
    made = ModelTrainer()
    train(made, Recipe())
    train(made, Recipe(model=str(small_model)))
    assert asked[0][0] == "smollm2" and asked[1] == (str(small_model), str(small_model))
    train(made, model="smollm2")
    assert asked[2] == asked[0] and made.model_name == "smollm2"
