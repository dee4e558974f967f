"""Store every trial, failures included, in one SQLite file that survives a killed process.

Each trial is one transaction under a write-ahead log. If the file is unusable, warn, leave it
untouched and keep the run's trials in memory.
"""

from __future__ import annotations

import json
import operator
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from autotune.trial import Trial
from autotune.trial_database import COLUMNS, StoreError, connect, open_read_only
from tconv import winners
from tconv.cost.estimate import Resources
from tconv.extras import extra
from tconv.problem import Problem
from tconv.tile import Tile
from tconv.winners import Kind

with extra("tune"):
    import attrs

FAMILY = "algorithm"  # the column's name in files since 0.1.0
RESOURCES = [resource.name for resource in fields(Resources)]


def default_path() -> Path:
    """Return the path of the trial store, beside the user's own tables."""
    return winners.home() / "trials.sqlite"


def _row(trial: Trial) -> dict[str, Any]:
    """Return the values of ``trial`` by column."""
    taken = trial.resources
    return {
        **attrs.asdict(trial, recurse=False),
        **{name: None if taken is None else getattr(taken, name) for name in RESOURCES},
        "problem": trial.problem.key,
        FAMILY: trial.family,
        "tile": str(trial.tile),
        "counters": None if trial.counters is None else json.dumps(trial.counters),
        "written": time.time(),
    }


def _trial(row: tuple[Any, ...]) -> Trial:
    """Return the trial in a row.

    Raises:
        ValueError: if this version of the tuner did not write the row.
        TypeError: if a value has the wrong type.
    """
    named = dict(zip(COLUMNS, row, strict=True))
    del named["written"]
    taken, counters = [named.pop(name) for name in RESOURCES], named.pop("counters")
    if named["checked"] is None:  # rows of earlier formats imply it by their kind
        way = "gpu" if named["kind"] == "measured" else "interpreted"
        named["checked"] = "" if named["error_fp64"] is None else way
    return Trial(
        family=named.pop(FAMILY),
        problem=Problem.from_key(named.pop("problem")),
        tile=Tile.parse(named.pop("tile")),
        resources=None if taken[0] is None else Resources(*map(operator.index, taken)),
        counters=None if counters is None else json.loads(counters),
        **named,
    )


class Store:
    """The trials at ``path``; if that is unusable, in memory with ``path`` None.

    A store that is readable but not writable is copied into memory.
    """

    def __init__(self, path: Path | None = None) -> None:
        wanted = path or default_path()
        self.path: Path | None = wanted
        self.trouble = ""  # why the trials are in memory
        try:
            winners.check_trusted(wanted)
            winners.make_folder(wanted.parent)
            self._connection = connect(wanted)
        except (StoreError, winners.TableError) as error:
            self._move_to_memory(error)
        except (sqlite3.Error, OSError) as error:
            self._move_to_memory(error, self._readable(wanted))

    def _readable(self, path: Path) -> list[Trial]:
        """Return the trials of a store that cannot be written to."""
        try:
            with closing(open_read_only(path)) as self._connection:
                return self._salvage()
        except (sqlite3.Error, OSError, StoreError):
            return []

    def _move_to_memory(self, error: Exception, known: Iterable[Trial] = ()) -> None:
        self.trouble = f"{self.path} is left alone and this run's trials are in memory: {error}"
        warnings.warn(self.trouble, stacklevel=3)
        self.path = None
        self._connection = connect(":memory:")
        for trial in known:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Write ``trial``, replacing an earlier one of the same candidate and versions."""
        marks = ", ".join(f":{column}" for column in COLUMNS)
        statement = f"INSERT OR REPLACE INTO trials ({', '.join(COLUMNS)}) VALUES ({marks})"
        try:
            self._connection.execute(statement, _row(trial))
        except sqlite3.Error as error:
            if self.path is None:
                raise
            known = self._salvage()
            self._connection.close()
            self._move_to_memory(error, [*known, trial])

    def _salvage(self) -> list[Trial]:
        """Return the trials that can still be read, so that a run with a full disk keeps them."""
        try:
            return list(self.trials())
        except sqlite3.Error:
            return []

    def trials(self, target: str | None = None, kind: Kind | None = None) -> Iterator[Trial]:
        """Yield the trials of one target and kind, or all, oldest first."""
        wanted = {"target": target, "kind": kind}
        yield from self._select({name: value for name, value in wanted.items() if value})

    def find(
        self, target: str, problem: Problem, kind: Kind, versions: str, source: str
    ) -> dict[tuple[str, Tile], Trial]:
        """Return the stored trials of ``problem`` with the same kernels and versions, by choice."""
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
            self._move_to_memory(error)
            found = []
        return {(trial.family, trial.tile): trial for trial in found}

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
                f"{self.path} holds {strange} rows that are not trials of this version; they are "
                "skipped",
                stacklevel=3,
            )

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
