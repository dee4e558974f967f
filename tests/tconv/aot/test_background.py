"""A layer runs on a kernel in use until a better one is compiled; workers are played here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import tconv
from tconv import shared_kernels
from tconv.aot import background
from tconv.aot.background import compile_in_background, request_better
from tconv.aot.build import Built
from tconv.cost.cheapest import cheapest
from tconv.explain import Explanation
from tconv.families import FAMILIES
from tconv.geometry import ConvGeometry
from tconv.launch import Launch, planning
from tconv.problem import Problem
from tconv.select import choose, forget
from tconv.shared_kernels import identity, wanted
from tconv.target import TARGETS
from tconv.tile import Choice
from tconv_workers import Failure, Workers

H200 = TARGETS["sm_90"]
LAYER = ConvGeometry(1, 256, 40, 40, 512, 1, 1)


class Played(Workers):
    """Workers that compile nothing; they wait until they may go on."""

    def __init__(self, result: Built | Failure) -> None:
        super().__init__(1, {})
        self.result = result
        self.may_go_on = threading.Event()
        self.compiled: list[Launch] = []

    def run(self, tasks: Any, seconds: float) -> Iterator[tuple[Any, Any, float]]:
        assert self.may_go_on.wait(60)
        for task in tasks:
            self.compiled.append(task.arguments[0])
            yield task, self.result, 0.0


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    workers = Played(Built("0" * 64, False))
    monkeypatch.setattr("tconv_workers.Workers", lambda *_, **__: workers)
    forget()
    yield workers
    background.stop_compiling()
    workers.may_go_on.set()
    forget()


def at(size: int) -> Problem:
    return Problem(replace(LAYER, in_h=size, in_w=size), "fprop")


def launches(problem: Problem, choice: Choice) -> tuple[Launch, ...]:
    return FAMILIES[choice.family].plan(problem, choice.tile, H200).launches


def call(problem: Problem) -> Choice:
    """Choose as a call does, and ask for what is better."""
    choice = choose(problem, H200)
    request_better(problem, H200, lambda better: launches(problem, better))
    return choice


def size_with_a_better_kernel() -> Problem:
    """A size at which a kernel of 40x40 serves meanwhile, though it loses more than tolerated."""
    choose(at(40), H200)
    for size in (80, 20, 120, 12, 160, 9, 240, 320):
        choose(at(size), H200)
        if wanted(at(size), H200) is not None:
            return at(size)
    raise AssertionError("no size loses between 12% and a half")


def finish() -> None:
    compiler = background._compiler
    assert compiler is not None
    compiler._jobs.put(None)
    compiler.join()


def test_a_better_kernel_serves_once_it_is_compiled(played: Played) -> None:
    compile_in_background()
    problem = size_with_a_better_kernel()
    better = wanted(problem, H200)
    assert better == cheapest(problem, H200)
    meanwhile = call(problem)
    assert meanwhile.at
    assert meanwhile != better
    for _ in range(3):  # asks once
        call(problem)
    played.may_go_on.set()
    finish()
    assert played.compiled == list(launches(problem, better))
    assert wanted(problem, H200) is None
    after = choose(problem, H200)
    assert identity(problem, after, H200) == identity(problem, better, H200)


def test_it_is_off_by_default(played: Played) -> None:
    with pytest.raises(AssertionError, match="no size loses"):
        size_with_a_better_kernel()


def test_a_warm_up_compiles_the_better_kernel_itself(played: Played) -> None:
    compile_in_background()
    with planning(H200, []), pytest.raises(AssertionError, match="no size loses"):
        size_with_a_better_kernel()


def test_a_kernel_that_fails_is_reported_and_not_taken(played: Played) -> None:
    played.result = Failure("error", "out of registers")
    compile_in_background()
    problem = size_with_a_better_kernel()
    meanwhile = call(problem)
    played.may_go_on.set()
    with pytest.warns(UserWarning, match="keeps its kernel: error: out of registers"):
        finish()
    assert wanted(problem, H200) is None
    assert choose(problem, H200) == meanwhile


def test_what_finds_no_room_is_not_compiled(played: Played) -> None:
    undo = compile_in_background(waiting=1)
    compiler = background._compiler
    assert compiler is not None
    problem = size_with_a_better_kernel()
    job = background.Job(problem, cheapest(problem, H200), H200, ())
    while compiler.submit(job):  # until one is in work and one waits
        pass
    call(problem)
    assert wanted(problem, H200) is None
    undo()
    assert background._compiler is None
    assert shared_kernels._patience == shared_kernels.TOLERATED
    played.may_go_on.set()
    compiler.join()


def test_explain_names_it() -> None:
    tile = tconv.Tile(64, 64, 32)
    choices = (("fprop", Choice("implicit_gemm", tile, at="40x40, batch 1")),)
    better = (("fprop", Choice("implicit_gemm_tma", tile)),)
    text = str(Explanation(LAYER, "GPU", choices, (), better))
    waits = f"to be compiled in the background, as a better one: implicit_gemm_tma, tile {tile}"
    assert waits in text


def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="waiting is 0"):
        compile_in_background(0)
