"""course.py, and the files that say what is installed."""

from __future__ import annotations

import ast
import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "course.py"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = (ROOT / "environment.yml").read_text(encoding="utf-8")
# A conditional package that only some systems need: not part of the tested set.
UNTESTED = {"appnope", "colorama", "pywinpty"}


def load_course(script: Path = SCRIPT) -> ModuleType:
    """course.py as a module: it stands beside the package, not in it."""
    spec = importlib.util.spec_from_file_location("course", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


course = load_course()


def run(
    *arguments: str, python: str = sys.executable, folder: Path = ROOT
) -> subprocess.CompletedProcess:
    """Run a folder's course.py as a user does."""
    command = [python, str(folder / "course.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", timeout=240, check=False, cwd=folder
    )


in_course_venv = pytest.mark.skipif(
    Path(sys.prefix).resolve() != course.VENV, reason="not in the course's own .venv"
)


# --- What is installed: three files in step ---------------------------------------------------


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml, with those of the extras."""
    lines = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        lines += extra
    return [Requirement(line) for line in lines]


def pins() -> dict[str, str]:
    """constraints.txt as name -> version."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "not a plain pin"
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pairs}


def test_python_has_no_upper_bound():
    assert PROJECT["requires-python"] == ">=3.11"


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_requirement_is_a_lower_bound_that_the_pin_meets(requirement):
    assert [spec.operator for spec in requirement.specifier] == [">="]
    if requirement.name != "pip":  # comes with the environment
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


@in_course_venv
def test_pins_are_the_whole_closure_of_the_requirements():
    todo, closure = [r for r in declared() if r.name != "liger-kernel"], set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in closure:
            continue
        closure.add((name, extras))
        for line in importlib.metadata.requires(name) or []:
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *extras)]
            if not needed.marker or any(map(needed.marker.evaluate, environments)):
                todo.append(needed)
    names = {name for name, _ in closure} - UNTESTED
    gpu_only = {name for name in names if name.startswith(("nvidia-", "cuda-"))} | {"triton"}
    assert names - gpu_only - {"pip"} == set(pins()) - {"liger-kernel"}


def test_no_cuda_package_is_pinned():
    assert [name for name in pins() if re.match(r"nvidia|cuda|triton", name)] == []


def test_torch_has_one_version_everywhere():
    torch = pins()["torch"]
    assert torch == course.torch_pin() == "2.13.0"
    assert f"torch {torch}" in CONDA


def test_conda_installs_the_same_project_with_the_same_pins():
    environment = yaml.safe_load(CONDA)
    *conda, last = environment["dependencies"]
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    assert last == {"pip": ["-c constraints.txt", "-e .[lab,dev]"]}
    assert [re.split(r"[=<>]", name)[0] for name in conda] == ["python", "pip"]
    version = next(name for name in conda if name.startswith("python=")).split("=")[1]
    assert course.is_usable(version)


def test_every_line_for_conda_says_what_it_is_for():
    for line in CONDA.splitlines():
        assert re.search(r"# *\w", line), line


