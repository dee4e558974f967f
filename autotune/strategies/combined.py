"""The default: expected improvement by Gaussian processes, near the best and anywhere.

The starts are spread out and drawn in favour of sizes near powers of two. Then two Gaussian
processes (``gaussian_process``) take turns: one explains times by nearness alone, the other also
by a trend along each parameter. Each has its own chain of hyperparameters, so that if one is stuck
in a region, the next pick follows the other. A pick is the candidate with the largest expected
improvement (Jones, Schonlau and Welch, "Efficient Global Optimization", 1998). Candidates are
those within two changes of the best few and a random sample of the rest, so that a pick costs the
same in a large space. Some picks are confined to the neighbours of a good configuration, and some
are random.

This is for spaces of which nothing is known. Where a cost model knows the kernel, its order is
followed and corrected (see ``corrected``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.strategies.common import Evaluate, SearchSpace, Times, expected_improvement
from autotune.strategies.corrected import corrected
from autotune.strategies.gaussian_process import (
    GaussianProcess,
    Matrix,
    coordinates,
    one_thread,
    scores,
)

START_CHOICES = 12  # random configurations of which the farthest from earlier starts is taken
MOST_ODDNESS = 12.0  # beyond which a draw gets no less likely, so that every chance is above 0
FIRST_STEPS, STEPS = 15, 4  # Metropolis steps before a model's first pick and each later one
NEAR, ANYWHERE = 700, 300  # candidates at most, of the surroundings and of the whole space
REMEMBERED = 300  # trials at most that a model learns from: half the best, half the latest


@dataclass(frozen=True)
class Settings:
    """The settings that affect a search most; ``benchmarks.held_out`` compares others."""

    starts: int = 6
    oddness_penalty: float = 4.0  # factor by which a unit of oddness makes a random draw rarer
    # One model each: variance of its trend, relative to that of its local part.
    trends: tuple[float, ...] = (0.0, 0.3)
    random_share: float = 0.05  # of the picks
    local_share: float = 0.25  # of the picks: candidates are neighbours of one good configuration
    local_mean_rank: float = 1.5  # of that configuration
    elite: int = 3  # configurations whose surroundings, up to two changes, are candidates


USUAL = Settings()


def combined(
    space: SearchSpace,
    evaluate: Evaluate,
    generator: np.random.Generator,
    settings: Settings = USUAL,
) -> None:
    """Try configurations until the space is spent; with a model's predictions, correct those."""
    if space.predicted is not None:
        return corrected(space, evaluate, generator)
    places = coordinates(space)
    chance = settings.oddness_penalty ** -np.minimum(space.oddness, MOST_ODDNESS)
    untried = np.ones(len(space), dtype=bool)
    tried: list[int] = []
    times: list[float] = []

    def attempt(chosen: list[int]) -> None:
        untried[chosen] = False
        times.extend(evaluate(chosen).tolist())
        tried.extend(chosen)

    attempt(_starts(places, chance, settings.starts, generator))
    models = [GaussianProcess(places.shape[1], trend, generator) for trend in settings.trends]
    picks = 0
    while untried.any():
        rest = np.flatnonzero(untried)
        if np.isnan(times).all() or generator.random() < settings.random_share:
            attempt(_draw(rest, chance, 1, generator))
            continue
        score = scores(np.array(times))
        ranking = np.argsort(score, kind="stable")
        best = np.array(tried)[ranking]
        candidates = _candidates(space, best, untried, rest, settings, generator)
        learnt = _remembered(ranking)
        model = models[picks % len(models)]
        steps = FIRST_STEPS if picks < len(models) else STEPS
        with one_thread():
            model.fit(places[np.array(tried)[learnt]], score[learnt], steps)
            mean, deviation = model.predict(places[candidates])
        promise = expected_improvement(mean, deviation, float(score.min()))
        picks += 1
        attempt([int(candidates[promise.argmax()])])


def _draw(
    places: NDArray[np.int64], chance: Times, count: int, generator: np.random.Generator
) -> list[int]:
    """Return at most ``count`` distinct ``places``, drawn in proportion to ``chance``."""
    share = chance[places] / chance[places].sum()
    drawn = generator.choice(places, min(count, len(places)), replace=False, p=share)
    return [int(place) for place in drawn]


def _starts(places: Matrix, chance: Times, count: int, generator: np.random.Generator) -> list[int]:
    """Return random configurations, each the farthest of a few from those before it."""
    rest = np.arange(len(places))
    chosen = _draw(rest, chance, 1, generator)
    while len(chosen) < min(count, len(places)):
        rest = np.setdiff1d(rest, chosen)
        few = _draw(rest, chance, START_CHOICES, generator)
        apart = np.abs(places[few][:, None] - places[chosen]).sum(2).min(1)
        chosen.append(few[apart.argmax()])
    return chosen


def _candidates(
    space: SearchSpace,
    best: NDArray[np.int64],
    untried: NDArray[np.bool_],
    rest: NDArray[np.int64],
    settings: Settings,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return untried configurations to choose from; ``best`` are the tried ones, best first."""
    if generator.random() < settings.local_share:
        rank = min(int(generator.exponential(settings.local_mean_rank)), len(best) - 1)
        near = space.neighbours(int(best[rank]))
        near = near[untried[near]]
        if len(near):
            return near
    near = np.unique(
        np.concatenate([space.neighbours(int(one), most=2) for one in best[: settings.elite]])
    )
    near = generator.permutation(near[untried[near]])[:NEAR]
    anywhere = generator.choice(rest, min(len(rest), ANYWHERE), replace=False)
    return np.union1d(near, anywhere)


def _remembered(ranking: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of the trials that the models learn from."""
    if len(ranking) <= REMEMBERED:
        return np.arange(len(ranking))
    half = REMEMBERED // 2
    return np.union1d(ranking[:half], np.arange(len(ranking) - half, len(ranking)))
