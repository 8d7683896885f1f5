"""What the course covers: each part of the guide that it follows, and the cells that show it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import CourseError

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@dataclass(frozen=True)
class Part:
    """A part of the guide.

    id: its section.  about: what the course does with it.  cells: "chapter:cell id", in the order
    of the chapters; a chapter is the number that its file begins with.
    """

    id: str
    about: str
    cells: tuple[str, ...]


def _part(id: str, about: str, *chapters: str) -> Part:
    """chapters: "00 cell cell ..."."""
    cells = [f"{c.split()[0]}:{cell}" for c in chapters for cell in c.split()[1:]]
    return Part(id, about, tuple(cells))


PARTS = (
    _part("1.1-1.2", "training on top of a pretrained model: from nothing, before and after, what "
          "is forgotten", "01 tiny-model tiny-train base-intro next-token compare live-run "
          "adapter-off forgotten", "03 forgetting-shipped-table"),
    _part("1.3", "pretraining, full fine-tuning, LoRA and QLoRA in one measured table",
          "01 three-ways trade-off share-and-time seven", "05 table-memory table-time"),
    _part("2.1-2.2", "how many rows it takes: held-out score over the number of rows",
          "02 needed live claims"),
    _part("2.3", "plain text, Alpaca and chat rows: read, checked, converted, bad ones named",
          "02 forms files own-intro faults"),
    _part("2.4", "templates, answers only, end of text, padding and packing, truncation, leaks",
          "02 template labels-equal labels-show end padding packing cut cut-count copies leak near",
          "07 own alpaca"),
    _part("3.1", "full fine-tuning: the update by hand, bytes of each parameter, when to do it",
          "03 adamw-by-hand bytes-step seven-predicted seven-measured rates-run forgetting-plot "
          "worth"),
    _part("3.2", "LoRA in a few lines, equal to PEFT's; counts, ranks, targets, merging",
          "04 layer-class layer-peft-equal count-7b study-plot merge-equal memory-predict"),
    _part("3.3", "NF4 by hand, equal to bitsandbytes'; training on 4 bits, memory by part, quality",
          "05 blocks equal-bits double-count train-run study seven-saved merge-three"),
    _part("4.1", "one class for all of it, and the whole flow as a script", "00 train keep-save",
          "11 script-train"),
    _part("5.1", "presets that fit the cards they name", "06 presets-predict presets-measured "
          "presets-plan-card"),
    _part("5.2", "grid and random search on validation rows, resumable; a sampler that learns",
          "06 grid-run random-begin random-resumed tpe-shipped tpe-importance"),
    _part("5.3", "the rules for rate, rank, alpha and batch, as experiments",
          "03 accumulate-compare", "04 alpha-step", "06 rules-rate rules-rank-study "
          "rules-rank-rate rules-claims"),
    _part("5.4", "out of memory, no convergence, overfitting: provoked, read, cured",
          "06 curves-numbers", "10 oom-provoke oom-cure rate-provoke rate-cure warmup "
          "overfitting-provoke overfitting-cure cures-study"),
    _part("6.1", "case study: following instructions", "07 baseline train gain by-kind side"),
    _part("6.2", "case study: code, scored by running it", "08 sandbox-escapes recipe-run "
          "after-gain passk-table humaneval-shipped"),
    _part("6.3", "case study: chat in little memory, all turns, a chat box",
          "09 labels-show first-turn budget-plan train-run train-budget after-score box-chat"),
    _part("7.1", "the nine steps from data to a model in use", "00 data recipe train after-score "
          "keep-save", "11 script-data script-train serve-ask"),
    _part("7.2", "the quick-start template", "00 load-base train your-message"),
    _part("8", "installing", "00 setup-colab setup-imports environment"),
    _part("9", "errors and what to do about them", "10 table oom-provoke targets-provoke "
          "targets-cure nan-provoke masked alpha template-provoke frozen-provoke"),
    _part("10", "a recap from what was measured; merge, export, serve, where to go next",
          "11 merge-run gguf-back serve-ask ledger-rows where-next"),
)  # fmt: skip


def known_cells(folder: Path = NOTEBOOKS) -> dict[str, set[str]]:
    """The cell ids of each chapter, by the number that its file begins with."""
    files = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not files:
        raise CourseError(
            f"There are no chapters in {folder}: coverage looks at the notebooks, so run it in a "
            "clone of the course."
        )
    read = {file.name[:2]: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {chapter: {cell["id"] for cell in book["cells"]} for chapter, book in read.items()}


def gaps(parts: Iterable[Part] | None = None) -> list[str]:
    """A sentence for each part (default `PARTS`) without a cell, and for each cell that is gone."""
    cells, found = known_cells(), []
    for part in PARTS if parts is None else parts:
        if not part.cells:
            found.append(f"Part {part.id} of the guide ({part.about}) has no cell that shows it.")
        for cell in part.cells:
            chapter, _, name = cell.partition(":")
            if name not in cells.get(chapter, ()):
                found.append(f"Part {part.id} names {cell}, and there is no such cell.")
    return found


def table() -> str:
    """The parts as lines of text, each with its cells."""
    return "\n".join(f"{part.id:8} {part.about}\n{'':9}{', '.join(part.cells)}" for part in PARTS)
