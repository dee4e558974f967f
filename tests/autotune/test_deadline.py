"""Times in words, and when they are over."""

from __future__ import annotations

import math
import time

import pytest

from autotune.deadline import Deadline, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("8m", 480), ("1h30m", 5400), ("0.5m", 30), (" 2h ", 7200)]
)
def test_words_mean_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "m", "-8m", "8 m", "0s", "0h0m", "soon", "8m!"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="8m"):
        seconds_of(text)


def test_time_runs_out() -> None:
    now = [100.0]
    deadline = Deadline(5, clock=lambda: now[0])
    assert deadline.left == 5
    now[0] = 104
    assert deadline.left == 1
    now[0] = 110
    assert deadline.left == 0


def test_by_default_there_is_no_end() -> None:
    assert Deadline().left == math.inf


def test_a_wall_clock_may_be_set_and_is_not_asked() -> None:
    assert Deadline(5).clock is time.monotonic
