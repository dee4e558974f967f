"""Tests of the cases that a bench run measures."""

from __future__ import annotations

from reports.bench.cases import ConvCase, PoolCase, cases
from reports.bench.run import SUITES, default_work
from tconv.geometry import PASSES


def test_every_layer_and_pass_of_vgg16_with_its_epilogues_and_pools() -> None:
    found = list(cases(["vgg16"], PASSES, ["float16"], 64))
    convs = [case for case in found if isinstance(case, ConvCase)]
    pools = [case for case in found if isinstance(case, PoolCase)]
    assert len([case for case in convs if not case.epilogue]) == 9 * 3
    assert [c.layer for c in convs if c.epilogue == "+relu+pool"] == [
        "features.2", "features.7", "features.12", "features.19", "features.24"
    ]  # fmt: skip
    assert len([case for case in convs if case.epilogue == "+relu"]) == 9
    assert {case.problem.direction for case in pools} == {"fprop", "dgrad"}
    assert [case.layer for case in pools][::2] == [f"features.{n}" for n in (4, 9, 16, 23, 30)]


def test_accurate_float32_repeats_no_pool() -> None:
    def pools(dtype: str) -> list[PoolCase]:
        return [c for c in cases(["lenet5"], PASSES, [dtype], 2) if isinstance(c, PoolCase)]

    assert pools("tf32x3") == []
    assert {case.problem.dtype for case in pools("tf32")} == {"float32"}


def test_everything_that_the_goals_need_is_measured() -> None:
    work = default_work()
    assert {case.suite for case in work.cases} == set(SUITES)
    assert {(n.model, n.mode, n.batch) for n in work.networks} >= {
        ("vgg16", "inference", 64), ("vgg16", "inference", 1), ("vgg16", "training", 64),
        ("lenet5", "training", 64), ("mobilenet_v2", "inference", 64),
    }  # fmt: skip
