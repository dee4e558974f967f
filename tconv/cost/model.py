"""What a tile costs, in milliseconds, from arithmetic alone.

A program's loop is bound by whichever of its resources takes longest: the matrix unit, the issue
of instructions, shared memory, loads, L2, or the latency that too shallow a pipeline leaves open.
What one processor does itself is counted for the busiest processor, what all share for the mean.
What DRAM must deliver bounds the whole.

The counts come from ``tconv.cost.work``, the constants, each with a unit, from
``tconv.cost.constants``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tconv.cost.constants import Constants, calibrated
from tconv.cost.estimate import Resources
from tconv.cost.work import LINE_BYTES, Work, work_of
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tiles

Array = NDArray[np.float64]
TLB_REACH = 4 << 30  # bytes of operands of which half the requests find no translation at hand
SCHEDULERS = 4  # of a processor, each with a matrix unit of its own


@dataclass(frozen=True)
class Prediction:
    """The model's account of one tile. ``parts`` are the milliseconds each resource needs."""

    milliseconds: float
    bound: str
    occupancy: float
    waves: float
    programs: int
    parts: dict[str, float]


def predict(
    problem: Problem,
    choice: Choice,
    target: Target,
    resources: Resources | None = None,
    constants: Constants | None = None,
) -> Prediction:
    """Return the milliseconds of ``problem`` with ``choice`` on ``target``, and what bounds them.

    ``resources`` are those of the compiled code; without them they are estimated. ``constants``
    are by default those known of ``target``.
    """
    known = constants or calibrated(target).constants
    tiles = Tiles.of([choice.tile])
    work = work_of(problem, FAMILIES[choice.family], tiles, target, resources)
    programs, resident = int(work.programs[0]), int(work.resident[0])
    if resident == 0:
        return Prediction(math.inf, "does not fit", 0.0, math.inf, programs, {})
    taken = {name: float(value[0]) for name, value in parts_of(work, target, known).items()}
    milliseconds = float(milliseconds_of(work, target, known)[0])
    bounds = {name: value for name, value in taken.items() if name != "ends"}
    bound = max(bounds, key=lambda name: bounds[name])
    waves = programs / (resident * target.processors)
    occupancy = resident * choice.tile.warps / target.warps_per_processor
    return Prediction(milliseconds, bound, occupancy, waves, programs, taken)


def predict_all(problem: Problem, choices: Sequence[Choice], target: Target) -> Array:
    """Return the milliseconds of each of many choices."""
    found = np.empty(len(choices))
    known = calibrated(target).constants
    for name in dict.fromkeys(choice.family for choice in choices):
        places = [place for place, each in enumerate(choices) if each.family == name]
        tiles = Tiles.of(choices[place].tile for place in places)
        work = work_of(problem, FAMILIES[name], tiles, target)
        found[places] = milliseconds_of(work, target, known)
    return found


def milliseconds_of(work: Work, target: Target, known: Constants, rivals: int = 0) -> Array:
    """Return each tile's predicted time; infinite if a program is too large.

    Of the first ``rivals`` tiles only the fastest is asked for: those that their longest part alone
    makes slower are given that bound.
    """
    parts = parts_of(work, target, known)
    outside = parts.pop("ends") + parts.pop("helpers") + parts.pop("launch")
    inside = np.array(list(parts.values()))
    times = np.asarray(np.where(work.resident > 0, inside.max(axis=0) + outside, np.inf))
    near = work.resident > 0
    if rivals:
        pair = [int(times[:rivals].argmin()), 0]  # sums of a column alone are rounded otherwise
        limit = joined(inside[:, pair], known.overlap)[0] + outside[pair[0]]
        near[2:rivals] &= times[2:rivals] <= limit
    places = np.flatnonzero(near)
    times[places] = joined(inside[:, places], known.overlap) + outside[places]
    return times


def joined(parts: Array, power: float) -> Array:
    """Return the time of resources used side by side: the longest, and more if others come near it.

    ``parts`` has a row for each resource. The others never hide wholly, so that of two tiles with
    the same longest part the one that loads the rest less is the better.
    """
    longest = np.maximum(parts.max(axis=0), 1e-12)
    found = longest * ((parts / longest) ** power).sum(axis=0) ** (1 / power)
    return np.asarray(found, dtype=np.float64)


def parts_of(work: Work, target: Target, known: Constants) -> dict[str, Array]:
    """Return milliseconds by resource: the loop's, "DRAM", and those outside the loop."""
    per_millisecond = target.clock_ghz * 1e6
    resident = np.maximum(1, work.resident)
    wave = resident * target.processors
    full = np.floor(work.programs / wave)
    rest = work.programs - full * wave
    last = np.ceil(rest / target.processors)  # programs of the busiest processor's last wave
    rounds, busiest = full + (rest > 0), full * resident + last
    clocks = _loop_clocks(work, target, known, rounds, busiest)
    parts = {name: each * work.steps / per_millisecond for name, each in clocks.items()}
    parts["DRAM"] = 1e3 * target.memory_seconds(1.0) * _dram_bytes(work, target, known)
    parts["DRAM"] = parts["DRAM"] / known.dram_share
    # With several programs resident, one's ends and pauses hide behind another's loop.
    alone = full / resident + (rest > 0) / np.maximum(1, last)
    ends = alone * work.each(
        known.prologue_clocks
        + known.output_clocks * work.outputs
        + known.clocks_per_instruction * work.end_instructions
    )
    ends = ends + alone * work.steps * known.step_clocks
    write_clocks = work.written_bytes * target.processors * target.clock_ghz / target.l2_gbps
    parts["ends"] = (ends + busiest * known.write_share * write_clocks) / per_millisecond
    parts["helpers"] = _helper_milliseconds(work.handed_on, target, known)
    parts["launch"] = work.launches * known.launch_milliseconds
    return parts


