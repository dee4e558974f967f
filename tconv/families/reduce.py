"""The last launch of a split reduction, which adds the partial results in order."""

from __future__ import annotations

from dataclasses import dataclass

from tconv.families.common import index_type, workspace_dtype
from tconv.families.epilogue import epilogue_operands, unpooled_constants
from tconv.geometry import cdiv
from tconv.launch import Buffer, Launch, Pointer
from tconv.problem import PLAIN, Epilogue, Layout, Problem

SUM_BLOCK = 1024  # elements a program: four for each thread of four warps, a 16-byte load
WORKSPACE = "workspace"
LEAST_SPLIT_STEPS = 4  # of a program's loop: fewer would be mostly prologue


@dataclass(frozen=True)
class Shares:
    """``steps`` of a reduction divided among programs, each of which has work.

    >>> Shares.of(steps=9, splits=4)
    Shares(splits=3, steps=3)
    """

    splits: int
    steps: int  # of one split

    @classmethod
    def of(cls, steps: int, splits: int) -> Shares:
        share = max(1, cdiv(steps, splits))
        return cls(max(1, cdiv(steps, share)), share)


def splits_to_fill(programs: int, tiles: int, steps: int, most: int) -> int:
    """Return the splits of ``tiles`` that make about ``programs``, each of at least one step.

    >>> splits_to_fill(264, tiles=18, steps=100, most=256)
    14
    """
    return max(1, min(programs // max(tiles, 1), steps, most))


def workspace(problem: Problem) -> Pointer:
    return Pointer(WORKSPACE, workspace_dtype(problem.dtype))


def _extent(problem: Problem, result: str) -> tuple[int, int, int]:
    """Return the channels, plane and elements of a result."""
    shape = problem.geometry
    if result == "y":
        return shape.out_channels, shape.out_h * shape.out_w, shape.y_elements
    if result == "dx":
        return shape.in_channels, shape.in_h * shape.in_w, shape.x_elements
    return shape.group_in_channels, shape.taps, shape.w_elements


def parts_buffer(problem: Problem, result: str, splits: int, width: int | None = None) -> Buffer:
    """Return the buffer of the parts: [splits, images or filters, plane, channels or ``width``]."""
    channels, _, elements = _extent(problem, result)
    elements = elements // channels * (width or channels)
    return Buffer(splits * elements, workspace_dtype(problem.dtype))


def add_parts(
    problem: Problem,
    total: str,
    layout: Layout,
    splits: int,
    epilogue: Epilogue = PLAIN,
    width: int | None = None,
) -> Launch:
    """Return the launch that forms ``total`` (y, dx or dw, in ``layout``) from channels_last parts.

    Parts may have ``width`` channels, more than the result.
    """
    channels, plane, elements = _extent(problem, total)
    operands = {"workspace": workspace(problem), "total": Pointer(total, problem.dtype)}
    operands |= epilogue_operands(epilogue, problem.dtype)
    constants = unpooled_constants(epilogue) | {
        "CHANNELS": channels,
        "WIDTH": width or channels,
        "PLANE_FIRST": layout == "nhwc",
        "INDEX": index_type(splits * elements // channels * (width or channels)),
        "BLOCK": SUM_BLOCK,
    }
    return Launch(
        "reduce.add_splits",
        (cdiv(elements, SUM_BLOCK),),
        operands,
        {"elements": elements, "splits": splits, "plane": plane},
        constants,
    )
