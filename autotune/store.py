"""Every trial, failures included, in one SQLite file that survives a kill.

Each trial is a transaction of its own under a write-ahead log. A file that cannot be used is
named in a warning and left alone: the run goes on, and its trials live in memory. It is looked at
before anything is written to it, so that a newer version's store, or another program's database,
keeps every byte.
"""

from __future__ import annotations

import math
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from autotune.trial import Trial
from tconv import table
from tconv.algorithms import ALGORITHMS
from tconv.cost.estimate import Resources
from tconv.problem import Problem
from tconv.table import Kind
from tconv.tile import Tile

FORMAT = 2  # PRAGMA user_version; 0 is a file that was just made, 1 lacks ``ADDED``
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction
HEADER = 100  # bytes of a database that say how large it is (SQLite's file format, 1.3)
LOOKS, LOOK_SECONDS = 3, 0.05  # at a size that another process may just be changing

SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    target TEXT NOT NULL,
    problem TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    tile TEXT NOT NULL,
    kind TEXT NOT NULL,
    status TEXT NOT NULL,
    milliseconds REAL,
    p20 REAL,
    p80 REAL,
    first_milliseconds REAL,
    ranked_milliseconds REAL,
    registers INTEGER,
    spill_bytes INTEGER,
    shared_bytes INTEGER,
    instructions INTEGER,
    occupancy REAL,
    error_fp64 REAL,
    detail TEXT NOT NULL,
    versions TEXT NOT NULL,
    source TEXT NOT NULL,
    seconds REAL NOT NULL,
    written REAL NOT NULL,
    UNIQUE (target, problem, algorithm, tile, kind, versions, source)
)
"""
COLUMNS = tuple(re.findall(r"^    (\w+) (?:TEXT|REAL|INTEGER)", SCHEMA, re.MULTILINE))
ADDED = "first_milliseconds"


class StoreError(Exception):
    """A store that cannot be used; the message says why."""


def default_path() -> Path:
    """Where trials are kept: beside the user's own tables."""
    return table.home() / "trials.sqlite"


def _cut_off(path: Path) -> bool:
    """Whether pages are missing at the end that no write-ahead log holds."""
    with path.open("rb") as file:
        header = file.read(HEADER)
        size = file.seek(0, 2)
    if len(header) < HEADER or not header.startswith(b"SQLite format 3\0"):
        return 0 < len(header) < HEADER
    page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
    log = path.with_name(path.name + "-wal")
    return size < pages * (page if page > 1 else 65536) and not log.exists()


def _examine(path: Path) -> None:
    """Refuse a file that is no store of ours, or damaged, without writing to it."""
    if not path.exists():
        return
    if not path.is_file():  # a pipe would be waited for
        raise StoreError("it is no regular file")
    for look in range(LOOKS):
        if not _cut_off(path):
            break
        if look + 1 == LOOKS:
            raise StoreError("it is cut off")
        time.sleep(LOOK_SECONDS)
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, timeout=BUSY_SECONDS, uri=True)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise StoreError(f"it has format {version}, this tuner writes {FORMAT}")
        if not version:
            if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise StoreError("it is another program's database")
            return
        (sound,) = connection.execute("PRAGMA quick_check(1)").fetchone()  # 1 ms for 1500 trials
        if sound != "ok":
            raise StoreError(f"it is damaged: {' '.join(str(sound).split())}")
        wanted = [column for column in COLUMNS if version > 1 or column != ADDED]
        connection.execute(f"SELECT {', '.join(wanted)} FROM trials LIMIT 1").fetchone()


def _open(path: Path | str) -> sqlite3.Connection:
    if isinstance(path, Path):
        _examine(path)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    try:
        connection.execute("PRAGMA trusted_schema = OFF")  # somebody else may have written it
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")  # fails at once where nothing can be written
        connection.execute(SCHEMA)
        if connection.execute("PRAGMA user_version").fetchone() == (1,):
            connection.execute(f"ALTER TABLE trials ADD COLUMN {ADDED} REAL")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _row(trial: Trial) -> tuple[Any, ...]:
    taken = trial.resources
    resources = (
        (taken.registers, taken.spill_bytes, taken.shared_bytes, taken.instructions)
        if taken is not None
        else (None,) * 4
    )
    return (
        trial.target,
        trial.problem.key,
        trial.algorithm,
        str(trial.tile),
        trial.kind,
        trial.status,
        trial.milliseconds,
        trial.p20,
        trial.p80,
        trial.first_milliseconds,
        trial.ranked_milliseconds,
        *resources,
        trial.occupancy,
        trial.error_fp64,
        trial.detail,
        trial.versions,
        trial.source,
        trial.seconds,
        time.time(),
    )


