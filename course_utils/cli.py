"""The headless face: `python -m course_utils COMMAND`; `--help` lists the commands.

With `--json` standard output holds one JSON object and nothing else; all talk goes to standard
error.  Exit code 0: done; 1: something the reader can put right, said in one sentence; 2: the
command line itself is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CourseError
from .recipes import Recipe

if TYPE_CHECKING:
    from .training import Run

JOB_FIELDS = ("data", "validation", "output")
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}  # as torch calls them
MODEL_HELP = "a short name (llama-2-7b, qwen3-8b ...), a Hub id, a folder or a config.json"
TARGETS_HELP = "all-linear (default), attention, or layers: q_proj,v_proj"
RECIPE_FLAGS = {  # of estimate: flag -> field of the recipe
    "model": "model", "method": "method", "rank": "rank", "targets": "targets",
    "batch": "batch_size", "length": "max_length", "accumulation": "gradient_accumulation",
    "checkpointing": "checkpointing", "offload": "offload", "dtype": "precision",
    "base": "base_precision", "gradients": "gradient_precision", "optimizer": "optimizer",
    "dropout": "dropout",
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    aside = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    try:
        with aside:  # whatever a library prints
            result, text = options.run(options)
    except (CourseError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.filename:
            said = f"{error.filename}: {error.strerror}. Check the path, and your rights there."
        if options.json:
            _print_result(json.dumps({"error": said}, ensure_ascii=False))
        print(f"error: {said}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    if os.environ.get("RANK", "0") == "0":  # of several processes that train together, one
        _print_result(json.dumps(result, ensure_ascii=False) if options.json else text)
    return 0 if result.get("ok", result.get("fits", True)) else 1


def _print_result(text: str) -> None:
    """Print; a reader that has gone meanwhile, such as `head`, has all that it wanted."""
    try:
        print(text, flush=True)  # at the end of Python nothing would catch the error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still held


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m course_utils",
        description="Fine-tune, check data and ask a model from the command line.",
        epilog="Each command has its own --help.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add(commands, "quickstart", _quickstart, "the first chapter's fine-tuning, before and after")

    train = _add(commands, "train", _train, "run a recipe on a data file")
    train.add_argument("recipe", help="a YAML file: fields of a recipe, and data, output")
    train.add_argument("--data", help="training rows (json, jsonl, csv, parquet, txt)")
    train.add_argument("--validation", help="rows to measure the loss on as it trains")
    train.add_argument("--output", help="folder for the tuned model (default: runs/RECIPE)")
    train.add_argument("--resume", help="a checkpoint folder to go on from")
    skip = "leave out rows that cannot be used, and say how many"
    train.add_argument("--skip-bad", action="store_true", help=skip)
    encoding = "of data that are not Unicode, such as gb18030"
    train.add_argument("--encoding", help=encoding)

    check = _add(commands, "check-data", _check_data, "say what is wrong in a data file")
    check.add_argument("file")
    check.add_argument("--format", default="auto", help="alpaca, messages, sharegpt or text")
    check.add_argument("--encoding", help=encoding)

    generate = _add(commands, "generate", _generate, "ask a model")
    generate.add_argument("prompt", help="the question; '-' reads it from standard input")
    generate.add_argument("--model", default="smollm2", help="a tuned folder, a model name or id")
    generate.add_argument("--max-tokens", type=int, default=100, help="of the answer (default 100)")
    generate.add_argument("--temperature", type=float, help="default: always the likeliest token")
    generate.add_argument("--seed", type=int, help="makes a sampled answer repeatable")

    _add_estimate(commands)
    _add_plan(commands)

    merge = _add(commands, "merge", _merge, "join a run's adapter and its base into one model")
    merge.add_argument("folder", metavar="run", help="the folder of a finished run")
    merge.add_argument("--output", required=True, help="a new folder for the whole model")
    merge.add_argument("--precision", default="bf16", help="bf16 (default), fp16 or fp32")

    export = _add(commands, "export", _export, "write a run as one GGUF file, for llama.cpp")
    export.add_argument(
        "folder", metavar="run", help="the folder of a finished run, or of a whole model"
    )
    export.add_argument("--output", required=True, help="the file, such as model.gguf")
    export.add_argument("--kind", default="f16", help="f16 (default), f32 or q8_0")

    claims = _add(commands, "claims", _claims, "the guide's numbers beside the measured ones")
    claims.add_argument("--section", help="of the guide: 3, 3.2 ...")
    claims.add_argument("--topic", help="memory, parameters, time, data, settings or quality")
    claims.add_argument("--verdict", help="holds, off, depends, 'does not hold' ...")

    _add(commands, "coverage", _coverage, "the guide's parts, and the cells that show each")
    _add(commands, "fetch", _fetch, "download the embedded model, if it is not here yet")
    return parser


def _add_estimate(commands: Any) -> None:
    say = _add(commands, "estimate", _estimate, "the GPU memory that a training will take")
    say.description = (
        "The GPU memory that a training will take, from the model's config alone: no GPU, no "
        "weights. Without --recipe it is the course's kind of recipe: LoRA on all linear layers, "
        "every layer checkpointed, and on CUDA what is kept offloaded to the CPU's memory where "
        "the fast layers run (not with --method full or --dropout)."
    )
    say.add_argument("--model", help=MODEL_HELP)
    say.add_argument("--recipe", help="a YAML file of a recipe; the flags here win over it")
    say.add_argument("--method", help="full, lora (default) or qlora")
    say.add_argument("--rank", type=int, help=f"of the adapter (default {Recipe.rank})")
    say.add_argument("--targets", help=TARGETS_HELP)
    batch = f"rows that a step computes at once (default {Recipe.batch_size})"
    say.add_argument("--batch", type=int, help=batch)
    say.add_argument("--length", type=int, help=f"tokens of a row (default {Recipe.max_length})")
    say.add_argument("--accumulation", type=int, help="such batches per update (default 1)")
    say.add_argument("--checkpointing", help="on (default), off, or N for every N-th layer")
    offload = "keep what checkpointing keeps in the CPU's memory (default: see above)"
    say.add_argument("--offload", action=argparse.BooleanOptionalAction, help=offload)
    say.add_argument("--dtype", help="to compute in: bfloat16 (default), float16 or float32")
    say.add_argument("--base", help="base_precision of a recipe: auto (default), bf16 or fp8")
    say.add_argument("--gradients", help="gradient_precision of a recipe: auto (default) or fp8")
    say.add_argument("--optimizer", help="adamw (default), adamw_8bit or paged_adamw_8bit")
    say.add_argument("--dropout", type=float, help="of the adapter (default 0)")
    device = "cuda (default), or cpu for the resident memory of the process"
    say.add_argument("--device", default="cuda", help=device)
    gpus = "that share every update's rows; figures are of one (default 1)"
    say.add_argument("--gpus", type=int, default=1, help=gpus)
    sharding = "of several GPUs: ddp (default), all weights on each, or fsdp, a part on each"
    say.add_argument("--sharding", help=sharding)
    say.add_argument("--explain", action="store_true", help="the tensors behind each part")


def _add_plan(commands: Any) -> None:
    plan = _add(commands, "plan", _plan, "the fastest recipe that fits a card, or what would")
    plan.description += ". Exit code 1 where nothing asked for fits."
    plan.add_argument("--model", required=True, help=MODEL_HELP)
    plan.add_argument("--vram", type=float, required=True, help="GiB that the card has")
    plan.add_argument("--gpus", type=int, default=1, help="such cards (default 1)")
    length = f"tokens of the longest row (default {Recipe.max_length})"
    plan.add_argument("--length", type=int, default=Recipe.max_length, help=length)
    plan.add_argument("--batch", type=int, default=16, help="rows per update (default 16)")
    methods = "which may be chosen, with commas: full, lora, qlora (default lora,qlora)"
    plan.add_argument("--method", default="lora,qlora", help=methods)
    rank = f"of the adapter (default {Recipe.rank})"
    plan.add_argument("--rank", type=int, default=Recipe.rank, help=rank)
    plan.add_argument("--targets", default="all-linear", help=TARGETS_HELP)
    short = "let --method full hold weights and optimizer states in bf16"
    plan.add_argument("--pure-bf16", action="store_true", help=short)


def _add(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:])
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.set_defaults(run=run)
    return parser


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)


def _quickstart(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import display, evaluation, quickstart

    result, before, after, run = quickstart.run(_say)
    table = display.side_by_side(evaluation.side_by_side(before, after, 3))
    lines = [
        str(table),
        "",
        f"{'':12}{'before':>10}{'after':>10}",
        f"{'score':12}{100 * before.value:>8.1f} %{100 * after.value:>8.1f} %",
        "",
        str(run.report),
    ]
    return result, "\n".join(lines)


def _train(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import data, display, memory, models, training
    from .processes import processes

    recipe, job = _read_job(options)
    output = Path(job["output"] or Path("runs") / Path(options.recipe).stem)
    if not job["data"]:
        raise CourseError("No training data: give --data FILE, or a line `data: FILE` in the YAML.")
    rows, cleaning = data.clean(_rows(job["data"], options))
    cleaning.require_rows(job["data"])
    validation = _rows(job["validation"], options) if job["validation"] else None
    panel, replaced = None, (output / "recipe.yaml").is_file() and not options.resume
    if processes().main:
        _say(cleaning)
        if replaced:
            _say(f"{output} holds an earlier run: this one's model will replace it.")
        title = f"{recipe.method} on {recipe.model}"
        panel = display.panel_for_here(title, memory.memory_limit_gib(models.device()))
    run = training.run(
        recipe, rows, validation, output_dir=output, panel=panel, resume=options.resume
    )
    if replaced:
        run.report.notes.append(f"replaced the model of an earlier run in {output}")
    _save(run, output)
    return run.report.to_dict() | {"saved": str(output)}, f"{run.report}\n  saved       {output}"


def _rows(path: str, options: argparse.Namespace) -> list[Any]:
    """The conversations of a file; what is left out of it is said in a line of its own."""
    from . import data
    from .processes import processes

    on_error = "skip" if options.skip_bad else "raise"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", data.DataWarning)
        rows = data.read(path, on_error=on_error, encoding=options.encoding)
    for warning in said if processes().main else ():
        _say(warning.message)
    return rows


def _save(run: Run, output: Path) -> None:
    """Save the run there, or where there is room for it: training it again would take longer."""
    from safetensors import SafetensorError

    from .processes import processes

    try:
        run.save(output)
    except (OSError, SafetensorError) as error:
        if processes().count > 1:  # the others do not know of it, and cannot help to save again
            raise
        spare = run.save(tempfile.mkdtemp(prefix="course-run-"))
        raise CourseError(
            f"{output} could not be written ({error}): the run was saved in {spare} instead."
        ) from error


def _read_job(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """(recipe, files): a job file holds a recipe's fields and may name data and output."""
    from . import recipes

    fields = recipes.read_fields(options.recipe)
    named = {name: fields.pop(name, None) for name in JOB_FIELDS}
    for name, value in named.items():
        if not isinstance(value, str | None):
            raise CourseError(f"{name} is {value!r} in {options.recipe}: name one path.")
    job = {name: getattr(options, name) or named[name] for name in JOB_FIELDS}
    home = {name: path and str(Path(path).expanduser()) for name, path in job.items()}
    return recipes.from_dict(fields), home


