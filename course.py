#!/usr/bin/env python3
"""Set up the course and start it: python3 course.py lab | quickstart | test | doctor | help.

Standard library only, the same on Linux, macOS and Windows.  What is missing is installed into
`.venv` beside this file; what is there is left alone.  All chatter goes to standard error, so the
standard output belongs to the command that is started.

This file must stay readable for Python 3.8: that is how an old Python gets a sentence instead of a
SyntaxError.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator, NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "course-stamp.json"
LOG = VENV / "setup.log"
LOCK = ROOT / ".course.lock"
PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"

OLDEST, NEWEST = (3, 11), (3, 14)  # needed; the newest that the pinned torch has wheels for
SPACE = 3.0  # GB for a complete .venv with the CPU build of torch (2.2 GB) and some air
SPACE_LEFT = 0.7  # GB when torch is there already
SPACE_CUDA = 9.0  # GB with the CUDA build of torch and NVIDIA's libraries (an estimate)
SCRATCH = 0.5  # GB in the temporary folder, where pip unpacks
MEMORY = 4.0  # GiB, what the quick start needs at its peak
MEMORY_FOR_TWO = 12.0  # GiB of a machine that runs two notebooks at once in the tests

HELP = """\
usage: python3 course.py COMMAND [--current-env] [ARGUMENTS]

  lab         open JupyterLab on the first notebook
  quickstart  fine-tune a real model here in the terminal, and compare it before and after
              (--json: one JSON object on standard output)
  test        run every test and every notebook; ARGUMENTS go to pytest
              (one chapter: python3 course.py test notebooks/01_basics.ipynb)
  doctor      check this machine and the set-up, and say what to do
  help        show this text

Each command first installs what is missing into .venv beside this file (the first time: about
3 GB of disk and a few minutes) and fetches the 93 MB model into your cache folder. A second start
installs nothing. Interrupt it whenever you like: the next start goes on from there. ARGUMENTS are
handed on, for example: python3 course.py lab --no-browser --port=8899

  --current-env  use the Python that runs course.py (conda, Docker, your own environment) with the
                 packages it has, instead of .venv

Environment variables:
  COURSE_TORCH_INDEX  URL of the package index to take PyTorch from. PyTorch's install page names
                      one for each build: the CPU build, or one for the CUDA version of your driver.
  COURSE_CACHE        folder for the model, instead of the system's cache folder
pip's own settings (PIP_INDEX_URL, PIP_PROXY, pip.conf ...) are honored.
"""


class SetupError(Exception):
    """One sentence that says what is wrong and what to do."""


def say(text: str) -> None:
    """Print a line of chatter to standard error."""
    print("course: " + text, file=sys.stderr, flush=True)


# --- This machine -----------------------------------------------------------------------------


def python_problem(
    version: tuple[int, ...] = tuple(sys.version_info[:3]),
    system: str = platform.system(),
    machine: str = platform.machine(),
    bits: int = 64 if sys.maxsize > 2**32 else 32,
) -> str | None:
    """Why this Python cannot run the course, as a sentence; None when it can."""
    shown = ".".join(map(str, version))
    if tuple(version[:2]) < OLDEST:
        return (
            f"The course needs Python 3.11 or newer and this is Python {shown}: {newer_python()}."
        )
    if bits != 64:
        return "This is a 32-bit Python, for which there is no PyTorch: install a 64-bit Python."
    if system == "Darwin" and machine == "x86_64":
        return (
            "PyTorch no longer supports Macs with Intel processors (or this Python runs under "
            "Rosetta): use an Apple-silicon Python, a Linux machine, or the notebooks on Colab."
        )
    return None


def newer_python() -> str:
    """How to get or call a suitable Python on this machine."""
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        if os.name == "nt":
            name, call = f"py -3.{minor}", ["py", f"-3.{minor}"]
        else:
            name, call = f"python3.{minor}", [f"python3.{minor}"]
        # A name on the PATH proves nothing (pyenv's shims, Windows' store links): run it.
        if shutil.which(call[0]) and quiet_run(call + ["-c", "pass"]).returncode == 0:
            return f"run `{name} course.py` instead, which you have"
    return "install Python 3.11 to 3.14 (python.org, your system's packages, or conda)"


def space_problem(free: float, needed: float, folder: Path) -> str | None:
    """Why the disk is too small (both in GB = 10^9 bytes), as a sentence; None when it is not."""
    if free >= needed:
        return None
    return (
        f"{folder} has {free:.1f} GB free and setting up needs {needed:.1f} GB: make room, or "
        "choose a larger disk (for a temporary folder: set TMPDIR)."
    )


def free_space(folder: Path) -> float:
    """Free space in GB (10^9 bytes) on the disk that holds the folder."""
    return shutil.disk_usage(str(folder)).free / 1e9


def space_needed() -> float:
    """GB that setting up still takes beside this file."""
    return SPACE_LEFT if has_torch() else SPACE


def write_problem(folder: Path) -> str | None:
    """Why nothing can be written there, as a sentence; None when it can (permission bits lie)."""
    try:
        with tempfile.TemporaryFile(dir=str(folder)):
            return None
    except OSError as error:
        return (
            f"The folder {folder} cannot be written ({error.strerror or error}): copy the course "
            "to a folder of your own, or use --current-env."
        )


def total_memory() -> float | None:
    """This machine's memory in GiB; None where it cannot be told."""
    if os.name == "nt":
        return windows_memory()
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        return None


