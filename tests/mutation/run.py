"""Runs a kernel's tests on each of its mutants: pytest collects once, each mutant has a fork.

A fork starts with all modules imported and all tests collected, installs the mutant, and ends at
the first failing test. Leaks, hangs and crashes end with the fork.
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

SPARE_SECONDS, SLOWER = 10.0, 10.0  # a test over SLOWER times its usual time, plus these, hangs
SPARE_MEMORY = 4 << 30  # bytes that a mutant may allocate beyond its fork's initial use


@dataclass(frozen=True)
class Outcome:
    """Outcome of the tests, with or without a mutant."""

    failed: str = ""  # the first test that failed
    why: str = ""
    seconds: dict[str, float] = field(default_factory=dict)  # by test
    launched: dict[str, list[str]] = field(default_factory=dict)  # kernels by test


@dataclass
class Watcher:
    """Pytest plugin that records the tests' times and the first failure."""

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
    """Return each test's time limit, from its usual time."""
    return {test: SPARE_SECONDS + SLOWER * seconds for test, seconds in usual.items()}


def run_tests(
    items: Sequence[pytest.Item], mutant: Mutant | None, seconds: Mapping[str, float]
) -> Outcome:
    """Run the tests in this process, in order, up to the first failure.

    A test that takes longer than its ``seconds`` ends the process.
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
    """Run ``work``, write its outcome to ``answer``, and end the process in any case."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1), os.dup2(nowhere, 2)
        faulthandler.disable()  # it would write to another file
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + SPARE_MEMORY,) * 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the alarm ends the process
        found = vars(work())
    except BaseException as error:
        found = {"failed": "the test session", "why": repr(error)}
    try:
        answer.write(json.dumps(found).encode())
        answer.flush()
    finally:
        os._exit(0)


class Forks:
    """Forked processes that each do one piece of work."""

    def __init__(self) -> None:
        self.running: dict[int, tuple[Any, IO[bytes]]] = {}  # by process: its key and answer file

    def start(self, key: Any, work: Callable[[], Outcome]) -> None:
        """Start ``work`` in a forked process under ``key``."""
        answer = tempfile.TemporaryFile()  # noqa: SIM115  a pipe would hold 64 KiB alone
        sys.stdout.flush()
        if not (pid := os.fork()):
            _child(work, answer)
        self.running[pid] = key, answer

    def next(self) -> tuple[Any, Outcome]:
        """Wait for the next process to end; return its key and outcome."""
        pid, status = os.wait()
        key, answer = self.running.pop(pid)
        with answer:
            answer.seek(0)
            found = answer.read()
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return key, Outcome("the process", "hangs" if name == "SIGALRM" else f"ends by {name}")
        return key, Outcome(**json.loads(found))
