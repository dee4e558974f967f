"""Test that runs a sample of the compiled kernels' tests on an emulated GPU, in a new process.

``nox -s emulate`` runs all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAMPLE = (
    "tests/tconv/emulator/test_triton_kernels.py",
    "tests/tconv/emulator/test_launcher.py",
    "tests/tconv/test_on_gpu.py::test_a_plan_made_for_one_geometry_serves_no_other",
    "tests/tconv/test_on_gpu.py::test_every_family_that_serves_is_right[3x3, odd-fprop-float16]",
    "tests/tconv/ops/test_opinfo_conv2d.py::test_sample[1-torch.float16]",
    "tests/tconv/ops/test_conv_transpose2d.py::test_dtypes[torch.float16-ieee]",
    "tests/tconv/ops/test_adaptive_pool2d.py::test_dtypes[torch.float16]",
)


@pytest.mark.interpreter
def test_compiled_kernels_run_on_an_emulated_gpu() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TCONV_EMULATE"] = "sm_90"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run([*command, *SAMPLE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
