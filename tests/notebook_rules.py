"""The form of a course notebook, as rules that each say what to do where one is broken.

A rule takes a notebook and returns its complaints; ``FILE_RULES`` hold for every notebook,
``CHAPTER_RULES`` for the chapters, ``EXERCISE_RULES`` for exercises and solutions, of which each
has some of its own, and ``ENGLISH_RULES`` for chapters in English.
"""

from __future__ import annotations

import ast
import base64
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools import exercises
from tools.refresh import FOLDERS, Shape

PNG_BYTES = 60_000
NOTEBOOK_BYTES = 1_000_000
CELLS = (40, 75)
FEWEST_CELLS = {"00_start_here": 25}
PROSE_SHARE = (0.50, 0.70)
MEDIAN_LINES, MOST_LINES = 8, 25
FEWEST_EXERCISES = 4
FEWEST_HINTS = 2
HEADINGS = (
    "What you will be able to do",
    "What it cost",
    "Pitfalls",
    "Recap",
    "Check your understanding",
)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
STABLE_ID = re.compile(r"(?!^[0-9a-f]{8,}$)(?!^[0-9a-f]{8}-)[a-z0-9]+(-[a-z0-9]+)*")
LOCAL_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|work|tmp|Users)(?![\w-])|[A-Za-z]:\\+Users")
# Beyond ASCII, English prose may use these signs, and the name of the other language in a link.
SIGNS = set("–—…“”‘’×÷±≈≠≤≥→←↔⇒·•°²³√∑∂∞∈½¼§é✓✗αβγδεηθλμπρσφωΔΣΩ│▶▼")
PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
COLAB = PROJECT["project"]["urls"]["Repository"].replace(
    "https://github.com", "https://colab.research.google.com/github"
)
OTHER_LANGUAGE = "中文"


@dataclass(frozen=True)
class Notebook:
    """A notebook and where it is."""

    path: Path
    node: NotebookNode

    @classmethod
    def read(cls, path: Path) -> Notebook:
        # As written: nbformat would repair ids while reading.
        return cls(path, nbformat.from_dict(json.loads(path.read_text(encoding="utf-8"))))

    @property
    def cells(self) -> list[NotebookNode]:
        return self.node.cells

    @property
    def code(self) -> list[NotebookNode]:
        return [cell for cell in self.cells if cell.cell_type == "code"]

    def outputs(self) -> Iterator[tuple[str, NotebookNode]]:
        """Each output with the id of its cell."""
        for cell in self.code:
            for output in cell.outputs:
                yield name(cell), output


Rule = Callable[[Notebook], list[str]]


def name(cell: NotebookNode) -> str:
    return f"cell {cell.get('id', '(no id)')!r}"


def source(cell: NotebookNode) -> str:
    return "".join(cell.source)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


# ---------------------------------------------------------------- every notebook


def is_valid_notebook(nb: Notebook) -> list[str]:
    try:
        nbformat.validate(nb.node)
    except (nbformat.ValidationError, AttributeError, KeyError) as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}; run tools/refresh.py"]
    return []


def has_stable_ids(nb: Notebook) -> list[str]:
    ids = [cell.get("id", "") for cell in nb.cells]
    odd = [i for i in ids if not STABLE_ID.fullmatch(i)]
    twice = [i for i, count in Counter(ids).items() if count > 1]
    wrong = [f"cell id {i!r}: give a name such as 'lora-merge-equal'" for i in odd]
    return wrong + [f"cell id {i!r} is used twice: ids are unique" for i in twice]


def was_run_top_to_bottom(nb: Notebook) -> list[str]:
    run = [cell for cell in nb.code if source(cell).strip() and "nbval-skip" not in tags(cell)]
    counts = [cell.get("execution_count") for cell in run]
    if counts == list(range(1, len(counts) + 1)):
        return []
    return [f"execution counts are {counts}: run tools/refresh.py"]


def has_no_stray_error(nb: Notebook) -> list[str]:
    wanted = {name(cell) for cell in nb.code if "raises-exception" in tags(cell)}
    return [
        f"{where} shows {output.ename}: repair it, or tag it raises-exception if it is meant"
        for where, output in nb.outputs()
        if output.output_type == "error" and where not in wanted
    ]


def has_no_stderr(nb: Notebook) -> list[str]:
    return [
        f"{where} wrote to stderr ({_text(output.text)[:60]!r}): filter it in course_utils"
        for where, output in nb.outputs()
        if output.output_type == "stream" and output.name == "stderr"
    ]


