"""Tests with torch's own samples for transposed convolutions; each launches our kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tconv import functional
from tconv.launch import interpreting, recorded
from tests.devices import DEVICE, written

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import SampleInput

pytest.importorskip("expecttest", reason="torch's samples need expecttest")

from tests import torchs_samples

TOLERANCES = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.float16: (6e-3, 8e-2),
    torch.bfloat16: (1.2e-2, 6e-1),
}
# float32 by default.
OTHERS = (torch.float64, torch.float16, torch.bfloat16)
DTYPES = [torch.float32, *(pytest.param(each, marks=pytest.mark.thorough) for each in OTHERS)]


def samples(name: str, dtype: torch.dtype, device: torch.device = DEVICE) -> list[SampleInput]:
    return torchs_samples.samples(name, dtype, device, requires_grad=True)


def count(name: str) -> range:
    """Return the samples' indices without using a GPU, since this runs at collection."""
    return range(len(samples(name, torch.float32, torch.device("cpu"))))


def check_sample(name: str, index: int, dtype: torch.dtype, results: tuple[str, ...]) -> None:
    """Check values and gradients of a sample; ``results`` are the launched passes' results."""
    sample = samples(name, dtype)[index]
    ours: Callable[..., Any] = getattr(functional, name)
    theirs: Callable[..., Any] = getattr(torch.nn.functional, name)
    # float32's tolerances do not hold for torch's default of tf32 on a GPU.
    precision = "tf32x3" if dtype == torch.float32 and not interpreting() else None
    inputs = [sample.input, *(arg for arg in sample.args if isinstance(arg, torch.Tensor))]
    with recorded() as log:
        y = ours(sample.input, *sample.args, **sample.kwargs, precision=precision)
    assert written(log) == {results[0]}
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    exact = theirs(*exact_inputs, **sample.kwargs)
    rtol, atol = TOLERANCES[dtype]
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=atol)
    dy = torch.randn_like(y)
    with recorded() as log:
        gradients = torch.autograd.grad(y, inputs, dy)
    assert written(log) >= set(results[1:])
    expected = torch.autograd.grad(exact, exact_inputs, dy.double())
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", count("conv_transpose2d"))
def test_sample(index: int, dtype: torch.dtype) -> None:
    check_sample("conv_transpose2d", index, dtype, ("dx", "y", "dw"))
