"""Refit the cost model's constants to what was measured on a GPU, or recorded by others.

Constants are fitted by ``autotune.fit`` to the times of some problems and judged by those of
others. If there are many problems, one half is fitted and the other half judges
(``fitted_half``). If there are few, five parts are held out in turn, and the constants are then
fitted to all problems. Constants are kept only if they predict the held-out problems better than
the ones that the fit began with.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from autotune.fit import Array, FitError, Observed, fit
from autotune.judge import LEAST_TILES, NEAR, mean_share, spearman
from autotune.recordings import Recording
from autotune.trial import Trial
from tconv.cost.constants import FITTED, Calibrated, Constants, Untuned, calibrated
from tconv.cost.neighbour import by_distance
from tconv.cost.work import Work, work_of
from tconv.families import FAMILIES
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Tiles

FOLDS, MANY_PROBLEMS = 5, 200  # from 200 problems on, one half is held out
LEAST_TRIALS, LEAST_PROBLEMS = 30, FOLDS
MOST_TRIALS = 2000  # measured trials that a fit uses; more of them only take time
TWO_IN_THREE = 2 / 3
MOST_RECORDED = 20000  # recorded tiles that a fit uses, in whole problems
# Constants that do not affect such times: trials are timed by replaying graphs.
UNFITTED = {"trials": {"event_milliseconds"}, "recordings": {"launch_milliseconds"}}


@dataclass(frozen=True)
class Calibration:
    """Constants before and after a fit, and how well each predicts the held-out problems.

    ``error`` is the 2/3 quantile of abs(ln(predicted / measured)) over the tiles that take at most
    twice the time of their problem's best. ``rank`` is Spearman's correlation of predicted and
    measured times within a problem, averaged over problems. ``model_share`` and ``neighbour_share``
    are the best time over the time of the model's choice, and of the nearest neighbour's winner:
    geometric means over the ``compared`` held-out problems on which that winner was measured.
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
        """Whether the model or the nearest neighbour serves layers that were never tuned."""
        proved = self.compared >= LEAST_PROBLEMS and self.neighbour_share > self.model_share
        return "neighbour" if proved else "model"

    @property
    def calibrated(self) -> Calibrated:
        known = self.constants if self.better else self.before
        error = min(self.error_after, self.error_before)
        return Calibrated(known, self.untuned, self.trials, error)


class CalibrationError(ValueError):
    """Raised if there are too few times to fit constants to; the message counts them."""


