"""Run notebooks in a fresh kernel and keep their outputs, clean enough to be committed.

    python tools/refresh.py notebooks/00_start_here.ipynb
    python tools/refresh.py --all
    python tools/refresh.py notebooks/09_case_chat.ipynb --cells +data-card,seven-time

The last runs the imports and these cells alone, where a result that they read has changed; of those
with a + the outputs stay as they were.

A notebook that raises is left as it was. Cell ids, sources and tags are never changed.
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import json
import os
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("notebooks", "exercises", "solutions")
PNG_LIMIT = 60_000
"""Bytes of a picture above which its colors are reduced."""
CELL_SECONDS = 600
IMPORTS = ("setup", "setup-imports")
"""Ids of the cells that import."""
SECONDS = ROOT / "runs" / "notebook_seconds.json"
"""What each notebook took when it was last run whole on this machine; not committed."""
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_OF_CELL = ("tags", "jupyter")


class RefreshError(Exception):
    """A notebook that cannot be refreshed; the message says where it failed."""


@dataclass(frozen=True)
class Shape:
    """What a notebook consists of."""

    cells: int
    prose_share: float
    """Share of the cells that are prose."""
    words: int
    """In the prose, without code blocks and addresses."""
    median_lines: float
    """Of a code cell."""
    most_lines: int
    figures: int

    @classmethod
    def of(cls, notebook: NotebookNode) -> Shape:
        texts = {"markdown": [], "code": []}
        for cell in notebook.cells:
            texts.setdefault(cell.cell_type, []).append("".join(cell.source))
        lines = [len(text.strip().splitlines()) for text in texts["code"]] or [0]
        prose = re.sub(
            r"```.*?```|<[^>]*>|\]\([^)]*\)", " ", "\n".join(texts["markdown"]), flags=re.S
        )
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        return cls(
            cells=len(notebook.cells),
            prose_share=len(texts["markdown"]) / max(1, len(notebook.cells)),
            words=len(re.findall(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+", prose)),
            median_lines=statistics.median(lines),
            most_lines=max(lines),
            figures=sum("image/png" in output.get("data", {}) for output in outputs),
        )


def kernel_environment(root: Path = ROOT) -> dict[str, str]:
    """Environment of the kernels that execute and check notebooks.

    They import this checkout, never reach for the network, and show no foreign progress bars, so
    that outputs are the same on every machine.
    """
    path = [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GOMP_SPINCOUNT": "10000",  # see compat: here for notebooks that import torch first
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def all_notebooks(root: Path = ROOT) -> list[Path]:
    """Every notebook of the course, in reading order."""
    found = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*.ipynb"))]
    return [path for path in found if ".ipynb_checkpoints" not in path.parts]


def execute(notebook: NotebookNode, folder: Path, cell_seconds: int = CELL_SECONDS) -> None:
    """Run all cells in place, in ``folder``. Raises RefreshError at the first cell that fails."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    client = NotebookClient(
        notebook,
        timeout=cell_seconds,  # without one nbclient may wait for ever
        kernel_name="python3",
        store_widget_state=False,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise RefreshError(f"a cell raised {error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise RefreshError(f"a cell took more than {cell_seconds} s") from error
    except DeadKernelError as error:
        raise RefreshError("the kernel died, perhaps for want of memory") from error


def execute_cells(
    notebook: NotebookNode, folder: Path, cell_seconds: int, cells: tuple[str, ...]
) -> None:
    """Run the imports and these cells, in a kernel of their own, and keep these cells' outputs.

    A + before an id runs the cell and keeps the outputs that it had.
    """
    named = {name.removeprefix("+") for name in cells}
    if missing := named - {cell.id for cell in notebook.cells}:
        raise RefreshError(f"there is no cell {', '.join(sorted(missing))}")
    part = copy.deepcopy(notebook)
    part.cells = [cell for cell in part.cells if cell.id in named | set(IMPORTS)]
    execute(part, folder, cell_seconds)
    made = {cell.id: cell.outputs for cell in part.cells if cell.id in cells}
    for cell in notebook.cells:
        if cell.id in made:
            cell.outputs = made[cell.id]
        for output in made.get(cell.id, []):
            if "execution_count" in output:
                output.execution_count = cell.execution_count


def clean(notebook: NotebookNode) -> None:
    """Drop what differs from run to run or belongs to one machine; make pictures small."""
    from nbformat import from_dict

    notebook.metadata = from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = from_dict({k: v for k, v in cell.metadata.items() if k in KEPT_OF_CELL})
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            # A widget lives in the kernel that made it; readers see the text or picture beside it.
            data.pop(WIDGET_MIME, None)
            if "image/png" in data:
                data["image/png"] = small_png(data["image/png"])


def small_png(picture: str, limit: int = PNG_LIMIT) -> str:
    """A base64 PNG, with a palette of fewer colors where it is above ``limit`` bytes."""
    raw = base64.b64decode(picture)
    if len(raw) <= limit:
        return picture
    from PIL import Image

    image = Image.open(io.BytesIO(raw)).convert("RGB")
    for colors in (256, 128, 64, 32, 16):
        out = io.BytesIO()
        image.quantize(colors, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
        if out.tell() <= limit:
            return base64.b64encode(out.getvalue()).decode("ascii")
    raise RefreshError(f"a picture is above {limit // 1000} kB even in 16 colors: draw it smaller")


def remember_seconds(measured: dict[str, float], file: Path = SECONDS) -> None:
    """Note how long notebooks took, in seconds by their path in the repository."""
    known = known_seconds(file) | {name: round(seconds, 1) for name, seconds in measured.items()}
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(file)


def known_seconds(file: Path = SECONDS) -> dict[str, float]:
    """What ``remember_seconds`` noted; empty where nothing was run yet."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def refresh(path: Path, cell_seconds: int = CELL_SECONDS, cells: tuple[str, ...] = ()) -> str:
    """Execute one notebook and write it back; return a line that describes the result.

    cells: ids of the only cells to run, as the command line has them; none: all.
    Raises RefreshError, and leaves the file as it was, where a cell fails or is not there.
    """
    import nbformat

    began = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    if cells:
        execute_cells(notebook, path.resolve().parent, cell_seconds, cells)
    else:
        execute(notebook, path.resolve().parent, cell_seconds)
    clean(notebook)
    nbformat.validate(notebook)
    part = path.with_suffix(".ipynb.part")
    part.write_text(written(notebook), encoding="utf-8", newline="\n")
    part.replace(path)
    seconds = time.monotonic() - began
    if path.resolve().is_relative_to(ROOT) and not cells:
        remember_seconds({path.resolve().relative_to(ROOT).as_posix(): seconds})
    return describe(path, notebook, seconds)


def written(notebook: NotebookNode) -> str:
    """The notebook as its file has it."""
    import nbformat

    return nbformat.writes(notebook).rstrip("\n") + "\n"


def describe(path: Path, notebook: NotebookNode, seconds: float) -> str:
    """Size, time and shape of a notebook, in one line."""
    shape = Shape.of(notebook)
    return (
        f"{path.name}: {path.stat().st_size / 1000:.0f} kB, {seconds:.0f} s, {shape.cells} cells "
        f"({shape.prose_share:.0%} prose), median code cell {shape.median_lines:g} lines"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when every notebook was refreshed, 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to run and rewrite")
    parser.add_argument("--all", action="store_true", help="every notebook of the course")
    parser.add_argument("--cells", default="", help="ids of the cells to run, see above")
    parser.add_argument("--timeout", type=int, default=CELL_SECONDS, help="seconds for one cell")
    given = parser.parse_args(arguments)
    paths = all_notebooks() if given.all else given.notebooks
    if not paths:
        parser.error("name the notebooks to refresh, or give --all")
    os.environ.update(kernel_environment())
    cells, failed = tuple(filter(None, given.cells.split(","))), 0
    for path in paths:
        try:
            print(refresh(path, given.timeout, cells), flush=True)
        except (RefreshError, FileNotFoundError) as error:
            failed += 1
            print(f"{path}: not refreshed: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
