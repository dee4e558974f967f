"""Refit the cost model's constants to what was measured on a GPU.

The logarithm of predicted over measured time is made small, in the mean square, over problems and
tiles alike. A fifth of the problems is held out, five times over: constants that do not predict
those better than the assumed ones are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autotune.trial import Trial
from tconv.cost.constants import FITTED, Calibrated, Constants, Untuned, calibrated
from tconv.cost.model import predict
from tconv.cost.neighbour import by_distance
from tconv.problem import Problem
from tconv.target import Target

FOLDS = 5
LEAST_TRIALS, LEAST_PROBLEMS = 30, FOLDS
MOST_TRIALS = 2000  # taken of the measured ones, evenly: beyond, they only take time
LEAST_RATIO = 1e-3  # of a constant to its upper bound, where its lower is 0


@dataclass(frozen=True)
class Calibration:
    """Constants before and after, and how well each predicts problems that were held out.

    ``error`` is the root mean square of ln(predicted / measured); ``rank`` Spearman's correlation
    of predicted and measured times within a problem, mean over problems. ``model_share`` and
    ``neighbour_share`` are what a problem that is held out gets when it is served by the model, or
    by the winner of its nearest neighbour: best time over that choice's, geometric mean over the
    ``compared`` problems on which the neighbour's winner was measured as well.
    """

    before: Constants
    constants: Constants
    trials: int
    problems: int
    error_before: float
    error_after: float
    rank_before: float
    rank_after: float
    model_share: float
    neighbour_share: float
    compared: int

    @property
    def better(self) -> bool:
        return self.error_after < self.error_before

    @property
    def untuned(self) -> Untuned:
        """What serves a layer that was never tuned."""
        proved = self.compared >= LEAST_PROBLEMS and self.neighbour_share > self.model_share
        return "neighbour" if proved else "model"

    @property
    def calibrated(self) -> Calibrated:
        return Calibrated(self.constants if self.better else self.before, self.untuned)


class CalibrationError(ValueError):
    """Too little was measured; the message says how much."""


def calibrate(trials: Sequence[Trial], target: Target) -> Calibration:
    """Constants fitted to the measured ones of ``trials``.

    Raises:
        CalibrationError: for too few trials or problems.
    """
    usable = [t for t in trials if t.kind == "measured" and t.status == "ok" and t.milliseconds]
    problems = list(dict.fromkeys(trial.problem for trial in usable))
    if len(usable) < LEAST_TRIALS or len(problems) < LEAST_PROBLEMS:
        raise CalibrationError(
            f"{len(usable)} measured trials of {len(problems)} problems on {target.name} are too "
            f"few to fit constants to: at least {LEAST_TRIALS} of {LEAST_PROBLEMS}"
        )
    usable = usable[:: -(-len(usable) // MOST_TRIALS)]
    before = calibrated(target).constants
    fold = {problem: place % FOLDS for place, problem in enumerate(problems)}
    held_out: list[float] = [math.nan] * len(usable)
    for number in range(FOLDS):
        learnt = _fit([t for t in usable if fold[t.problem] != number], target, before)
        for place, trial in enumerate(usable):
            if fold[trial.problem] == number:
                held_out[place] = _log_ratio(trial, target, learnt)
    now = [_log_ratio(trial, target, before) for trial in usable]
    shares = _untuned(usable, held_out)
    return Calibration(
        before=before,
        constants=_fit(usable, target, before),
        trials=len(usable),
        problems=len(problems),
        error_before=_rms(now),
        error_after=_rms(held_out),
        rank_before=rank_correlation(usable, now),
        rank_after=rank_correlation(usable, held_out),
        model_share=_geometric_mean([model for model, _ in shares]),
        neighbour_share=_geometric_mean([neighbour for _, neighbour in shares]),
        compared=len(shares),
    )


def _untuned(trials: Sequence[Trial], log_ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Best time over the model's choice's, and over the neighbour's, of each problem left out."""
    grouped: dict[Problem, list[tuple[Trial, float]]] = {}
    for trial, ratio in zip(trials, log_ratios, strict=True):
        grouped.setdefault(trial.problem, []).append((trial, ratio))

    def time_of(trial: Trial) -> float:
        return trial.milliseconds or math.inf

    winners = {
        problem: min((trial for trial, _ in made), key=time_of) for problem, made in grouped.items()
    }
    found = []
    for problem, made in grouped.items():
        near = by_distance(problem, winners)
        times = {trial.choice: time_of(trial) for trial, _ in made}
        served = near and winners[near[0]].choice in times
        if not served:
            continue
        modelled, _ = min(made, key=lambda each: math.log(time_of(each[0])) + each[1])
        best = min(times.values())
        found.append((best / time_of(modelled), best / times[winners[near[0]].choice]))
    return found


def _geometric_mean(shares: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(shares)))) if shares else math.nan


def _log_ratio(trial: Trial, target: Target, known: Constants) -> float:
    """ln(predicted / measured)."""
    cost = predict(trial.problem, trial.choice, target, trial.resources, known).milliseconds
    return math.log(min(cost, 1e6) / (trial.milliseconds or math.nan))


def _fit(trials: Sequence[Trial], target: Target, start: Constants) -> Constants:
    """Least squares over the logarithms of the constants, within their bounds; robust to a few."""
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise CalibrationError(
            "fitting needs scipy, which comes with python -m pip install 'tconv[search]'"
        ) from error
    bounds = np.array([(max(low, high * LEAST_RATIO), high) for low, high in FITTED.values()])
    first = np.clip([getattr(start, name) for name in FITTED], bounds[:, 0], bounds[:, 1])

    def constants(logs: NDArray[np.float64]) -> Constants:
        values = np.exp(logs)
        return replace(start, **dict(zip(FITTED, map(float, values), strict=True)))

    def residuals(logs: NDArray[np.float64]) -> list[float]:
        known = constants(logs)
        return [_log_ratio(trial, target, known) for trial in trials]

    edge = 1e-6
    low, high = np.log(bounds[:, 0]), np.log(bounds[:, 1])
    begin = np.clip(np.log(first), low + edge, high - edge)
    found = least_squares(
        residuals, begin, bounds=(low, high), loss="soft_l1", f_scale=0.2, diff_step=1e-2,
        max_nfev=40,
    )  # fmt: skip
    return constants(found.x)


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def rank_correlation(trials: Sequence[Trial], log_ratios: Sequence[float]) -> float:
    """Spearman's, of predicted and measured times of the same problem; mean over problems."""
    from scipy.stats import spearmanr

    grouped: dict[str, list[tuple[float, float]]] = {}
    for trial, ratio in zip(trials, log_ratios, strict=True):
        measured = math.log(trial.milliseconds or math.nan)
        grouped.setdefault(trial.problem.key, []).append((measured, measured + ratio))
    found = []
    for pairs in grouped.values():
        measured_times, predicted_times = zip(*pairs, strict=True)
        if len(set(measured_times)) > 1 and len(set(predicted_times)) > 1:
            found.append(float(spearmanr(measured_times, predicted_times).statistic))
    return float(np.mean(found)) if found else math.nan
