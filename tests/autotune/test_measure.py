"""Tests of timing statistics with a fake timer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from autotune.measure import contest, inputs, measure, summary
from autotune.search import DEFAULT_EFFORT
from tconv.geometry import PASSES, ConvGeometry, Pass
from tconv.problem import Problem


class FakeTimer:
    """Timer whose runs take ``milliseconds``, except the slow first and every slow fifth one."""

    def __init__(self, milliseconds: float) -> None:
        self.milliseconds = milliseconds
        self.calls: list[int] = []
        self.runs = 0

    def __call__(self, repeats: int) -> Sequence[float]:
        self.calls.append(repeats)
        samples = []
        for _ in range(repeats):
            slow = self.runs == 0 or self.runs % 5 == 4
            samples.append(self.milliseconds * (10 if slow else 1))
            self.runs += 1
        return samples


def test_median_and_quantiles() -> None:
    timing = summary([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.median, timing.repeats) == (3.0, 5)
    assert (timing.p20, timing.p80) == (pytest.approx(1.8), pytest.approx(4.2))


def test_outliers_do_not_move_the_median() -> None:
    timing = measure(FakeTimer(0.5), DEFAULT_EFFORT)
    assert timing.median == 0.5
    assert timing.p20 <= timing.median <= timing.p80


@pytest.mark.parametrize(("milliseconds", "repeats"), [(1e-6, 200), (1.0, 100), (500.0, 10)])
def test_repeats_follow_the_effort(milliseconds: float, repeats: int) -> None:
    timer = FakeTimer(milliseconds)
    effort = replace(DEFAULT_EFFORT, measure_milliseconds=100.0, least_repeats=10, most_repeats=200)
    assert measure(timer, effort).repeats == timer.calls[-1] == repeats
    assert len(timer.calls) == 3  # calibration, warm-up, measurement


def test_a_hopeless_candidate_is_stopped_after_calibration() -> None:
    timer = FakeTimer(2.0)
    assert measure(timer, DEFAULT_EFFORT, best=1.0).repeats == 3
    assert timer.calls == [3]
    assert measure(FakeTimer(1.4), DEFAULT_EFFORT, best=1.0).repeats > 3


def test_disturbances_affect_all_candidates_of_a_contest_equally() -> None:
    """The machine slows down from run to run, so measured in turn the first would win."""
    runs = [0]

    class Slowing:
        def __init__(self, milliseconds: float) -> None:
            self.milliseconds = milliseconds

        def __call__(self, repeats: int) -> Sequence[float]:
            samples = []
            for _ in range(repeats):
                runs[0] += 1
                samples.append(self.milliseconds * (1 + runs[0] / 100))
            return samples

    slower, quicker = contest([Slowing(1.0), Slowing(0.97)], DEFAULT_EFFORT)
    assert quicker.median < slower.median
    runs[0] = 0
    first, second = (measure(Slowing(each), DEFAULT_EFFORT) for each in (1.0, 0.97))
    assert first.median < second.median  # so the contest removes the effect of order


@pytest.mark.parametrize("direction", PASSES)
def test_inputs_are_as_the_launcher_takes_them(direction: Pass) -> None:
    shape = ConvGeometry(2, 6, 9, 7, 4, 3, 3, groups=2)
    tensors = inputs(Problem(shape, direction), "cpu", seed=3)
    again = inputs(Problem(shape, direction), "cpu", seed=3)
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(tensor, again[name])
    if "w" in tensors:
        assert tensors["w"].shape == (4, 3, 3, 3)
