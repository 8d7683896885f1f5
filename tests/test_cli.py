"""The headless face: exit codes, one JSON object, and sentences instead of tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils import cli
from course_utils.report import RunReport

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    {"instruction": "Say the color of the sky.", "output": "Blue."},
    {"instruction": "翻译成英文：你好", "output": "Hello"},
]
COMMANDS = ["quickstart", "train", "check-data", "generate", "fetch"]


def run(*arguments, cwd=None, stdin=None, **environment) -> subprocess.CompletedProcess:
    """`python -m course_utils ...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "course_utils", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        cwd=cwd, input=stdin, capture_output=True, encoding="utf-8",
    )  # fmt: skip


@pytest.fixture
def call(capsys):
    """call(arguments) -> (exit code, standard output, standard error), in this process."""

    def main(*arguments):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return main


@pytest.fixture(scope="module")
def job(small_model, tmp_path_factory):
    """A folder with data and a recipe that names them, and the recipe's training already done."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    (folder / "tiny.yaml").write_text(
        f"model: {json.dumps(str(small_model))}\nmethod: lora\nlearning_rate: 1e-2\n"
        "max_steps: 2\nbatch_size: 2\nprecision: fp32\n"
        "data: rows.json\nvalidation: rows.json\noutput: tuned\n",
        encoding="utf-8",
    )
    return folder, run("train", "tiny.yaml", "--json", cwd=folder)


# ------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_reads_well(call, command):
    code, out, err = call(*filter(None, [command]), "--help")
    assert code == 0 and err == "" and "usage: python -m course_utils" in out
    if command is None:
        assert all(name in out for name in COMMANDS)
    else:
        assert "--json" in out and "print one JSON object" in out


@pytest.mark.parametrize(
    "arguments",
    [[], ["trian"], ["train"], ["generate"], ["check-data"], ["fetch", "--fast"],
     ["generate", "Hi", "--max-tokens", "many"]],
)  # fmt: skip
def test_a_wrong_command_line_ends_in_2(call, arguments):
    code, out, err = call(*arguments)
    assert code == 2 and out == "" and "usage:" in err


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_an_error_is_one_sentence_and_ends_in_1(call, json_flag):
    code, out, err = call("train", "nowhere.yaml", *json_flag)
    sentence = "The recipe nowhere.yaml cannot be read (No such file or directory)."
    assert code == 1 and err == f"error: {sentence}\n"
    assert out == (json.dumps({"error": sentence}) + "\n" if json_flag else "")


def test_what_a_library_prints_stays_out_of_the_json(call, monkeypatch, capsys):
    from course_utils import fetch

    def noisy(say):
        print("library noise")
        return Path("somewhere")

    monkeypatch.setattr(fetch, "embedded_model", noisy)
    code, out, err = call("fetch", "--json")
    assert code == 0 and json.loads(out) == {"folder": "somewhere"} and "library noise" in err
    code, out, err = call("fetch")
    assert code == 0 and "The embedded model is in somewhere." in out


# ----------------------------------------------------------------------------------- train


def test_train_prints_one_json_object(job):
    folder, done = job
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    assert result["steps"] == 2 and result["saved"] == "tuned"
    assert [step for step, _ in result["validation_losses"]] == [0, 2]
    saved = json.loads((folder / "tuned" / "report.json").read_text(encoding="utf-8"))
    assert saved == {name: value for name, value in result.items() if name != "saved"}
    assert set(saved) == {*RunReport.__dataclass_fields__, "tokens_per_second"}


def test_flags_win_over_the_file(job, call, monkeypatch):
    folder, _ = job
    monkeypatch.chdir(folder)
    (folder / "one.json").write_text(json.dumps(ROWS[:1]), encoding="utf-8")
    code, out, err = call("train", "tiny.yaml", "--data", "one.json", "--output", "other")
    assert code == 0 and "saved       other" in out and "lora on" in out
    report = json.loads((folder / "other" / "report.json").read_text(encoding="utf-8"))
    assert report["rows"] == 1 and (folder / "other" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    "text, said",
    [
        ("learning_rat: 1\ndata: rows.json", "did you mean learning_rate?"),
        ("rank: 0\ndata: rows.json", "rank is 0"),
        ("method: lora", "No training data: give --data FILE"),
        ("data: nowhere.json", "nowhere.json"),
        ("data: rows.json\nmodel: ./nowhere", "There is no model folder ./nowhere"),
        ("just text", "must be a list of `field: value` lines"),
    ],
)
def test_train_says_what_is_wrong_with_a_recipe(job, call, monkeypatch, text, said):
    folder, _ = job
    monkeypatch.chdir(folder)
    Path("bad.yaml").write_text(text, encoding="utf-8")
    code, out, err = call("train", "bad.yaml")
    assert code == 1 and out == "" and said in err and "Traceback" not in err


def test_train_goes_on_from_a_checkpoint(job, call, monkeypatch):
    folder, _ = job
    monkeypatch.chdir(folder)
    text = (folder / "tiny.yaml").read_text(encoding="utf-8") + "save_every: 1\n"
    (folder / "saving.yaml").write_text(text, encoding="utf-8")
    assert call("train", "saving.yaml", "--output", "whole")[0] == 0
    code, out, err = call("train", "saving.yaml", "--output", "rest", "--resume",
                          Path("whole") / "checkpoint-1", "--json")  # fmt: skip
    assert code == 0, err
    whole = json.loads((folder / "whole" / "report.json").read_text(encoding="utf-8"))
    assert json.loads(out)["losses"] == whole["losses"]
    code, out, err = call("train", "saving.yaml", "--resume", "whole")
    assert code == 1 and "whole is no checkpoint to go on from" in err


# ------------------------------------------------------------------- check-data, generate


def test_check_data_passes_good_rows(job, call):
    code, out, err = call("check-data", job[0] / "rows.json", "--json")
    result = json.loads(out)
    assert code == 0 and result["ok"] is True and result["cleaning"]
    assert call("check-data", job[0] / "rows.json")[0] == 0


def test_check_data_names_bad_rows(tmp_path, call):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([ROWS[0], {"instruction": "No answer."}, 7]), encoding="utf-8")
    code, out, err = call("check-data", path, "--json")
    result = json.loads(out)
    assert code == 1 and result["ok"] is False and len(result["problems"]) == 2
    code, out, err = call("check-data", path)
    assert code == 1 and "1 of 3 rows are good" in out and "row 3: is a number" in out
    code, out, err = call("check-data", tmp_path / "nowhere.json", "--json")
    assert code == 1 and json.loads(out)["ok"] is False and "nowhere.json" in out


def test_generate_from_a_tuned_folder(job):
    """In a process whose pipes know no Chinese by themselves."""
    folder, _ = job
    poor = {
        "PYTHONIOENCODING": "ascii"
    }  # torch itself cannot load below a Chinese path in LC_ALL=C
    done = run("generate", "-", "--model", "tuned", "--max-tokens", 5, "--json",
               cwd=folder, stdin="翻译成英文：你好", **poor)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["prompt"] == "翻译成英文：你好" and result["model"] == "tuned"
    assert isinstance(result["answer"], str)


def test_generate_from_a_model_and_its_errors(small_model, call):
    question = ("generate", "Hi", "--model", small_model, "--max-tokens", 4)
    code, out, _ = call(*question)
    assert code == 0 and json.loads(call(*question, "--json")[1])["answer"] == out.strip()
    sampled = [call(*question, "--temperature", 1, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    code, out, err = call("generate", "Hi", "--model", "./nowhere")
    assert code == 1 and "There is no model folder ./nowhere" in err


def test_generate_takes_no_other_model_than_it_was_told(no_hub, call):
    code, out, err = call("generate", "Hi", "--model", "my_tuned_modle")
    assert code == 1 and out == "" and "my_tuned_modle could not be had from the Hub" in err


def test_generate_without_a_token_to_give(small_model, call):
    question = ("generate", "Hi", "--model", small_model, "--max-tokens", 4)
    code, out, err = call(*question[:-1], 0)
    assert code == 1 and "must be at least 1" in err
