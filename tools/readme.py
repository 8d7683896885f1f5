"""Write the measured part of README.md from the benchmarks' results: `python tools/readme.py`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a script, from wherever

from course_utils import claims  # noqa: E402

HEADLINE = (  # rows of the ledger, in this order; those not measured yet are left out
    "1.3-full", "10.1-lora", "10.1-qlora", "5.1-medium", "5.1-large", "3.3-saved",
    "3.2-parameters", "3.2-saved", "1.3-lora-time", "2.4-length", "3.1-warmup", "5.2-alpha",
)  # fmt: skip
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
    parts = [lines, gpu_table(results), [memory_line(results)], [plans_line(results)]]
    parts.append(claims_table(results))
    return "\n\n".join("\n".join(part) for part in parts).replace("\n\n\n", "\n\n")


def gpu_table(results: Path) -> list[str]:
    """Tokens a second and memory of our step and Unsloth's."""
    peers = json.loads((results / "peers_h200.json").read_text(encoding="utf-8"))
    found = {(r["system"], r["method"], r["checkpointing"]): r for r in peers["rows"]}
    about = f"The same code on one {peers['device']}, a 7B shape, 4 x 1,024 tokens a step"
    beside = f"beside Unsloth {peers['versions']['unsloth']} in the same run"
    lines = [f"{about}, {beside} (full fine-tuning in transformers' own layers):", ""]
    lines += ["| | tokens/s | GiB | Unsloth | GiB |", "|---|---|---|---|---|"]
    for (system, method, checkpointing), row in found.items():
        peer = found[("unsloth", method, checkpointing)]
        if system != "ours" or "error" in row:
            continue
        name = {"lora": "LoRA", "qlora": "QLoRA", "full": "full, in bf16"}[method]
        name += ", checkpointing" * checkpointing
        lines.append(f"| {name} | {_cells(row)} | {_cells(peer)} |")
    lines += ["", _repeated(peers["repeats"]), "", _losses(peers, results), ""]
    return lines + [_packed(results), ""] + _in_fp8(peers, results)


def _losses(peers: dict, results: Path) -> str:
    """How equal the losses in bf16 are: to each other, and to those in fp32."""
    apart = []
    for method in ("lora", "qlora"):
        last = [row["final_loss"] for row in peers["rows"]
                if row["method"] == method and row["system"] in ("ours", "unsloth")]  # fmt: skip
        apart.append(max(last) - min(last))
    exact = next(run["from_exact"] for run in peers["repeats"] if "from_exact" in run)
    small = json.loads((results / "losses_cpu.json").read_text(encoding="utf-8"))["from_exact"]
    ours, unsloth = _largest(exact, "ours"), _largest(exact, "unsloth")
    return (
        f"Losses of LoRA and QLoRA end within {max(apart):.3f} of Unsloth's. Against LoRA in fp32 "
        f"(20 steps, rows learned by heart), ours in bf16 is off by at most {ours:.3f}, Unsloth by "
        f"{unsloth:.3f}; with a small model on a CPU ours by {_largest(small, 'ours'):.4f}, the "
        f"plain Trainer by {_largest(small, 'plain'):.4f}."
    )


def _largest(from_exact: list[dict], system: str) -> float:
    """The largest difference of this system's losses from those in fp32, in nats."""
    return max(abs(row["largest"]) for row in from_exact if row["system"] == system)


def _repeated(runs: list[dict]) -> str:
    """A sentence on the same cases in the other runs that have them all."""
    found = {}
    for run in runs:
        ours = [row["unsloth"]["speed"] for row in _adapters(run)
                if row["system"] == "ours" and "unsloth" in row]  # fmt: skip
        if len(ours) == 4:
            found[run["run"]] = (ours, "xformers" in run["versions"])
    cases = zip(*(ours for ours, _ in found.values()), strict=True)
    ranges = [f"{min(case):.2f} to {max(case):.2f}" for case in cases]
    beside = "; ".join(
        ", ".join(f"{ratio:.2f}" for ratio in ours) for ours, xformers in found.values() if xformers
    )
    return (
        f"LoRA and QLoRA in {len(found)} other runs, on several cards: {', '.join(ranges)} times "
        f"Unsloth's speed, in the table's order (with xformers for Unsloth, as in the table: "
        f"{beside})."
    )


def _packed(results: Path) -> str:
    """Rows as long as real ones: ours beside Unsloth and beside padding."""
    packing = json.loads((results / "packing_h200.json").read_text(encoding="utf-8"))
    said = []
    for sequences in (1, 4):
        beside = _beside(packing, sequences)["unsloth"]["speed"]
        again = [_beside(run, sequences) for run in packing["repeats"]]
        others = ", ".join(f"{ratio['unsloth']['speed']:.2f}" for ratio in again if ratio)
        said.append(f"{beside:.2f} (other cards: {others})")
    ratios = _beside(packing, 1)
    return (
        f"LoRA on rows as long as Alpaca's, packed by each: {said[0]} times Unsloth's tokens a "
        f"second with one packed sequence a step, {said[1]} with four; in "
        f"{ratios['unsloth']['memory']:.2f} of its memory, and {ratios['guide']['speed']:.1f} "
        "times as fast as with all rows padded to 512."
    )


def _beside(run: dict, sequences: int) -> dict | None:
    """The ratios of so many packed sequences a step, where a run has them."""
    rows = (row for row in run["summary"] if row.get("sequences") == sequences)
    return next(rows, None)


