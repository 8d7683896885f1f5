"""What each trick of the fast layers brings, and how cost grows with the work, on one GPU.

    python -m benchmarks.growth_gpu run --seconds 200     # rows go to $OUT/growth.jsonl
    python -m benchmarks.growth_gpu run --only size       # of the studies below, by name
    python -m benchmarks.growth_gpu collect growth.jsonl  # results/growth_h200.json and its plots

Random weights made on the card, LoRA of rank 16 on all linear layers, bf16, random tokens, AdamW;
the median of 4 steps after 2 by events on the device, twice, from the same adapter.  Studies:

- ablation: 4 x 1024 tokens of the 7B shape; each line adds one trick to the line above, but for
  the two ways of fp8, which stand in each other's place
- length (one row), batch (rows of 1024), rank, size (4 x 1024 tokens): with all tricks,
  checkpointing and offload
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import gpu_common as common
from benchmarks.gpu_common import ALPHA, GIB, LINEAR, RANK, RATE, RESULTS, VOCABULARY, Row
from course_utils import compat, fast, loss

STEPS, WARM = 4, 2
ALL = ("ablation", "length", "batch", "rank", "size")  # studies, in this order
SMALL = {"checkpointing": True, "offload": True, "kernels": True}  # least memory
SIZES: dict[str, tuple[int, int, int, int, int]] = {
    # width, MLP width, layers, heads, heads of k and v
    "tiny": (64, 128, 2, 4, 2),
    "0.5b": (1024, 4096, 24, 16, 16),
    "1b": (2048, 8192, 16, 32, 8),
    "3b": (3072, 8192, 28, 24, 8),
    "7b": (4096, 11008, 32, 32, 32),
}
ABLATION: list[tuple[str, dict[str, Any] | None]] = [
    ("stock layers, all logits", None),
    ("loss in chunks, with its gradient", None),
    ("grouped products, backward by hand", {}),
    ("steps as kernels", {"kernels": True}),
    ("gradients in fp8", {"kernels": True, "gradient_precision": "fp8"}),
    ("fp8 base", {"kernels": True, "base_precision": "fp8"}),
    ("stock layers, chunked loss, checkpointing", None),
    ("ours, checkpointing", {"kernels": True, "checkpointing": True}),
    ("ours, checkpointing and offload", SMALL),
    ("gradients in fp8, checkpointing and offload", {**SMALL, "gradient_precision": "fp8"}),
    ("fp8 base, checkpointing and offload", {**SMALL, "base_precision": "fp8"}),
]


def base(size: str) -> torch.nn.Module:
    """A Llama of this size with random bf16 weights."""
    width, inner, layers, heads, pairs = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=pairs,
        max_position_embeddings=32768,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


def adapted(model: torch.nn.Module, rank: int = RANK) -> torch.nn.Module:
    """The model with a fresh adapter."""
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=ALPHA, target_modules=LINEAR)
    return get_peft_model(model, config).train()


def renew(model: torch.nn.Module) -> None:
    """Draw the adapter as at first, so that no row begins where another one ended."""
    torch.manual_seed(0)
    for layer in model.modules():
        if hasattr(layer, "reset_lora_parameters"):
            layer.reset_lora_parameters("default", True)


def tokens(model: torch.nn.Module, batch: int, length: int) -> torch.Tensor:
    """Random token ids [batch, length], the same each time, where the model is."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 32000, (batch, length), generator=generator)
    return ids.to(next(model.parameters()).device)


@contextlib.contextmanager
def path(
    model: torch.nn.Module, name: str, options: dict[str, Any] | None, ids: torch.Tensor
) -> Iterator[None]:
    """The way through the model that one line of the ablation means; ids: to be trained on."""
    with contextlib.ExitStack() as stack:
        if "all logits" not in name:
            stack.enter_context(loss.answers_only(model))
        if options is not None:
            sample = {"sample": {"input_ids": ids}} if "base_precision" in options else {}
            stack.enter_context(fast.fast_layers(model, dtype=torch.bfloat16, **sample, **options))
        elif "checkpointing" in name:
            compat.enable_checkpointing(model)
            stack.callback(compat.disable_checkpointing, model)
        yield


