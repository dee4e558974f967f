"""The shortcuts through Triton's interpreter change no result and leave nothing replaced."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from tests.interpreter_speed import hasten, overflow_checked

pytestmark = pytest.mark.interpreter


@triton.jit
def plus_one(values):
    return values + 1


@triton.jit
def add_one(values, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(values + place, plus_one(tl.load(values + place)))


def test_a_launch_replaces_the_language_and_restores_it() -> None:
    hasten()  # again: it does nothing
    values = torch.arange(4, dtype=torch.int32)
    add_one[(1,)](values, 4)  # the first one leaves inherited methods in the class itself
    language = dict(vars(tl)), dict(vars(tl.tensor))
    for _ in range(3):
        values = torch.arange(4, dtype=torch.int32)
        add_one[(1,)](values, 4)
        assert values.tolist() == [1, 2, 3, 4]
        assert language == (dict(vars(tl)), dict(vars(tl.tensor)))


def test_an_overflow_is_seen_where_it_is_asked_for() -> None:
    largest = torch.full((4,), 2**31 - 1, dtype=torch.int32)
    add_one[(1,)](largest.clone(), 4)
    with overflow_checked(), pytest.raises(Exception, match="overflow"):
        add_one[(1,)](largest.clone(), 4)
