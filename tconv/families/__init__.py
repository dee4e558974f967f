"""The kernel families that compute convolutions, each in a module of its own.

Adding a family takes a module that defines a ``Family`` and a line in ``FAMILIES``.
"""

from __future__ import annotations

from functools import lru_cache

from tconv.families import (
    depthwise,
    direct,
    few_channels,
    grouped,
    implicit_gemm,
    implicit_gemm_tma,
)
from tconv.families.family import Axes, Family
from tconv.families.matmul import MatmulShape
from tconv.problem import Problem
from tconv.target import Target

__all__ = ["FAMILIES", "Axes", "Family", "MatmulShape", "matmul_shape", "passed_over", "serving"]

# By name. Recorded search spaces count families by their place here: new ones go to the end.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        implicit_gemm.FAMILY,  # serves every problem
        implicit_gemm.IN_PLACE,
        depthwise.FAMILY,
        grouped.FAMILY,
        direct.FAMILY,
        few_channels.FAMILY,
        implicit_gemm_tma.FAMILY,
    )
}


def serves(name: str, problem: Problem, target: Target) -> bool:
    """Return whether family ``name`` exists and can compute ``problem``."""
    family = FAMILIES.get(name)
    return family is not None and family.unserved(problem, target) is None


def serving(problem: Problem, target: Target) -> list[Family]:
    """Return the families that can compute ``problem`` on ``target``."""
    return [family for family in FAMILIES.values() if family.unserved(problem, target) is None]


def passed_over(problem: Problem, target: Target) -> dict[str, str]:
    """Return the families that cannot compute ``problem``, and why."""
    reasons = {name: family.unserved(problem, target) for name, family in FAMILIES.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


@lru_cache(maxsize=4096)
def matmul_shape(problem: Problem, family: str) -> MatmulShape:
    """Return the matrix product that ``family`` forms to compute ``problem``."""
    return FAMILIES[family].matmul(problem)
