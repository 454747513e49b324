"""Make a virtual environment with tessera_xr in it: `python3 scripts/bootstrap.py FOLDER [EXTRA ...]`.

Standard library only, so that a bare Python runs it. Done again only if the requirements changed. On a Linux machine
without an NVIDIA GPU, PyTorch's CPU build is taken (200 MB instead of gigabytes) where its index can be reached; set
TORCH_INDEX to use another index, or to nothing to use none.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST = (3, 11)


def main(folder, extras):
    if sys.version_info < OLDEST:
        sys.exit(
            "tessera_xr needs Python {}.{} or newer, this is {}. Name a newer one: make PYTHON=python3.12 ...".format(
                *OLDEST, platform.python_version()
            )
        )
    venv = Path(folder)
    stamp = venv / "tessera_xr.json"
    wanted = {"requirements": requirements(), "extras": sorted(extras)}
    have = json.loads(stamp.read_text()) if stamp.exists() else {}
    if have.get("requirements") == wanted["requirements"] and set(wanted["extras"]) <= set(have.get("extras", [])):
        return
    wanted["extras"] = sorted({*extras, *have.get("extras", [])})
    python = create(venv)
    stamp.unlink(missing_ok=True)  # an interrupted installation must not look whole
    target = "{}{}".format(ROOT, "[{}]".format(",".join(wanted["extras"])) if wanted["extras"] else "")
    print(f"Installing tessera_xr into {venv} (a minute or two, once) ...", flush=True)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", ROOT / "constraints.txt"]
    run([*command, *torch_index(), "-e", target])
    stamp.write_text(json.dumps(wanted))


def requirements():
    """Return a hash of what decides the contents of the environment."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"".join(parts) + platform.python_version().encode()).hexdigest()


def create(venv):
    """Make the environment and return its Python."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        done = subprocess.run([sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            sys.exit(
                f"Python could not make a virtual environment:\n{done.stdout + done.stderr}\n"
                "On Debian and Ubuntu, install it first: sudo apt-get install python3-venv"
            )
    return python


def torch_index():
    """Return the option for pip that finds PyTorch's CPU build, where it is of use and within reach."""
    index = os.environ.get("TORCH_INDEX")
    if index is None and sys.platform == "linux" and not shutil.which("nvidia-smi"):
        try:
            urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=3).close()
            index = CPU_INDEX
        except OSError:
            pass
    return ["--extra-index-url", index] if index else []


def run(command):
    done = subprocess.run([str(part) for part in command])
    if done.returncode:
        sys.exit("The installation failed (above); mend the cause and run the same command again.")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
