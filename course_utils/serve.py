"""Serve a model folder with an existing OpenAI-compatible server, and ask it over HTTP.

    with serve.start("runs/merged") as server:
        print(server.ask([{"role": "user", "content": "Hello"}]))

The server is a child process on a free port of this machine only, and ends with the block.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from .errors import CourseError

HOST = "127.0.0.1"  # this machine and no other
START_SECONDS, ASK_SECONDS, STOP_SECONDS = 180.0, 120.0, 10.0
HOW_TO = (
    "No server is installed: `pip install fastapi uvicorn openai` gives `transformers serve` what "
    "it needs; on a GPU, vLLM is the faster choice."
)
COMMANDS = {
    # By module, since a script need not be on the PATH.
    "transformers": ["-c", "from transformers.cli.transformers import app; app()", "serve"],
    "vllm": ["-m", "vllm.entrypoints.openai.api_server", "--model"],
}


def installed() -> str | None:
    """The server to use: "vllm" where it is installed and there is a GPU, else "transformers"."""
    if torch.cuda.is_available() and importlib.util.find_spec("vllm"):
        return "vllm"
    needed = ("fastapi", "uvicorn", "openai", "pydantic")
    here = all(importlib.util.find_spec(name) for name in needed)
    return "transformers" if here and importlib.util.find_spec("transformers.cli.serve") else None


@dataclass(frozen=True)
class Server:
    """A running server: which one, where, its model's name there, and its process."""

    kind: str
    address: str
    model: str
    process: subprocess.Popen

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON to a path such as "/v1/chat/completions"; returns the JSON that comes back."""
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with _opener().open(request, timeout=ASK_SECONDS) as reply:
                return json.load(reply)
        except (urllib.error.URLError, TimeoutError) as error:
            raise CourseError(f"The server did not answer {path} ({error}).") from error

    def ask(self, messages: Sequence[dict[str, str]], max_tokens: int = 64) -> str:
        """The likeliest answer to a conversation, by OpenAI's chat interface."""
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens}
        reply = self.post("/v1/chat/completions", body | {"temperature": 0})
        return reply["choices"][0]["message"]["content"].strip()


@contextlib.contextmanager
def start(folder: str | Path, kind: str | None = None) -> Iterator[Server]:
    """A server of the model in `folder` that answers; stopped at the end, its children too.

    kind: "transformers" or "vllm" (default: `installed`).  Raises CourseError where none is
    installed, the folder holds no model, or the server does not come up.
    """
    folder, kind = Path(folder).resolve(), kind or installed()
    if kind is None:
        raise CourseError(HOW_TO)
    if kind not in COMMANDS:
        raise CourseError(f"kind is {kind!r} and must be one of {', '.join(COMMANDS)}.")
    if not (folder / "config.json").is_file():
        raise CourseError(f"{folder.name} holds no model to serve: config.json is missing.")
    port = _free_port()
    command = [sys.executable, *COMMANDS[kind], str(folder), "--host", HOST, "--port", str(port)]
    # What it prints goes to a file: nobody would empty a pipe.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        server = Server(kind, f"http://{HOST}:{port}", str(folder), process)
        try:
            _wait(server, log)
            yield server
        finally:
            stop(process)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return found.getsockname()[1]


def _opener() -> urllib.request.OpenerDirector:
    """Without the machine's proxy, which does not know this machine's own ports."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _wait(server: Server, log: Any) -> None:
    """Return when the server answers.  Raises CourseError when it ends or takes too long."""
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError), _opener().open(f"{server.address}/health", timeout=2):
            return
        time.sleep(0.2)
    log.seek(0)
    last = [line.strip() for line in log if line.strip()][-1:] or ["it said nothing"]
    raise CourseError(f"{server.kind} did not start to serve: {last[0][:300]}")


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it started; ask first, then end what is left."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.terminate()
    for each in psutil.wait_procs(family, timeout=STOP_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()
