"""What a tile costs, in milliseconds, from arithmetic alone.

A program's loop is bound by whichever of its resources takes longest for one step: the matrix
unit, the issue of instructions, shared memory, L2, or the latency that too shallow a pipeline
leaves open. Programs run in waves, as many at once as registers, shared memory and warps
allow. What DRAM must deliver bounds the whole.

Its constants, each with a unit, stand in ``tconv.cost.constants``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from tconv.cost.constants import Constants, calibrated
from tconv.cost.estimate import Resources, estimated_resources, resident_programs
from tconv.families import FAMILIES, MatmulShape, matmul_shape
from tconv.families.demand import LEAST_DOT, WGMMA_ROWS, accumulator_words, uses_wgmma
from tconv.geometry import cdiv
from tconv.problem import ITEMSIZE, Problem
from tconv.target import Target
from tconv.tile import Choice, Tile

MMA_REUSE = 64  # outputs a side that a warp holds in registers with mma.sync or MFMA


@dataclass(frozen=True)
class Round:
    """``count`` waves alike: programs on each processor at once, and processors at work."""

    count: int
    resident: int
    processors: int


@dataclass(frozen=True)
class Prediction:
    """The model's account of one tile. ``parts`` are the milliseconds each resource needs."""

    milliseconds: float
    bound: str
    occupancy: float
    waves: float
    programs: int
    parts: dict[str, float]


def _shared_traffic(tile: Tile, problem: Problem, target: Target) -> float:
    """Bytes that a step reads from shared memory for the matrix unit, and writes to it."""
    m, n, k = tile.block_m, tile.block_n, tile.block_k
    rows, columns = (WGMMA_ROWS, n) if uses_wgmma(tile, problem, target) else (MMA_REUSE,) * 2
    reads = m * k * max(1.0, n / columns) + k * n * max(1.0, m / rows)
    return (reads + m * k + k * n) * problem.itemsize


def _step_clocks(
    choice: Choice,
    problem: Problem,
    product: MatmulShape,
    target: Target,
    resources: Resources,
    resident: int,
    processors: int,
    known: Constants,
) -> dict[str, float]:
    """Clocks for one step of each of ``resident`` programs on one processor, by resource.

    ``processors`` are those at work: the L2's rate is shared among them.
    """
    family, tile = FAMILIES[choice.family], choice.tile
    issued = family.issued(problem, tile)
    products = tile.block_m * tile.block_n * tile.block_k * product.step_taps
    flops = 2.0 * products * resident
    # Below 64 rows, or a whole warp group, sm_90 falls back to an instruction of half the rate.
    newer = target.sm >= 90
    arithmetic = problem.arithmetic
    if not family.matrix_unit:
        arithmetic = "float64" if problem.dtype == "float64" else "float32"
    tensor = arithmetic not in ("float32", "float64")
    narrow = 2.0 if newer and tensor and not uses_wgmma(issued, problem, target) else 1.0
    peak = target.peak_tflops[arithmetic] * 1e3 / target.processors / target.clock_ghz
    l2_rate = target.l2_gbps * known.l2_share / processors / target.clock_ghz
    l2_rate = min(l2_rate, known.l2_bytes_per_clock)
    fetched = product.fetched_bytes(problem, tile)
    instructions = resources.instructions * tile.warps * resident
    deep = max(1, tile.stages - 1)
    alone = resources.instructions * known.clocks_per_instruction
    alone += resources.spill_bytes * known.spill_clocks
    open_latency = known.memory_latency_clocks / deep
    if reuse := family.l1_reuse(problem) if family.l1_reuse else 0:
        open_latency = known.l1_latency_clocks + known.memory_latency_clocks / reuse
    if family.matrix_unit:
        l1_clocks = _shared_traffic(issued, problem, target) / known.shared_bytes_per_clock
    elif family.l1_lines is not None:
        l1_clocks = family.l1_lines(problem, tile, target)  # a clock each
    else:
        l1_clocks = fetched / known.shared_bytes_per_clock
    return {
        "tensor cores" if tensor else "multiply-adds": flops * narrow / (peak * known.matrix_share),
        "issue": instructions / (known.issue_per_clock * known.issue_share),
        "shared memory": l1_clocks * resident,
        "L2": fetched * resident / l2_rate,
        "latency": max(alone, open_latency) if tile.stages > 1 else alone + open_latency,
    }


def _dram_bytes(
    tile: Tile, problem: Problem, product: MatmulShape, target: Target, wave: int, known: Constants
) -> float:
    """Bytes between DRAM and L2: each tensor once, and again what L2 cannot keep.

    Programs of one wave share operands. ``swizzle`` rows of tiles are walked together, so a
    wave touches about ``rows`` row panels and ``columns`` column panels.
    """
    if product.streamed:
        return float(problem.least_bytes)
    shape, itemsize = problem.geometry, problem.itemsize
    keeps = target.l2_bytes * known.dram_l2_share
    least = float(problem.least_bytes)
    if problem.direction == "wgrad":
        # All tiles of one split walk the same pixels at the same time: each read once, unless
        # more tiles than a wave holds come round for a second look.
        panels = product.row_tiles(tile) * product.column_tiles(tile) * product.instances
        looks = math.ceil(panels / max(1, wave))
        operands = (shape.x_elements + shape.y_elements) * itemsize
        return least + (looks - 1) * operands
    rows = min(product.row_tiles(tile), tile.swizzle)
    columns = product.column_tiles(tile)
    panel = product.rows * product.instances * product.depth * itemsize  # the gathered tensor
    filters = shape.w_elements * itemsize
    stripe = rows * tile.block_m * product.depth * itemsize
    again = 0.0
    if stripe > keeps and columns > 1:  # a stripe is gone before its next column comes
        again += (columns - 1) * panel
    if filters > keeps:  # the filters are read again for each stripe
        again += (product.row_tiles(tile) / max(rows, wave / columns) - 1) * filters
    return least + max(0.0, again)


