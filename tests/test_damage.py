"""What is damaged is named in a sentence, and nothing else is taken for damage."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors import SafetensorError

from course_utils import damage
from course_utils.errors import CourseError


@pytest.mark.parametrize(
    "error",
    [SafetensorError("cut\nshort"), KeyError("r"), EOFError(), pickle.UnpicklingError("no pickle"),
     RuntimeError("size mismatch"), AttributeError("items"), OSError("gone")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_damage_is_one_sentence(error):
    said = pytest.raises(CourseError, match=r"^The file cannot be read \(.+\): copy it\.$")
    with said as caught, damage.named("The file", "copy it"):
        raise error
    assert caught.value.__cause__ is error and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [CourseError("A sentence."), torch.OutOfMemoryError("full"), MemoryError(), KeyboardInterrupt(),
     RuntimeError("DefaultCPUAllocator: can't allocate memory"), ZeroDivisionError("a bug")],
    ids=str,
)  # fmt: skip
def test_what_is_no_damage_passes(error):
    with pytest.raises(type(error)) as caught, damage.named("The file", "copy it"):
        raise error
    assert caught.value is error