def has_clean_metadata(nb: Notebook) -> list[str]:
    wrong = []
    if "widgets" in nb.node.metadata:
        wrong.append("metadata.widgets is stored: run tools/refresh.py")
    if nb.node.metadata.get("kernelspec", {}).get("name") != "python3":
        wrong.append("the kernelspec is not 'python3': run tools/refresh.py")
    timed = [name(cell) for cell in nb.cells if "execution" in cell.metadata]
    return wrong + [f"{where} stores times: run tools/refresh.py" for where in timed]


def has_no_svg(nb: Notebook) -> list[str]:
    return [
        f"{where} shows an svg, which differs in each run: use png"
        for where, output in nb.outputs()
        if "image/svg+xml" in output.get("data", {})
    ]


def has_no_local_path(nb: Notebook) -> list[str]:
    texts = [(name(cell), source(cell)) for cell in nb.cells]
    for where, output in nb.outputs():
        data = output.get("data", {})
        texts += [(where, _text(data[kind])) for kind in data if kind.startswith("text/")]
        texts.append((where, _text(output.get("text", ""))))
    found = [(where, match) for where, text in texts if (match := LOCAL_PATH.search(text))]
    return [f"{where} holds the path {m.group()!r}: show it relative" for where, m in found]


def has_no_trailing_semicolon(nb: Notebook) -> list[str]:
    return [
        f"{name(cell)} ends in ';', which does not hide the value in nbval: write `_ = ...`"
        for cell in nb.code
        if source(cell).rstrip().endswith(";")
    ]


def is_small(nb: Notebook) -> list[str]:
    wrong = []
    if (size := nb.path.stat().st_size) > NOTEBOOK_BYTES:
        wrong.append(f"the file has {size:,} bytes, more than {NOTEBOOK_BYTES:,}: show less")
    for where, output in nb.outputs():
        picture = _text(output.get("data", {}).get("image/png", ""))
        if (size := len(base64.b64decode(picture))) > PNG_BYTES:
            wrong.append(f"{where} has a picture of {size:,} bytes: run tools/refresh.py")
    return wrong


# ---------------------------------------------------------------- chapters


def has_short_code_cells(nb: Notebook) -> list[str]:
    lengths = {name(cell): len(source(cell).strip().splitlines()) for cell in nb.code}
    wrong = [
        f"{where} has {lines} lines, more than {MOST_LINES}: move code to course_utils"
        for where, lines in lengths.items()
        if lines > MOST_LINES
    ]
    if (median := Shape.of(nb.node).median_lines) > MEDIAN_LINES:
        wrong.append(f"the median code cell has {median:g} lines, not <= {MEDIAN_LINES}: split")
    return wrong


def has_chapter_length(nb: Notebook) -> list[str]:
    low, high = FEWEST_CELLS.get(nb.path.stem, CELLS[0]), CELLS[1]
    if low <= len(nb.cells) <= high:
        return []
    return [f"{len(nb.cells)} cells: a chapter has {low} to {high}"]


def is_mostly_prose(nb: Notebook) -> list[str]:
    share = Shape.of(nb.node).prose_share
    low, high = PROSE_SHARE
    if low <= share <= high:
        return []
    return [f"{share:.0%} of the cells are prose: a chapter has {low:.0%} to {high:.0%}"]


def reads_each_figure(nb: Notebook) -> list[str]:
    wrong = []
    for cell, after in zip(nb.cells, [*nb.cells[1:], None], strict=True):
        if cell.cell_type != "code" or not _shows_picture(cell):
            continue
        if after is None or after.cell_type != "markdown" or not _has_sentence(source(after)):
            wrong.append(f"{name(cell)} shows a figure: say in the next cell what it shows")
    return wrong


