"""Tests of installing the emulated GPU with ``TCONV_EMULATE``, and of the errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tconv import emulator

EXPLAINED = """
import torch, tconv
from tconv.launch import emulated, recorded, target_for
layer, x = tconv.Conv2d(16, 16, 3, padding=1).half(), torch.randn(1, 16, 6, 6).half()
x = x.to(memory_format=torch.channels_last).requires_grad_()
print(tconv.explain(layer, x))
print(tconv.explain(tconv.ConvGeometry(1, 16, 6, 6, 16, 3, 3)))
with recorded() as log:
    y = layer(x)
    y.sum().backward()
assert log and target_for(x.device) is emulated()
exact = torch.nn.functional.conv2d(*(t.double() for t in (x, layer.weight, layer.bias)), padding=1)
torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
with tconv.emulator.launches() as launched:
    again = layer(x)  # past Triton's JIT: the compiled kernel is known
assert launched and torch.equal(again, y)
"""


@pytest.mark.parametrize("name", ["sm_90", pytest.param("sm_80", marks=pytest.mark.thorough)])
def test_cpu_tensors_run_on_the_emulated_gpu(name: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.getcwd(), "TCONV_EMULATE": name}
    command = [sys.executable, "-c", EXPLAINED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"on cpu, emulated {name}:") == 2
    assert "heuristic" in done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sm_75", "TCONV_EMULATE=sm_75: 'sm_75' is not an emulated GPU; there are: sm_80, sm_90"),
        ("gfx942", "'gfx942' is not covered by the emulator; there are: sm_80, sm_90"),
        ("sm_100", "'sm_100' is not covered by the emulator"),
    ],
)
def test_a_gpu_that_is_not_emulated_is_refused(
    name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TCONV_EMULATE", name)
    with pytest.raises(ValueError, match=words):
        emulator.install_asked()


@pytest.mark.interpreter
def test_interpreter_and_emulator_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TCONV_EMULATE", "sm_90")
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET or TCONV_EMULATE"):
        emulator.install_asked()
    assert emulator.installed() is None
    with pytest.raises(RuntimeError, match="no GPU is emulated"), emulator.launches():
        pass
