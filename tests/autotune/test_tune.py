"""A run from problems to the table of winners, with a made-up compiler and gate.

``test_cli.py`` runs the real ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console

from autotune import tune as tune_module
from autotune.compile import Compiled
from autotune.gate import Verdict
from autotune.search import DEFAULT_EFFORT
from autotune.store import Store
from autotune.suites import suite
from autotune.tune import Outcome, jobs, tune
from autotune.workers import Failure, Task
from tconv import select
from tconv.choice import Choice
from tconv.cost.estimate import Resources
from tconv.geometry import PASSES
from tconv.problem import Problem
from tconv.table import read_table, user_table
from tconv.target import TARGETS

H200 = TARGETS["sm_90"]
EFFORT = replace(DEFAULT_EFFORT, candidates=2)
C5 = suite("lenet5", 8)[2:]


class Compilers:
    """In place of worker processes: every candidate compiles to the same figures."""

    def __init__(self, count: int, environment: object) -> None:
        pass

    def run(self, tasks: list[Task], seconds: float) -> Iterator[tuple[Task, Compiled, float]]:
        for task in tasks:
            yield task, Compiled(Resources(64, 0, 16384, 100)), 0.1

    def abandon(self) -> None:
        pass

    def __enter__(self) -> Compilers:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "Workers", Compilers)


def passing(problem: Problem, choice: Choice) -> Verdict:
    return Verdict(True, 1e-4)


def run(gate: object = passing, text: io.StringIO | None = None) -> Outcome:
    screen = Console(file=text or io.StringIO(), width=200)
    work = jobs(C5, ("fprop",), "float16")
    return tune(work, H200, "predicted", EFFORT, screen, gate=gate)  # type: ignore[arg-type]


def test_a_winner_takes_effect_and_a_second_run_compiles_nothing() -> None:
    select.forget()
    text = io.StringIO()
    first = run(text=text)
    assert (first.compiled, first.recalled) == (2, 0)
    (finding,) = first.findings
    assert finding.winner is not None
    assert finding.winner.milliseconds == min(t.milliseconds or 9e9 for t in finding.trials)
    assert "predicted" in text.getvalue()
    assert "measured" not in text.getvalue()

    (winner,) = read_table(user_table("sm_90")).values()
    assert (winner.tile, winner.kind) == (finding.winner.tile, "predicted")
    select.forget()
    choice = select.choose(finding.job.problem, H200)
    assert (choice.tile, choice.ground) == (winner.tile, "predicted")

    def never(problem: Problem, choice: Choice) -> Verdict:
        raise AssertionError("a candidate that passed is not checked again")

    second = run(never)
    assert (second.compiled, second.recalled) == (0, 2)
    assert second.findings[0].winner == finding.winner
    select.forget()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Verdict(False, 0.7, "all wrong"), "wrong result"),
        (Failure("time limit", "stopped"), "gate: time limit"),
    ],
)
def test_what_the_gate_refuses_cannot_win(answer: Verdict | Failure, status: str) -> None:
    outcome = run(lambda problem, choice: answer)
    assert outcome.findings[0].winner is None
    assert not user_table("sm_90").exists()
    with Store() as store:
        assert {trial.status for trial in store.trials()} == {status}
        assert {trial.milliseconds for trial in store.trials()} == {None}


def test_the_runner_up_wins_where_the_first_is_wrong() -> None:
    asked: list[Choice] = []

    def first_is_wrong(problem: Problem, choice: Choice) -> Verdict:
        asked.append(choice)
        return Verdict(len(asked) > 1, 0.5)

    outcome = run(first_is_wrong)
    winner = outcome.findings[0].winner
    assert winner is not None
    assert winner.tile == asked[1].tile != asked[0].tile


def test_an_interrupt_keeps_what_was_found() -> None:
    def interrupted(problem: Problem, choice: Choice) -> Verdict:
        if problem.direction == "dgrad":
            raise KeyboardInterrupt
        return Verdict(True, 1e-4)

    work = jobs(C5, PASSES, "float16")
    screen = Console(file=io.StringIO())
    outcome = tune(work, H200, "predicted", EFFORT, screen, gate=interrupted)
    assert outcome.interrupted
    assert len(outcome.findings) == len(read_table(user_table("sm_90"))) == 1
    with Store() as store:
        assert len(list(store.trials())) == 4


def test_a_damaged_table_is_said_and_left_alone() -> None:
    path = user_table("sm_90")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    outcome = run()
    assert outcome.findings[0].winner is not None
    assert str(path) in outcome.trouble[0]
    assert path.read_text() == "{"


def test_layers_that_suites_share_are_tuned_once() -> None:
    work = jobs([*C5, *C5], PASSES, "float16")
    assert [job.problem.direction for job in work] == list(PASSES)
