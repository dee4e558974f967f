"""Tests with torch's own samples and error inputs for conv2d; each sample launches our kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tconv import functional
from tconv.launch import interpreting, recorded
from tests.devices import DEVICE, written

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import ErrorInput, SampleInput

pytest.importorskip("expecttest", reason="torch's samples need expecttest")

from tests import torchs_samples

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (6e-3, 8e-2),
    torch.bfloat16: (1.2e-2, 6e-1),
}


def samples(dtype: torch.dtype, device: torch.device = DEVICE) -> list[SampleInput]:
    return torchs_samples.samples("conv2d", dtype, device, requires_grad=True)


def count() -> range:
    """Return the samples' indices without using a GPU, since this runs at collection."""
    return range(len(samples(torch.float32, torch.device("cpu"))))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", count())
def test_sample(index: int, dtype: torch.dtype) -> None:
    sample = samples(dtype)[index]
    # float32's tolerances do not hold for torch's default of tf32 on a GPU.
    precision = "tf32x3" if dtype == torch.float32 and not interpreting() else None
    inputs = [sample.input, *(arg for arg in sample.args if isinstance(arg, torch.Tensor))]
    with recorded() as log:
        y = functional.conv2d(sample.input, *sample.args, **sample.kwargs, precision=precision)
    assert written(log) == {"y"}

    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = torch.nn.functional.conv2d(*exact_inputs, **sample.kwargs)
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=atol)

    dy = torch.randn_like(y)
    with recorded() as log:
        gradients = torch.autograd.grad(y, inputs, dy)
    assert written(log) >= {"dx", "dw"}
    expected = torch.autograd.grad(exact, exact_inputs, dy.double())
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=atol)


ERRORS: list[ErrorInput] = torchs_samples.errors("conv2d")


@pytest.mark.parametrize("error", ERRORS, ids=[error.error_regex for error in ERRORS])
def test_error_input(error: ErrorInput) -> None:
    sample = error.sample_input
    with pytest.raises(error.error_type, match=error.error_regex):
        functional.conv2d(sample.input, *sample.args, **sample.kwargs)
