"""Files that tconv 0.1.0 wrote (in ``tests/stored``) are still read whole, without a warning."""

from __future__ import annotations

import json
import shutil
import sqlite3
import warnings
from pathlib import Path

import pytest

from autotune.trial_store import Store
from tconv import select
from tconv.cost.constants import read_calibrated, user_constants
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.winners import read_table, user_table

STORED = Path(__file__).parent / "stored"
TARGET = TARGETS["sm_90"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A copy, for opening a store may take it over to a newer format."""
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


def test_new_trials_go_beside_the_old_ones(database: Path) -> None:
    with Store(database) as store:
        (first, *others) = store.trials()
        store.add(first)  # the same candidate: in place of the old row
    with Store(database) as store:
        assert store.path == database
        assert list(store.trials()) == [*others, first]


def test_winners_and_constants_are_in_force() -> None:
    winners = json.loads((STORED / "sm_90.json").read_text())["winners"]
    found = read_table(STORED / "sm_90.json")
    assert found.keys() == winners.keys()
    user_table("sm_90").parent.mkdir(parents=True)
    shutil.copy(STORED / "sm_90.json", user_table("sm_90"))
    shutil.copy(STORED / "sm_90.constants.json", user_constants("sm_90"))
    select.forget()
    try:
        for key, entry in winners.items():
            choice = select.choose(Problem.from_key(key), TARGET)
            assert choice == select.Choice(entry["algorithm"], found[key].tile)
            assert choice.ground == ("tuned" if entry["kind"] == "measured" else "predicted")
    finally:
        select.forget()
    known = read_calibrated(STORED / "sm_90.constants.json")
    assert known is not None
    assert (known.constants.matrix_share, known.untuned) == (0.71, "neighbour")
