"""The headless face: exit codes, one JSON object, and sentences instead of tracebacks."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from course_utils import cli, memory
from course_utils.errors import CourseError
from course_utils.memory.known import KNOWN
from course_utils.recipes import Recipe, from_dict
from course_utils.report import RunReport

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    {"instruction": "Say the color of the sky.", "output": "Blue."},
    {"instruction": "翻译成英文：你好", "output": "Hello"},
]
COMMANDS = [
    "quickstart", "train", "check-data", "generate", "estimate", "plan", "merge", "export",
    "claims", "coverage", "fetch",
]  # fmt: skip


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
     ["generate", "Hi", "--max-tokens", "many"], ["plan", "--model", "smollm2"],
     ["estimate", "--batch", "two"]],
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


def test_an_error_of_the_system_is_a_sentence_too(call, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    monkeypatch.setattr(cli, "_check_data", lambda options: (tmp_path / "taken" / "x").read_text())
    code, out, err = call("check-data", "x.json")
    assert code == 1 and "Not a directory. Check the path" in err and "Traceback" not in err


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
        ("data: [rows.json, more.json]", "data is ['rows.json', 'more.json'] in bad.yaml"),
        ("data: rows.json\noutput: tiny.yaml", "tiny.yaml is a file"),
    ],
)
def test_train_says_what_is_wrong_with_a_recipe(job, call, monkeypatch, text, said):
    folder, _ = job
    monkeypatch.chdir(folder)
    Path("bad.yaml").write_text(text, encoding="utf-8")
    code, out, err = call("train", "bad.yaml")
    assert code == 1 and out == "" and said in err and "Traceback" not in err


ECHO = [{"question": word, "answer": word} for word in ("One", "Two", "Three")]


def test_train_names_the_file_of_which_cleaning_leaves_nothing(job, call, monkeypatch):
    monkeypatch.chdir(job[0])
    Path("echo.json").write_text(json.dumps(ECHO), encoding="utf-8")
    code, out, err = call("train", "tiny.yaml", "--data", "echo.json")
    assert code == 1 and out == "" and "echo.json: cleaning left none of 3 rows" in err
    assert "answer repeats the question: 3" in err


def test_train_leaves_bad_rows_out_when_told(job, call, monkeypatch):
    monkeypatch.chdir(job[0])
    Path("some.json").write_text(json.dumps([*ROWS, {"question": "?"}]), encoding="utf-8")
    asked = ("train", "tiny.yaml", "--data", "some.json", "--output", "skipped")
    code, _, err = call(*asked)
    assert code == 1 and "--skip-bad" in err
    code, out, err = call(*asked, "--skip-bad", "--json")
    assert code == 0 and json.loads(out)["rows"] == len(ROWS)
    assert "some.json: 1 problems left out, first row 3" in err and "DataWarning" not in err


@pytest.mark.parametrize("command", ["train", "check-data"])
def test_an_encoding_is_named_by_its_flag(job, call, monkeypatch, command):
    monkeypatch.chdir(job[0])
    Path("old.json").write_bytes(json.dumps(ROWS, ensure_ascii=False).encode("gb18030"))
    asked = ["check-data", "old.json"]
    if command == "train":  # whose validation is read in the same encoding
        asked = ["train", "tiny.yaml", "--data", "old.json", "--validation", "old.json"]
        asked += ["--output", "old"]
    code, out, err = call(*asked)
    assert code == 1 and "--encoding gb18030" in out + err
    assert call(*asked, "--encoding", "gb18030")[0] == 0


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


def test_check_data_fails_where_cleaning_leaves_nothing(tmp_path, call):
    path = tmp_path / "echo.json"
    path.write_text(json.dumps(ECHO), encoding="utf-8")
    code, out, err = call("check-data", path, "--json")
    result = json.loads(out)
    assert code == 1 and result["ok"] is False and result["cleaning"]["kept"] == 0
    code, out, err = call("check-data", path)
    assert code == 1 and "0 of 3 conversations kept" in out


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


@pytest.mark.skipif(os.name == "nt", reason="names of files are text there")
@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_names_that_are_no_text_are_printed(tmp_path, json_flag):
    column, file = "x\ud800", tmp_path / "rows\udcff.jsonl"  # the second: a byte 255
    file.write_text(json.dumps(ROWS[0] | {column: "?"}) + "\n", encoding="utf-8")
    done = run("check-data", file, *json_flag)
    assert done.returncode == 0, done.stderr
    assert r"x\ud800" in done.stdout and r"rows\udcff.jsonl" in done.stdout
    if json_flag:
        assert json.loads(done.stdout)["file"] == str(file)


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
@pytest.mark.parametrize(("arguments", "code"), [(["claims"], 0), (["train", "x", "--json"], 1)])
def test_a_reader_that_has_gone_ends_it_quietly(arguments, code):
    gone, out = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-m", "course_utils", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip
    os.close(out)
    assert done.returncode == code and "Broken" not in done.stderr and "Trace" not in done.stderr


@pytest.mark.parametrize("prompt", ["-", "caf\udce9"])  # the second: a byte 233
def test_a_question_that_is_no_text_is_a_sentence(call, monkeypatch, prompt):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    code, out, err = call("generate", prompt)
    assert code == 1 and out == "" and "The question is no UTF-8 text" in err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--temperature", "nan"], "temperature is nan and must be 0"),
        (["--temperature", "inf"], "temperature is inf and must be 0"),
        (["--temperature", "1e-40"], "temperature is 1e-40 and must be 0"),
        (["--temperature", "-1"], "temperature not below 0"),
        (["--temperature", "0.7", "--seed", "9" * 23], "The seed has too many digits"),
    ],
)
def test_generate_says_what_cannot_be_sampled(small_model, call, flags, said):
    code, out, err = call("generate", "Hi", "--model", small_model, "--max-tokens", 2, *flags)
    assert code == 1 and out == "" and said in err


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


# -------------------------------------------------------------------------- estimate, plan

SMALL = ("--model", "smollm2", "--batch", 2, "--length", 128)


def estimated(call, *arguments):
    """estimate's JSON object."""
    code, out, err = call("estimate", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def planned(call, *arguments):
    """(exit code, plan's JSON object)."""
    code, out, err = call("plan", *arguments, "--json")
    assert err == ""
    return code, json.loads(out)


def test_estimate_is_that_of_the_flags(call):
    made = estimated(
        call, "--model", "llama-2-7b", "--method", "qlora", "--rank", 8, "--batch", 4,
        "--targets", "q_proj, v_proj", "--length", 1024, "--optimizer", "adamw_8bit",
        "--checkpointing", 2, "--no-offload", "--dtype", "float16", "--accumulation", 2,
        "--gradients", "fp8",
    )  # fmt: skip
    recipe = Recipe(
        model="llama-2-7b", method="qlora", rank=8, alpha=16, targets=("q_proj", "v_proj"),
        batch_size=4, max_length=1024, optimizer="adamw_8bit", checkpointing=2,
        precision="fp16", gradient_accumulation=2, gradient_precision="fp8",
    )  # fmt: skip
    assert made["recipe"] == recipe.to_dict()
    found = memory.estimate("llama-2-7b", recipe)
    assert made == json.loads(json.dumps(found.to_dict() | {"recipe": recipe.to_dict()}))
    assert sum(made["parts"].values()) == pytest.approx(made["allocated_gib"])
    assert made["allocated_gib"] < made["reserved_gib"] < made["process_gib"]


@pytest.mark.parametrize(
    ("flags", "checkpointing", "offload"),
    [
        ([], True, True),
        (["--checkpointing", "4"], 4, True),
        (["--checkpointing", "off"], False, False),
        (["--no-offload"], True, False),
        (["--method", "full"], True, False),
        (["--dropout", "0.1"], True, False),
        (["--device", "cpu"], True, False),
    ],
)
def test_estimate_checkpoints_and_offloads_where_plans_do(call, flags, checkpointing, offload):
    recipe = estimated(call, *SMALL, *flags)["recipe"]
    assert (recipe["checkpointing"], recipe["offload"]) == (checkpointing, offload)


def test_estimate_takes_a_recipe_file(call, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("model: smollm2\nmethod: lora\nrank: 4\ncheckpointing: true\noffload: true\n"
                    "data: rows.json\n", encoding="utf-8")  # fmt: skip
    recipe = estimated(call, "--recipe", path)["recipe"]
    assert (recipe["rank"], recipe["alpha"], recipe["offload"]) == (4, 32, True)
    recipe = estimated(call, "--recipe", path, "--rank", 2, "--checkpointing", "off")["recipe"]
    assert (recipe["rank"], recipe["checkpointing"], recipe["offload"]) == (2, False, False)


def test_estimate_of_a_config_file_needs_no_weights(call, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KNOWN["smollm2"]), encoding="utf-8")
    by_file = estimated(call, "--model", path, *SMALL[2:])
    assert by_file["parts"] == estimated(call, *SMALL)["parts"]
    assert by_file["parameters"] == 134_515_008


def test_estimate_as_a_table(call):
    code, out, err = call("estimate", *SMALL)
    made = estimated(call, *SMALL)
    assert code == 0 and err == "" and "Recipe(method='lora'" in out
    shown = {line[:26].strip(): float(line[26:35]) for line in out.splitlines()[2:]
             if line[26:35].strip().replace(".", "").isdigit()}  # fmt: skip
    for part, gib in made["parts"].items():
        assert shown[part] == pytest.approx(gib, abs=6e-4)
    tiers = {"allocated", "reserved", "process"}
    pieces = sum(gib for name, gib in shown.items() if name not in tiers)
    assert pieces == pytest.approx(shown["process"], abs=6e-3)
    assert shown["process"] == pytest.approx(made["process_gib"], abs=6e-4)


def test_estimate_explains_each_part(call):
    formulas = estimated(call, *SMALL, "--explain")["formulas"]
    assert set(formulas) == set(estimated(call, *SMALL)["parts"])
    assert "x 49,152 x 576 x 2 B" in formulas["weights"]
    out = call("estimate", *SMALL, "--explain")[1]
    assert all(text in out for text in formulas.values())


def test_estimate_for_a_cpu_says_that_it_is_no_vram(call):
    out = call("estimate", *SMALL, "--device", "cpu")[1]
    assert "resident memory of the process" in out and "CUDA" not in out and "reserved" not in out


WITHOUT = {key: value for key, value in KNOWN["smollm2"].items() if key != "intermediate_size"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model", "smollm2", "--batch", "-1"], "batch_size is -1"),
        (["--model", "smollm2", "--rank", "0"], "rank is 0"),
        (["--model", "smollm2", "--length", "-5"], "max_length is -5"),
        (["--model", "smollm2", "--length", "9000"], "smollm2 reads at most 8192 tokens"),
        (["--model", "smollm2", "--method", "dora"], "method is 'dora'"),
        (["--model", "smollm2", "--checkpointing", "some"], "checkpointing is 'some'"),
        (["--model", "smollm2", "--dtype", "int8"], "precision is 'int8'"),
        (["--model", "smollm2", "--targets", "c_attn"], "targets: smollm2 has no layer called"),
        (["--model", "smollm2", "--targets", ","], "targets is empty"),
        (["--model", "smollm2", "--device", "tpu"], "device is 'tpu'"),
        (["--model", "smollm2", "--checkpointing", "off", "--offload"], "offload moves what"),
        (["--model", "nowhere.json"], "nowhere.json is no readable model config"),
        (["--model", "without.json"], "lacks the field intermediate_size"),
        (["--model", "bert.json"], "The architecture 'bert'"),
        ([], "give --model NAME, or --recipe FILE"),
    ],
)
def test_estimate_names_what_is_wrong(call, tmp_path, monkeypatch, flags, said):
    monkeypatch.chdir(tmp_path)
    Path("without.json").write_text(json.dumps(WITHOUT), encoding="utf-8")
    Path("bert.json").write_text(json.dumps({"model_type": "bert"}), encoding="utf-8")
    code, out, err = call("estimate", *flags)
    assert code == 1 and out == "" and said in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1