def calibrate(trials: Sequence[Trial], target: Target) -> Calibration:
    """Return a calibration with constants fitted to the measured ``trials``.

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
    number = {problem: place for place, problem in enumerate(problems)}
    observed = Observed(
        target,
        Work.join([_work(trial, target) for trial in usable]),
        np.array([trial.milliseconds for trial in usable]),
        np.array([number[trial.problem] for trial in usable]),
    )
    held_out, found = _fitted(observed, UNFITTED["trials"], calibrated(target).constants)
    shares = _untuned(usable, held_out.tolist())
    return replace(
        found,
        model_share=mean_share([model for model, _ in shares]),
        neighbour_share=mean_share([neighbour for _, neighbour in shares]),
        compared=len(shares),
    )


def calibrate_from(recordings: Sequence[Recording]) -> Calibration:
    """Return a calibration with constants fitted to the recordings of one GPU.

    Raises:
        CalibrationError: for too few problems.
    """
    usable = [each for each in recordings if len(each.tiles) >= LEAST_TILES]
    if len(usable) < LEAST_PROBLEMS:
        raise CalibrationError(
            f"{len(usable)} recorded problems are too few to fit constants to: at least "
            f"{LEAST_PROBLEMS} of {LEAST_TILES} tiles"
        )
    usable.sort(key=lambda each: _digest(each.problem))  # neighbours in a table are alike
    tiles = sum(len(each.tiles) for each in usable)
    usable = usable[:: -(-tiles // MOST_RECORDED)]
    observed = Observed(
        usable[0].target,
        Work.join([each.work for each in usable]),
        np.concatenate([each.milliseconds for each in usable]),
        np.repeat(np.arange(len(usable)), [len(each.tiles) for each in usable]),
    )
    halves = np.array([fitted_half(each.problem) for each in usable])
    many = len(usable) >= MANY_PROBLEMS
    # From the assumed constants: the same tables give the same result, whatever is in force.
    return _fitted(observed, UNFITTED["recordings"], Constants(), halves if many else None)[1]


def fitted_half(problem: Problem) -> bool:
    """Return whether the recordings of ``problem`` are in the half that constants are fitted to."""
    return _digest(problem)[0] % 2 == 0


def held_out(recordings: Sequence[Recording]) -> list[Recording]:
    """Return the recordings that no constants were fitted to; none for a GPU with few problems."""
    counts = Counter(each.gpu for each in recordings if len(each.tiles) >= LEAST_TILES)
    return [
        each
        for each in recordings
        if counts[each.gpu] >= MANY_PROBLEMS and not fitted_half(each.problem)
    ]


def _digest(problem: Problem) -> bytes:
    return sha256(problem.key.encode()).digest()


def _work(trial: Trial, target: Target) -> Work:
    tiles, family = Tiles.of([trial.tile]), FAMILIES[trial.family]
    return work_of(trial.problem, family, tiles, target, trial.resources)


def _fitted(
    observed: Observed,
    unfitted: set[str],
    before: Constants,
    halves: NDArray[np.bool_] | None = None,
) -> tuple[Array, Calibration]:
    """Return ln(predicted / measured) of each held-out tile, and the calibration.

    The fit begins at ``before``. ``halves`` marks the problems to fit, if some are held out.
    """
    names = [name for name in FITTED if name not in unfitted]
    problems = int(observed.problem.max()) + 1
    try:
        if halves is None:
            judged, errors = observed, np.empty(len(observed.milliseconds))
            for number in range(FOLDS):
                out = observed.problem % FOLDS == number
                learnt = fit(observed.take(~out), before, names)
                errors[out] = observed.take(out).log_ratios(learnt)
            fitted = observed
            constants = fit(fitted, before, names)
        else:
            chosen = halves[observed.problem]
            fitted, judged = observed.take(chosen), observed.take(~chosen)
            constants = fit(fitted, before, names)
            errors = judged.log_ratios(constants)
    except FitError as error:
        raise CalibrationError(str(error)) from error
    now = judged.log_ratios(before)
    return errors, Calibration(
        before=before,
        constants=constants,
        trials=len(fitted.milliseconds),
        problems=problems,
        error_before=_error(judged, now),
        error_after=_error(judged, errors),
        rank_before=rank_correlation(judged, now),
        rank_after=rank_correlation(judged, errors),
        model_share=math.nan,
        neighbour_share=math.nan,
        compared=0,
    )


def _untuned(trials: Sequence[Trial], log_ratios: Sequence[float]) -> list[tuple[float, float]]:
    """Return for each held-out problem the best time over the model's and over the neighbour's."""
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


def _error(observed: Observed, log_ratios: Array) -> float:
    """Return ``Calibration``'s error, a quantile: a few tiles far off do not decide it."""
    near = observed.best_share >= 1 / NEAR
    return float(np.quantile(np.abs(log_ratios[near]), TWO_IN_THREE))


def rank_correlation(observed: Observed, log_ratios: Array) -> float:
    """Return Spearman's correlation of predicted and measured times, averaged over problems."""
    times, predicted = observed.milliseconds, observed.milliseconds * np.exp(log_ratios)
    found = [
        spearman(predicted[observed.problem == number], times[observed.problem == number])
        for number in range(int(observed.problem.max()) + 1)
    ]
    known = [each for each in found if not math.isnan(each)]
    return float(np.mean(known)) if known else math.nan
