"""Tables of kernels that others timed: matrix products of TorchInductor, convolutions of CUTLASS.

Two forms are read, distinguished by their columns:

- Triton matrix products (AlnisM/autoheuristic-datasets): ``M``, ``N``, ``K`` and a tile a row;
  ``family`` is ``triton``, or ``extern`` for cuBLAS. ``as_conv1x1_pass`` names the pass of a 1x1
  convolution whose operands have the product's strides; rows that name none are left out.
- CUTLASS convolutions (masahi/tvm-cutlass-eval): a layer, ``cta_m`` x ``cta_n`` x ``cta_k`` a row.
  Only kernels that load 16 bytes at a time and sum in float32, as tconv's do, are read. Unlike
  tconv's, they also write float32: ``s16816fprop_optimized_f16`` names the type of sums and results
  first, and that of operands last.

Rows that failed, or whose time or tile is not a number, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tconv.cost.estimate import estimate
from tconv.cost.work import Work, work_of
from tconv.extras import extra
from tconv.families import FAMILIES, Family
from tconv.families.demand import (
    Costs,
    Demand,
    LoopCosts,
    accumulator_registers,
    gathered_demand,
    load_width,
)
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import ARITHMETICS, Problem
from tconv.target import TARGETS, Target
from tconv.tile import Tile, Tiles

with extra("tune"):
    import pandas as pd

TILE = ("block_m", "block_n", "block_k", "stages", "warps")
GEMM_COLUMNS = dict(
    zip(TILE, ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_stages", "num_warps"), strict=True)
)
CUTLASS_COLUMNS = dict(zip(TILE, ("cta_m", "cta_n", "cta_k", "stages", "warps"), strict=True))
GEMM_NEEDS = {"gpu", "dtype", "M", "N", "K", "as_conv1x1_pass", "family", "time_ms"}
GEMM_NEEDS |= set(GEMM_COLUMNS.values())
CUTLASS_SHAPE = ("N", "H", "W", "C", "K", "R", "S", "pad_h", "pad_w", "stride_h", "stride_w")
CUTLASS_RESULT = 4  # bytes
CUTLASS_NEEDS = {"gpu", "pass", "dtype", "accum", "align", "status", "time_ms", *CUTLASS_SHAPE}
CUTLASS_NEEDS |= set(CUTLASS_COLUMNS.values())

# GPUs that were recorded. The H100's memory is slower than any data sheet's: 2.4 TB/s fits best.
# RTX 3070: NVIDIA's GA104 white paper; its L2 rate is assumed. Recorded tiles reach 41 TFLOP/s,
# more than its boost clock of 1.725 GHz allows: a clock of 1.9 GHz under load is assumed.
RECORDED = {
    "A100": TARGETS["sm_80"],
    "H100": replace(
        TARGETS["sm_90"], product="NVIDIA H100 (2.4 TB/s)", clock_ghz=1.755, bandwidth_gbps=2400.0
    ),
    "RTX 3070": replace(
        TARGETS["sm_80"],
        name="sm_86",
        arch="sm_86",
        product="NVIDIA GeForce RTX 3070",
        processors=46,
        clock_ghz=1.9,
        shared_per_program=101376,
        shared_per_processor=102400,
        warps_per_processor=48,
        programs_per_processor=16,
        bandwidth_gbps=448.0,
        l2_gbps=1500.0,
        l2_bytes=4 << 20,
        # Sums in float32 halve the rate of 16-bit products on GeForce.
        peak_tflops={"float16": 44.8, "bfloat16": 44.8, "tf32": 22.4, "tf32x3": 7.5,
                     "float32": 22.4, "float64": 0.35},
    ),
}  # fmt: skip


# Loop costs of the recorded Triton product, counted as Triton 3.7 compiles it for sm_80 and sm_90.
# Two figures follow the recorded times instead, because an older Triton compiled the timed kernels:
# products on registers take 12 registers more (a 128x128 tile of eight warps then takes over 128),
# and a step with wgmma takes twice as many instructions.
PRODUCT: Costs = {
    "exact": {
        "fprop": LoopCosts(20, (10, 10), 33, (1.9, 1.9), 0.6),
        "dgrad": LoopCosts(20, (13, 13), 13, (3, 3), 0.6),
        "wgrad": LoopCosts(20, (19, 19), 10, (0.6, 0.6), 0.6),
    },
    "mma": dict.fromkeys(PASSES, LoopCosts(12, (3, 3), 40, (1, 1), 0.25)),
    "wgmma": dict.fromkeys(
        PASSES,
        LoopCosts(60, (6, 6), 30, (1.8, 1.8), per_transposed=4, registers_per_transposed=1.9),
    ),
}
# Registers, besides those of the sums, with fewer of which that product spills: chosen by recorded
# times. Loads for the matrix unit are issued in turns, so that only some hold registers at a time.
LEAST_REGISTERS, LEAST_PER_LOAD, LEAST_PER_EXACT_LOAD, MOST_WAITING = 40, 3, 4, 96


def product_demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Return the demand of the recorded product, which has one tap and locates no pixels."""
    shape = problem.geometry
    reduced, produced = shape.group_in_channels, shape.group_out_channels
    extents = {
        "fprop": ((reduced, tile.block_k), (reduced, tile.block_k)),
        "dgrad": ((produced, tile.block_k), (reduced, tile.block_n)),
        "wgrad": ((produced, tile.block_m), (reduced, tile.block_n)),
    }[problem.direction]
    first, second = (load_width(problem, extent, block) for extent, block in extents)
    found = gathered_demand(problem, tile, target, (first, second), costs=PRODUCT)
    loads = found.loads[0] + found.loads[1]
    if problem.arithmetic in ("float32", "float64"):
        waiting = LEAST_PER_EXACT_LOAD * loads
    else:
        waiting = np.minimum(LEAST_PER_LOAD * loads, MOST_WAITING)
    sums = accumulator_registers(problem, tile, target, tile.block_m * tile.block_n)
    return replace(found, least_registers=sums + LEAST_REGISTERS + np.rint(waiting))


