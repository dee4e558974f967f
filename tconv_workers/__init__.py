"""Run tasks in worker processes with a time limit; a dying worker fails only its own task.

Each worker leads a process group: the processes it started (ptxas) end with it, and it ends with
its parent. Compiling workers can also have a memory limit.

This package imports nothing from the project, so that a worker starts in a tenth of a second and
sets its environment first: Triton reads ``TRITON_INTERPRET`` when a kernel is decorated.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRACE = 5.0  # seconds between asking a task to stop and ending its process
SILENCE = 60.0  # seconds past a task's time limit, after which its worker counts as gone
# Share of the machine's memory for all workers together. Each may have a ptxas beside it with a
# limit of its own. A compilation takes about 0.3 GiB, most of it torch's libraries.
MEMORY_SHARE = 0.5
LEAST_MEMORY = 2 << 30  # bytes per worker
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
NO_ROOM = os.strerror(errno.ENOSPC)
_spawning = threading.Lock()
DIED = object()  # marks a dead process; unlike None, no task returns it


@dataclass(frozen=True)
class Failure:
    """Why a task gave no result, with the message.

    The reason is ``time limit``, ``crash``, ``error`` or ``machine``. The last is a full disk or a
    missing tool: the task is not at fault and may succeed later.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Task:
    """A call to make in a worker, which finds ``function`` by its name."""

    key: Hashable
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class TimeLimitError(Exception):
    """A task exceeded its time limit."""


def _stop(signum: int, frame: object) -> None:
    raise TimeLimitError


def machine_memory() -> int:
    """Return the bytes of memory that this machine, or its container, may use."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for place in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(place.read_text()))
    return min(found)


def memory_of(count: int) -> int:
    """Return the bytes that each of ``count`` workers on this machine may use."""
    return max(LEAST_MEMORY, int(MEMORY_SHARE * machine_memory() / count))


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # also ends the processes it waits for
        os._exit(1)


def prepare(environment: Mapping[str, str | None], memory: int | None = None) -> None:
    """Worker initialiser: set the environment, ignore SIGINT, die with the parent.

    ``memory`` limits the bytes of this process and of each process it starts. Reserved address
    space does not count, written memory does. Beyond the limit Python raises MemoryError and a
    compiler ends.
    """
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if memory is not None:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = memory if most == resource.RLIM_INFINITY else min(memory, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, daemon=True).start()


def reason_of(error: Exception) -> str:
    """Return "machine" if its disk or GPU memory is full or a file is missing, else "error"."""
    # torch's, for GPU memory
    full = NO_ROOM in str(error) or type(error).__name__ == "OutOfMemoryError"
    return "machine" if full or isinstance(error, OSError) else "error"


def perform(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> Any:
    """Run one task in a worker: interrupt it at its time limit, and finally end the process.

    The interruption ends a hung ptxas, which Triton waits for in Python. Code that never returns to
    Python is ended by faulthandler's own thread, which needs no interpreter lock.
    """
    signal.signal(signal.SIGALRM, _stop)
    with open(os.devnull, "w") as sink:
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sink)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function(*arguments)
        except TimeLimitError:
            return Failure("time limit", f"stopped after {seconds:g} s")
        except Exception as error:
            return Failure(reason_of(error), f"{type(error).__name__}: {error}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _unnamed_main() -> Iterator[None]:
    """Keep new processes from importing the caller's script, which may not guard its main part.

    Tasks are found by the names of their modules, so a worker never needs it.
    """
    main: dict[str, Any] = sys.modules["__main__"].__dict__
    before: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(before)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Apply ``changes`` to this process's environment, which newly started processes inherit."""
    _spawning.acquire()  # threads share the process's environment
    before = {name: os.environ.get(name) for name in changes}
    try:
        for name, value in changes.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _spawning.release()