def measure(model: torch.nn.Module, ids: torch.Tensor) -> Row:
    """Seconds a step, tokens a second, peak and losses of a few steps on ids [batch, length].

    Trained twice from the same adapter: `seconds_per_step_again` is the second time's.
    """
    (seconds, peak, losses), (again, _, _) = _train(model, ids), _train(model, ids)
    batch, length = ids.shape
    return {
        "batch": batch, "length": length, "seconds_per_step": round(seconds, 4),
        "seconds_per_step_again": round(again, 4),
        "tokens_per_second": round(batch * length / seconds, 1), "peak_gib": round(peak, 2),
        "losses": losses,
    }  # fmt: skip


def _train(model: torch.nn.Module, ids: torch.Tensor) -> tuple[float, float, list[float]]:
    """(median seconds of a step, peak in GiB, losses), both after the first `WARM` steps."""
    renew(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, fused=True)
    watch, losses, on_gpu = common.Stopwatch(), [], ids.is_cuda
    watch.mark()
    for step in range(WARM + STEPS):
        if step == WARM and on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with torch.autocast(ids.device.type, torch.bfloat16):
            value = model(input_ids=ids, labels=ids).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.mark()
        losses.append(value.detach())
    peak = torch.cuda.max_memory_allocated() / GIB if on_gpu else 0.0
    seconds = statistics.median(watch.seconds[WARM:])
    return seconds, peak, [round(value.item(), 4) for value in losses]


