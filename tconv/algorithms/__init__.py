"""The kernel families that can serve a convolution: one module each, three functions alike.

    unserved(problem, target)   None, or one line that says why the family cannot serve it
    heuristic(problem, target)  the tile of an untuned layer
    plan(problem, tile, ...)    the launches that compute it

All of it is arithmetic: no tensor, no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tconv.algorithms import depthwise, direct, few_channels, grouped, pointers, tma
from tconv.launch import Plan
from tconv.problem import PLAIN, Epilogue, Layout, Problem
from tconv.target import Target
from tconv.tile import Tile


class Unserved(Protocol):
    def __call__(self, problem: Problem, target: Target) -> str | None: ...


class Heuristic(Protocol):
    def __call__(self, problem: Problem, target: Target) -> Tile: ...


class Planner(Protocol):
    def __call__(
        self,
        problem: Problem,
        tile: Tile,
        target: Target,
        epilogue: Epilogue = PLAIN,
        w_layout: Layout = "nhwc",
    ) -> Plan: ...


@dataclass(frozen=True)
class Algorithm:
    """One kernel family."""

    unserved: Unserved
    heuristic: Heuristic
    plan: Planner


GENERAL = "implicit_gemm"  # serves everything
IN_PLACE = "implicit_gemm_in_place"
DIRECT = "direct"
DEPTHWISE = "depthwise"
GROUPED = "grouped"
FEW_CHANNELS = "few_channels"
BOXED = "implicit_gemm_tma"
ALGORITHMS = {
    GENERAL: Algorithm(pointers.unserved, pointers.heuristic, pointers.plan),
    IN_PLACE: Algorithm(
        pointers.unserved_in_place, pointers.heuristic_in_place, pointers.plan_in_place
    ),
    DEPTHWISE: Algorithm(depthwise.unserved, depthwise.heuristic, depthwise.plan),
    GROUPED: Algorithm(grouped.unserved, grouped.heuristic, grouped.plan),
    DIRECT: Algorithm(direct.unserved, direct.heuristic, direct.plan),
    FEW_CHANNELS: Algorithm(few_channels.unserved, few_channels.heuristic, few_channels.plan),
    BOXED: Algorithm(tma.unserved, tma.heuristic, tma.plan),
}