def _shows_picture(cell: NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def _has_sentence(text: str) -> bool:
    """Whether the cell opens with prose; below a heading the text is about something else."""
    first = text.strip().splitlines()[:1]
    return bool(first) and not first[0].startswith("#") and bool(re.search(r"\w{2,}", first[0]))


def defines_only_concepts(nb: Notebook) -> list[str]:
    wrong = []
    for cell in nb.code:
        if "concept" in tags(cell):
            continue
        defined = [node.name for node in ast.walk(_parsed(cell)) if isinstance(node, DEFINITIONS)]
        wrong += [
            f"{name(cell)} defines {it}: move it to course_utils, or tag the cell 'concept'"
            for it in defined
        ]
    return wrong


def _parsed(cell: NotebookNode) -> ast.Module:
    """The cell as Python; magics and shell lines become ``pass``, which keeps blocks whole."""
    return ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", source(cell), flags=re.MULTILINE))


def opens_with_title(nb: Notebook) -> list[str]:
    first = source(nb.cells[0]) if nb.cells and nb.cells[0].cell_type == "markdown" else ""
    folder = nb.path.parent.name if nb.path.parent.name in FOLDERS else "notebooks"
    parts = {
        "a title ('# ...')": r"\A# \S",
        "the Colab badge": r"colab-badge\.svg",
        "a badge that leads to this notebook": re.escape(
            f"{COLAB}/blob/main/{folder}/{nb.path.name}"
        ),
        "the minutes it takes": r"\d\s*(min\b|minutes|分钟)",
        "the memory it takes (GiB)": r"\d\s*GiB",
    }
    return [f"the first cell lacks {part}" for part, p in parts.items() if not re.search(p, first)]


def links_onward(nb: Notebook) -> list[str]:
    last = "\n".join(source(cell) for cell in nb.cells[-2:] if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", last)
    if any(link.endswith((".ipynb", ".md")) for link in links):
        return []
    return ["the last cell links to no next chapter: add [next](NN_name.ipynb)"]


def has_working_links(nb: Notebook) -> list[str]:
    texts = [source(cell) for cell in nb.cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    files = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    return [
        f"the link {file} leads nowhere"
        for file in files
        if not (nb.path.parent / file).exists() and not _next_chapter(file)
    ]


def _next_chapter(file: str) -> bool:
    """A chapter that is still to be written may be linked; its name follows the pattern."""
    pattern = r"(\.\./(exercises|notebooks|solutions)/)?\d\d_\w+\.ipynb"
    return re.fullmatch(pattern, file) is not None


# ---------------------------------------------------------------- chapters in English


def has_chapter_headings(nb: Notebook) -> list[str]:
    found = {
        line.lstrip("#").strip().lower()
        for cell in nb.cells
        if cell.cell_type == "markdown"
        for line in source(cell).splitlines()
        if line.startswith("#")
    }
    return [f"no heading '## {text}'" for text in HEADINGS if text.lower() not in found]


def is_written_in_english(nb: Notebook) -> list[str]:
    wrong = []
    for cell in nb.cells:
        if cell.cell_type != "markdown":
            continue
        prose = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$", "", source(cell), flags=re.DOTALL)
        odd = {c for c in prose.replace(OTHER_LANGUAGE, "") if ord(c) > 127} - SIGNS
        if odd:
            wrong.append(f"{name(cell)} uses {' '.join(sorted(odd))}: say it in plain English")
    return wrong


# ---------------------------------------------------------------- exercises and solutions


def has_exercises(nb: Notebook) -> list[str]:
    found = len(exercises.exercises_of(nb.node))
    if found >= FEWEST_EXERCISES:
        return []
    return [f"{found} headings '## Exercise N: ...': a chapter has {FEWEST_EXERCISES} or more"]


def states_each_task(nb: Notebook) -> list[str]:
    wrong = []
    for it in exercises.exercises_of(nb.node):
        if "**Goal" not in it.text:
            wrong.append(f"{it.title!r} states no '**Goal.** ...'")
        if it.difficulty not in range(1, 6):
            wrong.append(f"{it.title!r} states no '**Difficulty** N of 5'")
        if not it.minutes:
            wrong.append(f"{it.title!r} states no '**Time** N minutes'")
    return wrong


def adds_up_minutes(nb: Notebook) -> list[str]:
    total = sum(it.minutes or 0 for it in exercises.exercises_of(nb.node))
    stated = stated_minutes(nb)
    if stated == total:
        return []
    return [f"the first cell says {stated} minutes, the exercises add up to {total}"]


def stated_minutes(nb: Notebook) -> int | None:
    """The minutes that a notebook's first cell says it takes; of a range, the longer."""
    found = re.search(r"(\d+)\s*(min\b|minutes|分钟)", source(nb.cells[0]) if nb.cells else "")
    return int(found[1]) if found else None


def rises_in_difficulty(nb: Notebook) -> list[str]:
    levels = [it.difficulty or 0 for it in exercises.exercises_of(nb.node)]
    if levels and min(levels) <= 2 and max(levels) >= 4:
        return []
    return [f"difficulties are {levels}: have an easy one (1 or 2) and a hard one (4 or 5)"]


def has_hints(nb: Notebook) -> list[str]:
    wrong = []
    for it in exercises.exercises_of(nb.node):
        folded = re.findall(r"<details>\s*<summary>.+?</summary>.+?</details>", it.text, re.DOTALL)
        if len(folded) < FEWEST_HINTS:
            wrong.append(f"{it.title!r} has {len(folded)} folded hints: give {FEWEST_HINTS} steps")
    return wrong


def ends_in_its_check(nb: Notebook) -> list[str]:
    wrong = []
    for it in exercises.exercises_of(nb.node):
        if len(it.cells) != 1:
            wrong.append(
                f"{it.title!r} has {len(it.cells)} cells that end in a line "
                "'checks.topic.name(function)': it should have one"
            )
        for cell in it.cells:
            called = exercises.CHECK_CALL.fullmatch(exercises.last_line(source(cell)))
            if called and called[1] not in _defined(cell):
                wrong.append(f"{name(cell)} checks {called[1]}, which it does not define")
    return wrong


def _defined(cell: NotebookNode) -> dict[str, ast.AST]:
    """The functions and classes that a cell defines at its top level."""
    return {it.name: it for it in _parsed(cell).body if isinstance(it, DEFINITIONS)}


def has_typed_stubs(nb: Notebook) -> list[str]:
    wrong = []
    for it in exercises.exercises_of(nb.node):
        for cell in it.cells:
            for defined in _defined(cell).values():
                if not ast.get_docstring(defined):
                    wrong.append(f"{name(cell)}: {defined.name} has no docstring")
                wrong += [f"{name(cell)}: {lack}" for lack in _untyped(defined)]
    return wrong


def _untyped(defined: ast.AST) -> Iterator[str]:
    """The arguments and results without a type, of a function or of a class's methods."""
    for function in ast.walk(defined):
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        for argument in arguments:
            if argument.annotation is None and argument.arg not in ("self", "cls"):
                yield f"{argument.arg} of {function.name} has no type"
        if function.returns is None and function.name != "__init__":
            yield f"{function.name} has no type of its result"


def stands_alone(nb: Notebook) -> list[str]:
    """No cell needs a function that the learner has yet to write."""
    stubs = [cell for it in exercises.exercises_of(nb.node) for cell in it.cells]
    missing = {it: cell.id for cell in stubs for it in _defined(cell)}
    wrong = []
    for cell in nb.code:
        used = {node.id for node in ast.walk(_parsed(cell)) if isinstance(node, ast.Name)}
        wrong += [
            f"{name(cell)} uses {it} of cell {missing[it]!r}: no cell needs a solved exercise"
            for it in sorted(used & set(missing))
            if missing[it] != cell.id
        ]
    return wrong


def _prints(nb: Notebook, opening: str) -> list[str]:
    """Complaints about exercises whose cell does not print a line that begins so."""
    wrong = []
    for it in exercises.exercises_of(nb.node):
        for cell in it.cells:
            lines = "".join(_text(o.get("text", "")) for o in cell.outputs).strip().splitlines()
            if not lines or not lines[-1].startswith(opening):
                wrong.append(f"{name(cell)} does not print '{opening} ...'")
    return wrong


def says_not_done(nb: Notebook) -> list[str]:
    return _prints(nb, "Not done yet:")


def says_right(nb: Notebook) -> list[str]:
    return _prints(nb, "Right:")


def solves_each(nb: Notebook) -> list[str]:
    cells = [cell for it in exercises.exercises_of(nb.node) for cell in it.cells]
    return [
        f"{name(cell)} has no '{exercises.BEGIN}' and '{exercises.END}'"
        for cell in cells
        if not {exercises.BEGIN, exercises.END} <= {*map(str.strip, source(cell).splitlines())}
    ]


FILE_RULES: tuple[Rule, ...] = (
    is_valid_notebook,
    has_stable_ids,
    was_run_top_to_bottom,
    has_no_stray_error,
    has_no_stderr,
    has_clean_metadata,
    has_no_svg,
    has_no_local_path,
    has_no_trailing_semicolon,
    is_small,
)
CHAPTER_RULES: tuple[Rule, ...] = (
    has_short_code_cells,
    has_chapter_length,
    is_mostly_prose,
    reads_each_figure,
    defines_only_concepts,
    opens_with_title,
    links_onward,
    has_working_links,
)
ENGLISH_RULES: tuple[Rule, ...] = (has_chapter_headings, is_written_in_english)


EXERCISE_RULES: tuple[Rule, ...] = (
    has_exercises,
    states_each_task,
    adds_up_minutes,
    rises_in_difficulty,
    has_hints,
    ends_in_its_check,
    has_typed_stubs,
    opens_with_title,
    has_working_links,
    is_written_in_english,
)
RULES_BY_FOLDER: dict[str, tuple[Rule, ...]] = {
    "exercises": FILE_RULES + EXERCISE_RULES + (stands_alone, says_not_done),
    "solutions": FILE_RULES + EXERCISE_RULES + (solves_each, says_right),
}


def rules_for(path: Path) -> tuple[Rule, ...]:
    """The rules that a notebook must follow, by the folder it is in."""
    if path.parent.name in RULES_BY_FOLDER:
        return RULES_BY_FOLDER[path.parent.name]
    chapter = FILE_RULES + CHAPTER_RULES
    return chapter if path.parent.name == "zh" else chapter + ENGLISH_RULES
