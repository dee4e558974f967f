"""What compiled code will probably take, before it is compiled; and how much fits a processor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tconv.algorithms import BOXED, DEPTHWISE, DIRECT, FEW_CHANNELS, GROUPED, IN_PLACE, few_channels
from tconv.choice import Choice
from tconv.cost.product import Strips, product_of
from tconv.cost.space import REGISTERS_PER_THREAD, accumulator_registers, shared_bytes, sums
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Tile

# Hardware facts: CUDA C++ Programming Guide ("Compute Capabilities"), CDNA3 ISA guide.
REGISTER_GRAIN = {"cuda": 8, "hip": 8}  # a thread's registers are allotted in eights
SCHEDULERS = 4  # a processor's register file and warps are shared among four, evenly
RESERVED_SHARED = {"cuda": 1024, "hip": 0}  # bytes a program, for the system
SHARED_GRAIN = 128  # bytes
WGMMA_ROWS = 64  # of one warp group's matrix instruction; it reads both operands from shared memory
# Fitted to 126 compiled kernels (sm_90, layers of LeNet-5 and VGG-16, random tiles). A load
# brings its mask and address; wgrad finds both for each pixel of x anew at every step.
LOOP_INSTRUCTIONS = {"fprop": 60.0, "dgrad": 66.0, "wgrad": 70.0}
INSTRUCTIONS_PER_LOAD = {"fprop": (6.0, 6.0), "dgrad": (8.0, 6.0), "wgrad": (9.0, 34.0)}
INSTRUCTIONS_ACROSS_TAPS = 20.0  # of wgrad's load of one element, where a tile spans taps
REGISTERS_BESIDE_ACCUMULATOR = 40
# Of the loop that boxes feed (9 compiled kernels, sm_90): no thread computes an address.
BOXED_INSTRUCTIONS, BOXED_PER_PRODUCT, BOXED_REGISTERS = 86.0, 3.0, 27
REGISTERS_PER_LOAD = {"fprop": 4, "dgrad": 8, "wgrad": 4}
# Before sm_90 the elements that narrow groups are gathered from wait in registers, addresses and
# all (6 compiled kernels, sm_80, Triton 3.9; 3.7 takes a tenth less).
REGISTERS_PER_GATHERED = 14
REGISTERS_ACROSS_TAPS = 7  # as Triton 3.6 compiles wgrad; later ones make do with 3
# Of direct sums (24 compiled kernels, sm_90, LeNet-5's layers): a load brings its mask and, in 16
# bits, a conversion; all loads of a step wait in registers.
DIRECT_INSTRUCTIONS, DIRECT_WGRAD_INSTRUCTIONS, DIRECT_PER_LOAD = 60.0, 110.0, 1.6
DIRECT_REGISTERS = 40
STRIP_PER_LOAD = 5.0  # a depthwise load, with its mask and the zeros that stand in


@dataclass(frozen=True)
class Resources:
    """What the compiled code takes, read from the binary."""

    registers: int  # a thread
    spill_bytes: int  # a thread, on the stack
    shared_bytes: int  # a program
    instructions: int  # of the innermost matrix loop; 0 where it could not be read


def loads_per_step(choice: Choice, problem: Problem, target: Target) -> tuple[float, float]:
    """Load instructions a thread and step for either operand, each of up to 16 bytes.

    Neighbours lie along channels; where channels end before 16 bytes do, or a tile spans
    several taps, a load fetches less. Of contiguous tensors read in place it fetches one
    element: neighbours lie along rows, which begin anywhere.
    """
    tile = choice.tile
    shape = problem.geometry
    widest = 16 // problem.itemsize
    threads = tile.warps * target.warp_size

    def width(neighbours: int, block: int) -> int:
        return math.gcd(widest, neighbours) if neighbours % block else min(widest, block)

    reduced, produced = shape.group_in_channels, shape.group_out_channels
    if choice.algorithm == DIRECT:
        return _direct_loads(choice, problem, target)
    if choice.algorithm == DEPTHWISE:
        return _strip_loads(choice, problem, target)
    if choice.algorithm == GROUPED and problem.direction != "wgrad":
        groups = math.gcd(widest, reduced)  # filters lie group by group, pixels do not
        pixels = tile.block_m * tile.block_k / widest / threads
        return pixels, tile.block_k * tile.block_n / groups / threads
    if choice.algorithm == FEW_CHANNELS:  # widened pixels lie side by side, any of them first
        pixel = min(widest, few_channels.pixel_width(problem))
        row = width(few_channels.row_length(problem), tile.block_k)
        widths = (pixel, row) if problem.direction == "fprop" else (
            width(produced, tile.block_m), pixel
        )  # fmt: skip
    elif choice.algorithm == IN_PLACE:
        filters = width(reduced, tile.block_k if problem.direction == "fprop" else tile.block_n)
        widths = 1, 1 if problem.direction == "wgrad" else filters
    elif problem.direction == "fprop":
        widths = width(reduced, tile.block_k), width(reduced, tile.block_k)
    elif problem.direction == "dgrad":
        widths = width(produced, tile.block_k), width(reduced, tile.block_n)
    else:
        columns = 1 if spans_taps(choice, problem) else width(reduced, tile.block_n)
        widths = width(produced, tile.block_m), columns
    first = tile.block_m * tile.block_k / widths[0] / threads
    return first, tile.block_k * tile.block_n / widths[1] / threads


def _direct_loads(choice: Choice, problem: Problem, target: Target) -> tuple[float, float]:
    """The same where each thread loads what its own sums need, an element at a time."""
    tile = choice.tile
    threads = tile.warps * target.warp_size
    if problem.direction == "wgrad":
        pixels = max(1.0, tile.block_k / threads)
        others = tile.block_m * tile.block_n * tile.block_k / threads / pixels
        filters = min(tile.block_m, others)
        return pixels * filters, pixels * others / filters
    pixels = max(1.0, tile.block_m / threads)
    channels = sums(choice, problem) / threads / pixels
    taps = problem.geometry.filter_w
    return pixels * taps, channels * taps


def _strip_loads(choice: Choice, problem: Problem, target: Target) -> tuple[float, float]:
    """Loads a thread of places and of weights, for one line of a depthwise filter."""
    tile, product = choice.tile, product_of(problem, DEPTHWISE)
    assert isinstance(product, Strips)
    held = tile.block_m * tile.block_n / (tile.warps * target.warp_size)
    vector = min(held, 16 // problem.itemsize) if problem.layout == "nhwc" else 1.0
    each = max(1.0, held / max(1.0, vector))
    if problem.direction == "wgrad":
        return product.places(tile) * each, tile.block_k * each
    return product.places(tile) * each, product.step_taps * each


def _strip_resources(choice: Choice, problem: Problem, target: Target) -> Resources:
    """Of depthwise code (65 compiled kernels, sm_90): each place is loaded, widened and used."""
    tile, product = choice.tile, product_of(problem, DEPTHWISE)
    assert isinstance(product, Strips)
    limit = REGISTERS_PER_THREAD.get(target.backend, 255)
    held = max(1.0, tile.block_m * tile.block_n / (tile.warps * target.warp_size))
    places, weights = _strip_loads(choice, problem, target)
    widened = held * (product.places(tile) + product.step_taps)
    instructions = STRIP_PER_LOAD * (places + weights)
    instructions += held * tile.block_k * product.step_taps
    instructions += widened if problem.itemsize == 2 else 0.0
    kept = accumulator_registers(choice, problem, target)
    registers = DIRECT_REGISTERS + kept + round(held * (product.step_taps + 2))
    spilled = max(0, registers - limit) * 4
    return Resources(min(limit, registers), spilled, 0, round(instructions))


def spans_taps(choice: Choice, problem: Problem) -> bool:
    """Whether a tile of wgrad's columns lies across filter taps, a mask for each element."""
    if problem.direction != "wgrad" or choice.algorithm in (
        FEW_CHANNELS,
        DIRECT,
        DEPTHWISE,
        GROUPED,
    ):
        return False
    return problem.geometry.group_in_channels % choice.tile.block_n != 0