def test_every_import_is_declared():
    others = {"yaml": "pyyaml", "PIL": "pillow", "IPython": "ipython"}
    names = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    with_torch = {("kernels.py", "triton")}  # it comes with torch's builds for GPUs, and only there
    for path in (ROOT / "course_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported = [node.module]
            for top in {name.split(".")[0] for name in imported} - sys.stdlib_module_names:
                known = canonicalize_name(others.get(top, top)) in names
                known = known or top == "course_utils" or (path.name, top) in with_torch
                known = known or path.with_name(f"{top}.py").is_file()  # run as a script
                assert known, f"{path.name} imports {top}"


@in_course_venv
def test_installed_versions_are_the_pinned_ones():
    installed = {name: importlib.metadata.version(name) for name in set(pins()) - {"liger-kernel"}}
    wrong = {n: v for n, v in installed.items() if v.split("+")[0] != pins()[n]}
    assert wrong == {}


def test_the_license_is_the_whole_apache_license():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text


# --- course.py: Python, disk, memory ----------------------------------------------------------


def test_old_python_reads_the_file():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


def old_pythons() -> list[str]:
    """Interpreters on this machine that are too old for the course, and really start."""
    found = [shutil.which(f"python3.{minor}") for minor in (8, 9, 10)]
    found += [str(path) for path in Path.home().glob(".pyenv/versions/3.[89].*/bin/python")]
    starts = [p for p in found if p and course.quiet_run([p, "-c", ""]).returncode == 0]
    return starts[:1]


def test_old_python_gets_one_sentence():
    if not old_pythons():
        pytest.skip("no Python 3.8 to 3.10 on this machine")
    result = run("lab", python=old_pythons()[0])
    assert result.returncode == 1 and result.stdout == ""
    assert re.fullmatch(r"course: The course needs Python 3\.11 .*\.\n", result.stderr)


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        ({"version": (3, 10, 9)}, "Python 3.11 or newer and this is Python 3.10.9"),
        ({"bits": 32}, "32-bit"),
        ({"system": "Darwin", "machine": "x86_64"}, "Intel"),
        ({"version": (3, 13, 0), "system": "Linux", "machine": "x86_64", "bits": 64}, None),
        ({"version": (3, 11, 0), "system": "Darwin", "machine": "arm64", "bits": 64}, None),
    ],
)
def test_unsuitable_pythons_are_named(machine, says):
    problem = course.python_problem(**machine)
    assert problem is None if says is None else says in problem


def test_space_problem_names_both_figures():
    assert course.space_problem(3.0, 3.0, ROOT) is None
    assert "1.2 GB free and setting up needs 3.0 GB" in course.space_problem(1.23, 3.0, ROOT)


def test_write_problem_tries_it(tmp_path):
    assert course.write_problem(tmp_path) is None
    assert "cannot be written" in course.write_problem(tmp_path / "absent")


def test_memory_is_told():
    psutil = pytest.importorskip("psutil")
    assert course.total_memory() == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.05)


# --- course.py: the stamp ---------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path) -> ModuleType:
    """course.py as it is in another folder, with an environment but nothing installed."""
    folder = tmp_path / "课程 with space"
    folder.mkdir()
    for name in ("course.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")]
    subprocess.run(command, check=True)
    return load_course(folder / "course.py")


def finish(checkout: ModuleType, extras: set[str]) -> None:
    """Write the stamp as a finished installation does."""
    checkout.write_stamp(checkout.fingerprint(checkout.venv_version()), extras)


def test_nothing_is_installed_without_a_stamp(checkout):
    assert checkout.venv_version().startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert not checkout.is_installed({"lab"})