@lru_cache(maxsize=4096)
def _helpers(
    problem: Problem, family: str, block_k: int, splits: int, target: Target
) -> tuple[int, int]:
    """Launches of a plan, and the bytes of the memory that they hand on to each other."""
    tile = Tile(LEAST_DOT, LEAST_DOT, block_k, splits=splits)
    plan = FAMILIES[family].plan(problem, tile, target)
    handed_on = plan.buffers.values()
    return len(plan.launches), sum(buffer.elements * ITEMSIZE[buffer.dtype] for buffer in handed_on)


def _helper_milliseconds(handed_on: int, target: Target, known: Constants) -> float:
    """Operands brought into shape, or parts of a result: each written once and read once."""
    if handed_on > target.l2_bytes * known.dram_l2_share:
        return 2e3 * target.memory_seconds(handed_on) / known.dram_share
    return 2e-6 * handed_on / (target.l2_gbps * known.l2_share)


def _epilogue_clocks(choice: Choice, problem: Problem, target: Target) -> float:
    """Clocks to write a program's outputs, each processor at its share of the L2."""
    tile = choice.tile
    written = FAMILIES[choice.family].results(problem, tile) * problem.itemsize
    if tile.splits > 1:  # parts are written as they were summed
        written = tile.block_m * tile.block_n * 4 * accumulator_words(problem)
    return written * target.processors * target.clock_ghz / target.l2_gbps


def predict(
    problem: Problem,
    choice: Choice,
    target: Target,
    resources: Resources | None = None,
    constants: Constants | None = None,
) -> Prediction:
    """Milliseconds of ``problem`` with ``choice`` on ``target``, and what bounds them.

    ``resources`` are those of the compiled code; without them they are estimated. ``constants``
    are by default those known of ``target``.
    """
    tile = choice.tile
    known = constants or calibrated(target.name).constants
    product = matmul_shape(problem, choice.family)
    estimate = estimated_resources(choice, problem, target)
    if resources is None:
        resources = estimate
    elif resources.instructions == 0:  # no loop was found: it was unrolled
        resources = replace(resources, instructions=estimate.instructions)
    resident = resident_programs(resources, tile.warps, target)
    if tile.persistent:
        resident = min(resident, tile.persistent)
    programs = product.programs(tile)
    if resident == 0:
        return Prediction(math.inf, "does not fit", 0.0, math.inf, programs, {})
    wave = resident * target.processors
    full, rest = divmod(programs, wave)
    rounds = [Round(full, resident, target.processors)] if full else []
    if rest:  # the last wave is spread over the processors
        busiest = cdiv(rest, target.processors)
        rounds.append(Round(1, busiest, min(rest, target.processors)))
    parts = _time_parts(problem, choice, product, target, resources, rounds, known)
    dram = _dram_bytes(tile, problem, product, target, wave, known)
    parts["DRAM"] = 1e3 * target.memory_seconds(dram) / known.dram_share
    launches, handed_on = _helpers(problem, choice.family, tile.block_k, tile.splits, target)
    overhead = launches * known.launch_milliseconds
    parts["helpers"] = _helper_milliseconds(handed_on, target, known)
    longest = _joined((parts["loop"], parts["DRAM"]), known.overlap)
    bounds = {name: value for name, value in parts.items() if name not in ("loop", "ends")}
    bound = max(bounds, key=lambda name: bounds[name])
    if overhead > longest + parts["ends"]:
        bound = "launch"
    occupancy = resident * tile.warps / target.warps_per_processor
    milliseconds = longest + parts["ends"] + parts["helpers"] + overhead
    return Prediction(milliseconds, bound, occupancy, programs / wave, programs, parts)


def _joined(times: Iterable[float], power: float) -> float:
    """Time of resources used side by side: the longest, and more where others come near it.

    The others never hide wholly, so that of two tiles with the same longest part the one
    that loads the rest less is the better.
    """
    return float(sum(time**power for time in times) ** (1 / power))


def _time_parts(
    problem: Problem,
    choice: Choice,
    product: MatmulShape,
    target: Target,
    resources: Resources,
    rounds: list[Round],
    known: Constants,
) -> dict[str, float]:
    """Milliseconds by resource over all waves; "loop" joins them, "ends" what frames it."""
    tile = choice.tile
    steps = product.steps(tile)
    per_millisecond = target.clock_ghz * 1e6
    totals: dict[str, float] = {"loop": 0.0, "ends": 0.0}
    epilogue = _epilogue_clocks(choice, problem, target)
    for wave in rounds:
        step = _step_clocks(
            choice, problem, product, target, resources, wave.resident, wave.processors, known
        )
        for name, clocks in step.items():
            totals[name] = totals.get(name, 0.0) + wave.count * steps * clocks / per_millisecond
        longest = max(step.values())
        exposed = known.overlap_loss * (sum(step.values()) - longest)
        totals["loop"] += wave.count * steps * (longest + exposed) / per_millisecond
        # With several programs resident, one's ends hide behind another's loop.
        ends = (known.prologue_clocks + epilogue * wave.resident) / wave.resident
        totals["ends"] += wave.count * ends / per_millisecond
    return totals
