"""The benchmark suite at toy size: its rows, ratios and floors, its files, and what it says when it can't run a thing.

No time is judged here.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tessera_xr as txr
from benchmarks import __main__ as suite
from benchmarks import machine, measure, peers
from benchmarks.measure import Beside, Settings, compare
from benchmarks.rows import HEADS, Row, Want, as_ratio, cells, markdown, number
from benchmarks.scale import lazy_cube

TOY = ["--quick", "--sizes", "64", "--models", "mini"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a run without any peer wrote: the JSON, and the Markdown."""
    folder = tmp_path_factory.mktemp("benchmarks")
    files = [f"--{kind}={folder / kind}" for kind in ("json", "markdown")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(peers.VARIABLE, "")
        patch.setenv(peers.GEOTESSERA_PYTHON, str(folder / "no-python"))
        patch.setenv("TESSERA_XR_DATA", str(folder))
        for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patch.setenv(threads, "1")  # tests beside these take the other cores
        suite.main(["embed", "analysis", "gpu", *TOY, *files])
    return json.loads((folder / "json").read_text()), (folder / "markdown").read_text()


@pytest.fixture
def rows(found: tuple[dict[str, Any], str]) -> list[Row]:
    return [Row.from_dict(row) for row in found[0]["rows"]]


def test_every_group_is_there_and_every_row_says_something(rows):
    assert {row.group for row in rows} == {"embed", "analysis", "gpu"}
    for row in rows:
        assert row.ours or row.skipped, row
        assert not row.beside or row.theirs or row.beside_skipped, row
    tasks = {row.task for row in rows if row.ours}
    for task in (
        "mini",
        "cosine",
        "find_similar",
        "Mahalanobis",
        "k-means",
        "components",
        "novelty",
        "change",
        "trend",
    ):
        assert any(task in name for name in tasks), task


def test_rows_come_back_from_json_as_they_were(found, rows):
    assert [row.to_dict() for row in rows] == found[0]["rows"]


def test_ratios_are_those_of_the_rounds(rows):
    with_floor = [row for row in rows if row.floors]
    assert any(row.group == "embed" for row in with_floor)
    assert any(row.group == "analysis" for row in with_floor)
    for row in with_floor:
        assert all(seconds > 0 for seconds in row.floors)
        assert row.over_floor == statistics.median(a / b for a, b in zip(row.ours, row.floors, strict=True))
    for row in (row for row in rows if row.theirs):
        assert row.speedup == statistics.median(b / a for a, b in zip(row.ours, row.theirs, strict=True))


def test_a_missing_peer_is_said(rows):
    theirs = [row for row in rows if row.beside.startswith("the authors' code")]
    assert len(theirs) == 2
    for row in theirs:
        assert row.ours
        assert row.theirs == []
        assert "--peer" in row.beside_skipped
        assert "--peer" in cells(row)[-1]
    published = [row for row in rows if "published store" in row.task or "by coordinates" in row.task]
    assert len(published) == 2
    assert all("no-python" in row.skipped for row in published)


def test_a_missing_card_is_said(rows):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    (row,) = [row for row in rows if row.group == "gpu"]
    assert "CUDA" in row.skipped


def test_tables_are_whole(found, rows):
    table = found[1]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 2 * 3  # a head and a rule for each group
    assert {line.count("|") for line in lines} == {len(HEADS) + 1}
    machine_line = table.splitlines()[2]
    for what in (found[0]["machine"]["date"], "cores", "GFLOP/s", "GB/s", "numpy", "torch", "python -m benchmarks"):
        assert what in machine_line


def test_what_fails_says_why(monkeypatch):
    monkeypatch.setitem(suite.GROUPS, "broken", "no_such_module")  # here; the process that measures knows of none
    (row,) = suite.run("broken", None, suite.parse(["gpu", "--quick"]))
    assert "it failed: KeyError: 'broken'" in row.skipped


def test_rows_are_read_when_they_are_whole(tmp_path):
    file, rows = tmp_path / "rows.jsonl", [Row("g", "first", ours=[1.0]), Row("g", "second", skipped="why")]
    first, second = (json.dumps(row.to_dict()) + "\n" for row in rows)
    file.write_text(first + second[:9])
    with file.open() as reading:
        assert list(suite.read(reading)) == rows[:1]
        file.write_text(first + second)
        assert list(suite.read(reading)) == rows[1:]


def test_what_needs_more_memory_than_allowed_is_not_run():
    from benchmarks import analysis, explorer, learning

    for group in (analysis, learning, explorer):
        (row,) = group.rows(4096, Settings(memory_gb=0.1))
        assert "--memory 0.1" in row.skipped
    assert Settings(memory_gb=1e6).lacks_memory(1e9) == ""
    assert "--patience" in Settings(patience=1).takes_long(2)


@pytest.mark.parametrize(
    ("want", "speedup", "met"),
    [
        ("faster", 3.0, True),
        ("faster", 2.0, True),
        ("faster", 1.9, False),
        ("longer", 0.5, True),
        ("longer", 0.4, False),
    ],
)
def test_what_is_wanted_of_a_ratio(want, speedup, met):
    row = Row("g", "t", ours=[2.0], theirs=[2.0 * speedup], beside="b", want=Want(want, 2))
    assert row.met is met
    assert ("**not met**" in "".join(cells(row))) is not met


def test_what_is_wanted_of_one_row():
    assert Row("g", "t", ours=[1.0], floors=[0.9], want=Want("share", 0.85)).met is True
    assert Row("g", "t", ours=[1.0], floors=[0.8], want=Want("share", 0.85)).met is False
    assert Row("g", "t", ours=[1.0, 9.0, 1.0], want=Want("seconds", 2)).met is True
    assert Row("g", "t", peak_mb=300, want=Want("MB", 250)).met is False
    assert Row("g", "t", ours=[1.0], want=Want("faster", 2), beside_skipped="none").met is None
    assert Row("g", "t", ours=[1.0]).met is None


def test_numbers_for_reading():
    assert [as_ratio(x) for x in (31.4, 1.0, 0.4, None)] == ["31x as fast", "1x as fast", "2.5x as long", ""]
    assert [number(x) for x in (1234.5, 12.3, 0.0123, 0, None)] == ["1,234", "12", "0.012", "0", ""]


def test_the_floor_is_the_slower_of_arithmetic_and_memory(monkeypatch):
    monkeypatch.setattr(machine, "sgemm", lambda side: 1e9)
    monkeypatch.setattr(machine, "bandwidth", lambda: 1e10)
    assert machine.floor(2e9, 1e9) == 2.0
    assert machine.floor(1e8, 4e10) == 4.0
    assert machine.floor(0, 0) == 0.0


def test_rates_are_rates_of_this_machine():
    assert 1e8 < machine.sgemm() < 1e15
    assert 1e8 < machine.bandwidth() < 1e13


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], Callable[[], None]]:
    """Make calls that take as long as they say, by a clock of their own, and remember their order."""
    now = {"s": 0.0}
    order: list[str] = []

    def make(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            now["s"] += seconds

        return call

    monkeypatch.setattr(machine.time, "perf_counter", lambda: now["s"])
    monkeypatch.setattr(machine, "floor", lambda *_: 0.5)
    make.order = order  # type: ignore[attr-defined]
    return make


def test_ours_and_theirs_run_in_turn(clocked):
    row = Row("g", "t", operations=1.0)
    beside = [Beside("peer", clocked("peer", 4.0)), Beside("absent", None, skipped="not here")]
    found = compare(row, clocked("ours", 2.0), beside, Settings(repeats=3, patience=100))
    assert clocked.order == ["ours", "peer", "ours", *["ours", "peer"] * 3]  # warm, memory, then rounds
    assert [(r.ours, r.theirs, r.floors) for r in found] == [
        ([2.0] * 3, [4.0] * 3, [0.5] * 3),
        ([2.0] * 3, [], [0.5] * 3),
    ]
    assert (found[0].speedup, found[0].over_floor, found[1].beside_skipped) == (2.0, 4.0, "not here")


def test_a_slow_peer_runs_fewer_rounds(clocked):
    beside = [Beside("peer", clocked("peer", 6.0), factor=4)]
    (row,) = compare(Row("g", "t"), clocked("ours", 0.1), beside, Settings(repeats=5, patience=10))
    assert row.theirs == [24.0]
    assert row.speedup == pytest.approx(240)


def test_memory_is_what_a_call_adds():
    if not measure.reset_peak():
        pytest.skip("this system doesn't tell")
    import numpy as np

    seconds, peak = measure.peak_of(lambda: np.ones(8_000_000).sum())
    assert seconds > 0
    assert 60 < peak < 80


def test_markdown_goes_between_the_marks(tmp_path):
    begin, end = suite.MARKS
    file = tmp_path / "RESULTS.md"
    file.write_text(f"# By hand\n{begin}\nold\n{end}\nBy hand, too.\n")
    suite.write_markdown(file, "| new |")
    text = file.read_text()
    assert text == f"# By hand\n{begin}\n\n| new |\n{end}\nBy hand, too.\n"
    other = tmp_path / "other.md"
    other.write_text("all by hand\n")
    with pytest.raises(SystemExit, match="put them where"):
        suite.write_markdown(other, "| new |")
    assert other.read_text() == "all by hand\n"


def test_results_have_a_place_for_the_tables():
    text = (Path(suite.__file__).parent / "RESULTS.md").read_text()
    assert all(text.count(mark) == 1 for mark in suite.MARKS)


def test_an_unknown_group_is_refused(capsys):
    with pytest.raises(SystemExit):
        suite.parse(["embedding"])
    assert "there are embed, analysis" in capsys.readouterr().err


def test_a_bar_in_a_cell_does_not_break_the_table():
    table = markdown([Row("g", "a | b", skipped="c | d")], {
        "date": "today", "processor": "p", "cores": 2, "memory_gb": 1.0, "rates": {}, "versions": {}, "command": "c",
        "seconds": 60.0,
    })  # fmt: skip
    assert table.splitlines()[-1].count("|") == len(HEADS) + 1


def test_the_lazy_graph_stays_small():
    cube = lazy_cube(16)
    assert cube["s2"].data.numblocks[-2:] == (4, 4)
    graph = txr.embed(cube, dtype="int8").__dask_graph__()
    assert len(graph) == 9 * 16  # three inputs, one task that embeds, five that take its results
    assert not any(layer.is_materialized() for layer in graph.layers.values())
