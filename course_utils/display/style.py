"""One look for every picture of the course, and PNG bytes that stay small in a notebook."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "ink": "#1f2937",
    "muted": "#64748b",
    "grid": "#e2e8f0",
    "track": "#e8edf3",
    "train": "#2563eb",
    "validation": "#d9730d",
    "before": "#a3afbf",
    "after": "#15935f",
    "memory": "#7c5cd6",
    "good": "#15935f",
    "warn": "#b7791f",
    "bad": "#c53d3d",
}
"""The palette by role: the same thing has the same color in every chapter."""

LINES = ("#2563eb", "#d9730d", "#15935f", "#7c5cd6", "#c2418a", "#0e8a9e")
"""Colors of compared runs, told apart by color-blind readers too (and by their line styles)."""

CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "WenQuanYi Micro Hei",
)


@cache
def _font_families() -> list[str]:
    """DejaVu (shipped with matplotlib, so the same everywhere), then a font that has Chinese."""
    if not _chinese_fonts():
        _look_for_new_fonts()
    return ["DejaVu Sans", *_chinese_fonts()[:1]]


def _chinese_fonts() -> list[str]:
    """Those of `CJK_FONTS` that matplotlib knows of."""
    from matplotlib import font_manager

    known = set(font_manager.get_font_names())
    return [name for name in CJK_FONTS if name in known]


def _look_for_new_fonts() -> None:
    """Tell matplotlib of the fonts that came after its first start: its list is from then."""
    from matplotlib import font_manager

    fonts = font_manager.fontManager
    for path in set(font_manager.findSystemFonts()) - {font.fname for font in fonts.ttflist}:
        with suppress(Exception):  # some are of a kind that matplotlib cannot read
            fonts.addfont(path)


@cache
def _settings() -> dict[str, Any]:
    from matplotlib import cycler

    return {
        "font.family": _font_families(),
        "font.size": 9,
        "figure.dpi": 100,
        "figure.facecolor": "white",
        "axes.facecolor": "white",
        "axes.edgecolor": COLORS["grid"],
        "axes.labelcolor": COLORS["muted"],
        "axes.titlecolor": COLORS["ink"],
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=LINES),
        "grid.color": COLORS["grid"],
        "grid.linewidth": 0.8,
        "xtick.color": COLORS["muted"],
        "ytick.color": COLORS["muted"],
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "text.color": COLORS["ink"],
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.8,
    }


def course_style() -> AbstractContextManager[None]:
    """The course's look inside a ``with`` block; the user's own settings are back after it."""
    import matplotlib

    return matplotlib.rc_context(_settings())


def encode_png(rgba: Any, *, colors: int | None = None) -> bytes:
    """Pixels of an Agg canvas as PNG bytes.

    ``colors`` reduces the picture to a palette, which makes it about a third of the size; without
    it the picture is written as fast as can be, for frames that are soon replaced.
    """
    from PIL import Image

    height, width = rgba.shape[:2]
    image = Image.frombuffer("RGBA", (width, height), rgba, "raw", "RGBA", 0, 1).convert("RGB")
    out = io.BytesIO()
    if colors is None:
        image.save(out, format="png", compress_level=1)
    else:
        image.quantize(colors, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return out.getvalue()


def figure_png(figure: Figure, *, colors: int = 128) -> bytes:
    """A matplotlib figure as small PNG bytes, whatever backend it was made for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with course_style():
        canvas.draw()
    return encode_png(canvas.buffer_rgba(), colors=colors)
