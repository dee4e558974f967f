"""The work of tiles: counts from arithmetic alone, without times or fitted constants.

Each field holds one number per tile, so that a whole space, or all recorded tiles of a GPU, is
costed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from tconv.cost.estimate import ASYNCHRONOUS_BYTES, Resources, estimate, resident_programs
from tconv.families import Family, MatmulShape, matmul_shape
from tconv.families.demand import LEAST_DOT, WGMMA_ROWS, accumulator_words, uses_wgmma, warp_grid
from tconv.families.matmul import shared_steps
from tconv.families.reduce import WORKSPACE, parts_buffer
from tconv.launch import Buffer
from tconv.problem import ITEMSIZE, Problem
from tconv.target import Target
from tconv.tile import Count, Spread, Tile, Tiles

# Neighbouring results of a thread, by results a thread (Triton's layout of multiply-adds).
SIDES = ((16, 4), (4, 2))
WARP = 32  # threads
LINE_BYTES = 128  # of one request to the L2, whether it is filled or not
WIDE_BYTES = 16  # the widest load, which bypasses the L1 (cp.async.cg)
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Work:
    """Counts for each tile, per program and step, or per thread for a load or a wait.

    "Rows" is the operand that the tiles of a row share, "columns" the other one. With ``places``,
    counts other than ``OF_TILES`` are of blocks, or one number where all are equal.
    """

    # Programs
    programs: Array
    resident: Array  # programs at once on a processor; 0 if a single one is too large
    warps: Array
    steps: Array
    # Per step
    flops: Array
    narrow: Array  # share computed by instructions of half the rate
    tensor: Array  # 1 if the matrix unit forms the products
    peak: Array  # flops per processor and clock
    instructions: Array  # per warp
    spill_bytes: Array  # per thread
    shared_bytes: Array  # read and written
    l1_lines: Array
    conflicting_reads: Array  # a warp's reads of shared memory whose threads share a few banks
    transposed: Array  # elements rearranged for the matrix unit, in units of 64 of their row
    wide_loads: Array  # by all warps, 16 bytes per thread
    narrow_loads: Array  # 4 or 8 bytes per thread
    single_loads: Array  # fewer bytes, through registers
    awaited: Array  # 1 if every step waits for single loads
    awaited_loads: Array  # number of these loads per thread
    memory_waits: Array  # waits for DRAM or L2 that the pipeline does not hide
    l1_waits: Array
    in_turn: Array  # 1 if waiting and computing do not overlap
    fetched_bytes: Array  # from L2
    fetched_lines: Array  # requests for them, each of one line or a part of it
    # In total
    least_bytes: Array  # every tensor once
    rows_bytes: Array  # bytes of the operand shared by a row of tiles
    columns_bytes: Array
    row_looks: Array  # times that it is read if no wave's reads are reused by the next
    column_looks: Array
    row_readers: Array  # programs that read the same bytes of it
    column_readers: Array
    stripe_bytes: Array  # bytes of the rows walked together
    filter_bytes: Array  # bytes of the other operand, for one group
    wave_bytes: Array  # read by concurrent programs over the whole reduction
    row_run: Array  # contiguous bytes that a load of rows reads
    column_run: Array
    scattered_runs: Array  # of results, that a strided dgrad writes pixel by pixel
    # Ends
    end_instructions: Array  # per warp, behind the loop: sums across threads
    written_bytes: Array  # per program
    outputs: Array  # per thread
    launches: Array
    handed_on: Array  # bytes passed from one launch to the next
    places: NDArray[np.intp] | None = None  # of each tile's block, among the counts of blocks

    def __len__(self) -> int:
        return len(self.programs)

    def each(self, of_blocks: Count) -> Count:
        """A count of blocks, for each tile."""
        if self.places is None or not np.ndim(of_blocks):
            return of_blocks
        return of_blocks[self.places]

    def take(self, places: NDArray[np.intp] | NDArray[np.bool_]) -> Work:
        """Return the work at ``places``: indices, or a mask."""
        return Work(*(getattr(self, name)[places] for name in NAMES))

    @classmethod
    def join(cls, parts: Sequence[Work]) -> Work:
        """Concatenate all parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in NAMES))


