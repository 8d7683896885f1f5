"""The sandbox: only code that passes its tests may pass, whatever else it does.

An attack is a function that returns what it got or did. Where it is harmless, the same attack runs
without the sandbox as well, where it must succeed: so a refusal is the sandbox's and not a typo's.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from course_utils import sandbox
from course_utils.errors import CourseError

TESTS = "assert double(2) == 4\nassert double(-1) == -2"
GOOD = "def double(n):\n    return n * 2"
linux = pytest.mark.skipif(
    sys.platform != "linux" or bool(sandbox.not_enforced()),
    reason=f"needs Linux's guards. {sandbox.not_enforced()}",
)
guards = pytest.mark.parametrize("kernel", [pytest.param(True, marks=linux), False])
LIBC = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"


def function(body: str, start: str = "") -> str:
    """Source of `attack()`, which returns what the body returns, or the error that stopped it."""
    lines = "\n        ".join(body.splitlines())
    return (
        f"import os, shutil, socket, subprocess, sys, threading, time\n{start}def attack():\n"
        f"    try:\n        {lines}\n"
        "    except (OSError, MemoryError, RuntimeError) as error:\n"
        "        return 'refused: ' + type(error).__name__\n"
    )


def result_of(source: str, timeout_s: float = 5) -> str:
    """What `attack()` returns in the sandbox, or why it returned nothing."""
    reason = sandbox.run(source, "raise KeyError('got', attack())", timeout_s).reason
    return reason.removeprefix("KeyError: ('got', ").removesuffix(")").strip("'\"")


def succeeds_outside(source: str) -> bool:
    """Whether the attack gets anywhere in an ordinary process."""
    command = [sys.executable, "-c", source + "\nprint(attack())"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return done.returncode == 0 and "refused" not in done.stdout


# --------------------------------------------------------------------------- right and wrong


def test_right_code_passes_and_starts_fast():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert sandbox.run(GOOD, TESTS) == sandbox.Outcome(True, "passed")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1  # about 0.07 s on an idle machine


def test_wrong_code_names_the_assertion_that_failed():
    outcome = sandbox.run("def double(n):\n    return 4", TESTS)
    assert outcome == sandbox.Outcome(False, "failed: assert double(-1) == -2")


RIGHT = f"""
{GOOD}
import sys
print('hello')
print('oh', file=sys.stderr)
--
{TESTS}
====
def f(*a, **k): return a, k
--
assert f(1, [2.5], x={{'y': b'z'}}) == ((1, [2.5]), {{'x': {{'y': b'z'}}}})
====
def f(x): return x
--
for x in (None, True, 1j, {{1}}, frozenset({{(1,)}}), float('inf'), '\\ud800', 10**5000):
    assert f(x) == x and type(f(x)) is type(x)
====
def f(n): yield from range(n)
--
assert f(3) != [0, 1, 2] and list(f(3)) == [0, 1, 2]
====
from collections import Counter, namedtuple
def f(x): return Counter(x)
def g(): return namedtuple('P', 'x')(1)
--
assert f('aab') == {{'a': 2, 'b': 1}} and g() == (1,)
====
def f(x): x.sort()
def g(d): d['a'] = 1
--
x, d = [2, 1], {{}}
f(x), g(d)
assert x == [1, 2] and d == {{'a': 1}}
====
class Own(ValueError): pass
def f(x): raise Own('no')
--
try: f(1)
except ValueError as error: assert str(error) == 'no'
else: assert False
====
import math
LIMIT = 3
def f(): return math.pi
--
assert math.isclose(f(), 3.14159, rel_tol=1e-3) and LIMIT == 3
====
def f(x): return x + 1
--
def check(candidate): assert candidate(1) == 2
check(f)
====
import threading
def f():
    seen = []
    thread = threading.Thread(target=seen.append, args=(1,))
    thread.start(), thread.join()
    return seen
