"""Depthwise layers: a filter sees one channel, and the matrix unit has nothing to multiply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from math import gcd

import numpy as np

from tconv.families.common import accumulator_type, index_type
from tconv.families.demand import Demand, accumulator_registers, accumulator_words
from tconv.families.epilogue import epilogue_constants, epilogue_operands
from tconv.families.family import WGRAD_AXES, Axes, Family
from tconv.families.matmul import MatmulShape
from tconv.families.reduce import Shares, splits_to_fill, workspace
from tconv.families.relayout import Operands
from tconv.geometry import cdiv, power_of_two
from tconv.launch import Launch, Plan, Pointer
from tconv.problem import Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Count, Tile, Tiles, for_each

MOST_READ = 64  # places that a strip reads: each is code of its own
UNROLLED_TAPS = 25  # beyond, a filter's lines are walked in a loop
MOST_WEIGHTS = 64  # a thread's, for which its sums leave registers
MOST_SUMS = 96  # of a thread, in wgrad: taps by channels
WARP = 32  # threads, for which sums are counted; AMD's 64 keep half as many each
MOST_TAPS = 32  # of a program, in wgrad: each ends in a sum over its threads
# A strip reads its filters once. Where they lie tap after tap, a warp's weights lie scattered;
# a copy with the taps first pays from so many results on (half a microsecond's worth).
RESULTS_PER_COPY = 1 << 20
# Fitted to 65 compiled kernels (sm_90): each place is loaded, widened and used.
INSTRUCTIONS_PER_LOAD = 5.0  # with its mask and the zeros that stand in
REGISTERS_BESIDE_SUMS = 40
# Fitted to 100 compiled kernels of wgrad (sm_90). A step finds its strips' places on the images for
# each vector of channels; of contiguous images, a load has an address of its own.
WGRAD_STEP_INSTRUCTIONS = 70.0
WGRAD_INSTRUCTIONS_PER_LOAD = {"nhwc": 5.0, "nchw": 6.6}
WGRAD_REGISTERS = 30
# Behind the loop: of a program, of a tap; and what a tap and a sum take where sums of several warps
# meet in shared memory, beside a shuffle and an addition for each halving.
END_INSTRUCTIONS, END_INSTRUCTIONS_PER_TAP = 35.0, 1.0
SHARED_INSTRUCTIONS_PER_TAP, SHARED_INSTRUCTIONS_PER_SUM = 3.0, 5.5
SECTOR = 32  # bytes: the least that L2 hands out


@dataclass(frozen=True)
class Axis:
    """One axis of the images: along the strips or across them."""

    image: int  # size that is read
    result: int  # and written
    filter: int
    stride: int
    pad: int
    dilation: int


def axes(problem: Problem) -> tuple[Axis, Axis]:
    """(along, across): strips run along rows of channels_last images, else down columns."""
    shape = problem.geometry
    sizes = [(shape.in_h, shape.out_h), (shape.in_w, shape.out_w)]
    if problem.direction == "dgrad":
        sizes = [(y, x) for x, y in sizes]
    down = Axis(*sizes[0], shape.filter_h, shape.stride_h, shape.pad_h, shape.dilation_h)
    right = Axis(*sizes[1], shape.filter_w, shape.stride_w, shape.pad_w, shape.dilation_w)
    return (right, down) if problem.layout == "nhwc" else (down, right)


def unserved(problem: Problem, target: Target) -> str | None:
    """Return why strips of one channel cannot serve ``problem``, in a line, or None."""
    shape = problem.geometry
    if shape.group_in_channels != 1:
        return f"a filter sees {shape.group_in_channels} channels, not one"
    along, _ = axes(problem)
    reach = (along.filter - 1) * along.dilation + along.stride
    if reach > MOST_READ:
        return f"a strip of a filter that reaches {reach} places reads more than {MOST_READ}"
    return None


def _strides(problem: Problem) -> tuple[int, int, int]:
    """Return the elements from tap to tap, along and across, and from filter to filter."""
    shape = problem.geometry
    steps = (1, shape.filter_w) if problem.layout == "nhwc" else (shape.filter_w, 1)
    return (*steps, shape.taps)


def _names(axis: Axis, name: str) -> dict[str, int]:
    values = {"FILTER": axis.filter, "STRIDE": axis.stride, "PAD": axis.pad}
    values["DILATION"] = axis.dilation
    return {f"{key}_{name}": value for key, value in values.items()}


def product(
    problem: Problem, tile: Tile, target: Target, epilogue: Epilogue, w_layout: Layout
) -> Plan:
    """y = x * w and the epilogue, or dx from dy and w; a strip has ``block_k`` results."""
    shape, dtype, nhwc = problem.geometry, problem.dtype, problem.layout == "nhwc"
    forward = problem.direction == "fprop"
    along, across = axes(problem)
    operands = Operands(target, dtype)
    w, (w_along, w_across, w_filter) = "w", _strides(problem)
    results = shape.y_elements if forward else shape.x_elements
    if nhwc and results >= RESULTS_PER_COPY and target.backend != "interpreter":
        w = operands.channels_last("w", "nchw", 1, shape.out_channels, shape.taps)
        w_along, w_across = w_along * shape.out_channels, w_across * shape.out_channels
        w_filter = 1
    image, result = ("x", "y") if forward else ("dy", "dx")
    channels, produced = shape.in_channels, shape.out_channels
    strip, phases, tap_step, image_step = tile.block_k, 1, 1, across.dilation
    if forward:
        strip = max(strip, 2) if epilogue.pool else strip
        first = -along.pad
        last = (strip - 1) * along.stride - along.pad + (along.filter - 1) * along.dilation
    else:
        channels, produced = produced, channels
        strip = cdiv(strip, along.stride) * along.stride
        first = cdiv(along.pad - (along.filter - 1) * along.dilation, along.stride)
        last = (strip - 1 + along.pad) // along.stride
        common = gcd(across.stride, across.dilation)
        phases, tap_step = min(across.stride, across.result), across.stride // common
        image_step = -across.dilation // common
    multiplier = shape.out_channels // shape.in_channels
    lines = across.result if forward else cdiv(across.result, across.stride)
    strips = cdiv(along.result, strip)
    block_m = max(tile.block_m, 2) if epilogue.pool else tile.block_m
    if nhwc:
        tiles = cdiv(shape.batch * lines, block_m) * strips * cdiv(produced, tile.block_n)
    else:
        tiles = cdiv(lines, block_m) * strips * cdiv(shape.batch * produced, tile.block_n)
    taken = {"image": Pointer(image, dtype), "filters": Pointer(w, dtype)}
    taken |= {"result": Pointer(result, dtype)} | epilogue_operands(epilogue, dtype)
    rounds = 1 if forward else multiplier
    taps = rounds * along.filter * cdiv(across.filter, tap_step)
    launch = Launch(
        "depthwise.depthwise",
        (tiles, phases),
        taken,
        {
            "batch": shape.batch,
            "image_along": along.image,
            "image_across": across.image,
            "result_along": along.result,
            "result_across": across.result,
        },
        {
            **_names(along, "ALONG"),
            **_names(across, "ACROSS"),
            **epilogue_constants(epilogue),
            "CHANNELS": channels,
            "PRODUCED": produced,
            "MULTIPLIER": multiplier,
            "FORWARD": forward,
            "TAP_STEP": tap_step,
            "IMAGE_STEP": image_step,
            "FIRST": first,
            "COUNT": last - first + 1,
            "X_ALONG": channels if nhwc else across.image,
            "W_ALONG": w_along,
            "W_ACROSS": w_across,
            "W_FILTER": w_filter,
            "NHWC": nhwc,
            "UNROLL": taps <= UNROLLED_TAPS,
            "ACCUMULATOR": accumulator_type(dtype),
            "INDEX": index_type(shape.x_elements, shape.y_elements),
            "BLOCK_M": block_m,
            "BLOCK_N": tile.block_n,
            "STRIP": strip,
        },
        tile.warps,
    )
    return Plan((*operands.launches, launch), operands.buffers, product=len(operands.launches))


# ---- the gradient of the filters ------------------------------------------------------------


def whole_strip(size: int, wanted: int) -> int:
    """Return the length of a strip that divides ``size``: an empty place would read x, maybe inf.

    >>> [whole_strip(size, 4) for size in (56, 14, 7, 13)]
    [4, 7, 7, 1]
    """
    fitting = [n for n in range(1, 2 * wanted) if size % n == 0]
    return wanted if wanted in fitting else max(fitting, default=1)


def lines_of(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return the lines of the filter that a program of wgrad takes: as many as it can sum."""
    along, across = axes(problem)
    held = cdiv(tile.block_m * tile.block_n, tile.warps * WARP)  # sums for each tap
    lines = np.minimum(MOST_SUMS // held, MOST_TAPS) // along.filter
    lines = np.clip(lines, 1, across.filter)
    return cdiv(across.filter, cdiv(across.filter, lines))


def wgrad(problem: Problem, tile: Tile, target: Target, w_layout: Layout) -> Plan:
    """dw from x and dy: lines of the filters by channels, reduced over strips in splits."""
    shape, dtype = problem.geometry, problem.dtype
    along, across = axes(problem)
    strip = whole_strip(along.result, tile.block_k)
    positions = shape.batch * across.result * (along.result // strip)
    steps = cdiv(positions, tile.block_m)
    shares = Shares.of(steps, tile.splits)
    split = shares.splits > 1
    lines = across.filter if target.backend == "interpreter" else int(lines_of(problem, tile))
    tiles = cdiv(shape.out_channels, tile.block_n) * cdiv(across.filter, lines)
    w_along, w_across, _ = _strides(problem)
    product = Launch(
        "depthwise.depthwise_wgrad",
        (tiles, shares.splits),
        {
            "x": Pointer("x", dtype),
            "dy": Pointer("dy", dtype),
            "dw": workspace(problem) if split else Pointer("dw", dtype),
        },
        {
            "batch": shape.batch,
            "x_along": along.image,
            "x_across": across.image,
            "y_along": along.result,
            "y_across": across.result,
            "steps": steps,
            "split_steps": shares.steps,
        },
        {
            **_names(along, "ALONG"),
            **_names(across, "ACROSS"),
            "CHANNELS": shape.in_channels,
            "FILTERS": shape.out_channels,
            "MULTIPLIER": shape.out_channels // shape.in_channels,
            "COUNT": (strip - 1) * along.stride + (along.filter - 1) * along.dilation + 1,
            "LINES": lines,
            "W_ALONG": w_along,
            "W_ACROSS": w_across,
            "NHWC": problem.layout == "nhwc",
            "ACCUMULATOR": accumulator_type(dtype),
            "INDEX": index_type(shape.x_elements, shape.y_elements),
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "STRIP": strip,
        },
        tile.warps,
    )
    return Operands(target, dtype).plan(product, problem, "dw", w_layout, shares.splits)


# ---- the tile of an untuned layer -----------------------------------------------------------


def heuristic(problem: Problem, target: Target) -> Tile:
    """Return a tile of 16 bytes of channels a thread; fewer if weights need the registers."""
    shape = problem.geometry
    along, across = axes(problem)
    produced = shape.in_channels if problem.direction == "dgrad" else shape.out_channels
    if target.backend == "interpreter":  # it costs per program
        return Tile(256, power_of_two(produced, 1, 64), 4, stages=1, warps=4)
    threads = 4 * target.warp_size
    if problem.direction == "wgrad":
        return _wgrad_tile(problem, target, threads)
    held = 16 // problem.itemsize
    most = MOST_WEIGHTS // (2 if target.backend == "cuda" else 4)  # AMD's compiler keeps more
    while held > 1 and held * along.filter > most:
        held //= 2
    if problem.layout == "nhwc":
        block_n = power_of_two(produced, 1, 64)
        block_m = max(1, threads * held // block_n)
        return Tile(block_m, block_n, 4, stages=1, warps=4)
    block_m = power_of_two(across.result, 1, threads)
    block_n = max(1, threads * min(held, 4) // block_m)
    strip = 8 if along.filter * along.stride <= 4 else 4
    return Tile(block_m, block_n, min(strip, power_of_two(along.result, 1, 8)), stages=1, warps=4)


def _wgrad_tile(problem: Problem, target: Target, threads: int) -> Tile:
    shape = problem.geometry
    along, across = axes(problem)
    held = 16 // problem.itemsize
    while held > 1 and held * along.filter > MOST_SUMS // 2:
        held //= 2
    block_n = power_of_two(shape.out_channels, 1, 64)
    if problem.layout == "nchw":  # each element has an address of its own
        held, block_n = max(1, held // 4), 1
    block_m = max(1, threads * held // block_n)
    strip = 4
    strips = along.result // whole_strip(along.result, strip)
    steps = cdiv(shape.batch * across.result * strips, block_m)
    tiles = cdiv(shape.out_channels, block_n)
    splits = splits_to_fill(4 * target.processors, tiles, steps // 4, 256)
    return Tile(block_m, block_n, strip, stages=1, warps=4, splits=splits)


# ---- axes and estimates ---------------------------------------------------------------------

# Strips of results by channels: neighbours lie along channels, or down the columns' lines.
AXES = Axes(
    block_m=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    block_n=(1, 2, 4, 8, 16, 32, 64, 128),
    block_k=(1, 2, 4, 8),
    stages=(1,),
    swizzle=(8,),
)


def tile_axes(problem: Problem) -> Axes:
    """Return the values that each field of a tile may take."""
    if problem.direction == "wgrad":
        return replace(AXES, splits=WGRAD_AXES.splits)
    return AXES


@dataclass(frozen=True)
class Strips(MatmulShape):
    """A depthwise pass: ``rows`` lines of images, cut into strips, by ``columns`` channels.

    A step takes one line of the filter; of wgrad, whose ``depth`` is positive, ``block_m`` strips
    and all lines of a program.
    """

    problem: Problem | None = None
    along: int = 1  # results of a line
    strided: int = 1  # places that a strip advances for each result
    read: int = 1  # places that one result reads
    whole: int = 1  # results that a strip is a multiple of

    @property
    def extents(self) -> tuple[int, int, int]:
        return self.rows, self.columns, self.along

    @property
    def streamed(self) -> bool:  # neighbours in time are neighbours on the image
        return True

    def strips(self, tile: Tile | Tiles) -> Count:
        return cdiv(self.along, self.strip(tile))

    def strip(self, tile: Tile | Tiles) -> Count:
        """Results of a strip; of a strided gradient, whole phases; of wgrad, a part of a line."""
        if self.depth:
            return for_each(partial(whole_strip, self.along), tile.block_k)
        return cdiv(tile.block_k, self.whole) * self.whole

    def lines(self, tile: Tile | Tiles) -> Count:
        """Lines of the filter that a step takes."""
        if not self.depth:
            return 1
        assert self.problem is not None
        return lines_of(self.problem, tile)

    def programs(self, tile: Tile | Tiles) -> Count:
        columns = self.column_tiles(tile) * self.instances
        if not self.depth:
            return self.row_tiles(tile) * self.strips(tile) * columns
        assert self.problem is not None
        _, across = axes(self.problem)
        return tile.splits * columns * cdiv(across.filter, self.lines(tile))

    def all_steps(self, tile: Tile | Tiles) -> Count:
        if self.depth:
            return cdiv(self.rows * self.strips(tile), tile.block_m)
        return self.taps + np.zeros(np.shape(tile.block_m))

    def places(self, tile: Tile | Tiles) -> Count:
        """Places that a strip reads, for one line of the filter."""
        return (self.strip(tile) // self.whole - 1) * self.strided + self.read

    def step_products(self, tile: Tile | Tiles) -> Count:
        return tile.block_m * tile.block_n * self.strip(tile) * self.lines(tile) * self.step_taps

    def fetched_bytes(self, problem: Problem, tile: Tile | Tiles) -> Count:
        places = self.places(tile) + (self.strip(tile) if self.depth else 0)
        beside, apart = tile.block_n, tile.block_m  # in memory
        if problem.layout == "nchw":
            beside, apart = apart, beside
        sectors = cdiv(beside * problem.itemsize, SECTOR)
        return apart * sectors * SECTOR * places


@lru_cache(maxsize=4096)
def matmul(problem: Problem) -> Strips:
    """Return the product of lines by channels; in dgrad a phase across strips is an instance."""
    shape = problem.geometry
    along, across = axes(problem)
    span = (along.filter - 1) * along.dilation + 1
    if problem.direction == "wgrad":
        lines = shape.batch * across.result
        return Strips(
            lines, shape.out_channels, lines, 1, 1, step_taps=along.filter, problem=problem,
            along=along.result, strided=along.stride, read=span,
        )  # fmt: skip
    if problem.direction == "fprop":
        return Strips(
            shape.batch * across.result, shape.out_channels, 0, across.filter, 1,
            step_taps=along.filter, along=along.result, strided=along.stride, read=span,
        )  # fmt: skip
    phases = min(across.stride, across.result)
    rounds = shape.out_channels // shape.in_channels
    return Strips(
        shape.batch * cdiv(across.result, across.stride), shape.in_channels, 0,
        rounds * across.filter / across.stride, phases, step_taps=cdiv(along.filter, along.stride),
        along=along.result, read=cdiv(span, along.stride), whole=along.stride,
    )  # fmt: skip


def sums(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return a program's accumulators: its results, in wgrad one for each tap along the strip."""
    along, _ = axes(problem)
    kept = along.filter if problem.direction == "wgrad" else tile.block_k
    return tile.block_m * tile.block_n * kept


def results(problem: Problem, tile: Tile | Tiles) -> Count:
    """Return the number of results that a program writes."""
    shape = matmul(problem)
    if problem.direction == "wgrad":
        return tile.block_n * shape.lines(tile) * shape.step_taps
    return tile.block_m * tile.block_n * shape.strip(tile)


def _held(problem: Problem, tile: Tile | Tiles, target: Target) -> tuple[Count, Count]:
    """Channels by strips that a thread holds, and how many of them one load brings."""
    held = np.maximum(1.0, tile.block_m * tile.block_n / (tile.warps * target.warp_size))
    widest = 16 // problem.itemsize if problem.layout == "nhwc" else 1
    return held, np.minimum(held, widest)


def demand(problem: Problem, tile: Tile | Tiles, target: Target) -> Demand:
    """Estimated registers and instructions of a thread, for one step."""
    shape, wgrad = matmul(problem), problem.direction == "wgrad"
    held, vector = _held(problem, tile, target)
    strip, lines, taps = shape.strip(tile), shape.lines(tile), shape.step_taps
    read = lines * shape.places(tile) + (strip if wgrad else taps)  # of both operands
    loads = read * held / vector
    instructions = held * strip * lines * taps + (held * read if problem.itemsize == 2 else 0.0)
    if not wgrad:
        instructions += INSTRUCTIONS_PER_LOAD * loads
        kept = accumulator_registers(problem, tile, target, sums(problem, tile))
        return Demand(REGISTERS_BESIDE_SUMS + kept + np.rint(held * (taps + 2)), instructions)
    instructions += WGRAD_STEP_INSTRUCTIONS * held / vector
    instructions += WGRAD_INSTRUCTIONS_PER_LOAD[problem.layout] * loads
    kept = accumulator_words(problem) * held * (1.2 * lines * taps + 1.6 * strip)
    end = _end_instructions(problem, tile, target, vector)
    return Demand(np.rint(WGRAD_REGISTERS + kept + loads), instructions, end_instructions=end)


def _end_instructions(problem: Problem, tile: Tile | Tiles, target: Target, vector: Count) -> Count:
    """Instructions of a warp of wgrad behind its loop, where each tap's sums are added up.

    A warp's lanes lie along channels first, then along strips, and so do warps. Sums are halved by
    shuffles within a warp; those of several warps meet in shared memory.
    """
    shape = matmul(problem)
    beside = np.minimum(target.warp_size, np.maximum(1, tile.block_n // vector))
    lanes = np.minimum(tile.block_m, target.warp_size // beside)
    warps_beside = np.clip(tile.block_n // (vector * beside), 1, tile.warps)
    warps = np.minimum(tile.warps // warps_beside, np.maximum(1, tile.block_m // lanes))
    sums_of_tap = np.maximum(1, tile.block_n // (beside * warps_beside))
    each = END_INSTRUCTIONS_PER_TAP + 2 * np.log2(lanes) * sums_of_tap
    shared = SHARED_INSTRUCTIONS_PER_TAP + SHARED_INSTRUCTIONS_PER_SUM * sums_of_tap
    each = each + np.where(warps > 1, shared + 2 * np.log2(warps), 0.0)
    return END_INSTRUCTIONS + shape.lines(tile) * shape.step_taps * each


def l1_reuse(problem: Problem) -> int:
    """Steps that read the same bytes: one for each line of the filter; wgrad takes them in one."""
    _, across = axes(problem)
    if problem.direction == "wgrad":
        return 0
    return cdiv(across.filter, across.stride) if problem.direction == "dgrad" else across.filter


FAMILY = Family(
    name="depthwise",
    unserved=unserved,
    heuristic=heuristic,
    product=product,
    wgrad=wgrad,
    axes=tile_axes,
    matmul=matmul,
    demand=demand,
    copies=True,
    matrix_unit=False,
    least_block=1,
    sums=sums,
    results=results,
    l1_reuse=l1_reuse,
)
