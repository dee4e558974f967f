"""Tests of tuning a layer at its first call, with a fake clock."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import autotune
from autotune.gate import Verdict
from autotune.measure import Timing
from autotune.trial_store import Store
from tconv import select
from tconv.cost.cheapest import cheapest
from tconv.geometry import ConvGeometry
from tconv.problem import Problem
from tconv.target import TARGETS
from tconv.tile import Choice
from tconv.winners import read_table, user_table
from tconv_workers import Failure

H200 = TARGETS["sm_90"]
PROBLEM = Problem(ConvGeometry(8, 16, 14, 14, 32, 3, 3), "fprop")


class Clock:
    """A clock that finds the fifth candidate fastest, and records the candidates."""

    def __init__(self) -> None:
        self.tried: list[Choice] = []

    def measure(self, problem: Problem, choice: Choice, best: float) -> Timing:
        self.tried.append(choice)
        milliseconds = 1.0 if len(self.tried) == 5 else 2.0
        return Timing(milliseconds, milliseconds, milliseconds, 1)


def right(problem: Problem, choice: Choice) -> Verdict:
    return Verdict(True, 1e-4)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    select.forget()
    yield
    select.forget()


def test_the_fastest_is_chosen_and_stored() -> None:
    clock = Clock()
    undo = autotune.on_first_call(60, gate=right, measure=clock.measure)
    try:
        chosen = select.choose(PROBLEM, H200)
        assert (chosen, chosen.ground) == (clock.tried[4], "tuned")
        assert len(clock.tried) == 16
        assert select.choose(PROBLEM, H200) == chosen
    finally:
        undo()
    assert len(clock.tried) == 16  # the second choice comes from the table
    assert select.choose(PROBLEM, H200) == chosen
    (winner,) = read_table(user_table("sm_90")).values()
    assert (winner.kind, winner.milliseconds) == ("measured", 1.0)
    with Store() as store:
        assert len(list(store.trials("sm_90", "measured"))) == 16


def test_another_process_measures_nothing() -> None:
    first, second = Clock(), Clock()
    autotune.on_first_call(60, gate=right, measure=first.measure)()
    undo = autotune.on_first_call(60, gate=right, measure=first.measure)
    chosen = select.choose(PROBLEM, H200)
    undo()
    user_table("sm_90").unlink()  # the trials alone suffice
    undo = autotune.on_first_call(60, gate=right, measure=second.measure)
    try:
        assert select.choose(PROBLEM, H200) == chosen
    finally:
        undo()
    assert not second.tried


def test_the_time_limit_is_kept() -> None:
    clock = Clock()
    undo = autotune.on_first_call(1e-9, gate=right, measure=clock.measure)
    try:
        assert select.choose(PROBLEM, H200) == clock.tried[0]
    finally:
        undo()
    assert len(clock.tried) == 1


def test_wrong_or_failing_candidates_are_not_chosen() -> None:
    def gate(problem: Problem, choice: Choice) -> Verdict:
        return Verdict(False, 0.7, "all wrong")

    def broken(problem: Problem, choice: Choice, best: float) -> Failure:
        return Failure("error", "RuntimeError: too many resources requested")

    for how in ({"gate": gate, "measure": Clock().measure}, {"gate": right, "measure": broken}):
        undo = autotune.on_first_call(60, **how)  # type: ignore[arg-type]
        try:
            assert select.choose(PROBLEM, H200) == cheapest(PROBLEM, H200)
        finally:
            undo()
        assert not user_table("sm_90").exists()


def test_candidates_that_ran_out_of_memory_are_tried_again() -> None:
    def full(problem: Problem, choice: Choice, best: float) -> Failure:
        return Failure("machine", "OutOfMemoryError: another process has it all")

    clock = Clock()
    for measure in (full, clock.measure):
        undo = autotune.on_first_call(60, gate=right, measure=measure)
        select.choose(PROBLEM, H200)
        undo()
    assert len(clock.tried) == 16


@pytest.mark.filterwarnings("ignore:tuned choices ignored")
def test_a_winner_that_cannot_be_stored_is_used_in_this_process() -> None:
    user_table("sm_90").parent.mkdir(parents=True)
    user_table("sm_90").mkdir()  # a folder in place of the table
    clock = Clock()
    undo = autotune.on_first_call(60, gate=right, measure=clock.measure)
    try:
        with pytest.warns(
            UserWarning, match=r"was not written: .*sm_90\.json .*not a regular file"
        ):
            chosen = select.choose(PROBLEM, H200)
        assert (chosen, chosen.ground) == (clock.tried[4], "tuned")
    finally:
        undo()


def test_a_failing_tuner_does_not_stop_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from autotune import search

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(search, "shortlist", broken)
    undo = autotune.on_first_call(60, gate=right, measure=Clock().measure)
    try:
        with pytest.warns(UserWarning, match="was not tuned: disk full"):
            assert select.choose(PROBLEM, H200) == cheapest(PROBLEM, H200)
    finally:
        undo()


def test_without_a_gpu_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    undo = autotune.on_first_call(60)
    try:
        assert select.choose(PROBLEM, H200).ground == "heuristic"
    finally:
        undo()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_that_is_not_positive_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds is"):
        autotune.on_first_call(seconds)
