"""The cost model judged by times that others recorded.

For each GPU, arithmetic and pass: how well the model orders the tiles of a problem (Spearman's
correlation, median over problems), how good its first ``k`` tiles are (best time over the best
among them, geometric mean), and how predicted times compare with recorded ones, by decade of time.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.recordings import Recording
from tconv.cost.constants import Constants, calibrated
from tconv.cost.model import milliseconds_of

LEAST_TILES = 8  # that a problem needs: among fewer, any choice is a good one
PICKS = (1, 4, 8)
NEAR = 2.0  # times the best tile's time; slower tiles do not count
# How far a cell may fall below its published statistics.
SLACK = {"spearman": 0.01, "top1": 0.01, "top8": 0.003}
WORST = 10

Predictor = Callable[[Recording], NDArray[np.float64]]
Chooser = Callable[[Recording], int | None]  # the place of its first choice


@dataclass(frozen=True)
class Verdict:
    """The model's score on one problem; ``shares`` are for its first 1, 4 and 8 tiles."""

    recording: Recording
    predicted: NDArray[np.float64]
    spearman: float
    shares: tuple[float, ...]

    @property
    def library(self) -> float:
        """The best tile's speed over the library's; NaN if the library was not timed."""
        return (self.recording.library or math.nan) / self.recording.best


@dataclass(frozen=True)
class Cell:
    """The verdicts of one GPU, arithmetic and pass."""

    name: str
    verdicts: tuple[Verdict, ...]

    @property
    def spearman(self) -> float:
        known = [each.spearman for each in self.verdicts if not math.isnan(each.spearman)]
        return float(np.median(known)) if known else math.nan

    def top(self, place: int) -> float:
        return mean_share([each.shares[place] for each in self.verdicts])

    @property
    def library(self) -> float:
        """Geometric mean of the best tiles' speed over the library's; NaN if it was not timed."""
        timed = [each.library for each in self.verdicts if each.recording.library]
        return mean_share(timed)

    @property
    def error(self) -> float:
        """Median of abs(ln(predicted / recorded)) over tiles within twice their problem's best."""
        return float(np.median(np.abs(self._near_log_ratios())))

    @property
    def error_90(self) -> float:
        """The 0.9 quantile of the errors whose median is ``error``."""
        return float(np.quantile(np.abs(self._near_log_ratios()), 0.9))

    def _near_log_ratios(self) -> NDArray[np.float64]:
        times = [each.recording.milliseconds for each in self.verdicts]
        near = np.concatenate([each <= NEAR * each.min() for each in times])
        ratios = np.concatenate([each.predicted for each in self.verdicts]) / np.concatenate(times)
        return np.asarray(np.log(np.minimum(ratios, 1e6)[near]))

    def beside(self, choose: Chooser) -> FirstChoices:
        """Compare our first choice with another's, on the problems where that was timed."""
        ours, theirs = [], []
        for each in self.verdicts:
            if (place := choose(each.recording)) is not None:
                ours.append(each.shares[0])
                theirs.append(each.recording.best / float(each.recording.milliseconds[place]))
        return FirstChoices(len(ours), mean_share(ours), mean_share(theirs))

    @property
    def ratio_by_decade(self) -> dict[str, float]:
        """Median of predicted over recorded time, by decade of the recorded time.

        Tiles that are too large for the GPU according to the model are left out.
        """
        times = np.concatenate([each.recording.milliseconds for each in self.verdicts])
        ratios = np.concatenate([each.predicted for each in self.verdicts]) / times
        times, ratios = times[np.isfinite(ratios)], ratios[np.isfinite(ratios)]
        decades = np.floor(np.log10(times)).astype(int)
        return {
            f"{10.0**decade:g} ms": float(np.median(ratios[decades == decade]))
            for decade in sorted(set(decades.tolist()))
        }

    def as_json(self) -> dict[str, Any]:
        return {
            "problems": len(self.verdicts),
            "spearman": self.spearman,
            **{f"top{count}": self.top(place) for place, count in enumerate(PICKS)},
            "ratio_by_decade": self.ratio_by_decade,
        }


@dataclass(frozen=True)
class FirstChoices:
    """Two first choices' shares of the best speed: geometric means over ``problems``."""

    problems: int
    ours: float
    theirs: float


def predicted(recording: Recording, known: Constants | None = None) -> NDArray[np.float64]:
    """Return the model's milliseconds for every timed tile, timing by events included."""
    known = known or calibrated(recording.target).constants
    times = milliseconds_of(recording.work, recording.target, known)
    return times + known.event_milliseconds


def judge(recordings: Sequence[Recording], predictor: Predictor = predicted) -> list[Cell]:
    """Return a cell for each recorded GPU, arithmetic and pass; skip problems of few tiles."""
    cells: dict[str, list[Verdict]] = {}
    for recording in recordings:
        if len(recording.tiles) >= LEAST_TILES:
            cells.setdefault(recording.cell, []).append(verdict(recording, predictor(recording)))
    return [Cell(name, tuple(verdicts)) for name, verdicts in sorted(cells.items())]


def verdict(recording: Recording, times: NDArray[np.float64]) -> Verdict:
    """Return how well predicted ``times`` order the tiles of one problem."""
    order = np.argsort(times, kind="stable")
    shares = tuple(
        recording.best / float(recording.milliseconds[order[:count]].min()) for count in PICKS
    )
    return Verdict(recording, times, spearman(times, recording.milliseconds), shares)


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; NaN if one is constant.

    >>> round(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([10.0, 20.0, 40.0, 30.0])), 3)
    0.8
    """
    first, second = _ranks(one), _ranks(other)
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else math.nan


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[places], dtype=np.float64)


def mean_share(shares: Sequence[float]) -> float:
    """Return the geometric mean; NaN if there are none."""
    return statistics.geometric_mean(shares) if shares else math.nan


def below_published(cells: Sequence[Cell], published: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each statistic below its published value; cells must match in size."""
    found = []
    for cell in cells:
        now, before = cell.as_json(), published.get(cell.name, {})
        if before.get("problems") != now["problems"]:
            continue
        found += [
            f"{cell.name}: {name} {now[name]:.3f}, published {before[name]:.3f}"
            for name, slack in SLACK.items()
            if now[name] < before[name] - slack
        ]
    return found


def read_published(path: Path) -> dict[str, dict[str, Any]]:
    """Return the published statistics of each cell.

    Raises:
        ValueError: for a file that holds none.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no published statistics: {error!r}") from error
    return dict(cells)


def worst(cells: Sequence[Cell], count: int = WORST) -> list[Verdict]:
    """Return the problems whose first tile is furthest from the best."""
    verdicts = [each for cell in cells for each in cell.verdicts]
    return sorted(verdicts, key=lambda each: each.shares[0])[:count]
