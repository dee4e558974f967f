"""The default: a forest's promise, sought in the whole space, around the best, and between them.

A surrogate alone gets caught in a region, local search alone needs many steps. Here a forest ranks,
and chance decides where it may look: anywhere, among the neighbours of a good configuration, within
two changes of it, or among the crosses of two. A few picks are blind. For half of the picks a part
of what was tried is forgotten, and the best of the rest is good: as on islands, a second region
is searched while the first still leads.

The first configurations are mostly drawn from the middle of the space: who writes a range down
surrounds what he hopes for, so that the ends of many ranges at once are seldom good.

All this is for spaces of which nothing is known. Where a model knows the kernel, it is followed and
corrected (see ``corrected``).
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import Evaluate, SearchSpace, Times
from autotune.strategies.corrected import corrected
from autotune.strategies.forest import expected_improvement, features, scores
from autotune.strategies.local import elite, local

STARTS = 8
CENTRAL_STARTS, CENTRAL_SHARE = 6, 0.25  # of them, from so much of the space
FORGETTING = 0.5  # of the picks
REMEMBERED = (0.5, 0.25, 0.12)  # shares of what was tried, of those picks
BLIND_SHARE = 0.05  # of the picks
PLACES = {"anywhere": 0.35, "neighbour": 0.25, "two changes": 0.2, "cross": 0.2}
# Mean rank of what neighbours are sought of, and of what it is crossed with.
ELITE, PARTNER = 2.0, 4.0
PICKS_SHARE = 1 / 100  # of what was tried: so many are picked before the forest grows anew


def combined(space: SearchSpace, evaluate: Evaluate, generator: np.random.Generator) -> None:
    """Try configurations until the space is spent; where a model knows them, by its corrections."""
    if space.predicted is not None:
        return corrected(space, evaluate, generator)
    if importlib.util.find_spec("sklearn") is None:
        warnings.warn(
            "scikit-learn is not installed, so that the search goes on without its forest, by "
            "local steps alone: python -m pip install 'tconv[search]'",
            stacklevel=2,
        )
        return local(space, evaluate, generator)
    described = features(space)
    untried = np.ones(len(space), dtype=bool)
    tried: list[int] = []
    times: list[float] = []

    def attempt(places: list[int]) -> None:
        untried[places] = False
        times.extend(evaluate(places).tolist())
        tried.extend(places)

    attempt(_starts(space, generator))
    while untried.any():
        rest = np.flatnonzero(untried)
        if np.isnan(times).all():
            attempt([int(generator.choice(rest))])
            continue
        score = scores(np.array(times))
        promise = np.full(len(space), -np.inf)
        promise[rest] = expected_improvement(
            described[tried], score, described[rest], int(generator.integers(1 << 31))
        )
        best = np.array(tried)[np.argsort(score, kind="stable")]
        if generator.random() < FORGETTING:
            kept = generator.random(len(best)) < generator.choice(REMEMBERED)
            best = best[kept] if kept.any() else best
        picks: list[int] = []
        for _ in range(min(len(rest), 1 + int(len(tried) * PICKS_SHARE))):
            place = _pick(space, promise, best, generator)
            promise[place] = -np.inf
            picks.append(place)
        attempt(picks)


def _starts(space: SearchSpace, generator: np.random.Generator) -> list[int]:
    """Configurations by chance, most of them near the middle of those ranges that have one."""
    counts = space.levels.max(0) + 1
    ranges = counts > 2  # a switch has two ends and no middle
    off = (((space.levels + 0.5) / counts - 0.5) ** 2)[:, ranges].sum(1)
    nearest = np.lexsort((generator.random(len(space)), off))  # ties fall by chance
    central = nearest[: max(CENTRAL_STARTS, int(CENTRAL_SHARE * len(space)))]
    chosen = generator.permutation(central)[:CENTRAL_STARTS].tolist()
    anywhere = [
        place for place in generator.permutation(len(space)).tolist() if place not in chosen
    ]
    return [*chosen, *anywhere][:STARTS]


def _pick(
    space: SearchSpace,
    promise: Times,
    best: NDArray[np.int64],
    generator: np.random.Generator,
) -> int:
    """The most promising configuration of where chance says to look; -inf marks those tried."""
    if generator.random() < BLIND_SHARE:
        return int(generator.choice(np.flatnonzero(promise > -np.inf)))
    place = generator.choice(list(PLACES), p=list(PLACES.values()))
    first, second = elite(best, generator, ELITE), elite(best, generator, PARTNER)
    if place == "neighbour":
        near = space.neighbours(first)
    elif place == "two changes":
        near = space.neighbours(first, most=2)
    elif place == "cross":
        near = space.crosses(first, second)
    else:
        near = np.arange(len(space))
    near = near[promise[near] > -np.inf]
    if not len(near):
        return int(promise.argmax())
    return int(near[promise[near].argmax()])