NAMES = tuple(each.name for each in fields(Work) if each.name != "places")
OF_TILES = (
    "programs", "resident", "steps", "row_looks", "column_looks", "row_readers", "column_readers",
    "stripe_bytes", "wave_bytes", "scattered_runs", "written_bytes", "launches", "handed_on",
)  # fmt: skip


def work_of(
    problem: Problem,
    family: Family,
    tiles: Tiles | Spread,
    target: Target,
    resources: Resources | None = None,
) -> Work:
    """Return the work of ``tiles``; ``resources`` are those of compiled code, if known."""
    if isinstance(tiles, Spread):
        counts = _counts(problem, family, tiles, target, resources)
        return Work(**{name: counts[name] for name in NAMES}, places=tiles.places)
    spread = Spread(tiles, slice(None), tiles.swizzle, tiles.splits, tiles.persistent)
    counts = _counts(problem, family, spread, target, resources)
    like = np.zeros(len(tiles))
    return Work(*(like + counts[name] for name in NAMES))


def _counts(
    problem: Problem,
    family: Family,
    spread: Spread,
    target: Target,
    resources: Resources | None,
) -> dict[str, Count]:
    """Return all counts by name, those ``OF_TILES`` for each tile and the others of blocks."""
    matmul, places = matmul_shape(problem, family.name), spread.places
    counts = _of_blocks(problem, family, spread.blocks, matmul, target, resources)
    resident, persistent = counts["resident"][places], spread.persistent
    resident = np.where(persistent, np.minimum(resident, np.maximum(persistent, 1)), resident)
    one_split = matmul.programs(spread.blocks) // spread.blocks.splits
    programs = one_split[places] * spread.splits
    part = np.where(spread.splits > 1, 4 * accumulator_words(problem), problem.itemsize)
    counts |= {
        "resident": resident,
        "programs": programs,
        "steps": shared_steps(matmul.all_steps(spread.blocks)[places], spread.splits),
        "written_bytes": counts["results"][places] * part,
    }
    row_tiles, column_tiles = counts["row_tiles"][places], counts["column_tiles"][places]
    resident = np.maximum(1, resident)
    counts |= _traffic(problem, spread, matmul, target, resident, row_tiles, column_tiles)
    return counts | _helpers(problem, family, spread.splits, target)


def _of_blocks(
    problem: Problem,
    family: Family,
    tiles: Tiles,
    matmul: MatmulShape,
    target: Target,
    resources: Resources | None,
) -> dict[str, Count]:
    """Return what depends on no swizzle or persistence, and of splits only on whether there are."""
    demand = family.demand(problem, tiles, target)
    taken = estimate(problem, family, tiles, target, demand)
    if resources is not None:  # 0 means that no loop was found because it was unrolled
        counted = np.where(resources.instructions, resources.instructions, taken.instructions)
        taken = replace(resources, instructions=counted)
    results = family.results(problem, tiles)
    parts = {
        "resident": resident_programs(taken, tiles.warps, target),
        "row_tiles": matmul.row_tiles(tiles),
        "column_tiles": matmul.column_tiles(tiles),
        "warps": tiles.warps,
        "instructions": taken.instructions,
        "spill_bytes": taken.spill_bytes,
        "end_instructions": demand.end_instructions,
        "results": results,
        "outputs": results / (tiles.warps * target.warp_size),
    }
    parts |= _products(problem, family, tiles, matmul, target)
    parts |= _loads(problem, family, tiles, demand.loads, demand.load_bytes, target)
    return parts | _fetched(problem, tiles, matmul)


