"""What the GPU benchmarks share: shapes, a process for each case, step times and peaks, results.

Each case runs in a process of its own, `python -m MODULE one '{"system": ...}'`, so that no system
sees what another one left in memory or patched.  Its row goes to a JSON-lines file at once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

if sys.argv[1:2] == ["one"] and '"unsloth"' in sys.argv[2]:
    import unsloth  # noqa: F401  patches transformers and TRL, so it has to be imported before them

import torch
from transformers import TrainerCallback, set_seed

Case = dict[str, Any]
Row = dict[str, Any]

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results"
GIB = 2**30
MARK = "RESULT "  # begins the line of output that holds a case's row
SEED, RATE, RANK, ALPHA, VOCABULARY = 0, 2e-4, 16, 32, 49152
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What two rows must share to be compared (sequences: of a step, where rows are packed)
SAME = ("method", "checkpointing", "shape", "sequences")
PEERS = ("unsloth", "unsloth_zoo", "trl", "liger-kernel", "triton", "xformers", "torchao")
SHAPES: dict[str, dict[str, int]] = {
    "7b": {  # Llama-2-7B
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
    "1b": {  # Llama-3.2-1B
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "small": {  # which a CPU trains in a minute or two: for losses, its times say nothing
        "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8,
    },
    "tiny": {  # to try a script on a CPU; its figures say nothing
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


# -------------------------------------------------------------------------------- the model


def model_folder(shape: str) -> Path:
    """Where `build` puts the random model of this shape."""
    return Path(tempfile.gettempdir()) / f"course-benchmark-{shape}"


def build(shape: str, tokenizer: str | None) -> Path:
    """Write a Llama of this shape with random bf16 weights; `tokenizer`: a folder with its files.

    Without a folder the embedded model's tokenizer is taken, from the user's cache.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    from course_utils import models

    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
        pad_token_id=2, **SHAPES[shape],
    )  # fmt: skip
    folder = model_folder(shape)
    torch.manual_seed(SEED)
    with models.device():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    models.load_tokenizer(tokenizer or models.EMBEDDED).save_pretrained(folder)
    return folder


def load_base(shape: str, method: str, dtype: str = "bfloat16") -> Any:
    """The model as guides load it: bf16, and for QLoRA in NF4 with double quantization."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    place = 0 if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": place}}
    if method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    return AutoModelForCausalLM.from_pretrained(model_folder(shape), **options)


def lora_config() -> Any:
    """The adapter that every system trains."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LINEAR
    )


def peft_model(shape: str, method: str, checkpointing: bool, dtype: str = "bfloat16") -> Any:
    """Base and adapter as PEFT's documentation puts them together; the base alone for "full"."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    model = load_base(shape, method, dtype)
    if method == "full":
        return model
    if method == "qlora":
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    set_seed(SEED)  # every system draws the same A matrices
    return get_peft_model(model, lora_config())


def unsloth_model(shape: str, method: str, checkpointing: bool, length: int) -> tuple[Any, Any]:
    """(model with adapter, tokenizer) as Unsloth's notebooks make them."""
    from unsloth import FastLanguageModel

    again = "unsloth" if checkpointing else False
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(model_folder(shape)), max_seq_length=length, dtype=torch.bfloat16,
        load_in_4bit=method == "qlora", full_finetuning=method == "full",
        use_gradient_checkpointing=again, local_files_only=True,
    )  # fmt: skip
    if method == "full":
        return model, tokenizer
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=LINEAR,
        use_gradient_checkpointing=again, random_state=SEED,
    )  # fmt: skip
    return model, tokenizer


