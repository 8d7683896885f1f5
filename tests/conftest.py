"""What several test files share."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded model's tokenizer."""
    from course_utils import models

    return models.load_tokenizer()


@pytest.fixture(scope="session")
def base():
    """The embedded model in fp32; a test must leave its weights and mode as they were."""
    from course_utils import models

    return models.load(on="cpu")
