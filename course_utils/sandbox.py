"""Run generated code against its unit tests, in a process of its own.

What is guarded here: endless loops (wall-clock and CPU limit), memory (address space limit, where
the system enforces one), floods of output (thrown away), early exits, exceptions of every kind,
left-over child processes of the same process group, and a verdict that is merely printed.

How the verdict is kept honest: the child receives a random token over standard input before any
generated code runs, and only a report that opens with this token counts. So `os._exit(0)`,
`sys.exit()` and a printed "passed" fail. What is *not* guarded: code that sets out to attack
(searches the interpreter's memory for the token, uses the network, reads the user's files).
Generated code of a model in a course is careless rather than hostile; run hostile code in a
container.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from course_utils.errors import CourseError

MEMORY_LIMIT_MIB = 512
REPORT_LIMIT_BYTES = 4096
START_ALLOWANCE_S = 5.0  # a loaded machine may take this long to start an interpreter
_CHILD = Path(__file__).with_name("_sandbox_child.py")


@dataclass(frozen=True)
class Outcome:
    """Verdict on one piece of code: did every test pass, and if not, why (one line)."""

    passed: bool
    reason: str


def run(code: str, tests: str, timeout_s: float = 5) -> Outcome:
    """Execute `code`, then `tests` (assert statements) in the same namespace of a fresh process.

    Args:
        code: Python source, usually written by a model.
        tests: Python source that raises when the code is wrong.
        timeout_s: limit in seconds, both of wall-clock and (on POSIX) of CPU time.

    Raises:
        CourseError: the time limit is not a positive number.
    """
    if not timeout_s > 0:
        raise CourseError(f"The time limit is {timeout_s} s; give a number of seconds above 0.")
    token = secrets.token_hex(16)
    job = {"code": code, "tests": tests, "token": token, "cpu_s": timeout_s}
    job["memory_bytes"] = MEMORY_LIMIT_MIB * 2**20
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = _start(folder)
        try:
            report, in_time = _exchange(process, json.dumps(job).encode(), timeout_s)
        finally:
            _kill(process)
    return _judge(report, token, in_time, process.returncode, timeout_s)


def run_many(
    jobs: Sequence[tuple[str, str]], timeout_s: float = 5, workers: int | None = None
) -> list[Outcome]:
    """Run (code, tests) pairs, a few processes at once; outcomes come in the order of `jobs`.

    Args:
        jobs: pairs of code and tests, as for `run`.
        timeout_s: limit in seconds for each pair.
        workers: processes at once; by default one per core, at most 8.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda job: run(*job, timeout_s=timeout_s), jobs))


def _start(folder: str) -> subprocess.Popen[bytes]:
    """Start the isolated interpreter (-I no user settings, -S no site-packages: fast as well)."""
    # Windows cannot start Python without SYSTEMROOT; everything else of the environment stays out.
    environment = {k: v for k, v in os.environ.items() if k.upper() == "SYSTEMROOT"}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=environment if os.name == "nt" else {},
        start_new_session=os.name != "nt",
    )


def _exchange(process: subprocess.Popen[bytes], job: bytes, timeout_s: float) -> tuple[bytes, bool]:
    """Send the job, return (report, whether it came in time).

    The clock starts with the child's first byte, sent before any generated code runs, so that a
    busy machine's slow start is not counted against the code. A thread reads, since a pipe has no
    read with a time limit on Windows, and it stops at a limit: a flood cannot fill our memory.
    """
    ready, received = threading.Event(), bytearray()

    def talk() -> None:
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(job)
            process.stdin.close()
            while chunk := os.read(process.stdout.fileno(), REPORT_LIMIT_BYTES):
                ready.set()
                received.extend(chunk)
                if chunk.endswith(b"\n") or len(received) > REPORT_LIMIT_BYTES:
                    break  # do not wait for left-over processes that hold the pipe open
        ready.set()

    reader = threading.Thread(target=talk, daemon=True)
    reader.start()
    ready.wait(START_ALLOWANCE_S)
    reader.join(timeout_s)
    return bytes(received[1:]), not reader.is_alive()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the child with everything in its process group, and collect it."""
    if os.name != "nt":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close()


def _judge(report: bytes, token: str, in_time: bool, code: int, timeout_s: float) -> Outcome:
    """Turn what the child said into a verdict; only a report that opens with the token counts."""
    start = token.encode()
    if report.startswith(start):
        text = report[len(start) :].decode("utf-8", errors="replace").rstrip("\n")
        return Outcome(text == "passed", text)
    if not in_time or (os.name != "nt" and code == -signal.SIGXCPU):
        return Outcome(False, f"time limit of {timeout_s:g} s reached")
    if report:
        return Outcome(False, "wrote to the harness's channel instead of finishing the tests")
    return Outcome(False, "the process ended before the tests finished")
