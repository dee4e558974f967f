"""Tests of turning tiles into trials."""

from __future__ import annotations

from types import SimpleNamespace

from attrs import evolve

from autotune.evaluate import Bench, Setting
from autotune.search import DEFAULT_EFFORT
from autotune.trial_store import Store
from tconv.cost.estimate import Resources
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tests.autotune.test_trial_store import PROBLEM, TRIAL


def test_a_program_that_no_multiprocessor_has_registers_for_fails() -> None:
    tile = Tile(64, 32, 16, stages=2, warps=16)
    earlier = evolve(TRIAL, tile=tile, resources=Resources(255, 0, 98304, 97))
    setting = Setting(TARGETS["sm_90"], "predicted", TRIAL.versions, TRIAL.source, DEFAULT_EFFORT)
    compilers = SimpleNamespace(run=lambda tasks, seconds: [])
    with Store() as store:
        store.add(earlier)
        bench = Bench(setting, store, compilers, None)  # type: ignore[arg-type]
        (trial,) = bench.try_all(PROBLEM, [Choice(earlier.family, tile)])
        assert (trial.status, trial.milliseconds) == ("does not fit", None)
        assert list(store.trials()) == [trial]