def windows_memory() -> float | None:
    """Memory in GiB from GlobalMemoryStatusEx; None where that fails."""
    import ctypes

    # MEMORYSTATUSEX: two 32-bit fields (its own length, load), then seven 64-bit ones, total first.
    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return status[1] / 2**30


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver answers on this machine."""
    tool = shutil.which("nvidia-smi")
    return bool(tool) and quiet_run([tool, "-L"]).stdout.startswith("GPU")


def quiet_run(command: list[str]) -> subprocess.CompletedProcess:
    """Run a short command with its output kept; a failure is in the return code."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, str(error))


# --- The environment .venv and its stamp ------------------------------------------------------


def venv_python(venv: Path = VENV) -> Path:
    """The environment's interpreter."""
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def site_packages(venv: Path = VENV) -> Path:
    """Where the environment keeps its packages."""
    if os.name == "nt":
        return venv / "Lib" / "site-packages"
    version = venv_version(venv).split(".")
    return venv / "lib" / "python{}".format(".".join(version[:2])) / "site-packages"


def venv_version(venv: Path = VENV) -> str:
    """The Python version of a usable environment ("3.11.7"); "" when there is none."""
    try:
        text = (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    settings = dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))
    # An environment dies with the Python it was made from (an upgrade, a removed pyenv version).
    if not venv_python(venv).exists() or not Path(settings.get("home", "")).is_dir():
        return ""
    return settings.get("version") or settings.get("version_info", "")  # venv's and uv's names


