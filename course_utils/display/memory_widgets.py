"""A calculator of training memory to play with: which part takes how much, and does it fit?"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from course_utils.errors import CourseError
from course_utils.memory.known import KNOWN
from course_utils.memory.plan import Choice, may_offload, plan_recipe
from course_utils.recipes import METHODS, Recipe

from .memory_figure import alternative_text, memory_bar, verdict
from .style import COLORS
from .widgets import Interactive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVERY = {"every layer": True, "every 2nd layer": 2, "every 4th layer": 4, "off": False}
AS_IT_IS = ("batch_size", "gradient_accumulation", "checkpointing", "offload")
ANY_CARD = 1e6  # GiB; a plan for it says how much the recipe needs
CODE = (
    "margin:4px 0;padding:8px 10px;border:1px solid rgba(128,128,128,.35);border-radius:4px;"
    "white-space:pre-wrap;word-break:normal;overflow-wrap:anywhere;line-height:1.4;"
    "font-family:monospace;user-select:all"
)


class MemoryWidget(Interactive):
    """The calculator.  `controls` by name, `image`, `problem` (a sentence for what cannot be),
    `verdict`, `code` (the recipe to copy) and `recipe`; after a mistake the last good ones stay.
    """

    def __init__(self, **controls: ipywidgets.Widget) -> None:
        self.recipe: Recipe | None = None
        self.choice: Choice | None = None
        self.code, self.verdict = ipywidgets.HTML(), ""
        super().__init__(self._draw_bar, **controls)
        self.box.children = (*self.box.children, self.code)
        self._first_text = repr(self)
        self._first_alt = self._alternative_text()

    def _draw_bar(self, model: str, other: str, card_gib: float, **chosen: Any) -> Figure:
        """The bar for what the controls say; raises CourseError before anything is changed."""
        recipe = recipe_of(other.strip() or model, **chosen)
        choice = needed(recipe)
        rows = f"{recipe.batch_size} x {recipe.max_length:,} tokens"
        figure = memory_bar(
            choice.estimate, card_gib, needs_gib=choice.needs_gib,
            title=f"{_short(recipe.model)}, {recipe.method}: {rows}",
        )  # fmt: skip
        fits, said = verdict(choice.estimate, card_gib, choice.needs_gib)
        if not fits:
            said += f" {plan_call(recipe, card_gib)} names what would."
        self.recipe, self.choice, self.verdict, self._card = recipe, choice, said, card_gib
        self.code.value = _code_html(fits, said, recipe)
        return figure

    def _on_change(self, change: Any) -> None:
        super()._on_change(change)
        # a sentence for the learner needs no name of a Python class
        self.problem.value = self.problem.value.replace(f"{CourseError.__name__}: ", "", 1)

    def _alternative_text(self) -> str:
        return alternative_text(self.choice.estimate, self._card, self.choice.needs_gib)

    def __repr__(self) -> str:
        return f"{self.choice.estimate}\n{self.verdict}\n{code(self.recipe)}"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        data = super()._repr_mimebundle_(**options) | {"text/plain": self._first_text}
        return data, {"image/png": {"alt": self._first_alt}}


def memory_widget(
    model: str | Path = "llama-2-7b",
    *,
    method: str = "qlora",
    rank: int = 16,
    batch: int = 4,
    length: int = 1024,
    checkpointing: bool | int = True,
    card_gib: float = 8,
) -> MemoryWidget:
    """What training takes of a card, to play with; needs neither a GPU nor the weights.

    model: a short name ("llama-2-7b"), a Hub id, a folder or a config .json.  batch: rows a step
    computes at once; length: their tokens; card_gib: GiB (2^30 bytes) that the card has.  They are
    where the controls start.  Raises CourseError for what cannot be.
    """
    recipe_of(str(model), method, rank, batch, length, checkpointing)  # names what is wrong
    known = str(model).lower() if str(model).lower() in KNOWN else ""
    every = next((n for n, given in EVERY.items() if given == checkpointing), None)
    if every is None:
        raise CourseError(
            f"checkpointing is {checkpointing!r} and must be True, 2, 4 or False here."
        )
    numbers = {"rank": rank, "batch": batch, "length": length, "card_gib": card_gib}
    return MemoryWidget(**_controls(str(model), known, method, EVERY[every], numbers))


def _controls(
    model: str, known: str, method: str, every: bool | int, numbers: dict[str, float]
) -> dict[str, ipywidgets.Widget]:
    """The controls, in the order in which they stand; known: the model's name in the list."""
    drop, whole = ipywidgets.Dropdown, ipywidgets.IntText
    return {
        "model": _control(drop, "model", known or "llama-2-7b", options=list(KNOWN)),
        "other": _typed(ipywidgets.Text, "or another", "" if known else model, width="320px",
                        placeholder="folder, config.json or Hub id"),
        "method": _control(drop, "method", method, options=list(METHODS)),
        "rank": _typed(whole, "rank", numbers["rank"]),
        "batch": _typed(whole, "rows at once", numbers["batch"]),
        "length": _typed(whole, "tokens a row", numbers["length"]),
        "checkpointing": _control(drop, "checkpointing", every, options=list(EVERY.items()),
                                  width="230px"),
        "card_gib": _typed(ipywidgets.FloatText, "card (GiB)", numbers["card_gib"]),
    }  # fmt: skip


