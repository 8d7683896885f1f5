"""The child side of `course_utils.sandbox`: started as a script, never imported.

Reads one job from standard input, silences the standard streams, sets the limits, runs code and
tests, and writes the token and a one-line verdict to a private copy of standard output.
"""

import builtins
import contextlib
import json
import math
import os
import sys
import traceback
import types


def limit(cpu_s: float, memory_bytes: int) -> None:
    """Set CPU (s), memory (bytes) and file size limits; Windows has no `resource` module."""
    try:
        import resource
    except ImportError:
        return
    cpu = math.ceil(cpu_s) + 1
    for name, value in [
        ("RLIMIT_CPU", cpu),
        ("RLIMIT_AS", memory_bytes),  # macOS accepts but does not enforce it
        ("RLIMIT_FSIZE", 2**20),
        ("RLIMIT_CORE", 0),
    ]:
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))


def private_channel() -> int:
    """Return a copy of standard output, and point streams 0, 1 and 2 to nowhere."""
    channel = os.dup(1)
    os.set_inheritable(channel, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    return channel


def explain(error: BaseException, tests: str) -> str:
    """Say in one line what went wrong: the failed assertion's source, or the exception."""
    name = type(error).__name__
    if isinstance(error, SystemExit):
        return "called exit before the tests finished"
    if isinstance(error, AssertionError):
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<tests>"]
        if lines:
            return f"failed: {tests.splitlines()[lines[-1] - 1].strip()}"[:300]
    try:
        text = " ".join(str(error).split())
        return f"{name}: {text}"[:300] if text else name
    except BaseException:  # an exception whose own __str__ raises is still only a failed test
        return name


def judge(code: str, tests: str) -> str:
    """Run code, then tests, in one namespace: "passed", or what went wrong.

    Tests are compiled first, and names bound here: code that replaces built-in functions cannot
    talk its way past the assertions.
    """
    execute = exec
    module = sys.modules["solution"] = types.ModuleType("solution")
    space = vars(module)
    space["__builtins__"] = dict(vars(builtins))
    try:
        compiled_tests = compile(tests, "<tests>", "exec")
        execute(compile(code, "<code>", "exec"), space)
        execute(compiled_tests, space)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failed tests too
        return explain(error, tests)
    return "passed"


def main() -> None:
    job = json.loads(sys.stdin.buffer.read().decode())
    channel, write, leave = private_channel(), os.write, os._exit
    start = job["token"].encode()
    write(channel, b".")  # ready: the parent's clock starts
    limit(job["cpu_s"], job["memory_bytes"])
    del sys.modules["__main__"]  # keeps this module's names out of the code's easy reach
    verdict = judge(job.pop("code"), job.pop("tests"))
    write(channel, start + verdict.encode("utf-8", errors="replace") + b"\n")
    leave(0)


main()