def _adapters(run: dict) -> list[dict]:
    """The ratios of LoRA and QLoRA."""
    return [row for row in run["summary"] if row["method"] != "full"]


def _in_fp8(peers: dict, results: Path) -> list[str]:
    """The two ways of computing in 8 bits: speed and memory over Unsloth's, and their price."""
    quality = json.loads((results / "fp8_quality.json").read_text(encoding="utf-8"))
    lines = [
        "In 8 bits, where a recipe says so: speed and memory over Unsloth's in that run, in the "
        "table's order, while stepping (before and after, `base_precision` holds the weights in "
        f"bf16: {_around(results):.1f} GiB); quality less bf16's with the embedded model, mean "
        f"and standard error of {len(quality['rows']) // 4} seeds:",
        "", "| | speed | memory | held-out loss | right answers |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for system, base, name in (
        ("ours", "bf16", "bf16"),
        ("ours_fp8_gradients", "fp8 gradients", '`gradient_precision: "fp8"`'),
        ("ours_fp8", "fp8", '`base_precision: "fp8"` (LoRA)'),
    ):
        beside = [row["unsloth"] for row in _adapters(peers) if row["system"] == system]
        cells = [", ".join(f"{row[key]:.2f}" for row in beside) for key in ("speed", "memory")]
        lines.append(f"| {name} | {' | '.join(cells)} | {_price(quality['summary'], base)} |")
    return lines


def _price(summary: dict, base: str) -> str:
    if base == "bf16":
        return "0 | 0"
    loss, score = (summary[figure][base] for figure in ("held_out_loss", "score"))
    right = f"{100 * score['less_bf16']:+.1f} ± {100 * score['error']:.1f} points"
    return f"{loss['less_bf16']:+.4f} ± {loss['error']:.4f} | {right}"


def _around(results: Path) -> float:
    """GiB at the highest moment of a 7B run in fp8 with checkpointing: outside of its steps."""
    grid = json.loads((results / "vram_grid.json").read_text(encoding="utf-8"))["rows"]
    name = "llama-2-7b lora 4x1024 base=fp8 checkpointing offload"
    return next(row["measured"]["allocated_gib"] for row in grid if row["name"] == name)


def _cells(row: dict) -> str:
    return f"{row['tokens_per_second']:,.0f} | {row['peak_gib']:.1f}"


def memory_line(results: Path) -> str:
    """How far the memory calculated from a config was from the measured, on rows not fitted to."""
    grid = json.loads((results / "vram_grid.json").read_text(encoding="utf-8"))
    found = grid["summary"]
    parts = [
        f"{tier} {found[tier]['mean_error']:.2f} % on average, {found[tier]['worst_error']:+.2f} % "
        f"at worst ({found[tier]['rows']} runs)"
        for tier in ("allocated", "reserved", "process")
    ]
    on_cpu = json.loads((results / "cpu_memory.json").read_text(encoding="utf-8"))["blind"]
    return (
        f"Memory calculated from the config alone, against runs on one {grid['device']} that "
        f"nothing was fitted to: {'; '.join(parts)}."
        f" On a CPU, where it is resident memory, {on_cpu['mean_error']:.1f} % on average, "
        f"{on_cpu['worst_error']:.1f} % at worst, {on_cpu['out_of_range']} of {on_cpu['rows']} "
        "runs outside of the range that it gives."
    )


def plans_line(results: Path) -> str:
    """Whether the planned recipes fit the cards that they were planned for."""
    made = json.loads((results / "vram_plans.json").read_text(encoding="utf-8"))
    kinds = [row["kind"] for row in made["rows"] if "fits" in row]
    cards = sorted(row["card_gib"] for row in made["rows"] if row["kind"] == "plan")
    return (
        f"{made['summary']['fitted']} of {len(kinds)} recipes, {kinds.count('plan')} planned for "
        f"cards of {cards[0]:.0f} to {cards[-1]:.0f} GiB and {kinds.count('preset')} presets, "
        f"trained in a process of one {made['device']} that was held to the card's memory."
    )


def claims_table(results: Path) -> list[str]:
    """Some rows of the claims ledger: what the guide says, figures, verdict."""
    ledger = claims.ledger(results)
    counts = ", ".join(f"{count} {kind}" for kind, count in ledger.counts().items())
    lines = [f"The guide that the course follows, number by number ({len(ledger)}: {counts}):", ""]
    lines += ["| the guide says | measured | on | verdict |", "|---|---|---|---|"]
    for row in ledger.select(ids=HEADLINE):
        if row.verdict.kind != claims.OPEN:
            figures, where = _figures(row)
            lines.append(f"| {row.claim.says} | {figures} | {where} | {row.verdict.text} |")
    return [*lines, "", "`python -m course_utils claims` prints all rows, with where and why."]


def _figures(row: claims.Row) -> tuple[str, str]:
    """(the judged figures, of several the lowest and the highest; the machines)."""
    judged = sorted((f for f in row.measured if f.judged), key=lambda figure: figure.value)
    ends = dict.fromkeys(f"{figure.shown}: {figure.what}" for figure in (judged[0], judged[-1]))
    where = dict.fromkeys(s["device"].partition(" (")[0] for f in judged for s in f.sources)
    return "; ".join(ends), ", ".join(where)


def filled(text: str) -> str:
    """README's text with the measured part as the results have it now."""
    pattern = re.compile(f"({START}).*?({END})", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{measured()}\n\n{found[2]}", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text("utf-8")), encoding="utf-8", newline="\n")
