"""What several test files share."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _two_threads():
    wanted = int(os.environ.get("OMP_NUM_THREADS", 2))  # 1 where two processes test at once
    torch.set_num_threads(min(wanted, 2, os.cpu_count() or 1))


@pytest.fixture(autouse=True)
def _same_draws():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


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


@pytest.fixture(scope="session")
def small_model(tmp_path_factory, tokenizer):
    """The folder of a model with random weights and the embedded model's tokenizer."""
    import tiny_models

    folder = tmp_path_factory.mktemp("small")
    tiny_models.model("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_hub(monkeypatch):
    """A proxy that answers nobody: every request to the Hub fails at once."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    from huggingface_hub import close_session

    close_session()  # an open connection would know nothing of the proxy
    yield
    close_session()