TEXTS = re.findall(r"^    (\w+) TEXT", SCHEMA, re.MULTILINE)


def _trial(row: tuple[Any, ...]) -> Trial:
    """The trial of a row.

    Raises:
        ValueError: for a row that this version of the tuner did not write.
        TypeError: for one that lacks what a trial must have.
    """
    named = dict(zip(COLUMNS, row, strict=True))
    for name, value in named.items():
        number = isinstance(value, (int, float)) and math.isfinite(value)
        if not isinstance(value, str) if name in TEXTS else not (number or value is None):
            raise ValueError(f"{name} is of another type")
    if named["algorithm"] not in ALGORITHMS or named["kind"] not in ("measured", "predicted"):
        raise ValueError("no trial of these kernels")
    resources = None
    if named["registers"] is not None:
        fields = ("registers", "spill_bytes", "shared_bytes", "instructions")
        resources = Resources(*(int(named[field]) for field in fields))
    return Trial(
        target=named["target"],
        problem=Problem.from_key(named["problem"]),
        algorithm=named["algorithm"],
        tile=Tile.parse(named["tile"]),
        kind=cast(Kind, named["kind"]),
        status=named["status"],
        milliseconds=named["milliseconds"],
        p20=named["p20"],
        p80=named["p80"],
        first_milliseconds=named["first_milliseconds"],
        ranked_milliseconds=named["ranked_milliseconds"],
        resources=resources,
        occupancy=named["occupancy"],
        error_fp64=named["error_fp64"],
        detail=named["detail"],
        versions=named["versions"],
        source=named["source"],
        seconds=named["seconds"],
    )


class Store:
    """The trials at ``path``; in memory where that cannot be used (``path`` is then None)."""

    def __init__(self, path: Path | None = None) -> None:
        wanted = path or default_path()
        self.path: Path | None = wanted
        self.trouble = ""  # why the trials are in memory
        try:
            table.check_trusted(wanted)
            table.make_folder(wanted.parent)
            self._connection = _open(wanted)
        except (sqlite3.Error, OSError, StoreError, table.TableError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.trouble = f"{self.path} is left alone and this run's trials are in memory: {error}"
        warnings.warn(self.trouble, stacklevel=3)
        self.path = None
        self._connection = _open(":memory:")

    def add(self, trial: Trial) -> None:
        """Write ``trial``, in place of an earlier one of the same candidate and versions."""
        marks = ", ".join("?" * len(COLUMNS))
        statement = f"INSERT OR REPLACE INTO trials ({', '.join(COLUMNS)}) VALUES ({marks})"
        try:
            self._connection.execute(statement, _row(trial))
        except sqlite3.Error as error:
            if self.path is None:
                raise
            earlier = self._salvage()
            self._connection.close()
            self._lose(error)
            for saved in (*earlier, trial):
                self.add(saved)

    def _salvage(self) -> list[Trial]:
        """What can still be read, so that a run whose disk filled up goes on knowing it."""
        try:
            return list(self.trials())
        except sqlite3.Error:
            return []

    def trials(self, target: str | None = None, kind: Kind | None = None) -> Iterator[Trial]:
        """The trials of one target and kind, or all, oldest first."""
        wanted = {"target": target, "kind": kind}
        yield from self._select({name: value for name, value in wanted.items() if value})

    def find(
        self, target: str, problem: Problem, kind: Kind, versions: str, source: str
    ) -> dict[tuple[str, Tile], Trial]:
        """What is known of ``problem`` from the same kernels and versions, by choice."""
        wanted = {
            "target": target,
            "problem": problem.key,
            "kind": kind,
            "versions": versions,
            "source": source,
        }
        try:
            found = list(self._select(wanted))
        except sqlite3.Error as error:
            if self.path is None:
                raise
            self._connection.close()
            self._lose(error)
            found = []
        return {(trial.algorithm, trial.tile): trial for trial in found}

    def _select(self, wanted: dict[str, Any]) -> Iterator[Trial]:
        where = " AND ".join(f"{name} = ?" for name in wanted) or "1"
        statement = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE {where} ORDER BY rowid"
        strange = 0
        for row in self._connection.execute(statement, tuple(wanted.values())).fetchall():
            try:
                trial = _trial(row)
            except (ValueError, TypeError):
                strange += 1
            else:
                yield trial
        if strange:
            warnings.warn(
                f"{self.path} holds {strange} rows that are no trials of this version: they are "
                "passed over",
                stacklevel=3,
            )

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
