"""The headless face: `python -m course_utils COMMAND`; `--help` lists the commands.

With `--json` standard output holds one JSON object and nothing else; all talk goes to standard
error.  Exit code 0: done; 1: something the reader can put right, said in one sentence; 2: the
command line itself is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CourseError

JOB_FIELDS = ("data", "validation", "output")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    aside = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    try:
        with aside:  # whatever a library prints
            result, text = options.run(options)
    except CourseError as error:
        if options.json:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    print(json.dumps(result, ensure_ascii=False) if options.json else text)
    return 0 if result.get("ok", True) else 1


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

    check = _add(commands, "check-data", _check_data, "say what is wrong in a data file")
    check.add_argument("file")
    check.add_argument("--format", default="auto", help="alpaca, messages, sharegpt or text")

    generate = _add(commands, "generate", _generate, "ask a model")
    generate.add_argument("prompt", help="the question; '-' reads it from standard input")
    generate.add_argument("--model", default="smollm2", help="a tuned folder, a model name or id")
    generate.add_argument("--max-tokens", type=int, default=100, help="of the answer (default 100)")
    generate.add_argument("--temperature", type=float, help="default: always the likeliest token")
    generate.add_argument("--seed", type=int, help="makes a sampled answer repeatable")

    claims = _add(commands, "claims", _claims, "the guide's numbers beside the measured ones")
    claims.add_argument("--section", help="of the guide: 3, 3.2 ...")
    claims.add_argument("--topic", help="memory, parameters, time, data, settings or quality")
    claims.add_argument("--verdict", help="holds, off, depends, 'does not hold' ...")

    _add(commands, "fetch", _fetch, "download the embedded model, if it is not here yet")
    return parser


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

    recipe, job = _read_job(options)
    if not job["data"]:
        raise CourseError("No training data: give --data FILE, or a line `data: FILE` in the YAML.")
    rows, cleaning = data.clean(data.read(job["data"]))
    _say(cleaning)
    validation = data.read(job["validation"]) if job["validation"] else None
    output = job["output"] or Path("runs") / Path(options.recipe).stem
    panel = display.panel_for_here(
        f"{recipe.method} on {recipe.model}", memory.memory_limit_gib(models.device())
    )
    run = training.run(
        recipe, rows, validation, output_dir=output, panel=panel, resume=options.resume
    )
    run.save(output)
    return run.report.to_dict() | {"saved": str(output)}, f"{run.report}\n  saved       {output}"


def _read_job(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """(recipe, files): a job file holds a recipe's fields and may name data and output."""
    from . import recipes

    fields = recipes.read_fields(options.recipe)
    named = {name: fields.pop(name, None) for name in JOB_FIELDS}
    return recipes.from_dict(fields), {n: getattr(options, n) or named[n] for n in JOB_FIELDS}


def _check_data(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import data

    report = data.read_report(options.file, options.format)
    _, cleaning = data.clean(report.conversations)
    result = report.to_dict() | {"ok": not report.problems, "cleaning": cleaning.to_dict()}
    return result, f"{report}\n{cleaning}"


def _generate(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import models
    from .trainer import ModelTrainer

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
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


def _claims(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import claims

    ledger = claims.ledger()
    found = ledger.select(options.section, topic=options.topic, verdict=options.verdict)
    return found.to_dict(), str(found)


def _fetch(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from . import fetch

    folder = fetch.embedded_model(_say)
    return {"folder": str(folder)}, f"The embedded model is in {folder}."
