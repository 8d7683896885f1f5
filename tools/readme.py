"""Write the measured part of README.md from the benchmarks' results: `python tools/readme.py`."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, END = r"<!-- measured: [^>]*-->\n", r"<!-- end of measured -->"


def measured(results: Path = ROOT / "benchmarks" / "results") -> str:
    """The table in Markdown, every figure read from a JSON file."""
    first = json.loads((results / "quickstart.json").read_text(encoding="utf-8"))
    speed = json.loads((results / "cpu_speed.json").read_text(encoding="utf-8"))
    rows = [
        ("held-out tickets exactly right, before", f"{100 * first['score_before']:.0f} %"),
        ("held-out tickets exactly right, after", f"{100 * first['score_after']:.0f} %"),
        ("training", f"{first['train_seconds']:.0f} s"),
        ("peak memory of the process", f"{first['peak_gib']:.1f} GiB"),
        ("tokens a second", f"{first['tokens_per_second']:.0f}"),
        ("speed against the plain Trainer, same rows", f"{speed['ours_against_plain']:.1f}x"),
        ("speed against padding all to 512", f"{speed['ours_against_guide']:.1f}x"),
    ]
    rows.insert(
        -1, ("the same in 32 bits, equal losses", f"{speed['ours_fp32_against_plain']:.1f}x")
    )
    lines = ["", "| | measured |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    device = f"{first['device']}, torch {first['versions']['torch']}"
    lines += ["", f"({device}; transformers {first['versions']['transformers']}.)", ""]
    return "\n".join(lines + gpu_table(results))


def gpu_table(results: Path) -> list[str]:
    """Tokens a second and memory of our step and Unsloth's, from one run on one card."""
    peers = json.loads((results / "peers_h200.json").read_text(encoding="utf-8"))
    found = {(r["system"], r["method"], r["checkpointing"]): r for r in peers["rows"]}
    about = f"The same code on one {peers['device']}: LoRA of a 7B shape, 4 x 1,024 tokens a step"
    lines = [f"{about}, beside Unsloth {peers['versions']['unsloth']} in the same run:", ""]
    lines += ["| | tokens/s | GiB | Unsloth | GiB |", "|---|---|---|---|---|"]
    for (system, method, checkpointing), row in found.items():
        peer = found[("unsloth", method, checkpointing)]
        if system != "ours" or "error" in row:
            continue
        name = {"lora": "LoRA", "qlora": "QLoRA"}[method] + ", checkpointing" * checkpointing
        lines.append(f"| {name} | {_cells(row)} | {_cells(peer)} |")
    return lines


def _cells(row: dict) -> str:
    return f"{row['tokens_per_second']:,.0f} | {row['peak_gib']:.1f}"


def filled(text: str) -> str:
    """README's text with the measured part as the results have it now."""
    pattern = re.compile(f"({START}).*?({END})", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{measured()}\n\n{found[2]}", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text("utf-8")), encoding="utf-8", newline="\n")
