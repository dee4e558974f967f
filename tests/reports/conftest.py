"""A golden report: two layers, three passes, a tuner's story with failures in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autotune.trial import Trial
from reports.collect import Tables, collect
from tconv.cost.estimate import Resources
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Tile

LENET_C3 = ConvGeometry(64, 6, 14, 14, 16, 5, 5)
ODD = ConvGeometry(3, 6, 17, 19, 10, 3, 2, 2, 1, 1, 0, 1, 2, 2)  # in no suite
TILES = ("64x16x16 s2 w4 g8 k1", "32x16x16 s2 w4 g8 k1", "16x16x16 s1 w2 g8 k1")


def golden_trials() -> list[Trial]:
    trials = []
    for number, shape in enumerate((ODD, LENET_C3)):
        for turn, direction in enumerate(PASSES):
            problem = Problem(shape, direction)
            for place, tile in enumerate(TILES):
                ok = place < 2
                trials.append(
                    Trial(
                        "sm_90",
                        problem,
                        "implicit_gemm",
                        Tile.parse(tile),
                        "predicted",
                        "ok" if ok else "spills",
                        0.0123456 * (number + 1) * (turn + 1) / (place + 1) if ok else None,
                        ranked_milliseconds=0.01 * (place + 1),
                        resources=Resources(40 + place, 0 if ok else 64, 2048, 80),
                        occupancy=0.5,
                        error_fp64=0.000246813 if ok else None,
                        versions="torch 2.13.0, triton 3.7.1",
                        source="abc",
                    )
                )
    return trials


@pytest.fixture(scope="session")
def trials() -> list[Trial]:
    return golden_trials()


@pytest.fixture(scope="session")
def tables(trials: list[Trial]) -> Tables:
    made = collect(trials, TARGETS["sm_90"], "predicted", ("python -m reports render",))
    return replace(made, about=replace(made.about, date="2026-01-02"))