def _control(
    kind: Any, description: str, value: Any, width: str = "190px", **options: Any
) -> ipywidgets.Widget:
    layout, style = ipywidgets.Layout(width=width), {"description_width": "initial"}
    return kind(value=value, description=description, layout=layout, style=style, **options)


def _typed(kind: Any, *given: Any, width: str = "150px", **options: Any) -> ipywidgets.Widget:
    """A field that speaks when it is left or Enter is pressed, not at each key."""
    return _control(kind, *given, width=width, continuous_update=False, **options)


# ----------------------------------------------------------------------------- what it works out


def recipe_of(
    model: str, method: str, rank: int, batch: int, length: int, checkpointing: bool | int
) -> Recipe:
    """The recipe of the controls; with checkpointing it offloads where that costs no time."""
    plain = Recipe(
        model=model, method=method, rank=rank, batch_size=batch, max_length=length,
        checkpointing=checkpointing,
    )  # fmt: skip
    plain = plain.replace(alpha=2 * rank)
    return plain.replace(offload=bool(checkpointing) and may_offload(plain, "cuda"))


def needed(recipe: Recipe) -> Choice:
    """What the recipe takes, and the smallest card that does, by the rule of `memory.plan`."""
    found = plan_recipe(recipe, ANY_CARD, fixed=AS_IT_IS).best
    if found is None:
        raise CourseError(f"No card has the memory for {recipe}: lower batch_size or max_length.")
    return found


def plan_call(recipe: Recipe, card_gib: float) -> str:
    """The Python that finds what fits instead."""
    return (
        f"memory.plan({recipe.model!r}, {card_gib:g}, length={recipe.max_length}, "
        f"effective_batch={recipe.effective_batch})"
    )


def code(recipe: Recipe) -> str:
    """Python that makes this very recipe."""
    lines = ["from course_utils.recipes import Recipe", "", f"recipe = {recipe}"]
    if recipe.model.lower() in KNOWN and recipe.model != Recipe.model:
        lines[2:2] = [f"# {recipe.model} is a shape: to train, give the folder or the Hub id"]
    return "\n".join(lines)


def _code_html(fits: bool, said: str, recipe: Recipe) -> str:
    color = COLORS["good" if fits else "bad"]
    mark = "✓" if fits else "✗"
    line = f'<b style="color:{color}">{mark} {html.escape(said)}</b>'
    block = f'<pre style="{CODE}">{html.escape(code(recipe))}</pre>'
    return f'<div style="line-height:1.4">{line}</div>{block}'


def _short(model: str, most: int = 44) -> str:
    text = model if len(model) <= most else f"…{model[1 - most :]}"
    return text.replace("$", r"\$")  # two of them would be read as a formula