def peer_arguments(batch: int, steps: int, checkpointing: bool, folder: str) -> dict[str, Any]:
    """Keywords of `TrainingArguments` (and TRL's `SFTConfig`) that all peers get."""
    keywords = {
        "output_dir": folder, "max_steps": steps, "per_device_train_batch_size": batch,
        "learning_rate": RATE, "lr_scheduler_type": "constant", "bf16": True,
        "use_cpu": not torch.cuda.is_available(), "seed": SEED, "data_seed": SEED,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
        "gradient_checkpointing": checkpointing,
        "gradient_accumulation_steps": 1,  # Unsloth's `SFTConfig` has 2 unless it is told
    }  # fmt: skip
    if checkpointing:
        keywords["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return keywords


# -------------------------------------------------------------------------------- measuring


class Stopwatch:
    """Durations between marks, by events on the device; on a CPU by the clock.

    Nobody waits for the GPU before `seconds` is read.
    """

    def __init__(self) -> None:
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Now, or when the GPU gets here."""
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            self.marks.append(torch.cuda.current_stream().record_event(event))
        else:
            self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """From each mark to the next; waits for the GPU."""
        pairs = itertools.pairwise(self.marks)
        if not torch.cuda.is_available():
            return [end - start for start, end in pairs]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in pairs]


class StepMeter(Stopwatch, TrainerCallback):
    """Seconds and loss of each step, and the peak of the allocator after `warm` steps.

    A step lasts from the end of the one before it to its own, by events on the device: loading,
    logging and all that a trainer does between two steps is in it, and nobody waits for the GPU who
    would not have waited anyway.
    The peak outlives those who reset torch's own meanwhile (ours does, by phase).
    """

    def __init__(self, warm: int) -> None:
        super().__init__()
        self.warm, self.peak, self.reserved = warm, 0, 0
        self.losses: list[float] = []
        self._reset = torch.cuda.reset_peak_memory_stats
        torch.cuda.reset_peak_memory_stats = self._note_and_reset

    def on_step_begin(self, args, state, control, **kwargs):
        self._begin()
        if state.global_step == self.warm and torch.cuda.is_available():
            self._reset()
            self.peak = self.reserved = 0

    def _begin(self) -> None:
        if not self.marks:
            self.mark()

    def on_step_end(self, args, state, control, **kwargs):
        self.mark()
        self._note()

    def on_train_end(self, args, state, control, **kwargs):
        torch.cuda.reset_peak_memory_stats = self._reset  # what comes now is no training

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.append(round(float(logs["loss"]), 4))

    def _note(self) -> None:
        if torch.cuda.is_available():
            self.peak = max(self.peak, torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())

    def _note_and_reset(self, *args: Any, **kwargs: Any) -> None:
        self._note()
        self._reset(*args, **kwargs)

    def figures(self) -> Row:
        """Times are medians of the steps after the warm-up; memory in GiB, weights included."""
        return {
            "seconds_per_step": round(statistics.median(self.seconds[self.warm :]), 4),
            "peak_gib": round(self.peak / GIB, 2),
            "reserved_gib": round(self.reserved / GIB, 2),
            "losses": self.losses,
            "final_loss": self.losses[-1],
        }


def facts() -> Row:
    """Device, versions and date, for each row."""
    from course_utils import memory, models
    from course_utils.report import versions

    found = versions()
    for package in PEERS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    device = memory.device_name(models.device())
    return {"device": device, "date": date.today().isoformat(), "versions": found}


# ---------------------------------------------------------------------------------- running


def answer(case: Case, measure: Callable[[Case], Row]) -> None:
    """The child's part: once told to go on, measure one case and print its row."""
    if not sys.stdin.isatty():
        sys.stdin.readline()
    started = time.perf_counter()
    row = case | measure(case)
    row["process_seconds"] = round(time.perf_counter() - started, 1)
    print(MARK + json.dumps(row | facts()), flush=True)


def run(module: str, cases: list[Case], lines: Path, seconds: float, limit: float = 150) -> None:
    """Measure the cases in turn and append a row each; start none after `seconds`.

    Cases that the file has a row of are left out, so that an interrupted run goes on.  The next
    case's process imports what it needs meanwhile, but for Unsloth's: that import uses the GPU.
    """
    print(f"Rows go to {lines}.", flush=True)
    end = time.monotonic() + seconds
    known = [row for row in read_rows([lines]) if "error" not in row] if lines.is_file() else []
    todo = [case for case in cases if not any(case.items() <= row.items() for row in known)]
    ahead: Child | None = None
    for case, later in itertools.zip_longest(todo, todo[1:]):
        left = end - time.monotonic()
        if left < 20:
            print(f"no time left for {json.dumps(case)}", flush=True)
            continue
        now = ahead or Child(module, case)
        ahead = Child(module, later) if later and later["system"] != "unsloth" else None
        row = now.row(min(limit, left))
        with lines.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(brief(row), flush=True)
    if ahead:
        ahead.close()


class Child:
    """A new process for one case, which gets ready at once and measures when `row` is called."""

    def __init__(self, module: str, case: Case) -> None:
        self.case, self.scratch = case, tempfile.TemporaryDirectory()
        offline = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
        offline["UNSLOTH_COMPILE_LOCATION"] = str(Path(self.scratch.name) / "unsloth")
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "one", json.dumps(case)], text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=REPOSITORY, env=os.environ | offline,
        )  # fmt: skip

    def row(self, limit: float) -> Row:
        """The case's row, within `limit` seconds; what went wrong stands under "error"."""
        try:
            said, complained = self.process.communicate("go on\n", timeout=limit)
        except subprocess.TimeoutExpired:
            return self.case | {"error": f"stopped after {limit:.0f} s"}
        finally:
            self.close()
        found = [line for line in said.splitlines() if line.startswith(MARK)]
        if found:
            return json.loads(found[-1].removeprefix(MARK))
        last = (complained.strip() or said.strip()).splitlines()[-5:]
        return self.case | {"error": " | ".join(last)[-1500:]}

    def close(self) -> None:
        """End the process, if it still runs."""
        self.process.kill()
        self.process.communicate()
        self.scratch.cleanup()