# The timed kernel is not tconv's, but its loop is that of implicit_gemm.
PLAIN_PRODUCT = replace(FAMILIES["implicit_gemm"], demand=product_demand)


class RecordingError(ValueError):
    """Raised for a table that cannot be judged; the message names the file and the cause."""


@dataclass(frozen=True, eq=False)
class Recording:
    """The timed tiles of one problem on one GPU; ``library`` is cuBLAS's time if it was recorded.

    ``result_itemsize`` is the size of a result in bytes, or None if it is that of an operand.
    """

    gpu: str
    problem: Problem
    tiles: tuple[Tile, ...]
    milliseconds: NDArray[np.float64]
    library: float | None = None
    result_itemsize: int | None = None

    @property
    def target(self) -> Target:
        return RECORDED[self.gpu]

    @property
    def cell(self) -> str:
        """GPU, arithmetic and pass, by which results are grouped."""
        return f"{self.gpu}/{self.problem.arithmetic}/{self.problem.direction}"

    @property
    def family(self) -> Family:
        """The family whose kernels are like those that were timed."""
        return PLAIN_PRODUCT

    @property
    def work(self) -> Work:
        """The work of the timed tiles on the GPU."""
        tiles = Tiles.of(self.tiles)
        if self.result_itemsize is None:
            return work_of(self.problem, self.family, tiles, self.target)
        # CUTLASS fills a buffer for each stage, where Triton needs one fewer.
        demand = self.family.demand(self.problem, tiles, self.target)
        taken = estimate(self.problem, self.family, tiles, self.target, demand)
        operands = (tiles.block_m + tiles.block_n) * tiles.block_k * self.problem.itemsize
        taken = replace(taken, shared_bytes=tiles.stages * operands)
        work = work_of(self.problem, self.family, tiles, self.target, taken)
        shape, itemsize = self.problem.geometry, self.problem.itemsize
        results = {"fprop": shape.y_elements, "dgrad": shape.x_elements, "wgrad": shape.w_elements}
        more = results[self.problem.direction] * (self.result_itemsize - itemsize)
        written = work.written_bytes * self.result_itemsize / itemsize
        return replace(work, least_bytes=work.least_bytes + more, written_bytes=written)

    @property
    def best(self) -> float:
        return float(self.milliseconds.min())


def layer_of(direction: Pass, m: int, n: int, k: int) -> ConvGeometry:
    """Return the 1x1 layer whose pass ``direction`` is the ``m`` x ``n`` product over ``k``.

    >>> layer_of("wgrad", 64, 128, 3136).key
    'n1c128h1w3136-k64f1x1-s1x1-p0x0-d1x1-g1'
    """
    pixels, channels, filters = {
        "fprop": (m, k, n),
        "dgrad": (m, n, k),
        "wgrad": (k, n, m),
    }[direction]
    return ConvGeometry(1, channels, 1, pixels, filters, 1, 1)


def product_of(problem: Problem) -> tuple[int, int, int] | None:
    """Return (m, n, k), the inverse of ``layer_of``; None if the problem is not a plain product.

    >>> product_of(Problem(layer_of("wgrad", 64, 128, 3136), "wgrad"))
    (64, 128, 3136)
    """
    shape = problem.geometry
    if shape != ConvGeometry(1, shape.in_channels, 1, shape.in_w, shape.out_channels, 1, 1):
        return None
    pixels, channels, filters = shape.in_w, shape.in_channels, shape.out_channels
    return {
        "fprop": (pixels, filters, channels),
        "dgrad": (pixels, channels, filters),
        "wgrad": (filters, channels, pixels),
    }[problem.direction]


def tables_of(paths: Iterable[Path]) -> list[Path]:
    """Return the given files; a folder stands for the recorded tables in it.

    Raises:
        RecordingError: for a folder without a recorded table.
    """
    found = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [each for each in sorted(path.iterdir()) if _form(each) is not None]
        if not inside:
            raise RecordingError(f"{path}: this folder holds no recorded table")
        found += inside
    return found