def test_stamp_holds_for_its_extras_only(checkout):
    finish(checkout, {"lab"})
    assert checkout.is_installed({"lab"})
    assert not checkout.is_installed({"lab", "dev"})
    finish(checkout, {"lab", "dev"})
    assert checkout.is_installed({"lab"})


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_stamp_ends_with_a_changed_file(checkout, name):
    finish(checkout, {"lab"})
    with (checkout.ROOT / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert not checkout.is_installed({"lab"})


def test_stamp_ends_when_the_folder_moves(checkout, tmp_path):
    finish(checkout, {"lab"})
    moved = checkout.ROOT.rename(tmp_path / "elsewhere")
    assert not load_course(moved / "course.py").is_installed({"lab"})


def test_damaged_stamp_counts_as_none(checkout):
    finish(checkout, {"lab"})
    checkout.STAMP.write_text(checkout.STAMP.read_text(encoding="utf-8")[:20], encoding="utf-8")
    assert checkout.read_stamp() == ("", set())
    assert not checkout.is_installed({"lab"})


def test_environment_of_a_vanished_python_is_not_usable(checkout):
    finish(checkout, {"lab"})
    config = checkout.VENV / "pyvenv.cfg"
    text = re.sub(r"home = .*", "home = /no/such/python", config.read_text(encoding="utf-8"))
    config.write_text(text, encoding="utf-8")
    assert checkout.venv_version() == "" and not checkout.is_installed({"lab"})


def test_second_start_sets_nothing_up_and_is_quick(checkout):
    finish(checkout, {"lab"})
    package = checkout.ROOT / "course_utils"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("import sys; print(sys.argv[1:])", encoding="utf-8")
    started = time.perf_counter()
    result = run("quickstart", "--json", folder=checkout.ROOT)
    assert time.perf_counter() - started < 3  # 0.15 s; the limit allows for a busy machine
    assert (result.stdout, result.stderr) == ("['quickstart', '--json']\n", "")


def test_half_installed_packages_are_dropped(checkout):
    site = checkout.site_packages()
    assert site.is_dir()
    for name, files in {"whole": ["METADATA", "INSTALLER"], "half": ["METADATA"]}.items():
        folder = site / f"{name}-1.0.dist-info"
        folder.mkdir()
        for file in files:
            (folder / file).touch()
    (site / "~orch").mkdir()
    assert sorted(checkout.drop_half_installed(site)) == ["half-1.0.dist-info", "~orch"]
    assert [path.name for path in site.glob("*-1.0.dist-info")] == ["whole-1.0.dist-info"]


# --- course.py: the lock ----------------------------------------------------------------------


def test_second_course_waits_and_says_so(tmp_path):
    lock = tmp_path / "lock"
    script = (
        f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); import course\n"
        f"with course.only_one(pathlib.Path({str(lock)!r})): print('mine', flush=True)"
    )
    with course.only_one(lock):
        other = subprocess.Popen(
            [sys.executable, "-c", script], stdout=-1, stderr=-1, encoding="utf-8"
        )
        said = other.stderr.readline()
        assert "waiting" in said and other.poll() is None
    assert other.communicate(timeout=30)[0] == "mine\n"


# --- course.py: installing --------------------------------------------------------------------


def test_cpu_build_is_asked_for_where_there_is_no_gpu():
    assert course.torch_request(False, "", "Linux") == ["--no-deps", "torch==2.13.0+cpu"]
    assert course.torch_request(True, "", "Linux") == []
    assert course.torch_request(False, "", "Windows") == []  # the plain one is a CPU build there
    index = ["--index-url", "file:///i"]
    assert course.torch_request(True, "file:///i", "Linux")[1:3] == index


PIP_SAYS = {
    "full": "ERROR: Could not install packages due to an OSError: [Errno 28] No space left",
    "reached": "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
    "ERROR: (from versions: none)\nERROR: No matching distribution found for torch==2.13.0",
    "cannot be reached or has no": "ERROR: (from versions: none)\n"
    "ERROR: No matching distribution found for torch==2.13.0",
    "lacks torch==2.13.0": "ERROR: (from versions: 2.5.0, 2.6.0)\n"
    "ERROR: No matching distribution found for torch==2.13.0",
    "cannot be written": "ERROR: [Errno 13] Permission denied: 'torch.dll'",
    "too long": "HINT: ... this system does not have Windows Long Path support enabled.",
    "last lines above": "ERROR: something new",
}


@pytest.mark.parametrize(("says", "output"), PIP_SAYS.items())
def test_pips_failures_are_explained(says, output):
    kind, sentence = course.explain(output)
    assert says in sentence and "{" not in sentence
    assert (kind is course.NotOnIndex) == says.startswith("lacks")


