"""The sandbox: only code that passes its tests may pass, whatever else it does."""

import os
import sys
import time

import pytest

from course_utils import sandbox
from course_utils.errors import CourseError

TESTS = "assert double(2) == 4\nassert double(-1) == -2"
WRITE_EVERYWHERE = """import os
for fd in range(1, 9):
    try:
        os.write(fd, b'passed')
    except OSError:
        pass"""
GOOD = "def double(n):\n    return n * 2"


def test_right_code_passes_and_starts_fast():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert sandbox.run(GOOD, TESTS) == sandbox.Outcome(True, "passed")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5  # about 0.02 s on an idle machine


def test_wrong_code_names_the_assertion_that_failed():
    outcome = sandbox.run("def double(n):\n    return 4", TESTS)
    assert outcome == sandbox.Outcome(False, "failed: assert double(-1) == -2")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nos._exit(0)", "ended before"),
        ("import sys\nsys.exit(0)", "called exit"),
        ("raise SystemExit", "called exit"),
        ("exit()", "NameError"),  # no `site` module in the child
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Own(BaseException): pass\nraise Own('no')", "Own: no"),
        ("class Mean(Exception):\n    def __str__(self): raise SystemExit\nraise Mean", "Mean"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def double(n) return", "SyntaxError"),
        ("x = '\\ud800'.encode()", "UnicodeEncodeError"),
        ("\ud800", "Unicode"),
        ("a\0b", "null bytes"),
        ("def double(n): return double(n)", "RecursionError"),
        ("import torch", "ModuleNotFoundError"),
        ("", "NameError"),
        ("input()", "EOFError"),
        ("import os\nos.abort()", "ended before"),
    ],
)
def test_every_other_ending_fails(code, reason):
    outcome = sandbox.run(code, TESTS)
    assert not outcome.passed
    assert reason in outcome.reason


@pytest.mark.parametrize(
    "code",
    [
        "print('passed')",
        WRITE_EVERYWHERE,
        WRITE_EVERYWHERE + "\nos._exit(0)",
        "import builtins\nbuiltins.exec = lambda *a: None\nbuiltins.compile = lambda *a: None",
        "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
        "import os\nif os.fork(): os._exit(0)",
        "AssertionError = ValueError\ndef double(n): return 0",
    ],
)
def test_a_forged_verdict_fails(code):
    assert not sandbox.run(code, TESTS, timeout_s=2).passed


def test_right_code_passes_even_if_it_prints():
    noisy = GOOD + "\nimport sys\nprint('hello')\nprint('oh', file=sys.stderr)"
    assert sandbox.run(noisy, TESTS).passed


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time\ntime.sleep(60)", "while True:\n    try: 1/0\n    except: 0"],
)
def test_endless_code_is_stopped_in_time(code):
    start = time.perf_counter()
    outcome = sandbox.run(code, TESTS, timeout_s=0.5)
    assert outcome == sandbox.Outcome(False, "time limit of 0.5 s reached")
    assert time.perf_counter() - start < 4


def test_output_flood_is_thrown_away_or_stopped():
    flood = "while True: print('x' * 100_000)"
    assert not sandbox.run(flood, TESTS, timeout_s=1).passed
    on_the_channel = "import os\nfor fd in range(3, 9):\n    try:\n        while True: "
    on_the_channel += "os.write(fd, b'x' * 65536)\n    except OSError: pass"
    assert not sandbox.run(on_the_channel, TESTS, timeout_s=1).passed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces this limit")
def test_a_memory_hog_is_refused_its_memory():
    code = "hog = bytearray(4 * 2**30)\n" + GOOD
    assert sandbox.run(code, TESTS) == sandbox.Outcome(False, "MemoryError")


def test_environment_and_folder_are_empty(monkeypatch):
    monkeypatch.setenv("COURSE_SECRET", "1")
    here = os.getcwd()
    tests = "import os\nassert 'COURSE_SECRET' not in os.environ\nassert os.listdir('.') == []\n"
    tests += f"assert os.getcwd() != {here!r}\nopen('file.txt', 'w').close()"
    assert sandbox.run("", tests) == sandbox.Outcome(True, "passed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="process groups are POSIX")
def test_left_over_processes_are_ended(tmp_path):
    marker = tmp_path / "late.txt"
    code = f"import os, time\nif os.fork() == 0:\n    time.sleep(1)\n    open({str(marker)!r}, 'w')"
    assert sandbox.run(code + "\n    os._exit(0)\n" + GOOD, TESTS).passed
    time.sleep(1.5)
    assert not marker.exists()


def test_run_many_keeps_the_order():
    wrong = "def double(n):\n    return n"
    outcomes = sandbox.run_many([(GOOD, TESTS), (wrong, TESTS), ("while 1: 0", TESTS)] * 3, 1.0)
    assert [outcome.passed for outcome in outcomes] == [True, False, False] * 3


def test_a_wrong_time_limit_is_an_error():
    with pytest.raises(CourseError, match="time limit"):
        sandbox.run(GOOD, TESTS, timeout_s=0)
