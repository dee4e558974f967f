"""Measure the host's cost of one LeNet-5 inference, eager and compiled: the driver is faked.

    python -m benchmarks.host_network [--json]

Our kernels are really compiled, for sm_90, and every layer of a call runs as on a GPU, up to the
launch itself, which does nothing; the batch is 1, so that the linear layers, which the CPU really
computes, cost little. Torch's own ways get an empty batch: torch dispatches every operator and
computes nothing. Under ``torch.compile`` a call also pays for Dynamo's guards.
"""

from __future__ import annotations

import copy
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import host_call
from benchmarks.figures import print_figures
from tconv.compiler import tconv_backend
from tconv.launch import recorded
from tconv.models.command import Backend, build

CALLS, ROUNDS = 40, 60
IMAGE = (1, 32, 32)


def ways(inductor: bool) -> dict[str, tuple[Callable[[Tensor], Any], int]]:
    """Each way to call the network by name, with its batch."""
    ours, theirs = (build("lenet5", each, 0).eval() for each in (Backend.tconv, Backend.torch))

    def compiled(**how: Any) -> Callable[[Tensor], Any]:
        return torch.compile(copy.deepcopy(theirs), **how)  # type: ignore[no-any-return]

    def on_tconv(rest: str) -> Callable[[Tensor], Any]:
        return compiled(backend=tconv_backend, options={"rest": rest})

    found = {
        "tconv_eager": (ours, 1),
        "tconv_compiled_rest_eager": (on_tconv("eager"), 1),
        "torch_eager": (theirs, 0),
        "torch_compiled_eager": (compiled(backend="eager"), 0),
        "torch_compiled_aot_eager": (compiled(backend="aot_eager"), 0),
    }
    if inductor:
        found["tconv_compiled_rest_inductor"] = (on_tconv("inductor"), 1)
        found["torch_compiled_inductor"] = (compiled(backend="inductor"), 0)
    return found


def measure(
    calls: int = CALLS, rounds: int = ROUNDS, inductor: bool | None = None
) -> dict[str, object]:
    """Microseconds of a call of each way, and how many of our kernels it launches.

    Args:
        calls: of each way in a round; the rounds of all ways alternate, and the fastest counts.
        rounds: how many.
        inductor: whether to measure Inductor, which needs a C++ compiler; None looks for one.
    """
    host_call.install()
    torch.set_num_threads(1)
    if inductor is None:
        inductor = any(map(shutil.which, ("c++", "g++", "clang++")))
    made = {
        name: (call, torch.zeros(batch, *IMAGE)) for name, (call, batch) in ways(inductor).items()
    }
    launched: dict[str, object] = {}
    best = dict.fromkeys(made, math.inf)
    with torch.inference_mode():
        for name, (call, x) in made.items():
            call(x)
            with recorded() as log:
                call(x)
            if len(x):
                launched[f"{name}_launches"] = len(log)
        for _ in range(rounds):
            for name, (call, x) in made.items():
                best[name] = min(best[name], host_call.mean_of(lambda: call(x), calls))  # noqa: B023
    times = {f"{name}_us": time for name, time in best.items()}
    return {"torch": torch.__version__, **times, **launched}


def main(arguments: Sequence[str]) -> None:
    print_figures(__doc__.splitlines()[0], measure, arguments, number=".1f")


if __name__ == "__main__":
    main(sys.argv[1:])
