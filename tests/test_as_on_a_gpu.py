"""Tests that the suite does not depend on the interpreter on a machine with a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FEW = ("tests/tconv/ops/test_torch_func.py", "tests/tconv/test_modules.py",
       "tests/tconv/families/test_edges.py")  # fmt: skip
ALL = ("tests/tconv", "--ignore", "tests/tconv/kernels", "--ignore", "tests/tconv/emulator")


def run(*arguments: str) -> str:
    """Return pytest's output with a fake H200; no test may fail."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-p", "tests.as_on_a_gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "-q", *arguments], env=environment, cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def test_a_few_tests_reach_the_gpu() -> None:
    out = run(*FEW, "-k", "transforms or torchs or every_edge")
    assert "reached the GPU" in out
    assert "passed" in out


@pytest.mark.thorough
def test_all_tests_reach_the_gpu() -> None:
    assert "reached the GPU" in run(*ALL)
