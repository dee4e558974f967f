"""The search space: which tiles of a kernel family are legal for a problem on a target.

Every rule is plain arithmetic with its derivation beside it; nothing is compiled here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tconv.families import FAMILIES, Axes, Family, MatmulShape, matmul_shape, serves, serving
from tconv.families.demand import LEAST_DOT, REGISTERS_PER_THREAD, accumulator_registers
from tconv.geometry import ConvGeometry, power_of_two
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import FIELDS, SHARED_OUT, Choice, Count, Spread, Tile, Tiles

MOST_THREADS = 1024  # a program, on NVIDIA and AMD alike
MMA_OUTPUTS = 16 * 8  # of the smallest matrix instruction that a warp issues (m16n8)
LEAST_BESIDE_SUMS = 24  # registers of a thread: any kernel's addresses and counters
RESERVED_SHARED = {"cuda": 1024, "hip": 0}  # bytes a program, for the system
SHARED_GRAIN = 128  # bytes
MOST_SUMS = 96  # a thread's, where the same thread loads for them
ROUNDS_OF_SPLITS = 8  # splits may fill the processors so many times; beyond, they only add traffic
HIP_STAGES = 3  # local memory of 64 KiB holds no deeper pipeline of useful tiles
DEFAULT_SWIZZLE = 8


@dataclass(frozen=True)
class Case:
    """What a rule looks at besides the tile."""

    problem: Problem
    family: Family
    matmul: MatmulShape
    target: Target

    def accumulators(self, tiles: Tiles) -> Count:
        """Return the registers that a thread's sums take."""
        sums = self.family.sums(self.problem, tiles)
        return accumulator_registers(self.problem, tiles, self.target, sums)


def shared_bytes(problem: Problem, family: Family, tiles: Tile | Tiles, target: Target) -> Count:
    """Shared memory of the software pipeline, and of a result that is stored as a box.

    Each buffer holds block_m x block_k of one operand and block_k x block_n of the other.
    """
    if not family.matrix_unit:
        return 0 * tiles.block_m
    elements = tiles.block_m * tiles.block_k + tiles.block_k * tiles.block_n
    buffers = buffers_of(tiles, target)
    return buffers * elements * problem.itemsize + family.stored_bytes(problem, tiles)


