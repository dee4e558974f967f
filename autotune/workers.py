"""Tasks in worker processes, each with a time limit; a worker that dies fails its task only.

This file imports nothing of the project: a worker must mend its environment first, for
Triton reads ``TRITON_INTERPRET`` when a kernel is decorated.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
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
from typing import Any

GRACE = 5.0  # seconds between asking a task to stop and ending its process
SILENCE = 60.0  # seconds past a task's time, after which nobody is at work on it
_spawning = threading.Lock()
DIED = object()  # in place of a result: the process ended; a task may well return None


@dataclass(frozen=True)
class Failure:
    """Why a task gave no result: ``time limit``, ``crash`` or ``error``, and in what words."""

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


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def prepare(environment: Mapping[str, str | None]) -> None:
    """First act of a worker: its environment, Ctrl-C left to the parent, no life without it."""
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch_parent, daemon=True).start()


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
            return Failure("error", f"{type(error).__name__}: {error}")
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
    ``executor`` makes the pool anew; by default fresh processes on this machine.
    """

    def __init__(
        self,
        count: int,
        environment: Mapping[str, str | None],
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        self.count = count
        self._environment = dict(environment)
        self._make = executor or self._processes
        self._pool: Executor | None = None

    def _processes(self) -> Executor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self.count, mp_context=context, initializer=prepare, initargs=(self._environment,)
        )

    def _submit(self, task: Task, seconds: float) -> Future[Any]:
        if self._pool is None:
            self._pool = self._make()
        with _environment(self._environment):  # a worker starts at the first submissions
            return self._pool.submit(perform, task.function, task.arguments, seconds)

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Any, float]]:
        """Each task with its result or ``Failure`` and the seconds it took, as they finish.

        When a process dies, the tasks in flight are tried again one by one, so that only
        the one at fault fails.
        """
        waiting, suspects = deque(tasks), deque[Task]()
        running: dict[Future[Any], tuple[Task, float]] = {}
        try:
            while waiting or suspects or running:
                # No more in flight than workers: a task's time starts when it is handed over.
                while waiting and not suspects and len(running) < self.count:
                    self._start(waiting.popleft(), seconds, running, waiting)
                alone = bool(suspects) and not running
                if alone:
                    self._start(suspects.popleft(), seconds, running, suspects)
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
                        self.close()
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
            self.close()
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

    def abandon(self) -> None:
        """End the workers in the middle of their tasks."""
        processes = dict(getattr(self._pool, "_processes", None) or {})
        self.close()
        for process in processes.values():
            process.kill()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