def _registers(choice: Choice, problem: Problem, target: Target, loads: float) -> int:
    """A thread's, of a matrix loop that gathers its operands by ``loads`` a step."""
    tile = choice.tile
    crowded = target.backend == "cuda" and target.sm < 90
    if choice.algorithm == GROUPED and problem.direction != "wgrad" and crowded:
        gathered = tile.block_m * tile.block_n / (tile.warps * target.warp_size)
        return REGISTERS_BESIDE_ACCUMULATOR + round(REGISTERS_PER_GATHERED * gathered)
    across = spans_taps(choice, problem)
    per_load = REGISTERS_ACROSS_TAPS if across else REGISTERS_PER_LOAD[problem.direction]
    kept = accumulator_registers(choice, problem, target)
    return kept + REGISTERS_BESIDE_ACCUMULATOR + round(per_load * loads)


def estimated_resources(choice: Choice, problem: Problem, target: Target) -> Resources:
    """What the compiled code will probably take; the compiler's own figures replace this."""
    tile = choice.tile
    limit = REGISTERS_PER_THREAD.get(target.backend, 255)
    shared = shared_bytes(choice, problem, target)
    if choice.algorithm == BOXED:
        products = matrix_instructions(as_issued(choice, problem), problem, target)
        registers = accumulator_registers(choice, problem, target) + BOXED_REGISTERS
        spilled = max(0, registers - limit) * 4
        steps = round(BOXED_INSTRUCTIONS + BOXED_PER_PRODUCT * products)
        return Resources(min(limit, registers), spilled, shared, steps)
    if choice.algorithm == DEPTHWISE:
        return _strip_resources(choice, problem, target)
    first, second = loads_per_step(choice, problem, target)
    if choice.algorithm == DIRECT:
        return _direct_resources(choice, problem, target, first + second)
    per_first, per_second = INSTRUCTIONS_PER_LOAD[problem.direction]
    if spans_taps(choice, problem):
        per_second = INSTRUCTIONS_ACROSS_TAPS
    instructions = LOOP_INSTRUCTIONS[problem.direction] + per_first * first + per_second * second
    instructions += matrix_instructions(tile, problem, target)
    registers = _registers(choice, problem, target, first + second)
    return Resources(
        registers=min(limit, registers),
        spill_bytes=max(0, registers - limit) * 4,
        shared_bytes=shared,
        instructions=round(instructions),
    )


