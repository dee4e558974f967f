"""Check and time one candidate on this process's GPU.

Runs in a worker process, because a faulting kernel destroys its process's CUDA context.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeVar

from autotune import gate
from autotune.deadline import Deadline
from autotune.gate import Verdict
from autotune.measure import CudaTimer, Timing, inputs, measure
from autotune.measure import contest as measure_in_turn
from autotune.search import Effort
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice
from tconv_workers import Failure, reason_of

Result = TypeVar("Result")

FAULT = 70  # exit code of a process whose GPU context is lost
ROTATED = 2  # draws of the inputs, used by the runs in turn
REFERENCE_SIDE, REFERENCE_RUNS = 2048, 5


def context_lost() -> bool:
    """Return whether this process's GPU context is lost, which makes every later GPU call fail.

    Ask the driver, because libraries word a fault differently: torch's message starts with "CUDA
    error:", Triton's with "Triton Error [CUDA]:". Synchronising waits for running kernels, so that
    a fault is attributed to the candidate that launched them and not to the next one.
    """
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@contextlib.contextmanager
def _exit_if_context_lost() -> Iterator[None]:
    """End the process if its GPU context is lost, so that the next task gets a fresh one."""
    try:
        yield
    finally:
        if context_lost():
            os._exit(FAULT)


def check(problem: Problem, choice: Choice) -> Verdict:
    """Check ``choice`` on this process's GPU."""
    with _exit_if_context_lost():
        return gate.check_on_gpu(problem, choice)


def timing(problem: Problem, choice: Choice, l2_bytes: int, effort: Effort, best: float) -> Timing:
    """Time ``choice`` on this process's GPU."""
    with _exit_if_context_lost():
        found = measure(_timers(problem, (choice,), l2_bytes)[0], effort, best)
        return replace(found, reference=_reference(l2_bytes))


def contest(
    problem: Problem, choices: Sequence[Choice], l2_bytes: int, effort: Effort
) -> list[Timing]:
    """Time each of ``choices`` on this process's GPU, in turn."""
    with _exit_if_context_lost():
        found = measure_in_turn(_timers(problem, choices, l2_bytes), effort)
        reference = _reference(l2_bytes)
        return [replace(timing, reference=reference) for timing in found]


def _timers(problem: Problem, choices: Sequence[Choice], l2_bytes: int) -> list[CudaTimer]:
    from tconv.ops.conv_run import compute

    drawn = [inputs(problem, "cuda", seed) for seed in range(ROTATED)]
    return [
        CudaTimer([partial(compute, problem, choice, **tensors) for tensors in drawn], l2_bytes)
        for choice in choices
    ]


@lru_cache(maxsize=1)
def _reference_timer(l2_bytes: int) -> CudaTimer:
    """Return the timer of a fixed matrix product, which tracks the GPU clock and other load."""
    import torch

    side = torch.randn(REFERENCE_SIDE, REFERENCE_SIDE, device="cuda", dtype=torch.float16)
    return CudaTimer([lambda: side @ side], l2_bytes)


def _reference(l2_bytes: int) -> float:
    return statistics.median(_reference_timer(l2_bytes)(REFERENCE_RUNS))


@dataclass(frozen=True)
class InThisProcess:
    """Gate, clock and contest in a process that must survive: an error becomes a ``Failure``.

    Raises:
        RuntimeError: if a candidate destroyed the process's GPU context; later candidates would
            fail through no fault of their own.
    """

    target: Target
    effort: Effort
    deadline: Deadline  # no contest starts after it

    def check(self, problem: Problem, choice: Choice) -> Verdict | Failure:
        return self._tried(choice, lambda: gate.check_on_gpu(problem, choice))

    def timing(self, problem: Problem, choice: Choice, best: float) -> Timing | Failure:
        timers = partial(_timers, problem, (choice,), self.target.l2_bytes)
        return self._tried(choice, lambda: measure(timers()[0], self.effort, best))

    def contest(self, problem: Problem, choices: Sequence[Choice]) -> list[Timing] | Failure:
        if not self.deadline.left:
            return Failure("error", "no time is left for a contest")
        timers = partial(_timers, problem, choices, self.target.l2_bytes)
        return self._tried(choices[0], lambda: measure_in_turn(timers(), self.effort))

    def _tried(self, choice: Choice, work: Callable[[], Result]) -> Result | Failure:
        try:
            return work()
        except Exception as error:  # too many resources, out of memory, or a compiler's error
            words = f"{type(error).__name__}: {error}"
            if context_lost():
                raise RuntimeError(f"{choice.family} {choice.tile}: {words}") from error
            return Failure(reason_of(error), words)