def test_plan_gives_a_recipe_that_fits(call):
    code, made = planned(call, "--model", "llama-3.2-1b", "--vram", 4, "--batch", 8)
    assert code == 0 and made["fits"] is True
    recipe = from_dict(made["recipe"])
    assert recipe.effective_batch == 8 and recipe.max_length == 512
    again = memory.estimate("llama-3.2-1b", recipe).to_dict()
    assert made["estimate"] == json.loads(json.dumps(again))
    assert made["needs_gib"] <= 4 == made["vram_gib"]
    assert made["traded"] and made["alternatives"] and made["nearest"] == []
    code, out, _ = call("plan", "--model", "llama-3.2-1b", "--vram", 4, "--batch", 8)
    assert code == 0 and out.startswith("llama-3.2-1b on a card of 4 GiB: ")


def test_plan_keeps_what_it_is_told(call):
    code, made = planned(call, "--model", "smollm2", "--vram", 24, "--length", 256, "--rank", 4,
                         "--targets", "q_proj,v_proj", "--method", "qlora")  # fmt: skip
    recipe = made["recipe"]
    assert code == 0 and recipe["method"] == "qlora" and recipe["targets"] == ["q_proj", "v_proj"]
    assert (recipe["rank"], recipe["alpha"], recipe["max_length"]) == (4, 8, 256)


