"""Optuna's plots of a study in the course's look."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from course_utils.errors import CourseError

from .plots import WIDTH
from .style import COLORS, course_style

if TYPE_CHECKING:
    import optuna
    from matplotlib.figure import Figure

LOSS = "held-out loss (nats)"
KINDS = {
    "history": "plot_optimization_history",
    "importance": "plot_param_importances",
    "looks": "plot_intermediate_values",
    "slice": "plot_slice",
    "parallel": "plot_parallel_coordinate",
}


def plot_study(study: optuna.Study, kind: str = "history") -> Figure:
    """One of Optuna's own plots of a study (`search.Study(...).optuna`).

    "history": loss by trial; "slice": loss by each field's value; "parallel": a line for each
    trial through its values; "looks": loss by look; "importance": each field's share in what the
    better trials have in common (PED-ANOVA, arXiv:2304.10255).
    Raises CourseError for another kind, and where fewer than two trials are complete.
    """
    if kind not in KINDS:
        raise CourseError(f"kind is {kind!r} and must be one of {', '.join(KINDS)}.")
    from optuna import importance, trial, visualization

    if len(study.get_trials(deepcopy=False, states=(trial.TrialState.COMPLETE,))) < 2:
        raise CourseError("There is nothing to compare yet: run two trials at least to the end.")
    draw = getattr(visualization.matplotlib, KINDS[kind])
    with course_style(), warnings.catch_warnings():  # Optuna sets a style of its own, for good
        warnings.simplefilter("ignore")  # its matplotlib functions are marked as experimental
        options = {"target_name": LOSS} if kind != "looks" else {}
        if kind == "importance":
            options["evaluator"] = importance.PedAnovaImportanceEvaluator()
        axes = draw(study, **options)
        if kind == "looks":
            axes.set(xlabel="look", ylabel=LOSS)
        figure = _restyled(getattr(axes, "flat", [axes])[0].figure)
        if kind != "slice":  # whose color bar stands beside several axes
            figure.tight_layout()
        return figure


def _restyled(figure: Figure) -> Figure:
    """The course's colors and sizes; pyplot forgets the figure, so that it is shown once."""
    import matplotlib.pyplot as plt

    plt.close(figure)
    figure.set_size_inches(WIDTH, 3.4)
    figure.set_facecolor("white")
    for ax in figure.axes:
        ax.set_facecolor("white")
        ax.grid(color=COLORS["grid"])
        ax.set_title(ax.get_title(loc="left"), loc="left", size=10.5)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set(size=9, color=COLORS["muted"])
        ax.tick_params(colors=COLORS["muted"], labelsize=8)
        ax.tick_params(which="minor", labelbottom=False, labelleft=False)  # they overlap
        for label in ax.get_yticklabels():  # in "parallel" lines cross those of the inner axes
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85})
    return figure
