"""Tests of the fixture that fills fresh memory with NaN."""

from __future__ import annotations

import torch


def test_fresh_memory_is_nan() -> None:
    like = torch.zeros(2, 3)
    for fresh in (torch.empty(2, 3), torch.empty_like(like), like.new_empty(2, 3)):
        assert fresh.isnan().all()
    assert (torch.empty(3, dtype=torch.int16) == -(2**15)).all()


def test_a_device_as_a_context_still_counts() -> None:
    with torch.device("meta"):
        assert torch.empty(2).is_meta
        assert next(torch.nn.Linear(2, 2).parameters()).is_meta
