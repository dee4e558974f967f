"""A choice: a kernel family and its tile, for one problem."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tconv.algorithms import ALGORITHMS
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Tile

Ground = Literal["tuned", "shipped", "predicted", "heuristic"]


@dataclass(frozen=True)
class Choice:
    """A kernel, its tile, and why they were taken."""

    algorithm: str
    tile: Tile
    ground: Ground = field(default="heuristic", compare=False)


def serves(algorithm: str, problem: Problem, target: Target) -> bool:
    """Whether kernel family ``algorithm`` exists and can compute ``problem``."""
    family = ALGORITHMS.get(algorithm)
    return family is not None and family.unserved(problem, target) is None


def passed_over(problem: Problem, target: Target) -> dict[str, str]:
    """The kernel families that cannot serve ``problem``, and why."""
    reasons = {name: family.unserved(problem, target) for name, family in ALGORITHMS.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}
