"""Workers: limits, crashes, and an environment of their own."""

from __future__ import annotations

import operator
import os
import time

import pytest

from autotune.workers import Failure, Task, Workers


def test_a_crash_and_a_hang_fail_their_own_tasks_only() -> None:
    tasks = [Task(f"sum {n}", operator.add, (n, n)) for n in range(4)]
    tasks.insert(1, Task("crash", os._exit, (3,)))
    tasks.insert(3, Task("hang", time.sleep, (60,)))
    tasks.insert(4, Task("error", int, ("x",)))
    began = time.monotonic()
    with Workers(2, {}) as workers:
        results = {task.key: result for task, result, _ in workers.run(tasks, 1.0)}
    assert time.monotonic() - began < 30
    assert [results[f"sum {n}"] for n in range(4)] == [0, 2, 4, 6]
    assert results["crash"] == Failure("crash", "the worker process ended")
    assert results["hang"].reason == "time limit"
    assert results["error"].reason == "error"
    assert "ValueError" in results["error"].detail


def test_environment_is_the_workers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ask = [Task("ask", os.getenv, ("TRITON_INTERPRET",))]
    with Workers(1, {"TRITON_INTERPRET": None}) as workers:
        assert next(workers.run(ask, 10.0))[1] is None
    with Workers(1, {"TRITON_INTERPRET": "yes"}) as workers:
        assert next(workers.run(ask, 10.0))[1] == "yes"
    assert os.environ["TRITON_INTERPRET"] == "1"