def test_plan_of_what_cannot_be_says_what_would(call):
    wish = ("--model", "smollm2", "--vram", 1, "--length", 256, "--method", "lora")
    code, made = planned(call, *wish)
    assert code == 1 and made["fits"] is False and "error" not in made
    assert made["recipe"] is made["estimate"] is None and made["smallest"]["needs_gib"] > 1
    assert made["nearest"] and all(choice["traded"] for choice in made["nearest"])
    code, out, _ = call("plan", *wish)
    assert code == 1 and "nothing asked for fits" in out and "possible" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--vram", "0"], "vram is 0: give the card's memory in GiB"),
        (["--vram", "-8"], "vram is -8"),
        (["--vram", "inf"], "vram is inf"),
        (["--vram", "nan"], "vram is nan"),
        (["--vram", "8", "--batch", "-1"], "batch_size is -1"),
        (["--vram", "8", "--length", "0"], "length is 0"),
        (["--vram", "8", "--method", "lora,dora"], "methods is ['lora', 'dora']"),
        (["--vram", "8", "--model", "nowhere.json"], "nowhere.json is no readable model config"),
    ],
)
def test_plan_names_what_is_wrong(call, flags, said):
    code, out, err = call("plan", "--model", "smollm2", *flags)
    assert code == 1 and out == "" and said in err
    assert err.startswith("error: ") and len(err.splitlines()) == 1


