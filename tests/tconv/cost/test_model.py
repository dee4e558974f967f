"""The model answers as the hardware's arithmetic would, and fast enough to rank a space."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tconv.cost.constants import Constants, calibrated
from tconv.cost.estimate import Resources, estimated_resources, resident_programs
from tconv.cost.model import parts_of, predict, predict_all
from tconv.cost.space import candidates
from tconv.cost.work import LINE_BYTES, work_of
from tconv.families import FAMILIES
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile, Tiles

H200 = TARGETS["sm_90"]
VGG = ConvGeometry(64, 256, 56, 56, 256, 3, 3, pad_h=1, pad_w=1)
TILE = Choice("implicit_gemm", Tile(128, 128, 64, stages=3, warps=8))


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [
        (90, 98304, 8, 2),  # 20 warps by registers, 2 programs by shared memory
        (154, 147480, 8, 1),
        (58, 65568, 4, 3),
        (32, 0, 4, 16),  # 64 warps
        (255, 884736, 8, 0),  # every stage of nine taps: does not fit
    ],
)
def test_occupancy(registers: int, shared: int, warps: int, resident: int) -> None:
    assert resident_programs(Resources(registers, 0, shared, 100), warps, H200) == resident


@pytest.mark.parametrize("direction", PASSES)
def test_never_faster_than_the_roofline(direction: Pass) -> None:
    problem = Problem(VGG, direction)
    least = 1e3 * H200.roofline_seconds(VGG.flops, problem.least_bytes, "float16")
    for tile in candidates(problem, H200)[::37]:
        assert predict(problem, tile, H200).milliseconds > least


def test_what_does_not_fit_takes_for_ever() -> None:
    prediction = predict(Problem(VGG, "fprop"), TILE, H200, Resources(90, 0, 300_000, 100))
    assert math.isinf(prediction.milliseconds)
    assert prediction.bound == "does not fit"


def test_a_small_layer_is_bound_by_its_launch() -> None:
    tiny = ConvGeometry(1, 16, 5, 5, 120, 1, 1)
    assert (
        predict(
            Problem(tiny, "fprop"), Choice("implicit_gemm", Tile(16, 64, 16, warps=4)), H200
        ).bound
        == "launch"
    )


def test_more_instructions_and_spills_cost_more() -> None:
    problem = Problem(VGG, "fprop")

    def cost(instructions: int, spilled: int) -> float:
        taken = Resources(128, spilled, 98304, instructions)
        return predict(problem, TILE, H200, taken).milliseconds

    assert cost(100, 0) < cost(600, 0)
    assert cost(100, 0) < cost(100, 512)


def test_exact_products_are_slower() -> None:
    times = []
    for dtype, precision in (("float16", "ieee"), ("float32", "tf32"), ("float32", "ieee")):
        problem = Problem(VGG, "fprop", dtype, precision=precision)  # type: ignore[arg-type]
        times.append(
            predict(problem, Choice("implicit_gemm", Tile(64, 64, 16, 3, 4)), H200).milliseconds
        )
    assert times == sorted(times)


def test_partial_waves_are_counted() -> None:
    prediction = predict(Problem(VGG, "fprop"), TILE, H200)
    programs = (64 * 56 * 56 // 128) * 2
    assert prediction.programs == programs
    resident = resident_programs(estimated_resources(TILE, Problem(VGG, "fprop"), H200), 8, H200)
    assert prediction.waves == pytest.approx(programs / (resident * H200.processors))
    assert prediction.occupancy == pytest.approx(resident * 8 / 64)


def test_ranks_every_tile_of_a_space() -> None:
    problem = Problem(VGG, "fprop")
    times = predict_all(problem, candidates(problem, H200), H200)
    assert len(times) > 2000
    assert times.min() > 0
    assert len(set(times.tolist())) > 100  # it tells tiles apart


# What users of groups run, and whether a group packs: ResNeXt 32x4d, ShuffleNet's 8, AlexNet's 2.
GROUPED_LAYERS = {
    "resnext-32x4d": ConvGeometry(32, 128, 56, 56, 128, 3, 3, pad_h=1, pad_w=1, groups=32),
    "resnext-stride-2": ConvGeometry(32, 256, 56, 56, 256, 3, 3, 2, 2, 1, 1, groups=32),
    "shufflenet": ConvGeometry(32, 384, 28, 28, 384, 1, 1, groups=8),
    "alexnet": ConvGeometry(64, 96, 27, 27, 256, 5, 5, pad_h=2, pad_w=2, groups=2),
}


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("name", GROUPED_LAYERS)
def test_groups_are_predicted_no_slower_than_zeros(name: str, direction: Pass) -> None:
    """The best tile of the grouped layer, against the best of the dense one that holds it."""
    shape = GROUPED_LAYERS[name]
    times = []
    for layer in (shape, dataclasses.replace(shape, groups=1)):
        problem = Problem(layer, direction)
        times.append(predict_all(problem, candidates(problem, H200), H200).min())
    assert times[0] <= times[1]


@pytest.mark.parametrize("direction", PASSES)
def test_depthwise_is_predicted_near_the_memory(direction: Pass) -> None:
    shape = ConvGeometry(32, 144, 56, 56, 144, 3, 3, pad_h=1, pad_w=1, groups=144)
    problem = Problem(shape, direction)
    tiles = candidates(problem, H200)
    best = tiles[predict_all(problem, tiles, H200).argmin()]
    assert best.family == "depthwise"
    found = predict(problem, best, H200)
    if direction == "wgrad":  # whose instructions take longer than the memory
        assert found.bound == "issue"
        assert found.parts["issue"] < 1.6 * found.parts["DRAM"]
    else:
        assert found.bound == "DRAM"


def test_sums_across_threads_cost_issue_slots_and_time() -> None:
    """Once a program, not once a step; a program alone waits for them."""
    problem, target = Problem(ConvGeometry(64, 6, 14, 14, 16, 5, 5), "wgrad"), TARGETS["sm_90"]
    tiles = Tiles.of([Tile(4, 8, 128, stages=1, warps=4)])
    work = work_of(problem, FAMILIES["direct"], tiles, target)
    assert work.steps[0] > 10
    assert work.end_instructions[0] > work.instructions[0]
    known = calibrated(target).constants
    without = dataclasses.replace(work, end_instructions=0 * work.end_instructions)
    parts, fewer = parts_of(work, target, known), parts_of(without, target, known)
    more = {name for name in parts if parts[name][0] > fewer[name][0]}
    assert more == {"issue", "ends"}
    share = work.end_instructions / (work.steps * work.instructions)
    assert parts["issue"] == pytest.approx(fewer["issue"] * (1 + share))


def test_results_of_a_strided_dgrad_are_scattered_and_wider_tiles_scatter_less() -> None:
    tiles = Tiles.of([Tile(128, 64, 32), Tile(128, 256, 32)])
    target = TARGETS["sm_80"]
    strided = Problem(ConvGeometry(8, 256, 56, 56, 512, 1, 1, 2, 2), "dgrad")
    plain = Problem(ConvGeometry(8, 256, 56, 56, 512, 1, 1), "dgrad")
    family = FAMILIES["implicit_gemm"]
    runs = work_of(strided, family, tiles, target).scattered_runs
    assert runs.tolist() == [4 * 8 * 56 * 56, 8 * 56 * 56]
    assert not work_of(plain, family, tiles, target).scattered_runs.any()


def test_short_runs_take_whole_lines_and_operands_beyond_the_tlbs_take_longer() -> None:
    tiles, target = Tiles.of([Tile(64, 64, 16), Tile(64, 64, 64)]), TARGETS["sm_80"]
    family, known = FAMILIES["implicit_gemm"], Constants()
    near = Problem(ConvGeometry(1, 256, 64, 64, 256, 1, 1), "fprop")
    far = Problem(ConvGeometry(512, 4096, 64, 64, 256, 1, 1), "fprop")
    lines = work_of(near, family, tiles, target).fetched_lines * LINE_BYTES
    fetched = work_of(near, family, tiles, target).fetched_bytes
    assert (lines / fetched).round(6).tolist() == [4, 1]
    work = work_of(far, family, tiles, target)
    slow, fast = (
        parts_of(work, target, dataclasses.replace(known, translation=value))["L2"]
        for value in (4.0, 0.01)
    )
    assert (slow > fast).all()
