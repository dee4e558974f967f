"""Tests of a process whose GPU context is lost, with a fake GPU."""

from __future__ import annotations

import pytest
import torch

from autotune import on_gpu
from autotune.deadline import Deadline
from autotune.search import DEFAULT_EFFORT
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice, Tile
from tconv_workers import Failure, Task, Workers
from tests.autotune import tasks as done

WORDS = (
    "CUDA error: an illegal memory access was encountered",
    "Triton Error [CUDA]: an illegal memory access was encountered",
    "Triton Error [HIP]:  Code: 700, Messsage: an illegal memory access was encountered",
    "",  # no error at launch; the fault appears at synchronisation
)


def test_a_fault_ends_the_process_that_launched_the_kernel() -> None:
    """For any library's message; the next task, in a new process, is not affected."""
    tasks = []
    for words in WORDS:
        tasks += [Task(("faulty", words), done.lose_context, (words,))]
        tasks += [Task(("next", words), done.use_gpu, ())]
    with Workers(1, {}) as workers:
        results = {task.key: result for task, result, _ in workers.run(tasks, 600.0)}
    for words in WORDS:
        assert results["faulty", words] == Failure("crash", "the worker process ended"), words
        assert results["next", words] == "right", words


def test_an_error_that_keeps_the_context_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with pytest.raises(RuntimeError, match="invalid argument"), on_gpu._exit_if_context_lost():
        raise RuntimeError("Triton Error [CUDA]: invalid argument")


def test_without_a_gpu_no_context_is_lost() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("there is a GPU")
    assert not on_gpu.context_lost()


@pytest.mark.parametrize("lost", [False, True])
def test_a_process_collects_failures_until_its_context_is_lost(
    lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(problem: Problem, choice: Choice) -> None:
        raise ValueError("too many resources")

    monkeypatch.setattr(on_gpu.gate, "check_on_gpu", refused)
    monkeypatch.setattr(on_gpu, "context_lost", lambda: lost)
    here = on_gpu.InThisProcess(TARGETS["sm_90"], DEFAULT_EFFORT, Deadline(60))
    problem = Problem(ConvGeometry(1, 16, 8, 8, 16, 3, 3), "fprop")
    choice = Choice("implicit_gemm", Tile(16, 16, 16))
    if lost:
        with pytest.raises(RuntimeError, match=r"implicit_gemm 16x16x16 .*too many resources"):
            here.check(problem, choice)
    else:
        assert here.check(problem, choice) == Failure("error", "ValueError: too many resources")
    late = on_gpu.InThisProcess(TARGETS["sm_90"], DEFAULT_EFFORT, Deadline(0.0))
    assert isinstance(late.contest(problem, [choice, choice]), Failure)
