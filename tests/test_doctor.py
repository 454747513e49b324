"""The doctor: it tells what works, what is missing and how to get it, and never fails itself."""

from __future__ import annotations

import json
import socket
from importlib import metadata

import pytest

import tessera_xr as txr
from tessera_xr import doctor
from tessera_xr.doctor import describe, examine


@pytest.fixture
def no_network(monkeypatch):
    def refused(*_, **__):
        pytest.fail("the doctor went online unasked")

    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "blob").write_bytes(bytes(3_000_000))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_all_is_well_here(no_network, hub_cache):
    report = examine()
    assert set(report["works"]) == set(doctor.TRIALS)
    assert all(said.startswith("yes (") for said in report["works"].values()), report["works"]
    assert report["versions"]["tessera_xr"] == txr.__version__
    assert report["versions"]["dependencies"] == "all there"
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["memory"].partition(" ")[2].startswith("GB")
    assert report["device"]["embed uses"]
    table = txr.models()
    assert report["weights"]["here"] == list(table.index[table["available"]])
    listed = [report["weights"][k] for k in ("here", "to download", "to be given as a file")]
    assert sorted(name for names in listed for name in names) == sorted(table.index)
    assert report["weights"]["cache"] == f"{hub_cache}, 3 MB"
    assert "online" not in report
    assert json.loads(json.dumps(report)) == report
    text = describe(report)
    assert "embedding two pixels with mini  yes" in text
    assert "here                   mini" in text


def test_every_extra_for_users_is_explained():
    extras = set(metadata.metadata(doctor.PACKAGE).get_all("Provides-Extra"))
    assert extras - set(doctor.EXTRAS) <= {"all", "dev", "docs"}


def test_a_missing_package_comes_with_the_command(monkeypatch):
    versions = {"usearch": None, "scikit-image": "0.1"}
    known = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, known(name)))
    extras = doctor._extras()
    assert extras["search"].startswith("no: ")
    assert "pip install 'tessera-xr[search]' (lacks usearch)" in extras["search"]
    assert "pip install 'tessera-xr[segments]' (scikit-image 0.1 is too old)" in extras["segments"]
    versions["zarr"] = "2.1"
    assert doctor._versions()["dependencies"] == "NO: pip install --upgrade tessera-xr (zarr 2.1 is too old)"


@pytest.mark.parametrize("part", ["_versions", "_machine", "_device", "_weights", "_extras"])
def test_what_is_broken_is_told_and_the_rest_goes_on(part, monkeypatch):
    def broken():
        raise ImportError("libtorch.so is gone\nand more")

    monkeypatch.setattr(doctor, "TRIALS", {"one": lambda: None, "two": broken})
    monkeypatch.setattr(doctor, part, broken)
    report = examine()
    assert report[part[1:]] == "ImportError: libtorch.so is gone"
    assert report["works"]["two"] == "NO: ImportError: libtorch.so is gone"
    assert report["works"]["one"].startswith("yes")
    assert f"{part[1:].capitalize()}\n  could not be looked at: ImportError: libtorch.so is gone" in describe(report)


@pytest.mark.parametrize(
    ("name", "module", "function", "message"),
    [
        ("embedding two pixels with mini", "tessera_xr.embedding.engine", "embed_pixels", "not finite"),
        ("projections", "tessera_xr.grid", "bounds_lonlat", "PROJ's data are broken"),
    ],
)
def test_a_wrong_result_is_found(name, module, function, message, monkeypatch):
    import numpy as np

    wrong = np.array([[np.nan]]) if function == "embed_pixels" else (9, 9, 9, 9)
    monkeypatch.setattr(f"{module}.{function}", lambda *_, **__: wrong)
    assert message in doctor._tried(doctor.TRIALS[name])


def test_online_any_answer_will_do(monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403 if "closed" in self.path else 200)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    here = f"http://127.0.0.1:{server.server_port}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    sites = {"open": here, "closed": f"{here}/closed", "nobody": nobody}
    monkeypatch.setattr(doctor, "_sites", lambda: sites)
    monkeypatch.setattr(doctor, "TRIALS", {})
    try:
        found = examine(online=True)["online"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert [found[name].split()[0] for name in sites] == ["yes", "yes", "NO:"]


def test_the_sites_are_those_that_are_used():
    sites = doctor._sites()
    assert sites["weights"] == "https://huggingface.co"
    assert all(url.startswith("https://") for url in sites.values())
    assert len(sites) == 4


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000000\n")
    monkeypatch.setattr(doctor, "CONTROL_GROUP", tmp_path)
    assert doctor._memory() == "1.0 GB (limit of the container)"
    (tmp_path / "memory.max").write_text("max\n")
    assert "container" not in doctor._memory()
