"""Tests of parsing time limits and of deadlines."""

from __future__ import annotations

import math
import time

import pytest

from autotune.deadline import Deadline, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("8m", 480), ("1h30m", 5400), ("0.5m", 30), (" 2h ", 7200)]
)
def test_time_limits_are_parsed(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "m", "-8m", "8 m", "0s", "0h0m", "soon", "8m!"])
def test_other_text_is_refused(text: str) -> None:
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


def test_there_is_no_deadline_by_default() -> None:
    assert Deadline().left == math.inf


def test_setting_the_wall_clock_changes_nothing() -> None:
    assert Deadline(5).clock is time.monotonic
