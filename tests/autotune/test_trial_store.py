"""Tests of the trial store: every trial is kept, kills are survived, unusable files kept."""

from __future__ import annotations

import itertools
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from autotune.trial import Trial
from autotune.trial_database import COLUMNS, FORMAT, SCHEMA, added_since
from autotune.trial_store import Store, _row, default_path
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
FAILED = evolve(
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
from attrs import evolve
from autotune.trial_store import Store
from tests.autotune.test_trial_store import TRIAL

with Store(Path(sys.argv[1])) as store:
    for number in range(1, 100000):
        store.add(evolve(TRIAL, tile=replace(TRIAL.tile, splits=number)))
        print(number, flush=True)
"""


def test_trials_are_read_as_they_were_stored() -> None:
    with Store() as store:
        assert store.path == default_path()
        store.add(TRIAL)
        store.add(FAILED)
    with Store() as store:
        assert list(store.trials()) == [TRIAL, FAILED]
        assert list(store.trials(target="sm_90", kind="predicted")) == [TRIAL, FAILED]
        assert not list(store.trials(kind="measured"))
        assert not list(store.trials(target="sm_80"))


@pytest.mark.parametrize(
    "change",
    [{"milliseconds": math.nan}, {"occupancy": "0.5"}, {"turn": 1.5}, {"kind": "guessed"},
     {"family": "a family of later"}, {"checked": "by eye"}, {"counters": []}, {"detail": None}],
    ids=str,
)  # fmt: skip
def test_a_trial_that_could_not_be_read_back_is_refused(change: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(change))):
        evolve(TRIAL, **change)


def test_find_requires_the_same_kernels_and_versions() -> None:
    with Store() as store:
        store.add(TRIAL)
        where = ("sm_90", PROBLEM, "predicted")
        found = store.find(*where, TRIAL.versions, TRIAL.source)  # type: ignore[arg-type]
        assert found == {("implicit_gemm", TILE): TRIAL}
        assert not store.find(*where, "torch 3", TRIAL.source)  # type: ignore[arg-type]
        assert not store.find(*where, TRIAL.versions, "abd")  # type: ignore[arg-type]


def test_a_trial_replaces_its_earlier_version_of_the_same_kind() -> None:
    measured = evolve(TRIAL, kind="measured", milliseconds=0.2, p20=0.19, p80=0.22)
    counters = {"results": 640, "instructions_by_class": {"matrix": 64}}
    checked = evolve(TRIAL, error_fp64=1e-4, checked="emulated", counters=counters)
    with Store() as store:
        for trial in (TRIAL, measured, checked):
            store.add(trial)
        assert list(store.trials(kind="predicted")) == [checked]
        assert list(store.trials(kind="measured")) == [measured]


@pytest.mark.parametrize("version", range(1, FORMAT))
def test_a_store_of_an_earlier_format_is_converted_completely(tmp_path: Path, version: int) -> None:
    path = tmp_path / "trials.sqlite"
    added = added_since(version)
    older = [column for column in COLUMNS if column not in added]
    with sqlite3.connect(path) as connection:
        connection.execute(re.sub(rf"    ({'|'.join(added)}) \w+,\n", "", SCHEMA))
        connection.execute(f"PRAGMA user_version = {version}")
        for trial in (TRIAL, FAILED):
            named = _row(trial)
            marks = ", ".join("?" * len(older))
            statement = f"INSERT INTO trials ({', '.join(older)}) VALUES ({marks})"
            connection.execute(statement, [named[column] for column in older])
    contested = evolve(TRIAL, kind="measured", milliseconds=0.2, first_milliseconds=0.25, turn=3)
    for _ in range(2):
        with Store(path) as store:
            assert store.path == path
            store.add(contested)
            assert list(store.trials()) == [TRIAL, FAILED, contested]
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)


@pytest.mark.parametrize(("kind", "known"), [("predicted", "interpreted"), ("measured", "gpu")])
def test_earlier_rows_get_the_check_of_their_kind(kind: Any, known: str) -> None:
    """Formats before 3 stored the error but not how it was checked."""
    passed = evolve(TRIAL, kind=kind, error_fp64=1e-3, checked="emulated")
    with Store() as store:
        store.add(passed)
        store._connection.execute("UPDATE trials SET checked = NULL, counters = NULL")
        assert list(store.trials()) == [evolve(passed, checked=known)]  # type: ignore[arg-type]
        store._connection.execute("UPDATE trials SET checked = 'by eye'")
        with pytest.warns(UserWarning, match="1 rows that are not trials"):
            assert not list(store.trials())


def test_a_kill_loses_no_written_trial(tmp_path: Path) -> None:
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


def _newer_that_was_killed(path: Path) -> None:
    """Its data is only in the log; the file itself is still empty."""
    with sqlite3.connect(path.with_name("whole")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE trials (something_else)")
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
        connection.commit()
        for end in ("", "-wal"):
            shutil.copy(path.with_name(f"whole{end}"), path.with_name(path.name + end))


def _corrupt(path: Path) -> None:
    path.write_bytes(b"not a database, but long enough to look like one " * 100)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (something_else)")


def _other_columns(path: Path) -> None:
    _foreign(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT}")


def _rotten(path: Path) -> None:
    _fill(path, 100)
    with path.open("r+b") as file:
        file.seek(-4096, 2)
        file.write(b"rot" * 1000)


def _fill(path: Path, count: int) -> None:
    with Store(path) as store:
        _add(store, [evolve(TRIAL, tile=replace(TILE, splits=n + 1)) for n in range(count)])


def _add(store: Store, trials: list[Trial]) -> None:
    for trial in trials:
        store.add(trial)


SPOILT = [_newer, _newer_that_was_killed, _corrupt, _foreign, _other_columns, _rotten]


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__[1:])
def test_an_unusable_store_is_named_and_left_unchanged(tmp_path: Path, spoil: object) -> None:
    path = tmp_path / "trials.sqlite"
    assert callable(spoil)
    spoil(path)
    held = [each for end in ("", "-wal") if (each := Path(f"{path}{end}")).exists()]
    before = [each.read_bytes() for each in held]
    with pytest.warns(UserWarning, match=str(path)):
        store = Store(path)
    with store:
        assert store.path is None
        store.add(TRIAL)
        assert list(store.trials()) == [TRIAL]
    assert [each.read_bytes() for each in held] == before


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "trials.sqlite"
    _fill(path, 60)
    return path.read_bytes()


@pytest.mark.parametrize("left", [1, 99, 100, 4095, 4096, 8192, -4096, -100, -1])
def test_a_truncated_store_is_named_and_left_unchanged(
    tmp_path: Path, whole: bytes, left: int
) -> None:
    path = tmp_path / "trials.sqlite"
    path.write_bytes(whole[:left])
    with pytest.warns(UserWarning, match="is left alone .* cut off"), Store(path) as store:
        assert (store.path, list(store.trials())) == (None, [])
    assert path.read_bytes() == whole[:left]


@pytest.mark.parametrize("kept", ["", "-wal", "-shm"])
def test_files_left_by_a_kill_may_be_incomplete(tmp_path: Path, kept: str) -> None:
    """The file, its log and the log's index belong together; the log alone is useless."""
    path = tmp_path / "trials.sqlite"
    _fill(path, 20)
    with Store(path) as writer:
        writer.add(FAILED)
        for end in ("", "-wal", "-shm"):
            shutil.copy(f"{path}{end}", tmp_path / f"copy{end}")
    for end in {"-wal", "-shm"} - {kept}:
        (tmp_path / f"copy{end}").unlink()
    with Store(tmp_path / "copy") as store:
        assert store.path is not None
        found = list(store.trials())
        assert len(found) == (21 if kept == "-wal" else 20)
        assert store.add(FAILED) is None
        check = store._connection.execute("PRAGMA integrity_check")
        assert check.fetchone() == ("ok",)


def test_opening_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "trials.sqlite")
    with pytest.warns(UserWarning, match="not a regular file"):
        Store(tmp_path / "trials.sqlite").close()


