"""Data sets from the Hub, where the network allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import hub
from ..errors import CourseError
from .conversation import Conversation
from .reading import convert

EMBEDDED = ("instruction", "code", "chat")
REACH_SECONDS = 4.0


def load_hub(
    name: str,
    split: str = "train",
    *,
    config: str | None = None,
    format: str = "auto",
    on_error: str = "raise",
    columns: Mapping[str, str] | None = None,
) -> list[Conversation]:
    """Load a data set of the Hub as conversations, from the cache if there is no network.

    Args:
        name: as on the Hub, for example "tatsu-lab/alpaca".
        split: one of its splits; slices such as "train[:1000]" work too.
        config: one of its configurations, where it has several.
        format: of its rows, as in :func:`course_utils.data.read`.
        on_error: "raise" or "skip" bad rows, as in :func:`course_utils.data.read`.
        columns: names to read under another name, as in :func:`course_utils.data.read`.

    Raises:
        CourseError: if the Hub cannot be reached and nothing is cached, or has no such data set.
        DataError: if its rows cannot be used.
    """
    rows = _download(name, config, split)
    return convert(rows, f"{name}[{split}]", format, on_error, columns=columns)


def _download(name: str, config: str | None, split: str) -> Any:
    """The rows of a data set as a ``datasets.Dataset``."""
    # Slow to import, and only this function needs them.
    import datasets
    from datasets.exceptions import DatasetNotFoundError, DatasetsError

    reached = hub.reachable(name, "data set")
    try:
        with _patience(reached):
            return datasets.load_dataset(name, config, split=split)
    except DatasetNotFoundError:
        reason = "is not on the Hub, or needs a login (hf auth login)"
    except (DatasetsError, *hub.transport_errors(), ValueError, RuntimeError) as error:
        reason = f"cannot be loaded ({_first_line(error)})"
        if not reached:
            reason = "cannot be loaded: the Hub cannot be reached and nothing is in the cache"
    embedded = ", ".join(repr(name) for name in EMBEDDED)
    raise CourseError(
        f"The data set '{name}' {reason}; the embedded sets need no network: "
        f"course_utils.sets.load(name) with one of {embedded}."
    )


@contextmanager
def _patience(reached: bool) -> Iterator[None]:
    """Look only into the cache while the Hub is out of reach."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not reached
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0][:200]