def is_usable(version: str) -> bool:
    """Whether an environment of this Python version ("3.11.7") can hold the course."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    return numbers >= OLDEST


def fingerprint(version: str, root: Path = ROOT) -> str:
    """A hash of all that decides what an installation contains.

    The folder is part of it: the package is installed as a link to it, which a moved folder breaks.
    """
    digest = hashlib.sha256(f"{version}\n{root}\n".encode("utf-8", "surrogateescape"))
    for name in (PYPROJECT.name, CONSTRAINTS.name):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def read_stamp(path: Path = STAMP) -> tuple[str, set[str]]:
    """The fingerprint and the extras of the last finished installation; ("", set()) without one."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
        return str(stamp["fingerprint"]), set(stamp["extras"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", set()


def write_stamp(mark: str, extras: set[str], path: Path = STAMP) -> None:
    """Record a finished installation; the rename makes it all or nothing."""
    scratch = path.with_suffix(".new")
    text = json.dumps({"fingerprint": mark, "extras": sorted(extras)})
    scratch.write_text(text + "\n", encoding="utf-8")
    os.replace(str(scratch), str(path))


def is_installed(extras: set[str]) -> bool:
    """Whether `.venv` is complete, unchanged and has these extras: reads four small files."""
    version = venv_version()
    mark, present = read_stamp()
    return bool(mark) and is_usable(version) and mark == fingerprint(version) and extras <= present


def drop_half_installed(site: Path) -> list[str]:
    """Remove the records of packages that an interrupted pip left; pip then installs them again.

    pip copies a package's files first and writes INSTALLER near the end, but takes a folder with
    METADATA alone for an installed package.  Returns the names of what was removed.
    """
    leftovers = list(site.glob("~*"))  # pip's own backups from an interrupted upgrade
    leftovers += [info for info in site.glob("*.dist-info") if not (info / "INSTALLER").is_file()]
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(str(path))
        else:
            path.unlink()
    return [path.name for path in leftovers]


# --- One at a time ----------------------------------------------------------------------------


@contextlib.contextmanager
def only_one(path: Path = LOCK) -> Iterator[None]:
    """Hold the folder's lock; wait, and say so, while another course.py holds it.

    The operating system keeps the lock, so it ends with the process, however that ends.
    """
    with path.open("a+", encoding="utf-8") as handle:
        if not try_lock(handle):
            say("another course.py is setting up this folder; waiting for it to finish ...")
            while not try_lock(handle):
                time.sleep(0.3)
        yield


def try_lock(handle) -> bool:
    """Take the lock on an open file if it is free; True where the disk has no locks at all."""
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # what the two systems call "taken"
        return False
    except OSError:
        return True
    return True


# --- Installing -------------------------------------------------------------------------------


def set_up(extras: set[str]) -> Path:
    """Make `.venv` complete with these extras, doing only what is missing; return its Python."""
    if is_installed(extras):
        return venv_python()
    refuse(write_problem(ROOT))
    with only_one():
        if not is_installed(extras):  # the other course.py may just have done it
            install(extras)
    return venv_python()


def refuse(problem: str | None) -> None:
    """Stop with the sentence, if there is one."""
    if problem:
        raise SetupError(problem)


def install(extras: set[str]) -> None:
    """Create `.venv` if needed, install into it, check that it imports, and write the stamp."""
    refuse(space_problem(free_space(ROOT), space_needed(), ROOT))
    scratch = Path(tempfile.gettempdir())
    refuse(space_problem(free_space(scratch), SCRATCH, scratch))
    started = time.monotonic()
    _, present = read_stamp()
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()
    make_venv()
    drop_half_installed(site_packages())
    install_torch(has_nvidia_gpu())
    wanted = sorted(extras | present)
    say("installing the other packages ({}) ...".format(", ".join(wanted)))
    pip_install(["-c", CONSTRAINTS.name, "-e", ".[{}]".format(",".join(wanted))])
    check_imports()
    write_stamp(fingerprint(venv_version()), set(wanted))
    say(f"set up in {time.monotonic() - started:.0f} s.")


def make_venv() -> None:
    """Create `.venv`, or make a broken one anew; leave a usable one alone."""
    python = str(venv_python())
    if is_usable(venv_version()):
        if quiet_run([python, "-m", "pip", "--version"]).returncode == 0:
            return
        if quiet_run([python, "-m", "ensurepip"]).returncode == 0:  # uv makes them without pip
            return
    refuse(ensurepip_problem())
    say(f"creating {VENV} with Python {platform.python_version()} ...")
    made = quiet_run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if made.returncode:
        raise SetupError(
            f"The environment {VENV} could not be created ({last_line(made.stdout)}): delete that "
            "folder and try again."
        )


def ensurepip_problem() -> str | None:
    """Why this Python cannot make environments, as a sentence; None when it can."""
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship it in a package of its own)
        import venv  # noqa: F401
    except ImportError:
        return (
            "This Python cannot make environments: install the package python3-venv (on Debian "
            "and Ubuntu: `sudo apt install python3-venv`), or use another Python."
        )
    return None


def torch_pin() -> str:
    """The version of torch that the course was tested with, from constraints.txt."""
    return re.findall(r"^torch==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)[0]


def has_torch() -> bool:
    """Whether some build of the pinned torch is in `.venv`."""
    return any(site_packages().glob(f"torch-{torch_pin()}*.dist-info"))


def torch_request(gpu: bool, index: str, system: str = platform.system()) -> list[str]:
    """pip's arguments that get the right build of torch; [] where the index's plain one is right.

    torch alone, without its dependencies: those come with the other packages from the user's own
    index.  The suffix +cpu asks for the build without CUDA wherever a configured index has it.
    """
    if index:
        return ["--no-deps", "--index-url", index, "torch==" + torch_pin()]
    if system == "Linux" and not gpu:
        return ["--no-deps", f"torch=={torch_pin()}+cpu"]
    return []


CUDA_COMES = (
    "your package index has no CPU build of PyTorch, so the CUDA build comes, several GB more. To "
    "spare them: interrupt, set COURSE_TORCH_INDEX to the CPU index that PyTorch's install page "
    "names, and start again."
)


def install_torch(gpu: bool) -> None:
    """Install torch by itself where a particular build is wanted; else leave it to the rest."""
    index = os.environ.get("COURSE_TORCH_INDEX", "")
    request = torch_request(gpu, index)
    if has_torch():
        return
    if request:
        say(f"installing PyTorch {torch_pin()} ...")
        try:
            return pip_install(request)
        except SetupError as error:
            if index:
                raise SetupError(f"With COURSE_TORCH_INDEX={index}: {error}") from error
            if not isinstance(error, NotOnIndex):
                raise
        say(CUDA_COMES)
    if platform.system() == "Linux":  # the plain build there is the CUDA one
        refuse(space_problem(free_space(ROOT), SPACE_CUDA, ROOT))


class NotOnIndex(SetupError):
    """The index was reached and does not have the package."""


def pip_install(arguments: list[str]) -> None:
    """Run pip in `.venv`, from the course's folder, and explain a failure in one sentence."""
    command = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar", "off"]
    code, lines = run_logged(command + arguments)
    if code == 0:
        return
    telling = [line for line in lines if line.strip() and "WARNING: Retrying" not in line]
    for line in telling[-5:]:
        print("    " + line.rstrip(), file=sys.stderr)
    kind, sentence = explain("".join(lines))
    raise kind(f"{sentence} (pip's log: {LOG})")


def run_logged(command: list[str]) -> tuple[int, list[str]]:
    """Run a command in the course's folder; append its output to the log and return it."""
    lines = []
    with LOG.open("a", encoding="utf-8") as log:
        log.write(f"\n$ {subprocess.list2cmdline(command)}\n")
        process = subprocess.Popen(
            command,
            cwd=str(ROOT),
            env=child_environment(venv_python()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        try:
            for line in process.stdout:
                lines.append(line)
                log.write(line)
                show_progress(line)
            return process.wait(), lines
        finally:
            process.kill()  # without effect on a process that has ended
            process.wait()
            show_progress("")


def show_progress(line: str) -> None:
    """Show what pip is at, on one line that is overwritten; only to a person at a terminal."""
    if not sys.stderr.isatty():
        return
    doing = re.match(r"\s*(Collecting|Downloading|Installing|Building)\b.{0,60}", line)
    if doing or not line:
        text = "  " + doing.group().strip() if doing else ""
        sys.stderr.write("\r" + text.ljust(78) + ("" if doing else "\r"))
        sys.stderr.flush()


class Failure(NamedTuple):
    """A way in which pip fails: how to know it from its output, and what to tell the user."""

    pattern: str
    sentence: str
    kind: type = SetupError


# The first that matches is meant: a network failure ends in "no matching distribution" too.
FAILURES = (
    Failure(
        r"No space left on device|Errno 28|Disk quota exceeded|WinError 112",
        "The disk, or the temporary folder {temporary}, is full: make {space:.0f} GB of room and "
        "run the same command again.",
    ),
    Failure(
        r"NewConnectionError|Max retries|ConnectTimeout|ReadTimeout|Read timed out|ProxyError"
        r"|SSLError|CERTIFICATE_VERIFY|Connection (refused|reset|broken)|name resolution"
        r"|ConnectionResetError|ProtocolError|IncompleteRead|HTTP error 5\d\d",
        "The package index cannot be reached: check the network and pip's settings (PIP_INDEX_URL "
        "for a mirror, PIP_PROXY, PIP_CERT) and run the same command again.",
    ),
    Failure(  # not even another version
        r"\(from versions: none\)[\s\S]*No matching distribution found for (?P<package>\S+)",
        "The package index cannot be reached or has no {package} for Python {python} on this "
        "system: check the network and pip's settings (PIP_INDEX_URL), and use Python 3.11 to "
        "3.14.",
    ),
    Failure(
        r"No matching distribution found for (?P<package>\S+)",
        "Your package index lacks {package} for Python {python} on this system: use Python 3.11 to "
        "3.14 and an index that is complete (PIP_INDEX_URL).",
        NotOnIndex,
    ),
    Failure(
        r"Permission denied|Read-only file system|WinError 5\b",
        "A file in {venv} cannot be written: close what runs from it (JupyterLab, an editor), or "
        "delete that folder, and run the same command again.",
    ),
    Failure(  # pip's own hint
        r"Windows Long Path support",
        "A path is too long for Windows: move the course to a short folder such as C:\\course and "
        "run the same command again.",
    ),
)


def explain(output: str) -> tuple[type, str]:
    """What a failed pip's output means: the kind of error and a sentence that says what to do."""
    for pattern, sentence, kind in FAILURES:
        match = re.search(pattern, output)
        if match:
            return kind, sentence.format(
                temporary=tempfile.gettempdir(),
                space=SPACE,
                python=venv_version() or platform.python_version(),
                venv=VENV,
                **match.groupdict(),
            )
    return SetupError, "pip could not install the packages: see its last lines above."


def check_imports() -> None:
    """Import the large packages once: what pip installed must also load on this machine."""
    say("checking that the packages load ...")
    code, lines = run_logged(
        [str(venv_python()), "-c", "import torch, transformers, datasets, peft, course_utils"]
    )
    if code:
        raise SetupError(
            "The packages are installed but do not load ({}): delete {} and run the same command "
            "again, and if that does not help show {} to whoever helps you.".format(
                last_line("".join(lines)), VENV, LOG
            )
        )


def last_line(text: str) -> str:
    """The last line that is not blank."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


# --- --current-env: the packages of the running Python ----------------------------------------


class Requirement(NamedTuple):
    """One line of pyproject.toml's dependencies."""

    name: str
    at_least: str


def requirements(extras: set[str]) -> list[Requirement]:
    """The packages with lower bounds that pyproject.toml asks for; needs Python 3.11."""
    import tomllib

    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in sorted(extras):
        lines += project["optional-dependencies"][extra]
    found = [re.match(r"([\w.-]+)>=([\d.]+)", line) for line in lines]
    return [Requirement(match.group(1), match.group(2)) for match in found]


def numbers(version: str) -> tuple[int, ...]:
    """A release as numbers that compare: "2.13.0+cpu" -> (2, 13, 0)."""
    release = re.match(r"[\d.]*\d|", version).group()
    return tuple(int(part) for part in release.split(".") if part)


def unmet(extras: set[str]) -> list[str]:
    """What the running Python lacks, as "name>=bound (has ...)"; the first four and a count."""
    problems = []
    for name, at_least in requirements(extras):
        present = installed_version(name)
        if numbers(present) < numbers(at_least):
            problems.append(f"{name}>={at_least} (has {present or 'none'})")
    return problems[:4] + ([f"{len(problems) - 4} more"] if len(problems) > 4 else [])


def installed_version(name: str) -> str:
    """The version of an installed package; "" when it is not installed."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def pip_command(extras: set[str]) -> str:
    """The line that installs the course into the running Python."""
    chosen = ",".join(sorted(extras))
    return f'{sys.executable} -m pip install -c constraints.txt -e ".[{chosen}]"'


def current_python(extras: set[str]) -> Path:
    """The running Python, if it has what the course needs; otherwise a sentence."""
    problems = unmet(extras)
    if problems:
        install = pip_command(extras)
        raise SetupError(
            f"This Python ({sys.executable}) lacks {', '.join(problems)}: run `{install}` in "
            f"{ROOT}, or leave --current-env out."
        )
    return Path(sys.executable)


# --- Handing over -----------------------------------------------------------------------------


def child_environment(python: Path) -> dict[str, str]:
    """The environment variables for what runs on the course's Python."""
    environment = dict(os.environ)
    environment.pop("PYTHONHOME", None)  # another Python's: would break this one
    environment["PYTHONUTF8"] = "1"  # Windows: files and pipes are UTF-8 as everywhere else
    environment["JUPYTER_PREFER_ENV_PATH"] = "1"  # a kernel "python3" in the home must not win
    environment["PATH"] = os.pathsep.join([str(python.parent), environment.get("PATH", "")])
    if python == venv_python():
        environment["VIRTUAL_ENV"] = str(VENV)
    else:  # --current-env: the package need not be installed there
        path = [str(ROOT), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    return environment


def lab_command(python: Path, arguments: list[str]) -> list[str]:
    """The command that opens JupyterLab, on the first notebook unless another is named."""
    command = [str(python), "-m", "jupyterlab"]
    if not any(argument.endswith(".ipynb") for argument in arguments):
        command.append(FIRST_NOTEBOOK)
    # JupyterLab refuses to run as root, which is who one is in most containers.
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in arguments:
        command.append("--allow-root")
    return command + arguments


def test_command(python: Path, arguments: list[str], parallel: bool = False) -> list[str]:
    """The command that runs every test and every notebook; parallel: in two processes."""
    # A file's tests share what they set up, and a notebook's cells its kernel: one process each.
    pair = ["-n", "2", "--dist", "loadfile"] if parallel else []
    return [str(python), "-m", "pytest", "--nbval"] + pair + arguments


def in_parallel(arguments: list[str]) -> bool:
    """Whether to test in two processes: the whole suite, on two cores with the memory for it."""
    named = [a for a in arguments if (ROOT / a.partition("::")[0]).exists()]
    asked = [a for a in arguments if a in ("-n", "-x", "--pdb", "-s") or a.startswith("-n")]
    roomy = (os.cpu_count() or 1) >= 2 and (total_memory() or 0) >= MEMORY_FOR_TWO
    return roomy and not named and not asked


def module_command(python: Path, name: str, arguments: list[str]) -> list[str]:
    """The command for one of `python -m course_utils`'s own commands."""
    return [str(python), "-m", "course_utils", name] + arguments


def hand_over(command: list[str], python: Path) -> NoReturn:
    """Become the command (POSIX), or run it and end with its exit code (Windows)."""
    environment = child_environment(python)
    sys.stdout.flush()
    if os.name == "posix":  # signals and the exit code are then the command's own
        os.execve(command[0], command, environment)
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            sys.exit(process.wait())
        except KeyboardInterrupt:  # the command got it too, and ends in its own way
            continue


def fetch_model(python: Path) -> None:
    """Bring the base model into the cache; done in a moment when it is there."""
    command = module_command(python, "fetch", [])
    # Its own sentence is on standard error already; standard output is not ours to use.
    code = subprocess.run(command, env=child_environment(python), stdout=sys.stderr).returncode
    if code:
        sys.exit(code)


def run_lab(python: Path, arguments: list[str]) -> NoReturn:
    """`course.py lab`."""
    fetch_model(python)
    os.chdir(str(ROOT))
    hand_over(lab_command(python, arguments), python)


def run_test(python: Path, arguments: list[str]) -> NoReturn:
    """`course.py test`."""
    fetch_model(python)
    os.chdir(str(ROOT))
    parallel = in_parallel(arguments)
    if parallel:  # one thread each: two that share the cores would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    hand_over(test_command(python, arguments, parallel), python)


def run_quickstart(python: Path, arguments: list[str]) -> NoReturn:
    """`course.py quickstart`; it fetches the model itself when it loads it."""
    hand_over(module_command(python, "quickstart", arguments), python)


# --- doctor -----------------------------------------------------------------------------------


class Check(NamedTuple):
    """One line of the doctor's report: what was found, and what to do when it is a problem."""

    name: str
    found: str
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"PROBLEM  {self.name}: {self.problem}"
        return f"ok       {self.name}: {self.found}"


def check_machine(current_env: bool) -> Iterator[Check]:
    """What can be told without any package."""
    shown = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    yield Check("Python", shown, python_problem() or "")
    memory = total_memory()
    low = "{:.1f} GiB, and the quick start needs {:.0f} GiB: use a larger machine."
    yield Check(
        "memory",
        f"{memory:.1f} GiB" if memory else "cannot be told on this system",
        low.format(memory, MEMORY) if memory and memory < MEMORY else "",
    )
    if current_env:
        return
    yield Check("folder", f"{ROOT} can be written", write_problem(ROOT) or "")
    complete = is_installed({"lab"})
    free, needed = free_space(ROOT), 0.0 if complete else space_needed()
    yield Check("disk", f"{free:.1f} GB free", space_problem(free, needed, ROOT) or "")
    yield check_environment(complete)
    if not complete:
        yield check_venv_module()
        yield check_index()


def check_environment(complete: bool) -> Check:
    """Is `.venv` there and finished?"""
    if complete:
        return Check("environment", f"{VENV} is complete")
    if not VENV.exists():
        return Check("environment", "not set up yet: any course.py command but this one does it")
    if is_usable(venv_version()) and not LOG.exists():
        return Check("environment", f"{VENV} was made without course.py, which will complete it")
    todo = "is unfinished or out of date: run `python3 course.py lab`, which goes on from there."
    return Check("environment", "", f"{VENV} {todo}")


def check_venv_module() -> Check:
    """Can this Python make an environment?"""
    return Check("venv module", "works", ensurepip_problem() or "")


def check_index() -> Check:
    """Does the package index that pip is set to deliver? Asks it for one small package."""
    pin = re.search(r"^platformdirs==\S+", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "0"]
    with tempfile.TemporaryDirectory() as folder:
        asked = quiet_run(command + ["--timeout", "15", "-d", folder, pin.group()])
    if "No module named pip" in asked.stdout:
        return Check("package index", "cannot be asked before .venv exists (no pip here)")
    if asked.returncode:
        return Check("package index", "", explain(asked.stdout)[1])
    return Check("package index", "delivers")


def check_inside() -> Iterator[Check]:
    """What only the course's own Python can tell; run by it."""
    packages = check_packages()
    yield packages
    if packages.problem:
        return  # the others would only say so again
    yield check_torch()
    yield check_kernel()
    yield check_widgets()
    yield check_model()


def repair() -> str:
    """What to do about packages that are missing or broken in the running Python."""
    if Path(sys.prefix).resolve() == VENV:
        return f"delete the folder {VENV} and run `python3 course.py lab`"
    return f"run `{pip_command({'lab'})}` in {ROOT}"


def check_packages() -> Check:
    """Are the packages there, and are they the tested ones?"""
    lacking = unmet({"lab"})
    if lacking:
        return Check("packages", "", f"missing or too old: {', '.join(lacking)}; {repair()}.")
    pins = re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    present = [(name, installed_version(name).split("+")[0], pin) for name, pin in pins]
    other = [f"{name} {has} (tested {pin})" for name, has, pin in present if has and has != pin]
    same = sum(has == pin for _, has, pin in present)
    if not other:
        return Check("packages", f"all {same} as tested")
    shown = ", ".join(other[:4]) + (", ..." if len(other) > 4 else "")
    return Check("packages", f"{same} as tested, {len(other)} other: {shown}")


def check_torch() -> Check:
    """Does torch load, and does it see the GPU that the machine has?"""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("PyTorch", "", f"does not load ({error}): {repair()}.")
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return Check("PyTorch", f"{torch.__version__} on {name}")
    if has_nvidia_gpu():
        todo = (
            "{} cannot use your NVIDIA GPU: set COURSE_TORCH_INDEX to the CUDA index that "
            "PyTorch's install page names for your driver, delete .venv and start again."
        )
        return Check("PyTorch", "", todo.format(torch.__version__))
    cores = torch.get_num_threads()
    return Check("PyTorch", f"{torch.__version__} on the CPU, {cores} threads")


def check_kernel() -> Check:
    """Does a notebook kernel start, and is it this Python?"""
    try:
        prefix = kernel_prefix()
    except ImportError:
        return Check("notebook kernel", "", f"Jupyter is missing: {repair()}.")
    except TimeoutError:
        return Check("notebook kernel", "", "starts but does not answer: restart the machine.")
    except (RuntimeError, OSError) as error:
        return Check("notebook kernel", "", f"does not start ({error}): {repair()}.")
    if prefix != sys.prefix:
        todo = "another Python answers ({}): run `jupyter kernelspec remove python3`."
        return Check("notebook kernel", "", todo.format(prefix))
    return Check("notebook kernel", "starts and answers")


def kernel_prefix() -> str:
    """Start a notebook kernel and ask it which environment it runs in."""
    from jupyter_client.manager import start_new_kernel

    answers = []
    manager, client = start_new_kernel(startup_timeout=60, stderr=subprocess.DEVNULL)
    try:
        client.execute_interactive(
            "import sys; print(sys.prefix)",
            timeout=60,
            output_hook=lambda message: answers.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return "".join(answers).strip()


def check_widgets() -> Check:
    """Are ipywidgets and JupyterLab's half of it both there?"""
    version = installed_version("ipywidgets")
    manager = Path(sys.prefix, "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager")
    if not version or not manager.is_dir():
        todo = "sliders will not show: run `{} -m pip install --force-reinstall ipywidgets`."
        return Check("widgets", "", todo.format(sys.executable))
    return Check("widgets", f"ipywidgets {version} with its JupyterLab extension")


def check_model() -> Check:
    """Is the base model in the cache, whole?"""
    from course_utils import fetch

    folder = fetch.cache_dir() / fetch.FOLDER
    if fetch.is_complete(folder):
        return Check("model", str(folder))
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    problem = write_problem(existing)
    if problem:
        todo = f"{existing} cannot be written: set COURSE_CACHE to a folder that can."
        return Check("model", "", todo)
    return Check("model", "not fetched yet (93 MB): the next course.py command does it")


def report(checks: Iterator[Check]) -> bool:
    """Print each check as it is done; whether all were ok."""
    fine = True
    for check in checks:
        print(check, flush=True)
        fine = fine and not check.problem
    return fine


def doctor(current_env: bool) -> int:
    """`course.py doctor`: 0 when all is well, 1 when something is to be done."""
    python = Path(sys.executable) if current_env else venv_python()
    fine = report(check_machine(current_env))
    if current_env or is_usable(venv_version()):
        inside = [str(python), str(ROOT / "course.py"), "doctor", "--inside"]
        fine = subprocess.run(inside, env=child_environment(python)).returncode == 0 and fine
    print("All is well." if fine else "See the lines marked PROBLEM.")
    return 0 if fine else 1


# --- The command line -------------------------------------------------------------------------

# What each command does once the set-up stands, and the extras that it needs.
COMMANDS = {
    "lab": (run_lab, {"lab"}),
    "quickstart": (run_quickstart, {"lab"}),
    "test": (run_test, {"lab", "dev"}),
}


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit code: 0, 1 (a problem) or 2 (a wrong command line)."""
    current_env = "--current-env" in arguments
    arguments = [argument for argument in arguments if argument != "--current-env"]
    name = arguments[0] if arguments else "help"
    if name in ("help", "-h", "--help"):
        print(HELP, end="")
        return 0
    if name == "doctor":
        return run_doctor(arguments[1:], current_env)
    if name not in COMMANDS:
        say(f"there is no command {name!r}: use lab, quickstart, test, doctor or help.")
        return 2
    run, extras = COMMANDS[name]
    refuse(python_problem())
    python = current_python(extras) if current_env else set_up(extras)
    run(python, arguments[1:])


def run_doctor(arguments: list[str], current_env: bool) -> int:
    """Read the doctor's own arguments: none, or `--inside` from itself."""
    if arguments == ["--inside"]:
        return 0 if report(check_inside()) else 1
    if arguments:
        say(f"doctor takes no arguments but --current-env, and got {arguments[0]!r}.")
        return 2
    return doctor(current_env)


def system_problem(error: OSError) -> str:
    """A sentence for what the operating system refused."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    todo = "make room on that disk" if full else "check this file or folder"
    return f"{error}: {todo} and run the same command again."


def start() -> NoReturn:
    """Run the command line; every expected failure ends in one sentence."""
    for stream in (sys.stdout, sys.stderr):  # a path may have letters that the terminal lacks
        stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends a running pip on the way out
    try:
        sys.exit(main(sys.argv[1:]))
    except SetupError as error:
        say(str(error))
        sys.exit(1)
    except OSError as error:
        say(system_problem(error))
        sys.exit(1)
    except KeyboardInterrupt:
        say("interrupted: the same command goes on from here.")
        sys.exit(130)


if __name__ == "__main__":
    start()
