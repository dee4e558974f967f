"""Tests with torch's own samples and error inputs for max_pool2d; each launches our kernel."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close
from triton.runtime import interpreter

from tconv.ops.max_pool2d import max_pool2d
from tests.devices import DEVICE
from tests.tconv.ops.test_max_pool2d import DGRAD, FPROP, PICK, launches

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import SampleInput

pytest.importorskip("expecttest", reason="torch's samples need expecttest")

from tests import torchs_samples


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the interpreter's overflow checks, which take half its time."""
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, sanitize_overflow=False)
    monkeypatch.setattr(builder, "options", options)


SAMPLES = 1440
PRIME = 7  # no divisor of the samples' periods, so every kind is drawn


@lru_cache
def samples(dtype: torch.dtype) -> list[SampleInput]:
    return torchs_samples.samples("max_pool2d", dtype, DEVICE)


def check_samples(dtype: torch.dtype, first: int, step: int) -> int:
    """Check every ``step``-th sample from ``first``, with its gradient; return their number."""
    count = 0
    for sample in samples(dtype)[first::step]:
        count += 1
        x, theirs = (sample.input.detach().requires_grad_() for _ in range(2))
        with launches(FPROP, *[PICK] * sample.kwargs["return_indices"]):
            result = max_pool2d(x, *sample.args, **sample.kwargs)
        expected = functional.max_pool2d(theirs, *sample.args, **sample.kwargs)
        assert_close(result, expected, rtol=0, atol=0)
        y, exact = (r[0] if sample.kwargs["return_indices"] else r for r in (result, expected))
        dy = torch.arange(y.numel(), device=DEVICE).view(y.shape).to(dtype)
        with launches(DGRAD):
            (dx,) = torch.autograd.grad(y, x, dy)
        assert_close(dx, torch.autograd.grad(exact, theirs, dy)[0])
    return count


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize(
    "first", [0, *(pytest.param(rest, marks=pytest.mark.thorough) for rest in range(1, PRIME))]
)
def test_opinfo_samples(first: int) -> None:
    assert check_samples(torch.float32, first, PRIME) == -(-(SAMPLES - first) // PRIME)


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_opinfo_samples_of_other_dtypes(dtype: torch.dtype) -> None:
    """Every 19th sample; 19 is prime too."""
    assert check_samples(dtype, 0, 19) == -(-SAMPLES // 19)


@pytest.mark.parametrize("number", range(7))
def test_opinfo_errors(number: int) -> None:
    error = torchs_samples.errors("max_pool2d", DEVICE)[number]
    sample = error.sample_input
    with pytest.raises(error.error_type, match=error.error_regex):
        max_pool2d(sample.input, *sample.args, **sample.kwargs)
