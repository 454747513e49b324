"""A real JupyterLab or Voila, and a real browser on it: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
)


def chromium() -> str:
    """Return the browser's path, or skip."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    pytest.importorskip("playwright")
    return found


def write_notebook(path: Path, *cells: str) -> Path:
    """Write code cells as a notebook."""
    made = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": cell, "outputs": [], "execution_count": None}
        for i, cell in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": made, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


@contextmanager
def jupyter(folder: Path, app: str = "lab", *options: str) -> Iterator[str]:
    """Run a Jupyter application over a folder; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tempfile.mkdtemp()
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JUPYTER_CONFIG_DIR": config,
        "JUPYTER_DATA_DIR": config,
        "JUPYTER_RUNTIME_DIR": config,
    }
    common = ["--no-browser", f"--port={port}"]
    if app == "lab":
        common += [
            "--allow-root",
            "--ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=",
            f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]  # fmt: skip
    log = folder / f"{app}.log"
    with log.open("w") as file:
        command = [sys.executable, "-m", *(["jupyter", "lab"] if app == "lab" else ["voila"]), *common, *options]
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        _await(process, address + ("/api" if app == "lab" else "/voila/static/voila.js"), log)
        yield address
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        shutil.rmtree(config, ignore_errors=True)


def _await(process: subprocess.Popen[bytes], address: str, log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(OSError):
            with suppress(urllib.error.HTTPError):
                urllib.request.urlopen(address, timeout=2).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.25)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


@dataclass
class Watched:
    """A page, and all that went wrong on it."""

    page: Any
    console: list[str] = field(default_factory=list)
    """Errors in the console."""
    outside: list[str] = field(default_factory=list)
    """Requests to anywhere but this machine."""


@contextmanager
def browser(width: int = 1400, height: int = 1000) -> Iterator[Watched]:
    """Open a page in Chromium that reaches this machine only."""
    executable = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, headless=True, args=list(FLAGS))
        page = running.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(90_000)
        watched = Watched(page)
        page.on("console", lambda m: watched.console.append(m.text[:300]) if m.type == "error" else None)
        page.on("pageerror", lambda e: watched.console.append(str(e)[:300]))

        def route(found: Any) -> None:
            if "127.0.0.1" in found.request.url or found.request.url.startswith(("data:", "blob:")):
                found.continue_()
            else:
                watched.outside.append(found.request.url[:150])
                found.abort()

        page.route("**/*", route)
        yield watched
        running.close()


def run_notebook(page: Any, address: str, name: str) -> None:
    """Open a notebook in JupyterLab, run all its cells, and wait until each has run."""
    page.goto(f"{address}/lab/tree/{name}?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
    no = page.get_by_role("button", name="No", exact=True)
    if no.count():  # whether it may fetch news
        no.click()
    page.evaluate("""async () => {
        const shown = jupyterapp.shell.currentWidget;
        await shown.context.ready; await shown.sessionContext.ready;
        await shown.sessionContext.session.kernel.info;   // "run all" is dropped before
        await jupyterapp.commands.execute('notebook:run-all-cells');
    }""")
    page.wait_for_function("""() => {
        const prompts = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell .jp-InputArea-prompt')];
        return prompts.length > 0 && prompts.every(p => /\\[\\d+\\]/.test(p.textContent));
    }""")