NO_LAYER = "fprop/float16/nhwc/n0c0h0w0-k0f0x0-s0x0-p0x0-d0x0-g0"
STRANGE = [
    ("tile", "'../../etc'"), ("tile", "'0x0x0 s0 w0 g0 k0'"), ("tile", "x'ff'"), ("tile", "7"),
    ("tile", "CAST(x'fffe' AS TEXT)"), ("problem", f"'{NO_LAYER}'"), ("kind", "'guessed'"),
    ("milliseconds", "'fast'"), ("milliseconds", "9e999"), ("registers", "x'39'"),
    ("spill_bytes", "'many'"), ("algorithm", "'a family of later'"), ("detail", "x'ff'"),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value"), STRANGE, ids=[" ".join(each) for each in STRANGE])
def test_an_invalid_row_is_skipped_and_kept(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        store.add(TRIAL)
        store.add(FAILED)
        store._connection.execute(f"UPDATE trials SET {column} = {value} WHERE status = 'ok'")
        with pytest.warns(UserWarning, match=f"{path} holds 1 rows"):
            assert list(store.trials()) == [FAILED]
        assert store._connection.execute("SELECT count(*) FROM trials").fetchone() == (2,)


def test_a_file_that_is_damaged_while_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trials.sqlite"
    _fill(path, 100)
    store = Store(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"rot" * 30000)
    where = ("sm_90", PROBLEM, "predicted", TRIAL.versions, TRIAL.source)
    with pytest.warns(UserWarning, match=r"trials\.sqlite is left alone"):
        assert store.find(*where) == {}  # type: ignore[arg-type]
    store.add(TRIAL)
    assert (store.path, list(store.trials())) == (None, [TRIAL])


def test_order_is_independent_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1e9, -3600)
    monkeypatch.setattr("time.time", lambda: next(clock))
    made = [evolve(TRIAL, tile=replace(TILE, splits=number)) for number in (1, 2, 3)]
    better = evolve(made[0], milliseconds=0.125)
    with Store(tmp_path / "trials.sqlite") as store:
        for trial in (*made, better):
            store.add(trial)
    with Store(tmp_path / "trials.sqlite") as store:
        assert list(store.trials()) == [*made[1:], better]  # the latest version of each, in order
        found = store.find("sm_90", PROBLEM, "predicted", TRIAL.versions, TRIAL.source)
        assert found["implicit_gemm", made[0].tile] == better


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("fault", ["query_only = 1", "max_page_count = 1"])
def test_a_store_that_turns_read_only_or_full_midway(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "trials.sqlite"
    store = Store(path)
    store.add(TRIAL)
    store._connection.execute(f"PRAGMA {fault}")
    more = [evolve(FAILED, tile=replace(TILE, splits=number)) for number in range(2, 40)]
    with pytest.warns(UserWarning, match=r"trials\.sqlite"):
        _add(store, more)
    assert list(store.trials()) == [TRIAL, *more]
    assert "readonly" in store.trouble or "full" in store.trouble
    with Store(path) as kept:
        assert kept.path == path
        found = list(kept.trials())
    assert found == [TRIAL, *more][: len(found)]