class Workers:
    """A pool of worker processes that survives the death of any of them.

    ``environment`` is what changes in the workers' environment (None removes a variable).
    ``executor`` creates the pool, by default fresh local processes that may each use ``memory``
    bytes. CUDA maps more memory than it uses, so measuring workers have no limit.
    """

    def __init__(
        self,
        count: int,
        environment: Mapping[str, str | None],
        executor: Callable[[], Executor] | None = None,
        memory: int | None = None,
    ) -> None:
        self.count = count
        self._memory = memory
        self._groups: set[int] = set()  # process groups of the pool's workers
        self._environment = dict(environment)
        self._make = executor or self._processes
        self._pool: Executor | None = None

    def _processes(self) -> Executor:
        context = multiprocessing.get_context("spawn")
        first = (self._environment, self._memory)
        return ProcessPoolExecutor(
            self.count, mp_context=context, initializer=prepare, initargs=first
        )

    def _submit(self, task: Task, seconds: float) -> Future[Any]:
        if self._pool is None:
            self._pool = self._make()
        # workers start at the first submissions
        with _environment(self._environment), _unnamed_main():
            future = self._pool.submit(perform, task.function, task.arguments, seconds)
        self._groups.update(getattr(self._pool, "_processes", None) or ())
        return future

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Any, float]]:
        """Yield each task with its result or ``Failure`` and its seconds, as they finish.

        If a process dies while several tasks are in flight, they are retried one by one, so that
        only the one at fault fails.
        """
        waiting, suspects = deque(tasks), deque[Task]()
        running: dict[Future[Any], tuple[Task, float]] = {}
        try:
            while waiting or suspects or running:
                # Keep at most one task in flight per worker: its time starts at submission.
                while waiting and not suspects and len(running) < self.count:
                    self._start(waiting.popleft(), seconds, running, waiting)
                if suspects and not running:
                    self._start(suspects.popleft(), seconds, running, suspects)
                alone = len(running) == 1
                done, _ = wait(running, seconds + SILENCE, return_when=FIRST_COMPLETED)
                if not done:  # a cluster's workers are gone; a local process would have ended
                    for future, (task, began) in running.items():
                        future.cancel()
                        failed = Failure("crash", f"no answer in {seconds + SILENCE:g} s")
                        yield task, failed, time.monotonic() - began
                    running.clear()
                for future in done:
                    task, began = running.pop(future)
                    result = self._result(future)
                    if result is DIED:
                        self.abandon()
                        if not alone:
                            suspects.append(task)
                            continue
                        result = Failure("crash", "the worker process ended")
                    yield task, result, time.monotonic() - began
        finally:
            for future in running:
                future.cancel()

    def _start(
        self,
        task: Task,
        seconds: float,
        running: dict[Future[Any], tuple[Task, float]],
        again: deque[Task],
    ) -> None:
        try:
            running[self._submit(task, seconds)] = task, time.monotonic()
        except BrokenProcessPool:  # a worker died between tasks: no task is at fault
            self.abandon()
            again.appendleft(task)

    @staticmethod
    def _result(future: Future[Any]) -> Any:
        """Return a task's result, or ``DIED``."""
        try:
            return future.result()
        except BrokenProcessPool:
            return DIED
        except CancelledError:  # the cluster went away
            return Failure("crash", "the cluster no longer answers")
        except Exception as error:  # the result could not be pickled
            if type(error).__name__ == "KilledWorker":  # Dask's, after trying several workers
                return Failure("crash", str(error))
            return Failure("error", f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End the workers; tasks not yet begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            self._groups = set()

    def abandon(self) -> None:
        """Kill the workers and the processes they have started."""
        processes, groups = dict(getattr(self._pool, "_processes", None) or {}), self._groups
        self.close()
        for group in groups:
            with contextlib.suppress(ProcessLookupError):  # ended already, or not yet started
                os.killpg(group, signal.SIGKILL)
        for process in processes.values():
            process.kill()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
