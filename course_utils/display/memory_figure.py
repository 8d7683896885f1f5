"""One run's memory as a bar of its parts, against the memory of a card."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from course_utils.errors import CourseError

from .style import COLORS, course_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from course_utils.memory import Estimate

UNUSED, CONTEXT, PAGED = "reserved, not in use", "CUDA context", "paged optimizer states"
NCCL = "NCCL, to send data"
COLUMNS = 3
# A part has the same color in every picture; neighbors differ in lightness too, and what is no
# tensor is hatched, so that color alone never tells them apart.
FILLS: dict[str, tuple[str, str]] = {
    "weights": ("#2563eb", ""),
    "quantization constants": ("#93b4f5", ""),
    "adapters": ("#d9730d", ""),
    "gradients": ("#f2c14e", ""),
    "optimizer": ("#2fae76", ""),
    "activations": ("#7c5cd6", ""),
    "logits": ("#d8a6ec", ""),
    "workspace": ("#0e7c8f", ""),
    "rounding": ("#cbd5e1", ""),
    "python and libraries": ("#94a3b8", "////"),
    UNUSED: ("#b9c6d6", "////"),
    PAGED: ("#8fd3b4", "...."),
    CONTEXT: ("#8a97a8", "xxxx"),
    NCCL: ("#6b7280", "oooo"),
}


def segments(estimate: Estimate) -> dict[str, float]:
    """GiB of everything that the process holds, from the weights to the CUDA context.

    The parts of the estimate, then what PyTorch has reserved and no tensor is in, then what the
    hardware takes beside PyTorch; together process_gib.
    """
    from course_utils.memory.estimate import HARDWARE

    found = dict(estimate.parts)
    if estimate.device == "cuda":
        sends = HARDWARE["nccl_gib"] if estimate.gpus > 1 else 0.0
        beside = estimate.process_gib - estimate.reserved_gib - sends
        paged = any("paged" in note for note in estimate.notes)
        context = min(HARDWARE["context_gib"], beside) if paged else beside
        found[UNUSED] = estimate.reserved_gib - estimate.allocated_gib
        found |= {PAGED: beside - context, CONTEXT: context, NCCL: sends}
    return {name: gib for name, gib in found.items() if gib > 1e-6}


def verdict(
    estimate: Estimate, card_gib: float, needs_gib: float | None = None
) -> tuple[bool, str]:
    """(whether it fits, a sentence that says so).

    needs_gib: the smallest card that will do, such as `Choice.needs_gib` of a plan; without it the
    upper end of the estimate and what a plan leaves to spare.
    Raises CourseError for a card without memory.
    """
    from course_utils.memory.plan import SPARE_GIB

    if isinstance(card_gib, bool) or not isinstance(card_gib, int | float) or not card_gib > 0:
        raise CourseError(f"card_gib is {card_gib!r}: give the card's memory in GiB, such as 8.")
    needs = estimate.range_gib[1] + SPARE_GIB if needs_gib is None else needs_gib
    fits = needs <= card_gib
    start = "Fits" if fits else "Does not fit"
    need = math.ceil(100 * needs - 1e-9) / 100  # rounded down, 8.004 would pass for a card of 8
    return fits, f"{start} {card_gib:g} GiB: it needs {need:.2f} GiB, margin included."


def memory_bar(
    estimate: Estimate,
    card_gib: float | None = None,
    *,
    needs_gib: float | None = None,
    title: str = "",
    ax: Axes | None = None,
) -> Figure:
    """What a run will take, part by part, in GiB (2^30 bytes), against a card of `card_gib`.

    estimate: of `memory.estimate`.  needs_gib: see `verdict`.  The thin line at the end of the bar
    is the range in which the whole should lie.  Raises CourseError for a card without memory.
    """
    from .plots import _new_axes

    said = verdict(estimate, card_gib, needs_gib) if card_gib is not None else None
    rows, own = -(-len(segments(estimate)) // COLUMNS), ax is None
    with course_style():
        figure, ax = _new_axes(ax, 2.1 + 0.19 * rows + 0.2 * bool(title))
        most = 1.04 * max(estimate.range_gib[1], card_gib or 0)
        ax.set(ylim=(-0.62, 0.62), xlim=(0, most), yticks=[])
        _stack(ax, estimate)
        _range(ax, estimate)
        memory = "GPU memory" if estimate.device == "cuda" else "resident memory"
        ax.set_xlabel(f"{memory} of the process (GiB)")
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        if said:
            _card(ax, card_gib, *said)
        if title:
            ax.set_title(title, pad=22 if said else 6)
        _legend(ax, own)
    return figure


def _legend(ax: Axes, own: bool) -> None:
    """Every part with its size, below; `own`: the figure is ours, and makes room for it."""
    look = {"ncols": COLUMNS, "fontsize": 8, "handlelength": 1.4, "columnspacing": 1.6}
    if own:
        ax.figure.legend(loc="outside lower left", borderaxespad=0.6, **look)
    else:
        ax.legend(loc="upper left", bbox_to_anchor=(-0.01, -0.36), borderaxespad=0, **look)


def _stack(ax: Axes, estimate: Estimate) -> None:
    """The parts side by side."""
    left = 0.0
    for name, gib in segments(estimate).items():
        color, hatch = FILLS.get(name, (COLORS["muted"], ".."))
        ax.barh(
            0, gib, 0.62, left=left, color=color, hatch=hatch, edgecolor="white", linewidth=0.7,
            label=f"{name} {_size(gib)}",
        )  # fmt: skip
        left += gib


def _range(ax: Axes, estimate: Estimate) -> None:
    """Below the bar: where its end should lie, and its length in words, on the side with room."""
    low, high = estimate.range_gib
    ax.plot([low, high], [-0.46, -0.46], color=COLORS["ink"], lw=1.4, marker="|", ms=6)
    right = ax.get_xlim()[1] - high > low
    ax.annotate(
        f"{estimate.process_gib:.2f} GiB ({low:.2f} to {high:.2f})",
        (high if right else low, -0.46), xytext=(7 if right else -7, 0), va="center", fontsize=8.5,
        textcoords="offset points", ha="left" if right else "right", color=COLORS["ink"],
    )  # fmt: skip


def _size(gib: float) -> str:
    if gib >= 0.01:
        return f"{gib:.2f} GiB"
    return f"{2**10 * gib:.1f} MiB" if gib >= 1e-4 else f"{2**20 * gib:.0f} KiB"


def _card(ax: Axes, card_gib: float, fits: bool, said: str) -> None:
    """The card's end, and the verdict in words: the color only repeats them."""
    color, mark = (COLORS["good"], "✓") if fits else (COLORS["bad"], "✗")
    ax.axvline(card_gib, color=color, lw=2.2, ls="-" if fits else (0, (3, 2)))
    ax.axvspan(card_gib, ax.get_xlim()[1], color=color, alpha=0.08, lw=0, zorder=0)
    right = card_gib < ax.get_xlim()[1] / 2
    ax.annotate(
        f"card {card_gib:g} GiB", (card_gib, 0.46), xytext=(5 if right else -5, 0), va="center",
        textcoords="offset points", ha="left" if right else "right", fontsize=8.5, color=color,
    )  # fmt: skip
    ax.annotate(
        f"{mark} {said}", (0, 1), xycoords="axes fraction", xytext=(0, 5),
        textcoords="offset points", fontsize=9.5, fontweight="bold", color=color,
    )  # fmt: skip


def alternative_text(estimate: Estimate, card_gib: float | None, needs_gib: float | None) -> str:
    """What the picture shows, in a sentence."""
    parts = sorted(segments(estimate).items(), key=lambda item: -item[1])
    largest = ", ".join(f"{name} {_size(gib)}" for name, gib in parts[:4])
    text = f"{estimate.process_gib:.2f} GiB in a bar of parts; the largest: {largest}."
    return text + (f" {verdict(estimate, card_gib, needs_gib)[1]}" if card_gib is not None else "")
