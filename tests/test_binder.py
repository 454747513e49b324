"""What Binder is given: an environment of the versions that were tested, scripts that work, a page to start from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from browser import browser, jupyter
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BINDER = ROOT / "binder"
NOTEBOOKS = ROOT / "notebooks"
START_PAGE = NOTEBOOKS / "README.md"
SCRIPTS = ("postBuild", "start")
BESIDES = {"notebook"}
"""What is there for Binder alone."""


def environment(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Return what an environment.yml asks of conda, the options that it gives pip, and what it asks of pip."""
    yaml = pytest.importorskip("yaml")
    wanted = yaml.safe_load(path.read_text())["dependencies"]
    (of_pip,) = (entry["pip"] for entry in wanted if isinstance(entry, dict))
    options = [line for line in of_pip if line.startswith("-")]
    return [e for e in wanted if isinstance(e, str)], options, [line for line in of_pip if not line.startswith("-")]


def pinned(lines: list[str]) -> dict[str, str]:
    """Return versions by name; each line must be a name and one version."""
    pairs = [line.strip().split("==") for line in lines if line.strip() and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs)
    return {canonicalize_name(name): version for name, version in pairs}


def needed(name: str, extras: frozenset[str], found: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Return all that an installed package needs on this machine, and what those need, with the extras of each."""
    seen = found.get(name)
    if seen is not None and extras <= seen:
        return found
    found[name] = (seen or frozenset()) | extras
    for text in metadata.requires(name) or []:
        wanted = Requirement(text)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": e}) for e in ("", *found[name])):
            needed(canonicalize_name(wanted.name), frozenset(wanted.extras), found)
    return found


# The environment ----------------------------------------------------------------------------------------------------


def test_the_environment_is_that_of_the_repository():
    conda, options, packages = environment(BINDER / "environment.yml")
    ours, our_options, ours_of_pip = environment(ROOT / "environment.yml")
    assert conda == ours
    assert ours_of_pip == []  # all of it is said in options: the constraints, and the repository itself
    assert options == [o for o in our_options if o.startswith("--extra-index-url")]
    assert [o.split() for o in our_options if o.startswith("-e")] == [["-e", ".[all]"]]
    constraints = pinned((ROOT / "constraints.txt").read_text().splitlines())
    versions = pinned(packages)
    assert {name: version for name, version in versions.items() if constraints.get(name) != version}.keys() == BESIDES


def test_it_holds_all_that_the_package_needs_and_nothing_else():
    versions = pinned(environment(BINDER / "environment.yml")[2])
    wanted = set(needed("tessera-xr", frozenset(["all"]), {})) - {"tessera-xr", "setuptools"}
    if sys.version_info[:2] == (3, 11) and sys.platform == "linux":
        torchs = {name for name in wanted if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
        assert wanted - torchs - set(versions) == set(), "add these to binder/environment.yml, as in constraints.txt"
        assert set(versions) - wanted == BESIDES
    torch = next(line for line in environment(BINDER / "environment.yml")[2] if line.startswith("torch=="))
    assert re.fullmatch(r"torch==[\d.]+", torch)  # the index of CPU builds has the same with +cpu, which pip prefers


# The scripts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_can_be_run_and_stop_at_the_first_fault(name):
    script = BINDER / name
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    assert re.search(r"^set -e", text, re.M)
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("limit", "threads"), [(None, "2"), ("", "2"), ("4", "4"), ("3.0", "3"), ("1.5", "1"), ("0.5", "1"), ("all", "1")]
)
def test_start_keeps_to_the_processors_it_was_given_and_hands_over(limit, threads):
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "DASK_NUM_WORKERS")
    env = {k: v for k, v in os.environ.items() if k not in (*names, "CPU_LIMIT")}
    env |= {} if limit is None else {"CPU_LIMIT": limit}
    show = ["sh", "-c", 'echo "$OMP_NUM_THREADS $NUMBA_NUM_THREADS $DASK_NUM_WORKERS $1"; exit 3', "sh", "a b"]
    done = subprocess.run([BINDER / "start", *show], capture_output=True, text=True, env=env)
    assert (done.stdout, done.returncode) == (f"{threads} {threads} {threads} a b\n", 3)
    kept = subprocess.run([BINDER / "start", *show], capture_output=True, text=True, env=env | {"OMP_NUM_THREADS": "7"})
    assert kept.stdout.startswith("7 ")


@pytest.fixture
def build(tmp_path: Path) -> Any:
    """Run postBuild with stand-ins for Python and the command, which note their calls; one of them may fail."""

    def run(failing: str = "nothing") -> tuple[int, list[str], Path]:
        prefix, calls = tmp_path / "prefix", tmp_path / "calls"
        folder = prefix / "bin"
        folder.mkdir(parents=True)
        note = f'echo "$(basename $0) $*" >> {calls}'
        answer = f'case "$0 $*" in *{failing}*) exit 1;; *sys.prefix*) echo {prefix};; esac'
        for name in ("python", "tessera-xr"):
            (folder / name).write_text(f"#!/bin/sh\n{note}\n{answer}\n")
            (folder / name).chmod(0o755)
        env = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([BINDER / "postBuild"], cwd=ROOT, env=env, capture_output=True, text=True)
        return done.returncode, calls.read_text().splitlines(), prefix

    return run


def test_the_build_installs_the_package_its_settings_and_tries_them(build):
    code, calls, prefix = build()
    assert code == 0
    assert calls[0].startswith("python -m pip install")
    assert "--no-deps --constraint constraints.txt --editable ." in calls[0]
    assert calls[-1].startswith("tessera-xr demo")
    for name, folder in (("overrides.json", "share/jupyter/lab/settings"), ("jupyter_lab_config.json", "etc/jupyter")):
        assert (prefix / folder / name).read_text() == (BINDER / name).read_text()


@pytest.mark.parametrize("failing", ["install", "demo"])
def test_a_build_that_fails_says_so(build, failing):
    code, calls, _ = build(failing)
    assert code != 0
    assert failing in calls[-1]


def test_binders_builder_takes_it(tmp_path):
    """It finds this folder, not what is beside it, and installs the environment before the rest is copied."""
    pytest.importorskip("repo2docker")
    shutil.copytree(BINDER, tmp_path / "binder")
    for name in ("environment.yml", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-2000:]
    assert "Building conda environment for python=3.11" in text
    steps = [
        r"COPY --chown=\d+:\d+ src/binder/environment\.yml \$\{REPO_DIR\}/binder/environment\.yml",
        r'env update -p \$\{NB_PYTHON_PREFIX\} --file "binder/environment\.yml"',
        r"COPY --chown=\d+:\d+ src/ \$\{REPO_DIR\}/",
        r"RUN \./binder/postBuild",
        r'R2D_ENTRYPOINT="\$\{REPO_DIR\}/binder/start"',
    ]
    found = [re.search(step, text) for step in steps]
    assert all(found), [step for step, at in zip(steps, found, strict=True) if at is None]
    places = [at.start() for at in found if at]
    assert places == sorted(places)


# The page to start from ---------------------------------------------------------------------------------------------


def test_the_start_page_lists_every_notebook_as_it_calls_itself():
    rows = re.findall(r"^\| (\d\d) \| \[(.+?)\]\((.+?)\) \|.*\| (\d+) \|$", START_PAGE.read_text(), re.M)
    listed = {file: (number, title, minutes) for number, title, file, minutes in rows}
    found = {}
    for path in NOTEBOOKS.glob("*.ipynb"):
        first = "".join(json.loads(path.read_text())["cells"][0]["source"])
        number, title = re.match(r"# (\d\d) · (.+)", first).groups()
        minutes = re.search(r"(\d+) minutes", first).group(1)
        found[path.name] = (number, title.strip(), minutes)
    assert listed == found


def test_the_start_page_is_what_opens():
    opened = json.loads((BINDER / "jupyter_lab_config.json").read_text())["LabApp"]["default_url"]
    assert ROOT / opened.removeprefix("/lab/tree/") == START_PAGE
    settings = json.loads((BINDER / "overrides.json").read_text())
    assert settings["@jupyterlab/docmanager-extension:plugin"]["defaultViewers"]["markdown"] == "Markdown Preview"


@pytest.mark.slow
def test_jupyterlab_opens_on_the_start_page_and_its_links_lead_to_notebooks(tmp_path):
    pytest.importorskip("jupyterlab")
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    settings = tmp_path / "settings"
    settings.mkdir()
    shutil.copy(BINDER / "overrides.json", settings)
    options = [f"--config={BINDER / 'jupyter_lab_config.json'}", f"--LabApp.app_settings_dir={settings}"]
    with jupyter(tmp_path, "lab", *options) as address, browser() as watched:
        page = watched.page
        page.goto(address, wait_until="domcontentloaded")
        page.wait_for_selector(".jp-MarkdownViewer table")
        names = page.locator(".jp-MarkdownViewer table a").all_inner_texts()
        assert len(names) == START_PAGE.read_text().count(".ipynb)")
        page.locator(".jp-MarkdownViewer a", has_text="First embeddings").click()
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        assert page.url.endswith("/lab/tree/notebooks/01_first_embeddings.ipynb")
        assert watched.outside == []
