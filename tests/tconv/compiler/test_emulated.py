"""A compiled model on the emulated GPU: the fused kernels of its graph are the compiled ones."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import copy, torch, tconv
from torch import nn
from tconv.compiler import tconv_backend
from tconv.launch import recorded
torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(6, 16, 3), nn.BatchNorm2d(16), nn.Tanh(),
    nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(),
    nn.Flatten(), nn.Linear(512, 10),
).eval().half()
exact = copy.deepcopy(model).double()
compiled = torch.compile(model, backend=tconv_backend, options={"rest": "eager"})
x = torch.randn(2, 1, 16, 16).half()
with torch.no_grad():
    compiled(x)
    with recorded() as log, tconv.emulator.launches() as launched:
        y = compiled(x)
    torch.testing.assert_close(y.double(), exact(x.double()), rtol=2e-2, atol=2e-2)
print(*(entry for graph in tconv.report(model).graphs for entry in graph.entries), sep="\\n")
print(len(log), len(launched))
assert any(constant == "tanh" for launch in log for constant in launch.constants.values())
assert any(launch.constants.get("POOL") for launch in log)
assert any("norm_mean" in launch.operands for launch in log if "dgrad" in launch.kernel)
"""


def test_the_kernels_of_a_compiled_model_run_emulated() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.getcwd(), "TCONV_EMULATE": "sm_90"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *entries, counts = done.stdout.splitlines()
    assert entries == ["0: conv2d + relu + max_pool2d", "3: conv2d + batch_norm + tanh",
                       "6: conv_transpose2d + batch_norm + relu"]  # fmt: skip
    recorded, launched = map(int, counts.split())
    assert launched >= recorded > 0