def _loop_clocks(
    work: Work, target: Target, known: Constants, rounds: Array, busiest: Array
) -> dict[str, Array]:
    """Return the busiest processor's clocks for one step of all its programs, by resource."""
    each, rate = work.each, work.peak * known.matrix_share
    products = work.flops / rate * np.where(work.narrow > 0, 1 / known.narrow_share, 1.0)
    # A program of fewer warps than there are schedulers leaves matrix units idle.
    idle = products * SCHEDULERS / np.minimum(SCHEDULERS, work.warps)
    products = np.maximum(each(products) * busiest, each(idle) * rounds)
    loads = work.wide_loads * known.wide_load_clocks + work.narrow_loads * known.narrow_load_clocks
    loads = loads + work.single_loads * known.single_load_clocks
    loads = loads + work.transposed * known.transpose_clocks
    far = work.least_bytes / (target.l2_bytes + work.least_bytes)
    l2_rate = target.l2_gbps * known.l2_share / target.clock_ghz / (1 + known.l2_far * far)
    l2 = work.programs / l2_rate
    beyond = work.least_bytes / (TLB_REACH + work.least_bytes)
    port = busiest * LINE_BYTES / known.l2_bytes_per_clock * (1 + known.translation * beyond)
    alone = work.instructions * known.clocks_per_instruction
    alone = alone + work.spill_bytes * known.spill_clocks
    alone = alone + work.awaited * known.gather_clocks
    alone = alone + work.awaited_loads * known.gather_load_clocks
    alone = alone + work.transposed * known.transpose_clocks
    waits = work.memory_waits * known.memory_latency_clocks
    waits = waits + work.l1_waits * known.l1_latency_clocks
    instructions = each(work.instructions)
    if np.any(work.end_instructions):
        instructions = instructions + each(work.end_instructions) / work.steps
    shared = work.shared_bytes / known.shared_bytes_per_clock + work.l1_lines
    shared = shared + work.conflicting_reads * known.conflict_clocks
    fetched = np.array([each(work.fetched_bytes) * l2, each(work.fetched_lines) * port])
    return {
        "tensor cores": products * each(work.tensor),
        "multiply-adds": products * each(1 - work.tensor),
        "issue": busiest * instructions * each(work.warps)
        / (known.issue_per_clock * known.issue_share),
        "shared memory": busiest * each(shared),
        "loads": busiest * each(loads),
        "L2": joined(fetched, known.overlap),
        "instruction latency": rounds * each(alone + work.in_turn * waits),
        "memory latency": rounds * each(waits * (1 - work.in_turn)),
    }  # fmt: skip


def _dram_bytes(work: Work, target: Target, known: Constants) -> Array:
    """Return the bytes between DRAM and L2: each tensor once, and again what L2 cannot keep.

    Waves share operands where L2 holds what lies between two looks. Programs of one wave share
    what they read at the same time; but they drift apart, the further the longer they run, and what
    they read apart is read from DRAM by each. Such reads are short runs: DRAM opens a row for each,
    as it does for each run of results that a strided dgrad writes between those of other phases.
    """
    keeps = target.l2_bytes * known.dram_l2_share

    def lost(size: Array, room: float) -> Array:
        return np.asarray(size / (size + room))

    drifted = lost(work.wave_bytes, target.l2_bytes / known.drift)
    total = work.least_bytes
    for size, looks, between, readers, run in (
        (work.rows_bytes, work.row_looks, work.stripe_bytes, work.row_readers, work.row_run),
        (work.columns_bytes, work.column_looks, work.filter_bytes, work.column_readers,
         work.column_run),
    ):  # fmt: skip
        shared = 1 + (looks - 1) * lost(between, keeps)
        isolated = work.each(1 + known.dram_run_bytes / run)
        apart = np.maximum(0.0, readers - shared) * drifted * isolated
        total = total + size * (shared - 1 + apart)
    return total + work.scattered_runs * known.scattered_bytes


def _helper_milliseconds(handed_on: Array, target: Target, known: Constants) -> Array:
    """Return the time of buffers between launches: each is written once and read once."""
    by_dram = 2e3 * target.memory_seconds(1.0) * handed_on / known.dram_share
    by_l2 = 2e-6 * handed_on / (target.l2_gbps * known.l2_share)
    return np.where(handed_on > target.l2_bytes * known.dram_l2_share, by_dram, by_l2)