def test_claims_prints_rows_of_a_section(call):
    code, out, err = call("claims", "--section", "3.2", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert rows and all("3.2" in row["section"] for row in rows)
    assert len(rows) < len(json.loads(call("claims", "--json")[1])["rows"])


def test_of_several_processes_only_the_first_prints_a_result(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["claims", "--section", "5.2", "--json"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == lines


def test_a_home_folder_is_found_and_a_replaced_run_said(call, job, monkeypatch):
    folder, _ = job
    monkeypatch.setenv("HOME", str(folder))
    text = (folder / "tiny.yaml").read_text(encoding="utf-8")
    for name in ("rows.json", "tuned"):
        text = text.replace(f" {name}", f" ~/{name}")
    (folder / "home.yaml").write_text(text.replace(" ~/tuned", " ~/again"), encoding="utf-8")
    for notes in (0, 1):
        code, out, err = call("train", folder / "home.yaml", "--json")
        result = json.loads(out)
        assert code == 0 and result["saved"] == str(folder / "again")
        replaced = [note for note in result["notes"] if "replaced the model" in note]
        assert len(replaced) == notes and ("holds an earlier run" in err) == bool(notes)


def test_a_run_is_saved_elsewhere_where_its_folder_cannot_be_written(tmp_path, monkeypatch):
    class Finished:
        def save(self, folder):
            if Path(folder) == tmp_path:
                raise OSError(28, "No space left on device")
            return folder

    monkeypatch.setattr(cli.tempfile, "mkdtemp", lambda prefix: f"/elsewhere/{prefix}1")
    with pytest.raises(CourseError, match="No space left.*saved in /elsewhere/course-run-1"):
        cli._save(Finished(), tmp_path)
