"""The two child processes of `course_utils.sandbox`: started as a script, never imported.

`code` runs the generated code and then answers calls of its functions; `tests` runs the tests,
whose calls go through a pipe to the other process. Everything that comes through this pipe is
treated as a stranger's: it is read as plain data (below), and anything else fails the tests.
"""

import ast
import builtins
import contextlib
import functools
import importlib
import itertools
import json
import os
import sys
import traceback
import types

sys.path.insert(0, os.path.dirname(__file__))
import _sandbox_guard  # noqa: E402

sys.path.pop(0)

MESSAGE_BYTES = 2**20
ITEMS_OF_ITERATOR = 10_000
CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset)}


ENDED = "the process ended before the tests finished"
FORGED = "wrote to the harness's channel, or an answer of over 1 MiB"


class CodeError(BaseException):
    """The code's process ended or broke the protocol; no `except Exception` of a test hides it."""


class Channel:
    """Messages, one JSON object a line, over private copies of the standard streams."""

    def __init__(self) -> None:
        self.source = os.fdopen(os.dup(0), "rb")
        self.target, self.verdict = os.dup(1), os.dup(2)
        self.fault: CodeError | None = None  # final, even where a test has a bare `except`
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)

    def fail(self, reason: str) -> CodeError:
        self.fault = self.fault or CodeError(reason)
        return self.fault

    def send(self, message: dict) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self.target, data) :]
        except OSError:
            raise self.fail(ENDED) from None

    def receive(self) -> dict:
        line = self.source.readline(MESSAGE_BYTES)
        if not line:
            raise self.fail(ENDED)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise self.fail(FORGED)
        return message


# ------------------------------------------------------------------------------ plain data


def pack(value):
    """Turn plain data into what JSON can carry; raise TypeError for any other object.

    Only the data of an object passes: a subclass becomes its base, so that an `__eq__` which
    always says yes stays behind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for name, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return [name, [pack(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(item)] for key, item in value.items()]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if hasattr(type(value), "__next__") or isinstance(value, range):
        return ["iterator", [pack(item) for item in itertools.islice(value, ITEMS_OF_ITERATOR)]]
    raise TypeError(f"tests and code exchange plain data only, not {type(value).__name__}")


def unpack(value):
    """The inverse of `pack`; ValueError, TypeError or KeyError for anything malformed."""
    if not isinstance(value, list):
        return value
    name, content = value
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "complex":
        return complex(*content)
    if name == "dict":
        return {unpack(key): unpack(item) for key, item in content}
    items = [unpack(item) for item in content]
    return iter(items) if name == "iterator" else CONTAINERS[name](items)


def describe(error: BaseException) -> str:
    """The exception in one line."""
    if isinstance(error, SystemExit):
        return "called exit before the tests finished"
    name, text = type(error).__name__, message_of(error)
    return f"{name}: {text}"[:300] if text else name


def message_of(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:300]
    except BaseException:  # an exception whose own __str__ raises is still only a failed test
        return ""


# ----------------------------------------------------------------------- the code's process


def serve_code(channel: Channel, missing: list[str]) -> None:
    """Run the code that comes first, then answer calls until the tests' process hangs up."""
    channel.send({"missing": missing})
    job = channel.receive()
    module = sys.modules["solution"] = types.ModuleType("solution")
    space = vars(module)
    try:
        exec(compile(job["code"], "<code>", "exec"), space)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures too
        return channel.send({"ended": describe(error)})
    channel.send({"names": {n: kind_of(space[n]) for n in job["names"] if n in space}})
    while True:
        request = channel.receive()
        channel.send(answer(space[request["call"]], request))


def kind_of(value) -> list:
    """How the tests see a name of the code: a function, a module, or a value that stays."""
    if isinstance(value, types.ModuleType):
        return ["module", None]
    if callable(value):
        return ["function", None]
    try:
        return ["value", pack(value)]
    except TypeError:
        return ["nothing", None]


def answer(function, request: dict) -> dict:
    """The result of one call, and its arguments, which it may have changed in place."""
    positional, named = unpack(request["args"]), unpack(request["kwargs"])
    try:
        result = pack(function(*positional, **named))
        return {"result": result, "args": pack(positional)}
    except BaseException as error:
        kind = next(c for c in type(error).__mro__ if c.__module__ == "builtins")
        return {"raised": kind.__name__, "text": message_of(error), "line": describe(error)}