def _direct_resources(choice: Choice, problem: Problem, target: Target, loads: float) -> Resources:
    limit = REGISTERS_PER_THREAD.get(target.backend, 255)
    outputs = accumulator_registers(choice, problem, target)
    registers = DIRECT_REGISTERS + outputs + round(1.2 * loads)
    conversions = loads if problem.itemsize == 2 else 0.0
    forward = problem.direction != "wgrad"
    instructions = DIRECT_INSTRUCTIONS if forward else DIRECT_WGRAD_INSTRUCTIONS
    instructions += DIRECT_PER_LOAD * loads + conversions
    instructions += outputs * product_of(problem, DIRECT).step_taps
    # Loads wait for registers before anything is spilled: only the sums must stay.
    spilled = max(0, DIRECT_REGISTERS + outputs - limit) * 4
    return Resources(min(limit, registers), spilled, 0, round(instructions))


def as_issued(choice: Choice, problem: Problem) -> Tile:
    """The tile as the matrix unit sees it: boxes of pixels are columns there, channels rows."""
    tile = choice.tile
    if choice.algorithm == BOXED and problem.direction != "wgrad":
        return replace(tile, block_m=tile.block_n, block_n=tile.block_m)
    return tile


def matrix_instructions(tile: Tile, problem: Problem, target: Target) -> float:
    """Multiply instructions a warp and step."""
    products = tile.block_m * tile.block_n * tile.block_k
    if problem.arithmetic == "float32" and target.backend == "cuda":
        return products / (tile.warps * target.warp_size)  # one multiply-add a thread
    if uses_wgmma(tile, problem, target):
        return max(1.0, products * problem.itemsize / (WGMMA_ROWS * tile.block_n * 32)) / (
            tile.warps / 4
        )
    depth = 32 // problem.itemsize  # m16n8k16 in 16 bits, k8 in tf32, k4 in fp64
    return products / (16 * 8 * depth) / tile.warps


def uses_wgmma(tile: Tile, problem: Problem, target: Target) -> bool:
    """Whether the matrix unit reads shared memory itself: a warp group, 64 rows, not fp64."""
    if target.sm < 90:
        return False
    suitable = problem.arithmetic not in ("float32", "float64")
    return suitable and tile.warps % 4 == 0 and tile.block_m >= WGMMA_ROWS


def resident_programs(resources: Resources, warps: int, target: Target) -> int:
    """Programs that one processor holds at once; 0 where one alone is too large."""
    if resources.shared_bytes > target.shared_per_program:
        return 0
    grain = REGISTER_GRAIN.get(target.backend, 8)
    registers = math.ceil(max(resources.registers, 1) / grain) * grain * target.warp_size
    # Each scheduler serves its own quarter of the register file.
    warps_by_registers = target.registers_per_processor // SCHEDULERS // registers * SCHEDULERS
    taken = resources.shared_bytes + RESERVED_SHARED.get(target.backend, 0)
    taken = math.ceil(taken / SHARED_GRAIN) * SHARED_GRAIN
    by_shared = target.shared_per_processor // taken if taken else target.programs_per_processor
    by_warps = target.warps_per_processor // warps
    return min(by_warps, warps_by_registers // warps, by_shared, target.programs_per_processor)
