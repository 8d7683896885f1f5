"""Run generated code against its unit tests, in two locked-up processes.

One process runs the code, another the tests; a call in a test goes through a pipe, and only plain
data comes back (numbers, texts, bytes, None, and lists, tuples, sets, dicts and iterators of
them). So the code meets neither the assertions, nor the expected values, nor the verdict: an
early exit, a patched `exec`, an `__eq__` that always says yes or a printed "passed" gain nothing.
A builtin's name (`len`) in a test always means the builtin.

Each process has limits on wall-clock and CPU time, memory, file size and open files, an empty
environment, and one empty folder. On Linux the kernel refuses everything else, for root as well:
other files (their names and sizes can still be asked for), network, other processes. It is ended
when the verdict is there. Elsewhere less is enforced; `not_enforced` says what. No sandbox of
this kind stops an attack on the operating system's own faults; hostile code belongs in a virtual
machine.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from course_utils.errors import CourseError

MEMORY_LIMIT_MIB = 512
DISK_LIMIT_MIB = 64
REPORT_LIMIT_BYTES = 4096
START_ALLOWANCE_S = 10.0  # a loaded machine may take this long to start two interpreters
KERNEL_GUARDS = True  # False: what other systems than Linux get
_WATCH_S = 0.1  # how often the folder's size is looked at
_FILE_COSTS_BYTES = 4096  # at least, however little is in it
_CHILD = Path(__file__).with_name("_sandbox_child.py")


@dataclass(frozen=True)
class Outcome:
    """Verdict on one piece of code: did every test pass, and if not, why (one line)."""

    passed: bool
    reason: str


def run(code: str, tests: str, timeout_s: float = 5) -> Outcome:
    """Execute `code` in one fresh process, then `tests` (assert statements) in another.

    Args:
        code: Python source, usually written by a model.
        tests: Python source that raises when the code is wrong; it calls the code's functions
            with plain data.
        timeout_s: limit in seconds of wall-clock time; on POSIX CPU time has one as well, of up
            to two seconds more.

    Raises:
        CourseError: the time limit is not a positive number.
    """
    return _run(code, tests, timeout_s)[0]


def run_many(
    jobs: Sequence[tuple[str, str]], timeout_s: float = 5, workers: int | None = None
) -> list[Outcome]:
    """Run (code, tests) pairs, a few at once; outcomes come in the order of `jobs`.

    Args:
        jobs: pairs of code and tests, as for `run`.
        timeout_s: limit in seconds for each pair.
        workers: pairs at once; by default one per core, at most 8.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(max_workers=workers) as pool:
        return list(pool.map(lambda job: run(*job, timeout_s=timeout_s), jobs))


@functools.cache
def not_enforced() -> str:
    """One sentence on what the operating system does not enforce here; empty where it does all.

    Raises:
        CourseError: the sandbox does not work on this machine at all.
    """
    outcome, missing = _run("", "", timeout_s=30)
    if not outcome.passed:
        raise CourseError(f"The sandbox does not start on this machine: {outcome.reason}.")
    if not missing:
        return ""
    return (
        f"The operating system does not enforce limits on {'; '.join(missing)}: "
        "careless code is still stopped by Python itself, an attack is not."
    )


def _run(code: str, tests: str, timeout_s: float) -> tuple[Outcome, list[str]]:
    """The verdict, and what the operating system does not enforce."""
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise CourseError(f"The time limit is {timeout_s} s; give a number of seconds above 0.")
    folder, processes = Path(tempfile.mkdtemp()), []
    try:
        for role in ("code", "tests"):
            (folder / role).mkdir()
        (folder / "tests" / "job.json").write_text(json.dumps({"code": code, "tests": tests}))
        processes.append(_start("code", folder, timeout_s, subprocess.PIPE, subprocess.PIPE))
        ends = processes[0].stdout, processes[0].stdin
        processes.append(_start("tests", folder, timeout_s, *ends))
        for end in ends:
            end.close()  # so that either process sees when the other ends
        report, stopped = _listen(processes[1], folder / "code", timeout_s)
    finally:
        for process in processes:
            _kill(process)
        _remove(folder)
    out_of_time = os.name != "nt" and processes[0].returncode == -signal.SIGXCPU
    return _judge(report, f"time limit of {timeout_s:g} s reached" if out_of_time else stopped)


def _start(role: str, folder: Path, timeout_s: float, source, target) -> subprocess.Popen[bytes]:
    """Start the isolated interpreter (-I no user settings, -S no site-packages: fast as well)."""
    settings = {
        "role": role,
        "cpu_s": math.ceil(timeout_s) + 1,
        "memory_bytes": MEMORY_LIMIT_MIB * 2**20,
        "kernel": KERNEL_GUARDS,
    }
    # Windows cannot start Python without SYSTEMROOT; everything else of the environment stays out.
    environment = {k: v for k, v in os.environ.items() if k.upper() == "SYSTEMROOT"}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD), json.dumps(settings)],
        stdin=source,
        stdout=target,
        stderr=subprocess.PIPE if role == "tests" else subprocess.DEVNULL,
        cwd=folder / role,
        env=environment if os.name == "nt" else {},
        start_new_session=os.name != "nt",
    )


def _listen(process: subprocess.Popen[bytes], folder: Path, timeout_s: float) -> tuple[bytes, str]:
    """Return the tests' report, and why it was not waited for any longer (or nothing).

    The clock starts with the first byte, sent before any generated code runs, so that a busy
    machine's slow start is not counted against the code. A thread reads, since a pipe has no read
    with a time limit on Windows.
    """
    ready, received = threading.Event(), bytearray()

    def read() -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(process.stderr.fileno(), REPORT_LIMIT_BYTES):
                received.extend(chunk)
                ready.set()
                if chunk.endswith(b"\n") or len(received) > REPORT_LIMIT_BYTES:
                    break
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    ready.wait(START_ALLOWANCE_S)
    end = time.monotonic() + timeout_s
    while reader.is_alive():
        if _bytes_in(folder) > DISK_LIMIT_MIB * 2**20:
            return b"", f"disk limit of {DISK_LIMIT_MIB} MiB reached"
        if (left := end - time.monotonic()) <= 0:
            return b"", f"time limit of {timeout_s:g} s reached"
        reader.join(min(_WATCH_S, left))
    return bytes(received), ""


def _bytes_in(folder: Path) -> int:
    """What the files of this folder take on disk; it has no subfolders."""
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # just deleted
                total += max(_FILE_COSTS_BYTES, entry.stat(follow_symlinks=False).st_size)
    return total


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process with everything in its process group, and collect it."""
    if os.name != "nt":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        with contextlib.suppress(OSError, AttributeError):
            stream.close()


def _remove(folder: Path) -> None:
    """Delete the folder, whatever was built in it; a leftover must not stop the grading.

    Not TemporaryDirectory: before Python 3.12.1 its clean-up follows links (CVE-2023-6597).
    """
    with contextlib.suppress(RecursionError):
        shutil.rmtree(folder, ignore_errors=True)


def _judge(report: bytes, stopped: str) -> tuple[Outcome, list[str]]:
    """Turn what the tests' process said into a verdict, and what is not enforced."""
    if stopped:
        return Outcome(False, stopped), []
    try:
        said = json.loads(report.removeprefix(b"."))
        return Outcome(said["passed"] is True, said["reason"]), said["missing"]
    except (ValueError, TypeError, KeyError):
        return Outcome(False, "the process ended before the tests finished"), []
