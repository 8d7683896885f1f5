"""Files of a run that are damaged, missing or another model's: named in one sentence."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from .errors import CourseError
from .models import UNUSABLE
from .oom import is_out_of_memory

DAMAGE = (*UNUSABLE, AttributeError, EOFError, pickle.UnpicklingError)
ADAPTER = "adapter_model.safetensors"


@contextlib.contextmanager
def named(place: str | Path, what_to_do: str) -> Iterator[None]:
    """Inside the block, what libraries raise for files in `place` that are no good is a sentence.

    what_to_do: its end.  Only for a block that reads: an error of a training would be misnamed.
    Raises CourseError; one that has a sentence already, and a lack of memory, pass as they are.
    """
    try:
        yield
    except DAMAGE as error:
        if isinstance(error, CourseError) or is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CourseError(f"{place} cannot be read ({said}): {what_to_do}.") from error


def with_adapter(base: PreTrainedModel, folder: str | Path) -> PeftModel:
    """The base model with the adapter that is saved in `folder` on it.

    Raises CourseError for an adapter that is missing, damaged, or of another base.
    """
    if not (Path(folder) / ADAPTER).is_file():  # PEFT would ask the Hub for it
        raise CourseError(
            f"{folder} holds no weights of an adapter ({ADAPTER} is missing): copy the run's "
            "folder again, or train it anew."
        )
    with named(
        f"The adapter in {folder}",
        "its files are damaged or belong to another base model than recipe.yaml says; copy the "
        "run's folder again, or train it anew",
    ):
        return PeftModel.from_pretrained(base, folder)
