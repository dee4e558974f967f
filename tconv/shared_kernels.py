"""Kernels that a process has chosen for a layer, which its other image sizes and batches share.

A kernel is compiled for a layer's channels, filter and tile, not for the size of its images. A size
that was never seen takes a kernel in use where the cost model says that it loses little.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from tconv.cost.cheapest import Best, cheapest_beside
from tconv.cost.model import Array, predict_all
from tconv.cost.space import RULES, broken_rule, case_of
from tconv.families import FAMILIES, serves
from tconv.launch import is_planning
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice, Tiles

TOLERATED = 0.12  # part of the predicted time that a kernel in use may lose against the best
MEANWHILE = 0.5  # the same while a better one can be compiled in the background
# The same against its own neighbour, the same tile as compiled for another shape of box.
TOLERATED_OF_BOXES = 0.15
BUCKETS = 4  # of sizes, for each doubling of the output's pixels
FORGONE = 0.08  # part of the predicted time that a new kernel may lose, if other sizes gain by it
# Times the pixels: where a new kernel of a layer whose sizes vary is judged.
OTHER_SIZES = (0.5, 2.0)
UNSERVED = 1.0  # logarithm of the loss counted where a kernel does not serve a size


@dataclass
class Kernels:
    """Of one layer, pass, dtype and layout on one target."""

    identities: set[Hashable] = field(default_factory=set)
    choices: list[Choice] = field(default_factory=list)  # one for each, with the size it is of
    doublings: set[int] = field(default_factory=set)  # of pixels, for which all were considered
    by_bucket: dict[int, Choice] = field(default_factory=dict)
    wanted: dict[Problem, Choice] = field(default_factory=dict)  # to compile in the background
    begun: set[Problem] = field(default_factory=set)  # those of ``wanted`` that are queued


@dataclass(frozen=True)
class InUse:
    """A choice of a kernel in use, with splits and shares that suit a size."""

    choice: Choice
    milliseconds: float
    enough: bool  # not where a tile in use needs another box here, and loses much without


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


def shared_choice(problem: Problem, target: Target) -> Choice:
    """A kernel in use that serves ``problem`` nearly as well as the best; else the best itself.

    All tiles are considered once for each doubling of the output's pixels.
    """
    found = _shared_choice(problem, target)
    return replace(found, at="") if found.at == size_of(problem) else found


def _shared_choice(problem: Problem, target: Target) -> Choice:
    octaves = math.log2(max(1, pixels_of(problem)))
    bucket, doubling = math.floor(octaves * BUCKETS), math.floor(octaves)
    with _lock:
        kernels = _in_use.setdefault((without_size(problem), target), Kernels())
        before = kernels.by_bucket.get(bucket)
        if before is not None and _serves_alike(before, problem, target, kernels):
            return before
        in_use = [each for made in kernels.choices for each in _shared_out(made, problem, target)]
        best = None
        if doubling not in kernels.doublings:
            best = cheapest_beside(in_use, problem, target)
        times = best.others if best else predict_all(problem, in_use, target)
        known = _best_in_use(problem, target, kernels.identities, in_use, times)
        if best is None and (known is None or not known.enough):
            best = cheapest_beside((), problem, target)
        found = _better(problem, known, best, target, kernels)
        kernels.doublings.add(doubling)
        kernels.by_bucket[bucket] = found
        return found


def _serves_alike(choice: Choice, problem: Problem, target: Target, kernels: Kernels) -> bool:
    """Whether a choice of the same bucket is legal here, and the same kernel."""
    if broken_rule(choice, problem, target) is not None:
        return False
    return identity(problem, choice, target) in kernels.identities


def _better(
    problem: Problem, known: InUse | None, best: Best | None, target: Target, kernels: Kernels
) -> Choice:
    """Return the kernel in use if it loses little against ``best``, else one that is then in use.

    ``best`` is None if the kernel in use is known to be good enough.
    """
    if known is not None:
        if best is None or known.milliseconds <= (1 + TOLERATED) * best.milliseconds:
            return known.choice
        if known.milliseconds <= (1 + _patience) * best.milliseconds and not is_planning():
            kernels.wanted[problem] = best.choice
            return known.choice
    assert best is not None
    made = _lasting(problem, best, target) if kernels.choices else best.choice
    choice = replace(made, at=size_of(problem))
    kernels.identities.add(identity(problem, choice, target))
    kernels.choices.append(choice)
    return choice


def _lasting(problem: Problem, best: Best, target: Target) -> Choice:
    """Return the kernel that loses least over this size and others, among the best of each.

    The sizes of a layer that needs a further kernel vary, and more of them will come.
    """
    bests = {problem: best}
    for other in _resized(problem):
        bests[other] = cheapest_beside((), other, target)
    found = {identity(problem, best.choice, target): best.choice}
    for other, its_best in list(bests.items())[1:]:
        kernel = identity(other, its_best.choice, target)
        here = _fastest(its_best.choice, kernel, problem, target)
        if here is not None and here.milliseconds <= (1 + FORGONE) * best.milliseconds:
            found.setdefault(kernel, here.choice)
    if len(found) == 1:
        return best.choice

    def loss(kernel: Hashable) -> float:
        lost = 0.0
        for other, its_best in bests.items():
            there = _fastest(found[kernel], kernel, other, target)
            ratio = math.inf if there is None else there.milliseconds / its_best.milliseconds
            lost += min(UNSERVED, math.log(ratio))
        return lost

    return found[min(found, key=loss)]


def _resized(problem: Problem) -> list[Problem]:
    """Return the problem with images of ``OTHER_SIZES`` into which the filter fits."""
    found, shape = [], problem.geometry
    for times in OTHER_SIZES:
        in_h, in_w = (max(1, round(extent * times**0.5)) for extent in (shape.in_h, shape.in_w))
        other = replace(shape, in_h=in_h, in_w=in_w)
        with contextlib.suppress(ValueError):
            other.validate()
            found.append(replace(problem, geometry=other))
    return found


def _fastest(made: Choice, kernel: Hashable, problem: Problem, target: Target) -> InUse | None:
    """Return the fastest choice for ``problem`` with the kernel of ``made``, or None."""
    choices = _shared_out(made, problem, target)
    times = predict_all(problem, choices, target)
    return _best_in_use(problem, target, {kernel}, choices, times)


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


def _best_in_use(
    problem: Problem,
    target: Target,
    kernels: Collection[Hashable],
    choices: Sequence[Choice],
    times: Array,
) -> InUse | None:
    """Return the fastest by ``times`` of the choices whose kernel is in ``kernels``, or None."""
    for place in np.argsort(times, kind="stable"):
        if identity(problem, choices[place], target) in kernels:
            enough = times[place] <= (1 + TOLERATED_OF_BOXES) * times.min()
            return InUse(choices[place], float(times[place]), bool(enough))
    return None


def _shared_out(made: Choice, problem: Problem, target: Target) -> Sequence[Choice]:
    """Return the legal choices of the same kernel: its splits, or its programs that take turns.

    Whether a reduction is split at all is compiled in, and so is the order of tiles.
    """
    if not serves(made.family, problem, target):
        return []
    family, tile = FAMILIES[made.family], made.tile
    axes = family.axes(problem)
    if tile.splits > 1:
        varied, values = "splits", [splits for splits in axes.splits if splits > 1]
    else:
        varied, values = "persistent", list(axes.persistent)
    tiles = replace(Tiles.of([tile] * len(values)), **{varied: np.array(values)})
    case = case_of(problem, family, target)
    legal = np.ones(len(tiles), dtype=bool)
    for _, allows in RULES:
        legal &= allows(tiles, case)
    return [replace(made, tile=tiles.tile(int(place))) for place in np.flatnonzero(legal)]
