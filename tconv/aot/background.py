"""Compile better kernels in the background, while layers run on kernels that are compiled already.

Off by default. One thread hands the jobs to one worker process, and a bounded number of them waits.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tconv import select, shared_kernels
from tconv.launch import Launch
from tconv.problem import Problem
from tconv.target import Target
from tconv.tile import Choice

if TYPE_CHECKING:
    from tconv_workers import Workers

WAITING = 16  # jobs
SECONDS = 300.0  # for one kernel


@dataclass(frozen=True)
class Job:
    """A choice whose kernels are to be compiled for a problem."""

    problem: Problem
    choice: Choice
    target: Target
    launches: tuple[Launch, ...]


class Compiler:
    """A thread that compiles one job after another in one worker process."""

    def __init__(self, waiting: int, workers: Callable[[], Workers]) -> None:
        self._jobs: queue.Queue[Job | None] = queue.Queue(waiting)
        self._workers = workers
        self._thread = threading.Thread(target=self._run, name="tconv compiler", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> bool:
        """Queue a job; return whether there was room for it."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            return False
        return True

    def stop(self) -> None:
        """Drop the waiting jobs and end the thread after the current one."""
        while True:
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                break
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the thread to end; call ``stop`` first."""
        self._thread.join()

    def _run(self) -> None:
        with self._workers() as workers:
            while (job := self._jobs.get()) is not None:
                try:
                    self._compile(job, workers)
                except RuntimeError:  # the interpreter is shutting down
                    return

    def _compile(self, job: Job, workers: Workers) -> None:
        from tconv.aot.build import ensure
        from tconv_workers import Failure, Task

        tasks = [Task(place, ensure, (each, job.target)) for place, each in enumerate(job.launches)]
        results = [result for _, result, _ in workers.run(tasks, SECONDS)]
        failures = [each for each in results if isinstance(each, Failure)]
        for failure in failures[:1]:
            words = f"{failure.reason}: {failure.detail}"
            warnings.warn(f"{job.problem.key} keeps its kernel: {words}", stacklevel=2)
        shared_kernels.settle(job.problem, job.choice, job.target, compiled=not failures)
        if not failures:
            select.choose_again()


_compiler: Compiler | None = None


def compile_in_background(waiting: int = WAITING) -> Callable[[], None]:
    """Run layers at sizes not seen before at once, and compile better kernels for them meanwhile.

    A layer at a new size takes a kernel in use even where the model predicts that it loses up to
    half, instead of 12%. The better kernel is compiled in one worker process, one after
    another, and serves the layer from its first call after that. ``tconv.explain`` names it.
    ``TCONV_BACKGROUND=1``, set before the import, does the same.

    Args:
        waiting: number of kernels that may wait; what finds no room is not compiled.

    Returns:
        A function that turns this off again and drops what waits.

    Raises:
        ValueError: if ``waiting`` is less than 1.
    """
    if waiting < 1:
        raise ValueError(f"waiting is {waiting}; there must be room for at least 1 kernel")
    from tconv.aot.build import ENVIRONMENT
    from tconv_workers import Workers, memory_of

    global _compiler
    stop_compiling()
    _compiler = Compiler(waiting, lambda: Workers(1, ENVIRONMENT, memory=memory_of(1)))
    shared_kernels.set_patience(shared_kernels.MEANWHILE)
    return stop_compiling


def stop_compiling() -> None:
    """Turn compiling in the background off; what is chosen already stays."""
    global _compiler
    shared_kernels.set_patience(shared_kernels.TOLERATED)
    if _compiler is not None:
        _compiler.stop()
        _compiler = None


def request_better(
    problem: Problem, target: Target, plan: Callable[[Choice], tuple[Launch, ...]]
) -> None:
    """Have the better kernel compiled that ``problem`` waits for, if there is one and any room.

    ``plan`` returns the launches of a choice as the caller needs them, with its epilogue.
    """
    compiler = _compiler
    if compiler is None or (better := shared_kernels.start(problem, target)) is None:
        return
    if not compiler.submit(Job(problem, better, target, plan(better))):
        shared_kernels.settle(problem, better, target, compiled=False)