def ablation(model: torch.nn.Module, scale: int) -> Iterator[Row]:
    """One row a line of `ABLATION`."""
    ids = tokens(model, 4, 1024 // scale)
    for name, options in ABLATION:
        with path(model, name, options, ids):
            yield {"study": "ablation", "trick": name} | measure(model, ids)


def growth(model: torch.nn.Module, study: str, points: list[tuple[int, int]]) -> Iterator[Row]:
    """One row a (batch, length)."""
    options = SMALL if torch.cuda.is_available() else {}
    for batch, length in points:
        ids = tokens(model, batch, length)
        with path(model, study, options, ids):
            yield {"study": study} | measure(model, ids)


def by_rank(model: torch.nn.Module, scale: int) -> Iterator[Row]:
    """One row a rank, each with an adapter of its own on the same base."""
    for rank in (4, 64, 256):
        model = adapted(model.unload(), rank)
        for row in growth(model, "rank", [(4, 1024 // scale)]):
            yield row | {"rank": rank}


def by_size(size: str, scale: int) -> Iterator[Row]:
    """One row a model; "tiny" alone where that is tried."""
    for name in [size] if size == "tiny" else [size, "0.5b", "1b", "3b"]:
        gc.collect()  # the model before this one
        torch.cuda.empty_cache()
        model = adapted(base(name))
        count = sum(p.numel() for p in model.parameters())
        for row in growth(model, "size", [(4, 1024 // scale)]):
            yield row | {"size": name, "parameters": count}
        del model


def rows(size: str, studies: tuple[str, ...] = ALL) -> Iterator[Row]:
    """These studies; `size` "tiny" tries them on a CPU."""
    scale = 1 if size != "tiny" else 32
    lengths = [128, 512, 1024, 2048, 4096, 8192, 16384, 32768]
    points = {
        "length": [(1, n // scale) for n in lengths],
        "batch": [(n, 1024 // scale) for n in (1, 2, 4, 8, 16)],
    }
    model = adapted(base(size)) if set(studies) - {"size"} else None
    for study in [name for name in ALL if name in studies]:
        if study == "ablation":
            yield from ablation(model, scale)
        elif study == "rank":
            yield from by_rank(model, scale)
        elif study == "size":
            model = None  # one model at a time
            yield from by_size(size, scale)
        else:
            yield from growth(model, study, points[study])


def run(lines: Path, seconds: float, size: str, studies: tuple[str, ...]) -> None:
    """Measure until `seconds` have passed; a row goes to the file as soon as it is there."""
    end = time.monotonic() + seconds
    for row in rows(size, studies):
        with lines.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row | common.facts()) + "\n")
        name = row.get("trick") or f"{row['batch']} x {row['length']}"
        print(row["study"], name, row["tokens_per_second"], row["peak_gib"], flush=True)
        if time.monotonic() > end:
            break


def collect(files: list[str], name: str, notes: list[str] | None) -> Path:
    """Write results/NAME.json and its picture."""
    text = "".join(Path(file).read_text(encoding="utf-8") for file in files)
    made = common.write_result(
        name, {"rows": [json.loads(line) for line in text.splitlines()]}, notes
    )
    plot(json.loads(made.read_text(encoding="utf-8"))["rows"], RESULTS / f"{name}.png")
    return made


NAMES = ("seconds per step", "peak memory (GiB)")
STUDIES = (  # study, a row's place on the x axis, its unit
    ("length", lambda r: r["length"], "tokens in one row"),
    ("batch", lambda r: r["batch"], "rows of 1,024 tokens"),
    ("rank", lambda r: r["rank"], "rank (4 x 1,024 tokens)"),
    ("size", lambda r: r["parameters"] / 1e9, "parameters, in billions (4 x 1,024)"),
)


def plot(found: list[Row], picture: Path) -> None:
    """Seconds a step and peak memory against the work, each with the straight line to follow.

    Time should be in proportion to the work, memory a straight line above what does not grow.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained")
    for (study, place, unit), column in zip(STUDIES, axes.T, strict=True):
        picked = sorted((r for r in found if r["study"] == study), key=place)
        xs, full = [place(r) for r in picked], _full(picked)
        for axis, y, name in zip(column, ("seconds_per_step", "peak_gib"), NAMES, strict=True):
            ys = [r[y] for r in picked]
            axis.plot(xs, ys, "o-", label="measured")
            # rank is no measure of a step's work, so its time too has a part that does not grow
            start, end = (0.0, 0.0), (xs[full], ys[full])
            if y == "peak_gib" or study == "rank":
                start, end = _two(list(zip(xs, ys, strict=True)), full)
            slope = (end[1] - start[1]) / (end[0] - start[0])
            axis.plot([0, xs[-1]], [start[1] + slope * (x - start[0]) for x in (0, xs[-1])], ":",
                      label="straight line")  # fmt: skip
            axis.set(xlabel=unit, ylabel=name, xlim=(0, None), ylim=(0, None))
    axes[0, 0].legend()
    figure.suptitle("LoRA step of a 7B shape with checkpointing and offload, one H200")
    figure.savefig(picture, dpi=70)


def _two(points: list[tuple[float, float]], full: int) -> list[tuple[float, float]]:
    """Two points of the line that has a part that does not grow: `full` and the one after it.

    Below `full` the highest moment may be the optimizer's, which knows nothing of the work.  Where
    `full` is the last point, the line goes through the first and the last.
    """
    first = full if full < len(points) - 1 else 0
    return [points[first], points[full + 1 if first else full]]


def _full(picked: list[Row]) -> int:
    """The first point whose 4096 tokens keep the GPU busy, or else the last one."""
    for number, row in enumerate(picked[1:], 1):
        if row["batch"] * row["length"] == 4096 and row["study"] in ("length", "batch"):
            return number
    return len(picked) - 1


def main() -> None:
    """The command line; see the top of this file."""
    parser = common.parser(__doc__, ["run", "collect"], name="growth_h200")
    given = parser.parse_args()
    if given.action == "run":
        studies = common.named(given.only, ALL)
        run(common.lines_path("growth"), given.seconds, given.shape, studies)
    else:
        print(collect(given.what, given.name, given.note))


if __name__ == "__main__":
    sys.exit(main())
