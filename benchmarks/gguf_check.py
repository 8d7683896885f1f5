"""Whether a GGUF written by `course_utils.gguf_file` says what the model that it is made of says.

    python -m benchmarks.gguf_check runs/ship/merged

For each way of storing (f32, f16, q8_0): the file's size, and for eight held-out
questions whether the first 20 greedy tokens are those of the model in fp32, once read back by
transformers and once run by llama.cpp (the package llama-cpp-python, needed for this).
Without a folder it takes the embedded model.  About three minutes on two cores.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import tempfile
from importlib import metadata
from pathlib import Path

import torch

from course_utils import encoding, evaluation, fetch, models, results, sets, ship
from course_utils.gguf_file import KINDS
from course_utils.memory import device_name
from course_utils.report import versions

PROMPTS, TOKENS = 8, 20


def prompts(tokenizer) -> list[str]:
    """One held-out question of each of the first kinds of the instruction set, as text."""
    rows = {row.info["kind"]: row for row in sets.load("instruction").held_out}
    chosen = [rows[kind] for kind in sorted(rows)][:PROMPTS]
    return [encoding.render(row.prompt, tokenizer, ask=True) for row in chosen]


def by_transformers(model, tokenizer, asked: list[str]) -> list[list[int]]:
    """The first greedy tokens for each prompt, past the end of an answer too."""
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    batch = evaluation.left_padded(asked, tokenizer, model)
    return evaluation.generate_tokens(model, tokenizer, batch, TOKENS).tolist()


def by_llama_cpp(file: Path, asked: list[list[int]]) -> list[list[int]]:
    """The same by llama.cpp."""
    from llama_cpp import Llama

    llama = Llama(str(file), n_ctx=1024, n_threads=2, verbose=False)
    made = [list(itertools.islice(llama.generate(ids, temp=0.0), TOKENS)) for ids in asked]
    llama.close()
    return made


def same(one: list[list[int]], other: list[list[int]]) -> dict[str, float]:
    """Prompts with all tokens the same, and the share of tokens before the first difference."""
    agree = [sum(1 for _ in itertools.takewhile(bool, map(int.__eq__, a, b)))
             for a, b in zip(one, other, strict=True)]  # fmt: skip
    return {
        "prompts_the_same": sum(count == TOKENS for count in agree),
        "share_before_first_difference": round(sum(agree) / (TOKENS * len(agree)), 4),
    }


def check(folder: Path, scratch: Path) -> dict:
    """All figures of one model folder."""
    model, tokenizer = models.load(folder, on="cpu"), models.load_tokenizer(folder)
    asked = prompts(tokenizer)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    wanted, rows = by_transformers(model, tokenizer, asked), []
    for kind in KINDS:
        file = ship.to_gguf(folder, scratch / f"{kind}.gguf", kind)
        read = ship.read_gguf(file)
        row = {
            "kind": kind,
            "mib": round(file.stat().st_size / 2**20, 1),
            "transformers": same(by_transformers(read, tokenizer, asked), wanted),
            "llama_cpp": same(by_llama_cpp(file, ids), wanted),
        }
        rows.append(row)
        print(json.dumps(row))
    return {"prompts": len(asked), "tokens": TOKENS, "rows": rows}


def main() -> None:
    """Check, print, and write benchmarks/results/gguf_check.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of a whole Llama model")
    parser.add_argument("--called", help="what the model is, for the results")
    options = parser.parse_args()
    packages = {name: metadata.version(name) for name in ("gguf", "llama-cpp-python")}
    head = {
        "device": device_name(torch.device("cpu")),
        "date": str(datetime.date.today()),
        "versions": versions() | packages,
        "model": options.called or (options.folder.name if options.folder else "smollm2"),
    }
    with tempfile.TemporaryDirectory() as scratch:
        made = head | check(options.folder or fetch.embedded_model(), Path(scratch))
    text = json.dumps(made, indent=1)
    (results.RESULTS / "gguf_check.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
