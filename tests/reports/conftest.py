"""Fixtures of golden reports: two layers, three passes, and trials that include failures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from attrs import evolve

from autotune.trial import Trial
from reports.collect import collect
from reports.rows import CauseRow, MemoryRow, NetworkRow, OperatorRow, rounded
from reports.tables import Tables
from tconv import svg
from tconv.cost.estimate import Resources
from tconv.geometry import PASSES, ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Tile

LENET_C3 = ConvGeometry(64, 6, 14, 14, 16, 5, 5)
ODD = ConvGeometry(3, 6, 17, 19, 10, 3, 2, 2, 1, 1, 0, 1, 2, 2)  # not in any suite
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


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave figures empty, for tests that look at text alone: drawing a report takes seconds."""
    monkeypatch.setattr(svg, "as_svg", lambda figure, name, title: f'<svg id="{name}"></svg>')


@pytest.fixture(scope="session")
def trials() -> list[Trial]:
    return golden_trials()


@pytest.fixture(scope="session")
def tables(trials: list[Trial]) -> Tables:
    made = collect(trials, TARGETS["sm_90"], "predicted", ("python -m reports render",))
    return replace(made, about=replace(made.about, date="2026-01-02"))


def measured(tables: Tables) -> Tables:
    """The golden report with made-up measurements of every kind, including losses."""
    layers = []
    for number, row in enumerate(tables.layers):
        ms = row.tconv_ms or 1.0
        layers.append(
            evolve(
                row, kind="measured",
                tconv_ms_p20=rounded(0.95 * ms), tconv_ms_p80=rounded(1.1 * ms),
                cudnn_nhwc_ms=rounded(ms * (0.5 + 0.3 * number)), cudnn_nchw_ms=rounded(2 * ms),
                cudnn_error_fp64=0.0003579,
            )
        )  # fmt: skip
    c3 = next(row for row in layers if row.layer == "c3")
    fused = evolve(c3, suite="vgg16+relu+pool", tconv_ms=0.0777, cudnn_nhwc_ms=0.1432)
    pool = evolve(
        c3, layer="s4", filters=None, filter_h=2, filter_w=2, stride="2", family="max_pool",
        tile="64x16x1 s1 w4 g8 k1", tflops=None, tconv_ms=0.00321, cudnn_nhwc_ms=0.00555,
    )  # fmt: skip
    about = replace(
        tables.about, kind="measured", target="nvidia-made-up", product="NVIDIA Made-up",
        ceilings={"copy": 4321.0, "float16": 765.0},
        facts={"Driver": "570.99", "cuDNN": "9.10.2", "Clocks": "SM 1980 MHz"},
        notes=("vgg16 training, batch 64, float16: torch.compile did not run",),
    )  # fmt: skip
    return replace(
        tables, about=about, layers=[*layers, fused, pool],
        trials=[evolve(row, kind="measured") for row in tables.trials],
        networks=[
            NetworkRow("lenet5", mode, 64, "float16", backend, ms, 64e3 / ms, peak)
            for mode in ("inference", "training")
            for backend, ms, peak in (("tconv", 0.125, 12.5), ("tconv graphed", 0.025, 13.5),
                                      ("torch", 0.16, 22.5), ("torch graphed", 0.032, None))
        ],
        operators=[
            OperatorRow("lenet5", "inference", 64, "float16", backend, operator, ms)
            for backend in ("tconv", "torch")
            for operator, ms in (("convolution", 0.0567), ("pool", 0.0345), ("other", 0.0123))
        ],
        memory=[MemoryRow("lenet5", "c3", "convolution", "float16", 64, 3.25, 4.75)],
        causes=[CauseRow("lenet5", "c3", "fprop", "float16", "six channels fill no load")],
    )  # fmt: skip
