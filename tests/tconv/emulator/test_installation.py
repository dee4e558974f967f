"""``TCONV_EMULATE`` chooses the emulated GPU at import, and what is wrong is said in plain words."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TCONV_EMULATE")
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": os.getcwd(), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["sm_80", "sm_90"])
def test_cpu_tensors_run_on_the_emulated_gpu(name: str) -> None:
    done = python(EXPLAINED, TCONV_EMULATE=name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"on cpu, emulated {name}:") == 2
    assert "heuristic" in done.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sm_75", "TCONV_EMULATE=sm_75: 'sm_75' is no emulated GPU; there are: sm_80, sm_90"),
        ("gfx942", "'gfx942' is not covered by the emulator; there are: sm_80, sm_90"),
        ("sm_100", "'sm_100' is not covered by the emulator"),
    ],
)
def test_a_gpu_that_is_not_emulated_is_refused(name: str, words: str) -> None:
    done = python("import tconv", TCONV_EMULATE=name)
    assert done.returncode
    assert words in done.stderr


def test_interpreter_and_emulator_exclude_each_other() -> None:
    done = python("import tconv", TCONV_EMULATE="sm_90", TRITON_INTERPRET="1")
    assert done.returncode
    assert "they exclude each other; unset TRITON_INTERPRET or TCONV_EMULATE" in done.stderr


def test_unasked_it_is_not_imported() -> None:
    code = "import sys, tconv; print([n for n in sys.modules if n.startswith('tconv.emulator')])"
    assert python(code).stdout.strip() == "[]"
    assert python(code, TCONV_EMULATE="").stdout.strip() == "[]"
