"""The store keeps every trial, survives a kill, and harms no file that it cannot use."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.store import FORMAT, Store, default_path
from autotune.trial import Trial
from tconv.cost.estimate import Resources
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.tile import Tile

PROBLEM = Problem(ConvGeometry(64, 64, 56, 56, 64, 3, 3, pad_h=1, pad_w=1), "fprop")
TILE = Tile(64, 32, 16, stages=2, warps=4)
TRIAL = Trial(
    "sm_90",
    PROBLEM,
    "implicit_gemm",
    TILE,
    "predicted",
    "ok",
    milliseconds=0.25,
    ranked_milliseconds=0.3,
    resources=Resources(90, 0, 98304, 97),
    occupancy=0.25,
    versions="torch 2, triton 3",
    source="abc",
    seconds=0.5,
)
FAILED = replace(
    TRIAL,
    tile=replace(TILE, stages=5),
    status="time limit",
    milliseconds=None,
    resources=None,
    occupancy=None,
    detail="stopped",
)
WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from autotune.store import Store
from tests.autotune.test_store import TRIAL

with Store(Path(sys.argv[1])) as store:
    for number in range(1, 100000):
        store.add(replace(TRIAL, tile=replace(TRIAL.tile, splits=number)))
        print(number, flush=True)
"""


def test_what_goes_in_comes_out() -> None:
    with Store() as store:
        assert store.path == default_path()
        store.add(TRIAL)
        store.add(FAILED)
    with Store() as store:
        assert list(store.trials()) == [TRIAL, FAILED]
        assert list(store.trials(target="sm_90", kind="predicted")) == [TRIAL, FAILED]
        assert not list(store.trials(kind="measured"))
        assert not list(store.trials(target="sm_80"))


def test_find_wants_the_same_kernels_and_versions() -> None:
    with Store() as store:
        store.add(TRIAL)
        where = ("sm_90", PROBLEM, "predicted")
        found = store.find(*where, TRIAL.versions, TRIAL.source)  # type: ignore[arg-type]
        assert found == {("implicit_gemm", TILE): TRIAL}
        assert not store.find(*where, "torch 3", TRIAL.source)  # type: ignore[arg-type]
        assert not store.find(*where, TRIAL.versions, "abd")  # type: ignore[arg-type]


def test_a_trial_replaces_its_earlier_self_but_never_another_kind() -> None:
    measured = replace(TRIAL, kind="measured", milliseconds=0.2, p20=0.19, p80=0.22)
    checked = replace(TRIAL, error_fp64=1e-4)
    with Store() as store:
        for trial in (TRIAL, measured, checked):
            store.add(trial)
        assert list(store.trials(kind="predicted")) == [checked]
        assert list(store.trials(kind="measured")) == [measured]


def test_a_kill_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout is not None
    for _ in range(25):
        written = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    writer.wait()
    written = int(rest[-1]) if rest else written
    with Store(path) as store:
        kept = [trial.tile.splits for trial in store.trials()]
    assert kept[:written] == list(range(1, written + 1))
    assert len(kept) <= written + 1
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    with Store(path) as first, Store(path) as second:
        first.add(TRIAL)
        second.add(FAILED)
        assert len(list(first.trials())) == 2


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
        connection.execute("CREATE TABLE trials (something_else)")


def _corrupt(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like one " * 100)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (something_else)")


@pytest.mark.parametrize("spoil", [_newer, _corrupt, _foreign])
def test_an_unusable_store_is_named_and_left_alone(tmp_path: Path, spoil: object) -> None:
    path = tmp_path / "trials.sqlite"
    assert callable(spoil)
    spoil(path)
    before = path.read_bytes()
    with pytest.warns(UserWarning, match=str(path)):
        store = Store(path)
    with store:
        assert store.path is None
        store.add(TRIAL)
        assert list(store.trials()) == [TRIAL]
    with sqlite3.connect(path) as connection:
        if spoil is not _corrupt:
            columns = connection.execute("PRAGMA table_info(trials)").fetchall()
            assert [column[1] for column in columns] == ["something_else"]
    if spoil is not _foreign:
        assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="in memory"):
        store = Store(tmp_path / "file" / "trials.sqlite")
    store.add(TRIAL)
    assert list(store.trials()) == [TRIAL]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_store(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    Store(path).close()
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match=str(path)):
            store = Store(path)
        store.add(TRIAL)
        assert list(store.trials()) == [TRIAL]
    finally:
        tmp_path.chmod(0o755)


def test_a_store_that_turns_read_only_midway(tmp_path: Path) -> None:
    store = Store(tmp_path / "trials.sqlite")
    store.add(TRIAL)
    store._connection.execute("PRAGMA query_only = 1")
    with pytest.warns(UserWarning, match="trials.sqlite"):
        store.add(FAILED)
    assert list(store.trials()) == [TRIAL, FAILED]
    with Store(tmp_path / "trials.sqlite") as kept:
        assert list(kept.trials()) == [TRIAL]
