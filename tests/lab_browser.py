"""A private JupyterLab in a headless Chromium, for tests that look at notebooks as learners do.

Configuration, settings, workspaces and kernels live in a temporary folder: nothing of the user's
own Jupyter is read or written, and nothing is fetched from the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge")
BROWSER_ARGUMENTS = (
    "--no-sandbox",  # the sandbox does not start as root in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    # Every cell is in the page, also those that are scrolled away.
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
}
SERVER_ARGUMENTS = (
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--IdentityProvider.token=",
    "--LabApp.expose_app_in_browser=True",  # window.jupyterapp
    "--LabApp.extension_manager=readonly",  # asks no package index
)
# The toolbar says idle a second before there is a kernel; a "run all" given then loses cells.
KERNEL_READY = """() => {
  const session = window.jupyterapp.shell.currentWidget?.sessionContext;
  const kernel = session?.session?.kernel;
  const ready = session?.isReady && kernel?.status === 'idle'
    && kernel?.connectionStatus === 'connected';
  if (!ready) { window.idleSince = undefined; return false; }
  window.idleSince ??= performance.now();
  return performance.now() - window.idleSince > 500;
}"""
RUN_ALL = """() => {
  window.ran = undefined;
  window.jupyterapp.commands.execute('notebook:run-all-cells').then(
    done => { window.ran = String(done); }, error => { window.ran = 'error: ' + error; });
}"""
NOTEBOOK = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON()"


def browser_path() -> str | None:
    """The Chromium to use: $CHROMIUM, or one that is installed; None without one."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in BROWSERS if (found := shutil.which(name))), None)


def _environment(home: Path) -> dict[str, str]:
    """Write the settings below ``home`` and point Jupyter there."""
    for plugin, values in SETTINGS.items():
        file = home / "settings" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    return os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def jupyter_lab(root: Path, home: Path, *, seconds: float = 60) -> Iterator[str]:
    """Serve ``root`` in JupyterLab; give its address; stop it and its kernels at the end."""
    port, log = _free_port(), home / "lab.log"
    command = [sys.executable, "-m", "jupyterlab", *SERVER_ARGUMENTS]
    command += [f"--port={port}", f"--ServerApp.root_dir={root}"]
    environment = _environment(home)
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for_server(url, server, log, seconds)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_for_server(url: str, server: subprocess.Popen, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            opener.open(f"{url}/api/status", timeout=2).read()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                said = log.read_text(encoding="utf-8", errors="replace")[-3000:]
                raise RuntimeError(f"JupyterLab did not start:\n{said}") from None
            time.sleep(0.2)


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """An empty page of a headless browser, as wide as a small laptop."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path(), headless=True, args=list(BROWSER_ARGUMENTS)
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(20_000)
        try:
            yield page
        finally:
            browser.close()


def open_notebook(page: Page, url: str, path: str) -> None:
    """Open a notebook and wait until its kernel is there."""
    page.goto(f"{url}/lab/tree/{path}?reset", wait_until="domcontentloaded")
    page.wait_for_function("() => window.jupyterapp !== undefined", timeout=60_000)
    page.evaluate("async () => { await window.jupyterapp.restored; }")
    page.locator(".jp-Notebook").first.wait_for(timeout=60_000)
    wait_idle(page)


def wait_idle(page: Page, seconds: float = 60) -> None:
    """Wait until the kernel has had nothing to do for half a second."""
    page.evaluate("() => { window.idleSince = undefined; }")
    page.wait_for_function(KERNEL_READY, timeout=seconds * 1000, polling=50)


def start_all(page: Page) -> None:
    """Run > Run All Cells, without waiting for the end."""
    page.evaluate(RUN_ALL)


def wait_for_all(page: Page, seconds: float = 60) -> None:
    """Wait for what ``start_all`` began; AssertionError where a cell raised or did not run."""
    page.wait_for_function("() => window.ran !== undefined", timeout=seconds * 1000)
    wait_idle(page, seconds)
    for cell in notebook_json(page)["cells"]:
        if cell["cell_type"] != "code":
            continue
        errors = [o["evalue"] for o in cell["outputs"] if o["output_type"] == "error"]
        assert not errors, f"cell {cell['id']} raised: {errors[0]}"
        assert cell["execution_count"], f"cell {cell['id']} did not run"
    assert page.evaluate("() => window.ran") == "true"


def notebook_json(page: Page) -> dict[str, Any]:
    """The open notebook with its outputs, as JupyterLab holds it now."""
    return page.evaluate(NOTEBOOK)


def cell(page: Page, index: int) -> Locator:
    """A cell by its place, all kinds counted, from 0."""
    return page.locator(".jp-Notebook .jp-Cell").nth(index)


def move_slider(scope: Locator, steps: int) -> None:
    """Move a slider by whole steps with the arrow keys."""
    handle = scope.locator(".widget-slider .noUi-handle").first
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