--
assert f() == [1]
====
import asyncio
async def one(): return 1
def f(): return asyncio.run(one())
--
assert f() == 1
====
import os, tempfile
def f():
    with tempfile.TemporaryFile('w+') as file:
        file.write('a'), file.seek(0)
        assert file.read() == 'a'
    open('a', 'w').close(), os.rename('a', 'b'), os.remove('b')
    return os.listdir('.')
--
assert f() == []
====
import bisect, datetime, decimal, hashlib, heapq, json, random, re, ssl, statistics, zoneinfo
from dataclasses import dataclass
@dataclass
class A: x: int
def f(): return A(1).x
--
assert f() == 1
""".split("====")


@guards
@pytest.mark.parametrize("case", RIGHT, ids=range(len(RIGHT)))
def test_what_right_code_may_do(monkeypatch, kernel, case):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    assert sandbox.run(*case.split("\n--\n")) == sandbox.Outcome(True, "passed")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\nos._exit(0)", "ended before"),
        ("import sys\nsys.exit(0)", "called exit"),
        ("raise SystemExit", "called exit"),
        ("import sys\ndef double(n): sys.exit(0)", "called exit"),
        ("import os\ndef double(n): os._exit(0)", "ended before"),
        ("exit()", "NameError"),  # no `site` module in the child
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def double(n): raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Own(BaseException): pass\nraise Own('no')", "Own: no"),
        ("class Own(BaseException): pass\ndef double(n): raise Own('no')", "Own: no"),
        ("class Mean(Exception):\n    def __str__(self): raise SystemExit\nraise Mean", "Mean"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("def double(n) return", "SyntaxError"),
        ("x = '\\ud800'.encode()", "UnicodeEncodeError"),
        ("\ud800", "Unicode"),
        ("a\0b", "null bytes"),
        ("import torch", "ModuleNotFoundError"),
        ("", "NameError"),
        ("input()", "EOFError"),
        ("import os\nos.abort()", "ended before"),
        ("def double(n): return object()", "plain data only, not object"),
        ("def double(n): return double", "plain data only, not function"),
        ("double = object()", "not a function"),
        ("def double(n): return 'x' * 2**21", "over 1 MiB"),
    ],
)
def test_every_other_ending_fails(code, reason):
    outcome = sandbox.run(code, TESTS)
    assert not outcome.passed
    assert reason in outcome.reason


def test_run_many_keeps_the_order():
    wrong = "def double(n):\n    return n"
    outcomes = sandbox.run_many([(GOOD, TESTS), (wrong, TESTS), ("while 1: 0", TESTS)] * 2, 1.0)
    assert [outcome.passed for outcome in outcomes] == [True, False, False] * 2


def test_a_wrong_time_limit_is_an_error():
    for seconds in (0, float("inf")):
        with pytest.raises(CourseError, match="time limit"):
            sandbox.run(GOOD, TESTS, timeout_s=seconds)


# ----------------------------------------------------------------------- a forged verdict

VERDICT = '{"passed": true, "reason": "passed", "missing": []}\\n'
FORGERS = {
    "prints it": "print('passed')",
    "writes it everywhere": f"""import os
for fd in range(64):
    for text in ('passed', '.', '{VERDICT}', '.{VERDICT}'):
        try: os.write(fd, text.encode())
        except OSError: pass""",
    "finds the harness in the frames": f"""import gc, os, sys
frame, found = sys._getframe(), list(gc.get_objects())
while frame:
    found += [*frame.f_locals.values(), *frame.f_globals.values()]
    frame = frame.f_back
for thing in found:
    if type(thing).__name__ == 'Channel':
        for fd in (thing.target, thing.verdict):
            try: os.write(fd, '{VERDICT}'.encode())
            except OSError: pass""",
    "speaks the harness's language": """import os
for text in ('{"names": {"double": ["function", null]}}', '{"passed": true}', '[]', '[' * 9999):
    for fd in range(3, 64):
        try: os.write(fd, text.encode() + b'\\n')
        except OSError: pass
