"""Tasks in worker processes, each with a time limit; a worker that dies fails its task only.

A worker leads a process group of its own: what it has started (ptxas) ends with it, and it ends
with its parent. Workers that compile may be given a limit of memory as well.

This file imports nothing of the project: a worker must mend its environment first, for
Triton reads ``TRITON_INTERPRET`` when a kernel is decorated.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import resource
import signal
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
SILENCE = 60.0  # seconds past a task's time, after which nobody is at work on it
# Of the machine's memory, for all workers together: each may have a ptxas beside it, whose limit is
# its own. A compilation takes about 0.3 GiB, most of it torch's libraries.
MEMORY_SHARE = 0.5
LEAST_MEMORY = 2 << 30  # bytes, of one worker
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
NO_ROOM = os.strerror(errno.ENOSPC)
_spawning = threading.Lock()
DIED = object()  # in place of a result: the process ended; a task may well return None


@dataclass(frozen=True)
class Failure:
    """Why a task gave no result, and in what words.

    ``time limit``, ``crash``, ``error``, or ``machine``: a full disk or a missing tool is no fault
    of the task's, which may succeed another time.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Task:
    """A call to be made in a worker; ``function`` is found there by its name."""

    key: Hashable
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class TimeLimitError(Exception):
    """A task took longer than it may."""


def _stop(signum: int, frame: object) -> None:
    raise TimeLimitError


def machine_memory() -> int:
    """Bytes that this machine, or the container we are in, may use."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for place in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            found.append(int(place.read_text()))
    return min(found)


def memory_of(count: int) -> int:
    """Bytes that each of ``count`` workers on this machine may take."""
    return max(LEAST_MEMORY, int(MEMORY_SHARE * machine_memory() / count))


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # and with it whatever it waits for
        os._exit(1)


def prepare(environment: Mapping[str, str | None], memory: int | None = None) -> None:
    """First act of a worker: its environment, Ctrl-C left to the parent, no life without it.

    ``memory`` limits what it, and each process that it starts, may hold in bytes. Address space
    that is only reserved does not count, memory that is written to does: beyond it Python raises
    MemoryError, and a compiler ends.
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
    """Whose fault an error is: the ``machine``'s, whose disk or GPU is full, or the task's."""
    full = NO_ROOM in str(error) or type(error).__name__ == "OutOfMemoryError"  # torch's, of a GPU
    return "machine" if full or isinstance(error, OSError) else "error"


def perform(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> Any:
    """Run one task in a worker; past its time it is interrupted, and at last the process ends.

    The interruption ends a hung ptxas, which Triton waits for in Python. Code that never
    returns to Python is ended by faulthandler's own thread, which needs no interpreter lock.
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
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """``changes`` made to this process's environment, which a process started now inherits."""
    _spawning.acquire()  # threads of one process share its environment
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
    """A pool of worker processes that outlives the death of any of them.

    ``environment`` is what the workers see otherwise than this process (None removes).
    ``executor`` makes the pool anew; by default fresh processes on this machine, each of which may
    take ``memory`` bytes. CUDA maps more than it uses: workers that measure are given no limit.
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
        self._groups: set[int] = set()  # of the pool's processes; each leads one
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
        with _environment(self._environment):  # a worker starts at the first submissions
            future = self._pool.submit(perform, task.function, task.arguments, seconds)
        self._groups.update(getattr(self._pool, "_processes", None) or ())
        return future

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Any, float]]:
        """Each task with its result or ``Failure`` and the seconds it took, as they finish.

        When a process dies and several tasks are in flight, they are tried again one by one, so
        that only the one at fault fails.
        """
        waiting, suspects = deque(tasks), deque[Task]()
        running: dict[Future[Any], tuple[Task, float]] = {}
        try:
            while waiting or suspects or running:
                # No more in flight than workers: a task's time starts when it is handed over.
                while waiting and not suspects and len(running) < self.count:
                    self._start(waiting.popleft(), seconds, running, waiting)
                if suspects and not running:
                    self._start(suspects.popleft(), seconds, running, suspects)
                alone = len(running) == 1
                done, _ = wait(running, seconds + SILENCE, return_when=FIRST_COMPLETED)
                if not done:  # of a cluster whose workers are gone; a process here would end
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
        except BrokenProcessPool:  # a worker died between tasks: no task's fault
            self.abandon()
            again.appendleft(task)

    @staticmethod
    def _result(future: Future[Any]) -> Any:
        """A task's result, or ``DIED``."""
        try:
            return future.result()
        except BrokenProcessPool:
            return DIED
        except CancelledError:  # by a cluster that went away
            return Failure("crash", "the cluster no longer answers")
        except Exception as error:  # the result could not travel
            if type(error).__name__ == "KilledWorker":  # Dask's: it was tried on several
                return Failure("crash", str(error))
            return Failure("error", f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """End the workers; tasks not yet begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
            self._groups = set()

    def abandon(self) -> None:
        """End the workers in the middle of their tasks, and what they have started."""
        processes, groups = dict(getattr(self._pool, "_processes", None) or {}), self._groups
        self.close()
        for group in groups:
            with contextlib.suppress(ProcessLookupError):  # ended before, or not yet begun
                os.killpg(group, signal.SIGKILL)
        for process in processes.values():
            process.kill()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
