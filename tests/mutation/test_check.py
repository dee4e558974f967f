"""Tests that hanging, dying and surviving mutants are distinguished from caught ones."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.mutation import equivalent
from tests.mutation.check import Check, Kernel, kind, report
from tests.mutation.mutants import Mutant, mutants
from tests.mutation.run import Forks, Outcome

MUTANT, OTHER = mutants("epilogue_grad.bias_grad_sum")[:2]


def passes() -> Outcome:
    return Outcome(seconds={"a test": 0.5})


def fails() -> Outcome:
    return Outcome("a test", "AssertionError: not close")


def says_much() -> Outcome:
    return Outcome(why="more than a pipe holds" * 10_000)


def raises() -> Outcome:
    raise MemoryError("too much")


def dies() -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Outcome()


def hangs() -> Outcome:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (passes, Outcome(seconds={"a test": 0.5})),
        (fails, Outcome("a test", "AssertionError: not close")),
        (says_much, Outcome(why="more than a pipe holds" * 10_000)),
        (raises, Outcome("the test session", "MemoryError('too much')")),
        (dies, Outcome("the process", "ends by SIGSEGV")),
        (hangs, Outcome("the process", "hangs")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_outcome_of_a_fork(work: Callable[[], Outcome], expected: Outcome) -> None:
    forks = Forks()
    forks.start("a key", work)
    assert forks.next() == ("a key", expected)
    assert not forks.running


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("AssertionError: Tensor-likes are not close!", "values"),
        ("assert torch.equal(ours, again)", "values"),
        ("triton.runtime.errors.InterpreterError: AccessError('memory is touched')", "memory"),
        ("triton.runtime.errors.InterpreterError: NameError('a')", "error"),
        ("ends by SIGSEGV", "error"),
        ("hangs", "hangs"),
    ],
)
def test_how_a_mutant_was_detected(why: str, expected: str) -> None:
    assert kind(Outcome("a test", why)) == expected


def checked(caught: list[Mutant], survived: list[Mutant]) -> Check:
    kernel = Kernel("epilogue_grad.bias_grad_sum", (), [MUTANT, OTHER], ["it is slower, no more"])
    kernel.caught = {mutant: fails() for mutant in caught}
    kernel.survived = survived
    return Check([kernel], workers=1, console=Console(file=io.StringIO()))


def test_all_caught() -> None:
    check = checked([MUTANT, OTHER], [])
    report(check.kernels, check.console)
    assert check.sound
    printed = check.console.file.getvalue()
    assert "1 equivalent: it is slower, no more" in printed
    assert "survives" not in printed


def test_a_survivor_is_named() -> None:
    check = checked([MUTANT], [OTHER])
    report(check.kernels, check.console)
    assert not check.sound
    assert f"survives in epilogue_grad.bias_grad_sum: {OTHER.rule}" in check.console.file.getvalue()


def test_a_mutant_that_never_ran_is_not_caught() -> None:
    assert not checked([MUTANT], []).sound


def test_tests_that_catch_most_per_second_come_first() -> None:
    kernel = Kernel("epilogue_grad.bias_grad_sum", (), [MUTANT])
    kernel.items = [SimpleNamespace(nodeid=name) for name in "abc"]  # type: ignore[misc]
    kernel.seconds = {"a": 1.0, "b": 0.4, "c": 0.6}
    assert [item.nodeid for item in kernel.ordered()] == ["b", "c", "a"]
    kernel.caught = dict.fromkeys([MUTANT, OTHER], Outcome("a", "AssertionError"))
    assert [item.nodeid for item in kernel.ordered()] == ["a", "b", "c"]


def test_reasons() -> None:
    reasons = {"a.b: c -> d": "for all", "k.l / a.b: e -> f": "for one"}
    assert equivalent.reason(reasons, "k.l", "a.b: c -> d") == "for all"
    assert equivalent.reason(reasons, "k.l", "a.b: e -> f") == "for one"
    assert equivalent.reason(reasons, "m.n", "a.b: e -> f") is None


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 0, "caught"),
        (["--recheck"], 1, "survives in epilogue_grad.bias_grad_sum: filling"),
        (["--kernel", "epilogue_grad.bias"], 2, "no kernel"),
    ],
    ids=["all-caught", "a-survivor", "no-such-kernel"],
)
def test_exit_code(options: list[str], code: int, words: str) -> None:
    """Mutants of one kernel are really run; with --recheck a known equivalent one survives."""
    command = [sys.executable, "-m", "tests.mutation", "--kernel", "epilogue_grad.bias_grad_sum"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert words in done.stdout + done.stderr