# ---------------------------------------------------------------------- the tests' process


def run_tests(channel: Channel, missing: list[str], job: dict) -> None:
    """Run the tests, and write the verdict where the code's process cannot reach."""
    missing = sorted({*missing, *channel.receive()["missing"]})
    os.write(channel.verdict, b".")  # ready: the parent's clock starts
    reason = judge(channel, job["code"], job["tests"])
    report = {"passed": reason is None, "reason": (reason or "passed")[:300], "missing": missing}
    os.write(channel.verdict, json.dumps(report).encode() + b"\n")


def judge(channel: Channel, code: str, tests: str) -> str | None:
    """None when every test passes, else what went wrong, in one line."""
    try:
        tree = ast.parse(tests, "<tests>")
        channel.send({"code": code, "names": wanted(tree)})
        reply = channel.receive()
        if "ended" in reply:
            return str(reply["ended"])[:300]
        if not isinstance(reply.get("names"), dict):
            raise channel.fail(FORGED)
        space = {"__name__": "tests"}
        space.update({n: stand_in(channel, n, *k) for n, k in reply["names"].items()})
        exec(compile(tree, "<tests>", "exec"), space)
    except BaseException as error:
        return str(channel.fault or explain(error, tests))
    return str(channel.fault) if channel.fault else None


def wanted(tree: ast.Module) -> list[str]:
    """The names in the tests that the code may define: never a builtin such as `len`."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return sorted(name for name in names if not hasattr(builtins, name))


def stand_in(channel: Channel, name: str, kind: str, packed):
    """What stands for a name of the code in the tests."""
    if kind == "value":
        return unpack(packed)
    if kind == "module" and name in sys.stdlib_module_names:
        return importlib.import_module(name)  # the real one, whatever the code put there
    if kind != "function":
        raise channel.fail(f"{name} is not a function or plain data")

    return functools.partial(call, channel, name)


def call(channel: Channel, name: str, /, *args, **kwargs):
    """Have the code's process call its function `name`; its result or its exception is ours."""
    channel.send({"call": name, "args": pack(list(args)), "kwargs": pack(kwargs)})
    reply = channel.receive()
    if "raised" in reply:
        raise raised(channel, reply)
    try:
        result, changed = unpack(reply["result"]), unpack(reply["args"])
        take_over(args, changed)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise channel.fail(FORGED) from None
    return result


def take_over(args: tuple, changed: list) -> None:
    """Repeat in the tests' own lists, dicts and sets what the function did to its copies."""
    for mine, new in zip(args, changed, strict=True):
        if isinstance(mine, list):
            mine[:] = new
        elif isinstance(mine, dict | set):
            mine.clear()
            mine.update(new)


def raised(channel: Channel, reply: dict) -> BaseException:
    """The code's exception, for the tests: the built-in kind that it is or descends from."""
    kind = getattr(builtins, str(reply["raised"]), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # UnicodeDecodeError and its like want more
            return kind(str(reply["text"]))
        return ValueError(str(reply["text"]))
    return channel.fail(str(reply.get("line"))[:300])  # SystemExit, KeyboardInterrupt


def explain(error: BaseException, tests: str) -> str:
    """Say in one line what went wrong: the failed assertion's source, or the exception."""
    if isinstance(error, AssertionError):
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == "<tests>"]
        if lines:
            return f"failed: {tests.splitlines()[lines[-1] - 1].strip()}"[:300]
    return describe(error)


def main() -> None:
    settings = json.loads(sys.argv[1])
    channel = Channel()
    job = None
    if settings["role"] == "tests":
        with open("job.json", encoding="ascii") as file:
            job = json.load(file)
    sys.set_int_max_str_digits(0)  # long numbers are right answers too; the time limit holds
    _sandbox_guard.limit(settings["cpu_s"], settings["memory_bytes"])
    missing = _sandbox_guard.confine(os.getcwd(), settings["kernel"])
    try:
        serve_code(channel, missing) if job is None else run_tests(channel, missing, job)
    except CodeError:
        pass  # the other process is gone
    finally:
        os._exit(0)  # whatever threads are left


main()
