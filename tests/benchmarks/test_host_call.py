"""Tests of the host benchmark: it runs, and the timed calls really launch kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROBE = """
import sys
import torch
from benchmarks import host_call

host_call.install()
from tconv import functional
from tconv.families import FAMILIES
from tconv.tile import Choice
from tconv import select

channels, family = int(sys.argv[1]), sys.argv[2]
select.choose = lambda *asked: Choice(family, FAMILIES[family].heuristic(*asked))
x = torch.zeros(2, channels, 9, 9, dtype=torch.float16).to(memory_format=torch.channels_last)
w = torch.zeros(8, channels, 3, 3, dtype=torch.float16).to(memory_format=torch.channels_last)
odd = torch.zeros(x.numel() + 1, dtype=torch.float16)[1:]  # 2 bytes past the alignment
odd = odd.as_strided(x.shape, x.stride())
assert odd.data_ptr() % 16
from triton.runtime.jit import JITFunction
plain, jitted = JITFunction.run, []
JITFunction.run = lambda *a, **k: jitted.append(1) or plain(*a, **k)
from tconv.launch import recorded
with recorded() as log:
    for tensor in (x, x, x, odd, x):
        functional.conv2d(tensor, w)
assert host_call.FakeUtils.launched == len(log)
print(len(jitted), *(launch.kernel for launch in log if launch.kernel.endswith(('fprop', 'tma'))))
"""


def run(*command: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], env=environment | {"PYTHONPATH": str(ROOT)}, cwd=ROOT,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_benchmark_prints_its_table() -> None:
    text = run("-m", "benchmarks.host_call", "--calls", "10")
    for row in ("the driver's own launches", "tconv, no gradient", "torch, no gradient"):
        assert row in text


def test_a_call_is_compiled_once_and_unaligned_memory_separately() -> None:
    # Compiled: a product and the sum of its parts, then the product for unaligned memory, which
    # the first kernel would misread.
    jitted, *kernels = run("-c", PROBE, "9", "implicit_gemm").split()
    assert (jitted, kernels) == ("3", 5 * ["fprop.implicit_gemm_fprop"])
    # TMA needs alignment: the unaligned tensor is copied, and nothing is compiled for it.
    jitted, *kernels = run("-c", PROBE, "16", "implicit_gemm_tma").split()
    assert (jitted, kernels) == ("2", 5 * ["tma.implicit_gemm_tma"])
