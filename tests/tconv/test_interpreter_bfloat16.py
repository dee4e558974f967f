"""bfloat16 in Triton's interpreter, in a process of its own, without the settings of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch, tconv
torch.manual_seed(0)
layer = tconv.Conv2d(3, 4, 3, dtype=torch.bfloat16)
x = torch.randn(2, 3, 8, 8, dtype=torch.bfloat16)
assert "in Triton's interpreter" in str(tconv.explain(layer, x))
y = layer(x)
exact = torch.nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double())
torch.testing.assert_close(y, exact.bfloat16(), atol=1e-2, rtol=1e-2)
y.sum().backward()
assert layer.weight.grad.isfinite().all() and layer.weight.grad.abs().max() < 1000
"""


@pytest.mark.interpreter
def test_bfloat16_is_right_in_a_users_interpreter() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
