"""The shape of each notebook in a table, and where one leaves the bounds of its kind.

    python tools/notebook_report.py                      every notebook
    python tools/notebook_report.py notebooks/04_lora.ipynb

Minutes are what the first cell says; seconds what the notebook took here when it was last refreshed
or checked by `pytest --nbval`, "-" if never. Exit code 1 where a rule of tests/notebook_rules.py is
broken, or a notebook took longer than it says.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # run as a script, from wherever

import notebook_rules as rules  # noqa: E402

from tools.refresh import Shape, all_notebooks, known_seconds  # noqa: E402

HEAD = ("notebook", "cells", "prose", "words", "median", "longest", "figures", "kB", "min", "s")


def row(path: Path, seconds: float | None, root: Path = ROOT) -> tuple[str, ...]:
    """A line of the table: lines of code cells, kB of the file, minutes stated, seconds taken."""
    notebook = rules.Notebook.read(path)
    shape = Shape.of(notebook.node)
    return (
        path.relative_to(root).as_posix(),
        str(shape.cells),
        f"{shape.prose_share:.0%}",
        f"{shape.words:,}",
        f"{shape.median_lines:g}",
        str(shape.most_lines),
        str(shape.figures),
        f"{path.stat().st_size / 1000:.0f}",
        str(rules.stated_minutes(notebook) or "-"),
        "-" if seconds is None else f"{seconds:.0f}",
    )


def complaints(path: Path, seconds: float | None) -> list[str]:
    """What is out of bounds, each with what to do."""
    notebook = rules.Notebook.read(path)
    found = [text for rule in rules.rules_for(path) for text in rule(notebook)]
    minutes = rules.stated_minutes(notebook)
    if seconds is not None and minutes and seconds > 60 * minutes:
        found.append(f"took {seconds:.0f} s, but says {minutes} minutes: shorten it, or say so")
    return found


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows below their heads, in columns; the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = []
    for cells in (HEAD, *rows):
        first, *others = zip(cells, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in others)]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line; 0 when every notebook keeps its bounds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks; all by default")
    given = parser.parse_args(arguments)
    paths = [path.resolve() for path in given.notebooks] or all_notebooks(root)
    took = known_seconds(root / "runs" / "notebook_seconds.json")
    seconds = {path: took.get(path.relative_to(root).as_posix()) for path in paths}
    print(table([row(path, seconds[path], root) for path in paths]))
    wrong = [f"{path.name}: {it}" for path in paths for it in complaints(path, seconds[path])]
    print("\n".join(["", *wrong] if wrong else []), end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
