"""Choose for an untuned layer the winner of the most similar tuned layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tconv.cost.space import broken_rule
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice
from tconv.winners import Winner

FURTHEST = 6 * math.log(2)  # six doublings, summed over all extents


def distance(one: Problem, other: Problem) -> float:
    """Return the distance of two problems: the sum of |ln| of their extents' ratios.

    The extents are output pixels, channels and filters of a group, and groups. Problems that differ
    in pass, dtype, filter, stride or dilation have infinite distance.
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
    """Return the tuned problems that are similar enough, nearest first."""
    near = ((distance(problem, other), other.key, other) for other in tuned if other != problem)
    return [other for apart, _, other in sorted(near, key=lambda e: e[:2]) if apart <= FURTHEST]


def neighbours_choice(
    problem: Problem, winners: Mapping[str, Winner], target: Target
) -> Choice | None:
    """Return the nearest tuned problem's winner that is legal here, or None."""
    tuned = {}
    for key, winner in winners.items():
        try:
            tuned[Problem.from_key(key)] = winner
        except ValueError:  # written by another version
            continue
    for other in by_distance(problem, tuned):
        choice = Choice(tuned[other].family, tuned[other].tile)
        if broken_rule(choice, problem, target) is None:
            return choice
    return None