def test_real_pip_without_an_index_is_explained(tmp_path):
    pip = [sys.executable, "-m", "pip", "download", "--no-index", "-d", str(tmp_path)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    failed = subprocess.run(
        [*pip, "torch==2.13.0"], capture_output=True, text=True, env=environment, check=False
    )
    assert failed.returncode != 0
    assert "check the network" in course.explain(failed.stderr)[1]


def test_python_without_ensurepip_is_told_the_package(monkeypatch):
    assert course.ensurepip_problem() is None
    monkeypatch.setitem(sys.modules, "ensurepip", None)  # makes the import fail, as on Debian
    assert "python3-venv" in course.ensurepip_problem()


def test_full_disk_says_to_make_room():
    assert "make room" in course.system_problem(OSError(errno.ENOSPC, "No space left on device"))
    absent = FileNotFoundError(errno.ENOENT, "No such file", "constraints.txt")
    assert "'constraints.txt': check this file" in course.system_problem(absent)


# --- course.py: commands ----------------------------------------------------------------------


def test_lab_opens_the_first_notebook_unless_another_is_named():
    python = Path("python")
    assert "notebooks/00_start_here.ipynb" in course.lab_command(python, ["--no-browser"])
    command = course.lab_command(python, ["notebooks/04_lora.ipynb"])
    assert [part for part in command if part.endswith(".ipynb")] == ["notebooks/04_lora.ipynb"]


def test_test_command_runs_notebooks_and_hands_arguments_on():
    command = course.test_command(Path("python"), ["-x", "tests"])
    assert command == ["python", "-m", "pytest", "--nbval", "-x", "tests"]
    pair = course.test_command(Path("python"), [], parallel=True)
    assert pair == ["python", "-m", "pytest", "--nbval", "-n", "2", "--dist", "loadfile"]


@pytest.mark.parametrize(
    ("arguments", "cores", "memory", "expected"),
    [
        ([], 2, 16.0, True),
        (["--durations=40"], 2, 16.0, True),
        (["-m", "not slow"], 4, 32.0, True),
        (["tests/test_setup.py::test_x"], 2, 16.0, False),
        (["notebooks/01_basics.ipynb"], 2, 16.0, False),
        (["-n", "4"], 8, 64.0, False),
        ([], 1, 16.0, False),
        ([], 2, 8.0, False),
        ([], 2, None, False),
    ],
)
def test_the_whole_suite_runs_in_two_processes_where_there_is_room(
    monkeypatch, arguments, cores, memory, expected
):
    monkeypatch.setattr(course.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(course, "total_memory", lambda: memory)
    assert course.in_parallel(arguments) is expected


def test_children_get_the_environments_own_kernel(monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/another/python")
    inside = course.child_environment(course.venv_python())
    assert "PYTHONHOME" not in inside and inside["JUPYTER_PREFER_ENV_PATH"] == "1"
    assert inside["PATH"].split(os.pathsep)[0] == str(course.venv_python().parent)
    current = course.child_environment(Path(sys.executable + "-other"))
    assert current["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cpu", (2, 13, 0)), ("7.7", (7, 7)), ("3.0rc1", (3, 0)), ("", ())],
)
def test_versions_as_numbers(version, expected):
    assert course.numbers(version) == expected


def test_help_is_shown_without_arguments_too():
    result = run("help")
    assert result.returncode == 0 and result.stdout == run().stdout
    for command in (*course.COMMANDS, "doctor", "--current-env", "COURSE_TORCH_INDEX"):
        assert command in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [["lap"], ["doctor", "--hard"]])
def test_wrong_command_line_is_exit_2_with_a_sentence(arguments):
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"course: .+\.\n", result.stderr)


def test_current_env_without_the_packages_names_them(checkout):
    python = str(checkout.venv_python())
    result = run("quickstart", "--current-env", python=python, folder=checkout.ROOT)
    assert result.returncode == 1 and result.stdout == ""
    assert "lacks torch>=2.9 (has none)" in result.stderr and "pip install -c" in result.stderr


def test_doctor_finds_this_environment_well():
    result = run("doctor", "--current-env")
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stdout + result.stderr
    assert lines[-1] == "All is well."
    names = [re.match(r"ok +([\w ]+):", line).group(1) for line in lines[:-1]]
    inside = ["packages", "PyTorch", "notebook kernel", "widgets", "model"]
    assert names == ["Python", "memory", *inside]


def test_doctor_names_an_unfinished_environment(checkout):
    checkout.LOG.write_text("interrupted\n", encoding="utf-8")
    result = run("doctor", folder=checkout.ROOT)
    assert result.returncode == 1
    assert re.search(r"^PROBLEM  environment: .* is unfinished", result.stdout, re.MULTILINE)
    assert re.search(r"^PROBLEM  packages: missing.*torch", result.stdout, re.MULTILINE)
    assert result.stderr == ""
