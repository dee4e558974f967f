"""One candidate on the GPU of this process: the gate, and the clock.

Runs in a worker process, for a kernel that faults takes its process's CUDA context with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from autotune import gate
from autotune.gate import Verdict
from autotune.measure import CudaTimer, Timing, inputs, measure
from autotune.search import Effort
from tconv.problem import Problem
from tconv.select import Choice

FAULT = 70  # exit code of a worker whose context is lost
LOST = ("CUDA error", "HIP error")  # how torch words a fault that nothing in the process survives


@contextlib.contextmanager
def _mortal() -> Iterator[None]:
    """End the process where its GPU context is lost: the next task finds a fresh one."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in LOST):
            os._exit(FAULT)
        raise


def check(problem: Problem, choice: Choice) -> Verdict:
    """Whether ``choice`` computes the right thing on this process's GPU."""
    with _mortal():
        return gate.check_on_gpu(problem, choice)


def timing(problem: Problem, choice: Choice, l2_bytes: int, effort: Effort) -> Timing:
    """How long ``choice`` takes on this process's GPU."""
    from tconv.ops.conv_run import run

    with _mortal():
        tensors = inputs(problem, "cuda")
        timer = CudaTimer(lambda: run(problem, choice, **tensors), l2_bytes)
        return measure(timer, effort)
