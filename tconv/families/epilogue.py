"""Operands, compile-time values and registers of a forward launch's epilogue."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tconv.families.demand import LEAST_DOT, REGISTERS_PER_THREAD, accumulator_registers
from tconv.launch import Pointer
from tconv.problem import Epilogue, Problem
from tconv.target import Target
from tconv.tile import Tile

NORM = ("norm_weight", "norm_bias", "norm_mean", "norm_var")
TENSORS = ("bias", *NORM, "residual", "kept", "offsets")


def epilogue_operands(epilogue: Epilogue, dtype: str) -> dict[str, Pointer]:
    """Return the tensors that an epilogue reads or writes besides the result."""
    dtypes = {name: dtype for name in ("bias", "residual", "kept") if getattr(epilogue, name)}
    if epilogue.norm is not None:
        there = (epilogue.norm.weight, epilogue.norm.bias, True, True)
        given = [name for name, is_there in zip(NORM, there, strict=True) if is_there]
        dtypes |= dict.fromkeys(given, epilogue.norm.dtype)
    if epilogue.offsets:
        dtypes["offsets"] = "int8"
    return {name: Pointer(name, dtypes[name]) for name in TENSORS if name in dtypes}


def epilogue_constants(epilogue: Epilogue) -> dict[str, Any]:
    """Return the compile-time values of an epilogue; None for each tensor that it does not use."""
    given = epilogue_operands(epilogue, "float32")
    return {
        "EPS": epilogue.norm.eps if epilogue.norm is not None else 0.0,
        "ACTIVATION": epilogue.activation,
        "SLOPE": epilogue.slope,
        "RESIDUAL_AFTER": epilogue.residual_after,
        "POOL": epilogue.pool,
    } | dict.fromkeys(name for name in TENSORS if name not in given)


def unpooled_constants(epilogue: Epilogue) -> dict[str, Any]:
    """Return the compile-time values for a kernel that cannot pool and has no such parameter."""
    constants = epilogue_constants(epilogue)
    return {name: constants[name] for name in constants if name not in ("POOL", "offsets")}


def place_words(problem: Problem) -> int:
    """Return the registers that a gathering dgrad holds with each sum for the place of its pixel.

    Two are the pixel's place in its phase. In nchw each sum also has addresses of its own, of two
    registers each, to load from and to store at.
    """
    if problem.direction != "dgrad":
        return 0
    return 2 if problem.layout == "nhwc" else 6


def lightened(
    tile: Tile,
    epilogue: Epilogue,
    problem: Problem,
    target: Target,
    boxes: bool = False,
    beside: int = 0,
) -> Tile:
    """Return ``tile``, or a smaller one whose threads hold all that the epilogue needs at once.

    Beside each sum a thread holds an element of the residual, of the kept argument and of the
    offsets; the exact GELU keeps intermediate values as well. A tile of sums alone may fill half
    of the registers, and would spill with these. On sm_100 sums come from tensor memory row by
    row: unless ``boxes`` are stored, each has its own addresses for loads and for stores, of two
    registers each. ``beside`` is the number of registers that the kernel holds with each sum.

    >>> from tconv.geometry import ConvGeometry
    >>> from tconv.problem import BatchNorm
    >>> from tconv.target import TARGETS
    >>> problem = Problem(ConvGeometry(64, 256, 56, 56, 256, 3, 3), "fprop")
    >>> tile, norm = Tile(128, 256, 64, warps=8), BatchNorm("float32", 1e-5)
    >>> lightened(tile, Epilogue(norm=norm, activation="relu"), problem, TARGETS["sm_90"]) == tile
    True
    >>> whole = Epilogue(norm=norm, residual=True, activation="relu")
    >>> lightened(tile, whole, problem, TARGETS["sm_90"]).block_n
    128
    """
    words = 1 + epilogue.residual + epilogue.kept + epilogue.offsets
    words += epilogue.activation == "gelu"
    if words == 1 and not (beside and epilogue.norm):  # a norm alone spills only with places
        return tile
    if target.backend not in REGISTERS_PER_THREAD:
        return tile
    if target.sm >= 100 and not boxes:
        words += 4
    words += beside
    limit = REGISTERS_PER_THREAD[target.backend]
    while True:
        sums = accumulator_registers(problem, tile, target, tile.block_m * tile.block_n)
        larger = "block_m" if tile.block_m > tile.block_n else "block_n"
        block = getattr(tile, larger)
        if words * sums <= limit or block <= LEAST_DOT:
            return tile
        tile = replace(tile, **{larger: block // 2})
