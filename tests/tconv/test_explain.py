"""Tests that ``explain`` names what then runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import tconv
from tconv.launch import interpreting, recorded
from tests.devices import DEVICE


def test_names_what_then_runs() -> None:
    layer, x = tconv.Conv2d(3, 6, 5, stride=2, padding=1), torch.randn(2, 3, 15, 13)
    layer, x = layer.to(DEVICE), x.to(DEVICE)
    explanation = tconv.explain(layer, x)
    with recorded() as log:
        layer(x).sum().backward()
    (direction, choice), *_ = explanation.choices
    assert direction == "fprop"
    forward = [launch for launch in log if launch.constants.get("BLOCK_M") == choice.tile.block_m]
    assert forward
    if interpreting():
        assert forward[0].kernel == f"fprop.{choice.family}_fprop"
    assert explanation.geometry.key == "n2c3h15w13-k6f5x5-s2x2-p1x1-d1x1-g1"
    if interpreting():
        assert "interpreter" in str(explanation)
    assert "heuristic" in str(explanation)
    assert "not implicit_gemm_tma: 3 channels of float32 are not a multiple of 16" in str(
        explanation
    )


def test_pools_and_geometries() -> None:
    pool = tconv.explain(tconv.MaxPool2d(3, 2), torch.randn(1, 4, 9, 9, device=DEVICE))
    assert [direction for direction, _ in pool.choices] == ["fprop", "dgrad"]
    layer = tconv.ConvGeometry.from_lecture("3x32x32", filters=10, extent=5, padding=2)
    assert [direction for direction, _ in tconv.explain(layer).choices] == [
        "fprop",
        "dgrad",
        "wgrad",
    ]


def test_errors_name_the_value() -> None:
    with pytest.raises(TypeError, match="Linear is neither"):
        tconv.explain(torch.nn.Linear(2, 3), torch.zeros(1, 2))
    with pytest.raises(TypeError, match="needs the input"):
        tconv.explain(tconv.Conv2d(2, 3, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks about a machine without a GPU")
def test_without_the_interpreter_cpu_tensors_go_to_torch_and_explain_states_it() -> None:
    code = """
import sys, torch, tconv
from tconv.launch import recorded
assert not [name for name in sys.modules if name.startswith("tconv.emulator")]  # not asked for
layer, x = tconv.Conv2d(3, 6, 3), torch.randn(2, 3, 9, 9, requires_grad=True)
with recorded() as log:
    y = tconv.MaxPool2d(2)(layer(x))
    y.sum().backward()
assert not log and x.grad.shape == x.shape
print(tconv.explain(layer, x))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "torch's own CPU operators" in done.stdout
