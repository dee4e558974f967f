"""Runs a kernel's tests on each of its mutants: pytest collects once, each mutant has a fork.

A fork begins with all modules imported and all tests collected, takes the mutant in, and ends with
the first test that fails. What it breaks, leaks or hangs goes with it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import IO, Any

import pytest

from tconv.launch import recorded
from tests.mutation.mutants import Mutant, installed

SPARE_SECONDS, SLOWER = 10.0, 10.0  # a test that takes SLOWER times its time, and these, hangs
SPARE_MEMORY = 4 << 30  # bytes that a mutant may take beyond what its fork begins with


@dataclass(frozen=True)
class Outcome:
    """What became of the tests, with or without a mutant."""

    failed: str = ""  # the first test that failed
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # of each test that ran
    launched: dict[str, list[str]] = field(default_factory=dict)  # by each, kernels


@dataclass
class Watcher:
    """A pytest plugin: the times of the tests, and the first failure."""

    seconds: dict[str, float] = field(default_factory=dict)
    failed: str = ""
    why: str = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.failed and not self.failed:
            self.failed = report.nodeid
            crash = getattr(report.longrepr, "reprcrash", None)
            self.why = (crash.message if crash else str(report.longrepr)).strip()


def limits(usual: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each test may take, from those that it takes."""
    return {test: SPARE_SECONDS + SLOWER * seconds for test, seconds in usual.items()}


def run_tests(
    items: Sequence[pytest.Item], mutant: Mutant | None, seconds: Mapping[str, float]
) -> Outcome:
    """The tests in order until the first that fails, in this process.

    One that takes longer than its ``seconds`` ends the process.
    """
    watcher, launched = Watcher(), dict[str, list[str]]()
    items[0].config.pluginmanager.register(watcher)
    with installed(mutant) if mutant else nullcontext():
        for item, following in zip(items, [*items[1:], None], strict=True):
            signal.setitimer(signal.ITIMER_REAL, seconds.get(item.nodeid, 0.0))
            with recorded() as log:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            launched[item.nodeid] = sorted({launch.kernel for launch in log})
            if watcher.failed:
                break
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    return Outcome(watcher.failed, watcher.why, watcher.seconds, launched)


def _child(work: Callable[[], Outcome], answer: IO[bytes]) -> None:
    """Runs ``work``, says what came out and ends the process, whatever happens."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        faulthandler.disable()  # which would write elsewhere
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + SPARE_MEMORY,) * 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
        said = vars(work())
    except BaseException as error:
        said = {"failed": "the test session", "why": repr(error)}
    try:
        answer.write(json.dumps(said).encode())
        answer.flush()
    finally:
        os._exit(0)


class Forks:
    """Processes that each do one piece of work."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[Any, IO[bytes]]] = {}  # by process: its key, where it answers

    def start(self, key: Any, work: Callable[[], Outcome]) -> None:
        """``work`` in a process of its own, known by ``key``."""
        answer = tempfile.TemporaryFile()  # noqa: SIM115  a pipe would hold 64 KiB alone
        sys.stdout.flush()
        if not (pid := os.fork()):
            _child(work, answer)
        self.running[pid] = key, answer

    def next(self) -> tuple[Any, Outcome]:
        """The next that ends: its key and its outcome."""
        pid, status = os.wait()
        key, answer = self.running.pop(pid)
        with answer:
            answer.seek(0)
            said = answer.read()
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return key, Outcome("the process", "hangs" if name == "SIGALRM" else f"ends by {name}")
        return key, Outcome(**json.loads(said))
