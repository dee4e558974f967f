"""Tests of the benchmark that compares compiled kernels with the estimates of their resources."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

KERNELS = 16


def test_estimates_are_near_the_compiled_kernels() -> None:
    """The medians of implicit_gemm's passes are near 0 registers and near ratio 1."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.estimates", "--tiles", str(KERNELS), "--seed", "3",
         "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert sum(each["kernels"] for each in found.values()) == KERNELS
    gathered = [each for name, each in found.items() if name.startswith("implicit_gemm/")]
    assert sum(each["kernels"] for each in gathered) >= KERNELS // 3
    assert abs(statistics.median(each["register_error"][1] for each in gathered)) < 20
    ratios = [each["instruction_ratio"][1] for each in gathered if each["instruction_ratio"]]
    assert 0.8 < statistics.median(ratios) < 1.5
