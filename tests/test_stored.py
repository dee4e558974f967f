"""Tests that trials and winners written by tconv 0.1.0 (``tests/stored``) are still read."""

from __future__ import annotations

import json
import shutil
import sqlite3
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.trial_store import Store
from tconv import select
from tconv.cost.constants import (
    calibrated,
    read_calibrated,
    shipped_constants,
    user_constants,
    write_calibrated,
)
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.winners import read_table, user_table

STORED = Path(__file__).parent / "stored"
TARGET = TARGETS["sm_90"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A copy of the stored trials, because opening may convert the format."""
    return Path(shutil.copy(STORED / "trials.sqlite", tmp_path))


def test_every_trial_is_read(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM trials ORDER BY rowid").fetchall()
    with warnings.catch_warnings(), Store(database) as store:
        warnings.simplefilter("error")
        trials = list(store.trials())
    assert len(trials) == len(rows) == 30
    assert len({trial.family for trial in trials}) == 6
    for trial, row in zip(trials, rows, strict=True):
        assert trial.family == row["algorithm"]
        assert (trial.problem.key, str(trial.tile)) == (row["problem"], row["tile"])
        for name in ("target", "kind", "status", "milliseconds", "p20", "p80", "turn",
                     "first_milliseconds", "ranked_milliseconds", "occupancy", "error_fp64",
                     "detail", "versions", "source", "seconds"):  # fmt: skip
            assert getattr(trial, name) == row[name], name
        assert trial.resources is not None
        assert trial.resources.registers == row["registers"]


def test_new_trials_are_added_to_the_old_ones(database: Path) -> None:
    with Store(database) as store:
        (first, *others) = store.trials()
        store.add(first)  # the same candidate replaces the old row
    with Store(database) as store:
        assert store.path == database
        assert list(store.trials()) == [*others, first]


def test_winners_are_used() -> None:
    winners = json.loads((STORED / "sm_90.json").read_text())["winners"]
    found = read_table(STORED / "sm_90.json")
    assert found.keys() == winners.keys()
    user_table("sm_90").parent.mkdir(parents=True)
    shutil.copy(STORED / "sm_90.json", user_table("sm_90"))
    select.forget()
    try:
        for key, entry in winners.items():
            choice = select.choose(Problem.from_key(key), TARGET)
            assert choice == select.Choice(entry["algorithm"], found[key].tile)
            assert choice.ground == ("tuned" if entry["kind"] == "measured" else "predicted")
    finally:
        select.forget()


def test_shipped_constants_replace_those_of_the_earlier_model_until_refitted() -> None:
    """They were fitted to another formula and are not valid in the new one."""
    path = user_constants("sm_90")
    path.parent.mkdir(parents=True)
    shutil.copy(STORED / "sm_90.constants.json", path)
    calibrated.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"tconv 0\.1\.0's cost model.*autotune calibrate"):
            known = calibrated(TARGET)
        assert known == read_calibrated(shipped_constants("sm_90"))
        refitted = replace(known, untuned="neighbour")
        write_calibrated(path, "sm_90", refitted)
        assert calibrated(TARGET) == refitted
    finally:
        calibrated.cache_clear()