def _form(path: Path) -> Callable[[pd.DataFrame], list[Recording]] | None:
    """Return the reader of a table's rows, by its columns; None if it has neither form."""
    try:
        columns = set(pd.read_csv(path, nrows=0).columns)
    except (OSError, ValueError, EOFError):
        return None
    if columns >= GEMM_NEEDS:
        return _products
    if columns >= CUTLASS_NEEDS:
        return _convolutions
    return None


def read_recordings(paths: Iterable[Path]) -> list[Recording]:
    """Return the problems of all tables, in order.

    Raises:
        RecordingError: if a file cannot be read or has neither form.
    """
    return [recording for path in paths for recording in read_recording(path)]


def read_recording(path: Path) -> list[Recording]:
    """Return the problems of one table, CSV or CSV.gz."""
    try:
        table = pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, EOFError) as error:
        raise RecordingError(f"{path}: no CSV table: {error}") from error
    if (form := _form(path)) is None:
        forms = " or ".join(", ".join(sorted(needs)) for needs in (GEMM_NEEDS, CUTLASS_NEEDS))
        there = ", ".join(sorted(map(str, table.columns)))
        raise RecordingError(
            f"{path}: its columns match neither form, which need {forms}; there are: {there}"
        )
    return form(table)


def _timed(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Return the usable rows of known GPUs, with the tile's columns under tconv's names."""
    table = table[table["gpu"].astype(str).isin(list(RECORDED))].rename(
        columns={theirs: ours for ours, theirs in columns.items()}
    )
    numbers = table[[*TILE, "time_ms"]].apply(pd.to_numeric, errors="coerce").astype(np.float64)
    good = np.isfinite(numbers).all(axis=1) & (numbers > 0).all(axis=1)
    table, numbers = table[good].copy(), numbers[good]
    table["time_ms"] = numbers["time_ms"]
    table[list(TILE)] = numbers[list(TILE)].astype(np.int64)
    powers = np.ones(len(table), dtype=bool)
    for name in ("block_m", "block_n", "block_k", "warps"):
        values = table[name].to_numpy()
        powers &= (values & (values - 1)) == 0
    return table[powers]


def _recordings(
    table: pd.DataFrame,
    by: Sequence[str],
    problem_of: Callable[[dict[str, object]], Problem],
    library: dict[object, float],
    result_itemsize: int | None = None,
) -> list[Recording]:
    times = table.groupby([*by, *TILE], sort=False)["time_ms"].median().reset_index()
    tiles, milliseconds = times[list(TILE)].to_numpy(), times["time_ms"].to_numpy(dtype=np.float64)
    found = []
    groups: dict[tuple[object, ...], NDArray[np.intp]]
    groups = times.groupby(list(by), sort=False).indices  # type: ignore[assignment]
    for key, places in groups.items():
        chosen = tuple(Tile(*values) for values in tiles[places].tolist())
        problem = problem_of(dict(zip(by, key, strict=True)))
        found.append(
            Recording(
                str(key[0]),
                problem,
                chosen,
                milliseconds[places],
                library.get(key),
                result_itemsize,
            )
        )
    return found


def _products(table: pd.DataFrame) -> list[Recording]:
    by = ("gpu", "dtype", "as_conv1x1_pass", "M", "N", "K")
    known = table["as_conv1x1_pass"].isin(["fprop", "dgrad", "wgrad"])
    table = table[known & table["dtype"].isin(list(ARITHMETICS))]
    theirs = table[table["family"] == "extern"].groupby(list(by))["time_ms"].median()

    def problem_of(named: dict[str, object]) -> Problem:
        direction: Pass = named["as_conv1x1_pass"]  # type: ignore[assignment]
        m, n, k = (int(named[name]) for name in "MNK")  # type: ignore[call-overload]
        return Problem.of(layer_of(direction, m, n, k), direction, str(named["dtype"]))

    timed = _timed(table[table["family"] == "triton"], GEMM_COLUMNS)
    return _recordings(timed, by, problem_of, theirs.to_dict())


def _convolutions(table: pd.DataFrame) -> list[Recording]:
    by = ("gpu", "dtype", "pass", *CUTLASS_SHAPE)
    kept = (table["status"] == "passed") & (table["align"] == 8) & (table["accum"] == "f32")
    kept &= table["dtype"].isin(list(ARITHMETICS))
    if "split_k" in table:
        kept &= table["split_k"] == 1

    def problem_of(named: dict[str, object]) -> Problem:
        n, h, w, c, k, r, s, pad_h, pad_w, stride_h, stride_w = (
            int(named[name])  # type: ignore[call-overload]
            for name in CUTLASS_SHAPE
        )
        geometry = ConvGeometry(n, c, h, w, k, r, s, stride_h, stride_w, pad_h, pad_w)
        return Problem.of(geometry, named["pass"], str(named["dtype"]))  # type: ignore[arg-type]

    return _recordings(_timed(table[kept], CUTLASS_COLUMNS), by, problem_of, {}, CUTLASS_RESULT)