def _products(
    problem: Problem, family: Family, tiles: Tiles, matmul: MatmulShape, target: Target
) -> dict[str, Count]:
    """Return a step's products, and the shared memory traffic of the matrix unit for them."""
    arithmetic = problem.arithmetic
    if not family.matrix_unit:
        arithmetic = "float64" if problem.dtype == "float64" else "float32"
    tensor = arithmetic not in ("float32", "float64")
    issued = family.issued(problem, tiles)
    wgmma = uses_wgmma(issued, problem, target)
    m, n, k = issued.block_m, issued.block_n, issued.block_k
    down, across = warp_grid(issued)
    readers = np.where(wgmma, 1, across), np.where(wgmma, np.maximum(1.0, m / WGMMA_ROWS), down)
    reads = m * k * readers[0] + k * n * readers[1]
    shared: Count = (reads + m * k + k * n) * problem.itemsize
    lines: Count = 0.0
    if not family.matrix_unit:
        lines = 0.0 if family.l1_lines is None else family.l1_lines(problem, tiles, target)
        shared = matmul.fetched_bytes(problem, tiles) if family.l1_lines is None else 0.0
    # wgmma reads 32-bit operands only along the reduction; others are transposed first.
    turned = 0.0
    if problem.itemsize == 4 and problem.direction != "fprop":
        turned = tiles.block_n * tiles.block_k * tiles.block_n / WGMMA_ROWS
        if problem.direction == "wgrad":
            turned += tiles.block_m * tiles.block_k * tiles.block_m / WGMMA_ROWS
    return {
        "flops": 2.0 * matmul.step_products(issued),
        "narrow": ~wgmma & (tensor and target.sm >= 90),
        "tensor": float(tensor),
        "peak": target.peak_tflops[arithmetic] * 1e3 / target.processors / target.clock_ghz,
        "shared_bytes": shared,
        "l1_lines": lines,
        "conflicting_reads": _conflicting_reads(problem, tiles) if family.matrix_unit else 0.0,
        "transposed": turned * wgmma,
    }


def _conflicting_reads(problem: Problem, tiles: Tiles) -> Count:
    """Return a warp's reads of filters in a step of a forward pass in exact float32.

    Neighbouring threads compute neighbouring filters. These lie in different rows of shared memory,
    so that the threads of a warp read from the same few banks: the emulator counts 16 passes over
    the banks for a read, and recorded times cost 8 clocks. In the backward passes neighbouring
    columns lie side by side.
    """
    if problem.arithmetic != "float32" or problem.direction != "fprop":
        return 0.0
    results = tiles.block_m * tiles.block_n / (tiles.warps * WARP)
    side: Count = np.ones(np.shape(results))
    for least, length in reversed(SIDES):
        side = np.where(results >= least, length, side)
    across = np.minimum(WARP * tiles.warps, tiles.block_n / side)  # threads that share a row
    return tiles.warps * tiles.block_n / across * tiles.block_k


def _loads(
    problem: Problem,
    family: Family,
    tiles: Tiles,
    loads: tuple[Count, Count],
    load_bytes: tuple[Count, Count],
    target: Target,
) -> dict[str, Count]:
    """Return a step's loads by their width, and the waits that no pipeline hides."""
    wide: Count = 0.0
    narrow: Count = 0.0
    single: Count = 0.0
    for count, width in zip(loads, load_bytes, strict=True):
        alone = np.less(width, ASYNCHRONOUS_BYTES)
        wide = wide + count * np.greater_equal(width, WIDE_BYTES)
        narrow = narrow + count * (np.less(width, WIDE_BYTES) & ~alone)
        single = single + count * alone
    reuse = family.l1_reuse(problem) if family.l1_reuse else 0
    return {
        "wide_loads": wide * tiles.warps,
        "narrow_loads": narrow * tiles.warps,
        "single_loads": single * tiles.warps,
        "awaited": np.greater(single, 0),
        "awaited_loads": single,
        "memory_waits": 1 / reuse if reuse else 1 / np.maximum(1, tiles.stages - 1),
        "l1_waits": float(reuse > 0),
        "in_turn": tiles.stages == 1,
    }


