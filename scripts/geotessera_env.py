"""Make a Python 3.12 environment with geotessera in it: `python scripts/geotessera_env.py [FOLDER]` prints its Python.

Done again only if the versions changed; half a minute. tessera_xr is not installed there, since geotessera's users may
well have no torch: put the repository on PYTHONPATH. Exit status 3: there is no Python 3.12; 4: it could not be made.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv" / "geotessera-3.12"
REQUIREMENTS = ROOT / "tests" / "geotessera_side" / "requirements.txt"
NO_PYTHON, NO_ENVIRONMENT = 3, 4


def main(folder):
    base = find_python()
    if base is None:
        print("there is no Python 3.12: none on PATH as python3.12, none among pyenv's versions", file=sys.stderr)
        sys.exit(NO_PYTHON)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.lock")):
        make(folder, base)
    print(folder / "bin" / "python")


def find_python():
    """Return a Python 3.12 that runs and can make environments, or None."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = [shutil.which("python3.12"), *sorted(pyenv.glob("versions/3.12*/bin/python"), reverse=True)]
    for place in filter(None, places):
        code = "import sys, venv; sys.exit(sys.version_info[:2] != (3, 12))"
        with contextlib.suppress(OSError):  # pyenv's shims exist for versions that aren't chosen
            if subprocess.run([str(place), "-c", code], capture_output=True, check=False).returncode == 0:
                return str(place)
    return None


def make(folder, base):
    """Make the environment unless it is there, whole and of these versions."""
    stamp = folder / "tessera_xr.txt"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + base.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    run([base, "-m", "venv", "--without-pip", str(folder)])
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    run([*pip, "--disable-pip-version-check", "--no-deps", "--no-compile", "-r", str(REQUIREMENTS)])
    stamp.write_text(wanted)  # last, so that an interrupted installation doesn't look whole


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}", file=sys.stderr)
        sys.exit(NO_ENVIRONMENT)


@contextlib.contextmanager
def locked(path):
    """Let one process at a time make the environment; the others wait and find it made."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else FOLDER)
