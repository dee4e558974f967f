"""Every trial, failures included, in one SQLite file that survives a kill.

Each trial is a transaction of its own under a write-ahead log. A file that cannot be used is
named in a warning and left alone: the run goes on, and its trials live in memory.
"""

from __future__ import annotations

import re
import sqlite3
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from autotune.trial import Trial
from tconv import table
from tconv.cost.estimate import Resources
from tconv.problem import Problem
from tconv.table import Kind
from tconv.tile import Tile

FORMAT = 1  # PRAGMA user_version; 0 is a file that was just made
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction

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


class StoreError(Exception):
    """A store that cannot be used; the message says why."""


def default_path() -> Path:
    """Where trials are kept: beside the user's own tables."""
    return table.home() / "trials.sqlite"


def _open(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise StoreError(f"it has format {version}, this tuner writes {FORMAT}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")  # fails at once where nothing can be written
        connection.execute(SCHEMA)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
        connection.execute(f"SELECT {', '.join(COLUMNS)} FROM trials LIMIT 1").fetchone()
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


def _trial(row: tuple[Any, ...]) -> Trial:
    named = dict(zip(COLUMNS, row, strict=True))
    resources = None
    if named["registers"] is not None:
        fields = ("registers", "spill_bytes", "shared_bytes", "instructions")
        resources = Resources(*(named[field] for field in fields))
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
            wanted.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _open(wanted)
        except (sqlite3.Error, OSError, StoreError) as error:
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
        except (sqlite3.Error, ValueError):
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
        return {(trial.algorithm, trial.tile): trial for trial in self._select(wanted)}

    def _select(self, wanted: dict[str, Any]) -> Iterator[Trial]:
        where = " AND ".join(f"{name} = ?" for name in wanted) or "1"
        statement = f"SELECT {', '.join(COLUMNS)} FROM trials WHERE {where} ORDER BY rowid"
        for row in self._connection.execute(statement, tuple(wanted.values())).fetchall():
            yield _trial(row)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