def resident_by_shared(taken: Count, target: Target) -> Count:
    """Return how many programs of ``taken`` bytes fit in a processor's shared memory."""
    taken = taken + RESERVED_SHARED.get(target.backend, 0)
    taken = -(-taken // SHARED_GRAIN) * SHARED_GRAIN
    return target.shared_per_processor // np.maximum(taken, 1)


def buffers_of(tiles: Tile | Tiles, target: Target) -> Count:
    """Return the number of a pipeline's buffers.

    From sm_90 the matrix unit reads a buffer that must outlive the step: ``stages`` buffers.
    Before that, and on AMD, operands pass through registers: one buffer fewer.
    """
    return tiles.stages if target.sm >= 90 else np.maximum(1, tiles.stages - 1)


def _dot(tiles: Tiles, case: Case) -> Count:
    if not case.family.matrix_unit:
        return tiles.block_m > 0
    return np.minimum(np.minimum(tiles.block_m, tiles.block_n), tiles.block_k) >= LEAST_DOT


def _within_geometry(tiles: Tiles, case: Case) -> Count:
    # A block beyond the next power of two of its extent only computes masked elements.
    if case.family.fits is not None:
        return case.family.fits(case.problem, tiles)
    m, n, k = (power_of_two(each, case.family.least_block) for each in case.matmul.extents)
    return (tiles.block_m <= m) & (tiles.block_n <= n) & (tiles.block_k <= k)


def _threads(tiles: Tiles, case: Case) -> Count:
    threads = tiles.warps * case.target.warp_size
    if not case.family.matrix_unit:  # a thread without a sum of its own repeats another's
        busy = case.family.sums(case.problem, tiles) >= threads
    else:  # a warp without a matrix instruction of its own repeats another warp's work
        busy = tiles.block_m * tiles.block_n >= tiles.warps * MMA_OUTPUTS
    return (threads <= MOST_THREADS) & busy


def _accumulator(tiles: Tiles, case: Case) -> Count:
    # 128 x 256 outputs over 128 threads are 256 registers each: one more than there are.
    limit = REGISTERS_PER_THREAD.get(case.target.backend, 1 << 30)
    if not case.family.matrix_unit:
        limit = MOST_SUMS
    return case.accumulators(tiles) <= limit


def _shared_memory(tiles: Tiles, case: Case) -> Count:
    # 3 stages of (128 x 64 + 64 x 128) fp16 are 98,304 B; sm_90 lends a program 232,448 B.
    taken = shared_bytes(case.problem, case.family, tiles, case.target)
    return taken <= case.target.shared_per_program


def _pipeline(tiles: Tiles, case: Case) -> Count:
    # A stage beyond the last step of the loop is never filled; the shallowest always may be.
    least = min(case.family.axes(case.problem).stages)
    return tiles.stages <= np.maximum(least, case.matmul.steps(tiles))


def _hip(tiles: Tiles, case: Case) -> Count:
    return (tiles.stages <= HIP_STAGES) | (case.target.backend != "hip")


def _splits(tiles: Tiles, case: Case) -> Count:
    # Each split takes ceil(steps / splits) steps; the last must still find one.
    steps = case.matmul.all_steps(tiles)
    last = (tiles.splits - 1) * np.ceil(steps / tiles.splits) < steps
    # One split is always allowed; more only while programs are wanting: wgrad's results are
    # few and its reduction long, the other passes' are not.
    rounds = ROUNDS_OF_SPLITS if case.problem.direction == "wgrad" else 1
    wanting = case.matmul.programs(tiles) <= rounds * case.target.processors
    return (tiles.splits == 1) | (last & wanting)


def _persistent(tiles: Tiles, case: Case) -> Count:
    # Programs that take tiles in turn must find more than one each.
    several = case.matmul.programs(tiles) > tiles.persistent * case.target.processors
    return (tiles.persistent == 0) | several


def _swizzle(tiles: Tiles, case: Case) -> Count:
    # With one column, or one row, of tiles every order is the same order: keep one name for it.
    least = np.minimum(case.matmul.column_tiles(tiles), case.matmul.row_tiles(tiles))
    return (tiles.swizzle == DEFAULT_SWIZZLE) | ((least > 1) & _plain_order(tiles))


def _plain_order(tiles: Tiles) -> Count:
    # Split and persistent reductions keep to the usual order.
    return (tiles.swizzle == DEFAULT_SWIZZLE) | ((tiles.splits == 1) & (tiles.persistent == 0))


Rule = Callable[[Tiles, Case], Count]  # which of the tiles it allows
RULES: tuple[tuple[str, Rule], ...] = (
    ("dot extents", _dot),
    ("within the geometry", _within_geometry),
    ("threads", _threads),
    ("accumulator registers", _accumulator),
    ("shared memory", _shared_memory),
    ("pipeline depth", _pipeline),
    ("AMD limits", _hip),
    ("splits", _splits),
    ("persistent", _persistent),
    ("swizzle", _swizzle),
)
# Rules that look at a tile's block, depth and warps only, and at no extent of the problem.
OF_BLOCKS = ("dot extents", "threads", "accumulator registers", "AMD limits")
ENDLESS = 1 << 20  # rows and columns of an image that no tile is too large for
# Rules that allow every tile with the plain value of a field.
PLAIN_SHARES: dict[Rule, tuple[str, int]] = {
    _splits: ("splits", 1),
    _persistent: ("persistent", 0),
    _swizzle: ("swizzle", DEFAULT_SWIZZLE),
}


@lru_cache(maxsize=64)
def all_tiles(axes: Axes) -> Tiles:
    """Return every combination of the axes, legal or not, except persistent split reductions."""
    grids = np.meshgrid(*(getattr(axes, name) for name in FIELDS), indexing="ij")
    tiles = Tiles(*(grid.ravel() for grid in grids))
    # A reduction is split where tiles are too few, and shared out in turn where they are many.
    return tiles.take((tiles.splits == 1) | (tiles.persistent == 0))


def case_of(problem: Problem, family: Family, target: Target) -> Case:
    """Return what the rules look at besides the tile."""
    return Case(problem, family, matmul_shape(problem, family.name), target)


@dataclass(frozen=True)
class Grid:
    """Blocks (with depth and warps) down, ways to share them out across, and which are legal.

    Fields of ``tiles`` are columns or rows: what depends on blocks alone is computed once a block.
    Blocks that differ in depth alone follow each other, the deeper last; they are ``alike``, by
    number, where a processor holds as many programs of either.
    """

    tiles: Tiles
    legal: NDArray[np.bool_]
    alike: NDArray[np.intp]

    def deepest(self) -> Grid:
        """Return the tiles without those that equal a deeper legal tile: depth costs no more."""
        legal = self.legal.copy()
        for apart in range(1, len(self.legal)):
            like = self.alike[apart:] == self.alike[:-apart]
            if not like.any():
                break
            legal[:-apart] &= ~(like[:, None] & self.legal[apart:])
        return replace(self, legal=legal)

    @property
    def legal_tiles(self) -> Tiles:
        """The legal ones, one after another."""
        return self._tiles_at(*np.nonzero(self.legal))

    @property
    def spread(self) -> Spread:
        """The same as ``legal_tiles``, by blocks."""
        down, across = np.nonzero(self.legal)
        kinds = 2 * down + (self.tiles.splits[0] > 1)[across]
        some = np.zeros(2 * len(self.legal), dtype=np.intp)  # a tile of each kind
        some[kinds] = np.arange(len(kinds))
        met = np.flatnonzero(np.bincount(kinds))
        places = np.empty_like(some)
        places[met] = np.arange(len(met))
        blocks = self._tiles_at(down[some[met]], across[some[met]])
        shares = (getattr(self.tiles, name)[0, across] for name in SHARED_OUT)
        return Spread(blocks, places[kinds], *shares)

    def _tiles_at(self, down: NDArray[np.intp], across: NDArray[np.intp]) -> Tiles:
        return Tiles(
            *(
                getattr(self.tiles, name)[0, across]
                if name in SHARED_OUT
                else getattr(self.tiles, name)[down, 0]
                for name in FIELDS
            )
        )


def legal_grid(case: Case, allows_block: Callable[[Tiles], Count] | None = None) -> Grid:
    """The whole legal space of a family; ``allows_block`` leaves out blocks beforehand."""
    axes = case.family.axes(case.problem)
    blocks, alike = _blocks(replace(case.problem, geometry=_window(case)), case.family.name, axes,
                            case.target)  # fmt: skip
    kept = np.flatnonzero(_within_geometry(blocks, case))
    blocks, alike, shares = blocks.take(kept), alike[kept], _shares(axes)
    if allows_block is not None:
        kept = np.flatnonzero(allows_block(blocks))
        blocks, alike = blocks.take(kept), alike[kept]
    tiles = Tiles(
        *(
            getattr(shares, name)[None, :] if name in SHARED_OUT else getattr(blocks, name)[:, None]
            for name in FIELDS
        )
    )
    legal = np.ones((len(blocks), len(shares)), dtype=bool)
    for name, allows in RULES:
        if name in OF_BLOCKS or allows is _within_geometry:
            continue
        if allows not in PLAIN_SHARES:
            legal &= allows(tiles, case)
            continue
        field, plain = PLAIN_SHARES[allows]
        columns = np.flatnonzero(getattr(shares, field) != plain)
        if len(columns):
            some = {each: getattr(tiles, each)[:, columns] for each in SHARED_OUT}
            legal[:, columns] &= allows(replace(tiles, **some), case)
    return Grid(tiles, legal, alike)


def legal_tiles(case: Case) -> Tiles:
    """The same, one after another, in the order of ``all_tiles``."""
    tiles = legal_grid(case).legal_tiles
    return tiles.take(np.lexsort([getattr(tiles, name) for name in reversed(FIELDS)]))


def _window(case: Case) -> ConvGeometry:
    """Return the filter's window over an unbounded image of one channel."""
    shape = case.problem.geometry
    extents = (1, 1, ENDLESS, ENDLESS, 1, shape.filter_h, shape.filter_w)
    return ConvGeometry(*extents, shape.stride_h, shape.stride_w, shape.pad_h, shape.pad_w,
                        shape.dilation_h, shape.dilation_w)  # fmt: skip


@lru_cache(maxsize=64)
def _blocks(
    problem: Problem, family: str, axes: Axes, target: Target
) -> tuple[Tiles, NDArray[np.intp]]:
    """Blocks, depths and warps that keep the rules of ``OF_BLOCKS``; and which are alike."""
    tiles = all_tiles(replace(axes, swizzle=(DEFAULT_SWIZZLE,), splits=(1,), persistent=(0,)))
    case = Case(problem, FAMILIES[family], matmul_shape(problem, family), target)
    for name, allows in RULES:
        if name in OF_BLOCKS:
            tiles = tiles.take(allows(tiles, case))
    but_depth = tiles.block_m, tiles.block_n, tiles.block_k, tiles.warps
    tiles = tiles.take(np.lexsort((tiles.stages, *reversed(but_depth))))
    but_depth = tiles.block_m, tiles.block_n, tiles.block_k, tiles.warps
    threads = tiles.warps * target.warp_size
    most = target.registers_per_processor // (
        (case.accumulators(tiles) + LEAST_BESIDE_SUMS) * threads
    )
    most = np.minimum(most, target.warps_per_processor // tiles.warps)
    resident = [
        np.minimum(
            most, resident_by_shared(shared_bytes(problem, case.family, each, target), target)
        )
        for each in (tiles, replace(tiles, splits=2 * tiles.splits))
    ]
    _, alike = np.unique(np.stack([*but_depth, *resident]), axis=1, return_inverse=True)
    return tiles, alike.ravel()


@lru_cache(maxsize=64)
def _shares(axes: Axes) -> Tiles:
    """Orders, splits and shares of programs that ``_swizzle`` allows of some problem."""
    tiles = all_tiles(Axes((1,), (1,), (1,), (1,), (1,), axes.swizzle, axes.splits,
                           axes.persistent))  # fmt: skip
    return tiles.take(_plain_order(tiles))


def broken_rule(choice: Choice, problem: Problem, target: Target) -> str | None:
    """Return the name of the first rule that ``choice`` breaks; None for a legal one."""
    if not serves(choice.family, problem, target):
        return "serves the problem"
    case, tiles = case_of(problem, FAMILIES[choice.family], target), Tiles.of([choice.tile])
    return next((name for name, allows in RULES if not allows(tiles, case)[0]), None)


def candidates(problem: Problem, target: Target) -> list[Choice]:
    """Return the legal choices for ``problem`` on ``target``."""
    found = []
    for family in serving(problem, target):
        legal = legal_tiles(case_of(problem, family, target))
        found += [Choice(family.name, legal.tile(place)) for place in range(len(legal))]
    return found


def rules_report(problem: Problem, target: Target) -> list[tuple[str, int]]:
    """Return how many choices remain after each rule, over all families; the first counts all."""
    report = Counter[str]()
    for family in serving(problem, target):
        case = case_of(problem, family, target)
        remaining = all_tiles(family.axes(problem))
        report["every combination"] += len(remaining)
        for name, allows in RULES:
            remaining = remaining.take(allows(remaining, case))
            report[name] += len(remaining)
    return list(report.items())
