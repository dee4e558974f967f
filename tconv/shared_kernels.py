"""Kernels that a process has chosen for a layer, which its other image sizes and batches share.

A kernel is compiled for a layer's channels, filter and tile, not for the size of its images. A size
that was never seen takes a kernel in use where the cost model says that it loses little.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from tconv.cost.model import predict_all
from tconv.cost.space import RULES, broken_rule, case_of
from tconv.families import FAMILIES, serves
from tconv.launch import is_planning
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tiles

TOLERATED = 0.1  # part of the predicted time that a kernel in use may lose against the best
MEANWHILE = 0.5  # the same while a better one can be compiled in the background
# The same against its own neighbour, the same tile as compiled for another shape of box.
TOLERATED_OF_BOXES = 0.15
BUCKETS = 4  # of sizes, for each doubling of the output's pixels


@dataclass
class Kernels:
    """Of one layer, pass, dtype and layout on one target."""

    identities: set[Hashable] = field(default_factory=set)
    choices: list[Choice] = field(default_factory=list)  # one for each, with the size it is of
    doublings: set[int] = field(default_factory=set)  # of pixels, for which all were considered
    by_bucket: dict[int, Choice] = field(default_factory=dict)
    wanted: dict[Problem, Choice] = field(default_factory=dict)  # to compile in the background
    begun: set[Problem] = field(default_factory=set)  # those of ``wanted`` that are queued


_in_use: dict[tuple[Problem, Target], Kernels] = {}
_lock = threading.RLock()
_patience = TOLERATED


def set_patience(loss: float) -> None:
    """Set the loss up to which a kernel in use serves although a better one would be compiled."""
    global _patience
    _patience = loss


def forget() -> None:
    """Choose anew."""
    with _lock:
        _in_use.clear()


@lru_cache(maxsize=4096)
def without_size(problem: Problem) -> Problem:
    """The problem of one pixel and image: equal for all sizes of one layer."""
    return replace(problem, geometry=replace(problem.geometry, batch=1, in_h=1, in_w=1))


def size_of(problem: Problem) -> str:
    """Batch and image size, as an explanation names them."""
    shape = problem.geometry
    return f"{shape.in_h}x{shape.in_w}, batch {shape.batch}"


def pixels_of(problem: Problem) -> int:
    """Pixels of the output, over the whole batch."""
    return problem.geometry.batch * problem.geometry.out_h * problem.geometry.out_w


def identity(problem: Problem, choice: Choice, target: Target) -> Hashable:
    """What the compiled product kernel of a choice is known by."""
    plan = FAMILIES[choice.family].plan(problem, choice.tile, target)
    return plan.launches[plan.product].identity


def shared_choice(
    problem: Problem, target: Target, best_of_all: Callable[[Problem, Target], Choice]
) -> Choice:
    """A kernel in use that serves ``problem`` nearly as well as the best; else the best itself.

    ``best_of_all`` is asked once for each doubling of the output's pixels.
    """
    found = _shared_choice(problem, target, best_of_all)
    return replace(found, at="") if found.at == size_of(problem) else found


def _shared_choice(
    problem: Problem, target: Target, best_of_all: Callable[[Problem, Target], Choice]
) -> Choice:
    octaves = math.log2(max(1, pixels_of(problem)))
    bucket, doubling = math.floor(octaves * BUCKETS), math.floor(octaves)
    with _lock:
        kernels = _in_use.setdefault((without_size(problem), target), Kernels())
        before = kernels.by_bucket.get(bucket)
        if before is not None and _serves_alike(before, problem, target, kernels):
            return before
        known, enough = _best_in_use(problem, target, kernels)
        found = known
        if found is None or not enough or doubling not in kernels.doublings:
            found = _better(problem, target, known, best_of_all(problem, target), kernels)
        kernels.doublings.add(doubling)
        kernels.by_bucket[bucket] = found
        return found


def _serves_alike(choice: Choice, problem: Problem, target: Target, kernels: Kernels) -> bool:
    """Whether a choice of the same bucket is legal here, and the same kernel."""
    if broken_rule(choice, problem, target) is not None:
        return False
    return identity(problem, choice, target) in kernels.identities


def _better(
    problem: Problem, target: Target, found: Choice | None, best: Choice, kernels: Kernels
) -> Choice:
    """``found``, where it loses little against ``best``; else ``best``, which is then in use."""
    if found is not None:
        time, least = predict_all(problem, [found, best], target)
        if time <= (1 + TOLERATED) * least:
            return found
        if time <= (1 + _patience) * least and not is_planning():
            kernels.wanted[problem] = best
            return found
    best = replace(best, at=size_of(problem))
    kernels.identities.add(identity(problem, best, target))
    kernels.choices.append(best)
    return best


def wanted(problem: Problem, target: Target) -> Choice | None:
    """Return the better choice for ``problem`` that is not compiled yet, or None."""
    with _lock:
        kernels = _in_use.get((without_size(problem), target))
        return None if kernels is None else kernels.wanted.get(problem)


def start(problem: Problem, target: Target) -> Choice | None:
    """Return the better choice to compile for ``problem``: each is returned once, else None."""
    with _lock:
        kernels = _in_use.get((without_size(problem), target))
        if kernels is None or problem not in kernels.wanted or problem in kernels.begun:
            return None
        kernels.begun.add(problem)
        return kernels.wanted[problem]


def settle(problem: Problem, choice: Choice, target: Target, compiled: bool) -> None:
    """End the wait of ``problem`` for ``choice``, which is in use from now on if ``compiled``."""
    with _lock:
        kernels = _in_use.get((without_size(problem), target))
        if kernels is None:  # forgotten meanwhile
            return
        kernels.wanted.pop(problem, None)
        kernels.begun.discard(problem)
        if compiled:
            kernels.identities.add(identity(problem, choice, target))
            kernels.choices.append(replace(choice, at=size_of(problem)))
            kernels.by_bucket.clear()


def _best_in_use(problem: Problem, target: Target, kernels: Kernels) -> tuple[Choice | None, bool]:
    """The kernel in use that is predicted fastest, with splits and shares that suit this size.

    And whether it will do: not where a tile in use needs another box here, and loses much without.
    """
    choices = [choice for made in kernels.choices for choice in _shared_out(made, problem, target)]
    if not choices:
        return None, False
    times = predict_all(problem, choices, target)
    for place in np.argsort(times, kind="stable"):
        if identity(problem, choices[place], target) in kernels.identities:
            return choices[place], times[place] <= (1 + TOLERATED_OF_BOXES) * times.min()
    return None, False


def _shared_out(made: Choice, problem: Problem, target: Target) -> Iterable[Choice]:
    """Legal choices of the same kernel: splits of its reduction, and programs that take turns.

    Whether a reduction is split at all is compiled in, and so is the order of tiles.
    """
    if not serves(made.family, problem, target):
        return []
    family, tile = FAMILIES[made.family], made.tile
    axes = family.axes(problem)
    if tile.splits > 1:
        tiles = [replace(tile, splits=splits) for splits in axes.splits if splits > 1]
    else:
        tiles = [replace(tile, persistent=share) for share in axes.persistent]
    found, case = Tiles.of(tiles), case_of(problem, family, target)
    for _, allows in RULES:
        found = found.take(allows(found, case))
    return [replace(made, tile=found.tile(place)) for place in range(len(found))]