def _check_data(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import data

    report = data.read_report(options.file, options.format, encoding=options.encoding)
    _, cleaning = data.clean(report.conversations)
    ok = not report.problems and cleaning.kept > 0
    result = report.to_dict() | {"ok": ok, "cleaning": cleaning.to_dict()}
    return result, f"{report}\n{cleaning}"


def _generate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import models
    from .trainer import ModelTrainer

    prompt = _prompt(options.prompt)
    if (Path(options.model) / "recipe.yaml").is_file():
        trainer = ModelTrainer.load(options.model)
    else:
        trainer = ModelTrainer(options.model)
        # this very model or an error: no answers of the embedded one under another's name
        trainer.tokenizer = models.load_tokenizer(options.model)
    answer = trainer.generate(
        prompt, options.max_tokens, temperature=options.temperature, seed=options.seed
    )
    return {"prompt": prompt, "answer": answer, "model": options.model}, answer


def _prompt(given: str) -> str:
    """The question; for "-" what standard input holds."""
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode("utf-8")  # bytes of an argument that are no text came as surrogates
    except UnicodeError as error:
        raise CourseError(
            "The question is no UTF-8 text: save it as UTF-8, or type it anew."
        ) from error
    return prompt


def _merge(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import ship

    folder = ship.save_merged(options.folder, options.output, options.precision)
    gib = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
    result = {
        "run": options.folder,
        "saved": str(folder),
        "precision": options.precision,
        "gib": gib,
    }
    return result, f"{folder}: {gib:.2f} GiB of weights in {options.precision}"


def _export(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import ship

    path = ship.export(options.folder, options.output, options.kind)
    gib = path.stat().st_size / 2**30
    result = {"run": options.folder, "saved": str(path), "kind": options.kind, "gib": gib}
    return result, f"{path}: {gib:.2f} GiB, {options.kind}"


def _estimate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import memory

    recipe = _asked_recipe(options)
    length = None if recipe.packing else options.length
    found = memory.estimate(
        recipe.model, recipe, length=length, device=options.device, gpus=options.gpus,
        sharding=options.sharding,
    )  # fmt: skip
    result = found.to_dict() | {"recipe": recipe.to_dict()}
    text = [str(recipe), _memory_table(found)]
    if options.explain:
        formulas = {part: found.formula(part) for part in found.parts}
        result, text = result | {"formulas": formulas}, [*text, "", *formulas.values()]
    return result, "\n".join(text)


def _asked_recipe(options: argparse.Namespace) -> Recipe:
    """The recipe of the flags, over that of the file or over the course's kind of recipe."""
    from . import recipes
    from .memory.plan import may_offload

    fields = _recipe_fields(options)
    if options.recipe is not None:
        start = recipes.read_fields(options.recipe)
        start = {name: value for name, value in start.items() if name not in JOB_FIELDS}
        if fields.get("checkpointing") is False:  # nothing is kept that could wait elsewhere
            start["offload"] = False
        return recipes.from_dict(start | fields)
    if options.model is None:
        raise CourseError("No model: give --model NAME, or --recipe FILE that names one.")
    offload = fields.pop("offload", None)
    alpha = 2 * max(1, fields.get("rank", Recipe.rank))
    recipe = recipes.from_dict({"checkpointing": True, "alpha": alpha} | fields)
    if offload is None:
        offload = bool(recipe.checkpointing) and may_offload(recipe, options.device)
    return recipe.replace(offload=offload)


def _recipe_fields(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a recipe that the flags name, as a recipe holds them."""
    fields = {
        RECIPE_FLAGS[flag]: value
        for flag, value in vars(options).items()
        if flag in RECIPE_FLAGS and value is not None
    }
    read = {"targets": _names, "checkpointing": _every, "precision": _precision}
    return {name: read.get(name, lambda v: v)(value) for name, value in fields.items()}


def _precision(text: str) -> str:
    return PRECISIONS.get(text, text)


def _names(text: str) -> str | tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names[0] if len(names) == 1 else names


def _every(text: str) -> bool | int | str:
    """on, off or a number; anything else is left to the recipe, which says what is allowed."""
    return {"on": True, "off": False}.get(text, int(text) if text.isdecimal() else text)


def _memory_table(found: Any) -> str:
    from .display.memory_figure import segments

    low, high = found.range_gib
    what = "GPU memory" if found.device == "cuda" else "resident memory"
    what = f"{what} on each of {found.gpus} GPUs," if found.gpus > 1 else what
    totals = {"process": f"{what} of the process; should lie in {low:.2f} to {high:.2f}"}
    if found.device == "cuda":
        tensors = {"allocated": f"tensors, at their peak ({found.peak_at})"}
        totals = tensors | {"reserved": "by PyTorch for tensors"} | totals
    lines = [f"{'part':26}{'GiB':>9}"]
    lines += [f"{name:26}{gib:9.3f}" for name, gib in segments(found).items()]
    lines += [f"{tier:26}{getattr(found, f'{tier}_gib'):9.3f}  {totals[tier]}" for tier in totals]
    trained = 100 * found.trained / found.parameters
    lines.append(f"{found.parameters:,} parameters, {found.trained:,} trained ({trained:.2f} %)")
    return "\n".join([*lines, *found.notes])


def _plan(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import memory

    for name, value in (("vram", options.vram), ("length", options.length)):
        if not (math.isfinite(value) and value > 0):
            hint = "the card's memory in GiB, such as 8" if name == "vram" else "tokens of a row"
            raise CourseError(f"{name} is {value:g}: give {hint}.")
    found = memory.plan(
        options.model, options.vram, length=options.length, effective_batch=options.batch,
        rank=options.rank, targets=_names(options.targets), pure_bf16=options.pure_bf16,
        gpus=options.gpus,
        methods=[name.strip() for name in options.method.split(",")],
    )  # fmt: skip
    made = found.to_dict()
    nothing = {"recipe": None, "estimate": None, "needs_gib": None, "traded": []}
    best = made.pop("best") or nothing
    return {"fits": found.best is not None} | best | made, str(found)


def _claims(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import claims

    ledger = claims.ledger()
    found = ledger.select(options.section, topic=options.topic, verdict=options.verdict)
    return found.to_dict(), str(found)


def _coverage(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import coverage

    gaps = coverage.gaps()
    parts = [{"id": p.id, "about": p.about, "cells": list(p.cells)} for p in coverage.PARTS]
    last = gaps or [f"{len(parts)} parts of the guide, each with cells that show it."]
    text = "\n".join([coverage.table(), "", *last])
    return {"ok": not gaps, "parts": parts, "gaps": gaps}, text


def _fetch(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import fetch

    folder = fetch.embedded_model(_say)
    return {"folder": str(folder)}, f"The embedded model is in {folder}."