os._exit(0)""",
    "opens the other process": f"""import os
for process in range(os.getpid() - 9, os.getpid() + 9):
    for fd in range(9):
        try: open(f'/proc/{{process}}/fd/{{fd}}', 'w').write('{VERDICT}')
        except OSError: pass""",
    "replaces exec": "import builtins\nbuiltins.exec = builtins.compile = lambda *a: None",
    "replaces the error": "import builtins\nbuiltins.AssertionError = AssertionError = ValueError",
    "replaces the harness": """import json, sys
for module in list(sys.modules.values()):
    for name in ('judge', 'explain', 'call', 'confine', 'dumps', 'loads'):
        if hasattr(module, name): setattr(module, name, lambda *a, **k: None)""",
    "replaces builtins of the tests": "def len(x): return 2\ndef abs(x): return 4",
    "waits for the end": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "leaves a child": "import os\nif os.fork(): os._exit(0)",
    "leaves a thread": """import os, threading, time
def late():
    time.sleep(0.2)
    os._exit(0)
threading.Thread(target=late).start()""",
}
YES = "class Yes({base}):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
LIARS = {base: YES.format(base=base) for base in ("object", "int", "list", "str", "dict")}


@pytest.mark.parametrize("forger", FORGERS)
@pytest.mark.parametrize("wrong", ["def double(n): return 0", "def double(n): raise OSError"])
def test_a_forged_verdict_fails(forger, wrong):
    tests = TESTS + "\nassert len('abc') == 3 and abs(-1) == 1"
    assert not sandbox.run(f"{FORGERS[forger]}\n{wrong}", tests, timeout_s=2).passed


@pytest.mark.parametrize("base", LIARS)
def test_an_object_that_equals_everything_fails(base):
    code = LIARS[base] + "def double(n): return Yes()\n"
    exec(code + TESTS, {})  # passes where code and tests share a process
    assert not sandbox.run(code, TESTS).passed


@pytest.mark.parametrize("swallows", ["Exception", "BaseException", ""])
def test_a_test_that_expects_errors_does_not_accept_the_end(swallows):
    tests = f"try: f()\nexcept {swallows}: pass"
    for ending in ("import os\ndef f(): os._exit(0)", "def f(): raise SystemExit"):
        assert not sandbox.run(ending, tests).passed
    assert sandbox.run("def f(): raise ValueError", tests).passed


@guards
def test_the_expected_values_are_out_of_reach(monkeypatch, kernel):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    code = """import sys
OWN = 'in the code'
def attack(backwards):
    frame, seen = sys._getframe().f_back, []
    try: seen.append(open('../tests/job.json').read())
    except OSError: pass
    while frame:
        seen += [repr(frame.f_locals), repr(frame.f_globals)]
        frame = frame.f_back
    return backwards[::-1] in str([*seen, globals()])"""
    tests = "assert attack('in the code'[::-1])\nassert not attack('in the tests'[::-1])"
    assert sandbox.run(code, tests) == sandbox.Outcome(True, "passed")


# -------------------------------------------------------------------- time, memory and disk


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time\ntime.sleep(60)", "while True:\n    try: 1/0\n    except: 0"],
)
def test_endless_code_is_stopped_in_time(code):
    start = time.perf_counter()
    outcome = sandbox.run(code, TESTS, timeout_s=0.5)
    assert outcome == sandbox.Outcome(False, "time limit of 0.5 s reached")
    assert time.perf_counter() - start < 4


@pytest.mark.skipif(os.name != "posix", reason="Windows has no limit on CPU time")
def test_many_threads_spend_one_cpu_time():
    code = "import hashlib, threading\ndef burn():\n    while True: hashlib.sha256(bytes(2**24))\n"
    code += "for _ in range(4): threading.Thread(target=burn).start()\ntime.sleep(60)"
    assert "time limit" in sandbox.run("import time\n" + code, TESTS, timeout_s=1).reason


def test_output_flood_is_thrown_away_or_stopped():
    flood = "while True: print('x' * 100_000)"
    assert not sandbox.run(flood, TESTS, timeout_s=1).passed
    channel = "import os\nfor fd in range(3, 9):\n    try:\n        while True: "
    channel += "os.write(fd, b'x' * 65536)\n    except OSError: pass"
    assert not sandbox.run(channel, TESTS, timeout_s=1).passed


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces this limit")
@pytest.mark.parametrize(
    "body",
    [
        "return len(bytearray(4 * 2**30))",
        "hog = []\nwhile len(hog) < 1024: hog.append(bytearray(2**20))\nreturn len(hog)",
        "import mmap\nreturn len(mmap.mmap(-1, 2**30))",
        "for _ in range(200): threading.Thread(target=time.sleep, args=(3,), daemon=True).start()",
    ],
)
def test_a_memory_hog_is_refused_its_memory(body):
    assert result_of(function(body)).startswith("refused")


@linux
def test_memory_outside_the_limit_is_refused():
    assert result_of(function("return os.memfd_create('hog')")) == "refused: PermissionError"


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.setrecursionlimit(10**9)\ndef double(n): return double(n)",
        "def double(n): return double(n)",
        "def double(n):\n    for _ in range(10**5): n = [n]\n    return n",
        "def double(n):\n    n = []\n    n.append(n)\n    return n",
    ],
)
def test_deep_recursion_is_a_failed_test(code):
    assert not sandbox.run(code, TESTS, timeout_s=2).passed


@pytest.mark.skipif(os.name != "posix", reason="Windows has no limit on file size")
def test_a_huge_file_is_refused():
    body = "with open('huge', 'wb') as file:\n    for _ in range(64): file.write(bytes(2**20))"
    assert result_of(function(body + "\nreturn 1")) == "refused: OSError"
    holes = "with open('huge', 'wb') as file: file.truncate(2**40)\nreturn 1"
    assert result_of(function(holes)) == "refused: OSError"


def test_many_files_are_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "DISK_LIMIT_MIB", 4)
    for size in (0, 2**18):
        body = "import itertools\nfor i in itertools.count():\n    "
        body += f"with open(str(i), 'wb') as file: file.write(bytes({size}))\n    time.sleep(1e-4)"
        assert result_of(function(body)) == "disk limit of 4 MiB reached"


# ------------------------------------------------------------------------ files and secrets


@pytest.fixture
def treasure(tmp_path):
    """A folder with a file that code in the sandbox must neither read nor harm."""
    (tmp_path / "secret.txt").write_text("treasure")
    return tmp_path


OUTSIDE = {  # F is the file, D its folder
    "read": "return open(F).read()",
    "read low-level": "return os.read(os.open(F, os.O_RDONLY), 9)",
    "list": "return os.listdir(D)",
    "delete": "os.remove(F)",
    "delete the folder": "shutil.rmtree(D)",
    "overwrite": "open(F, 'w').close()",
    "append": "open(F, 'a').write('x')",
    "truncate": "os.truncate(F, 0)",
    "truncate on reading": "os.open(F, os.O_RDONLY | os.O_TRUNC)",
    "create": "open(D + '/new', 'w').close()",
    "make a folder": "os.mkdir(D + '/new')",
    "rename": "os.rename(F, D + '/new')",
    "move here": "os.rename(F, 'mine')",
    "change its mode": "os.chmod(F, 0)",
    "change its times": "os.utime(F, (0, 0))",
    "link to it": "os.symlink(F, 'way')\nreturn open('way').read()",
    "link to its folder": "os.symlink(D, 'way')\nreturn os.listdir('way')",
    "hard link": "os.link(F, 'way')\nreturn open('way').read()",
    "up and over": "return open(os.path.relpath(F)).read()",
    "go there": "os.chdir(D)\nreturn open('secret.txt').read()",
    "by folder": "return os.open('secret.txt', os.O_RDONLY, dir_fd=os.open(D, os.O_RDONLY))",
}


@guards
@pytest.mark.parametrize("attack", OUTSIDE)
def test_files_outside_are_out_of_reach(monkeypatch, treasure, kernel, attack):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    monkeypatch.chdir(treasure.parent)
    secret = treasure / "secret.txt"
    before = secret.stat()
    source = function(OUTSIDE[attack], f"F, D = {str(secret)!r}, {str(treasure)!r}\n")
    assert result_of(source).startswith("refused")
    after = secret.stat()
    assert (before.st_mode, before.st_mtime, before.st_nlink) == (
        (after.st_mode, after.st_mtime, after.st_nlink)
    )
    assert [entry.name for entry in treasure.iterdir()] == ["secret.txt"]
    assert secret.read_text() == "treasure"
    outside = treasure.parent / f"{treasure.name}-outside"  # a place of its own to work in
    outside.mkdir()
    monkeypatch.chdir(outside)
    assert succeeds_outside(source)


@linux
@pytest.mark.parametrize("call", ["unlink(F)", "truncate(F, 0)", "chmod(F, 0)", "rename(F, b'x')"])
def test_the_c_library_harms_no_file_either(monkeypatch, treasure, call):
    secret = treasure / "secret.txt"
    body = f"return 'done' if libc.{call} == 0 else 'refused: %d' % ctypes.get_errno()"
    source = function(body, LIBC + f"F = {os.fsencode(secret)!r}\n")
    assert result_of(source).startswith("refused")
    assert secret.read_text() == "treasure"
    assert secret.stat().st_mode & 0o400
    monkeypatch.chdir(treasure)  # where a file that is moved may lie
    assert succeeds_outside(source)


@guards
@pytest.mark.parametrize("path", [Path.home(), Path("/etc/passwd"), Path(sys.prefix), Path("/")])
def test_home_and_system_are_not_read(monkeypatch, kernel, path):
    if not path.exists():
        pytest.skip("not on this system")
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    look = "os.listdir" if path.is_dir() else "open"
    source = function(f"return str({look}({str(path)!r}))[:50]")
    assert result_of(source) == "refused: PermissionError"
    assert succeeds_outside(source)


@guards
def test_nothing_but_files_in_the_own_folder(monkeypatch, kernel):
    """No folders and links: no tree that is too deep to delete, no link for the clean-up."""
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    for body in ("os.mkdir('a')", "os.symlink('/', 'a')", "os.link('/etc/passwd', 'a')"):
        assert result_of(function(body)).startswith("refused")


@pytest.mark.skipif(os.name != "posix", reason="links need rights on Windows")
def test_the_clean_up_follows_no_links(treasure, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "way").symlink_to(treasure)
    sandbox._remove(folder)
    assert not folder.exists()
    assert (treasure / "secret.txt").exists()


@guards
def test_environment_and_folder_are_empty_and_gone_afterwards(monkeypatch, kernel):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    monkeypatch.setenv("COURSE_SECRET", "1")
    body = "return [os.getcwd(), len(os.listdir('.')), *map(str.upper, os.environ)]"
    text = result_of(function(body)).replace("\\\\", "\\")
    own, files, rest = re.match(r"\['(.*)', (\d+)(.*)\]", text).groups()
    assert files == "0"
    # Python itself may set LC_CTYPE (PEP 538), and macOS __CF_USER_TEXT_ENCODING.
    assert "COURSE" not in rest and "PATH" not in rest and "HOME" not in rest
    assert not Path(own).exists() and not Path(own).parent.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")
@guards
@pytest.mark.parametrize("name", ["environ", "cmdline", "maps", "mem", "cwd/setup.py"])
def test_the_parent_is_not_read_through_proc(monkeypatch, kernel, name):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    body = f"return str(open('/proc/%d/{name}' % os.getppid(), 'rb'))[:20]"
    assert result_of(function(body)).startswith("refused")
    assert name == "cwd/setup.py" or succeeds_outside(function(body))


# ------------------------------------------------------------------------------- network


@guards
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_network_is_refused(monkeypatch, kernel, kind):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    with socket.socket(type=getattr(socket, kind)) as server:
        server.bind(("127.0.0.1", 0))
        if kind == "SOCK_STREAM":
            server.listen()
        target = server.getsockname()
        body = f"s = socket.socket(type=socket.{kind})\ns.connect({target})\nreturn s.send(b'x')"
        assert result_of(function(body)) == "refused: PermissionError"
        assert succeeds_outside(function(body))
    body = "s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nreturn 1"
    assert result_of(function(body)) == "refused: PermissionError"
    assert result_of(function("return socket.getaddrinfo('localhost', 1)")).startswith("refused")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
@guards
def test_local_services_are_refused(monkeypatch, kernel, tmp_path_factory):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    path = str(tmp_path_factory.mktemp("s") / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        body = "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        assert result_of(function(body + f"return s.sendto(b'x', {path!r})")).startswith("refused")
        pair = f"return socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b'x', {path!r})"
        assert result_of(function(pair)).startswith("refused")
        assert succeeds_outside(function(body + f"return s.sendto(b'x', {path!r})"))


# ------------------------------------------------------------------------ other processes


@guards
@pytest.mark.parametrize(
    "body",
    [
        # Limited on purpose: if the guard is broken, this leaves 30 sleepers for 0.5 s and no bomb.
        "started = 0\nfor _ in range(30):\n    if os.fork() == 0:\n        time.sleep(0.5)\n"
        "        os._exit(0)\n    started += 1\nreturn started",
        "return subprocess.run([sys.executable, '-c', '1'], check=True).args",
        "return os.posix_spawn('/bin/true', ['true'], {})",
        "os.execv('/bin/echo', ['echo'])",
        "if os.system('true') != 0: raise OSError",
        "import multiprocessing as m\np = m.Process(target=print)\np.start()\np.join()",
    ],
    ids=["fork bomb", "subprocess", "spawn", "exec", "system", "multiprocessing"],
)
def test_no_process_is_started(monkeypatch, kernel, body):
    if os.name != "posix" and "subprocess.run" not in body:
        pytest.skip("POSIX only")
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    assert result_of(function(body)).startswith("refused")
    assert succeeds_outside(function(body))


@pytest.fixture
def victim():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


ON_VICTIM = {  # P is the process; each ends it, or looks into it, where nothing stops it
    "kill": "return os.kill(P, 9)",
    "kill by ctypes": "return check(libc.kill(P, 9))",
    "kill by number": "return check(libc.syscall(KILL, P, 9))",
    "kill a thread": "return check(libc.syscall(TKILL, P, 9))",
    "pidfd": "return check(libc.syscall(434, P, 0))",
    "queue a signal": "return check(libc.sigqueue(P, 9, None))",
    "limit its CPU time": "import resource\nreturn str(resource.prlimit(P, resource.RLIMIT_CPU, (1, 1)))",  # noqa: E501
    "trace it": "return check(libc.ptrace(16, P, None, None))",
    "slow it down": "return check(libc.setpriority(0, P, 19))",
    "pin it to a core": "return os.sched_setaffinity(P, {0})",
    "signal by an open file": (
        "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, fcntl.F_SETOWN, P)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')\ntime.sleep(0.1)"
    ),
}


@linux
@pytest.mark.parametrize("attack", ON_VICTIM)
def test_other_processes_are_left_alone(victim, attack):
    numbers = (62, 200) if os.uname().machine == "x86_64" else (129, 130)
    check = "def check(code):\n    if code < 0: raise OSError\n    return code\n"
    start = LIBC + check + f"P, (KILL, TKILL) = {victim.pid}, {numbers}\n"
    assert result_of(function(ON_VICTIM[attack], start)).startswith("refused")
    assert victim.poll() is None
    assert succeeds_outside(function(ON_VICTIM[attack], start))


@guards
def test_the_parent_gets_no_signal(monkeypatch, kernel):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", kernel)
    if os.name != "posix":
        pytest.skip("POSIX only")
    seen = []
    previous = signal.signal(signal.SIGWINCH, lambda *_: seen.append(1))
    try:
        by_ctypes = function(f"return libc.kill(os.getppid(), {int(signal.SIGWINCH)})", LIBC)
        by_os = function(f"return os.kill(os.getppid(), {int(signal.SIGWINCH)})")
        for source in (by_ctypes, by_os):
            assert result_of(source) != "0"
            assert not seen
        assert succeeds_outside(by_os)
        assert seen
    finally:
        signal.signal(signal.SIGWINCH, previous)


@linux
@pytest.mark.parametrize(
    "body",
    [
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "return check(libc.unshare(0x10000000))",
        "return check(libc.mount(b'none', b'.', b'tmpfs', 0, None))",
        "return check(libc.chroot(b'.'))",
        "return check(libc.setuid(1))",
        "return check(libc.syscall(425, 4, bytes(120)))",
    ],
    ids=["raise a limit", "namespace", "mount", "chroot", "another user", "io_uring"],
)
def test_no_way_back_to_more_rights(body):
    check = "def check(code):\n    if code < 0: raise OSError\n    return code\n"
    result = result_of(function(body, LIBC + check))
    assert result.startswith(("refused", "ValueError"))


@pytest.mark.parametrize("daemon", [True, False])
def test_left_over_threads_end_with_the_run(daemon):
    code = "import threading, time\n"
    code += f"threading.Thread(target=time.sleep, args=(60,), daemon={daemon}).start()\n"
    start = time.perf_counter()
    assert sandbox.run(code + GOOD, TESTS).passed
    assert time.perf_counter() - start < 4
    assert not sandboxed()


def test_children_are_ended_with_their_parent_group():
    """Where forks are not refused, the group is what ends the children."""
    if os.name != "posix":
        pytest.skip("process groups are POSIX")
    shell = ["sh", "-c", "sleep 61 & sleep 62"]
    process = subprocess.Popen(shell, stdin=subprocess.PIPE, start_new_session=True)
    while len(children := psutil.Process(process.pid).children()) < 2:
        time.sleep(0.01)
    sandbox._kill(process)
    assert not psutil.wait_procs(children, timeout=3)[1]


@linux
def test_a_killed_parent_takes_the_sandbox_along(tmp_path):
    program = "from course_utils import sandbox\nsandbox.run('import time; time.sleep(50)', '', 50)"
    root, folder = Path(__file__).parents[1], {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    parent = subprocess.Popen(command, cwd=root, env={**os.environ, **folder})
    own = psutil.Process(parent.pid)
    deadline = time.monotonic() + 20
    while len(children := own.children()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # until both are locked up
    parent.kill()
    parent.wait()
    assert len(children) == 2
    assert not psutil.wait_procs(children, timeout=5)[1]


def sandboxed() -> list[psutil.Process]:
    """Processes of the sandbox that this process has started and that still live."""
    return psutil.Process().children(recursive=True)


# ------------------------------------------------------------------------------- what it says


def test_it_says_what_is_not_enforced(monkeypatch):
    monkeypatch.setattr(sandbox, "KERNEL_GUARDS", False)
    sandbox.not_enforced.cache_clear()
    said = sandbox.not_enforced()
    sandbox.not_enforced.cache_clear()
    assert "network" in said and "files" in said and said.count(".") == 1


def test_nothing_is_left_behind_by_the_parent(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    threads = threading.active_count()
    for code in (GOOD, "while True: pass", "import os\nos._exit(0)"):
        sandbox.run(code, TESTS, timeout_s=0.5)
    assert not list(tmp_path.iterdir()) and not sandboxed()
    assert threading.active_count() <= threads
    shutil.rmtree(tmp_path)