def _traffic(
    problem: Problem,
    spread: Spread,
    matmul: MatmulShape,
    target: Target,
    resident: Count,
    row_tiles: Count,
    column_tiles: Count,
) -> dict[str, Count]:
    """Return the bytes that DRAM delivers at least once, and how often it may deliver them again.

    Tiles are walked in stripes of ``swizzle`` rows: a wave of programs covers ``rows`` rows and
    ``columns`` columns of them. Each group is walked separately.
    """
    shape, itemsize = problem.geometry, problem.itemsize
    operands = {
        "fprop": (shape.x_read, shape.w_elements),
        "dgrad": (shape.y_elements, shape.w_elements),
        "wgrad": (shape.y_elements, shape.x_read),
    }
    first, second = (elements * itemsize for elements in operands[problem.direction])
    groups = max(1, min(shape.groups, matmul.instances))
    several = max(1, matmul.instances // groups)  # phases of dgrad, or taps of wgrad with boxes
    if problem.direction == "wgrad":
        column_tiles = column_tiles * several
    else:
        row_tiles = row_tiles * several
    stripe = np.minimum(row_tiles, spread.swizzle)
    wave = np.minimum(resident * target.processors, row_tiles * column_tiles)
    rows = np.minimum(row_tiles, np.maximum(stripe, wave / column_tiles))
    columns = np.minimum(column_tiles, np.maximum(1, wave / rows))
    # Programs on one processor start together; as they drift apart, they share fewer reads.
    apart = np.maximum(1, target.processors * np.sqrt(resident) / stripe)
    row_bytes, column_bytes = first / groups / row_tiles, second / groups / column_tiles
    scattered = problem.direction == "dgrad" and several > 1
    pixels = shape.batch * shape.in_h * shape.in_w * shape.groups
    again = 0.0 if matmul.streamed else 1.0
    return {
        "least_bytes": problem.least_bytes,
        "rows_bytes": first * again,
        "columns_bytes": second * again,
        "row_looks": np.maximum(1, column_tiles / columns),
        "column_looks": np.maximum(1, row_tiles / rows),
        "row_readers": column_tiles,
        "column_readers": row_tiles,
        "stripe_bytes": stripe * row_bytes,
        "filter_bytes": second / groups,
        "wave_bytes": stripe * row_bytes + np.minimum(column_tiles, apart) * column_bytes,
        "scattered_runs": pixels * column_tiles * float(scattered),
    }


def _fetched(problem: Problem, tiles: Tiles, matmul: MatmulShape) -> dict[str, Count]:
    """Return a step's bytes from L2, requests for them, and the contiguous bytes of a load."""
    shape, itemsize = problem.geometry, problem.itemsize
    reduced, produced = shape.group_in_channels, shape.group_out_channels
    extents, runs = {
        "fprop": ((reduced, reduced), (tiles.block_k, tiles.block_k)),
        "dgrad": ((produced, reduced), (tiles.block_k, tiles.block_n)),
        "wgrad": ((produced, reduced), (tiles.block_m, tiles.block_n)),
    }[problem.direction]
    parts = [_line_share(run, extent, itemsize) for run, extent in zip(runs, extents, strict=True)]
    fetched = matmul.fetched_bytes(problem, tiles)
    whole = tiles.block_m + tiles.block_n
    share = (parts[0] * tiles.block_m + parts[1] * tiles.block_n) / whole
    return {
        "fetched_bytes": fetched,
        "fetched_lines": fetched / LINE_BYTES * share,
        "row_run": runs[0] * itemsize,
        "column_run": runs[1] * itemsize,
    }


def _line_share(run: Count, extent: int, itemsize: int) -> Count:
    """Return the bytes of lines that hold runs of ``run`` channels, over the runs' own bytes.

    A run of all channels goes on in the next pixel, so that its lines are full.

    >>> _line_share(np.array([32, 64, 256]), 256, 2).tolist()
    [2.0, 1.0, 1.0]
    """
    size = np.minimum(run, extent) * itemsize
    return np.where(run < extent, np.ceil(size / LINE_BYTES) * LINE_BYTES / size, 1.0)


def _helpers(problem: Problem, family: Family, splits: Count, target: Target) -> dict[str, Count]:
    """Return the number of a plan's launches, and the bytes passed between them."""
    launches, operands, part = 1, 0, 0
    result = {"fprop": "y", "dgrad": "dx", "wgrad": "dw"}[problem.direction]
    each = parts_buffer(problem, result, 1)
    if family.copies or problem.layout == "nchw":
        launches, operands, part, each = _handed_on(problem, family, target, each)
    split = splits > 1
    per_part = np.where(split, each.elements * ITEMSIZE[each.dtype], part)
    return {
        "launches": launches + (split & (part == 0)),
        "handed_on": operands + per_part * splits,
    }


def _handed_on(
    problem: Problem, family: Family, target: Target, each: Buffer
) -> tuple[int, int, int, Buffer]:
    """Return launches, operand and part bytes of a plan of one split, and the bytes of a part."""
    tile = Tile(LEAST_DOT, LEAST_DOT, family.axes(problem).block_k[-1])
    plan = family.plan(problem, tile, target)
    sizes = {name: b.elements * ITEMSIZE[b.dtype] for name, b in plan.buffers.items()}
    parts = sizes.pop(WORKSPACE, 0)
    return (
        len(plan.launches),
        sum(sizes.values()),
        parts,
        plan.buffers.get(WORKSPACE, each),
    )
