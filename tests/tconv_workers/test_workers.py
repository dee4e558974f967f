"""Tests of workers: limits, crashes and their environment."""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tconv_workers as module
from tconv_workers import LEAST_MEMORY, Failure, Task, Workers, machine_memory, memory_of
from tests.autotune import tasks as done

LITTLE = 512 << 20
MUCH = 3 * LITTLE
LONG = 600.0  # seconds; long, so that no result depends on a loaded machine's clock


def test_a_crash_and_a_hang_fail_their_own_tasks_only() -> None:
    tasks = [Task(f"sum {n}", operator.add, (n, n)) for n in range(4)]
    tasks.insert(1, Task("crash", done.crash, (3,)))
    tasks.insert(3, Task("hang", time.sleep, (LONG,)))
    tasks.insert(4, Task("error", int, ("x",)))
    with Workers(2, {}) as workers:
        results = {task.key: result for task, result, _ in workers.run(tasks, 5.0)}
    assert [results[f"sum {n}"] for n in range(4)] == [0, 2, 4, 6]
    assert results["crash"] == Failure("crash", "the worker process ended")
    assert results["hang"].reason == "time limit"
    assert results["error"].reason == "error"
    assert "ValueError" in results["error"].detail


def test_environment_is_the_workers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ask = [Task("ask", os.getenv, ("TRITON_INTERPRET",))]
    with Workers(1, {"TRITON_INTERPRET": None}) as workers:
        assert next(workers.run(ask, LONG))[1] is None
    with Workers(1, {"TRITON_INTERPRET": "yes"}) as workers:
        assert next(workers.run(ask, LONG))[1] == "yes"
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_crashes_hangs_and_memory_limits_fail_only_their_own_tasks() -> None:
    """Tasks that crash, hang or use up memory do not affect the other tasks."""
    bad = [
        Task("abort", os.abort, ()),
        Task("segfault", done.segfault, ()),
        Task("hunger", done.eat, (MUCH,)),
        Task("a child's hunger", done.have_a_child_eat, (MUCH,)),
        Task("full disk", done.full_disk, ()),
        Task("no room", done.no_room_in_words, ()),
    ]
    tasks = [Task(f"sum {n}", operator.add, (n, n)) for n in range(len(bad) + 1)]
    mixed = [task for pair in zip(tasks, bad, strict=False) for task in pair] + tasks[-1:]
    with Workers(2, {}, memory=LITTLE) as workers:
        results = {task.key: result for task, result, _ in workers.run(mixed, LONG)}
    assert [results[f"sum {n}"] for n in range(len(tasks))] == [2 * n for n in range(len(tasks))]
    died = Failure("crash", "the worker process ended")
    assert results["abort"] == results["segfault"] == died
    assert results["hunger"] == Failure("error", "MemoryError: ")
    assert results["a child's hunger"] == 1  # the child's own MemoryError
    assert results["full disk"].reason == results["no room"].reason == "machine"
    assert "No space left" in results["full disk"].detail


def test_code_that_never_returns_to_python_ends_with_its_process() -> None:
    hang = [Task("hang in C", done.hold_the_interpreter, ())]
    with Workers(1, {}) as workers:
        ((_, result, _),) = workers.run(hang, 0.5)
    assert result == Failure("crash", "the worker process ended")


def test_without_a_limit_a_worker_takes_what_it_needs() -> None:
    with Workers(1, {}) as workers:
        ((_, chunks, _),) = workers.run([Task("eat", done.eat, (2 * done.CHUNK,))], 60.0)
    assert chunks == 2


def test_a_share_of_the_machine_or_of_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = machine_memory()
    assert memory_of(1) == max(LEAST_MEMORY, whole // 2)
    limits = (tmp_path / "none", tmp_path / "max", tmp_path / "most")
    limits[1].write_text("max\n")
    limits[2].write_text(f"{64 << 30}\n")
    monkeypatch.setattr(module, "CONTAINER_LIMITS", limits)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1 << 26, "SC_PAGE_SIZE": 4096}.get)
    assert machine_memory() == 64 << 30
    assert memory_of(4) == 8 << 30
    assert memory_of(1000) == LEAST_MEMORY


def gone(pid: int) -> bool:
    """Return whether a process has ended; a zombie counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # ended before the opening or the reading
        return True


def until(happens: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (there := happens()) and time.monotonic() < end:
        time.sleep(0.02)
    return there


def test_workers_and_their_children_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = f"from tests.autotune.tasks import employ; employ({str(tmp_path)!r})"
    code = f"if __name__ == '__main__':\n    {code}"
    script = tmp_path / "script.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment)
    names = ("waits", "child", "parent", "holds")
    try:
        assert until(lambda: all((tmp_path / name).exists() for name in names), LONG)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    pids = {name: int((tmp_path / name).read_text()) for name in names}
    for name in names:  # at most the limit and its grace, for code that never returns to Python
        assert until(lambda pid=pids[name]: gone(pid), LONG / 4), name  # type: ignore[misc]


def test_abandoned_workers_end_with_their_children(tmp_path: Path) -> None:
    with Workers(1, {}) as workers:
        running = workers.run([Task("hangs", done.linger_over_a_child, (tmp_path,))], LONG)
        workers._submit(Task("hangs", done.linger_over_a_child, (tmp_path,)), LONG)
        assert until((tmp_path / "parent").exists, LONG)
        workers.abandon()
        running.close()
    for name in ("parent", "child"):
        pid = int((tmp_path / name).read_text())
        assert until(lambda pid=pid: gone(pid), LONG / 4), name  # type: ignore[misc]


def test_a_script_that_does_not_guard_its_main_part_may_have_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import operator\n"
        "from tconv_workers import Task, Workers\n"
        "with Workers(1, {}) as workers:\n"
        "    ((_, result, _),) = workers.run([Task(0, operator.add, (2, 3))], 600.0)\n"
        "print(result)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr
