"""A pytest plugin that runs the suite as if there were a GPU, on a machine without one.

    pytest -p tests.as_on_a_gpu

torch reports an H200, kernels are compiled, and CPU tensors go to torch's own operators. A test
that tries to create a CUDA tensor is skipped; one that fails in another way would fail on a machine
with a GPU too.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

H200 = SimpleNamespace(
    name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=150 << 30,
    shared_memory_per_block_optin=232448, L2_cache_size=60 << 20, warp_size=32,
)  # fmt: skip
# torch's messages for a CUDA tensor that it cannot create here.
REACHED = ("not compiled with CUDA", "Found no NVIDIA driver", "Cannot get CUDA generator",
           "Device type CUDA is not supported", "without CUDA")  # fmt: skip

os.environ.pop("TRITON_INTERPRET", None)
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.current_device = lambda: 0
torch.cuda.get_device_properties = lambda *_: H200  # type: ignore[assignment, return-value]
torch.cuda.get_device_name = lambda *_: H200.name
torch.cuda.get_device_capability = lambda *_: (H200.major, H200.minor)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Any:
    """Turn torch's error about missing CUDA into a skip."""
    outcome = yield
    report = outcome.get_result()
    if report.failed and any(words in str(report.longrepr) for words in REACHED):
        report.outcome = "skipped"
        report.longrepr = (__file__, 0, "reached the GPU")