def brief(row: Row) -> str:
    """A row on one line, for who watches."""
    name = f"{row['system']:12} {row.get('method', ''):6}"
    name += " checkpointing" if row.get("checkpointing") else ""
    if "error" in row:
        return f"{name}: {row['error']}"
    return (
        f"{name}: {row['tokens_per_second']:,.0f} tokens/s, {row['peak_gib']} GiB, "
        f"loss {row['final_loss']}, {row['process_seconds']:.0f} s"
    )


def parser(about: str, actions: list[str], *, name: str) -> argparse.ArgumentParser:
    """The options that the benchmarks share; `name`: of the file that `collect` writes."""
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    made.add_argument("action", choices=actions)
    made.add_argument("what", nargs="*", help="one: the case as JSON; collect: the files")
    made.add_argument("--shape", default="7b", choices=list(SHAPES))
    made.add_argument("--seconds", type=float, default=560, help="stop after these")
    made.add_argument("--only", help="systems (growth: studies), separated by commas")
    made.add_argument("--recipe", help='more fields of our recipe, as JSON: {"kernels": false}')
    made.add_argument("--note", action="append", help="collect: a remark to keep with the rows")
    made.add_argument("--name", default=name, help="collect: the file in results/, without .json")
    return made


def named(said: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """The names in `said`, separated by commas; all that are known if nothing is said."""
    found = tuple(said.split(",")) if said else known
    if odd := [name for name in found if name not in known]:
        raise SystemExit(f"There is no {', '.join(odd)} to measure: choose of {', '.join(known)}.")
    return found


def lines_path(name: str) -> Path:
    """The JSON-lines file of this run: in $OUT if that is set, else in the temporary folder."""
    return Path(os.environ.get("OUT") or tempfile.gettempdir()) / f"{name}.jsonl"


# ------------------------------------------------------------------------------- collecting


def read_rows(files: list[str]) -> list[Row]:
    """All rows of these JSON-lines files; of one case the last measured without an error."""
    rows: dict[str, Row] = {}
    for file in files:
        for line in Path(file).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            name = json.dumps([row.get(key) for key in ("system", *SAME, "recipe")])
            if name not in rows or "error" not in row:
                rows[name] = row
    return list(rows.values())


def ratios(rows: list[Row], ours: str, peers: tuple[str, ...]) -> list[Row]:
    """`ours` over each peer, in speed and peak memory, and the losses' largest difference."""
    good = [row for row in rows if "error" not in row]
    found = []
    for row in (r for r in good if r["system"] == ours):
        made: Row = {key: row.get(key) for key in ("system", *SAME, "recipe")}
        for peer in good:
            if peer["system"] not in peers or any(peer.get(k) != row.get(k) for k in SAME):
                continue
            gaps = [abs(a - b) for a, b in zip(row["losses"], peer["losses"], strict=False)]
            made[peer["system"]] = {
                "speed": round(row["tokens_per_second"] / peer["tokens_per_second"], 3),
                "memory": round(row["peak_gib"] / max(peer["peak_gib"], 0.01), 3),
                "largest_loss_difference": round(max(gaps), 4),
            }
        found.append(made)
    return found


def write_result(name: str, result: Row, notes: list[str] | None = None) -> Path:
    """Write `results/NAME.json`; device, date and versions of most rows stand above them."""
    result = {"notes": notes} | result if notes else result
    good = [row for row in result["rows"] if "error" not in row]
    shared = {key: statistics.mode(row[key] for row in good) for key in ("device", "date")}
    own = [  # a row keeps what is not the others' too
        {k: v for k, v in row.items() if k not in shared or v != shared[k]}
        for row in result["rows"]
    ]
    rows = [{k: v for k, v in row.items() if k != "versions"} for row in own]
    shared["versions"] = {k: v for row in good for k, v in row["versions"].items()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps(shared | result | {"rows": rows}, indent=1)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path
