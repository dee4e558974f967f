"""Store every trial, failures included, in one SQLite file that survives a killed process.

Each trial is one transaction under a write-ahead log. If the file is unusable, warn, leave it
untouched and keep the run's trials in memory.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast, get_args

from autotune.trial import Check, Trial
from autotune.trial_database import COLUMNS, OPTIONAL_TEXTS, TEXTS, StoreError, connect, view
from tconv import winners
from tconv.cost.estimate import Resources
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.tile import Tile
from tconv.winners import Kind


def default_path() -> Path:
    """Return the path of the trial store, beside the user's own tables."""
    return winners.home() / "trials.sqlite"


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
        trial.family,
        str(trial.tile),
        trial.kind,
        trial.status,
        trial.milliseconds,
        trial.p20,
        trial.p80,
        trial.first_milliseconds,
        trial.turn,
        trial.ranked_milliseconds,
        *resources,
        trial.occupancy,
        trial.error_fp64,
        trial.checked,
        None if trial.counters is None else json.dumps(trial.counters),
        trial.detail,
        trial.versions,
        trial.source,
        trial.seconds,
        time.time(),
    )


def _trial(row: tuple[Any, ...]) -> Trial:
    """Return the trial in a row.

    Raises:
        ValueError: if this version of the tuner did not write the row.
        TypeError: if it lacks a required value.
    """
    named = dict(zip(COLUMNS, row, strict=True))
    for name, value in named.items():
        number = isinstance(value, (int, float)) and math.isfinite(value)
        text = name in TEXTS or (name in OPTIONAL_TEXTS and value is not None)
        if not isinstance(value, str) if text else not (number or value is None):
            raise ValueError(f"{name} has the wrong type")
    named["family"] = named.pop("algorithm")  # the column's name in files since 0.1.0
    if named["family"] not in FAMILIES or named["kind"] not in ("measured", "predicted"):
        raise ValueError("not a trial of these kernels")
    resources = None
    if named["registers"] is not None:
        fields = ("registers", "spill_bytes", "shared_bytes", "instructions")
        resources = Resources(*(int(named[field]) for field in fields))
    return Trial(
        target=named["target"],
        problem=Problem.from_key(named["problem"]),
        family=named["family"],
        tile=Tile.parse(named["tile"]),
        kind=cast(Kind, named["kind"]),
        status=named["status"],
        milliseconds=named["milliseconds"],
        p20=named["p20"],
        p80=named["p80"],
        first_milliseconds=named["first_milliseconds"],
        turn=None if named["turn"] is None else int(named["turn"]),
        ranked_milliseconds=named["ranked_milliseconds"],
        resources=resources,
        occupancy=named["occupancy"],
        error_fp64=named["error_fp64"],
        checked=_checked(named),
        counters=None if named["counters"] is None else dict(json.loads(named["counters"])),
        detail=named["detail"],
        versions=named["versions"],
        source=named["source"],
        seconds=named["seconds"],
    )


def _checked(named: dict[str, Any]) -> Check:
    """Return how a row's result was checked; rows of earlier formats imply it by their kind."""
    if named["checked"] is None:
        if named["error_fp64"] is None:
            return ""
        return "gpu" if named["kind"] == "measured" else "interpreted"
    if named["checked"] not in get_args(Check):
        raise ValueError("unknown way of checking")
    return cast(Check, named["checked"])


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
            self._lose(error)
        except (sqlite3.Error, OSError) as error:
            self._lose(error, self._known(wanted))

    def _known(self, path: Path) -> list[Trial]:
        """Return the trials of a store that cannot be written to."""
        try:
            with closing(view(path)) as self._connection:
                return self._salvage()
        except (sqlite3.Error, OSError, StoreError):
            return []

    def _lose(self, error: Exception, known: Iterable[Trial] = ()) -> None:
        self.trouble = f"{self.path} is left alone and this run's trials are in memory: {error}"
        warnings.warn(self.trouble, stacklevel=3)
        self.path = None
        self._connection = connect(":memory:")
        for trial in known:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        """Write ``trial``, replacing an earlier one of the same candidate and versions."""
        marks = ", ".join("?" * len(COLUMNS))
        statement = f"INSERT OR REPLACE INTO trials ({', '.join(COLUMNS)}) VALUES ({marks})"
        try:
            self._connection.execute(statement, _row(trial))
        except sqlite3.Error as error:
            if self.path is None:
                raise
            known = self._salvage()
            self._connection.close()
            self._lose(error, [*known, trial])

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
            self._lose(error)
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
