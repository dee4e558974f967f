"""The cost model judged by times that others recorded.

For each GPU, arithmetic and pass: how well the model orders the tiles of a problem (Spearman's
correlation, median over problems), what its first ``k`` tiles hold (best time over the best among
them, geometric mean), and how predicted times compare with recorded ones, by decade of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autotune.recordings import Recording
from tconv.cost.model import predict

LEAST_TILES = 8  # timed for a problem, lest any choice be a good one
PICKS = (1, 4, 8)
WORST = 10

Predictor = Callable[[Recording], NDArray[np.float64]]


@dataclass(frozen=True)
class Verdict:
    """How the model does on one problem; ``shares`` are those of its first 1, 4 and 8 tiles."""

    recording: Recording
    predicted: NDArray[np.float64]
    spearman: float
    shares: tuple[float, ...]

    @property
    def library(self) -> float:
        """The best tile's share of the library's speed; above 1 it is faster. NaN: not timed."""
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
        return geometric_mean([each.shares[place] for each in self.verdicts])

    @property
    def ratio_by_decade(self) -> dict[str, float]:
        """Median of predicted over recorded time, by the power of ten that the recorded reaches."""
        times = np.concatenate([each.recording.milliseconds for each in self.verdicts])
        ratios = np.concatenate([each.predicted for each in self.verdicts]) / times
        decades = np.floor(np.log10(times)).astype(int)
        return {
            f"{10.0**decade:g} ms": float(np.median(ratios[decades == decade]))
            for decade in sorted(set(decades.tolist()))
        }

    def as_json(self) -> dict[str, object]:
        return {
            "problems": len(self.verdicts),
            "spearman": self.spearman,
            **{f"top{count}": self.top(place) for place, count in enumerate(PICKS)},
            "ratio_by_decade": self.ratio_by_decade,
        }


def predicted(recording: Recording) -> NDArray[np.float64]:
    """The model's milliseconds of every tile that was timed."""
    return np.array(
        [
            predict(recording.problem, choice, recording.target).milliseconds
            for choice in recording.choices
        ]
    )


def judge(recordings: Sequence[Recording], predictor: Predictor = predicted) -> list[Cell]:
    """A cell for each GPU, arithmetic and pass that was recorded; few tiles make no problem."""
    cells: dict[str, list[Verdict]] = {}
    for recording in recordings:
        if len(recording.tiles) >= LEAST_TILES:
            cells.setdefault(recording.cell, []).append(verdict(recording, predictor(recording)))
    return [Cell(name, tuple(verdicts)) for name, verdicts in sorted(cells.items())]


def verdict(recording: Recording, times: NDArray[np.float64]) -> Verdict:
    """How predicted ``times`` order the tiles of one problem."""
    order = np.argsort(times, kind="stable")
    shares = tuple(
        recording.best / float(recording.milliseconds[order[:count]].min()) for count in PICKS
    )
    return Verdict(recording, times, spearman(times, recording.milliseconds), shares)


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one is constant.

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


def geometric_mean(shares: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(shares)))) if shares else math.nan


def worst(cells: Sequence[Cell], count: int = WORST) -> list[Verdict]:
    """The problems whose first tile is furthest from the best."""
    verdicts = [each for cell in cells for each in cell.verdicts]
    return sorted(verdicts, key=lambda each: each.shares[0])[:count]
