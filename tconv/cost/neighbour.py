"""The winner of the most similar tuned layer, for one that was never tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tconv.cost.space import broken_rule
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice
from tconv.winners import Winner

FURTHEST = 6 * math.log(2)  # six doublings, over all extents together


def distance(one: Problem, other: Problem) -> float:
    """How unlike two problems are: the sum of |ln| of their extents' ratios; infinite of kinds.

    Extents are pixels of the output, channels and filters of a group, and groups. Pass, dtype,
    filter, stride and dilation are kinds.
    """

    def kind(problem: Problem) -> tuple[object, ...]:
        shape = problem.geometry
        window = (shape.filter_h, shape.filter_w, shape.stride_h, shape.stride_w)
        return problem.direction, problem.dtype, problem.precision, problem.layout, window, (
            shape.dilation_h, shape.dilation_w)  # fmt: skip

    def extents(problem: Problem) -> tuple[int, ...]:
        shape = problem.geometry
        pixels = shape.batch * shape.out_h * shape.out_w
        return pixels, shape.group_in_channels, shape.group_out_channels, shape.groups

    if kind(one) != kind(other):
        return math.inf
    pairs = zip(extents(one), extents(other), strict=True)
    return sum(abs(math.log(max(a, 1) / max(b, 1))) for a, b in pairs)


def by_distance(problem: Problem, tuned: Iterable[Problem]) -> list[Problem]:
    """Those of ``tuned`` that are near enough to go by, the nearest first."""
    near = ((distance(problem, other), other.key, other) for other in tuned if other != problem)
    return [other for apart, _, other in sorted(near, key=lambda e: e[:2]) if apart <= FURTHEST]


def neighbours_choice(
    problem: Problem, winners: Mapping[str, Winner], target: Target
) -> Choice | None:
    """The nearest tuned problem's winner that is legal here; None where none is near."""
    tuned = {}
    for key, winner in winners.items():
        try:
            tuned[Problem.from_key(key)] = winner
        except ValueError:  # of another version's making
            continue
    for other in by_distance(problem, tuned):
        choice = Choice(tuned[other].family, tuned[other].tile)
        if broken_rule(choice, problem, target) is None:
            return choice
    return None
